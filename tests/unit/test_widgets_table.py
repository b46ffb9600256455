"""The process table on a real manager with real children."""

import signal
import sys
from typing import Any

import pytest

from nbprocs import ProcessManager, ProcessStatus
from nbprocs.widgets import ProcessTable
from nbprocs.widgets.process_table import COLUMNS
from tests.unit.test_detached import home  # noqa: F401 - a fixture
from tests.unit.widgets_kit import Tab, shown
from tests.waiting import until

HOSTILE = "</script><script>alert(1)</script>\u202e\x1b[2J"
CELL = {name: number for number, name in enumerate(COLUMNS)}
WAITS_FOR_USR1 = "import signal; signal.signal(signal.SIGUSR1, lambda *_: exit(7)); print('ready', flush=True); signal.pause()"


def cells(message: Any, key: int) -> dict[str, Any]:
    """The changed cells of a row in a delta."""
    found: dict[str, Any] = {}
    for number, *flat in message.get("u", ()):
        if number == key:
            found |= {COLUMNS[i]: value for i, value in zip(flat[::2], flat[1::2], strict=True)}
    return found


async def status_becomes(tab: Tab, key: int, status: str) -> None:
    await tab.until(lambda m: cells(m.get("p", {}).get("table", {}), key).get("status") == status)


async def test_rows_come_change_and_go() -> None:
    async with ProcessManager(history=1) as pm:
        with shown(ProcessTable(pm)) as tab:
            assert (await tab.hello())["table"]["rows"] == []
            first = await pm.run("echo", "hello")
            key = (await tab.delta("table", lambda d: d.get("+")))["+"][0][0]
            await pm.run("true")
            await tab.delta("table", lambda d: key in d.get("-", ()))
            rows = (await tab.hello())["table"]["rows"]
            assert len(rows) == 1
            assert rows[0][1][CELL["id"]] != first.process_id


async def test_a_change_costs_a_few_bytes() -> None:
    async with ProcessManager() as pm:
        processes = [await pm.spawn("cat", stdin=True, name=f"process-{i}") for i in range(20)]
        with shown(ProcessTable(pm)) as tab:
            await tab.hello()
            await processes[3].send_line("the last line")
            delta = await tab.delta("table", lambda d: cells(d, 4).get("line"))
            assert cells(delta, 4)["line"] == "the last line"
            assert all(len(str(changed)) < 100 for changed in delta["u"])


@pytest.mark.usefixtures("home")
async def test_what_outlives_the_kernel_is_marked_and_an_adopted_one_is_a_row_like_any_other() -> None:
    async with ProcessManager() as first:
        train = await first.spawn("sh", "-c", "echo said; exec sleep 1000", name="train", detach=True)
        await train.receive_output()
    async with ProcessManager() as pm:
        await pm.spawn("sleep", "1000", name="plain")
        with shown(ProcessTable(pm)) as tab:
            await tab.hello()
            await pm.adopt("train")
            row = (await tab.delta("table", lambda d: d.get("+")))["+"][0]
            assert {name: row[1][CELL[name]] for name in ("name", "status", "line", "pid", "detached")} == {
                "name": "train",
                "status": "running",
                "line": "said",
                "pid": train.pid,
                "detached": True,
            }
            assert [cells[CELL["detached"]] for _, cells, *_ in (await tab.hello())["table"]["rows"]] == [False, True]
            assert tab.view._repr_mimebundle_()["text/html"].count("detached") == 1
            assert (await tab.call("table", "stop", ids=[train.id]))["ok"]
            await status_becomes(tab, row[0], "terminated")


async def test_every_button() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn("sleep", "1000", name="sleeper")
        with shown(ProcessTable(pm)) as tab:
            key = (await tab.hello())["table"]["rows"][0][0]
            assert (await tab.call("table", "pause", ids=[process.id]))["ok"]
            await status_becomes(tab, key, "paused")
            assert (await tab.call("table", "resume", ids=[process.id]))["ok"]
            await status_becomes(tab, key, "running")
            assert (await tab.call("table", "restart", ids=[process.id]))["ok"]
            again = pm.get("sleeper")
            assert again.id != process.id
            assert again.status is ProcessStatus.RUNNING
            assert (await tab.call("table", "kill", ids=[again.id]))["ok"]
            assert again.info.signal == signal.SIGKILL
            other = await pm.spawn(sys.executable, "-c", WAITS_FOR_USR1)
            assert await other.receive_output() == "ready"
            assert (await tab.call("table", "signal", ids=[other.id], signal="SIGUSR1"))["ok"]
            assert (await other.wait()).exit_code == 7
            last = await pm.spawn("sleep", "1000")
            assert (await tab.call("table", "stop", ids=[last.id]))["data"] == "1 done"
            assert not last.status.live


