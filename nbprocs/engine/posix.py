"""Children on Linux and macOS: posix_spawn or Popen, add_reader, and a pidfd (or a waiting thread) for the exit.

Two ways to start:

* ``posix_spawn`` is the usual one: 0.1 ms cheaper than Popen, and it resets *every* signal, from any thread. An idle ipykernel ignores
  SIGINT (and nohup SIGHUP); a child would inherit that and could never be interrupted. It also opens a pseudo-terminal as the
  new session's controlling one. What it lacks, closing other descriptors, is made of close actions (``_Leaks``).
* ``Popen`` where a working directory is asked for, which posix_spawn does not have in Python. Popen resets only SIGPIPE, SIGXFZ and SIGXFSZ
  (``preexec_fn`` would cost a fork of the whole kernel); so where signals are ignored it is posix_spawn again, of a shell that changes
  the directory and execs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator

from nbprocs.engine.child import DRAIN, Exit, Listener, Spec
from nbprocs.engine.poller import poller_of
from nbprocs.engine.table import Identity, present, read_row
from nbprocs.model import Stream

__all__ = ["PosixChild", "pidfd_open"]

_READ = 64 << 10  # bytes at once: below malloc's mmap threshold, so the buffer is reused
_RARELY = 100  # times as long as a look for leaking descriptors takes, until the next one
_FRESH = 0.1  # seconds: a thousand starts of one program look along PATH once in a while
_PIPE = 256 << 10  # a wider pipe lets a child go on while a cell holds the loop for a moment
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)
_RSS_UNIT = 1 if os.uname().sysname == "Darwin" else 1024
_IGNORABLE = tuple(s for s in signal.valid_signals() if s not in {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ})
_RESET = [*_IGNORABLE, signal.SIGPIPE, signal.SIGXFSZ]
_LACKS = "this way to start a process does not have it"
_CD = 'cd -- "$1" && shift && exec "$@"'  # posix_spawn has no working directory in Python


def pidfd_open(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has none (macOS, Linux before 5.3)."""
    opener = getattr(os, "pidfd_open", None)
    if opener is None:
        return None
    try:
        return int(opener(pid))
    except OSError:
        return None


def _ignored() -> bool:
    return any(signal.getsignal(s) is signal.SIG_IGN for s in _IGNORABLE)


