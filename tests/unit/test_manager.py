"""ProcessManager and ManagedProcess with real children: SPEC 1 and 2."""

import asyncio
import os
import pickle
import signal
import sys
import threading
import uuid
from contextlib import aclosing
from typing import Any

import psutil
import pytest

import nbprocs
from nbprocs import CommunicationError, EventKind, ProcessManager, ProcessStatus, StartupFailed, Stream
from nbprocs.processes.manager import manager_core
from tests.children import ECHO, SLEEPER, STUBBORN, python_child, until_line

TREE = python_child(
    """
    import subprocess
    kids = [subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(1000)'], start_new_session=own) for own in (False, True)]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready('ready ' + ' '.join(str(k.pid) for k in kids))
    forever()
    """
)
DAEMON = python_child(
    """
    told, tell = os.pipe()
    if os.fork():
        print(os.read(told, 20).decode(), flush=True)
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1); os.dup2(null, 2)
    os.write(tell, str(os.getpid()).encode())
    forever()
    """
)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(params=["posix", "portable"])
async def pm(request: pytest.FixtureRequest):
    async with ProcessManager(engine=request.param) as manager:
        yield manager


async def test_spawn_gives_a_running_process_with_everything_that_the_contract_names(pm: ProcessManager) -> None:
    process = await pm.spawn(*SLEEPER, name="sleeper")
    assert process.status is ProcessStatus.RUNNING
    assert process.pid is not None and alive(process.pid)
    assert (str(uuid.UUID(process.id)), uuid.UUID(process.id).version, uuid.UUID(process.id).variant) == (process.id, 4, uuid.RFC_4122)
    assert process.created_at.tzinfo is not None
    assert process.config.command == sys.executable
    assert pm.get("sleeper") is pm.get(process.id) is process
    assert pm.status("sleeper") is ProcessStatus.RUNNING
    result = await process.stop()
    assert (result.status, result.signal, result.reason) == (ProcessStatus.TERMINATED, signal.SIGTERM, "stopped")
    assert not alive(process.pid)


@pytest.mark.parametrize(("code", "status"), [(0, ProcessStatus.COMPLETED), (3, ProcessStatus.FAILED)])
async def test_wait_returns_the_result_and_never_raises(pm: ProcessManager, code: int, status: ProcessStatus) -> None:
    process = await pm.spawn(*python_child(f"print('out'); print('err', file=sys.stderr); sys.exit({code})"))
    result = await pm.wait(process.id)
    assert (result.exit_code, result.signal, result.status) == (code, None, status)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert result.process_id == process.id
    assert 0 < result.execution_time < 60
    assert pickle.loads(pickle.dumps(result)) == result


async def test_run_raises_with_exit_status_and_last_lines(pm: ProcessManager) -> None:
    command = python_child("print('the reason', file=sys.stderr); sys.exit(4)")
    with pytest.raises(nbprocs.ProcessFailed) as caught:
        await pm.run(*command)
    assert caught.value.exit_code == 4
    assert "the reason" in str(caught.value)
    assert (await pm.run(*command, check=False)).exit_code == 4
    with pytest.raises(nbprocs.ProcessCrashed) as crashed:
        await pm.run(*python_child("os.kill(os.getpid(), signal.SIGSEGV)"))
    assert crashed.value.signal == signal.SIGSEGV
    copy = pickle.loads(pickle.dumps(crashed.value))
    assert (type(copy), str(copy), copy.signal) == (nbprocs.ProcessCrashed, str(crashed.value), signal.SIGSEGV)


async def test_run_passes_input_and_retries_by_policy(pm: ProcessManager, tmp_path) -> None:
    assert (await pm.run("sort", "-n", input=b"3\n1\n")).stdout == b"1\n3\n"
    assert (await pm.run("head", "-c", "3", input="x" * 5_000_000)).stdout == b"xxx"
    flaky = python_child(f"p = {str(tmp_path / 'n')!r}; open(p, 'a').write('x'); sys.exit(len(open(p).read()) < 3)")
    result = await pm.run(*flaky, retry=nbprocs.RetryPolicy(max_retries=5, initial_delay=0.001, jitter=False))
    assert result.ok
    assert (tmp_path / "n").read_text() == "xxx"