async def test_several_at_once_and_the_bad_ones_are_named() -> None:
    async with ProcessManager() as pm:
        processes = [await pm.spawn("sleep", "1000", name=f"s{i}") for i in range(3)]
        with shown(ProcessTable(pm)) as tab:
            await tab.hello()
            reply = await tab.call("table", "stop", ids=[*(p.id for p in processes), "nobody"])
            assert not reply["ok"]
            assert "nobody" in reply["error"]
            assert not any(p.status.live for p in processes)


async def test_what_is_told_is_masked_and_harmless() -> None:
    async with ProcessManager() as pm:
        await pm.spawn("sh", "-c", "sleep 1000", "--password=hunter2", name=HOSTILE)
        with shown(ProcessTable(pm)) as tab:
            row = (await tab.hello())["table"]["rows"][0][1]
            assert "hunter2" not in str(row)
            assert "\u202e" not in str(row)
            assert "\x1b" not in str(row)
            html = tab.view._repr_mimebundle_()["text/html"]
            assert "<script" not in html
            assert "</script" not in html
            assert "hunter2" not in html
            assert "&lt;/script&gt;" in html


async def test_measures_come_with_ticks_and_are_refilled() -> None:
    async with ProcessManager() as pm:
        await pm.spawn("sleep", "1000")
        with shown(ProcessTable(pm)) as tab:
            await tab.hello()
            tick = await tab.delta("table", lambda d: d.get("k") and d.get("u"))
            changed = cells(tick, 1)
            assert changed["mem"] > 0
            _, _, cpu, memory = (await tab.hello())["table"]["rows"][0]
            assert len(cpu) == len(memory) >= 1


async def test_output_is_shown_in_a_mounted_pane() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True)
        with shown(ProcessTable(pm)) as tab:
            await tab.hello()
            name = (await tab.call("table", "show", id=process.id))["data"]
            await tab.call("view", "snapshot", part=name, view="tab")
            await tab.until(lambda m: name in m.get("s", {}))
            await tab.call(name, "send", text="to the pane")
            await tab.until(lambda m: name in m.get("p", {}) and "out" in m["p"][name])
            assert b"to the pane\n" in tab.output()
            tab.bye()
            await tab.hello()
            assert list(tab.view.parts) == ["table"]


async def test_a_pane_that_is_closed_in_all_tabs_is_ended() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn("sleep", "1000")
        view = ProcessTable(pm)
        with shown(view) as tab:
            other = Tab(view, "other")
            await tab.hello()
            await other.hello()
            idle = len(view.tasks)
            name = (await tab.call("table", "show", id=process.id))["data"]
            for one in (tab, other):
                assert (await one.call("view", "snapshot", part=name, view=one.name))["ok"]
            assert len(view.tasks) > idle
            await tab.call("view", "unmount", part=name, view="tab")
            assert name in view.parts
            other.bye()
            await until(lambda: name not in view.parts and len(view.tasks) == idle)


async def test_a_closed_manager_is_said() -> None:
    pm = ProcessManager()
    with shown(ProcessTable(pm)) as tab:
        await tab.hello()
        await pm.aclose()
        assert await tab.delta("table", lambda d: d.get("closed"))


@pytest.mark.parametrize("monitored", [False, True])
async def test_a_given_monitor_is_used(monitored: bool) -> None:
    from nbprocs.monitor import ProcessMonitor

    async with ProcessManager() as pm, ProcessMonitor(interval=0.05) as monitor:
        monitor.watch(pm)
        await pm.spawn("sleep", "1000")
        with shown(ProcessTable(pm, monitor=monitor if monitored else None)) as tab:
            assert (await tab.hello())["table"]["every"] == (0.05 if monitored else 1.0)
            await tab.delta("table", lambda d: d.get("k"))