class PosixChild:
    """A child with pipes of our own: see nbprocs.engine.child.Child."""

    def __init__(self, spec: Spec, *, listener: Listener) -> None:
        """Start it. On return it runs; on an error no descriptor and no process is left."""
        spec.refuse(
            "executable", "stdout", "stderr", "merge_stderr", "umask", "nice", "rlimits", "user", "group", "extra_groups", why=_LACKS
        )
        spec.refuse("timeout", "stop_signal", "stop_scope", why=_LACKS)
        if not isinstance(spec.stdin, bool):
            msg = f"stdin={spec.stdin}: {_LACKS}"
            raise ValueError(msg)  # noqa: TRY004 - a descriptor is the right type, only not to be had here
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._readers: dict[int, Stream] = {}
        self._stdin: int | None = None
        self._poller = poller_of(self._loop)
        self._writing: asyncio.Lock | None = None
        self._identity: Identity | None = None
        self._pidfd: int | None = None
        self._pty = spec.pty
        self._drain: asyncio.TimerHandle | None = None
        self.exit: Exit | None = None
        self.pid = 0
        self._since = present()
        try:
            self.pid = self._start_pty(spec) if spec.pty else self._start_pipes(spec)
            self._watch_exit()
            for fd in self._readers:
                self._poller.add(fd, self._readable)
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        """A child that could not be taken in: nobody will ever know it, so it goes, and all that was opened for it."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        for fd in (self._pidfd, *self._readers):
            if fd is not None:
                self._poller.close(fd)
        if self._stdin is not None:
            os.close(self._stdin)

    @property
    def identity(self) -> Identity:
        """Read when it is first asked for: it is there, as a zombie at least, until we reap it; most children are never asked."""
        if self._identity is None:
            row = read_row(self.pid) if self.exit is None else None
            self._identity = Identity(self.pid, row.start if row else self._since)
        return self._identity

    @property
    def about(self) -> Identity:
        """The identity to within a second, without looking: enough to know it by until it is reaped."""
        return self._identity or Identity(self.pid, self._since)

    # -- start

    def _start_pipes(self, spec: Spec) -> int:
        theirs: list[int] = []
        try:
            out = self._output_pipe(Stream.STDOUT, theirs)
            err = self._output_pipe(Stream.STDERR, theirs)
            inp = subprocess.DEVNULL
            if spec.stdin:
                inp, self._stdin = os.pipe()
                theirs.append(inp)
                os.set_blocking(self._stdin, False)
            if spec.cwd is None or _ignored():
                return _posix_spawn(spec, _dup_actions(inp, out, err))
            process = subprocess.Popen(
                spec.argv,
                stdin=inp,
                stdout=out,
                stderr=err,
                cwd=spec.cwd,
                env=spec.env,
                start_new_session=True,
                pass_fds=spec.inherit,
            )
            process.returncode = 0  # we reap it ourselves, with its resource usage: Popen must neither wait for it nor complain
            return process.pid
        finally:
            for fd in theirs:
                os.close(fd)

    def _output_pipe(self, stream: Stream, theirs: list[int]) -> int:
        ours, other = os.pipe()
        self._readers[ours] = stream
        theirs.append(other)
        os.set_blocking(ours, False)
        if _F_SETPIPE_SZ is not None:
            with contextlib.suppress(OSError):  # over the user's quota: the default size does as well
                fcntl.fcntl(ours, _F_SETPIPE_SZ, _PIPE)
        return other

    def _start_pty(self, spec: Spec) -> int:
        master, slave = os.openpty()
        try:
            self._readers[master] = Stream.STDOUT
            os.set_blocking(master, False)
            self.resize(24, 80)
            if spec.stdin:
                self._stdin = os.dup(master)  # so that the end of input and the end of output are closed apart
            name = os.ttyname(slave)
            # The first terminal that a session leader opens becomes its controlling one.
            actions: list[tuple[object, ...]] = [
                (os.POSIX_SPAWN_OPEN, 1, name, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, 1, 0) if spec.stdin else (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            ]
            return _posix_spawn(spec, actions)
        finally:
            os.close(slave)

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
        return len(data) == _READ

    def _empty(self, fd: int) -> None:
        """Read all that a pipe can hold: what is written meanwhile is somebody else's."""
        for _ in range(_PIPE // _READ + 1):
            if not self._readable(fd):
                return

    def _close_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._poller.close(fd)
        if not self._readers and self.exit is not None:
            self._drained()

    def _drained(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        for fd in list(self._readers):  # still held by somebody who is not our process
            self._poller.close(fd)
        self._readers.clear()
        self._listener.drained()

    # -- exit

    def _watch_exit(self) -> None:
        self._pidfd = pidfd_open(self.pid)
        if self._pidfd is not None:
            self._poller.add(self._pidfd, self._reap)
        else:
            threading.Thread(target=self._wait_in_thread, name=f"nbprocs-wait-{self.pid}", daemon=True).start()

    def _wait_in_thread(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it everybody who wanted to know
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self, _: int = -1) -> None:
        if self.exit is not None:
            return
        at = time.monotonic()
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else in this kernel reaped it: how it ended is not to be known
            self.exit = Exit(exit_code=None, signal=None, at=at)
        else:
            if pid == 0:
                return
            self.exit = Exit.from_code(
                os.waitstatus_to_exitcode(status), at=at, peak_rss=_own_peak(usage.ru_maxrss), cpu_time=usage.ru_utime + usage.ru_stime
            )
        if self._pidfd is not None:
            self._poller.close(self._pidfd)
            self._pidfd = None
        self._close_stdin()
        self._listener.exited(self.exit)
        self._finish_reading()

    def _finish_reading(self) -> None:
        if not self._readers:
            self._drained()
            return
        for fd in list(self._readers):  # what the process itself wrote is in the pipes by now
            self._empty(fd)
        if self._readers:
            self._drain = self._loop.call_later(DRAIN, self._drained)

    # -- input

    async def write(self, data: bytes) -> None:
        """Hand all of the data to the system, in order with other writers."""
        async with self._in_order():
            view = memoryview(data)
            while view:
                if self._stdin is None:
                    raise BrokenPipeError
                try:
                    view = view[os.write(self._stdin, view) :]
                except BlockingIOError:
                    await self._writable(self._stdin)

    def _in_order(self) -> asyncio.Lock:
        self._writing = self._writing or asyncio.Lock()
        return self._writing

    async def _writable(self, fd: int) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(fd, _set_once, ready)
        self._write_waiter = ready
        try:
            await ready
        finally:
            if self._stdin is not None:
                self._loop.remove_writer(fd)

    async def close_stdin(self) -> None:
        """After what is being written. On a pseudo-terminal it sends the end-of-file character first."""
        async with self._in_order():
            if self._pty and self._stdin is not None:
                with contextlib.suppress(OSError):
                    os.write(self._stdin, b"\x04")
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            fd, self._stdin = self._stdin, None
            self._loop.remove_writer(fd)
            os.close(fd)
            waiter = getattr(self, "_write_waiter", None)
            if waiter is not None:
                _set_once(waiter)

    # -- signals

    def send_signal(self, number: int) -> None:
        """Until it is reaped the pid is ours, so no check is needed; afterwards it may be anybody's."""
        if self.exit is not None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        os.kill(self.pid, number)

    def resize(self, rows: int, columns: int) -> None:
        """The window size of the pseudo-terminal."""
        if self._pty:
            for fd in self._readers:
                fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _own_peak(peak: int) -> int | None:
    """The child's peak memory in bytes; None if it can't be told from ours.

    Between vfork and exec a child has our memory, and Linux keeps that in its maximum: what is not above our own peak may be ours.
    """
    return peak * _RSS_UNIT if peak > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else None


def _set_once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _dup_actions(inp: int, out: int, err: int) -> list[tuple[object, ...]]:
    # dup2 clears close-on-exec. Ours are never 0-2 unless the kernel closed those; then moving them apart would be needed.
    first: tuple[object, ...] = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0) if inp == subprocess.DEVNULL else (os.POSIX_SPAWN_DUP2, inp, 0)
    )
    return [first, (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]


def _posix_spawn(spec: Spec, actions: list[tuple[object, ...]]) -> int:
    program, argv = _command_in(spec)
    actions = [*actions, *((os.POSIX_SPAWN_CLOSE, fd) for fd in _leaks.look() if fd not in spec.inherit)]
    inherited = {fd: os.get_inheritable(fd) for fd in spec.inherit}
    try:
        for fd in inherited:
            os.set_inheritable(fd, True)
        return os.posix_spawn(program, argv, spec.env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_RESET)
    finally:
        for fd, before in inherited.items():
            os.set_inheritable(fd, before)


def _command_in(spec: Spec) -> tuple[str, tuple[str, ...]]:
    """The program's path and its argument vector, behind a shell that changes the directory where one is asked for."""
    argv = tuple(map(os.fsdecode, spec.argv))
    cwd = None if spec.cwd is None else os.fsdecode(spec.cwd)
    program = _find(argv[0], cwd, spec.path)
    if cwd is None:
        return program, argv
    if not os.path.isdir(cwd):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), cwd)
    return "/bin/sh", ("sh", "-c", _CD, "sh", cwd, os.path.abspath(os.path.join(cwd, program)), *argv[1:])


