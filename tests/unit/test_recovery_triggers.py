"""Restart on an alert that lasts, and on failed liveness: processes that still run, but are not well."""

import asyncio
import os
import signal
import socket
from dataclasses import dataclass

import pytest

from nbprocs import LogLine, Port, ProcessManager, RestartPolicy
from nbprocs.errors import Unhealthy
from nbprocs.monitor import AlertThresholds, AlertType, ProcessMonitor
from nbprocs.processes.manager import manager_core
from nbprocs.recovery import ErrorHandler, RecoveryStrategy, RestartProcess, StepKind
from tests.children import SLEEPER, python_child
from tests.unit.recovery_kit import until

LEAK = python_child("""
hoard = []
signal.signal(signal.SIGUSR1, lambda *_: hoard.append(bytearray(b'x' * (24 << 20))))
ready()
forever()
""")
NOW = RestartProcess(policy=RestartPolicy(initial_delay=0), grace=0.5)


@pytest.fixture
async def pm():
    async with ProcessManager(grace=0.5) as manager:
        yield manager


@pytest.fixture
async def handler(pm):
    async with ErrorHandler(pm, settle=0.05) as made:
        yield made


def steps(handler, kind):
    return [step for step in handler.journal if step.kind is kind]


@dataclass
class FakeAlert:
    id: str
    process_id: str
    name: str
    type: AlertType = AlertType.MEMORY_USAGE
    message: str = "it holds 900 MiB, more than 500"
    resolved: bool = False


class FakeMonitor:
    def __init__(self):
        self.open = {}
        self.callbacks = []

    def on_alert(self, callback):
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def alerts(self, *, open_only):
        return list(self.open.values())

    def fire(self, alert, *, tell=True):
        self.open.pop(alert.id, None)
        if not alert.resolved:
            self.open[alert.id] = alert
        for callback in self.callbacks if tell else ():
            callback(alert)


class TestAlerts:
    async def test_memory_over_a_limit_restarts_the_process(self, pm, handler):
        """A real leak, seen by a real monitor."""
        seen = []
        handler.on_error(seen.append)
        async with ProcessMonitor(interval=0.05, thresholds=AlertThresholds(max_memory_mb=30)) as mon:
            mon.watch(pm)
            handler.recover_on_alert(mon, AlertType.MEMORY_USAGE, pattern="leak*", lasting=0.2, strategy=NOW)
            first = await pm.spawn(*LEAK, name="leaky", ready=LogLine("ready"))
            first.send_signal(signal.SIGUSR1)
            first.send_signal(signal.SIGUSR1)
            await until(handler, lambda: steps(handler, StepKind.OUTCOME))
            assert pm.get("leaky").restarts == 1
            assert first.result.reason.startswith("stopped")
        assert isinstance(seen[0], Unhealthy)
        assert "for 0.2 s" in str(seen[0])
        assert seen[0].process_id == first.id
        assert "restart process" in handler.story("leaky")

    async def test_one_that_does_not_last(self, pm, handler):
        monitor = FakeMonitor()
        handler.recover_on_alert(monitor, lasting=0.15, strategy=NOW)
        process = await pm.spawn(*SLEEPER, name="web")
        monitor.fire(FakeAlert("1", process.id, "web"))
        monitor.fire(FakeAlert("1", process.id, "web", resolved=True))
        other = await pm.spawn(*SLEEPER, name="other")
        monitor.fire(FakeAlert("2", other.id, "other"))  # fires later than the first would have
        await until(handler, lambda: pm.get("other").restarts)
        assert pm.get("web") is process

    async def test_its_end_was_not_told(self, pm, handler):
        """The monitor's rate limit may hold the news back: it is asked."""
        monitor = FakeMonitor()
        handler.recover_on_alert(monitor, lasting=0.1, strategy=NOW)
        process = await pm.spawn(*SLEEPER, name="web")
        other = await pm.spawn(*SLEEPER, name="other")
        monitor.fire(FakeAlert("1", process.id, "web"))
        monitor.fire(FakeAlert("1", process.id, "web", resolved=True), tell=False)
        monitor.fire(FakeAlert("2", other.id, "other"))
        await until(handler, lambda: pm.get("other").restarts)
        assert pm.get("web") is process

    async def test_only_the_types_and_names_asked_for(self, pm, handler):
        monitor = FakeMonitor()
        handler.recover_on_alert(monitor, AlertType.CPU_USAGE, pattern="web", strategy=NOW)
        web = await pm.spawn(*SLEEPER, name="web")
        other = await pm.spawn(*SLEEPER, name="other")
        monitor.fire(FakeAlert("1", web.id, "web"))
        monitor.fire(FakeAlert("2", other.id, "other", type=AlertType.CPU_USAGE))
        monitor.fire(FakeAlert("3", web.id, "web", type=AlertType.CPU_USAGE))
        await until(handler, lambda: pm.get("web").restarts)
        assert pm.get("other") is other
        assert len(steps(handler, StepKind.OUTCOME)) <= 1

    async def test_two_alerts_and_a_crash_are_one_recovery(self, pm, handler):
        monitor = FakeMonitor()
        handler.recover_on_alert(monitor, strategy=NOW)
        handler.set_recovery_strategy("web", NOW)
        process = await pm.spawn(*SLEEPER, name="web")
        monitor.fire(FakeAlert("1", process.id, "web"))
        monitor.fire(FakeAlert("2", process.id, "web", type=AlertType.CPU_USAGE))
        os.kill(process.pid, signal.SIGKILL)
        await until(handler, lambda: steps(handler, StepKind.OUTCOME))
        assert pm.get("web").restarts == 1

    async def test_ended(self, pm, handler):
        monitor = FakeMonitor()
        handler.recover_on_alert(monitor, lasting=10)()
        assert monitor.callbacks == []
        handler.recover_on_alert(monitor, lasting=10)
        await handler.aclose()
        assert monitor.callbacks == []

    async def test_a_supervised_process_stays_supervised(self, pm, handler):
        monitor = FakeMonitor()
        handler.recover_on_alert(monitor, strategy=RecoveryStrategy.REPLACE_PROCESS)
        process = await pm.spawn(*SLEEPER, name="web", restart=RestartPolicy(initial_delay=0))
        monitor.fire(FakeAlert("1", process.id, "web"))
        await until(handler, lambda: steps(handler, StepKind.OUTCOME))
        second = pm.get("web")
        assert second.restarts == 1
        assert manager_core(pm).supervisor.supervises(second.id)
        os.kill(second.pid, signal.SIGKILL)
        await until(handler, lambda: pm.get("web").restarts == 2)


