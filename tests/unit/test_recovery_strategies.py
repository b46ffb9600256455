"""Each strategy really does what it says: processes, pools, webhooks."""

import asyncio
import contextlib
import http.server
import json
import logging
import os
import signal
import threading

import pytest

from nbprocs import (
    EventKind,
    LogLine,
    ProcessFailed,
    ProcessManager,
    ProcessStatus,
    RestartPolicy,
    RestartsExhausted,
    RetryPolicy,
)
from nbprocs.pool import PoolConfig, ProcessPool
from nbprocs.recovery import (
    ErrorHandler,
    FirstOf,
    NotifyAdmin,
    Outcome,
    RecoveryStrategy,
    ReplaceProcess,
    RestartProcess,
    ScaleDown,
    ScaleUp,
    Sequence,
    StepKind,
)
from nbprocs.recovery.strategies import as_strategy
from tests.children import SLEEPER, python_child

AT_ONCE = RestartPolicy(initial_delay=0)


@pytest.fixture
async def pm():
    async with ProcessManager() as manager:
        yield manager


@pytest.fixture
async def handler(pm):
    async with ErrorHandler(pm, settle=0.1, automatic=False) as made:
        yield made


async def failed(pm, name="job", *command):
    process = await pm.spawn(*(command or ("false",)), name=name)
    await process.wait()
    return process


async def killed(pm, name="web"):
    process = await pm.spawn(*SLEEPER, name=name)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    return process


class TestRestart:
    @pytest.mark.parametrize(
        "strategy", [RecoveryStrategy.RESTART_PROCESS, "restart_process", RestartProcess(policy=AT_ONCE)], ids=["enum", "text", "class"]
    )
    async def test_same_config_same_name_lineage_kept(self, pm, handler, strategy):
        handler.set_recovery_strategy("web", strategy)
        old = await killed(pm)
        report = await handler.handle_error(old)
        new = pm.get("web")
        assert report.recovered
        assert report.new_process_id == new.id
        assert new.status is ProcessStatus.RUNNING
        assert new.config is old.config
        assert new.predecessor is old

    async def test_the_brake(self, pm):
        strategy = RestartProcess(policy=RestartPolicy(max_restarts=2, initial_delay=0.02, jitter=False))
        async with ErrorHandler(pm, settle=5) as handler:
            handler.set_recovery_strategy("loop", strategy)
            done = asyncio.Event()
            handler.journal.listen(lambda step: step.kind is StepKind.FATAL and done.set())
            await pm.spawn("false", name="loop")
            async with asyncio.timeout(20):
                await done.wait()
            waits = [step.delay for step in handler.journal if step.kind is StepKind.WAIT]
            report = await handler.handle_error(pm.get("loop"))
        assert waits == [0.02, 0.04]
        assert pm.get("loop").restarts == 2
        assert not report.recovered
        assert isinstance(report.error, RestartsExhausted)
        assert sum("exit status 1" in line for line in report.error.history) == 3
        assert isinstance(report.error.__cause__, ProcessFailed)

    async def test_the_new_one_is_not_ready(self, pm, handler, tmp_path):
        handler.set_recovery_strategy("web", RestartProcess(policy=AT_ONCE))
        code = "import pathlib; p = pathlib.Path(sys.argv[1]); p.exists() and sys.exit(4); p.touch(); ready(); forever()"
        old = await pm.spawn(*python_child(code, str(tmp_path / "mark")), name="web", ready=LogLine("ready"))
        os.kill(old.pid, signal.SIGKILL)
        await old.wait()
        report = await handler.handle_error(old)
        assert not report.recovered
        assert "ended before it was ready" in report.actions[0].detail


class TestReplace:
    async def test_no_moment_without_one(self, pm, handler):
        """At every event of the replacement a process of that name is alive and ready."""
        old = await pm.spawn(*SLEEPER, name="web", ready=LogLine("ready"))
        gaps, doubles = [], []

        def look(event):
            if not (pm.get("web").status.live and pm.get("web").ready):
                gaps.append(event)
            names = [p.name for p in pm.processes() if p.status.live]
            if len(set(names)) != len(names):
                doubles.append(names)

        pm.subscribe(look, output=True)
        handler.set_recovery_strategy("web", RecoveryStrategy.REPLACE_PROCESS)
        error = ProcessFailed("it leaks", process_id=old.id, name="web")
        report = await handler.handle_error(error)
        new = pm.get("web")
        assert report.recovered
        assert new is not old
        assert new.predecessor is old
        assert old.status is ProcessStatus.TERMINATED
        assert gaps == []
        assert doubles == []

    async def test_the_new_one_fails_and_the_old_one_stays(self, pm, handler, tmp_path):
        code = "import pathlib; p = pathlib.Path(sys.argv[1]); p.exists() and sys.exit(4); p.touch(); ready(); forever()"
        old = await pm.spawn(*python_child(code, str(tmp_path / "mark")), name="web", ready=LogLine("ready"))
        handler.set_recovery_strategy("web", ReplaceProcess(policy=AT_ONCE))
        report = await handler.handle_error(ProcessFailed("it leaks", process_id=old.id, name="web"))
        assert not report.recovered
        assert pm.get("web") is old
        assert old.status.live


