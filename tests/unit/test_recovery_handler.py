"""ErrorHandler on real children: tries, then the strategy, once for each error, with a report and a record of all of it."""

import asyncio
import contextvars
import os
import pickle
import signal

import pytest

from nbprocs import (
    Closed,
    EventKind,
    ExecutionTimeout,
    ProcessCrashed,
    ProcessError,
    ProcessFailed,
    ProcessManager,
    RestartPolicy,
    RetryPolicy,
    StartupFailed,
)
from nbprocs.recovery import ErrorHandler, RecoveryStrategy, RestartProcess, StepKind
from nbprocs.recovery import callbacks as callbacks_room
from nbprocs.testing import instant_waits
from tests.children import SLEEPER, python_child
from tests.unit.recovery_kit import until

NOW = RetryPolicy(max_retries=3, initial_delay=0)
END = float("inf")  # a try is judged by its end, however slow the machine is


@pytest.fixture
async def pm():
    async with ProcessManager() as manager:
        yield manager


@pytest.fixture
async def handler(pm):
    async with ErrorHandler(pm, settle=0.3) as made:
        yield made


@pytest.fixture
async def asked(pm):
    """A handler that acts only when asked."""
    async with ErrorHandler(pm, settle=0.3, automatic=False) as made:
        yield made


def flaky(tmp_path, failures):
    """Fails so many times, then succeeds."""
    code = """
import pathlib
counter = pathlib.Path(sys.argv[1])
n = int(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text(str(n))
print('try', n)
sys.exit(0 if n > int(sys.argv[2]) else 7)
"""
    return python_child(code, str(tmp_path / "counter"), str(failures))


async def recovered(handler, name, count=1):
    """Until so many recoveries of that name have ended."""
    await until(handler, lambda: kinds(handler, name).count(StepKind.OUTCOME) >= count)


def kinds(handler, name):
    return [step.kind for step in handler.journal if step.name == name]


