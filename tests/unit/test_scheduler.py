"""The scheduler with a fake backend and a clock that moves when told: order, control, retries, series, halts, waiting."""

import asyncio
import sys
import threading

import pytest

from nbprocs import TaskPriority
from nbprocs.errors import Closed, ProcessFailed, ResourceExhausted, StartupFailed, UnknownProcess
from nbprocs.scheduler import (
    After,
    DependencyFailed,
    Ended,
    Halt,
    Halted,
    Now,
    SchedulerConfig,
    SchedulerEvent,
    TaskCancelled,
    TaskEventKind,
    TaskScheduler,
    TaskState,
)
from nbprocs.testing.conformance import FakeBackend


class Clock:
    def __init__(self) -> None:
        self.wall, self.elapsed = 1_000_000.0, 0.0

    def __call__(self) -> Now:
        return Now(self.wall, self.elapsed)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.elapsed += seconds


class World:
    """A scheduler whose backend and clock the test moves."""

    def __init__(self, config: SchedulerConfig | None = None, *, gated: bool = True, **options) -> None:
        self.clock = Clock()
        self.backend = FakeBackend(gated=gated)
        self.sch = TaskScheduler(config, backend=self.backend, clock=self.clock, **options)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sch.aclose()

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.sch._core.runner.want()
        await self.settle()

    @property
    def started(self) -> list[str]:
        return [job.name for job in self.backend.started]

    async def finish(self, name: str, error: BaseException | None = None) -> None:
        job_id = next(i for i, (job, _) in self.backend.running.items() if job.name == name)
        self.backend.finish(job_id, Ended(result=name, error=error))
        await self.settle()


FAILED = ProcessFailed("no", exit_code=1)


async def test_priority_time_arrival() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1)) as w:
        for name, priority in (("a", TaskPriority.LOW), ("b", TaskPriority.HIGH), ("c", TaskPriority.HIGH), ("d", TaskPriority.CRITICAL)):
            w.sch.schedule("x", name=name, priority=priority)
        for name in "dbca":
            await w.settle()
            assert w.started[-1] == name
            await w.finish(name)
        assert w.sch.status().succeeded == 4


async def test_the_next_starts_by_itself_when_a_slot_frees_or_a_time_comes() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1)) as w:
        w.sch.schedule("x", name="later", priority=3, delay=10)
        w.sch.schedule("x", name="now")
        w.sch.schedule("x", name="next")
        await w.settle()
        assert w.started == ["now"]
        await w.finish("now")
        assert w.started == ["now", "next"]
        await w.advance(11)
        assert w.started == ["now", "next"]
        await w.finish("next")
        assert w.started == ["now", "next", "later"]


async def test_the_next_run_of_a_series_is_shown_by_the_wall_clock() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="s", every=10)
        await w.advance(25)
        await w.finish("s")
        now, entry = w.clock(), handle._entry
        assert now.elapsed > 0
        assert entry.state is TaskState.SCHEDULED
        assert 0 < entry.due - now.elapsed <= 10
        assert entry.time == pytest.approx(now.wall + entry.due - now.elapsed)


async def test_one_that_could_not_be_started_took_no_time() -> None:
    async with World() as w:
        handle = w.sch.schedule("refused", name="r", max_retries=0)
        w.clock.advance(5)
        await w.settle()
        assert handle.state is TaskState.FAILED
        [attempt] = handle.attempts
        assert (attempt.started, attempt.execution_time) == (None, 0.0)


async def test_a_real_timer_starts_a_delayed_task() -> None:
    backend = FakeBackend()
    async with TaskScheduler(backend=backend) as sch:
        assert await sch.schedule("x", "1", delay=0.05) == ("1",)


async def test_status_has_its_fields() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1, groups={"g": 1}, resources={"disk": 2})) as w:
        first = w.sch.schedule("x", name="first", resources={"disk": 1.5})
        w.sch.schedule("x", after=[first])
        w.sch.schedule("x", delay=60)
        w.sch.schedule("x", hold=True)
        w.sch.schedule("x", group="g")
        await w.settle()
        status = w.sch.status()
        assert (status.queued_tasks, status.running_tasks, status.max_concurrent) == (4, 1, 1)
        assert (status.blocked, status.scheduled, status.held, status.ready) == (1, 1, 1, 1)
        assert status.next_scheduled_time is not None
        assert status.next_scheduled_time.timestamp() == pytest.approx(w.clock.wall + 60)
        assert status.resources[0].used == 1.5
        assert status.groups[0].name == "g"
        assert "queued" in repr(w.sch)