async def workers(pool, count):
    """Until the pool has so many, by the events of its manager."""
    told = asyncio.Event()
    end = pool.manager.subscribe(lambda _: told.set())
    async with asyncio.timeout(20):
        while pool.metrics().current_active_processes != count or pool.manager.live != count:
            told.clear()
            with contextlib.suppress(TimeoutError):  # a worker says "ready" by a channel of its own, not by an event
                async with asyncio.timeout(0.05):
                    await told.wait()
    end()


class TestScale:
    async def test_up_and_down_within_the_bounds(self, pm):
        pool = ProcessPool(PoolConfig(min_processes=1, max_processes=3, initial_processes=2))
        async with pool, ErrorHandler(pm, pool=pool, automatic=False) as handler:
            assert await pool.run(os.getpid) > 0
            process = await failed(pm, "up")
            handler.set_recovery_strategy("up", [RecoveryStrategy.SCALE_UP, ScaleUp(by=5)])
            report = await handler.handle_error(process)
            assert [a.ok for a in report.actions] == [True, False]
            assert report.actions[0].detail == "the pool goes from 2 to 3 workers"
            assert "stays at 3, the bound of 1 to 3" in report.actions[1].detail
            await workers(pool, 3)
            process = await failed(pm, "down")
            handler.set_recovery_strategy("down", ScaleDown(by=9))
            report = await handler.handle_error(process)
            assert report.actions[0].detail == "the pool goes from 3 to 1 workers"
            await workers(pool, 1)
            handler.set_recovery_strategy("again", RecoveryStrategy.SCALE_DOWN)
            report = await handler.handle_error(await failed(pm, "again"))
            assert not report.actions[0].ok
            assert await pool.run(os.getpid) > 0

    async def test_no_pool(self, pm, handler):
        handler.set_recovery_strategy("*", RecoveryStrategy.SCALE_UP)
        report = await handler.handle_error(await failed(pm))
        assert "ErrorHandler(pm, pool=pool)" in report.actions[0].detail