class TestRetries:
    async def test_succeeds_on_the_third_attempt(self, pm, asked, tmp_path):
        asked.set_retry_policy("flaky", NOW, settle=END)
        process = await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await process.wait()
        report = await asked.handle_error(process)
        assert report.recovered
        assert report.attempts == 3
        assert [(a.action, a.ok) for a in report.actions] == [("retry", False), ("retry", True)]
        assert pm.get(report.new_process_id).result.text == "try 3\n"
        assert pm.get("flaky").restarts == 2
        assert "exit status 7" in report.actions[0].detail

    async def test_by_itself_on_the_event_stream(self, pm, handler, tmp_path):
        handler.set_retry_policy("fl*", NOW, settle=END)
        await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await recovered(handler, "flaky")
        assert pm.get("flaky").result.ok
        assert kinds(handler, "flaky") == [
            StepKind.STARTED,
            StepKind.ERROR,
            *[StepKind.DECISION, StepKind.WAIT, StepKind.RESTARTED, StepKind.ERROR, StepKind.ATTEMPT],
            *[StepKind.DECISION, StepKind.WAIT, StepKind.RESTARTED, StepKind.COMPLETED, StepKind.ATTEMPT],
            StepKind.OUTCOME,
        ]

    async def test_gives_up_and_falls_to_the_strategy(self, pm, asked, tmp_path):
        asked.set_retry_policy("flaky", RetryPolicy(max_retries=1, initial_delay=0), settle=END)
        asked.set_recovery_strategy("flaky", RecoveryStrategy.DO_NOTHING)
        process = await pm.spawn(*flaky(tmp_path, 9), name="flaky")
        await process.wait()
        report = await asked.handle_error(process)
        assert not report.recovered
        assert [a.action for a in report.actions] == ["retry", "do_nothing"]
        assert report.error.attempts == 2
        assert report.error.exit_code == 7

    async def test_waits_what_the_policy_says_and_counts_over_recoveries(self, pm, tmp_path):
        slept = []

        async def sleep(delay):
            slept.append(delay)

        policy = RetryPolicy(max_retries=3, initial_delay=2, jitter=False)
        async with ErrorHandler(pm, settle=0.05, sleep=sleep) as handler:
            handler.set_retry_policy("late", policy)
            # lives longer than settle, so each failure is a recovery of its own, but one episode
            await pm.spawn(*python_child("time.sleep(0.3); sys.exit(1)"), name="late")
            await recovered(handler, "late", 4)
        assert slept == [2, 4, 8] == policy.delays()
        assert pm.get("late").restarts == 3

    async def test_a_healthy_uptime_ends_the_episode_where_that_was_asked_for(self, pm):
        async with ErrorHandler(pm, settle=0.05) as handler:
            handler.set_retry_policy("late", RetryPolicy(max_retries=1, initial_delay=0), healthy_after=0.2)
            await pm.spawn(*python_child("time.sleep(0.3); sys.exit(1)"), name="late")
            await recovered(handler, "late", 3)
            assert pm.get("late").restarts == 3

    async def test_a_job_is_judged_by_its_end_where_that_was_asked_for(self, pm, asked):
        code = "time.sleep(0.5); sys.exit(1)"  # longer than the handler's settle
        asked.set_retry_policy("late", RetryPolicy(max_retries=1, initial_delay=0), settle=float("inf"))
        process = await pm.spawn(*python_child(code), name="late")
        await process.wait()
        report = await asked.handle_error(process)
        assert not report.recovered
        assert report.attempts == 2

    async def test_instant_waits(self, pm, asked, tmp_path):
        asked.set_retry_policy("flaky", RetryPolicy(max_retries=3, initial_delay=1000, max_delay=1000, jitter=False), settle=END)
        process = await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await process.wait()
        with instant_waits():
            report = await asked.handle_error(process)
        assert report.recovered
        assert report.seconds < 10

    async def test_a_timeout_is_an_error(self, pm, asked):
        asked.set_retry_policy("slow", RetryPolicy(max_retries=1, initial_delay=0), settle=END)
        process = await pm.spawn(*SLEEPER, name="slow", timeout=0.1)
        await process.wait()
        report = await asked.handle_error(process)
        assert isinstance(report.error, ExecutionTimeout)
        assert report.attempts == 2

    async def test_the_same_policy_serves_the_manager(self, pm, tmp_path):
        result = await pm.run(*flaky(tmp_path, 2), retry=NOW)
        assert result.text == "try 3\n"
        with pytest.raises(ProcessFailed) as caught:
            await pm.run("false", retry=NOW)
        assert caught.value.attempts == 4

    async def test_a_program_that_disappears_is_not_tried_for_ever(self, pm, asked, tmp_path):
        script = tmp_path / "job.sh"
        script.write_text("#!/bin/sh\nexit 1\n")
        script.chmod(0o755)
        asked.set_retry_policy("job", NOW, settle=END)
        process = await pm.spawn(script, name="job")
        await process.wait()
        script.unlink()
        report = await asked.handle_error(process)
        assert [a.ok for a in report.actions] == [False]
        assert isinstance(report.error, StartupFailed)


