"""Rings of arrays: what goes in comes out, within the byte budget, in sensible types."""

import threading

import numpy as np
import pandas as pd
import pytest

from nbprocs.monitor.history import BLOCK, COLUMNS, ROW_BYTES, History, Spill
from nbprocs.monitor.metrics import METRICS, Scope, State


def rows(history, series, *, at, scope=Scope.TREE, state=State.RUNNING, **values):
    """Append one moment: a row for each of the series."""
    count = len(series)
    columns = {
        name: np.full(count, values.get(name, np.nan if kind == "f4" else -1), "f8" if kind == "f4" else "i8")
        for name, kind in COLUMNS.items()
    }
    columns |= {
        "series": np.array([s.code for s in series]),
        "scope": np.full(count, int(scope)),
        "state": np.full(count, int(state)),
        "time": np.full(count, at),
    }
    history.append(columns)


def filled(*, samples, names=4, max_bytes=1 << 30, on_full=None):
    history = History(max_bytes=max_bytes, on_full=on_full)
    series = [history.series(process_id=f"id-{n}", name=f"p{n}", pid=100 + n) for n in range(names)]
    for tick in range(samples // names):
        rows(history, series, at=1_000_000 * tick, memory_usage_mb=tick, threads=3)
    return history, series


def test_the_frame_is_tidy_and_typed():
    history, series = filled(samples=12, names=3)
    rows(history, series[:1], at=10**8, state=State.FAILED, memory_usage_mb=np.nan)
    frame = history.snapshot().frame()
    assert len(frame) == 13
    assert str(frame["timestamp"].dtype) == "datetime64[us, UTC]"
    assert list(frame["name"][:3]) == ["p0", "p1", "p2"]
    assert list(frame["pid"][:3]) == [100, 101, 102]
    assert isinstance(frame["name"].dtype, pd.CategoricalDtype)
    assert frame["threads"].dtype == "Int32"
    assert frame["read_bytes"].dtype == "Int64"
    assert frame["read_bytes"].isna().all()  # -1 is how unknown is kept, NA how it is shown
    assert frame["memory_usage_mb"].dtype == "float32"
    assert frame["state"].iloc[-1] == "failed"
    assert list(frame.columns[:6]) == ["timestamp", "name", "process_id", "pid", "scope", "state"]
    assert set(METRICS) <= set(frame.columns)
    assert all(frame[name].dtype.name.startswith("Int") for name, metric in METRICS.items() if metric.counts)


def test_frames_can_be_narrowed():
    history, series = filled(samples=40, names=4)
    rows(history, series[:2], at=10**9, scope=Scope.GROUP)
    snapshot = history.snapshot()
    assert len(snapshot.frame()) == 40
    assert len(snapshot.frame(scope=None)) == 42
    assert len(snapshot.frame(scope=Scope.GROUP)) == 2
    assert set(snapshot.frame(names=["p1", "p3"])["name"]) == {"p1", "p3"}
    assert len(snapshot.frame(since=5_000_000)) == 20


def test_an_empty_history_gives_an_empty_frame_with_all_columns():
    frame = History().snapshot().frame()
    assert frame.empty
    assert str(frame["timestamp"].dtype) == "datetime64[us, UTC]"


def test_the_byte_budget_holds_and_the_oldest_leave():
    left = []
    history, _ = filled(samples=10 * BLOCK, max_bytes=4 * BLOCK * ROW_BYTES, on_full=left.append)
    assert history.nbytes <= 4 * BLOCK * ROW_BYTES
    assert history.dropped == 6 * BLOCK == sum(len(part) for part in left)
    assert len(history) == 4 * BLOCK
    frame = history.snapshot().frame()
    assert frame["memory_usage_mb"].iloc[0] == 6 * BLOCK // 4
    assert frame["timestamp"].is_monotonic_increasing


def test_at_most_120_bytes_a_sample():
    history, _ = filled(samples=20 * BLOCK)
    assert ROW_BYTES <= 120
    assert history.nbytes / len(history) <= 120


def test_series_without_samples_are_forgotten():
    history = History(max_bytes=2 * BLOCK * ROW_BYTES)
    for number in range(3 * BLOCK):  # every sample a process of its own
        rows(history, [history.series(process_id=str(number), name=f"job-{number}", pid=number + 1)], at=number)
    assert len(history._series) <= 2 * BLOCK + 1
    assert len(history._last) == len(history._series)
    assert history.snapshot().frame()["name"].iloc[-1] == f"job-{3 * BLOCK - 1}"


def test_latest_is_the_last_row_of_each_series():
    history, series = filled(samples=3 * BLOCK, names=4)
    rows(history, series[1:2], at=10**12, memory_usage_mb=7.5)
    found = {s.name: row["memory_usage_mb"] for s, row in history.latest()}
    assert found["p1"] == 7.5
    assert found["p0"] == 3 * BLOCK // 4 - 1


def test_time_never_goes_back():
    history, series = filled(samples=4, names=1)
    assert history.next_time(0) == history.last_time + 1
    rows(history, series, at=history.next_time(0))
    assert history.snapshot().frame()["timestamp"].is_monotonic_increasing


def test_a_snapshot_stays_what_it_was_while_the_history_goes_on():
    history, series = filled(samples=BLOCK, names=4, max_bytes=2 * BLOCK * ROW_BYTES)
    snapshot = history.snapshot()
    before = snapshot.frame()
    stop = threading.Event()

    def write():
        at = 10**13
        while not stop.is_set():
            at += 1
            rows(history, series, at=at)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(6):
            pd.testing.assert_frame_equal(snapshot.frame(), before)
            assert history.snapshot().frame()["timestamp"].is_monotonic_increasing
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_leaves_memory_is_spilled_and_can_be_read_back(tmp_path, kind):
    path = tmp_path / f"metrics.{kind}"
    spill = Spill(str(path))
    history, _ = filled(samples=5 * BLOCK, max_bytes=2 * BLOCK * ROW_BYTES, on_full=spill.write)
    spill.write(history.snapshot())
    back = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
    assert len(back) == 5 * BLOCK == spill.rows
    assert list(back["memory_usage_mb"].iloc[[0, -1]]) == [0, 5 * BLOCK // 4 - 1]
    again = Spill(str(path))  # another run: nothing is overwritten
    again.write(history.snapshot())
    assert len(pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)) == 7 * BLOCK


def test_a_spill_of_another_kind_is_refused_at_once():
    with pytest.raises(ValueError, match=r"\.csv"):
        Spill("metrics.xlsx")
