"""The supervisor with a fake clock and fake processes: every order of events, without a child and without waiting."""

import asyncio
import itertools

import pytest

from nbprocs.engine.home import Home
from nbprocs.errors import Closed, NameInUse, ProcessCrashed, RestartsExhausted, StartupFailed
from nbprocs.model import EndReason, EventKind, ProcessConfig, ProcessResult, ProcessStatus
from nbprocs.policy import BreakerState, CircuitBreaker, RestartPolicy
from nbprocs.processes.supervision import Supervisor
from nbprocs.testing import FakeClock

POLICY = RestartPolicy(max_restarts=3, initial_delay=1, jitter=False, window=100)


class FakeProcess:
    ids = itertools.count(1)

    def __init__(self, config, clock, predecessor=None):
        self.id = f"id{next(self.ids)}"
        self.name = config.name
        self.config = config
        self.status = ProcessStatus.RUNNING
        self.info = None
        self.result = None
        self.predecessor = predecessor
        self.clock = clock
        self.started = clock()
        self.callbacks = []

    def end(self, *, exit_code=None, signal=None, status=ProcessStatus.FAILED, reason=None):
        self.status = status
        self.result = ProcessResult(
            process_id=self.id,
            name=self.name,
            command=self.config.display,
            exit_code=exit_code,
            signal=signal,
            execution_time=self.clock() - self.started,
            status=status,
            reason=reason,
        )
        for callback in self.callbacks:
            callback(self)

    def crash(self):
        self.end(signal=11)

    async def stop(self, *, grace=5.0):
        self.end(signal=15, status=ProcessStatus.TERMINATED, reason=EndReason.STOPPED)
        return self.result


class FakeKeeper:
    def __init__(self, clock):
        self.clock = clock
        self.home = Home.current()
        self.events = []
        self.started = []
        self.errors = []  # raised by the next respawns
        self.gate = None
        self.on_event = None
        self.supervisor = Supervisor(self, clock=clock, later=clock.call_later)

    def spawn(self, name="web", policy=POLICY, command="server", args=()):
        process = FakeProcess(ProcessConfig(command=command, args=args, name=name), self.clock)
        self.started.append(process)
        self.supervisor.attach(process, policy)
        return process

    def publish(self, event):
        self.events.append(event)
        if self.on_event:
            self.on_event(event)

    async def respawn(self, process):
        if self.gate:
            await self.gate.wait()
        if self.errors and (error := self.errors.pop(0)):
            raise error
        new = FakeProcess(process.config, self.clock, process)
        self.started.append(new)
        return new

    def on_end(self, process, callback):
        process.callbacks.append(callback)

    @property
    def kinds(self):
        return [event.kind for event in self.events]

    @property
    def delays(self):
        return [event.delay for event in self.events if event.kind is EventKind.RESTARTING]


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def clock():
    return FakeClock(1000)


@pytest.fixture
async def keeper(clock):
    keeper = FakeKeeper(clock)
    yield keeper
    await keeper.supervisor.aclose()


async def test_a_crash_waits_and_restarts_with_the_lineage(keeper, clock):
    first = keeper.spawn()
    clock.advance(5)
    first.crash()
    await settled()
    assert keeper.delays == [1]
    assert isinstance(keeper.events[0].error, ProcessCrashed)
    assert len(keeper.started) == 1
    clock.advance(0.99)
    await settled()
    assert len(keeper.started) == 1
    clock.advance(0.01)
    await settled()
    second = keeper.started[1]
    assert second.predecessor is first
    assert second.config is first.config
    assert keeper.supervisor.supervises(second.id)
    assert not keeper.supervisor.supervises(first.id)


async def test_the_limit_ends_fatal_with_the_history(keeper, clock):
    keeper.spawn()
    for _ in range(4):
        clock.advance(1)
        keeper.started[-1].crash()
        clock.advance(4)
        await settled()
    assert keeper.delays == [1, 2, 4]
    assert keeper.kinds[-1] is EventKind.FATAL
    error = keeper.events[-1].error
    assert isinstance(error, RestartsExhausted)
    assert error.attempts == 4
    assert error.signal == 11
    assert "3 restarts within 100 s" in str(error)
    assert len([line for line in error.history if "started" in line]) == 4
    assert any("restart in 2.00 s" in line for line in error.history)
    assert "SIGSEGV" in error.history[-1]
    assert isinstance(error.__cause__, ProcessCrashed)
    assert not keeper.supervisor.supervises(keeper.started[-1].id)


