"""The host of all views: snapshots, numbered deltas, calls, fuzz, and what a closed view leaves: nothing."""

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbprocs import ProcessManager
from nbprocs.engine.home import Home
from nbprocs.processes.manager import manager_core
from nbprocs.widgets import Dashboard, ProcessTable
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.wire import Delta, Refused, number, op, text
from tests.unit.test_widgets_wire import almost, json
from tests.unit.widgets_kit import Tab, shown
from tests.waiting import until


class Counter(Part):
    kind = "counter"

    def __init__(self) -> None:
        self.value = 0
        self.told = 0
        self.attached = 0

    def attach(self, host: Host) -> None:
        super().attach(host)
        self.attached += 1

    def detach(self) -> None:
        self.attached -= 1

    def snapshot(self) -> Delta:
        return Delta(content=self.told)

    def delta(self) -> Delta | None:
        self.told = self.value
        return Delta(content=self.value, buffers=(b"x" * self.value,))

    @op(by=number(0, 100))
    def add(self, by: float = 1) -> int:
        self.value += int(by)
        self.host.want(self)
        return self.value

    @op(reason=text(20))
    async def fail(self, reason: str) -> None:
        await asyncio.sleep(0)
        if reason == "defect":
            raise KeyError(reason)
        raise Refused(f"no: {reason}", field="it")

    @op()
    async def hang(self) -> None:
        await asyncio.Event().wait()

    def secret(self) -> None:
        raise AssertionError


def counter() -> tuple[View, Counter]:
    part = Counter()
    return View({"one": part}, model=part, home=Home.current()), part


async def test_hello_gives_a_snapshot_and_then_numbered_deltas() -> None:
    view, part = counter()
    with shown(view) as tab:
        assert part.attached == 0
        assert await tab.hello() == {"one": 0}
        for value in (1, 2, 3):
            assert (await tab.call("one", "add"))["data"] == value
            await tab.delta("one", lambda d, v=value: d == v)
        numbers = [m["n"] for m in tab.heard if "p" in m]
        assert numbers == list(range(1, len(numbers) + 1))
        assert await tab.hello() == {"one": 3}


async def test_a_late_tab_starts_where_the_others_are() -> None:
    view, part = counter()
    with shown(view) as first:
        await first.hello()
        part.value = 5
        part.host.want(part)
        late = Tab(view, "late")
        assert await late.hello() == {"one": 5}
        assert [m["p"] for m in first.heard if "p" in m] == [{"one": 5, "": {"one": [0, 1]}}]
        start = next(m["n"] for m in late.heard if "s" in m)
        await late.call("one", "add")
        await first.delta("one", lambda d: d == 6)
        await late.delta("one", lambda d: d == 6)
        assert [m["n"] for m in late.heard if "p" in m and m["n"] > start] == [start + 1]


async def test_nobody_looking_costs_nothing() -> None:
    view, part = counter()
    with shown(view) as tab:
        await tab.hello()
        other = Tab(view, "other")
        await other.hello()
        assert part.attached == 1
        tab.bye()
        await until(lambda: len(view._viewers) == 1)
        assert part.attached == 1
        other.bye()
        await until(lambda: part.attached == 0)
        assert await tab.hello()
        assert part.attached == 1


async def test_errors_are_replies() -> None:
    view, _ = counter()
    with shown(view) as tab:
        await tab.hello()
        refused = await tab.call("one", "fail", reason="why")
        assert (refused["ok"], refused["error"], refused["field"]) == (False, "no: why", "it")
        assert "from 0 to 100" in (await tab.call("one", "add", by=1000))["error"]
        for part, name in (
            ("one", "secret"),
            ("one", "snapshot"),
            ("one", "nothing"),
            ("two", "add"),
            ("view", "close"),
            ("one", "__init__"),
        ):
            assert not (await tab.call(part, name))["ok"]


async def test_a_defect_is_logged_and_replied(caplog: pytest.LogCaptureFixture) -> None:
    view, _ = counter()
    with shown(view) as tab:
        await tab.hello()
        assert not (await tab.call("one", "fail", reason="defect"))["ok"]
        assert "one.fail" in caplog.text


