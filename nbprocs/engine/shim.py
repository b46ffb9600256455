"""The kernel's side of its shims: starts them, watches over them, replaces one that died.

::

    kernel ──first socket──────► shim_main.py, own session     HELLO, PING and PONG, strays; its end of file is the kernel's end
       │                            │ parent and subreaper
       └──one link a loop──────►    ├── child ── grandchild …    (ShimClient)
                                    └── orphans of theirs

A shim is the parent of every child, the only one that signals, and the only one that reaps. There is one; more join while starts queue
up, and leave when nobody descends from them any more: a shim without a living child may have what an ended one left. A thread watches them:
it sleeps in ``poll``, so it notices a shim's death and a shim that does not answer also while a cell computes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Sequence
from typing import Any

from nbprocs.engine.ambient import Ambient
from nbprocs.engine.client import ShimClient
from nbprocs.engine.home import log
from nbprocs.engine.shimlib import wire
from nbprocs.engine.shimlib.proc import read_proc
from nbprocs.redact import mask_command

__all__ = ["NoShim", "Shim", "Shims", "above_standard", "shims"]

WATCHER = "nbprocs-shim-watch"
_SCRIPT = os.path.join(os.path.dirname(__file__), "shim_main.py")
_BEAT = 0.3  # seconds between two pings while children live
_SILENT = 0.5  # seconds without an answer until a shim is looked at: stopped ones are continued
_HUNG = 20.0  # seconds until one that is not stopped is given up; a starved machine may take long
_CROWD = 2  # starts that wait for one shim, until another joins
_LEAVES = 5.0  # seconds without a child until one that joined leaves
_NAMES = ("python", "pypy")
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # without these some interpreters don't start


class NoShim(OSError):
    """This kernel can't have a shim: its interpreter is none that can be started by name."""


class Shim:
    """One shim process."""

    def __init__(self, *, ambient: tuple[object, ...], base: int, token: str, inherits: bool) -> None:
        """Start it; takes a millisecond. Raises OSError."""
        program = interpreter()
        if program is None:
            raise NoShim(0, f"sys.executable is {sys.executable!r}, which is no python that could run nbprocs' helper")
        self.ambient = ambient
        self.clients: list[ShimClient] = []
        self.idle_since: float = time.monotonic()
        self.alive: bool = True
        self.used = False  # a child of it was asked for
        self.leaving = False  # it was asked to leave, and has not yet answered
        self.greeted = False
        self.pinged: float | None = None  # since when an answer is awaited
        self.answered: float = 0.0
        self.path: str | None = None  # where it answers status questions
        self.mute = False  # it can't be had
        self.first: socket.socket
        self.first, end = socket.socketpair()
        try:
            theirs = above_standard(end.detach())
            try:
                self.process: subprocess.Popen[bytes] = subprocess.Popen(
                    [program, "-I", "-S", "-E", _SCRIPT, str(theirs), str(os.getpid()), str(base), token, str(int(inherits))],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in _KEPT if name in os.environ},
                    start_new_session=True,
                    pass_fds=(theirs,),
                )
            finally:
                os.close(theirs)
        except BaseException:
            self.first.close()
            raise
        self.pid: int = self.process.pid

    @property
    def queued(self) -> int:
        """How many starts were asked for and are not yet answered."""
        return sum([len(client.waiting) for client in self.clients])  # each start asks: a generator costs twice as much

    @property
    def busy(self) -> bool:
        """Whether it has children, or is to have some."""
        return any(client.children or client.waiting or client.asked for client in self.clients)

    def say(self, *message: Any, fds: tuple[int, ...] = ()) -> None:
        """A frame to its first socket, from any thread. A shim that is gone is noticed elsewhere."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.first, [wire.pack(*message)], list(fds)) if fds else self.first.sendall(wire.pack(*message))

    def close(self) -> None:
        """Let it end: it has no children, or they are to end with it."""
        self.alive = False
        self.first.close()
        self.process.poll()


def above_standard(fd: int) -> int:
    """The descriptor, under a number that can be handed on: where this program's own stdin, stdout or stderr is closed, it may have theirs.

    The one that is given is the caller's no longer. Raises OSError.
    """
    if fd > 2:  # noqa: PLR2004 - the standard ones
        return fd
    import fcntl  # noqa: PLC0415 - not on Windows

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def interpreter() -> str | None:
    """A python to run the shim: this one, or, embedded in another program, the one that belongs to it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, getattr(sys, "_base_executable", ""), os.path.join(sys.exec_prefix, "bin", version)):
        if path and os.path.basename(path).lower().startswith(_NAMES) and os.access(path, os.X_OK):
            return path
    return None