async def test_retries_back_off_and_are_capped() -> None:
    config = SchedulerConfig(retry_delay=1, backoff_multiplier=10, max_retry_delay=15)
    async with World(config) as w:
        handle = w.sch.schedule("x", name="t", max_retries=3)
        await w.settle()
        for delay in (1, 10, 15):
            await w.finish("t", FAILED)
            assert handle.state is TaskState.SCHEDULED
            count = len(w.started)
            await w.advance(delay - 0.01)
            assert len(w.started) == count
            await w.advance(0.02)
            assert len(w.started) == count + 1
        await w.finish("t", ProcessFailed("no", exit_code=9))
        with pytest.raises(ProcessFailed) as caught:
            await handle
        assert caught.value.attempts == 4
        assert [a.retry for a in handle.attempts] == [0, 1, 2, 3]
        assert handle.task.retry_count == 3
        assert w.sch.status().retries == 3


async def test_what_can_not_start_is_not_tried_again() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="t", max_retries=3)
        await w.settle()
        await w.finish("t", StartupFailed("no such program"))
        with pytest.raises(StartupFailed):
            await handle


async def test_a_retry_that_succeeds() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="t", max_retries=1)
        await w.settle()
        await w.finish("t", FAILED)
        await w.advance(2)
        await w.finish("t")
        assert await handle == "t"
        assert [a.outcome for a in handle.attempts] == ["failed", "succeeded"]


async def test_dependencies_and_conditions() -> None:
    async with World() as w:
        a = w.sch.schedule("x", name="a")
        good = w.sch.schedule("x", name="good", after=a)
        bad = w.sch.schedule("x", name="bad", after=[After(a, "failure")])
        both = w.sch.schedule("x", name="any", after=[(a, "any"), (bad, "any")])
        child = w.sch.schedule("x", name="child", after="good")
        await w.settle()
        assert "waits for a" in good.why()
        await w.finish("a", FAILED)
        assert w.started == ["a", "bad"]
        with pytest.raises(DependencyFailed, match="a failed"):
            await good
        with pytest.raises(DependencyFailed, match="good, which was skipped"):
            await child
        await w.finish("bad")
        await w.finish("any")
        assert await both == "any"
        late = w.sch.schedule("x", name="late", after=a.id)
        assert late.state is TaskState.SKIPPED
        with pytest.raises(ValueError, match="no task 'nobody'"):
            w.sch.schedule("x", after=["nobody"])
    async with World() as other:
        with pytest.raises(ValueError, match="another scheduler"):
            other.sch.schedule("x", after=[a])


async def test_cycles_are_refused() -> None:
    async with World() as w:
        a = w.sch.schedule("x", name="a", hold=True)
        b = w.sch.schedule("x", name="b", after=[a])
        with pytest.raises(ValueError, match="a → b → a"):
            a.depend(b)
        circle = [{"command": "x", "name": n, "after": [m]} for n, m in ("ab", "bc", "ca")]
        before = len(w.sch.handles())
        with pytest.raises(ValueError, match=r"wait for each other: a → b → c → a"):
            w.sch.schedule_many(circle)
        assert len(w.sch.handles()) == before


async def test_schedule_many_in_any_order() -> None:
    async with World(gated=False) as w:
        diamond = [
            {"command": "x", "name": "end", "after": ["left", "right"]},
            {"command": "x", "name": "left", "after": ["begin"]},
            {"command": "x", "name": "right", "after": ["begin"]},
            {"command": "x", "args": ["1"], "name": "begin", "priority": 0},
            ("x", "2"),
            "x",
        ]
        handles = w.sch.schedule_many(diamond, group="g")
        await w.sch.join()
        assert w.started.index("begin") < w.started.index("left") < w.started.index("end")
        assert w.started.index("right") < w.started.index("end")
        assert [h.task.args for h in handles][3:] == [("1",), ("2",), ()]
        assert {h.task.group for h in handles} == {"g"}
        with pytest.raises(ValueError, match="empty command"):
            w.sch.schedule_many([("x",), ()])