_found: dict[tuple[str, str | None, str | None], tuple[str, float]] = {}  # the last program found, and until when that counts


def _find(command: str, cwd: str | None, path: str | None) -> str:
    """The program that exec would find, as Popen would look for it: from the new working directory, along the child's PATH."""
    if "/" in command:
        full = os.path.join(cwd or "", command)
        if os.path.isdir(full):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), command)
        os.stat(full)  # says itself that it is not there
        if not os.access(full, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), command)
        return command
    known = _found.get((command, cwd, path))
    if known is not None and known[1] > time.monotonic():
        return known[0]
    folders = [os.path.join(cwd, folder) if cwd else folder or "." for folder in (path or os.defpath).split(os.pathsep)]
    for folder in folders:
        full = f"{folder}/{command}"
        if os.access(full, os.X_OK) and not os.path.isdir(full):
            _found.clear()
            _found[command, cwd, path] = full, time.monotonic() + _FRESH
            return full
    number = errno.EACCES if any(os.path.isfile(f"{folder}/{command}") for folder in folders) else errno.ENOENT
    raise OSError(number, os.strerror(number), command)


class _Leaks:
    """Descriptors above 2 that exec would hand on although nobody asked for it.

    Python makes none; C libraries do. Looking costs 17 us with thirty descriptors and a millisecond with three thousand, so what was
    found is used again for a hundred times as long as it took to find: a hundredth of the time goes into it (a twentieth cost 1000
    starts in a row 7 % of their CPU), and what is opened between two looks is closed for the children of a moment later. A close action
    for a number that is free by then does no harm.
    """

    def __init__(self) -> None:
        self._found: tuple[int, ...] = ()
        self._until = 0.0

    def look(self) -> tuple[int, ...]:
        now = time.monotonic()
        if now >= self._until:
            self._found = tuple(self._scan())
            took = time.monotonic() - now
            self._until = now + took * _RARELY
        return self._found

    @staticmethod
    def _scan() -> Iterator[int]:
        for name in os.listdir("/dev/fd"):
            fd = int(name)
            if fd > 2:  # noqa: PLR2004 - stdin, stdout, stderr
                with contextlib.suppress(OSError):  # the listing's own descriptor
                    if os.get_inheritable(fd):
                        yield fd


_leaks = _Leaks()
