"""A state machine over the manager with real children: whatever the order of calls, its books agree with the operating system."""

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from nbprocs import EventKind, NameInUse, ProcessManager, ProcessStatus, ResourceExhausted, StartupFailed, UnknownProcess
from tests.children import python_child
from tests.kernel.conftest import alive

LIMIT, HISTORY = 3, 4
ENDS = {"exit 0": ("os._exit(0)", 0), "exit 3": ("os._exit(3)", 3), "crash": ("os.kill(os.getpid(), 9)", None)}
ON_LINE = "ready()\nfor line in sys.stdin: exec(line)"  # does what it is told
NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


class ManagerMachine(RuleBasedStateMachine):
    """Names are few, so that they collide; slots are few, so that they run out; the history is short, so that it overflows."""

    processes = Bundle("processes")

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.events = []
        self.pm = self.do(self._open())
        self.live = {}  # our own book: process by name

    async def _open(self):
        pm = ProcessManager(max_concurrent=LIMIT, history=HISTORY, grace=2)
        pm.subscribe(self.events.append)
        return pm

    def do(self, coroutine):
        async def bounded():
            async with asyncio.timeout(30):
                return await coroutine

        return self.runner.run(bounded())

    def teardown(self):
        live = [p.pid for p in self.live.values()]
        self.do(self.pm.aclose())
        assert not alive(live)
        assert self.events[-1].kind is EventKind.CLOSED
        started = [e.process_id for e in self.events if e.kind is EventKind.STARTED]
        exited = [e.process_id for e in self.events if e.kind is EventKind.EXITED]
        assert sorted(started) == sorted(exited), "each start has exactly one end"
        self.runner.close()

    # -- rules

    @rule(target=processes, name=NAMES)
    def spawn(self, name):
        try:
            process = self.do(self.pm.spawn(*python_child(ON_LINE), name=name, stdin=True))
        except NameInUse:
            assert name in self.live
            return None
        except ResourceExhausted:
            assert len(self.live) == LIMIT
            return None
        assert name not in self.live
        self.live[name] = process
        return process

    @rule(name=NAMES)
    def spawn_what_does_not_exist(self, name):
        try:
            self.do(self.pm.spawn("no-such-program", name=name))
        except NameInUse:
            assert name in self.live
        except ResourceExhausted:
            assert len(self.live) == LIMIT
        except StartupFailed as error:
            assert "no-such-program" in str(error)
        else:
            pytest.fail("it started")

    @rule(process=consumes(processes), how=st.sampled_from(sorted(ENDS)))
    def end_by_itself(self, process, how):
        if process is None or not process.status.live:
            return
        if process.paused:
            process.resume()
        code, exit_code = ENDS[how]
        self.do(process.send_line(code))
        result = self.do(process.wait())
        assert result.exit_code == exit_code
        assert result.status is (ProcessStatus.COMPLETED if exit_code == 0 else ProcessStatus.FAILED)
        self.forget(process)

    @rule(process=consumes(processes), grace=st.sampled_from([0, 2]))
    def stop(self, process, grace):
        if process is None:
            return
        was_live = process.status.live
        result = self.do(process.stop(grace=grace))
        assert result.status is ProcessStatus.TERMINATED or not was_live
        self.forget(process)

    @rule(process=processes)
    def pause_or_resume(self, process):
        if process is None or not process.status.live:
            return
        if process.paused:
            process.resume()
        else:
            process.pause()
        assert self.pm.get(process.id).info.paused == process.paused

    @rule(process=processes)
    def talk(self, process):
        if process is None or not process.status.live or process.paused:
            return
        self.do(process.send_line("ready('pong')"))

        async def pong():
            while await process.receive_output() != "pong":
                pass

        self.do(pong())

    @rule(target=processes, name=NAMES)
    def restart(self, name):
        before = self.live.get(name)
        if before is None:
            return None
        process = self.do(self.pm.restart(name))
        assert process.name == name
        assert process.predecessor in (before, None)
        assert not before.status.live
        self.live[name] = process
        return process

    @rule(name=NAMES)
    def terminate_by_name(self, name):
        try:
            self.do(self.pm.terminate(name))
        except UnknownProcess:
            assert name not in self.live
        self.live.pop(name, None)

    @precondition(lambda self: len(self.live) == LIMIT)
    @rule(process=processes)
    def wait_for_a_slot(self, process):
        if process is None or not process.status.live:
            return

        async def both():
            waiting = asyncio.get_running_loop().create_task(self.pm.spawn("true", wait=True))
            while not self.pm.waiting:
                await asyncio.sleep(0)
            await process.stop()
            other = await waiting
            await other.wait()

        self.do(both())
        self.forget(process)

    def forget(self, process):
        if self.live.get(process.name) is process:
            del self.live[process.name]

    # -- what always holds

    @invariant()
    def books_agree_with_the_system(self):
        assert self.pm.live == len(self.live)
        assert {p.name for p in self.pm.processes() if p.status.live} == set(self.live)
        for name, process in self.live.items():
            assert self.pm.get(name) is process
            assert self.pm.get(process.id) is process
            assert alive([process.pid])

    @invariant()
    def history_is_bounded_and_complete(self):
        ended = [info for info in self.pm.list() if not info.status.live]
        assert len(ended) <= HISTORY
        for info in ended:
            assert info.ended_at is not None
            assert self.pm.get(info.id).result is not None

    @invariant()
    def events_tell_the_same_story(self):
        started = {e.process_id for e in self.events if e.kind is EventKind.STARTED}
        exited = {e.process_id for e in self.events if e.kind is EventKind.EXITED}
        assert started - exited == {p.id for p in self.live.values()}


ManagerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestManagerMachine = ManagerMachine.TestCase
