"""What the calls of a process and its manager take: anything wrong is a TypeError or ValueError at the call, and nothing was done.

A grace that was text ended the shim's order and let stop() wait for ever; a timeout that is no number was one that never comes.
"""

import inspect
from collections.abc import AsyncIterator

import pytest

from nbprocs import ManagedProcess, ProcessManager
from nbprocs.errors import UnknownProcess

NAN, INF = float("nan"), float("inf")
NO_TIME = (NAN, -1, "5", True, b"1", [], 10**400, object())
NO_GRACE = (*NO_TIME, INF)
NO_NUMBER = ("x", None, True, 1.5, NAN, -(10**9), 10**9, [])
NO_NAME = ("", " ", "a\0b", "\ud800", 5, b"x", [])
NO_FUNCTION = (5, "x", ())
NO_FLAG = (1, "yes", [])
OF_A_PROCESS = {
    ("wait", "timeout"): NO_TIME,
    ("stop", "grace"): (*NO_GRACE, None),
    ("send_signal", "number"): (*NO_NUMBER, 0, 999, "SIGNAL", "9"),
    ("resize", "rows"): (*NO_NUMBER, 0),
    ("resize", "columns"): (*NO_NUMBER, 0),
    ("send", "data"): (None, 5, ["x"], {}, iter("ab"), "\ud800", object()),
    ("send_line", "line"): (None, 5, ["x"], b"x", "\ud800"),
    ("add_done_callback", "callback"): (*NO_FUNCTION, None),
    ("lines", "stream"): ("x", 5, None, []),
    ("lines", "position"): NO_NUMBER[:6],
    ("lines", "longest"): (*NO_NUMBER[:6], 0),
    ("blocks", "stream"): ("x", 5, None, []),
    ("blocks", "position"): NO_NUMBER[:6],
    ("blocks", "longest"): (*NO_NUMBER[:6], 0),
    ("tail", "lines"): (*NO_NUMBER[:6], 0),
    ("expect", "pattern"): (5, None, b"x", "(", ["x"]),
    ("expect", "timeout"): NO_TIME,
    ("expect", "stream"): ("x", 5, []),
}
OF_A_MANAGER = {
    ("terminate", "grace"): NO_GRACE,
    ("restart", "grace"): NO_GRACE,
    ("replace", "grace"): NO_GRACE,
    ("replace", "config"): ("x", 5, {}),
    ("wait", "timeout"): NO_TIME,
    ("rename", "name"): (*NO_NAME, None),
    ("subscribe", "callback"): (*NO_FUNCTION, None),
    ("subscribe", "output"): (*NO_FLAG, None),
    ("events", "output"): (*NO_FLAG, None),
    ("aclose", "grace"): NO_GRACE,
    ("adopt", "restart"): (5, "x"),
    ("run", "retry"): (5, "x", {}),
    ("run", "check"): (*NO_FLAG, None),
    ("run", "wait"): (*NO_FLAG, None),
    ("run", "input"): (5, ["x"], {}, iter("ab"), "\ud800", object()),
    ("spawn", "ready"): (5, "x", {}),
    ("spawn", "ready_timeout"): (*NO_TIME, 0, None),
    ("spawn", "wait"): (*NO_FLAG, None),
    ("spawn", "restart"): (5, "x", {}),
}
USUAL = {
    "key": "target",
    "name": "target",
    "number": 15,
    "rows": 24,
    "columns": 80,
    "data": b"x",
    "line": "x",
    "pattern": "x",
    "command": "true",
}


async def outcome(call, given):
    found = call(**given) if "command" not in given else call(given.pop("command"), **given)
    if isinstance(found, AsyncIterator):
        return await anext(found)
    return await found if inspect.isawaitable(found) else found


async def refuse(thing, calls, still):
    for (name, argument), values in calls.items():
        call = getattr(thing, name)
        needed = [p.name for p in inspect.signature(call).parameters.values() if p.default is p.empty and p.name in USUAL]
        for value in values:
            try:
                found = await outcome(call, {**{other: USUAL[other] for other in needed}, argument: value})
            except (TypeError, ValueError, OverflowError) as error:
                assert not isinstance(error, UnicodeError), (name, argument, value)
                assert len(str(error)) < 400, (name, argument, value)
            else:
                raise AssertionError(name, argument, value, found)
            assert still(), (name, argument, value)


async def test_calls_of_a_process():
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True, name="target")
        await refuse(process, OF_A_PROCESS, lambda: process.status.live)
        await process.send("all is well\n")
        assert await process.receive_output() == "all is well"


async def test_calls_of_a_manager():
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True, name="target")
        await refuse(pm, OF_A_MANAGER, lambda: process.status.live and pm.get("target") is process and len(pm.list()) == 1)
        assert not pm.closed
        for key in (5, None, "", b"target", "\0", []):
            with pytest.raises((UnknownProcess, TypeError)):
                pm.get(key)


@pytest.mark.parametrize("engine", ["nonsense", None, 5])
async def test_an_engine_that_there_is_not(engine):
    with pytest.raises((TypeError, ValueError), match="engine must be one of 'auto', 'posix', 'portable'"):
        ProcessManager(engine=engine)


def test_the_tables_hold_every_argument():
    """A call or an argument that is added comes into the tables above."""
    for kind, table, spared in ((ManagedProcess, OF_A_PROCESS, set()), (ProcessManager, OF_A_MANAGER, {"key", "command"})):
        for name, member in vars(kind).items():
            if name.startswith("_") or not callable(member):
                continue
            parameters = inspect.signature(inspect.unwrap(member)).parameters.values()
            named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"} - spared
            assert named <= {argument for method, argument in table if method == name}, name