async def test_stopped_by_its_owner_is_not_restarted(keeper, clock):
    process = keeper.spawn()
    await process.stop()
    clock.advance(100)
    await settled()
    assert keeper.events == []
    assert not keeper.supervisor.supervises(process.id)


async def test_out_of_time_is_a_failure_and_exit_0_is_not(keeper, clock):
    keeper.spawn("slow").end(signal=9, status=ProcessStatus.TERMINATED, reason=EndReason.TIMEOUT)
    assert keeper.delays == [1]
    keeper.spawn("job").end(exit_code=0, status=ProcessStatus.COMPLETED)
    assert keeper.delays == [1]
    keeper.spawn("always", RestartPolicy(on="always", initial_delay=3, jitter=False)).end(exit_code=0, status=ProcessStatus.COMPLETED)
    assert keeper.delays == [1, 3]


async def test_released_while_waiting(keeper, clock):
    process = keeper.spawn()
    process.crash()
    assert keeper.supervisor.release(process.id)
    assert not keeper.supervisor.release(process.id)
    clock.advance(100)
    await settled()
    assert len(keeper.started) == 1


async def test_released_by_a_subscriber_of_the_event_itself(keeper, clock):
    process = keeper.spawn(policy=RestartPolicy(initial_delay=0))
    keeper.on_event = lambda event: keeper.supervisor.release(event.process_id)
    process.crash()
    await settled()
    assert len(keeper.started) == 1


async def test_released_while_it_is_being_started(keeper, clock):
    keeper.gate = asyncio.Event()
    process = keeper.spawn(policy=RestartPolicy(initial_delay=0))
    process.crash()
    await settled()
    assert keeper.supervisor.release(process.id)
    keeper.gate.set()
    await settled()
    assert keeper.started[1].status is ProcessStatus.TERMINATED
    assert keeper.delays == [0]


async def test_closing_while_it_is_being_started(keeper, clock):
    keeper.gate = asyncio.Event()
    keeper.spawn(policy=RestartPolicy(initial_delay=0)).crash()
    keeper.spawn("waiting").crash()
    await settled()
    await keeper.supervisor.aclose()
    clock.advance(100)
    await settled()
    assert len(keeper.started) == 2


async def test_the_manager_closed_first(keeper, clock):
    keeper.errors = [Closed("closed")]
    process = keeper.spawn()
    process.crash()
    clock.advance(1)
    await settled()
    assert keeper.kinds == [EventKind.RESTARTING]
    assert not keeper.supervisor.supervises(process.id)


async def test_a_start_that_fails_counts_as_a_life(keeper, clock):
    keeper.errors = [StartupFailed("gone")] * 3
    keeper.spawn().crash()
    for _ in range(4):
        clock.advance(10)
        await settled()
    assert keeper.delays == [1, 2, 4]
    assert keeper.kinds[-1] is EventKind.FATAL
    assert isinstance(keeper.events[-1].error.__cause__, StartupFailed)


async def test_a_start_that_fails_once_is_tried_again(keeper, clock):
    keeper.errors = [StartupFailed("busy"), None]
    keeper.spawn().crash()
    clock.advance(1)
    await settled()
    clock.advance(2)
    await settled()
    assert len(keeper.started) == 2


async def test_a_name_taken_meanwhile_is_fatal(keeper, clock):
    keeper.errors = [NameInUse("taken")]
    keeper.spawn().crash()
    clock.advance(1)
    await settled()
    assert "taken the name web" in str(keeper.events[-1].error)


