"""The bell of a row and of a pane: what is done with it, what is told, and once."""

from typing import Any

import pytest

from nbprocs import Notify, ProcessManager
from nbprocs.errors import Closed
from nbprocs.notify import listen
from nbprocs.widgets import OutputPane, ProcessTable
from nbprocs.widgets.bell import hear
from nbprocs.widgets.process_table import COLUMNS
from tests.unit.widgets_kit import shown

TOLD = COLUMNS.index("told")


@pytest.fixture
def told() -> Any:
    """Titles of the notices, as they come."""
    heard: list[str] = []
    end = listen(lambda notice: heard.append(notice.title))
    heard.clear()  # what an earlier test told nobody
    yield heard
    end()


async def rows(tab: Any) -> list[bool]:
    return [cells[TOLD] for _, cells, *_ in (await tab.hello())["table"]["rows"]]


async def test_the_bell_of_a_row_is_the_bell_of_its_pane_and_rings_once(told: list[str]) -> None:
    async with ProcessManager() as pm:
        proc = await pm.spawn("cat", stdin=True, name="job")
        with shown(ProcessTable(pm)) as table, shown(OutputPane(proc)) as pane:
            assert await rows(table) == [False]
            assert (await pane.hello())["pane"]["head"]["told"] is False
            assert (await table.call("table", "bell", ids=[proc.id], on=True))["ok"]
            assert (await pane.delta("pane", lambda d: "head" in d))["head"]["told"] is True
            assert await rows(table) == [True]
            await proc.close_stdin()
            await proc.wait()
            assert (await pane.until(lambda m: m.get("p", {}).get("pane", {}).get("head", {}).get("took") is not None)) is not None
            assert [title.split(" after")[0] for title in told] == ["job completed"]
            refused = await table.call("table", "bell", ids=[proc.id], on=True)
            assert refused["error"] == "what has ended is told already"
            assert "has ended" in (await pane.call("pane", "bell", on=True))["error"]


async def test_a_bell_is_taken_back_and_set_again(told: list[str]) -> None:
    async with ProcessManager() as pm:
        quiet = await pm.spawn("cat", stdin=True, name="quiet")
        loud = await pm.spawn("cat", stdin=True, name="loud")
        with shown(ProcessTable(pm)) as tab:
            await tab.hello()
            for on in (True, False, True, False):
                await tab.call("table", "bell", ids=[quiet.id, loud.id], on=on)
            await tab.call("table", "bell", ids=[loud.id], on=True)
            assert await rows(tab) == [False, True]
            for proc in (quiet, loud):
                await proc.close_stdin()
                await proc.wait()
    assert [title.split(" after")[0] for title in told] == ["loud completed"]


async def test_what_notify_tells_already_is_not_told_twice(told: list[str]) -> None:
    async with ProcessManager() as pm:
        proc = await pm.spawn("cat", stdin=True, name="given", notify=True)
        failures = await pm.spawn("cat", stdin=True, name="failures", notify=Notify(failures_only=True))
        with shown(ProcessTable(pm)) as tab:
            assert await rows(tab) == [True, False]
            assert "notify=" in (await tab.call("table", "bell", ids=[proc.id], on=False))["error"]
            assert (await tab.call("table", "bell", ids=[proc.id, failures.id], on=True))["ok"]
            for each in (proc, failures):
                await each.close_stdin()
                await each.wait()
    assert sorted(title.split(" after")[0] for title in told) == ["failures completed", "given completed"]


async def test_one_that_refuses_keeps_no_other_from_its_bell(told: list[str]) -> None:
    async with ProcessManager() as pm:
        given = await pm.spawn("cat", stdin=True, name="given", notify=True)
        plain = await pm.spawn("cat", stdin=True, name="plain")
        with shown(ProcessTable(pm)) as tab:
            ids = [given.id, plain.id, "cleared-meanwhile"]
            assert (await tab.call("table", "bell", ids=ids, on=True))["ok"]
            assert "notify=" in (await tab.call("table", "bell", ids=ids, on=False))["error"]
            assert await rows(tab) == [True, False]


async def test_a_view_that_outlived_its_loop_keeps_no_bell_from_being_set(told: list[str]) -> None:
    class Late:
        def bell_changed(self, _process_id: str) -> None:
            raise Closed("its loop is closed")

    late = Late()
    hear(late, on=True)
    async with ProcessManager() as pm:
        proc = await pm.spawn("cat", stdin=True, name="job")
        with shown(ProcessTable(pm)) as table:
            assert (await table.call("table", "bell", ids=[proc.id], on=True))["ok"]
            assert await rows(table) == [True]
    hear(late, on=False)
