"""Supervision of real children: crashes, FATAL, owners who stop, closing managers, ports still taken."""

import asyncio
import os
import signal
import socket
import time

import pytest

from nbprocs import CircuitBreaker, EventKind, LogLine, ProcessManager, ProcessStatus, RestartPolicy, RestartsExhausted
from nbprocs.policy import BreakerState
from nbprocs.processes.manager import manager_core
from tests.children import SLEEPER, python_child, until_line

AT_ONCE = RestartPolicy(initial_delay=0, max_restarts=100)


class Events:
    """All events of a manager, and waiting for some of them."""

    def __init__(self, pm):
        self.all = []
        self._news = asyncio.Event()
        pm.subscribe(self._hear)

    def _hear(self, event):
        self.all.append(event)
        self._news.set()

    def of(self, kind, name=None):
        return [event for event in self.all if event.kind is kind and name in (None, event.name)]

    async def until(self, kind, count=1, name=None):
        async with asyncio.timeout(20):
            while len(self.of(kind, name)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(kind, name)[count - 1]


@pytest.fixture
async def pm():
    async with ProcessManager() as manager:
        yield manager


@pytest.fixture
def events(pm):
    return Events(pm)


def kill(process):
    os.kill(process.pid, signal.SIGKILL)


async def test_killed_and_up_again_with_config_name_and_lineage(pm, events):
    first = await pm.spawn(*SLEEPER, name="web", env_vars={"X": "1"}, restart=AT_ONCE)
    kill(first)
    await events.until(EventKind.STARTED, 2)
    second = pm.get("web")
    assert second is not first
    assert second.config is first.config
    assert second.predecessor is first
    assert second.restarts == 1
    assert second.status is ProcessStatus.RUNNING
    assert first.result.signal == signal.SIGKILL
    assert [e.kind for e in events.all if e.kind is not EventKind.READY] == [
        EventKind.STARTED,
        EventKind.EXITED,
        EventKind.RESTARTING,
        EventKind.STARTED,
    ]


async def test_a_crash_loop_ends_fatal(pm, events):
    policy = RestartPolicy(max_restarts=2, initial_delay=0.01, jitter=False)
    await pm.spawn(*python_child("print('no config found', file=sys.stderr); sys.exit(3)"), name="loop", restart=policy)
    error = (await events.until(EventKind.FATAL)).error
    assert isinstance(error, RestartsExhausted)
    assert error.exit_code == 3
    assert error.attempts == 3
    assert "no config found" in str(error)
    assert sum("started" in line for line in error.history) == 3
    assert [event.delay for event in events.of(EventKind.RESTARTING)] == [0.01, 0.02]
    assert pm.live == 0


async def test_its_owner_stops_it(pm, events):
    process = await pm.spawn(*SLEEPER, name="web", restart=True)
    await process.stop()
    other = await pm.spawn(*SLEEPER, name="other", restart=True)
    await pm.terminate("other")
    assert other.status is ProcessStatus.TERMINATED
    assert events.of(EventKind.RESTARTING) == []
    assert pm.live == 0


async def test_its_owner_stops_it_while_it_waits(pm, events):
    process = await pm.spawn(*SLEEPER, name="web", restart=RestartPolicy(initial_delay=30, jitter=False))
    kill(process)
    await events.until(EventKind.RESTARTING)
    assert manager_core(pm).supervisor.supervises(process.id)
    await pm.terminate("web")
    assert not manager_core(pm).supervisor.supervises(process.id)
    assert pm.live == 0


async def test_out_of_time_is_restarted(pm, events):
    await pm.spawn(*SLEEPER, name="slow", timeout=0.2, restart=RestartPolicy(max_restarts=1, initial_delay=0))
    fatal = await events.until(EventKind.FATAL)
    assert "ran out of time" in fatal.error.history[-1]


async def test_restart_by_hand_keeps_the_supervision(pm, events):
    await pm.spawn(*SLEEPER, name="web", restart=AT_ONCE)
    second = await pm.restart("web")
    assert events.of(EventKind.RESTARTING) == []
    kill(second)
    await events.until(EventKind.STARTED, 3)
    assert pm.get("web").restarts == 2


async def test_replace_keeps_the_supervision(pm, events):
    await pm.spawn(*SLEEPER, name="web", restart=AT_ONCE)
    second = await pm.replace("web")
    assert pm.get("web") is second
    assert pm.live == 1
    kill(second)
    await events.until(EventKind.STARTED, 3)
    assert pm.get("web").name == "web"


async def test_closing_while_one_waits_and_one_starts(pm, events):
    waiting = await pm.spawn(*SLEEPER, name="waiting", restart=RestartPolicy(initial_delay=30, jitter=False))
    await pm.spawn(
        *python_child("import pathlib; p = pathlib.Path(sys.argv[1]); p.exists() and forever(); p.touch(); ready(); forever()", "MARK"),
        name="starting",
        restart=AT_ONCE,
        ready=LogLine("ready"),
        working_dir=str(os.environ["NBPROCS_TEST_DIR"]),
    )
    kill(waiting)
    kill(pm.get("starting"))
    await events.until(EventKind.STARTED, 2, "starting")  # and never ready
    async with asyncio.timeout(10):
        await pm.aclose()
    assert pm.live == 0
    assert events.all[-1].kind is EventKind.CLOSED
    assert len(events.of(EventKind.STARTED)) == 3


@pytest.fixture(autouse=True)
def _directory(tmp_path, monkeypatch):
    monkeypatch.setenv("NBPROCS_TEST_DIR", str(tmp_path))


async def test_the_port_is_still_taken(pm, events):
    """The first restarts fail to bind; it is up as soon as the port is free."""
    server = """
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); ready(); forever()
"""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    taken.close()
    first = await pm.spawn(
        *python_child(server, str(port)),
        name="server",
        ready=LogLine("ready"),
        restart=RestartPolicy(initial_delay=0.02, backoff_multiplier=1, jitter=False, max_restarts=1000),
    )
    kill(first)
    await first.wait()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        await events.until(EventKind.RESTARTING, 4)
    while not pm.get("server").ready:
        await events.until(EventKind.READY, len(events.of(EventKind.READY)) + 1, "server")
    server = pm.get("server")
    assert server.restarts >= 1
    assert "Address already in use" in "".join(str(e.error) for e in events.of(EventKind.RESTARTING))


async def test_the_program_disappears(pm, events, tmp_path):
    script = tmp_path / "server.sh"
    script.write_text("#!/bin/sh\necho ready; exec sleep 1000\n")
    script.chmod(0o755)
    policy = RestartPolicy(max_restarts=2, initial_delay=0.01, jitter=False)
    first = await pm.spawn(script, name="server", restart=policy, ready=LogLine("ready"))
    script.unlink()
    kill(first)
    fatal = await events.until(EventKind.FATAL)
    assert "no such program" in str(fatal.error.__cause__)
    assert fatal.error.attempts == 3


async def test_a_callback_that_stops_it_on_the_spot(pm, events):
    process = await pm.spawn(*SLEEPER, name="web", restart=AT_ONCE)

    def react(event):
        if event.kind is EventKind.RESTARTING:
            manager_core(pm).supervisor.release(event.process_id)

    pm.subscribe(react)
    kill(process)
    await events.until(EventKind.RESTARTING)
    assert not manager_core(pm).supervisor.supervises(process.id)
    assert len(events.of(EventKind.STARTED)) == 1


async def test_the_name_is_taken_meanwhile(pm, events):
    process = await pm.spawn(*SLEEPER, name="web", restart=RestartPolicy(initial_delay=0.2, jitter=False))
    kill(process)
    await events.until(EventKind.RESTARTING)
    thief = await pm.spawn(*SLEEPER, name="web")
    fatal = await events.until(EventKind.FATAL)
    assert "another process has taken the name web" in str(fatal.error)
    assert pm.get("web") is thief
    assert thief.status.live


async def test_always_restarts_what_completed(pm, events):
    await pm.spawn("true", name="job", restart=RestartPolicy(on="always", max_restarts=2, initial_delay=0))
    await events.until(EventKind.FATAL)
    assert len(events.of(EventKind.STARTED, "job")) == 3


async def test_a_breaker_holds_a_failing_command_back_until_a_try_goes_well(pm, events, tmp_path):
    """Two names, one command: it fails until its file is there, and is held back by what fails, whoever ran it."""
    mark, open_for = tmp_path / "mark", 0.4
    command = python_child("os.path.exists(sys.argv[1]) or sys.exit(1); ready(); forever()", str(mark))
    breaker = CircuitBreaker(failures=2, window=60, open_for=open_for)
    policy = RestartPolicy(initial_delay=0, max_restarts=100, healthy_after=0.2, breaker=breaker)

    def state():
        return manager_core(pm).supervisor.breaker(pm.get("web").config).state(time.monotonic())

    await pm.spawn(*command, name="web", restart=policy)
    opened = await events.until(EventKind.RESTARTING, 2)  # the second failure is one too many
    assert [event.delay for event in events.of(EventKind.RESTARTING)] == [0, pytest.approx(open_for, abs=0.2)]
    assert state() is BreakerState.OPEN
    assert "exit status 1" in str(opened.error)
    await pm.spawn(*command, name="other", restart=policy)  # by hand it may always be started; its restart is held back
    held = await events.until(EventKind.RESTARTING, 1, "other")
    assert 0 < held.delay <= open_for

    await events.until(EventKind.EXITED, 4)  # half open for one try of the two that wait, and that fails
    started = events.of(EventKind.STARTED)
    assert len(started) == 4
    assert started[-1].at - opened.at >= open_for - 0.05
    assert state() is BreakerState.OPEN
    mark.touch()
    well = await events.until(EventKind.STARTED, 5)
    await until_line(pm.get(well.name))
    async with asyncio.timeout(20):
        while state() is not BreakerState.CLOSED:  # nothing tells it: after healthy_after seconds of that life
            await asyncio.sleep(0.01)
        while not (pm.get("web").status.live and pm.get("other").status.live):
            await events.until(EventKind.STARTED, len(events.of(EventKind.STARTED)) + 1)


async def test_on_a_background_loop():
    async with ProcessManager(background=True) as pm:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hear(event):
            if event.kind is EventKind.STARTED and event.info.restarts:
                loop.call_soon_threadsafe(started.set)

        process = await pm.spawn(*SLEEPER, name="web", restart=AT_ONCE)
        pm.subscribe(hear)
        kill(process)
        async with asyncio.timeout(10):
            await started.wait()
        assert pm.get("web").restarts == 1
        await until_line(pm.get("web"))