class TestWhatIsHandled:
    async def test_neither_policy_nor_strategy(self, pm, asked):
        process = await pm.spawn("false", name="job")
        await process.wait()
        with pytest.raises(ProcessFailed) as caught:
            await asked.handle_error(process)
        assert "set_retry_policy('job'" in caught.value.__notes__[0]

    async def test_by_error_id_and_name(self, pm, asked):
        asked.set_recovery_strategy("*", RecoveryStrategy.DO_NOTHING)
        for index, form in enumerate((lambda p, e: e, lambda p, e: p.id, lambda p, e: p.name, lambda p, e: pickle.loads(pickle.dumps(e)))):
            try:
                await pm.run("false", name=f"job{index}")
            except ProcessError as error:
                process = pm.get(f"job{index}")
                report = await asked.handle_error(form(process, error))
                assert report.process_id == process.id

    async def test_no_error(self, pm, asked):
        asked.set_recovery_strategy("*", RecoveryStrategy.DO_NOTHING)
        done = await pm.spawn("true", name="done")
        await done.wait()
        with pytest.raises(ValueError, match="done completed"):
            await asked.handle_error(done)
        running = await pm.spawn(*SLEEPER, name="up")
        with pytest.raises(ValueError, match="still running"):
            await asked.handle_error("up")
        assert running.status.live

    async def test_a_start_that_failed(self, pm, asked):
        asked.set_recovery_strategy("*", [RecoveryStrategy.RESTART_PROCESS, RecoveryStrategy.DO_NOTHING])
        with pytest.raises(StartupFailed) as caught:
            await pm.spawn("no-such-program-here", name="gone")
        report = await asked.handle_error(caught.value)
        assert [a.ok for a in report.actions] == [False, True]
        assert "never started" in report.actions[0].detail
        assert kinds(asked, "gone")[0] is StepKind.ERROR

    async def test_an_error_of_nobody(self, asked):
        asked.set_recovery_strategy("*", RecoveryStrategy.DO_NOTHING)
        report = await asked.handle_error(ValueError("from a task"))
        assert report.actions[0].ok

    async def test_what_its_owner_stopped_is_left_alone(self, pm, handler):
        handler.set_retry_policy("*", NOW)
        handler.set_recovery_strategy("*", RecoveryStrategy.RESTART_PROCESS)
        process = await pm.spawn(*SLEEPER, name="web")
        await process.stop()
        report = await handler.handle_error(process)
        assert report.actions == ()
        assert pm.live == 0

    async def test_stopped_during_its_recovery(self, pm, handler):
        handler.set_recovery_strategy("web", RestartProcess(policy=RestartPolicy(initial_delay=0)))
        process = await pm.spawn(*SLEEPER, name="web")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await until(handler, lambda: pm.get("web").restarts)
        await pm.get("web").stop()
        await recovered(handler, "web")
        assert pm.live == 0
        assert len([k for k in kinds(handler, "web") if k is StepKind.RESTARTED]) == 1

    async def test_taken_back(self, pm, asked):
        asked.set_retry_policy("*", NOW)
        asked.set_recovery_strategy("*", RecoveryStrategy.DO_NOTHING)
        asked.set_retry_policy("*", None)
        asked.set_recovery_strategy("*", None)
        process = await pm.spawn("false", name="job")
        await process.wait()
        with pytest.raises(ProcessFailed):
            await asked.handle_error(process)


class TestOnce:
    async def test_concurrent_errors_are_one_recovery(self, pm, handler, tmp_path):
        handler.set_retry_policy("flaky", NOW, settle=END)
        process = await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await process.wait()  # the event has begun a recovery by now
        reports = await asyncio.gather(*(handler.handle_error(process) for _ in range(20)), handler.handle_error("flaky"))
        assert len({id(report) for report in reports}) == 1
        assert pm.get("flaky").restarts == 2
        assert (await handler.handle_error(process)) is reports[0]  # later, too
        assert len([s for s in handler.journal if s.kind is StepKind.OUTCOME]) == 1

    async def test_callers_who_are_cancelled_do_not_end_it(self, pm, asked, tmp_path):
        asked.set_retry_policy("flaky", NOW, settle=END)
        process = await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await process.wait()
        waiter = asyncio.create_task(asked.handle_error(process))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait({waiter})
        assert waiter.cancelled()
        report = await asked.handle_error(process)
        assert report.recovered

    async def test_a_failure_just_as_the_recovery_ends_is_not_lost(self, pm):
        async with ErrorHandler(pm, settle=0.05) as handler:
            handler.set_recovery_strategy("late", RestartProcess(policy=RestartPolicy(initial_delay=0, max_restarts=6)))
            await pm.spawn(*python_child("time.sleep(0.05); sys.exit(1)"), name="late")
            await recovered(handler, "late", 7)
            assert pm.get("late").restarts == 6
            assert StepKind.FATAL in kinds(handler, "late")

    async def test_the_supervisor_goes_first_and_the_handler_follows_at_fatal(self, pm, handler):
        seen = []
        handler.set_recovery_strategy("loop", [RecoveryStrategy.RESTART_PROCESS, lambda incident: seen.append(incident.error)])
        handler.set_retry_policy("loop", NOW)
        await pm.spawn(*python_child("sys.exit(3)"), name="loop", restart=RestartPolicy(max_restarts=2, initial_delay=0.01, jitter=False))
        await recovered(handler, "loop")
        assert pm.get("loop").restarts == 2
        story = handler.story("loop")
        assert story.startswith("started → failed (exit status 3) → waited 10 ms → restarted → failed (exit status 3) → waited 20 ms")
        assert "given up" in story
        assert type(seen[0]).__name__ == "RestartsExhausted"

    async def test_asked_about_a_supervised_one(self, pm, handler):
        process = await pm.spawn(*SLEEPER, name="web", restart=RestartPolicy(initial_delay=30, jitter=False))
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        report = await handler.handle_error(process)
        assert report.actions[0].action == "supervision"