async def test_stop_ends_the_whole_tree_also_what_changed_its_session(pm: ProcessManager) -> None:
    process = await pm.spawn(*TREE)
    kids = [int(word) for word in (await until_line(process)).split()[1:]]
    assert all(map(alive, kids))
    result = await process.stop(grace=0.2)
    assert result.signal == signal.SIGKILL
    assert not any(map(alive, [process.pid or 0, *kids]))


async def test_stop_finds_a_daemon_that_left_session_and_family(pm: ProcessManager) -> None:
    process = await pm.spawn(*DAEMON)
    pid = int(await process.receive_output() or "")
    await process.wait()
    assert alive(pid)
    await process.stop()
    assert not alive(pid)


async def test_stop_of_a_stopped_process_and_of_one_that_ignores_sigterm(pm: ProcessManager) -> None:
    paused = await pm.spawn(*SLEEPER)
    await until_line(paused)
    paused.pause()
    assert paused.paused
    assert (await paused.stop(grace=20)).signal == signal.SIGTERM
    stubborn = await pm.spawn(*STUBBORN)
    await until_line(stubborn)
    assert (await stubborn.stop(grace=0.1)).signal == signal.SIGKILL


async def test_timeout_kills_the_tree_and_says_so(pm: ProcessManager) -> None:
    process = await pm.spawn(*TREE, timeout=0.5)
    kids = [int(word) for word in (await until_line(process)).split()[1:]]
    result = await process.wait()
    assert (result.status, result.reason) == (ProcessStatus.TERMINATED, "timeout")
    assert not any(map(alive, kids))
    with pytest.raises(nbprocs.ExecutionTimeout):
        await pm.run(*SLEEPER, timeout=0.05)
    with pytest.raises(TimeoutError):
        await (await pm.spawn(*SLEEPER, name="left alone")).wait(0.01)
    assert pm.status("left alone") is ProcessStatus.RUNNING


PEAK = """
import asyncio, resource, sys, nbprocs
async def main():
    async with nbprocs.ProcessManager() as pm:
        small = await pm.run("true")
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 100_000_000
        big = await pm.run(sys.executable, "-I", "-S", "-c", f"x = b'x' * {size}")
        print(small.peak_rss is None, 0 < big.peak_rss - size < 100_000_000)
asyncio.run(main())
"""


async def test_peak_memory_is_the_childs_or_unknown() -> None:
    # In an interpreter of its own: below the peak of the one that starts it a child's peak can't be told, and pytest's is high.
    async with ProcessManager() as pm:
        assert (await pm.run(sys.executable, "-c", PEAK)).text == "True True\n"


async def test_pause_resume_signals_and_interrupt(pm: ProcessManager) -> None:
    process = await pm.spawn(*python_child("signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'usr1\\n')); ready(); forever()"))
    await until_line(process)
    process.pause()
    process.resume()
    assert not process.paused
    process.send_signal(signal.SIGUSR1)
    await until_line(process, "usr1")
    process.interrupt()
    assert (await process.wait()).status is ProcessStatus.FAILED
    for act in (process.pause, process.resume, process.interrupt):
        with pytest.raises(nbprocs.CommunicationError):
            act()


async def test_talking_in_lines(pm: ProcessManager) -> None:
    process = await pm.spawn(*ECHO, stdin=True)
    assert await process.receive_output() == "ready"
    await process.send_line("grüße")
    await process.send(b"raw\n")
    assert [await process.receive_output(), await process.receive_output()] == ["grüße", "raw"]
    await process.close_stdin()
    assert await process.receive_output() is None
    assert await process.receive_error() is None
    assert (await process.wait()).ok
    with pytest.raises(nbprocs.CommunicationError):
        await process.send_line("late")
    with pytest.raises(nbprocs.CommunicationError, match="stdin=True"):
        await (await pm.spawn(*SLEEPER)).send("nobody listens")


async def test_several_readers_each_see_every_line(pm: ProcessManager) -> None:
    process = await pm.spawn(*python_child("for i in range(5000): print(i)\nprint('e', file=sys.stderr)"))

    async def read() -> list[str]:
        return [line async for line in process.lines()]

    first, second = await asyncio.gather(read(), read())
    late = await read()
    assert first == second == late == [str(i) for i in range(5000)]
    assert [line async for line in process.lines(stream=Stream.STDERR)] == ["e"]


