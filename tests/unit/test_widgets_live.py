"""Showing in a notebook: view factory, display ids, records that are written again, and the fallback without widgets."""

import asyncio
import contextvars
import gc
import itertools
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import IPython.display
import nbformat
import pytest

from nbprocs import ProcessManager, display
from nbprocs.widgets import Dashboard, OutputPane, ProcessTable, hub, live
from tests.unit.widgets_kit import Tab
from tests.waiting import until

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], str, bool]]:
    """What a kernel would be told to display: bundle, display id, whether it is an update."""
    found: list[tuple[dict[str, Any], str, bool]] = []

    def publish(data: dict[str, Any], *, transient: dict[str, str], update: bool) -> None:
        found.append((data, transient["display_id"], update))

    monkeypatch.setattr("IPython.display.publish_display_data", publish)
    monkeypatch.setenv("NBPROCS_VIEWS", "live")
    monkeypatch.setattr(live, "QUIET", 0.0)
    monkeypatch.setattr(live, "APART", 0.0)
    return found


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = display.view_factory()
    yield
    display.set_view_factory(before)
    if hub._hub is not None:
        hub._hub.close()


def test_no_kernel_no_views() -> None:
    assert live.install() == "static"
    assert display.view_factory() is None


async def test_one_view_for_each_model() -> None:
    async with ProcessManager() as pm:
        table = live.view_of(pm)
        assert isinstance(table, ProcessTable)
        assert live.view_of(pm) is table
        assert live.view_of(table) is table
        assert live.view_of(object()) is None
        process = await pm.spawn("sleep", "1000")
        assert isinstance(live.view_of(process), OutputPane)
        table.close()
        again = live.view_of(pm)
        assert again is not table


async def test_the_record_of_a_process_is_written_again_at_its_end(published: list[Any]) -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True)
        display.set_view_factory(live.view_bundle, publish=live.publish)
        live.publish(process)
        first, identity, update = published[0]
        assert not update
        assert set(first) == {"text/plain", "text/html"}
        assert "running" in first["text/html"]
        assert "as of " in first["text/html"]
        await process.send_line("last words")
        await process.close_stdin()
        await until(lambda: "completed" in published[-1][0]["text/html"])
        last, same, update = published[-1]
        assert (same, update) == (identity, True)
        assert "last words" in last["text/html"]
        assert "as of" not in last["text/html"]


async def test_the_record_is_written_where_a_kernel_knows_no_newest_cell(published: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """ipykernel 7.0: its variable of the cell has no value in an empty context."""
    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell")
    cell.set("this one")
    publish = IPython.display.publish_display_data
    monkeypatch.setattr("IPython.display.publish_display_data", lambda *args, **options: (cell.get(), publish(*args, **options)))
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True)
        live.publish(process)
        await process.stop()
        await until(lambda: "terminated" in published[-1][0]["text/html"])


async def test_what_was_shown_closed_and_deleted_is_freed(published: list[Any]) -> None:
    async def show() -> "list[weakref.ref[Any]]":
        pm = ProcessManager()
        live.publish(pm)
        process = await pm.spawn("sh", "-c", "echo words")
        live.publish(process)
        board = Dashboard(pm)
        live.publish(board)
        tabs = [Tab(view) for view in (live.view_of(pm), live.view_of(process), board)]
        for tab in tabs:
            await tab.hello()
        await process.wait()
        await pm.aclose()
        await until(lambda: "completed" in published[-1][0]["text/html"])
        return [weakref.ref(one) for one in (pm, process, board, *(tab.view for tab in tabs))]

    found = await show()
    published.clear()
    for _ in range(20):
        await asyncio.sleep(0.01)
        gc.collect()
        if not any(ref() for ref in found):
            break
    assert [ref() for ref in found] == [None] * len(found)


async def test_the_record_of_a_table_follows_ends(published: list[Any]) -> None:
    async with ProcessManager() as pm:
        live.publish(pm)
        await pm.run("true", name="shortlived")
        await until(lambda: any("shortlived" in data["text/html"] for data, _, _ in published))
        live.view_of(pm).close()  # type: ignore[union-attr]
        count = len(published)
        await pm.run("true")
        assert len(published) == count


