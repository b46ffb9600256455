"""One conformance check for every make of child: posix, portable, and posix where the system has no pidfd."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from nbprocs.engine import child as children
from nbprocs.engine.child import Child, Exit, Spec, child_environment, engine_for
from nbprocs.engine.launcher import launcher_for
from nbprocs.model import Stream
from tests.children import python_child

ENGINES = ["posix", "portable"]


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.data = {Stream.STDOUT: b"", Stream.STDERR: b""}
        self.calls: list[str] = []
        self.done = asyncio.Event()
        self.more = asyncio.Condition()
        self.how: Exit | None = None

    def output(self, stream: Stream, data: bytes) -> None:
        self.calls.append("output")
        self.data[stream] += data

    def exited(self, how: Exit) -> None:
        self.calls.append("exited")
        self.how = how

    def drained(self) -> None:
        self.calls.append("drained")
        self.done.set()

    def ending(self, reason: str) -> None:
        self.calls.append(reason)

    def tree_ended(self, survivors: object) -> None:
        self.calls.append("tree ended")

    def changed(self, *, paused: bool) -> None:
        self.calls.append("paused" if paused else "resumed")


Start = Callable[..., "asyncio.Future[tuple[Child, Heard]]"]


@pytest.fixture(params=ENGINES)
async def begin(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    launcher = launcher_for(request.param, asyncio.get_running_loop())

    async def start_it(*argv: str, **options: object) -> tuple[Child, Heard]:
        heard = Heard()
        return await launcher.start(Spec(argv=argv, env=child_environment({}), **options), heard), heard  # type: ignore[arg-type]

    yield start_it  # type: ignore[misc]
    launcher.close()


async def test_output_exit_code_and_order_of_calls(begin: Start) -> None:
    child, heard = await begin(*python_child("sys.stdout.write('out'); sys.stderr.write('err'); sys.exit(7)"))
    async with asyncio.timeout(20):
        await heard.done.wait()
    assert heard.data == {Stream.STDOUT: b"out", Stream.STDERR: b"err"}
    assert heard.how is not None
    assert (heard.how.exit_code, heard.how.signal) == (7, None)
    assert heard.calls.count("exited") == heard.calls.count("drained") == 1
    assert heard.calls[-1] == "drained"
    assert child.exit is heard.how
    with pytest.raises(ProcessLookupError):
        child.send_signal(signal.SIGTERM)


async def test_a_signal_is_reported_as_one(begin: Start) -> None:
    child, heard = await begin(*python_child("forever()"))
    child.send_signal(signal.SIGKILL)
    async with asyncio.timeout(20):
        await heard.done.wait()
    assert heard.how is not None
    assert (heard.how.exit_code, heard.how.signal) == (None, signal.SIGKILL)


async def test_stdin_is_closed_unless_asked_for(begin: Start) -> None:
    _, heard = await begin("cat")
    async with asyncio.timeout(20):
        await heard.done.wait()
    assert heard.how is not None
    assert heard.how.exit_code == 0


async def test_writes_of_a_megabyte_arrive_whole_and_in_order(begin: Start) -> None:
    child, heard = await begin("cat", stdin=True)
    first, second = b"a" * 1_000_000, b"b" * 1_000_000
    await asyncio.gather(child.write(first), child.write(second))
    await child.close_stdin()
    await child.close_stdin()
    async with asyncio.timeout(20):
        await heard.done.wait()
    assert heard.data[Stream.STDOUT] == first + second
    with pytest.raises(BrokenPipeError):
        await child.write(b"late")


async def test_a_child_that_does_not_read_gives_broken_pipe_not_a_hang(begin: Start) -> None:
    child, heard = await begin(*python_child("os.close(0); ready(); time.sleep(0.05)"), stdin=True)
    with pytest.raises(BrokenPipeError):
        async with asyncio.timeout(20):
            await child.write(b"x" * 10_000_000)
    async with asyncio.timeout(20):
        await heard.done.wait()


async def test_exit_is_known_though_a_grandchild_holds_the_pipes(begin: Start) -> None:
    _, heard = await begin("sh", "-c", "sleep 30 & echo $!")
    async with asyncio.timeout(10):
        await heard.done.wait()
    grandchild = int(heard.data[Stream.STDOUT])
    os.kill(grandchild, signal.SIGKILL)
    assert heard.how is not None
    assert heard.how.exit_code == 0


async def test_own_session_and_default_signals_although_the_kernel_ignores_some(begin: Start) -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        _, heard = await begin("sh", "-c", "ps -o sid= -p $$; echo $$; grep SigIgn /proc/$$/status")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    async with asyncio.timeout(20):
        await heard.done.wait()
    session, pid, ignored = heard.data[Stream.STDOUT].split(b"\n")[:3]
    assert session.strip() == pid
    mask = int(ignored.split()[1], 16)
    assert mask & (1 << (signal.SIGINT - 1)) == 0
    assert mask & (1 << (signal.SIGHUP - 1)) == 0


@pytest.mark.parametrize("ignore", [False, True])
async def test_a_working_directory_and_relative_programs(begin: Start, tmp_path: object, ignore: bool) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignore else None
    script = os.path.join(str(tmp_path), "here.sh")
    with open(script, "w") as file:
        file.write("#!/bin/sh\npwd\n")
    os.chmod(script, 0o755)
    try:
        _, heard = await begin("./here.sh", cwd=str(tmp_path))
    finally:
        if ignore:
            signal.signal(signal.SIGINT, before)
    async with asyncio.timeout(20):
        await heard.done.wait()
    assert heard.data[Stream.STDOUT].decode().strip() == os.path.realpath(str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (("no-such-program-at-all",), FileNotFoundError),
        (("/tmp",), PermissionError),
        (("/etc/passwd",), PermissionError),
        (("ls", "a\0b"), ValueError),
    ],
)
async def test_a_start_that_fails_leaves_nothing(begin: Start, argv: tuple[str, ...], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await begin(*argv)


async def test_only_the_descriptors_asked_for_are_inherited(begin: Start) -> None:
    ours, theirs = socket.socketpair()
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        _, heard = await begin("sh", "-c", "ls /proc/self/fd | tr '\\n' ' '", inherit=(theirs.fileno(),))
        async with asyncio.timeout(20):
            await heard.done.wait()
        open_there = set(map(int, heard.data[Stream.STDOUT].split()))
        assert theirs.fileno() in open_there
        assert leak not in open_there
        assert not os.get_inheritable(theirs.fileno())
    finally:
        os.close(leak)
        ours.close()
        theirs.close()


async def test_a_pseudo_terminal_is_the_controlling_one() -> None:
    heard = Heard()
    launcher = launcher_for("posix", asyncio.get_running_loop())
    code = "ready(str(os.isatty(1))); os.close(os.open('/dev/tty', os.O_RDWR)); print(input()); sys.stdout.flush()"
    child = await launcher.start(Spec(argv=python_child(code), env=child_environment({}), pty=True, stdin=True), heard)
    await child.write(b"hello\n")
    async with asyncio.timeout(20):
        await heard.done.wait()
    assert b"True\r\n" in heard.data[Stream.STDOUT]
    assert heard.data[Stream.STDOUT].count(b"hello") == 2  # the terminal's echo, and the answer
    assert heard.how is not None
    assert heard.how.exit_code == 0
    launcher.close()


def test_which_make_a_loop_can_have() -> None:
    class Refuses(asyncio.SelectorEventLoop):
        """As the selector loop of Windows."""

        _make_subprocess_transport = asyncio.BaseEventLoop._make_subprocess_transport  # type: ignore[attr-defined]

    class Foreign(asyncio.AbstractEventLoop):
        """A loop of somebody who never heard of subprocesses."""

    loop = asyncio.SelectorEventLoop()
    assert engine_for(loop) == "posix"
    loop.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children.sys, "platform", "win32")
        refuses = Refuses()
        assert engine_for(refuses) is None
        refuses.close()
    assert engine_for(Foreign()) is None


def test_environment_is_a_diff_and_tokens_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBPROCS_TOKEN", "outer")
    monkeypatch.setenv("GOES", "1")
    monkeypatch.setenv("STAYS", "ü")
    env = {os.fsdecode(k): os.fsdecode(v) for k, v in child_environment({"GOES": None, "NEW": "2"}).items()}
    assert "GOES" not in env
    assert (env["STAYS"], env["NEW"], env["PYTHONUNBUFFERED"]) == ("ü", "2", "1")
    assert Spec(argv=("true",), env=env, token="inner").whole_token == "outer:inner"
    kept = subprocess.run([sys.executable, "-S", "-c", "import os; print(len(os.environ))"], env=env, capture_output=True, check=True)
    assert int(kept.stdout) >= len(env)
    monkeypatch.setenv("LATER", "1")
    assert os.fsencode("LATER") in child_environment({}), "what was made is not used again when os.environ has changed"
    assert child_environment({}) is child_environment({})