async def test_odd_bytes_are_data(pm: ProcessManager) -> None:
    code = r"sys.stdout.buffer.write(b'\xff\0\r10%\r20%\r\nhalf \xe2\x82'); sys.stdout.flush(); sys.stdout.buffer.write(b'\xac\n' + b'x' * 3_000_000)"
    process = await pm.spawn(*python_child(code))
    lines = [line async for line in process.lines()]
    assert lines == ["�\0\r10%\r20%", "half €", "x" * 3_000_000]
    assert (await process.wait()).stdout.endswith(b"\xac\n" + b"x" * 3_000_000)


@pytest.mark.parametrize("engine", ["posix", "portable"])
async def test_a_child_is_never_blocked_and_memory_is_bounded(engine: str) -> None:
    async with ProcessManager(engine=engine, output_limit=1 << 20) as pm:  # type: ignore[arg-type]
        process = await pm.spawn(*python_child("sys.stdout.write('y' * 30_000_000)"))
        result = await process.wait()
        assert result.ok
        assert process.stdout.in_memory <= (1 << 20) + (64 << 10)
        assert len(result.stdout) == 30_000_000
        assert result.dropped_bytes == 0


async def test_pty_and_environment_and_directory(tmp_path) -> None:
    async with ProcessManager() as pm:
        result = await pm.run("sh", "-c", "test -t 1 && echo tty", pty=True)
        assert result.stdout == b"tty\r\n"
        result = await pm.run("echo $GREETING; pwd", shell=True, env_vars={"GREETING": "hi"}, working_dir=tmp_path)
        assert result.text == f"hi\n{os.path.realpath(tmp_path)}\n"
        unbuffered = await pm.run(sys.executable, "-c", "import os; print(os.environ['PYTHONUNBUFFERED'])")
        assert unbuffered.text == "1\n"


async def test_the_limit_counts_live_processes_only_and_waiting_is_fair() -> None:
    async with ProcessManager(max_concurrent=2) as pm:
        assert await pm.run("true") and await pm.run("true") and await pm.run("true")
        first, second = await pm.spawn(*SLEEPER), await pm.spawn(*SLEEPER)
        with pytest.raises(nbprocs.ResourceExhausted, match="max_concurrent=2"):
            await pm.spawn(*SLEEPER)
        order: list[str] = []

        async def start(name: str) -> None:
            await pm.spawn(*SLEEPER, name=name, wait=True)
            order.append(name)

        waiting = [asyncio.ensure_future(start(name)) for name in "abc"]
        while pm.waiting < 3:
            await asyncio.sleep(0)
        waiting[1].cancel()
        await first.stop()
        await second.stop()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert order == ["a", "c"]
        assert pm.live == 2


async def test_names_are_unique_among_the_living_and_reusable_after(pm: ProcessManager) -> None:
    first = await pm.spawn(*SLEEPER, name="web")
    with pytest.raises(nbprocs.NameInUse, match="web"):
        await pm.spawn(*SLEEPER, name="web")
    await pm.terminate("web")
    second = await pm.spawn(*SLEEPER, name="web")
    assert pm.get("web") is second
    assert pm.get(first.id) is first
    await pm.rename("web", "site")
    assert pm.get("site") is second
    with pytest.raises(nbprocs.UnknownProcess, match="nobody"):
        pm.get("nobody")
    with pytest.raises(KeyError):
        await pm.terminate("nobody")


async def test_restart_and_replace_keep_config_name_and_lineage(pm: ProcessManager) -> None:
    old = await pm.spawn(*SLEEPER, name="web", ready=nbprocs.LogLine("ready"))
    new = await pm.restart("web")
    assert (new.name, new.config.argv, new.restarts, new.predecessor) == ("web", old.config.argv, 1, old)
    assert old.status is ProcessStatus.TERMINATED
    seen: list[tuple[str, str]] = []
    pm.subscribe(lambda event: seen.append((event.kind, event.process_id)))
    third = await pm.replace("web")
    assert pm.get("web") is third
    assert third.ready
    assert seen.index((EventKind.READY, third.id)) < seen.index((EventKind.EXITED, new.id))