async def test_cancel_queued_and_running() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1)) as w:
        running, queued = w.sch.schedule("x", name="running"), w.sch.schedule("x", name="queued")
        await w.settle()
        queued.cancel()
        running.cancel()
        for handle in (running, queued):
            with pytest.raises(TaskCancelled):
                await handle
        assert w.started == ["running"]
        assert (await running.wait()) is TaskState.CANCELLED
        running.cancel()  # nothing for one that has ended


async def test_cancelling_the_await_leaves_the_task() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="t")
        with pytest.raises(TimeoutError):
            await handle.wait(timeout=0.01)
        assert handle.state is TaskState.RUNNING
        await w.finish("t")
        assert await handle == "t"
        assert await handle == "t"


async def test_cancel_by_group_and_all() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1)) as w:
        w.sch.schedule("x", name="a", group="g")
        b, c = w.sch.schedule("x", name="b", group="g"), w.sch.schedule("x", name="c")
        await w.settle()
        w.sch.cancel(group="g")
        await w.settle()
        assert b.state is TaskState.CANCELLED
        assert w.started == ["a", "c"]
        w.sch.cancel()
        await w.sch.join()
        assert c.state is TaskState.CANCELLED


async def test_hold_release_reprioritise_pause() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1)) as w:
        w.sch.pause()
        a, _, c = (w.sch.schedule("x", name=n) for n in "abc")
        await w.settle()
        assert w.started == []
        assert "paused" in a.why()
        a.hold()
        c.reprioritise(TaskPriority.CRITICAL)
        w.sch.resume()
        await w.settle()
        assert w.started == ["c"]
        await w.finish("c")
        assert w.started == ["c", "b"]
        await w.finish("b")
        assert "held" in a.why()
        a.resume()
        await w.settle()
        assert w.started == ["c", "b", "a"]
        assert "running" in a.why()


async def test_groups_have_limits_and_pauses_that_change_live() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=9, groups={"g": 1})) as w:
        handles = [w.sch.schedule("x", name=f"g{n}", group="g") for n in range(4)]
        w.sch.schedule("x", name="free")
        await w.settle()
        assert w.started == ["g0", "free"]
        assert "at its limit" in handles[1].why()
        w.sch.set_group_limit("g", 2)
        await w.settle()
        assert w.started == ["g0", "free", "g1"]
        w.sch.pause(group="g")
        await w.finish("g0")
        assert len(w.started) == 3
        w.sch.resume(group="g")
        await w.settle()
        assert w.started[-1] == "g2"
        w.sch.set_group_limit("g", None)
        await w.settle()
        assert w.started[-1] == "g3"


async def test_the_limit_changes_live() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1)) as w:
        for n in range(5):
            w.sch.schedule("x", name=str(n))
        await w.settle()
        w.sch.set_limit(3)
        await w.settle()
        assert len(w.started) == 3
        w.sch.set_limit(1)
        await w.finish("0")
        assert len(w.started) == 3


async def test_resources_are_weighted_and_numbered() -> None:
    async with World(SchedulerConfig(resources={"mem": 1.0, "port": 2, "gpu": 2})) as w:
        w.sch.schedule("x", name="one", resources={"gpu": 1, "mem": 0.6, "port": 1})
        two = w.sch.schedule("x", name="two", resources={"gpu": 1, "mem": 0.6})
        w.sch.schedule("x", name="three", resources={"gpu": 1, "port": 1})
        await w.settle()
        assert w.started == ["one", "three"]
        assert "waits for 1 of 'gpu'" in two.why()
        one, three = (dict(job.env_vars) for job in w.backend.started)
        assert (one["NBPROCS_SLOT"], three["NBPROCS_SLOT"]) == ("0", "1")
        assert (one["NBPROCS_SLOT_PORT"], three["NBPROCS_SLOT_PORT"]) == ("0", "1")
        assert not {"NBPROCS_SLOT_MEM", "NBPROCS_SLOT_GPU", "CUDA_VISIBLE_DEVICES"} & one.keys(), "GPUs are numbered where the job runs"
        assert one["NBPROCS_ATTEMPT"] == "1"
        await w.finish("one")
        assert w.started[-1] == "two"


