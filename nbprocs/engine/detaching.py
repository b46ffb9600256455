"""A child that outlives its kernel: started through a shim of its own, or taken up again from its record.

::

    launch: spec ──marshal on stdin──► shim_main detached ──► Keeper (double-forked, own session)  ──► record, log, socket
    attach: record ──► socket ──follow──► DetachedChild ──► Listener        ended meanwhile: all from the record

Whoever attaches hears of output by its length, and reads it where it lies (nbprocs.engine.recorded). Any number may be attached at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import marshal
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from nbprocs.engine.asking import connect
from nbprocs.engine.child import Exit, Listener, Spec, Survivor
from nbprocs.engine.client import start_error
from nbprocs.engine.home import log
from nbprocs.engine.options import folder_of, options_of
from nbprocs.engine.places import runtime_folder
from nbprocs.engine.records import DetachedRecord, detached_folder, read_record
from nbprocs.engine.shimlib import wire
from nbprocs.engine.shimlib.record import looked_at
from nbprocs.engine.table import Identity, read_row
from nbprocs.engine.tree import Root, end_trees
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import CommunicationError

__all__ = ["DETACHED_LOG", "DetachedChild", "DetachedListener", "launch"]

DETACHED_LOG = 1 << 30  # bytes of each stream that are kept on disk
_MAIN = os.path.join(os.path.dirname(__file__), "shim_main.py")
_LOOK = 3.0  # seconds between two looks at a shim that is followed: a stopped one is as silent as one with a silent child
_AGAIN = 0.5  # seconds between two tries to reach a shim that lives, or to watch a process: too few descriptors, say


class DetachedListener(Listener, Protocol):
    """Who is told of a detached child: a Listener whose logs grow by themselves."""

    def grown(self, ends: dict[str, int]) -> None:
        """The logs reach up to there."""

    def ending(self, reason: str, *, here: bool = False) -> None:
        """Its tree is being ended; ``here``: it was ``end_tree`` of this kernel's own that asked for it."""

    def because(self, reason: str) -> None:
        """Why it ends, where that is not its own doing; before ``exited``."""


# -- start


async def launch(spec: Spec, about: dict[str, Any], *, limit: int = DETACHED_LOG) -> DetachedRecord:
    """Start it, detached; ``about`` goes into its record. On return it runs, and needs this kernel no more.

    Raises OSError as the system said it, or ValueError for what can't be detached; nothing is left then. When the wait is cancelled it
    may run all the same: the caller looks for its record. Takes some 20 ms.
    """
    spec.refuse("inherit", "stdout", "stderr", why="a detached process can't have descriptors of this kernel")
    if spec.stdin not in (False, True):
        raise ValueError("a detached process can't read a file of this kernel: stdin=True, or a redirection by its shell")
    try:
        folder = detached_folder() / spec.label.id  # made by the shim: a kernel that is killed now leaves nothing behind
    except OSError as error:
        raise ValueError(f"its record can't be kept: {error}; NBPROCS_STATE_DIR names another folder") from error
    try:
        order = _order(spec, about, folder, limit=limit)
    except OSError as error:
        raise ValueError(f"its socket can't be made: {error}; NBPROCS_RUNTIME_DIR names another folder") from error
    answer = await _ask_for_start(order)
    if "refused" in answer:
        raise start_error(*answer["refused"])
    if answer["error"]:
        log.warning("%s runs detached, but %s: no later kernel will find it", spec.label.name, answer["error"])
    record = read_record(folder)
    if record is None:
        raise OSError(0, f"the record of a detached process can't be read in {folder}")
    return record


