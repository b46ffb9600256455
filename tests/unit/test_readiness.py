"""Readiness: whose port it is, what a check may do, prompts, and starts that need more than one try."""

import asyncio
import logging
import os
import signal
import socket
import sys

import pytest

from nbprocs import EventKind, LogLine, NotReady, Port, ProcessManager, RestartPolicy, RestartsExhausted, Url
from tests.children import SLEEPER, python_child

SERVER = """
import http.server
s = http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.BaseHTTPRequestHandler)
ready(); s.serve_forever()
"""


@pytest.fixture
def busy_port():
    """A port of this host that somebody who is not ours, this interpreter, listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("kind", ["port", "url"])
async def test_a_port_of_somebody_else_is_not_ready(busy_port, kind):
    """Run All twice: the second server dies of EADDRINUSE, and must not be taken for ready because the first one answers."""
    probe = Port(busy_port) if kind == "port" else Url(f"http://127.0.0.1:{busy_port}/")
    async with ProcessManager() as pm:
        with pytest.raises(
            NotReady, match=f"port {busy_port} was open before it started: .* \\(pid {os.getpid()}\\) listens there"
        ) as caught:
            await pm.spawn(*python_child(SERVER, str(busy_port)), ready=probe, ready_timeout=10)
        assert "Address already in use" in caught.value.last_output
        assert b"Address already in use" in caught.value.stderr
        assert pm.live == 0


async def test_a_port_that_was_open_before_and_is_its_own_is_ready(busy_port):
    """With SO_REUSEPORT two may listen on one port: then it is its own, too."""
    code = """
    import socket
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); ready(); forever()
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        async with ProcessManager() as pm:
            process = await pm.spawn(*python_child(code, str(port)), ready=Port(port), ready_timeout=10)
            assert process.ready


async def test_a_port_of_a_child_of_its_own_is_ready():
    port = free_port()
    async with ProcessManager() as pm:
        line = f"{sys.executable} -m http.server {port} --bind 127.0.0.1 & wait"
        process = await pm.spawn(line, shell=True, ready=Port(port))
        assert process.ready


HELPED = """
import socket
s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); s.set_inheritable(True)
if os.fork() == 0:
    os.setsid()
    if sys.argv[2] == 'daemon' and os.fork(): os._exit(0)
    if sys.argv[2] == 'exec': os.execve('/bin/sleep', ['idle', '1000'], {})
    forever()
if sys.argv[2] == 'daemon': os.wait()
ready(); forever()
"""


@pytest.mark.parametrize("way", ["session", "daemon", "exec"])
async def test_a_helper_that_a_crashed_server_left_does_not_keep_its_port(way):
    """It is ended before the next life starts, wherever it went: else each restart dies of EADDRINUSE, up to FATAL."""
    port, policy = free_port(), RestartPolicy(initial_delay=0, max_restarts=1)
    async with ProcessManager() as pm:
        first = await pm.spawn(*python_child(HELPED, str(port), way), name="web", ready=Port(port), restart=policy)
        events = pm.events()
        first.send_signal(signal.SIGKILL)
        async with asyncio.timeout(30):
            async for event in events:
                assert event.kind is not EventKind.FATAL, event.error
                if event.kind is EventKind.READY:
                    break
        assert pm.get("web") is not first
        await pm.restart("web")
        assert pm.get("web").ready
        await first.stop()


async def test_a_supervised_first_start_that_fails_is_tried_again(tmp_path):
    """A server that finds its database on the third try: spawn returns the life that became ready, supervised."""
    code = "p = sys.argv[1]; open(p, 'a').write('x'); sys.exit('no database') if os.path.getsize(p) < 3 else ready('up'); forever()"
    policy = RestartPolicy(initial_delay=0.01, jitter=False)
    async with ProcessManager() as pm:
        process = await pm.spawn(*python_child(code, str(tmp_path / "tries")), name="web", ready=LogLine("^up"), restart=policy)
        assert process.ready
        assert (tmp_path / "tries").read_text() == "xxx"
        assert pm.get("web") is process
        process.send_signal(9)
        await process.wait()
        async with asyncio.timeout(10):
            async for event in pm.events():
                if event.kind is EventKind.READY:
                    break
        assert pm.get("web") is not process