@pytest.mark.parametrize("moves", [("replace", "replace", "replace"), ("restart", "replace"), ("replace", "restart", "restart")])
async def test_of_several_who_replace_one_at_once_one_does(pm: ProcessManager, moves: tuple[str, ...]) -> None:
    old = await pm.spawn(*SLEEPER, name="web", restart=True)
    done = await asyncio.gather(*(getattr(pm, move)("web") for move in moves), return_exceptions=True)
    [new] = [one for one in done if not isinstance(one, BaseException)]
    assert all(isinstance(one, nbprocs.NameInUse) for one in done if one is not new), done
    assert [process for process in pm.processes() if process.status.live] == [new]
    assert (pm.get("web"), new.name, new.predecessor) == (new, "web", old)


@pytest.mark.parametrize("probe", ["line", "callable", "async", "port"])
async def test_readiness(pm: ProcessManager, probe: str, tmp_path) -> None:
    mark = tmp_path / "mark"
    port_file = tmp_path / "port"
    code = f"""
    import socket
    s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()
    open({str(port_file)!r}, 'w').write(str(s.getsockname()[1])); open({str(mark)!r}, 'w').close()
    ready('server is up'); forever()
    """

    async def check(process: nbprocs.ManagedProcess) -> bool:
        return mark.exists() and process.status.live

    async def port() -> bool:
        return port_file.exists() and await nbprocs.Port(int(port_file.read_text() or 1)).check(None)  # type: ignore[arg-type]

    ready = {"line": nbprocs.LogLine("is up$"), "callable": mark.exists, "async": check, "port": port}[probe]
    process = await pm.spawn(*python_child(code), ready=ready)
    assert process.ready
    assert mark.exists()
    assert process.status is ProcessStatus.RUNNING


async def test_not_ready_in_time_or_ended_before_shows_the_last_lines_and_leaves_nothing(pm: ProcessManager) -> None:
    with pytest.raises(nbprocs.NotReady, match=r"not ready within 0\.2 s"):
        await pm.spawn(*SLEEPER, name="slow", ready=nbprocs.LogLine("never"), ready_timeout=0.2)
    assert pm.status("slow") is ProcessStatus.TERMINATED
    with pytest.raises(nbprocs.NotReady, match="no such table") as caught:
        await pm.spawn(*python_child("print('no such table', file=sys.stderr); sys.exit(9)"), ready=nbprocs.Port(1))
    assert caught.value.exit_code == 9
    with pytest.raises(TypeError, match="ready="):
        await pm.spawn(*SLEEPER, ready=5)  # type: ignore[arg-type]
    assert pm.live == 0


async def test_a_stop_during_the_backoff_is_the_end(pm: ProcessManager) -> None:
    policy = nbprocs.RestartPolicy(initial_delay=600, jitter=False)
    async with aclosing(pm.events()) as events:  # type: ignore[type-var]
        process = await pm.spawn("false", name="crasher", restart=policy)
        async for event in events:
            if event.kind is EventKind.RESTARTING:
                break
    await process.stop()
    assert not manager_core(pm).supervisor.supervises(process.id)


async def test_a_supervised_process_is_restarted_as_it_was_though_the_history_is_full() -> None:
    async with ProcessManager(history=0) as pm:
        policy = nbprocs.RestartPolicy(initial_delay=0.001, jitter=False)
        with open(os.devnull) as null:
            first = await pm.spawn(*SLEEPER, name="web", restart=policy, ready=nbprocs.LogLine("ready"), inherit=(null.fileno(),))
            async with aclosing(pm.events()) as events:  # type: ignore[type-var]
                first.send_signal(signal.SIGKILL)
                async for event in events:
                    if event.kind is EventKind.READY:
                        break
            assert pm.get("web") is not first
            assert os.path.exists(f"/proc/{pm.get('web').pid}/fd/{null.fileno()}")


async def test_a_wrong_restart_policy_starts_nothing(pm: ProcessManager) -> None:
    with pytest.raises(TypeError, match="restart must be"):
        await pm.spawn(*SLEEPER, restart=5)  # type: ignore[arg-type]
    assert pm.processes() == ()