SERVER = """
s = __import__('socket').socket(); s.setsockopt(1, 2, 1)
s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()
signal.signal(signal.SIGUSR1, lambda *_: s.close())  # deaf, but alive
ready(); forever()
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class TestLiveness:
    async def test_alive_but_deaf_is_restarted(self, pm, handler):
        port = free_port()
        seen = []
        handler.on_error(seen.append)
        handler.watch_liveness("web", Port(port), interval=0.05, timeout=1, failures=2, strategy=NOW)
        process = await pm.spawn(*python_child(SERVER, str(port)), name="web", ready=LogLine("ready"))
        process.send_signal(signal.SIGUSR1)
        await until(handler, lambda: steps(handler, StepKind.OUTCOME))
        second = pm.get("web")
        assert second.restarts == 1
        assert second.status.live
        assert "failed 2 times in a row, the last time: it said no" in str(seen[0])
        assert len(seen) == 1

    async def test_one_bad_answer_is_not_enough(self, pm, handler):
        answers = iter([True, False, False, True, False, False, True])
        asked = asyncio.Event()

        def probe():
            answer = next(answers, None)
            if answer is None:
                asked.set()
                return True
            return answer

        handler.watch_liveness("web", probe, interval=0.01, failures=3, strategy=NOW)
        process = await pm.spawn(*SLEEPER, name="web")
        async with asyncio.timeout(10):
            await asked.wait()
        assert pm.get("web") is process

    @pytest.mark.parametrize(
        ("kind", "why"), [("hangs", "no answer within 0.05 s"), ("raises", "ZeroDivisionError")], ids=["hangs", "raises"]
    )
    async def test_a_probe_that_misbehaves_is_a_bad_answer(self, pm, handler, kind, why):
        async def probe(process):
            if kind == "raises":
                raise ZeroDivisionError
            if process.restarts == 0:
                await asyncio.Event().wait()
            return True

        seen = []
        handler.on_error(seen.append)
        process = await pm.spawn(*SLEEPER, name="web")  # before the watch: found all the same
        end = handler.watch_liveness("web", probe, interval=0.02, timeout=0.05, failures=1, strategy=NOW)
        await until(handler, lambda: steps(handler, StepKind.OUTCOME))
        end()
        assert why in str(seen[0])
        assert process.status.value == "terminated"

    async def test_a_paused_process_is_left_alone(self, pm, handler):
        asked = []
        process = await pm.spawn(*SLEEPER, name="web")
        process.pause()
        handler.watch_liveness("web", lambda: asked.append(1), interval=0.01, failures=1, strategy=NOW)
        other = await pm.spawn(*SLEEPER, name="other")
        handler.watch_liveness("other", lambda: False, interval=0.1, failures=1, strategy=NOW)
        await until(handler, lambda: pm.get("other").restarts)
        assert asked == []
        assert not other.status.live
        process.resume()

    @pytest.mark.parametrize("options", [{"interval": 0}, {"timeout": 0}, {"failures": 0}], ids=["interval", "timeout", "failures"])
    async def test_nonsense(self, handler, options):
        with pytest.raises(ValueError, match="must be a"):
            handler.watch_liveness("web", lambda: True, **options)