class TestHold:
    async def test_a_restart_on_purpose_keeps_the_policy(self, keeper, clock):
        process = keeper.spawn()
        held = keeper.supervisor.hold(process.id)
        await process.stop()
        new = await keeper.respawn(process)
        assert keeper.supervisor.give(held, new)
        assert keeper.events == []
        new.crash()
        assert keeper.delays == [1]

    async def test_its_owner_stops_it_meanwhile(self, keeper, clock):
        process = keeper.spawn()
        held = keeper.supervisor.hold(process.id)
        keeper.supervisor.release(process.id)
        assert not keeper.supervisor.give(held, await keeper.respawn(process))

    async def test_no_new_one(self, keeper, clock):
        process = keeper.spawn()
        held = keeper.supervisor.hold(process.id)
        await process.stop()
        keeper.supervisor.lose(held, StartupFailed("gone"))
        assert keeper.delays == [1]

    async def test_nothing_was_stopped(self, keeper, clock):
        process = keeper.spawn()
        keeper.supervisor.lose(keeper.supervisor.hold(process.id), StartupFailed("gone"))
        assert keeper.delays == []
        process.crash()
        assert keeper.delays == [1]

    async def test_a_waiting_restart_is_taken_over(self, keeper, clock):
        process = keeper.spawn()
        process.crash()
        held = keeper.supervisor.hold(process.id)
        clock.advance(50)
        await settled()
        assert len(keeper.started) == 1
        assert keeper.supervisor.give(held, await keeper.respawn(process))

    async def test_nobody_supervises_it(self, keeper):
        assert keeper.supervisor.hold("nobody") is None


class TestBreaker:
    async def test_all_of_one_command_wait_for_one_try(self, keeper, clock):
        policy = RestartPolicy(
            initial_delay=0, max_restarts=50, healthy_after=5, breaker=CircuitBreaker(failures=3, window=10, open_for=30)
        )
        for name in "abc":
            keeper.spawn(name, policy)
        other = keeper.spawn("other", policy, command="something else")
        config = keeper.started[0].config
        for process in keeper.started[:2]:
            process.crash()
            await settled()
        assert keeper.delays == [0, 0]
        keeper.started[2].crash()
        assert keeper.delays[-1] == 30
        assert keeper.supervisor.breaker(config).state(clock()) is BreakerState.OPEN
        other.crash()
        await settled()
        assert keeper.delays[-1] == 0
        for process in [p for p in keeper.started if p.config.command == "server" and p.status.live]:
            process.crash()
        assert keeper.delays[-2:] == [30, 30]
        before = len(keeper.started)
        clock.advance(30)
        await settled()
        tried = keeper.started[before:]
        assert len(tried) == 1  # of three that wait
        assert keeper.supervisor.breaker(config).state(clock()) is BreakerState.HALF_OPEN
        clock.advance(5)
        assert keeper.supervisor.breaker(config).state(clock()) is BreakerState.CLOSED
        clock.advance(30)
        await settled()
        assert len(keeper.started) == before + 3

    async def test_a_try_that_completes_closes_it(self, keeper, clock):
        policy = RestartPolicy(initial_delay=0, breaker=CircuitBreaker(failures=1, open_for=30))
        keeper.spawn(policy=policy).crash()
        clock.advance(30)
        await settled()
        trying = keeper.started[-1]
        assert keeper.supervisor.breaker(trying.config).state(clock()) is BreakerState.HALF_OPEN
        trying.end(exit_code=0, status=ProcessStatus.COMPLETED)
        assert keeper.supervisor.breaker(trying.config).state(clock()) is BreakerState.CLOSED

    async def test_a_bad_try_opens_it_again(self, keeper, clock):
        policy = RestartPolicy(initial_delay=0, breaker=CircuitBreaker(failures=1, open_for=30))
        keeper.spawn(policy=policy).crash()
        clock.advance(30)
        await settled()
        keeper.started[-1].crash()
        assert keeper.delays == [30, 30]


async def test_a_process_that_restarts_for_years_costs_no_memory(keeper, clock):
    policy = RestartPolicy(initial_delay=0, window=1, healthy_after=1)
    keeper.spawn(policy=policy)
    for _ in range(500):
        clock.advance(3600)
        keeper.started[-1].crash()
        await settled()
    lineage = keeper.supervisor._lineages[keeper.started[-1].id]
    assert len(keeper.started) == 501
    assert len(lineage.lives) <= policy.memory
    assert len(lineage.told) <= 50
    assert len(keeper.supervisor._lineages) == 1