@pytest.fixture
def webhook():
    """An HTTP server that keeps what it was sent, and answers with the statuses given (then 200)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.told.append((self.path, self.headers["Content-Type"], json.loads(body)))
            status = self.server.answers.pop(0) if self.server.answers else 200
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.told, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class TestNotify:
    async def test_callback_log_and_webhook(self, pm, handler, webhook, caplog):
        told = []
        handler.set_recovery_strategy("train", NotifyAdmin(callback=told.append, webhook=webhook.url))
        process = await failed(pm, "train", "sh", "-c", "echo epoch 1 >&2; echo password=hunter2 >&2; exit 3", "--token=s3cret")
        with caplog.at_level(logging.ERROR, "nbprocs.admin"):
            report = await handler.handle_error(process)
        assert report.actions[0].ok
        assert report.actions[0].detail == "logged, callback called, webhook answered 200"
        path, kind, sent = webhook.told[0]
        assert (path, kind) == ("/hook", "application/json")
        assert sent == told[0]
        assert sent["id"] == process.id
        assert sent["name"] == "train"
        assert sent["exit_code"] == 3
        assert sent["signal"] is None
        assert sent["duration"] > 0
        assert sent["error"] == "ProcessFailed"
        assert sent["attempts"] == 1
        assert sent["last_lines"][0] == "epoch 1"
        assert "s3cret" not in json.dumps(sent)
        assert "hunter2" not in json.dumps(sent["last_lines"])
        record = caplog.records[-1]
        assert record.nbprocs["exit_code"] == 3
        assert "train" in record.getMessage()
        assert not report.recovered  # telling somebody repairs nothing

    async def test_a_webhook_that_answers_at_the_third_time(self, pm, handler, webhook):
        webhook.answers += [503, 500]
        handler.set_recovery_strategy("*", NotifyAdmin(webhook=webhook.url, retry=RetryPolicy(max_retries=2, initial_delay=0)))
        report = await handler.handle_error(await failed(pm))
        assert report.actions[0].ok
        assert len(webhook.told) == 3

    async def test_a_webhook_that_nobody_answers(self, pm, handler):
        told = []
        strategy = NotifyAdmin(
            callback=told.append, webhook="http://127.0.0.1:1/x?key=abc", retry=RetryPolicy(max_retries=1, initial_delay=0)
        )
        handler.set_recovery_strategy("*", strategy)
        report = await handler.handle_error(await failed(pm))
        assert not report.actions[0].ok
        assert "webhook failed" in report.actions[0].detail
        assert len(told) == 1
        assert "abc" not in repr(strategy)

    async def test_a_webhook_that_hangs_is_bounded(self, pm, handler):
        with __import__("socket").socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
            handler.set_recovery_strategy("*", NotifyAdmin(webhook=url, timeout=0.2, retry=RetryPolicy(max_retries=0)))
            report = await handler.handle_error(await failed(pm))
        assert not report.actions[0].ok
        assert report.seconds < 5

    async def test_a_callback_that_raises_and_one_that_hangs(self, pm, handler, webhook):
        async def hang(told):
            await asyncio.Event().wait()

        def bad(told):
            raise ZeroDivisionError

        handler.set_recovery_strategy("*", [NotifyAdmin(callback=hang, timeout=0.1), NotifyAdmin(callback=bad, webhook=webhook.url)])
        report = await handler.handle_error(await failed(pm))
        assert [a.ok for a in report.actions] == [False, False]
        assert "TimeoutError" in report.actions[0].detail
        assert "ZeroDivisionError" in report.actions[1].detail
        assert len(webhook.told) == 1

    def test_only_http(self):
        with pytest.raises(ValueError, match="http"):
            NotifyAdmin(webhook="file:///etc/passwd")


class TestCompose:
    async def test_a_sequence_does_all(self, pm, handler):
        told = []
        handler.set_recovery_strategy("web", Sequence(RestartProcess(policy=AT_ONCE), NotifyAdmin(callback=told.append)))
        report = await handler.handle_error(await killed(pm))
        assert report.recovered
        assert [a.action for a in report.actions] == ["restart_process", "notify_admin"]
        assert told[0]["signal"] == "SIGKILL"

    async def test_first_of_goes_on_only_after_a_failure(self, pm, handler):
        told = []
        strategy = FirstOf(RestartProcess(policy=RestartPolicy(max_restarts=1, initial_delay=0)), NotifyAdmin(callback=told.append))
        handler.set_recovery_strategy("web", strategy)
        report = await handler.handle_error(await killed(pm))
        assert [a.action for a in report.actions] == ["restart_process"]
        again = pm.get("web")
        os.kill(again.pid, signal.SIGKILL)
        await again.wait()
        report = await handler.handle_error(again)
        assert [(a.action, a.ok) for a in report.actions] == [("restart_process", False), ("notify_admin", True)]
        assert len(told) == 1

    async def test_nested(self, pm, handler):
        handler.set_recovery_strategy("*", FirstOf(["scale_up", "do_nothing"], "notify_admin"))
        report = await handler.handle_error(await failed(pm))
        assert [a.action for a in report.actions] == ["scale_up", "do_nothing", "notify_admin"]

    async def test_made_by_the_user(self, pm, handler):
        async def move_away(incident):
            return await incident.manager.spawn(*SLEEPER, name=f"{incident.name}-2")

        def note(incident):
            return f"saw {type(incident.error).__name__} of {incident.process.name}"

        def refuse(incident):
            return False

        def crash(incident):
            raise ZeroDivisionError("oops")

        handler.set_recovery_strategy("*", [note, refuse, crash, lambda _: Outcome(action="mine", ok=True), move_away])
        report = await handler.handle_error(await failed(pm))
        assert [(a.action, a.ok) for a in report.actions] == [
            ("note", True),
            ("refuse", False),
            ("crash", False),
            ("mine", True),
            ("move_away", True),
        ]
        assert report.actions[0].detail == "saw ProcessFailed of job"
        assert "ZeroDivisionError: oops" in report.actions[2].detail
        assert report.recovered
        assert pm.get("job-2").status.live

    async def test_do_nothing(self, pm, handler):
        handler.set_recovery_strategy("*", RecoveryStrategy.DO_NOTHING)
        report = await handler.handle_error(await failed(pm))
        assert report.actions[0].ok
        assert not report.recovered
        assert pm.get("job").restarts == 0

    @pytest.mark.parametrize("nonsense", ["reboot", 3])
    def test_nonsense(self, nonsense):
        with pytest.raises((ValueError, TypeError)):
            as_strategy(nonsense)


async def test_events_tell_the_story_of_a_replacement(pm, handler):
    kinds = []
    pm.subscribe(lambda e: kinds.append(e.kind))
    old = await pm.spawn(*SLEEPER, name="web", ready=LogLine("ready"))
    handler.set_recovery_strategy("web", ReplaceProcess(policy=AT_ONCE))
    await handler.handle_error(ProcessFailed("it leaks", process_id=old.id, name="web"))
    assert handler.journal.names() == ("web",)  # not the passing names that the two had meanwhile
    assert handler.story("web") == "started → it leaks → restarted → stopped → replace process → healthy"
    assert kinds == [EventKind.STARTED, EventKind.READY, EventKind.STARTED, EventKind.READY, EventKind.EXITED]