class TestCallbacks:
    async def test_see_every_error_once(self, pm, asked, tmp_path):
        seen, later = [], asyncio.Event()

        async def slow(error):
            await asyncio.sleep(0)
            later.set()

        asked.on_error(seen.append)
        end = asked.on_error(slow, pattern="flaky")
        asked.set_retry_policy("flaky", NOW, settle=END)
        process = await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await process.wait()
        await asked.handle_error(process)
        async with asyncio.timeout(5):
            await later.wait()
        end()
        assert [type(e) for e in seen] == [ProcessFailed, ProcessFailed]
        assert len({e.process_id for e in seen}) == 2
        crashed = await pm.spawn(*SLEEPER, name="crashed")
        os.kill(crashed.pid, signal.SIGSEGV)
        await crashed.wait()
        with pytest.raises(StartupFailed):
            await pm.spawn("no-such-program-here")
        assert [type(e) for e in seen[2:]] == [ProcessCrashed, StartupFailed]

    async def test_one_that_raises(self, pm, asked, tmp_path):
        seen = []

        def bad(error):
            raise ZeroDivisionError

        async def worse(error):
            raise KeyError("x")

        for callback in (bad, worse, seen.append):
            asked.on_error(callback)
        asked.set_retry_policy("*", NOW, settle=END)
        process = await pm.spawn(*flaky(tmp_path, 1), name="flaky")
        await process.wait()
        report = await asked.handle_error(process)
        assert report.recovered
        assert len(seen) == 1
        notes = [step.what for step in asked.journal if step.kind is StepKind.CALLBACK]
        assert any("ZeroDivisionError" in note for note in notes)
        assert any("KeyError" in note for note in notes)

    async def test_one_that_hangs(self, pm, tmp_path):
        async with ErrorHandler(pm, automatic=False, callback_timeout=0.1) as handler:
            hung = asyncio.Event()

            async def hang(error):
                try:
                    await asyncio.Event().wait()
                finally:
                    hung.set()

            handler.on_error(hang)
            handler.set_retry_policy("*", NOW, settle=END)
            process = await pm.spawn(*flaky(tmp_path, 1), name="flaky")
            await process.wait()
            assert (await handler.handle_error(process)).recovered
            async with asyncio.timeout(5):
                await hung.wait()
            await until(handler, lambda: any("did not end within 0.1 s" in step.what for step in handler.journal))

    async def test_one_that_hangs_while_the_handler_closes(self, pm):
        handler = ErrorHandler(pm)

        async def hang(error):
            await asyncio.Event().wait()

        handler.on_error(hang)
        await (await pm.spawn("false", name="x")).wait()
        async with asyncio.timeout(5):
            await handler.aclose()

    async def test_one_that_causes_another_error(self, pm, handler):
        calls = []

        async def spawn_another(error):
            calls.append(error)
            process = await pm.spawn("false", name=f"caused-{len(calls)}")
            await process.wait()

        handler.on_error(spawn_another)
        process = await pm.spawn("false", name="first")
        await process.wait()
        await until(handler, lambda: any("callback of a callback" in step.what for step in handler.journal))
        assert len(calls) == 3

    async def test_the_end_of_a_process_counts_where_it_was_started_and_not_where_it_is_told(self, pm, handler):
        """What tells of an end may run in the context of anybody who had to do with the shim."""
        calls = []
        callbacks = handler._callbacks
        handler.on_error(calls.append)
        deep = contextvars.copy_context()
        deep.run(callbacks_room._depth.set, callbacks_room.DEEPEST)
        deep.run(callbacks.started, "of a callback")
        callbacks.started("of a cell")
        callbacks.tell(OSError("one"), name="x", process_id="of a callback")
        assert calls == []
        deep.run(lambda: callbacks.tell(OSError("two"), name="x", process_id="of a cell"))
        assert [str(error) for error in calls] == ["two"]
        deep.run(lambda: callbacks.tell(OSError("three"), name="x", process_id="not started"))
        assert len(calls) == 1

    async def test_one_that_handles_the_error_itself(self, pm, handler, tmp_path):
        reports = []

        async def handle(error):
            reports.append(await handler.handle_error(error))

        handler.set_retry_policy("flaky", NOW, settle=END)
        handler.on_error(handle)
        process = await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await process.wait()
        report = await handler.handle_error(process)
        assert report.recovered
        assert pm.get("flaky").restarts == 2