async def test_assets_travel_on_demand() -> None:
    view, _ = counter()
    with shown(view) as tab:
        reply = await tab.call("view", "asset", name="terminal")
        at = tab.heard.index(reply)
        assert b"xterm" in tab.buffers[at][0]
        assert not (await tab.call("view", "asset", name="../base"))["ok"]


@settings(max_examples=40)
@given(st.lists(json | almost, max_size=8))
async def test_no_message_raises(messages: list[Any]) -> None:
    view, _ = counter()
    with shown(view) as tab:
        for message in messages:
            tab.say(message)
        assert "one" in await tab.hello()


@settings(max_examples=8)
@given(st.data())
async def test_no_argument_of_any_operation_raises(data: st.DataObject) -> None:
    async with ProcessManager() as pm:
        view = Dashboard(pm)
        with shown(view) as tab:
            await tab.hello()
            for name, part in list(view.parts.items()):
                for operation in [key for key in dir(type(part)) if hasattr(getattr(type(part), key), "__checks__")]:
                    checks = getattr(type(part), operation).__checks__
                    args = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(checks, json)))
                    if operation != "run":
                        reply = await tab.call(name, operation, **args)
                        assert reply["ok"] in (True, False)


async def test_messages_may_arrive_on_any_thread() -> None:
    view, part = counter()
    with shown(view) as tab:
        await tab.hello()
        where: list[int] = []
        original = part.host.want
        part.host.want = lambda *a, **k: (where.append(threading.get_ident()), original(*a, **k))[1]  # type: ignore[method-assign]
        message = {"do": "call", "view": "tab", "id": 77, "part": "one", "op": "add", "args": {}}
        subshell = threading.Thread(target=tab.say, args=(message,))
        subshell.start()
        await tab.until(lambda m: m.get("re") == 77)
        subshell.join()
        assert where == [threading.get_ident()]


async def test_calls_that_overtake_each_other_are_performed_in_order() -> None:
    view, part = counter()
    with shown(view) as tab:
        await tab.hello()
        done: list[int] = []
        part.add = op(by=number(0, 100))(lambda *, by: done.append(by))  # type: ignore[method-assign]
        for call in (1, 3, 4, 2, 6, 5):
            tab.say({"do": "call", "view": tab.name, "id": call, "part": "one", "op": "add", "args": {"by": call}})
        await tab.until(lambda m: m.get("re") == 6)
        assert done == [1, 2, 3, 4, 5, 6]


async def test_a_view_of_a_background_manager_lives_there() -> None:
    pm = ProcessManager(background=True)
    try:
        with shown(ProcessTable(pm)) as tab:
            process = await pm.spawn("sleep", "1000", name="sleeper")
            rows = (await tab.hello())["table"]["rows"]
            assert rows[0][1][1] == "sleeper"
            assert (await tab.call("table", "stop", ids=[process.id]))["ok"]
            assert not process.status.live
        await until(lambda: not subscribers(pm))
    finally:
        await pm.aclose()


async def test_a_closed_view_leaves_nothing() -> None:
    async with ProcessManager() as pm:
        view = Dashboard(pm)
        tab = Tab(view)
        await tab.hello()
        assert subscribers(pm)
        view.close()
        view.close()
        assert view.comm is None
        await until(lambda: not subscribers(pm) and not len(view.tasks))
        heard = len(tab.heard)
        tab.say({"do": "hello", "view": "tab"})
        await pm.run("true")
        assert len(tab.heard) == heard


async def test_a_closed_view_is_freed_with_its_model() -> None:
    async def show() -> "list[weakref.ref[Any]]":
        view, part = counter()
        with shown(view) as tab:
            await tab.hello()
        return [weakref.ref(view), weakref.ref(part)]

    found = await show()
    await asyncio.sleep(0)
    gc.collect()
    assert [ref() for ref in found] == [None, None]


async def test_closing_cancels_what_a_front_end_began() -> None:
    view, _ = counter()
    tab = Tab(view)
    await tab.hello()
    tab.say({"do": "call", "view": "tab", "id": 1, "part": "one", "op": "hang", "args": {}})
    await until(lambda: len(view.tasks) == 1)
    view.close()
    await until(lambda: len(view.tasks) == 0)


def subscribers(pm: ProcessManager) -> int:
    """How many listen to a manager's events."""
    return len(manager_core(pm).stream._everything)