async def test_resources_that_can_never_be_met() -> None:
    async with World(SchedulerConfig(resources={"disk": 1})) as w:
        with pytest.raises(ResourceExhausted, match="can never be met"):
            w.sch.schedule("x", resources={"disk": 2})
        with pytest.raises(ValueError, match="unknown resource 'fpga'"):
            w.sch.schedule("x", resources={"fpga": 1})
        handle = w.sch.schedule("x", name="t", resources={"disk": 1}, delay=1)
        w.sch.set_resource("disk", 0.5)
        await w.advance(2)
        assert "only 0.5" in handle.why()
        with pytest.raises(ResourceExhausted, match="can never start"):
            await w.sch.join()
        w.sch.set_resource("disk", 1)
        await w.settle()
        assert w.started == ["t"]


async def test_halt_soon_and_now() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=2, halt=Halt(failures=1))) as w:
        w.sch.schedule("x", name="a")
        b = w.sch.schedule("x", name="b")
        w.sch.schedule("x", name="c")
        await w.settle()
        await w.finish("a", FAILED)
        assert w.started == ["a", "b"]
        await w.finish("b")
        assert await b == "b"
        with pytest.raises(Halted, match="1 of 1"):
            await w.sch.join()
        assert w.sch.status().halted
        w.sch.resume()
        await w.settle()
        assert w.started == ["a", "b", "c"]
    async with World(SchedulerConfig(max_concurrent_tasks=2, halt=Halt(percent=50, minimum=2, now=True))) as w:
        handles = [w.sch.schedule("x", name=n) for n in "abc"]
        await w.settle()
        await w.finish("a", FAILED)
        await w.finish("b", FAILED)
        await w.settle()
        assert handles[2].state is TaskState.CANCELLED, "it had begun when b ended, and was stopped"


async def test_timeout_as_a_multiple_of_what_it_took() -> None:
    async with World(SchedulerConfig(default_timeout=99)) as w:
        w.sch.schedule("work", "1", name="first", timeout="3x")
        await w.settle()
        assert w.backend.started[-1].timeout == 99
        w.clock.advance(10)
        await w.finish("first")
        second = w.sch.schedule("work", "1", name="second", timeout="3x")
        await w.settle()
        assert w.backend.started[-1].timeout == pytest.approx(30)
        assert second.task.estimated_duration == pytest.approx(10)
        w.sch.schedule("work", name="free", timeout=float("inf"))
        await w.settle()
        assert w.backend.started[-1].timeout is None


async def test_every_without_overlap() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="s", every=10, repeat=4)
        await w.settle()
        assert len(w.started) == 1
        await w.advance(25)  # it still runs: times 10 and 20 pass
        assert len(w.started) == 1
        await w.finish("s")
        assert len(w.started) == 2, "one run for both of them"
        await w.finish("s")
        await w.advance(4.9)
        assert len(w.started) == 2
        await w.advance(0.2)
        assert len(w.started) == 3
        await w.finish("s", FAILED)
        assert handle.state is TaskState.SCHEDULED, "a series goes on after a failure"
        await w.advance(10)
        await w.finish("s")
        assert await handle == "s"
        assert handle.task.runs == 4


async def test_a_series_that_skips_and_next_result() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="s", every=10, misfire="skip")
        await w.settle()
        await w.advance(25)
        await w.finish("s")
        assert len(w.started) == 1
        waiting = asyncio.ensure_future(handle.next_result())
        await w.advance(5)
        await w.finish("s")
        assert await waiting == "s"
        assert (await w.sch.join()).queued_tasks == 1, "join() does not wait for series"
        handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle


async def test_suspended_for_an_hour_a_series_runs_once() -> None:
    async with World() as w:
        w.sch.schedule("x", name="s", every=60)
        await w.settle()
        await w.finish("s")
        await w.advance(3600)
        assert len(w.started) == 2
        await w.finish("s")
        assert len(w.started) == 2
        await w.advance(60)
        assert len(w.started) == 3