async def test_left_alone_by_its_owner(pm, handler):
    handler.set_retry_policy("job", RetryPolicy(initial_delay=30, jitter=False), settle=END)
    process = await pm.spawn("false", name="job")
    await process.wait()
    waiter = asyncio.create_task(handler.handle_error(process))
    await until(handler, lambda: StepKind.WAIT in kinds(handler, "job"))
    assert await handler.leave_alone("job")
    assert not await handler.leave_alone("job")
    report = await waiter
    assert "its owner wants it left alone" in report.actions[-1].detail
    assert pm.get("job") is process


async def test_a_manager_without_history():
    async with ProcessManager(history=0) as pm, ErrorHandler(pm, settle=0.05) as handler:
        seen = []
        handler.on_error(seen.append)
        process = await pm.spawn("false", name="job")
        await process.wait()
        done = await pm.spawn("true", name="done")
        await done.wait()
        assert [type(error) for error in seen] == [ProcessFailed]
        assert kinds(handler, "job") == [StepKind.STARTED, StepKind.ERROR]
        assert kinds(handler, "done") == [StepKind.STARTED, StepKind.COMPLETED]


class TestClosing:
    async def test_the_manager_closes_during_a_wait(self, tmp_path):
        async with ProcessManager() as pm:
            handler = ErrorHandler(pm)
            handler.set_retry_policy("*", RetryPolicy(initial_delay=30, jitter=False))
            process = await pm.spawn("false", name="job")
            await process.wait()
            waiter = asyncio.create_task(handler.handle_error(process))
            await asyncio.sleep(0)
            await pm.aclose()
            report = await waiter
        assert not report.recovered
        assert "closed" in report.actions[-1].detail
        assert pm.live == 0
        with pytest.raises(Closed):
            await handler.handle_error(process)

    async def test_the_manager_closes_during_a_restart(self):
        async with ProcessManager(grace=0.1) as pm:
            handler = ErrorHandler(pm)
            handler.set_recovery_strategy("*", RestartProcess(policy=RestartPolicy(initial_delay=0)))
            process = await pm.spawn(*SLEEPER, name="web")
            os.kill(process.pid, signal.SIGKILL)
            started = asyncio.Event()
            pm.subscribe(lambda e: e.kind is EventKind.STARTED and started.set())
            await started.wait()
            await pm.aclose()
            assert pm.live == 0
        await handler.aclose()
        assert handler._cases == {}

    async def test_a_closed_manager_is_no_crash(self, asked, pm):
        asked.set_retry_policy("*", NOW)
        process = await pm.spawn("false", name="job")
        await process.wait()
        await pm.aclose()
        with pytest.raises(Closed):
            await asked.handle_error(process)

    async def test_the_handler_closes_and_processes_stay(self, pm):
        handler = ErrorHandler(pm)
        handler.set_retry_policy("*", NOW)
        process = await pm.spawn(*SLEEPER, name="web")
        await handler.aclose()
        await handler.aclose()
        assert process.status.live
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        assert pm.get("web") is process


