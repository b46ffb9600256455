"""Pictures of a history."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbprocs
from nbprocs.runs.plots import lanes, timeline

mpl.use("agg")
_figure = plt.figure()
_figure.text(0, 0, "fonts stay open once they were used: $x$")
_figure.canvas.draw()
plt.close(_figure)


@pytest.fixture
async def runs(tmp_path):
    async with nbprocs.ProcessManager(runs=tmp_path / "runs.db") as pm:
        for _ in range(3):
            await pm.run("sleep", "0.01", name="job")
        await pm.run("false", name="job", check=False)
        await pm.spawn("sleep", "100", name="<b>$long$</b>")
    yield nbprocs.runs(tmp_path / "runs.db")
    plt.close("all")


async def test_durations_with_failures_marked(runs):
    above, below = runs.plot("job")
    assert len(above.lines[0].get_xdata()) == 3
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert labels == ["completed", "failed"]
    assert (above.get_ylabel(), below.get_ylabel()) == ("seconds", "MiB")


async def test_a_timeline_of_the_session(runs):
    axes = runs.timeline()
    assert len(axes.patches) == 5
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["completed", "failed", "terminated"]
    axes.figure.canvas.draw()


async def test_a_timeline_has_the_cells_below_the_runs_that_they_started(runs):
    frame = runs.frame()
    frame["cell"] = ["[1] abc", "[1] abc", "[2]", "[2]", None]
    axes = timeline(frame)
    below = [bar for bar in axes.patches if bar.get_y() < -1]
    assert len(axes.patches) - len(below) == 5
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in below]
    began = frame["started"].min()
    assert spans[0] == pytest.approx((0, (frame["ended"].iloc[:2].max() - began).total_seconds()))
    assert spans[1][0] == pytest.approx((frame["started"].iloc[2] - began).total_seconds())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cells"]


async def test_pictures_of_nothing(runs):
    none = runs.filter(name="nobody")
    none.plot()
    none.timeline().figure.canvas.draw()


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=30))
def test_bars_of_one_row_never_overlap(spans):
    spans = sorted((min(span), max(span)) for span in spans)
    rows = lanes([start for start, _ in spans], [end for _, end in spans])
    for row in set(rows):
        mine = [span for span, at in zip(spans, rows, strict=True) if at == row]
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(mine))