async def test_cron_in_a_time_zone() -> None:
    async with World() as w:
        w.clock.wall = 1_772_366_390.0  # 2026-03-01 11:59:50 UTC
        handle = w.sch.schedule("x", name="c", cron="0 13 * * *", timezone="Europe/Berlin")
        await w.settle()
        assert w.started == []
        await w.advance(11)
        assert w.started == ["c"]
        await w.finish("c")
        assert handle.task.scheduled_time.timestamp() == 1_772_366_400.0 + 86400
        w.clock.wall -= 7200  # set back: no time comes twice
        await w.advance(7200)
        assert w.started == ["c"]


async def test_wrong_wishes_are_refused_and_nothing_is_scheduled() -> None:
    wrong = [
        {"cron": "61 * * * *"}, {"cron": "0 0 30 2 *"}, {"every": 0}, {"every": 5, "cron": "* * * * *"}, {"timeout": -1}, {"timeout": "fast"},
        {"max_retries": -1}, {"delay": -1}, {"delay": 1, "at": 5.0}, {"at": "tomorrow"}, {"cron": "* * * * *", "timezone": "Mars/Olympus"},
        {"memory_gate": "much"}, {"repeat": 3}, {"resources": {"gpu": 0}}, {"estimated_duration": -1}, {"misfire": "never", "every": 1},
        {"on_interrupted": "ignore"}, {"shell": True},
    ]  # fmt: skip
    async with World() as w:
        for options in wrong:
            with pytest.raises(ValueError, match=r"\w"):
                w.sch.schedule("x", "y", **options)
        for argv in (("",), ("a\0b",), ("a", "b\0")):
            with pytest.raises(ValueError, match=r"empty|NUL"):
                w.sch.schedule(*argv)
        for argv, options in (((7,), {}), (("x",), {"priority": "high"})):
            with pytest.raises(TypeError):
                w.sch.schedule(*argv, **options)
        assert w.sch.handles() == []


async def test_threads_may_schedule_and_control() -> None:
    async with World(gated=False) as w:
        made = []

        def work() -> None:
            made.extend(w.sch.schedule("x", str(n)) for n in range(100))
            made.append(w.sch.schedule("x", hold=True))
            made[-1].cancel()

        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.to_thread(thread.join)
        results = [await handle for handle in made[:100]]
        assert results == [(str(n),) for n in range(100)]
        assert await made[-1].wait() is TaskState.CANCELLED


async def test_another_loop_may_await() -> None:
    async with World(gated=False) as w:
        handle = w.sch.schedule("x", "1", delay=0)

        async def elsewhere() -> object:
            return await handle

        assert await asyncio.to_thread(asyncio.run, elsewhere()) == ("1",)


async def test_events_are_told_in_order() -> None:
    async with World() as w:
        seen: list[SchedulerEvent] = []
        stop = w.sch.subscribe(seen.append)
        handle = w.sch.schedule("x", name="t", max_retries=1)
        await w.settle()
        await w.finish("t", FAILED)
        await w.advance(1)
        await w.finish("t")
        assert [e.kind for e in seen if e.task_id == handle.id] == [
            TaskEventKind.SCHEDULED, TaskEventKind.STARTED, TaskEventKind.RETRYING, TaskEventKind.STARTED, TaskEventKind.ENDED,
        ]  # fmt: skip
        stop()
        w.sch.schedule("x")
        await w.settle()
        assert len(seen) == 5


async def test_a_failing_subscriber_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async with World(gated=False) as w:
        w.sch.subscribe(lambda _: 1 / 0)
        assert await w.sch.schedule("x", "1") == ("1",)
    assert "a subscriber" in caplog.text


async def test_closing_ends_what_runs_and_tells_who_waits() -> None:
    w = World(SchedulerConfig(max_concurrent_tasks=1))
    running, queued = w.sch.schedule("x"), w.sch.schedule("x")
    waiting = asyncio.gather(running.wait(), queued.wait(), w.sch.join(), return_exceptions=True)
    await w.settle()
    await w.sch.aclose()
    await w.sch.aclose()
    assert all(isinstance(e, Closed) for e in await waiting)
    assert w.backend.closed
    for call in (lambda: w.sch.schedule("x"), lambda: w.sch.schedule_many(["x"])):
        with pytest.raises(Closed):
            call()
    with pytest.raises(Closed):
        await w.sch.join()


