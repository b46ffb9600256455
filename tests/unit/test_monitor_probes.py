"""Response times: measured where there is a probe, infinite where it has no answer, absent elsewhere."""

import asyncio
import http.server
import math
import socket
import threading
import time

import pytest

import nbprocs
from nbprocs.monitor import AlertThresholds, AlertType, ProcessMonitor
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.probes import Prober, as_question, ask
from nbprocs.pool import PoolConfig, ProcessPool
from tests.children import SLEEPER


@pytest.fixture
def web():
    """A server whose answers take as long as its ``delay``, with its ``status``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(server.delay)
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.delay, server.status = 0.0, 200
    server.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_url_is_timed(web):
    web.delay = 0.2
    seconds, error = await ask(as_question(web.url), timeout=5)
    assert 0.2 <= seconds < 2
    assert error == ""
    web.status = 503
    seconds, error = await ask(as_question(nbprocs.Url(web.url)), timeout=5)
    assert math.isinf(seconds)
    assert error


async def test_a_port_is_timed_and_nobody_there_is_infinite():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = nbprocs.Port(server.getsockname()[1])
        seconds, error = await ask(as_question(port), timeout=5)
        assert 0 < seconds < 2
    seconds, error = await ask(as_question(port), timeout=5)
    assert math.isinf(seconds)
    assert "ConnectionRefusedError" in error


async def test_callables_of_all_kinds():
    async def waits():
        await asyncio.sleep(0.05)

    def sleeps():
        time.sleep(0.05)
        return threading.current_thread().name

    class Pool:
        async def ping(self):
            await asyncio.sleep(0.05)

    for probe in (waits, sleeps, Pool()):
        seconds, error = await ask(as_question(probe), timeout=5)
        assert 0.05 <= seconds < 2, error
    assert await as_question(sleeps)() == "nbprocs-probe"


async def test_no_answer_is_infinite_and_says_why():
    never = asyncio.Event()
    release = threading.Event()

    async def raises():
        raise RuntimeError("no database")

    for probe, why in (
        (never.wait, "no answer within 0.05 s"),
        (release.wait, "no answer within 0.05 s"),
        (raises, "RuntimeError: no database"),
        (lambda: False, "it answered False"),
    ):
        assert await ask(as_question(probe), timeout=0.05) == (math.inf, why)
    release.set()


def test_what_is_no_probe_is_refused():
    with pytest.raises(TypeError, match="a probe is"):
        as_question(42)
    with pytest.raises(ValueError, match="positive"):
        Prober(print, every=0, timeout=1)


async def test_response_times_reach_the_frame_and_the_alerts():
    async with nbprocs.ProcessManager() as pm:
        mon = ProcessMonitor(interval=0.02, thresholds=AlertThresholds(max_response_time=10), gpu=Gpu(library=None))
        mon.watch(pm)
        answers = asyncio.Event()
        asked = []

        async def question():
            asked.append(1)
            if not answers.is_set():
                raise ConnectionError("not yet")

        mon.probe("web", question, every=0.02)
        await pm.spawn(*SLEEPER, name="web")
        await pm.spawn(*SLEEPER, name="other")
        seen, healed = asyncio.Event(), asyncio.Event()
        mon.on_alert(lambda alert: (healed if alert.resolved else seen).set())
        async with asyncio.timeout(10):
            await seen.wait()
            answers.set()
            await healed.wait()
        assert mon.metrics("web").response_time < 10
        assert mon.metrics("other").response_time is None
        await mon.aclose()
        (alert,) = mon.alerts()
        assert alert.type is AlertType.RESPONSE_TIME
        assert alert.message == "web: no answer"
        assert mon.frame(names=["other"])["response_time"].isna().all()
        times = mon.frame(names=["web"])["response_time"].dropna()
        assert len(times) <= len(asked)  # an answer is told once, not repeated until the next
        assert mon.replay(mon.rules) == mon.alerts()


async def test_nobody_is_asked_while_the_process_is_not_there():
    mon = ProcessMonitor(interval=0.01, gpu=Gpu(library=None))
    asked = []
    mon.probe("ghost", lambda: asked.append(1), every=0.01)
    ticks = asyncio.Event()
    mon.subscribe(ticks.set)
    for _ in range(5):
        ticks.clear()
        await ticks.wait()
    await mon.aclose()
    assert asked == []


async def test_a_pool_is_watched_as_a_group_with_its_workers():
    config = PoolConfig(min_processes=1, max_processes=1)
    async with ProcessPool(config, name="crew") as pool:
        mon = ProcessMonitor(interval=None, gpu=Gpu(library=None))
        await pool.run(abs, -1)
        mon.watch(pool)
        mon.probe("crew", pool, every=0.01)
        await mon.sample()
        for _ in range(20):
            await pool.run(abs, -1)
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 1, 0)
        await mon.sample()
        group = mon.metrics("crew")
        assert (group.error_count, group.success_count >= 21) == (1, True)
        assert 0 < group.error_rate < 0.1
        assert group.throughput > 0
        assert group.memory_usage_mb > 5
        worker = mon.metrics("crew-worker-1")
        assert worker.memory_usage_mb == pytest.approx(group.memory_usage_mb)
        async with asyncio.timeout(10):
            while mon.metrics("crew").response_time is None:
                await mon.sample()
        await mon.aclose()


async def test_a_crashed_worker_is_told_and_the_alert_ends_when_the_pool_has_replaced_it():
    config = PoolConfig(min_processes=1, max_processes=1)
    async with ProcessPool(config, name="crew") as pool:
        mon = ProcessMonitor(interval=0.05, gpu=Gpu(library=None))
        await pool.run(abs, -1)
        mon.watch(pool)
        fired, resolved = asyncio.Event(), asyncio.Event()
        mon.on_alert(lambda alert: (resolved if alert.resolved else fired).set())
        (worker,) = [process for process in pool.manager.processes() if process.status.live]
        worker.send_signal(9)
        await pool.run(abs, -1)
        async with asyncio.timeout(20):
            await fired.wait()
            await resolved.wait()
        await mon.aclose()
        (alert,) = mon.alerts()
        assert (alert.type, alert.name) == (AlertType.PROCESS_DOWN, worker.name)
        assert mon.replay(mon.rules) == mon.alerts()