async def test_an_end_is_on_record_before_its_cell_is_over(published: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUIET", 3600.0)
    pm = ProcessManager()
    live.publish(pm)
    process = await pm.spawn("cat", stdin=True, name="reader")
    live.publish(process)
    await pm.run("true", name="shortlived")
    await process.send_line("last words")
    await process.receive_output()
    assert len(published) == 2
    await pm.aclose()
    table, pane = published[0][1], published[1][1]
    last = {identity: data["text/html"] for data, identity, update in published if update}
    assert "terminated" in last[pane]
    assert "last words" in last[pane]
    assert "1 terminated, 1 completed" in last[table]
    assert len(published) == 4


async def test_records_of_the_same_come_less_and_less_often(published: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "APART", 30.0)
    now = [1000.0]

    class Loop:
        def time(self) -> float:
            return now[0]

        def call_at(self, at: float, tick: Any) -> Any:
            calls.append((at, tick))
            return None

    class Here:
        here, loop = True, Loop()

        def post(self, callback: Any, *args: Any) -> None:
            callback(*args)

    class Silent(live.Part):
        def detach(self) -> None: ...

        def snapshot(self) -> Any: ...

    calls: list[tuple[float, Any]] = []
    written: list[float] = []
    keeper = live.RecordKeeper(Here(), [], lambda: written.append(now[0]), held=lambda: False)  # type: ignore[arg-type]
    for _ in range(7):
        keeper._changed(Silent())
        keeper._timer = None
        now[0], tick = calls.pop()
        tick()
    assert [b - a for a, b in itertools.pairwise(written)] == [2, 4, 8, 16, 30, 30]
    now[0] += 100
    keeper._changed(Silent())
    calls.pop()[1]()
    keeper._changed(Silent())
    assert calls[-1][0] == now[0] + 2


async def test_no_record_is_written_while_somebody_types(published: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUIET", 0.01)
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True)
        live.publish(process)
        view = live.view_of(process)
        assert view is not None
        tab = Tab(view)
        await tab.hello()
        assert (await tab.call("view", "focus", on=True, view="tab"))["ok"]
        await process.close_stdin()
        await tab.delta("pane", lambda d: d.get("head", {}).get("took") is not None)
        for _ in range(5):  # its turn comes again and again
            await tab.hello()
        assert len(published) == 1
        await tab.call("view", "focus", on=False, view="tab")
        await until(lambda: len(published) == 2)


async def test_without_widgets_html_is_replaced(published: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBPROCS_VIEWS", "html")
    monkeypatch.setattr(live, "LIVE_APART", 0.0)
    async with ProcessManager() as pm:
        process = await pm.spawn(sys.executable, "-uc", "print(input())", stdin=True)
        live.publish(process)
        await process.send_line("seen by all")
        await until(lambda: any("seen by all" in data["text/html"] for data, _, _ in published))
        await process.wait()
        await until(lambda: "completed" in published[-1][0]["text/html"])
        assert all(WIDGET not in data for data, _, _ in published)
        assert len({identity for _, identity, _ in published}) == 1


CELLS = [
    "import nbprocs\npm = nbprocs.ProcessManager(background={background})\ncat = await pm.spawn('cat', stdin=True, name='reader')\ncat",
    "pm",
    "await cat.send_line('last words')\nawait cat.close_stdin()\n_ = await cat.wait()",
    "await pm.aclose()",
]


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_a_notebook_that_runs_without_a_browser_keeps_the_end(tmp_path: Path, background: bool) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code.format(background=background)) for code in CELLS])
    nbformat.write(book, tmp_path / "book.ipynb")
    options = ["--to=notebook", "--execute", "--inplace", "--ExecutePreprocessor.store_widget_state=False"]
    subprocess.run([sys.executable, "-m", "nbconvert", *options, str(tmp_path / "book.ipynb")], check=True, capture_output=True)
    pane, table = (cell.outputs[0].data["text/html"] for cell in nbformat.read(tmp_path / "book.ipynb", as_version=4).cells[:2])
    assert "completed" in pane
    assert "last words" in pane
    assert "1 completed" in table