def _order(spec: Spec, about: dict[str, Any], folder: Path, *, limit: int) -> dict[str, Any]:
    token = f"{secrets.token_hex(8)}.{spec.label.id}"
    socket = runtime_folder() / f"detached-{spec.label.id[:8]}-{secrets.token_hex(4)}.sock"
    fields = wire.StartOrder(
        number=1,
        tag=0,
        argv=tuple(map(os.fsencode, spec.argv)),
        executable=None if spec.executable is None else os.fsencode(spec.executable),
        environment=0,
        token=token.encode(),
        cwd=folder_of(spec),
        places=(-1, -1, -1),
        inherit=(),
        pty=spec.pty,
        options=options_of(spec),
        stop=(int(spec.stop_signal), spec.stop_scope == "leader", float(spec.grace), spec.timeout),
        label=(spec.label.id, spec.label.name, about["command"]),  # masked here: the shim need not load what masks
    )
    return {
        "start": tuple(fields),
        "environment": {os.fsencode(name): os.fsencode(value) for name, value in spec.env.items()},
        "folder": str(folder),
        "socket": str(socket),
        "limit": limit,
        "token": token,
        "kernel": os.getpid(),
        "pty": spec.pty,
        "stdin": spec.stdin,
        "merge_stderr": spec.merge_stderr,
        "about": {**about, "pty": spec.pty, "stdin": bool(spec.stdin), "kernel": os.getpid()},
    }


async def _ask_for_start(order: dict[str, Any]) -> dict[str, Any]:
    """Run the shim's launcher, which leaves at once, and read the one answer of the shim itself."""
    data = marshal.dumps(order)
    order_end, ours = os.pipe()
    answers, answer_end = os.pipe()
    try:
        pid = os.posix_spawn(  # noqa: ASYNC221 - half a millisecond, and nothing to wait for
            sys.executable,
            [sys.executable, "-I", "-S", "-E", _MAIN, "detached"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, order_end, 0), (os.POSIX_SPAWN_DUP2, answer_end, 1)],
            setsid=True,
        )
    except BaseException:
        os.close(ours)
        os.close(answers)
        raise
    finally:
        os.close(order_end)
        os.close(answer_end)
    return await _in_thread(lambda: _talk(pid, ours, answers, data))


async def _in_thread(talk: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Wait for it in a thread that ends with it: the loop's own executor would keep one for good."""
    loop = asyncio.get_running_loop()
    said: Waiters[dict[str, Any]] = Waiters()

    def work() -> None:
        tell: Callable[[], None]
        try:
            tell = functools.partial(said.wake, talk())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            tell = functools.partial(said.fail, error)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=work, name="nbprocs-detach", daemon=True).start()
    return await said.wait()


def _talk(pid: int, ours: int, answers: int, data: bytes) -> dict[str, Any]:
    """In a thread: the launcher reads at once, and a cancelled start must not leave a zombie."""
    with open(ours, "wb") as orders, contextlib.suppress(BrokenPipeError):
        orders.write(data)
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored, or somebody else waits for every child
        os.waitpid(pid, 0)
    with open(answers, "rb") as said:
        answer = said.read()
    if not answer:
        return {"refused": ("shim", 0, "its shim ended before it could say why")}
    found: dict[str, Any] = marshal.loads(answer)  # noqa: S302 - from our own shim
    return found


# -- the child, seen from a kernel