async def test_url_readiness() -> None:
    async with ProcessManager() as pm:
        code = """
        import http.server
        class H(http.server.BaseHTTPRequestHandler):
            def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'ok')
            def log_message(self, *a): pass
        s = http.server.HTTPServer(('127.0.0.1', 0), H); ready('port %d' % s.server_port); s.serve_forever()
        """
        process = await pm.spawn(sys.executable, *python_child(code)[3:])
        port = int((await until_line(process, "port")).split()[1])
        assert await nbprocs.Url(f"http://127.0.0.1:{port}/").check(process)
        await process.stop()
        assert not await nbprocs.Url(f"http://127.0.0.1:{port}/").check(process)
        with pytest.raises(ValueError, match="http"):
            await nbprocs.Url("file:///etc/passwd").check(process)


async def test_the_event_stream_tells_all_in_order(pm: ProcessManager) -> None:
    events: list[nbprocs.ProcessEvent] = []
    unsubscribe = pm.subscribe(events.append, output=True)
    process = await pm.spawn(*python_child("print('x')"), name="one")
    await process.wait()
    with pytest.raises(nbprocs.StartupFailed):
        await pm.spawn("no-such-program")
    kinds = [event.kind for event in events if event.name == "one"]
    assert kinds[:2] == [EventKind.STARTED, EventKind.READY]
    assert kinds[-1] == EventKind.EXITED
    assert sum(event.size for event in events if event.kind is EventKind.OUTPUT) == 2
    assert events[-1].kind is EventKind.FAILED and isinstance(events[-1].error, nbprocs.StartupFailed)
    assert next(e for e in events if e.kind is EventKind.EXITED).info.status is ProcessStatus.COMPLETED  # type: ignore[union-attr]
    unsubscribe()
    unsubscribe()
    before = len(events)
    await pm.run("true")
    assert len(events) == before


async def test_events_as_an_iterator_end_with_the_manager() -> None:
    pm = ProcessManager()
    kinds: list[EventKind] = []

    async def follow() -> None:
        async with aclosing(pm.events()) as stream:  # type: ignore[type-var]
            async for event in stream:
                kinds.append(event.kind)

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    await pm.run("true")
    await pm.aclose()
    await following
    assert kinds == [EventKind.STARTED, EventKind.READY, EventKind.EXITED, EventKind.CLOSED]
    assert [event async for event in pm.events()] == [], "nothing comes after its end"


@pytest.mark.parametrize("delay", [float("nan"), -1, "soon"])
async def test_a_retry_policy_of_ones_own_that_decides_nonsense_is_refused(pm: ProcessManager, delay: object) -> None:
    class Policy:
        def decide(self, error: nbprocs.ProcessError, *, attempt: int, elapsed: float) -> object:
            return delay

    with pytest.raises((TypeError, ValueError), match="what retry= decides must be 0 or more seconds or None"):
        await pm.run("false", retry=Policy())  # type: ignore[arg-type]


async def test_a_failing_callback_harms_nobody(pm: ProcessManager, caplog: pytest.LogCaptureFixture) -> None:
    heard = []
    pm.subscribe(lambda event: 1 / 0)
    pm.subscribe(lambda event: heard.append(event.kind))
    process = await pm.spawn("true")
    process.add_done_callback(lambda p: 1 / 0)
    process.add_done_callback(lambda p: heard.append(p.status))
    await process.wait()
    await asyncio.sleep(0)
    process.add_done_callback(lambda p: heard.append("late"))
    await asyncio.sleep(0)
    assert heard[-1] == "late" and ProcessStatus.COMPLETED in heard
    assert "ZeroDivisionError" in caplog.text


async def test_history_is_bounded_by_count_and_by_bytes() -> None:
    async with ProcessManager(history=3) as pm:
        removed: list[str] = []
        pm.subscribe(lambda event: removed.append(event.name) if event.kind is EventKind.REMOVED else None)
        for i in range(5):
            await pm.run("echo", str(i), name=f"n{i}")
        assert [info.name for info in pm.list()] == ["n2", "n3", "n4"]
        assert removed == ["n0", "n1"]
        with pytest.raises(nbprocs.UnknownProcess):
            pm.get("n0")
    async with ProcessManager(history_bytes=100_000) as pm:
        for _ in range(4):
            await pm.run(*python_child("sys.stdout.write('x' * 60_000)"))
        assert len(pm.list()) == 1