async def test_a_supervised_first_start_that_never_succeeds_says_so():
    policy = RestartPolicy(initial_delay=0.01, jitter=False, max_restarts=2)
    async with ProcessManager() as pm:
        with pytest.raises(RestartsExhausted, match="no database"):
            await pm.spawn(*python_child("sys.exit('no database')"), name="web", ready=LogLine("^up"), restart=policy)
        with pytest.raises(NotReady, match="within"):
            await pm.spawn(*SLEEPER, name="slow", ready=LogLine("^up"), ready_timeout=0.3, restart=policy)
        slow = RestartPolicy(initial_delay=600, jitter=False)
        with pytest.raises(NotReady, match="ended before"):
            await pm.spawn("false", name="late", ready=LogLine("^up"), ready_timeout=0.3, restart=slow)
        assert pm.live == 0


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("wrong", [SystemExit(3), KeyboardInterrupt(), ValueError("no"), asyncio.InvalidStateError()])
async def test_a_check_that_raises_is_an_error_of_the_start(background, wrong):
    """sys.exit() in the user's check ends neither the loop nor the kernel."""

    def check():
        raise wrong

    async with ProcessManager(background=background) as pm:
        with pytest.raises(NotReady, match=f"its readiness check raised {type(wrong).__name__}") as caught:
            await pm.spawn(*SLEEPER, ready=check)
        assert isinstance(caught.value.__cause__, type(wrong))
        assert pm.live == 0
        assert (await pm.run("echo", "on")).text == "on\n"


@pytest.mark.parametrize("background", [False, True])
async def test_callbacks_that_exit_harm_nobody(background, caplog):
    def leave(*_):
        raise SystemExit(3)

    told = []
    async with ProcessManager(background=background) as pm:
        pm.subscribe(leave)
        pm.subscribe(lambda event: told.append(event.kind.value))
        process = await pm.spawn("true")
        process.add_done_callback(leave)
        process.add_done_callback(told.append)
        await process.wait()
        process.add_done_callback(leave)
        assert (await pm.run("echo", "on")).text == "on\n"
    assert process in told
    assert told[-1] == "closed"
    assert any("failed" in record.message for record in caplog.records if record.levelno >= logging.ERROR)


async def test_a_task_that_exits_does_not_end_the_background_loop(caplog):
    class Leaving:
        def decide(self, *_args, **_named):
            raise SystemExit(3)

    async with ProcessManager(background=True) as pm:
        with pytest.raises(SystemExit):
            await pm.run("false", retry=Leaving())
        assert (await pm.run("echo", "on")).text == "on\n"
    assert "on the background loop" in caplog.text


async def test_a_prompt_without_a_newline_is_a_line():
    async with ProcessManager() as pm:
        process = await pm.spawn(*python_child("sys.stdout.write('login: '); sys.stdout.flush(); forever()"), ready=LogLine("^login: $"))
        assert process.ready


@pytest.mark.parametrize(
    ("kind", "words", "options"),
    [
        (Port, (0,), {}),
        (Port, ("80",), {}),
        (Port, (70_000,), {}),
        (Port, (True,), {}),
        (Port, (80,), {"host": ""}),
        (LogLine, ("(",), {}),
        (LogLine, (5,), {}),
        (LogLine, ("x",), {"stream": "stdin"}),
        (Url, ("ftp://x",), {}),
        (Url, ("http://",), {}),
        (Url, (5,), {}),
    ],
)
def test_probes_check_what_they_are_given(kind, words, options):
    with pytest.raises((TypeError, ValueError)):
        kind(*words, **options)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "5", None])
async def test_a_readiness_time_that_is_none_is_refused(seconds):
    async with ProcessManager() as pm:
        with pytest.raises((TypeError, ValueError), match="ready_timeout"):
            await pm.spawn("true", ready=Port(80), ready_timeout=seconds)
        assert pm.list() == ()