class Shims:
    """This process's shims. Made at the first child."""

    def __init__(self) -> None:
        self.token: str = os.urandom(16).hex()
        self.base: int = wire.new_base()
        self.strays: dict[int, tuple[int, float, str]] = {}  # pid → (pid, start, masked command): told by a shim
        self.unusable: str = ""  # why this kernel can have none
        self._greeted = False  # whether any was ever heard of
        self._numbers = itertools.count(1)
        self._ambient = Ambient() if os.name == "posix" else None
        self._shims: list[Shim] = []
        self._clients: weakref.WeakKeyDictionary[AbstractEventLoop, dict[Shim, ShimClient]] = weakref.WeakKeyDictionary()
        self._held: weakref.WeakKeyDictionary[AbstractEventLoop, int] = weakref.WeakKeyDictionary()
        self._guarded: set[int] = set()  # numbers of living children that were started otherwise
        self._leaving: list[Shim] = []  # closed, not yet reaped
        self._lock = threading.RLock()
        self._watcher: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None

    # -- what others ask

    @property
    def pids(self) -> set[int]:
        """The shim processes."""
        return {shim.pid for shim in (*self._shims, *self._leaving)}

    @property
    def descriptors(self) -> set[int]:
        """What they keep open in this process."""
        return {shim.first.fileno() for shim in self._shims} | set(self._wake or ())

    def number(self) -> int:
        """A number for a child, unique in this kernel."""
        return next(self._numbers)

    def ensure(self) -> None:
        """Have a living one. Raises OSError."""
        with self._lock:
            if self._stable() is None:
                self._start(self._looked())

    def for_start(self, loop: AbstractEventLoop) -> ShimClient:
        """The client of the shim that is to start the next child for this loop. Raises OSError, NoShim."""
        ambient = self._looked()
        with self._lock:
            best, least, fitting = None, 0, 0
            for shim in self._shims:
                if shim.alive and not shim.leaving and shim.ambient == ambient:
                    fitting += 1
                    queued = shim.queued
                    if best is None or queued < least:
                        best, least = shim, queued
            if best is None or (least >= _CROWD and fitting < _most()):
                best = self._start(ambient)
            best.used = True
            best.idle_since = time.monotonic()  # it must not leave before the start has reached it
            return self._client(loop, best)

    def clients(self, loop: AbstractEventLoop) -> tuple[ShimClient, ...]:
        """Those that a loop has at the moment: one that was idle for a while is closed."""
        return tuple(self._clients.get(loop, {}).values())

    def connected(self, loop: AbstractEventLoop) -> tuple[ShimClient, ...]:
        """One for each shim: also those without a living child have what ended ones left. Raises OSError."""
        with self._lock:
            if not self._shims:  # the last one died, and no other could be started then
                self._start(self._looked(), inherits=True)
            return tuple(self._client(loop, shim) for shim in self._shims)

    def in_place_of(self, shim: Shim, loop: AbstractEventLoop) -> ShimClient:
        """The client of that shim, or of the one that took its place. Raises OSError."""
        with self._lock:
            return self._client(loop, shim) if shim in self._shims else self.instead_of(shim, loop)

    def instead_of(self, lost: Shim, loop: AbstractEventLoop) -> ShimClient:
        """The client of the shim that guards the children of one that died. Raises OSError."""
        with self._lock:
            self._drop(lost)
            return self._client(loop, self._heir(lost))

    def forget_client(self, loop: AbstractEventLoop | None, client: ShimClient) -> None:
        """It is closed."""
        with self._lock:
            if client in client.shim.clients:
                client.shim.clients.remove(client)
            found = {} if loop is None else self._clients.get(loop, {})
            if found.get(client.shim) is client:
                del found[client.shim]

    def hold(self, loop: AbstractEventLoop) -> None:
        """A manager lives on this loop."""
        with self._lock:
            self._held[loop] = self._held.get(loop, 0) + 1

    def let_go(self, loop: AbstractEventLoop) -> None:
        """The counterpart of hold. From any thread."""
        with self._lock:
            self._held[loop] = self._held.get(loop, 1) - 1

    def is_held(self, loop: AbstractEventLoop) -> bool:
        """Whether a manager lives there."""
        return self._held.get(loop, 0) > 0

    @staticmethod
    def masked(argv: Sequence[str]) -> str:
        """A stray's command line as it may be shown."""
        return mask_command(argv)

    def guard(self, number: int, pid: int, start: float, token: str) -> None:
        """A child that was started otherwise: end it with the kernel."""
        self.ensure()
        shim = self._stable()
        if shim is not None:
            self._guarded.add(number)
            shim.say(wire.GUARD, number, pid, start, token, 0)

    def release(self, number: int) -> None:
        """It has ended."""
        self._guarded.discard(number)
        for shim in tuple(self._shims):
            shim.say(wire.RELEASE, number)

    # -- making

    def _looked(self) -> tuple[object, ...]:
        return () if self._ambient is None else self._ambient.look()

    def _start(self, ambient: tuple[object, ...], *, inherits: bool = False) -> Shim:
        shim = Shim(ambient=ambient, base=self.base, token=self.token, inherits=inherits)
        self._shims.append(shim)
        self._watch()
        return shim

    def _client(self, loop: AbstractEventLoop, shim: Shim) -> ShimClient:
        for client in shim.clients:  # one, nearly always: a question to a table of weak keys costs more
            if client.serves(loop):
                return client
        found = self._clients.setdefault(loop, {})
        client = found[shim] = ShimClient(loop, shim, self)
        shim.clients.append(client)
        self.stir()  # while there are clients the thread looks by itself: a write for each start would cost a switch of threads
        return client

    def _stable(self) -> Shim | None:
        """One that was not asked to leave."""
        return next((shim for shim in self._shims if shim.alive and not shim.leaving), None)

    def _heir(self, lost: Shim) -> Shim:
        """Who looks after what belonged to one that is gone. Raises OSError."""
        heir = self._stable()
        if heir is None:
            return self._start(self._looked(), inherits=not lost.leaving)
        if not lost.leaving:  # one that left had nobody
            heir.say(wire.INHERIT)
        return heir

    def _drop(self, shim: Shim) -> None:
        """It is gone."""
        if shim in self._shims:
            self._shims.remove(shim)
            shim.close()
            self._leaving.append(shim)

    # -- the watching thread

    def _watch(self) -> None:
        if self._watcher is None or not self._watcher.is_alive():
            if self._wake is None:
                self._wake = os.pipe()
                os.set_blocking(self._wake[0], False)
                os.set_blocking(self._wake[1], False)
            self._watcher = threading.Thread(target=self._watching, name=WATCHER, daemon=True)
            self._watcher.start()
        self.stir()

    def stir(self) -> None:
        """Have the watching thread look: there is a new shim, or the first child of an idle one."""
        if self._wake is not None:
            with contextlib.suppress(OSError):
                os.write(self._wake[1], b"x")

    def _watching(self) -> None:
        unpackers: dict[Shim, wire.Unpacker] = {}
        wake = self._wake
        assert wake is not None  # noqa: S101 - made before the thread
        while True:
            with self._lock:
                present = list(self._shims)
            poll = select.poll()
            poll.register(wake[0], select.POLLIN)
            by_fd = {shim.first.fileno(): shim for shim in present if shim.first.fileno() >= 0}
            for fd in by_fd:
                poll.register(fd, select.POLLIN)
            busy = len(present) > 1 or bool(self._leaving) or any(shim.clients or shim.pinged is not None for shim in present)
            for fd, _ in poll.poll(_BEAT * 1000 if busy else None):
                if fd == wake[0]:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                else:
                    self._hear(by_fd[fd], unpackers.setdefault(by_fd[fd], wire.Unpacker()))
            with self._lock:
                self._leaving = [shim for shim in self._leaving if shim.process.poll() is None]
                for shim in list(self._shims):
                    self._feel(shim)
            unpackers = {shim: unpacker for shim, unpacker in unpackers.items() if shim.alive}

    def _hear(self, shim: Shim, unpacker: wire.Unpacker) -> None:
        try:
            data = shim.first.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._died(shim)
            return
        for operation, *fields in unpacker.feed(data):
            match operation:
                case wire.HELLO:
                    shim.greeted = self._greeted = True
                    self._serve(shim)
                case wire.STAYS:
                    shim.leaving, shim.idle_since = False, time.monotonic()
                case wire.PONG:
                    shim.pinged, shim.answered = None, time.monotonic()
                case wire.STRAY:
                    pid, start, argv = fields
                    command = self.masked(argv)
                    self.strays[pid] = (pid, start, command)
                    log.warning(
                        "%s (pid %d) descends from a process of ours, but nothing tells from which one: it is in pm.strays(), and is "
                        "ended with the manager", command, pid,
                    )  # fmt: skip
                case wire.LOG:
                    log.warning("%s", fields[0])

    def _serve(self, shim: Shim) -> None:
        """Have it answer status questions. Where there is no descriptor left for that, the next look tries again."""
        try:  # also what is loaded here needs a descriptor
            from nbprocs.engine.places import runtime_folder  # noqa: PLC0415 - it may load jupyter_core; this is not the loop's thread

            shim.path = os.path.join(runtime_folder(), f"shim-{os.getpid()}-{os.urandom(4).hex()}.sock")
        except (OSError, ImportError) as error:
            shim.mute = not isinstance(error, OSError) or error.errno not in {errno.EMFILE, errno.ENFILE}
            if shim.mute:
                log.warning("there is no folder for the status socket: %s", error)
            return
        shim.say(wire.SERVE, shim.path)

    def _feel(self, shim: Shim) -> None:
        """The pulse of one: it is asked, looked at when it is silent, and replaced when it is past help."""
        now = time.monotonic()
        for client in list(shim.clients):
            client.prune()
        if shim.greeted and shim.path is None and not shim.mute:
            self._serve(shim)
        if shim.busy:
            shim.idle_since = now
        elif now - shim.idle_since > _LEAVES and self._stable() not in (None, shim):
            shim.leaving = True
            shim.say(wire.LEAVE)
        if shim.pinged is None:
            if shim.busy and now - shim.answered >= _BEAT * 0.9:  # at once, the two would talk without a pause and hold up the loop
                shim.pinged = now
                with contextlib.suppress(OSError):
                    shim.first.send(wire.pack(wire.PING, 0), socket.MSG_DONTWAIT)
            return
        silent = now - shim.pinged
        if silent < _SILENT:
            return
        row = read_proc(shim.pid)
        if row is not None and row.state in "Tt":
            log.warning("the process that guards the children was stopped by somebody (pid %d): it is continued", shim.pid)
            with contextlib.suppress(OSError):
                os.kill(shim.pid, signal.SIGCONT)
            shim.pinged = now
        elif silent > _HUNG:
            log.error("the process that guards the children does not answer (pid %d): it is replaced", shim.pid)
            with contextlib.suppress(OSError):
                os.kill(shim.pid, signal.SIGKILL)

    def _died(self, shim: Shim) -> None:
        """Its first socket has ended. Children of it live on; another shim takes them over."""
        with self._lock:
            if shim not in self._shims:
                return
            end = time.monotonic() + 0.1
            while not self.judged(shim) and time.monotonic() < end:
                time.sleep(0.001)
            bereaved = shim.busy or (not shim.leaving and self._has_some(shim))
            self._drop(shim)
            if bereaved and not self.unusable:
                log.error("the process that guards the children was killed (pid %d): another one takes over; exit statuses of children "
                          "that it had started may be lost", shim.pid)  # fmt: skip
                try:
                    self._heir(shim)
                except OSError as error:
                    log.error("no new one can be started (%s): if this kernel is killed, its children stay", error)
            if shim.path is not None:  # it could not take it away itself
                with contextlib.suppress(OSError):
                    os.unlink(shim.path)
            for client in list(shim.clients):
                client.post(client.lost)

    def _has_some(self, shim: Shim) -> bool:
        """Whether one without a living child of its own may have others: what ended ones left, or those that it guards."""
        return bool(self._guarded) or (shim.used and any(count > 0 for count in self._held.values()))

    def judged(self, shim: Shim) -> bool:
        """Whether it is known why a shim ended; one that never got anywhere, by an error of its own, means that there can be none."""
        if self._greeted:
            return True
        status = shim.process.poll()
        if status is not None and status > 0:  # a signal is somebody else's doing
            self.unusable = f"{interpreter()} can't run nbprocs' helper (exit status {status})"
        return status is not None

    def forget(self) -> None:
        """In a forked child: the children are the parent's affair, and the sockets must close with the parent."""
        for shim in (*self._shims, *self._leaving):
            with contextlib.suppress(OSError):
                shim.first.close()
            shim.process.returncode = 0  # not this process's child: nobody must wait for it here
            for client in shim.clients:
                client.forget()
        for fd in self._wake or ():
            with contextlib.suppress(OSError):
                os.close(fd)
        self.__init__()  # type: ignore[misc]  # start over as in a new interpreter


def _most() -> int:
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


shims: Shims = Shims()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shims.forget)
