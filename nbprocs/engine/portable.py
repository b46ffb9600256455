"""Children through asyncio's own subprocess protocol: Windows, uvloop, and any loop without ``add_reader``.

Slower than nbprocs.engine.posix, and with what the loop's makers chose for signals; the contract is the same, and one conformance
check holds both to it.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import psutil

from nbprocs.engine.child import DRAIN, TOKEN, Exit, Listener, Spec, Survivor
from nbprocs.engine.shim import shims
from nbprocs.engine.table import Identity, present, read_row
from nbprocs.engine.tree import Root, end_trees
from nbprocs.model import Stream

__all__ = ["start_portable"]

_INHERITED = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class _Protocol(asyncio.SubprocessProtocol):
    """asyncio calls it; it calls the listener. Output may come before ``connection_made`` returned to the starter."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.child: PortableChild | None = None
        self.early: list[tuple[str, tuple[Any, ...]]] = []
        self.can_write: asyncio.Event = asyncio.Event()
        self.can_write.set()

    def _tell(self, method: str, *args: object) -> None:
        if self.child is None:  # the starter does not know the child yet: its listener must not hear of it
            self.early.append((method, args))
        else:
            getattr(self.child, method)(*args)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._tell("_output", Stream.STDOUT if fd == 1 else Stream.STDERR, bytes(data))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        self.can_write.set()
        self._tell("_pipe_closed", fd)

    def process_exited(self) -> None:
        self.can_write.set()
        self._tell("_exited", time.monotonic())

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()


class PortableChild:
    """A child behind an asyncio transport: see nbprocs.engine.child.Child."""

    keeps_time = False

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol, *, spec: Spec, listener: Listener) -> None:
        self._loop = asyncio.get_running_loop()
        self._spec = spec
        self._reaped_at: float | None = None
        self._guarded = 0
        self._transport = transport
        self._protocol = protocol
        self._listener = listener
        self._open = {fd for fd in (1, 2) if transport.get_pipe_transport(fd) is not None}
        self._writing = asyncio.Lock()
        self._drain: asyncio.TimerHandle | None = None
        self._finished = False
        self.exit: Exit | None = None
        self.pid: int = transport.get_pid()
        row = read_row(self.pid)
        self.identity: Identity = Identity(self.pid, row.start if row else 0.0)

    def begin(self) -> None:
        """Pass on what came meanwhile, in order."""
        self._protocol.child = self
        for method, args in self._protocol.early:
            getattr(self, method)(*args)
        self._protocol.early.clear()

    def _output(self, stream: Stream, data: bytes) -> None:
        self._listener.output(stream, data)

    def _pipe_closed(self, fd: int) -> None:
        self._open.discard(fd)
        if not self._open and self.exit is not None:
            self._drained()

    def _exited(self, at: float) -> None:
        code = self._transport.get_returncode()
        self.exit = Exit(exit_code=None, signal=None, at=at) if code is None else Exit.from_code(code, at=at)
        self._reaped_at = present()
        if self._guarded:
            shims.release(self._guarded)
        self._listener.exited(self.exit)
        if self._open:
            self._drain = self._loop.call_later(DRAIN, self._drained)
        else:
            self._drained()

    def _drained(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._drain is not None:
            self._drain.cancel()
        self._transport.close()
        self._listener.drained()

    async def write(self, data: bytes) -> None:
        """Through the transport's buffer, which is waited for: a slow child holds its writer back."""
        async with self._writing:
            pipe = self._stdin()
            if pipe is None or pipe.is_closing() or self.exit is not None:
                raise BrokenPipeError
            pipe.write(data)
            await self._protocol.can_write.wait()
            if pipe.is_closing() or self.exit is not None:
                raise BrokenPipeError

    async def close_stdin(self) -> None:
        """After what is being written."""
        async with self._writing:
            pipe = self._stdin()
            if pipe is not None:
                pipe.close()

    def _stdin(self) -> asyncio.WriteTransport | None:
        return cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))

    def send_signal(self, number: int) -> None:
        """While it has not been reaped."""
        if self.exit is not None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        self._transport.send_signal(number)

    def interrupt(self) -> None:
        """To its process group."""
        self._to_group(signal.SIGINT)

    def pause(self) -> None:
        """Its process group; on Windows the process alone."""
        if hasattr(signal, "SIGSTOP"):
            self._to_group(signal.SIGSTOP)
        else:
            psutil.Process(self.pid).suspend()

    def resume(self) -> None:
        """As pause."""
        if hasattr(signal, "SIGCONT"):
            self._to_group(signal.SIGCONT)
        else:
            psutil.Process(self.pid).resume()

    def _to_group(self, number: int) -> None:
        if self.exit is not None or not hasattr(os, "killpg"):
            self.send_signal(number)
        else:
            os.killpg(self.pid, number)  # until the leader is reaped, the group's number can't be reused

    @property
    def root(self) -> Root:
        """Its tree, for nbprocs.engine.tree."""
        return Root(token=self._spec.token, since=self.identity.start, identity=self.identity, reaped_at=self._reaped_at)

    async def end_tree(self, *, grace: float) -> list[Survivor]:
        """On the loop's clock: a cell that computes holds it up."""
        return await end_trees([self.root], grace=grace, number=self._spec.stop_signal)

    def guard(self) -> None:
        """Have the shim end it with the kernel. Raises OSError."""
        if self.exit is None:
            self._guarded = shims.number()
            shims.guard(self._guarded, self.pid, self.identity.start, self._spec.token)

    def rename(self, name: str) -> None:
        """No shim tells of it."""

    def resize(self, rows: int, columns: int) -> None:
        """There is no pseudo-terminal here."""


