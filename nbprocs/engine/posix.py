"""Children on Linux and macOS: started, signalled, timed and reaped by the shim; what they write is read here.

::

    kernel: pipes, PTY master ──writing ends──► shim ──► child
        ▲ output, by the poller                   │
        └───────── STARTED, EXITED, ENDED ◄───────┘

Two events end a child: EXITED from the shim, and the end of file of its pipes. The second may come much later, or never, while somebody
else
holds them: after the exit they are emptied, and closed a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nbprocs.engine.child import DRAIN, Exit, Listener, Spec
from nbprocs.engine.client import ShimClient
from nbprocs.engine.options import folder_of, options_of
from nbprocs.engine.poller import nursery_of, poller_of
from nbprocs.engine.shim import shims
from nbprocs.engine.shimlib import wire
from nbprocs.engine.table import Identity, present, read_row
from nbprocs.engine.tree import Root
from nbprocs.model import Stream

__all__ = ["PosixChild"]

_READ = 64 << 10  # bytes at once: below malloc's mmap threshold, so the buffer is reused
_PIPE = 256 << 10  # a wider pipe lets a child go on while a cell holds the loop for a moment
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)
_ROWS, _COLUMNS = 24, 80


class PosixChild:
    """A child with pipes of our own: see nbprocs.engine.child.Child."""

    keeps_time = True

    def __init__(self, spec: Spec, *, manager: int, listener: Listener) -> None:
        """Ask the shim to start it; ``started`` waits for the answer. Raises OSError or ValueError, and then nothing is left."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._spec = spec
        self._readers: dict[int, Stream] = {}
        self._stdin: int | None = None
        self._poller = poller_of(self._loop)
        self._writing: asyncio.Lock | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._last_byte = b"\n"
        self._identity: Identity | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._born: asyncio.Future[None] = self._loop.create_future()
        self._taken_in = self._watched = False
        self._report: wire.Exited | None = None
        self._reaped_at: float | None = None
        self._began = time.monotonic()
        self.exit: Exit | None = None
        self.pid: int = 0
        self.number: int = shims.number()
        self.manager = manager
        self.tag: int = wire.tag_of_child(shims.base, manager, self.number)
        self._since = present()
        theirs: list[int] = []
        try:
            order = self._order(spec, theirs)
            self._client = shims.for_start(self._loop)
            self._client.start(self, order, spec.env, (*theirs, *spec.inherit))
            for fd in self._readers:  # while the shim works
                os.set_blocking(fd, False)
        except BaseException:
            self._let_go_of_pipes()
            raise
        finally:
            for fd in theirs:
                if fd not in self._borrowed:
                    os.close(fd)

    # -- start

    def _order(self, spec: Spec, theirs: list[int]) -> Any:
        """What the shim is told, as a function of the environment's id. The descriptors for it go into ``theirs``."""
        self._borrowed = {fd for fd in (spec.stdin, spec.stdout, spec.stderr) if type(fd) is int}
        places = self._pty_place(spec, theirs) if spec.pty else self._pipe_places(spec, theirs)
        argv = tuple(map(os.fsencode, spec.argv))
        executable = None if spec.executable is None else os.fsencode(spec.executable)
        cwd = folder_of(spec)
        options = options_of(spec)
        stop = (int(spec.stop_signal), spec.stop_scope == "leader", float(spec.grace), spec.timeout)
        label = (spec.label.id, spec.label.name, spec.label.command)
        token = spec.whole_token.encode()

        def order(environment: int) -> wire.StartOrder:
            return wire.StartOrder(
                self.number, self.tag, argv, executable, environment, token, cwd, places, spec.inherit, spec.pty, options, stop, label
            )

        return order

    def _pipe_places(self, spec: Spec, theirs: list[int]) -> tuple[int, int, int]:
        """Which of the descriptors sent is stdin, stdout, stderr."""
        inp = -1
        if spec.stdin is not False:
            if spec.pipes_stdin:
                other, self._stdin = os.pipe()
                os.set_blocking(self._stdin, False)
            else:
                other = int(spec.stdin)
            theirs.append(other)
            inp = len(theirs) - 1
        theirs.append(self._output_pipe(Stream.STDOUT) if spec.stdout is None else spec.stdout)
        out = err = len(theirs) - 1
        if not spec.merge_stderr:
            theirs.append(self._output_pipe(Stream.STDERR) if spec.stderr is None else spec.stderr)
            err = len(theirs) - 1
        return inp, out, err

    def _output_pipe(self, stream: Stream) -> int:
        ours, other = os.pipe()
        self._readers[ours] = stream
        return other

    def _widen_pipes(self) -> None:
        if _F_SETPIPE_SZ is not None and not self._spec.pty:
            for fd in self._readers:
                with contextlib.suppress(OSError):  # over the user's quota: the default size does as well
                    fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE)

    def _pty_place(self, spec: Spec, theirs: list[int]) -> tuple[int, int, int]:
        spec.refuse("stdout", "stderr", "merge_stderr", why="a pseudo-terminal is its stdout and stderr")
        if type(spec.stdin) is int:
            msg = f"stdin={spec.stdin}: with a pseudo-terminal stdin is the terminal or nothing"
            raise ValueError(msg)
        master, slave = os.openpty()
        theirs.append(slave)
        self._readers[master] = Stream.STDOUT
        self._set_size(master, _ROWS, _COLUMNS)
        if spec.stdin:
            self._stdin = os.dup(master)  # so that the end of input and the end of output are closed apart
        return (0 if spec.stdin else -1), 0, 0

    async def started(self) -> None:
        """Wait until it runs; raises what the system said. A start that nobody waits for any more is undone."""
        try:
            await self._born
        except asyncio.CancelledError:
            self.abandon()
            raise
        except BaseException:
            self._let_go_of_pipes()
            raise
        if self._report is None:  # most short ones have ended when we hear of them
            self._widen_pipes()

    def abandon(self) -> None:
        """Nobody will ever know it: it goes, and all that was opened for it."""
        self._listener = _Nobody()
        self._born.cancel()
        self._let_go_of_pipes()
        if self._report is None:
            self._client.say(wire.STOP, *self.unwanted())

    def begin(self) -> None:
        """See Child."""
        if self._taken_in:
            return
        self._taken_in = True
        if self._report is not None:
            self._exited(self._report)
        elif self._readers:
            nursery_of(self._loop).add(self.watch_output)

    def watch_output(self) -> None:
        """Read what it writes from now on; what has come by now is in the pipes."""
        if self.exit is None:
            for fd in tuple(self._readers):
                self._poller.add(fd, self._readable)
            self._watched = True

    def _let_go_of_pipes(self) -> None:
        for fd in self._readers:
            self._poller.close(fd)
        self._readers.clear()
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    # -- what the shim tells (engine.client.ShimChild)

    def born(self, pid: int) -> None:
        """It runs."""
        self.pid = pid
        _set_once(self._born)

    def refused(self, error: OSError | ValueError) -> None:
        """It could not be started."""
        if not self._born.done():
            self._born.set_exception(error)

    def died(self, report: wire.Exited) -> None:
        """It has ended and was reaped."""
        self._report = report
        self._reaped_at = present()
        if self._taken_in:
            self._exited(report)

    def ending(self, reason: str) -> None:
        """Its time is up, or somebody else asked for its end."""
        self._listener.ending(reason)

    def tree_ended(self, survivors: tuple[wire.Survivor, ...]) -> None:
        """That is over."""
        self._listener.tree_ended(survivors)

    def changed(self, *, paused: bool) -> None:
        """Somebody else had it paused or resumed."""
        self._listener.changed(paused=paused)

    def taken_over(self) -> tuple[Any, ...] | None:
        """For another shim, behind the number: pid, start, tag, argv, token, stop, seconds left, label."""
        if self._report is not None:
            return None
        spec = self._spec
        left = None if spec.timeout is None else max(0.0, self._began + spec.timeout - time.monotonic())
        stop = (int(spec.stop_signal), spec.stop_scope == "leader", float(spec.grace), spec.timeout)
        label = (spec.label.id, spec.label.name, spec.label.command)
        start = 0.0 if self._identity is None else self._identity.start
        return self.pid, start, self.tag, tuple(map(os.fsencode, spec.argv)), spec.token, stop, left, label

    def moved(self, client: ShimClient) -> None:
        """Another shim looks after it."""
        self._client = client

    def unwanted(self) -> wire.StopOrder:
        """The order that undoes its start, whether it came about or not."""
        return self._stop_order(0.0)

    def _stop_order(self, grace: float) -> wire.StopOrder:
        spec = self._spec
        return wire.StopOrder(
            shims.number(),
            self.number,
            self.manager,
            int(spec.stop_signal),
            spec.stop_scope == "leader",
            grace,
            self.pid,
            spec.token,
            False,
        )

    def _exited(self, report: wire.Exited) -> None:
        if self.exit is not None:
            return
        self.exit = Exit.from_report(report)
        self._close_stdin()
        self._listener.exited(self.exit)
        self._finish_reading()

    # -- who it is

    @property
    def identity(self) -> Identity:
        """Read when it is first asked for; most children are never asked. Of one that is gone, about when it started."""
        if self._identity is None:
            row = read_row(self.pid) if self._report is None else None
            self._identity = Identity(self.pid, row.start if row else self._since)
        return self._identity

    @property
    def root(self) -> Root:
        """Its tree as the process table shows it, for nbprocs.engine.tree."""
        return Root(token=self._spec.token, since=self.identity.start, identity=self.identity, reaped_at=self._reaped_at)

    # -- output

    def _readable(self, fd: int) -> bool:
        """Read once, so that others get their turn; True if there may be more."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last holder of the pseudo-terminal has gone
            data = b""
        if not data:
            self._close_reader(fd)
            return False
        self._listener.output(self._readers[fd], data)
        return len(data) == _READ or self._spec.pty  # a terminal gives 4 KiB at most

    def _empty(self, fd: int) -> None:
        """Read all that a pipe can hold: what is written meanwhile is somebody else's."""
        for _ in range(_PIPE // (4096 if self._spec.pty else _READ) + 1):
            if not self._readable(fd):
                return

    def _close_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._poller.close(fd)
        if not self._readers and self.exit is not None:
            self._drained()

    def _finish_reading(self) -> None:
        if not self._readers:
            self._drained()
            return
        for fd in list(self._readers):  # what the process itself wrote is in the pipes by now
            self._empty(fd)
        if self._readers:
            self._drain = self._loop.call_later(DRAIN, self._late)
            for fd in () if self._watched else tuple(self._readers):
                self._poller.add(fd, self._readable)

    def _late(self) -> None:
        """Somebody else holds its pipes still. The loop may have been blocked until now: what has come is read before they are closed."""
        self._drain = None
        for fd in list(self._readers):
            self._empty(fd)
        if self._readers:
            for fd in list(self._readers):
                self._poller.close(fd)
            self._readers.clear()
            self._drained()

    def _drained(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        self._listener.drained()

    # -- input

    async def write(self, data: bytes) -> None:
        """Hand all of the data to the system, in order with other writers."""
        async with self._in_order():
            view = memoryview(data)
            while view:
                if self._stdin is None:
                    raise BrokenPipeError
                try:
                    sent = os.write(self._stdin, view)
                except BlockingIOError:
                    await self._writable(self._stdin)
                except OSError as error:
                    if error.errno == errno.EIO:  # a pseudo-terminal that nobody holds any more
                        raise BrokenPipeError from error
                    raise
                else:
                    self._last_byte = bytes(view[sent - 1 : sent])
                    view = view[sent:]

    def _in_order(self) -> asyncio.Lock:
        self._writing = self._writing or asyncio.Lock()
        return self._writing

    async def _writable(self, fd: int) -> None:
        ready = self._write_waiter = self._loop.create_future()
        self._loop.add_writer(fd, _set_once, ready)
        try:
            await ready
        finally:
            if self._stdin is not None:
                self._loop.remove_writer(fd)

    async def close_stdin(self) -> None:
        """After what is being written. A pseudo-terminal is sent its end-of-file character, if it reads lines."""
        async with self._in_order():
            if self._spec.pty and self._stdin is not None:
                with contextlib.suppress(OSError, termios.error):
                    os.write(self._stdin, self._end_of_file(self._stdin))
            self._close_stdin()

    def _end_of_file(self, fd: int) -> bytes:
        """In the middle of a line one such character only hands over what was typed: it takes a second one.

        In raw mode it would be data.
        """
        settings = termios.tcgetattr(fd)
        if not settings[3] & termios.ICANON:
            return b""
        end: bytes = settings[6][termios.VEOF]
        return end if self._last_byte in (b"\n", end) else end * 2

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            fd, self._stdin = self._stdin, None
            self._loop.remove_writer(fd)
            os.close(fd)
            if self._write_waiter is not None:
                _set_once(self._write_waiter)

    # -- signals and ends

    def send_signal(self, number: int) -> None:
        """To the process itself. ProcessLookupError once its end is known."""
        self._order_while_alive(wire.SIGNAL, int(number))

    def interrupt(self) -> None:
        """SIGINT as a terminal's Ctrl-C gives it: to its foreground group, or, without a terminal, to the whole tree."""
        self._order_while_alive(wire.INTERRUPT)

    def pause(self) -> None:
        """Stop the whole tree where it stands."""
        self._order_while_alive(wire.PAUSE)

    def resume(self) -> None:
        """Let a stopped tree go on."""
        self._order_while_alive(wire.RESUME)

    def rename(self, name: str) -> None:
        """What the shim tells of it, and another shim after it."""
        self._spec = replace(self._spec, label=replace(self._spec.label, name=name))
        self._order_while_alive(wire.RENAME, name)

    def _order_while_alive(self, operation: int, *fields: int | str) -> None:
        if self._report is not None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        self._client.say(operation, self.number, *fields)

    async def end_tree(self, *, grace: float) -> tuple[wire.Survivor, ...]:
        """Have its whole tree ended, also after its own end; returns who survived SIGKILL. At most ``grace`` + 5 seconds."""
        client = self._client
        if client.closed:
            client = shims.in_place_of(client.shim, self._loop)  # another shim of this kernel knows nothing of what it left
        return await client.end(self._stop_order(grace))

    def resize(self, rows: int, columns: int) -> None:
        """The window size of the pseudo-terminal."""
        if self._spec.pty:
            for fd in self._readers:
                self._set_size(fd, rows, columns)

    @staticmethod
    def _set_size(fd: int, rows: int, columns: int) -> None:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class _Nobody:
    """The listener of a child that was abandoned."""

    def output(self, stream: Stream, data: bytes) -> None:
        """Nobody reads it."""

    def exited(self, how: Exit) -> None:
        """Nobody waits for it."""

    def drained(self) -> None:
        """As above."""

    def ending(self, reason: str) -> None:
        """As above."""

    def tree_ended(self, survivors: Sequence[wire.Survivor]) -> None:
        """As above."""

    def changed(self, *, paused: bool) -> None:
        """As above."""


def _set_once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