async def test_from_another_loop(tmp_path):
    async with ProcessManager(background=True) as pm, ErrorHandler(pm, automatic=False) as handler:
        handler.set_retry_policy("flaky", NOW, settle=END)
        process = await pm.spawn(*flaky(tmp_path, 2), name="flaky")
        await process.wait()
        report = await handler.handle_error(process)
        assert report.recovered
        assert report.attempts == 3


class TestRecord:
    async def test_the_frame(self, pm, asked, tmp_path):
        asked.set_retry_policy("flaky", RetryPolicy(max_retries=2, initial_delay=0.01, jitter=False), settle=END)
        process = await pm.spawn(*flaky(tmp_path, 1), name="flaky")
        await process.wait()
        await asked.handle_error(process)
        frame = asked.frame()
        assert list(frame.columns) == ["at", "name", "process_id", "kind", "what", "error", "delay", "attempt", "ok"]
        assert list(frame["kind"]) == ["started", "error", "decision", "wait", "restarted", "completed", "attempt", "outcome"]
        assert frame.loc[1, "error"] == "ProcessFailed"
        assert frame.loc[3, "delay"] == 0.01
        assert frame.loc[6, "attempt"] == 2
        assert frame["at"].is_monotonic_increasing
        assert str(frame["at"].dt.tz) == "UTC"

    async def test_an_empty_frame_has_its_columns(self, asked):
        assert str(asked.frame()["delay"].dtype) == "float64"

    async def test_the_story_of_a_process(self, pm, handler):
        handler.set_recovery_strategy("web", RestartProcess(policy=RestartPolicy(initial_delay=0.1, jitter=False)))
        process = await pm.spawn(*SLEEPER, name="web")
        os.kill(process.pid, signal.SIGSEGV)
        await process.wait()
        await recovered(handler, "web")
        story = handler.story("web")
        assert story.startswith("started → crashed (SIGSEGV) → waited 0.1 s → restarted")
        assert "healthy" in story

    async def test_a_supervised_story_ends_healthy(self, pm, handler):
        process = await pm.spawn(*SLEEPER, name="web", restart=RestartPolicy(initial_delay=0))
        os.kill(process.pid, signal.SIGKILL)
        await until(handler, lambda: StepKind.HEALTHY in kinds(handler, "web"))
        assert kinds(handler, "web") == [
            StepKind.STARTED,
            StepKind.ERROR,
            StepKind.WAIT,
            StepKind.RESTARTED,
            StepKind.HEALTHY,
        ]

    async def test_the_display_escapes(self, pm, asked):
        asked.set_recovery_strategy("*", RecoveryStrategy.DO_NOTHING)
        process = await pm.spawn("sh", "-c", "echo '<script>alert(1)</script>' >&2; exit 1", name="<script>x</script>")
        await process.wait()
        report = await asked.handle_error(process)
        for shown in (asked._repr_mimebundle_()["text/html"], report._repr_mimebundle_()["text/html"]):
            assert "<script" not in shown
            assert "&lt;script&gt;" in shown
        assert "1 name" in repr(asked)
        assert "do_nothing" in repr(report)