@contextlib.contextmanager
def _signals_not_ignored() -> Iterator[None]:
    """For a moment, no-op handlers in place of ignored signals: exec makes the default of a handler, but inherits what is ignored.

    Only the main thread may do this; a loop in another thread hands its ignored signals on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = [number for number in _INHERITED if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _with_token(spec: Spec) -> dict[Any, Any]:
    env: dict[Any, Any] = dict(spec.env)
    if spec.token:
        as_bytes = any(isinstance(name, bytes) for name in env)
        env[TOKEN.encode() if as_bytes else TOKEN] = spec.whole_token.encode() if as_bytes else spec.whole_token
    return env


async def start_portable(spec: Spec, *, listener: Listener) -> PortableChild:
    """Start a process by the loop's own means. A pseudo-terminal is not to be had here: ValueError."""
    if spec.pty:
        msg = "this event loop can't give a process a pseudo-terminal; use background=True, or pty=False"
        raise ValueError(msg)
    spec.refuse("nice", "rlimits", "stop_scope", why="this event loop starts processes without it")
    options: dict[str, Any] = {"cwd": spec.cwd, "env": _with_token(spec)}
    if spec.executable is not None:
        options["executable"] = spec.executable
    if sys.platform == "win32":
        spec.refuse("umask", "user", "group", "extra_groups", "inherit", why="Windows has nothing of the kind")
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options |= {"start_new_session": True, "pass_fds": spec.inherit}
        asked = {"user": spec.user, "group": spec.group, "extra_groups": spec.extra_groups, "umask": spec.umask}
        options |= {name: value for name, value in asked.items() if value is not None}  # uvloop knows none of them
    stdin = subprocess.DEVNULL if spec.stdin is False else subprocess.PIPE if spec.pipes_stdin else spec.stdin
    stdout = subprocess.PIPE if spec.stdout is None else spec.stdout
    stderr = subprocess.STDOUT if spec.merge_stderr else subprocess.PIPE if spec.stderr is None else spec.stderr
    loop = asyncio.get_running_loop()
    with _signals_not_ignored():
        transport, protocol = await loop.subprocess_exec(
            lambda: _Protocol(listener), *spec.argv, stdin=stdin, stdout=stdout, stderr=stderr, **options
        )
    child = PortableChild(transport, protocol, spec=spec, listener=listener)
    loop.call_soon(child.begin)  # after the starter has taken the child in: its exit must not be heard before its start
    return child