def test_scheduling_before_a_loop_runs() -> None:
    backend = FakeBackend()
    sch = TaskScheduler(backend=backend)
    handle = sch.schedule("x", "1")

    async def main() -> None:
        async with sch:
            assert await handle == ("1",)

    asyncio.run(main())


async def test_get_and_handles() -> None:
    async with World() as w:
        a = w.sch.schedule("x", name="a")
        b = w.sch.schedule("x", name="b", delay=5)
        await w.settle()
        assert w.sch.get("b").id == b.id
        assert w.sch.get(a.id).name == "a"
        assert [h.name for h in w.sch.handles()] == ["a", "b"]
        assert [h.name for h in w.sch.handles(state="scheduled")] == ["b"]
        await w.finish("a")
        assert w.sch.get("a").state is TaskState.SUCCEEDED
        with pytest.raises(UnknownProcess):
            w.sch.get("nobody")


async def test_finished_tasks_are_bounded() -> None:
    async with World(SchedulerConfig(history=10), gated=False) as w:
        w.sch.schedule_many([{"command": "x", "name": f"n{n}"} for n in range(50)])
        await w.sch.join()
        assert len(w.sch._core.runner.finished) == 10
        assert len(w.sch._core.runner.names) == 10
        assert len(w.sch.frame()) == 10


async def test_memory_gate_waits_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    available = [1e9]
    monkeypatch.setattr(FakeBackend, "free_memory", lambda self: available[0], raising=False)
    async with World() as w:
        handle = w.sch.schedule("x", name="big", memory_gate="4 GB")
        w.sch.schedule("x", name="small")
        await w.settle()
        assert w.started == ["small"]
        assert "4 GiB" in handle.why()
        available[0] = 8e9
        await w.advance(1)
        assert w.started == ["small", "big"]


async def test_eta_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=2)) as w:
        assert w.sch.eta() is None
        for n in range(8):
            w.sch.schedule("x", name=str(n), estimated_duration=10)
        eta = w.sch.eta()
        assert eta is not None
        assert eta.low < eta.middle < eta.high
        assert 40 <= eta.middle <= 50
        joining = asyncio.ensure_future(w.sch.join(progress=True))
        for n in range(8):
            await w.settle()
            w.clock.advance(10)
            await w.finish(str(n))
        await joining
        shown = capsys.readouterr().err
        assert "8/8" in shown
        assert "left" in shown


@pytest.mark.loop_modes
async def test_in_every_loop_mode() -> None:
    async with World(gated=False) as w:
        a = w.sch.schedule("x", "a")
        assert await w.sch.schedule("x", "b", after=[a]) == ("b",)
        await w.sch.join()


async def test_lists_of_running_and_ended_tasks_are_short_work_among_many() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=2)) as w:
        handles = w.sch.schedule_many([("x", str(n)) for n in range(1000)])
        await w.settle()
        assert [h.id for h in w.sch.handles(state="running")] == [h.id for h in handles[:2]]
        handles[5].cancel()
        handles[7].cancel()
        assert [t.id for t in w.sch.ended(limit=1)] == [handles[7].id]
        assert [t.id for t in w.sch.tasks(limit=3)] == [h.id for h in handles[:3]]
        assert len(w.sch.tasks()) == 1000


async def test_looking_from_another_thread_neither_fails_nor_loses_a_task():
    """Delays come due and are cancelled, groups appear, and tasks end while somebody looks at all of it without a pause."""
    before, over, looks = sys.getswitchinterval(), threading.Event(), 0
    sys.setswitchinterval(5e-6)
    try:
        async with TaskScheduler(SchedulerConfig(history=50), background=True, backend=FakeBackend()) as sch:

            def look():
                nonlocal looks
                while not over.is_set():
                    _ = sch.status(), sch.tasks(limit=20), sch.ended(limit=20), sch.handles(state="scheduled")
                    looks += 1

            def work():
                for n in range(1000):
                    handle = sch.schedule("succeeds", delay=(n % 7) * 0.005, group=f"g{n}")
                    if n % 5 == 0:
                        handle.cancel()

            looking = asyncio.create_task(asyncio.to_thread(look))
            try:
                await asyncio.to_thread(work)
                status = await sch.join()
            finally:
                over.set()
            await looking
    finally:
        sys.setswitchinterval(before)
    assert looks
    assert status.succeeded + status.cancelled == 1000