async def test_frame_and_displays_mask_secrets_and_escape_markup(pm: ProcessManager) -> None:
    await pm.run("true", "--password", "hunter2", "<script>alert(1)</script>", name="<b>x</b>")
    frame = pm.frame()
    assert frame.loc["<b>x</b>", "exit_code"] == 0
    assert str(frame["created_at"].dtype) == "datetime64[us, UTC]"
    bundle = pm._repr_mimebundle_()
    shown = repr(pm) + repr(pm.get("<b>x</b>")) + repr(pm.get("<b>x</b>").config) + str(bundle) + frame.to_string()
    shown += str(pm.get("<b>x</b>")._repr_mimebundle_()) + repr(pm.get("<b>x</b>").result)
    assert "hunter2" not in shown
    assert "<script>" not in bundle["text/html"] and "<b>x" not in bundle["text/html"]  # type: ignore[operator]


async def test_close_ends_everybody_and_starts_nobody() -> None:
    pm = ProcessManager(max_concurrent=3)
    processes = [await pm.spawn(*TREE) for _ in range(3)]
    kids = [int(word) for p in processes for word in (await until_line(p)).split()[1:]]
    waiting = asyncio.ensure_future(pm.spawn("true", wait=True))
    while not pm.waiting:
        await asyncio.sleep(0)
    await pm.aclose(grace=0.1)
    await pm.aclose()
    with pytest.raises(nbprocs.Closed):
        await waiting
    assert not any(map(alive, kids))
    assert all(p.status is ProcessStatus.TERMINATED for p in processes)
    with pytest.raises(nbprocs.Closed):
        await pm.spawn("true")


async def test_background_manager_from_this_loop_and_from_plain_threads() -> None:
    pm = ProcessManager(background=True)
    process = await pm.spawn(*python_child("for i in range(1000): ready(str(i))\nforever()"))
    async with aclosing(process.lines()) as lines:  # type: ignore[type-var]
        assert [await anext(lines) for _ in range(1000)] == [str(i) for i in range(1000)]
    results: list[nbprocs.ProcessResult] = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(pm.run("echo", "hi")))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert [r.stdout for r in results] == [b"hi\n"] * 3
    assert (await process.stop()).status is ProcessStatus.TERMINATED
    await pm.aclose()


async def test_an_interrupted_run_stops_its_process() -> None:
    async with ProcessManager() as pm:
        running = asyncio.ensure_future(pm.run(*SLEEPER, name="job"))
        while not pm.live:
            await asyncio.sleep(0)
        await until_line(pm.get("job"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await pm.wait("job")).reason == "stopped: interrupted"


async def test_an_interrupted_wait_or_stop_leaves_things_sound(pm: ProcessManager) -> None:
    process = await pm.spawn(*STUBBORN)
    await until_line(process)
    waiting = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert process.status is ProcessStatus.RUNNING
    stopping = asyncio.ensure_future(process.stop(grace=0.2))
    await asyncio.sleep(0.01)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert (await process.wait()).signal == signal.SIGKILL


async def test_stop_while_it_is_being_started_ends_it(pm: ProcessManager) -> None:
    """Once asked, it ends as soon as there is somebody to end; it had hung, and the process went on."""
    starting = asyncio.ensure_future(pm.spawn(*SLEEPER, name="web"))
    while not pm.list():
        await asyncio.sleep(0)
    assert pm.get("web").status is ProcessStatus.STARTING
    async with asyncio.timeout(60):
        assert (await pm.get("web").stop()).status is ProcessStatus.TERMINATED
        await starting
    assert pm.live == 0


@pytest.mark.parametrize("ask", [lambda process: process.stop(), lambda process: process.wait()], ids=["stop", "wait"])
async def test_who_asks_for_the_end_of_a_start_that_fails_is_told_so(pm: ProcessManager, ask: Any) -> None:
    starting = asyncio.ensure_future(pm.spawn("no-such-program-at-all", name="web"))
    while not pm.list() and not starting.done():  # where the loop starts it, it is over before anybody can ask
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        for process in pm.list():
            with pytest.raises(CommunicationError, match="was not started"):
                await ask(pm.get(process.id))
        with pytest.raises(StartupFailed):
            await starting