class DetachedChild:
    """See nbprocs.engine.child.Child. ``follow`` begins to tell its listener; ``leave`` ends that, and touches nothing else."""

    keeps_time = True

    def __init__(self, record: DetachedRecord, listener: DetachedListener) -> None:
        self._record = record
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._writer: asyncio.StreamWriter | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._over = False
        self._met = asyncio.Event()
        self._me = secrets.token_hex(4)  # the shim says who asked for an end
        self.exit: Exit | None = None
        self.pid: int = record.pid or 0

    @property
    def identity(self) -> Identity:
        """(pid, start)."""
        return Identity(self.pid, self._record.start)

    @property
    def root(self) -> Root:
        """Its tree as the process table shows it."""
        return Root(token=self._record.id, since=self._record.start, identity=self.identity, reaped_at=None)

    def begin(self) -> None:
        """Nothing is held back: ``follow`` tells."""

    async def met(self) -> None:
        """Wait until the listener was told what is known already; a moment, three seconds where its shim is stopped just now."""
        await self._met.wait()

    async def follow(self) -> None:
        """Tell the listener what happens, until its end or until ``leave``; then return. What happened before is told first.

        A shim that is killed meanwhile is noticed at once: then the record says what is known. One that lives and can't be reached,
        for want of a descriptor or since its socket was cleared away, is tried again. One that somebody stops is continued within
        three seconds.
        """
        while True:
            with contextlib.suppress(OSError):  # a shim that is killed closes nothing by itself
                await self._listen()
            if self._over:
                return
            record = read_record(self._record.folder)
            if record is None or record.state not in {"running", "starting"}:
                break
            self._listener.grown({stream: record.size(stream) for stream in ("stdout", "stderr")})
            self._met.set()
            await asyncio.sleep(_AGAIN)
        await self._without_shim()

    async def _listen(self) -> None:
        reader = await self._connect()
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
                if self._over:
                    return
        finally:
            self.leave()

    async def _connect(self) -> asyncio.StreamReader:
        if self._record.socket is None or self._record.state not in {"running", "starting"}:
            raise FileNotFoundError
        self._wake_shim()
        reader, self._writer = await asyncio.open_unix_connection(sock=connect(self._record.socket), limit=1 << 20)
        self._writer.write(b'{"v": 1, "op": "follow"}\n')
        self._looking = self._loop.call_later(_LOOK, self._look)
        return reader

    def _look(self) -> None:
        self._wake_shim()
        self._looking = self._loop.call_later(_LOOK, self._look)

    def leave(self) -> None:
        """Listen no more; the process goes on. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _hear(self, said: dict[str, Any]) -> None:
        event = said.get("event")
        self._met.set()
        if event in {None, "output"}:
            self._listener.grown({stream: said[stream] for stream in ("stdout", "stderr") if stream in said})
        if event is None and said.get("paused"):
            self._listener.changed(paused=True)
        elif event == "paused":
            self._listener.changed(paused=said["paused"])
        elif event == "ending":
            self._listener.ending(said["reason"], here=said.get("by") == self._me)
        elif event == "tree_ended":
            self._listener.tree_ended([Survivor(*one) for one in said["survivors"]])
        elif event == "exited":
            self._exited(wire.Exited(*said["report"]), said["reason"])
        elif event == "ended":
            self._over = True
            self._listener.drained()

    def _exited(self, report: wire.Exited, reason: str | None) -> None:
        if self.exit is not None:
            return
        if reason is not None:
            self._listener.because(reason)
        self.exit = Exit.from_report(report)
        self._listener.exited(self.exit)

    async def _without_shim(self) -> None:
        """Its shim is gone: it has ended, or was killed, and then the process may live on unguarded."""
        looked_at(self._record.folder)
        followed = self._met.is_set()
        record = read_record(self._record.folder) or self._record
        while record.state == "unguarded":
            await self._end_of_the_unguarded()
            record = read_record(self._record.folder) or self._record
        self._record = record
        self._listener.grown({stream: record.size(stream) for stream in ("stdout", "stderr")})
        if self.exit is None:
            took = record.execution_time if record.execution_time is not None else 0.0
            lost_now = followed and record.execution_time is None  # just when, nobody has seen
            at = time.monotonic() if lost_now else self._began(record) + took
            self._exited(wire.Exited(1, record.status, at, record.cpu, record.peak, record.read, record.written), record.reason)
        if not self._over:
            self._over = True
            self._listener.drained()
        self._met.set()

    def _began(self, record: DetachedRecord) -> float:
        """Its start by this kernel's monotonic clock."""
        return time.monotonic() - (time.time() - record.created)

    async def _end_of_the_unguarded(self) -> None:
        self._met.set()
        log.warning(
            "the shim of %s was killed; the process (pid %d) lives on, what it writes now is lost, and so will be its exit status",
            self._record.name,
            self.pid,
        )
        try:
            fd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            await asyncio.sleep(_AGAIN)
            return
        gone: Waiters[None] = Waiters()
        self._loop.add_reader(fd, gone.wake, None)
        try:
            await gone.wait()
        finally:
            self._loop.remove_reader(fd)
            os.close(fd)

    # -- what is asked of it

    def _wake_shim(self) -> None:
        """Let its shim go on if somebody has stopped it: it would answer nobody, and neither time nor end its process."""
        row = None if self._record.shim_pid is None else read_row(self._record.shim_pid)
        if row is not None and row.start == self._record.shim_start and row.state in "Tt":
            log.warning("the shim of %s was stopped by somebody (pid %d): it is continued", self._record.name, row.pid)
            with contextlib.suppress(OSError):
                os.kill(row.pid, signal.SIGCONT)

    async def _ask(self, **request: Any) -> dict[str, Any]:
        """One question on a connection of its own. Raises ConnectionError where its shim is gone."""
        if self._record.socket is None:
            raise ConnectionRefusedError
        self._wake_shim()
        reader, writer = await asyncio.open_unix_connection(sock=connect(self._record.socket), limit=16 << 20)
        try:
            writer.write(json.dumps({"v": 1, **request}).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
        if not line:
            raise ConnectionResetError
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def write(self, data: bytes) -> None:
        """Hand all of the data to the system. Raises BrokenPipeError."""
        view = memoryview(data)
        for begin in range(0, max(1, len(view)), 32 << 10):
            await self._input(op="write", data=base64.b64encode(view[begin : begin + (32 << 10)]).decode())

    async def close_stdin(self) -> None:
        """End of input."""
        with contextlib.suppress(BrokenPipeError):
            await self._input(op="close_stdin")

    async def _input(self, **request: Any) -> None:
        try:
            answer = await self._ask(**request)
        except (ConnectionError, FileNotFoundError) as error:
            raise BrokenPipeError from error
        if not answer["ok"]:
            raise BrokenPipeError(answer["error"])

    def _order(self, **request: Any) -> None:
        """Carry out an order without waiting for its answer. ProcessLookupError once its end is known."""
        if self.exit is not None or self._record.socket is None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        self._wake_shim()
        try:
            with connect(self._record.socket) as sock:
                sock.setblocking(True)
                sock.settimeout(1.0)
                sock.sendall(json.dumps({"v": 1, "id": self._record.id, **request}).encode() + b"\n")
                sock.recv(1 << 16)
        except OSError as error:
            raise ProcessLookupError(f"the shim of process {self.pid} does not answer: {error}") from error

    def send_signal(self, number: int) -> None:
        """To the process itself."""
        self._order(op="signal", number=int(number))

    def interrupt(self) -> None:
        """SIGINT as a terminal's Ctrl-C gives it."""
        self._order(op="interrupt")

    def pause(self) -> None:
        """Stop the tree where it stands."""
        self._order(op="pause")

    def resume(self) -> None:
        """Let it go on."""
        self._order(op="resume")

    def rename(self, name: str) -> None:
        """What its record and its shim call it, for the kernels to come. A shim of an earlier version keeps the old name."""
        self._order(op="rename", name=name)

    def resize(self, rows: int, columns: int) -> None:
        """Tell a pseudo-terminal its size."""
        with contextlib.suppress(ProcessLookupError):
            self._order(op="resize", rows=rows, columns=columns)

    async def end_tree(self, *, grace: float) -> Sequence[Survivor]:
        """The stop signal to its whole tree, SIGKILL after ``grace`` seconds. Where its shim was killed, from here."""
        try:
            answer = await self._ask(op="end", grace=grace, by=self._me)
        except (ConnectionError, FileNotFoundError):
            if (record := read_record(self._record.folder)) is None or record.state != "unguarded":
                return ()
            return await end_trees([self.root], grace=grace)
        if not answer["ok"]:
            raise CommunicationError(f"{self._record.name} was not stopped: {answer['error']}", name=self._record.name)
        return [Survivor(*one) for one in answer["survivors"]]
