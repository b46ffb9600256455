"""ProcessCore: one child, its state, its streams and its end; the machinery behind a ManagedProcess.

::

      engine Child ──output──► OutputLog, twice ──► lines(), receive_output(), tail(), panes
           │                       └─ Owner.heard(OUTPUT)
           ├──exited──► exit noted, timeout cancelled        status stays RUNNING: output may still be in the pipes
           └──drained─► result made, status final ──► wait() returns, callbacks, Owner.ended()

The manager's core makes it and is its owner. State changes happen on the home loop only. A user holds its face, a ManagedProcess.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nbprocs.checks import whole
from nbprocs.engine.child import TIMEOUT_GRACE, Child, Exit, Label, Spec, Survivor, new_id
from nbprocs.engine.home import Home, Tasks, hops, log
from nbprocs.engine.launcher import Launcher
from nbprocs.engine.oom import OomWatch
from nbprocs.engine.output import DEFAULT_MEMORY, LineReader, OutputLog
from nbprocs.engine.recorded import logs_of
from nbprocs.engine.table import Identity, scan
from nbprocs.engine.tree import check_ended, members
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import CommunicationError, StopFailed
from nbprocs.guard import call
from nbprocs.model import (
    EndReason,
    EventKind,
    ProcessConfig,
    ProcessInfo,
    ProcessResult,
    ProcessStatus,
    Stream,
    allowed,
    ended_status,
)
from nbprocs.processes.notices import tell_end
from nbprocs.processes.spec import opened, spec_of
from nbprocs.terminal import Interleaved, tail_text

if TYPE_CHECKING:
    from nbprocs.policy import RestartPolicy

__all__ = ["ProcessCore", "ProcessOwner"]

F = TypeVar("F")
_SIGKILL = 9
_TAIL = 64 << 10  # bytes of each stream that the last lines are looked for in


class ProcessOwner(Protocol):
    """What a process needs of its manager."""

    home: Home
    tasks: Tasks
    launcher: Launcher
    oom: OomWatch
    closed: bool

    def heard(self, kind: EventKind, process: ProcessCore, *, stream: Stream | None = None, size: int = 0) -> None:
        """Something happened to it."""

    def ended(self, process: ProcessCore) -> None:
        """Its status is final."""

    def let_go(self, process: ProcessCore) -> None:
        """Somebody wants its end: no supervised restart any more."""


class ProcessCore:
    """The machinery of one process, for code of ours; all methods on the home loop, unless they hop."""

    def __init__(self, config: ProcessConfig, *, name: str, owner: ProcessOwner, predecessor: ProcessCore | None = None) -> None:
        self.id: str = new_id()
        self.name = name
        self.config = config
        self.created_at: datetime = datetime.now(UTC)
        self.started: float = time.monotonic()
        self.predecessor = predecessor
        self.restarts: int = 0 if predecessor is None else predecessor.restarts + 1
        self.ready: bool = False
        self.annotations: dict[str, object] = {}  # what others know of it, for a run history
        self.status: ProcessStatus = ProcessStatus.STARTING
        self.result: ProcessResult | None = None
        self.ended_at: datetime | None = None
        self._owner = owner
        self.home: Home = owner.home
        self.stdout: OutputLog
        self.stderr: OutputLog
        self.stdout, self.stderr = logs_of(on_disk=config.detach, memory_limit=config.output_limit or DEFAULT_MEMORY)
        self._child: Child | None = None
        self._reason: EndReason | None = None  # why we stopped it
        self._kills_before = 0  # for memory, by the system, that were counted before it started
        self._endings, self._drained = 0, False  # how many stops are under way; whether its output has come to its end
        self.paused: bool = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: Waiters[None] = Waiters()  # not Waiters[None](): a subscript costs seven times as much
        self._output_waiters: Waiters[None] = Waiters()
        self._launched: Waiters[None] = Waiters()  # stops that were asked for before there was a child
        self._callbacks: list[Callable[[ProcessCore], object]] = []
        self.order: Interleaved = Interleaved()
        self.readers: dict[Stream, tuple[LineReader, deque[str]]] = {}  # of receive_output() and receive_error()
        self.expected: dict[Stream, int] = {}  # where the next search of expect() begins
        self.restart_policy: RestartPolicy | None = None  # for the record of a detached one
        self.lost: str = ""  # what such a record could not keep of its config, once it was adopted
        self._face: weakref.ref[Any] | None = None
        self._held: object | None = None  # the face, while the manager knows the process: views hang on it
        self._known = True

    def face(self, make: Callable[[ProcessCore], F]) -> F:
        """What a user holds, made by ``make`` when nobody holds one: the same object for as long as somebody does."""
        face: F | None = None if self._face is None else self._face()
        if face is None:
            face = make(self)
            self._face = weakref.ref(face)
            self._held = face if self._known else None
        return face

    def forget_face(self) -> None:
        """The manager has forgotten it: from now on the face lives as long as somebody else holds it, and no cycle keeps the output."""
        self._known, self._held = False, None

    # -- start: called by the manager, on the home loop
    def spec(self, files: Mapping[str, int]) -> Spec:
        """What the engine is told of it, with the open files. Raises ValueError for an option that is not to be had here."""
        label = Label(id=self.id, name=self.name, command=None if self.config.title is None else self.config.display)
        return spec_of(self.config, files, token=f"{self._owner.launcher.token}.{self.id}", label=label)

    async def launch(self) -> None:
        """Start the child. Raises OSError or ValueError and leaves nothing behind; the manager makes our errors of them."""
        with opened(self.config, again=self.predecessor is not None) as files:
            spec = self.spec(files)
            self.started = time.monotonic()
            self._kills_before = self._owner.oom.mark()
            child = await self._owner.launcher.start(spec, self)
        self.became(child)
        if spec.timeout is not None and not child.keeps_time:
            self._timer = self.home.loop.call_later(spec.timeout, self._out_of_time)
        self._owner.heard(EventKind.STARTED, self)

    def became(self, child: Child) -> None:
        """It runs."""
        self._child = child
        self._launched.wake(None)
        self._move(ProcessStatus.RUNNING)
        self.home.watch()

    def failed_to_start(self) -> None:
        """The manager's word that there will be no child."""
        self._move(ProcessStatus.FAILED)
        for waiters in (self._launched, self._waiters, self._output_waiters):
            waiters.wake(None)
        self.stdout.close()
        self.stderr.close()

    def mark_ready(self) -> None:
        """Its readiness probe has passed, or it has none."""
        self.ready = True
        self._owner.heard(EventKind.READY, self)

    def mark_adopted(self) -> None:
        """It was taken up again, running and so ready, or ended."""
        self.ready = True
        self._owner.heard(EventKind.ADOPTED, self)

    def leave_alone(self, error: Exception) -> None:
        """Its manager closes and it goes on: who waits for its end is told so."""
        self.home.unwatch()
        self._waiters.fail(error)
        self._output_waiters.wake(None)

    def _move(self, status: ProcessStatus) -> None:
        if not allowed(self.status, status):
            raise AssertionError(f"{self.name} can't go from {self.status} to {status}")
        self.status = status

    # -- what the child tells (engine.child.Listener)

    def output(self, stream: Stream, data: bytes) -> None:
        """A chunk arrived."""
        (self.stdout if stream is Stream.STDOUT else self.stderr).feed(data)
        self.order.add(stream is Stream.STDERR, len(data))
        self.wrote(stream, len(data))

    def wrote(self, stream: Stream, size: int) -> None:
        """So much has come into its log, and its order is noted."""
        if self._output_waiters:
            self._output_waiters.wake(None)
        self._owner.heard(EventKind.OUTPUT, self, stream=stream, size=size)

    def exited(self, how: Exit) -> None:
        """The process has gone; its pipes are being drained."""
        self.home.unwatch()
        if self._timer is not None:
            self._timer.cancel()
        killed = how.signal == _SIGKILL or how.exit_code == 128 + _SIGKILL  # the second is a shell's word for the first
        bad = killed or how.exit_code not in self.config.success_codes
        if self._reason is None and bad and self._owner.oom.explains(self._kills_before, killed=killed):
            self._reason = EndReason.OUT_OF_MEMORY

    def drained(self) -> None:
        """All that will ever come has come. While its tree is being ended the result waits for that: a wait must not return before."""
        self._drained = True
        if not self._endings:
            self._finish()

    def _finish(self) -> None:
        """The result is made and everybody is told."""
        how = self._child.exit if self._child else None
        if how is None:
            return
        self.stdout.close()
        self.stderr.close()
        self.ended_at = datetime.now(UTC)
        stopped = self._reason is not None and self._reason.by_us
        self._move(ended_status(exit_code=how.exit_code, signal=how.signal, stopped_by_us=stopped, success=self.config.success_codes))
        self.paused = False
        self.result = ProcessResult(
            process_id=self.id,
            name=self.name,
            command=self.config.display,
            exit_code=how.exit_code,
            signal=how.signal,
            stdout_source=self.stdout.settled(),
            stderr_source=self.stderr.settled(),
            execution_time=how.at - self.started,
            status=self.status,
            reason=self._reason,
            dropped_bytes=self.stdout.dropped + self.stderr.dropped,
            peak_rss=how.peak_rss,
            cpu_time=how.cpu_time,
            read_bytes=how.read_bytes,
            written_bytes=how.written_bytes,
            encoding=self.config.encoding,
            errors=self.config.errors,
            order=self.order,
        )
        self._waiters.wake(None)
        self._output_waiters.wake(None)
        self._owner.ended(self)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._call(callback)
        tell_end(self.result, self.config.notify, tasks=self._owner.tasks)

    def _call(self, callback: Callable[[ProcessCore], object]) -> None:
        call(f"a done callback of {self.name}", callback, self)

    # -- waiting
    @hops
    async def wait(self, timeout: float | None = None) -> ProcessResult:
        """Wait for the end of the process (not of its pipes) and return its result; never raises for how it ended.

        With ``timeout`` seconds raises TimeoutError after that time and leaves the process alone. Takes as long as the process and at most
        0.1 s more, if a grandchild still holds its output open; when it is being stopped, until its whole tree has ended.
        """
        if self.result is None:
            async with contextlib.nullcontext() if timeout is None else asyncio.timeout(timeout):
                await self.over()
        if self.result is None:
            raise self.broken("was not started")
        return self.result

    async def over(self) -> None:
        """Wait until it has ended, or could not be started. On the home loop."""
        if self.status.live:
            await self._waiters.wait()

    async def ended_within(self, seconds: float) -> bool:
        """Wait at most so long; True if the process has ended by then. For code on the home loop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over()
        return not self.status.live

    async def more_output(self, seen: int) -> None:
        """Wait until both streams together have written more than ``seen`` bytes, or the process has ended. On the home loop."""
        if self.status.live and self.stdout.end + self.stderr.end <= seen:
            await self._output_waiters.wait()

    def add_done_callback(self, callback: Callable[[ProcessCore], object]) -> None:
        """Call it with the process, on the home loop, once the status is final; soon, if it already is."""
        self.home.post(self._add_callback, callback)

    def _add_callback(self, callback: Callable[[ProcessCore], object]) -> None:
        if self.status.live:
            self._callbacks.append(callback)
        else:
            self._call(callback)

    # -- ending
    @hops
    async def stop(self, grace: float = 5.0) -> ProcessResult:
        """SIGTERM to the whole tree, SIGKILL to who is left after ``grace`` seconds; a paused process is continued to hear it.

        On return nobody of the tree is alive, also where the process had ended by itself. Takes at most ``grace`` + 5.1 seconds;
        raises StopFailed with the survivors after that. Cancelling the wait does not call the stop off.
        """
        self._owner.let_go(self)
        return await self.end_by_task(EndReason.STOPPED, grace=grace)

    @hops
    async def kill(self) -> ProcessResult:
        """SIGKILL to the whole tree at once; otherwise as stop."""
        self._owner.let_go(self)
        return await self.end_by_task(EndReason.KILLED, grace=0.0)

    async def end_by_task(self, reason: EndReason, *, grace: float) -> ProcessResult:
        """The stop without a word about supervision, for the manager's restart."""
        # A task of its own, not awaited directly: an interrupt of the cell must not leave the tree half ended.
        task = self._owner.tasks.start(self.end(reason, grace=grace), name=f"stop {self.name}")
        await asyncio.wait({task})
        return task.result()

    async def end(self, reason: EndReason, *, grace: float) -> ProcessResult:
        """The stop itself, for code of ours that is a task already."""
        self.blame(reason)
        self._endings += 1
        try:
            await self._launched.wait() if self._child is None and self.status.live else None
            left = () if self._child is None else await self._child.end_tree(grace=grace)
        finally:
            self._one_ending_less()
        check_ended(left, name=self.name, process_id=self.id)
        return await self.wait()

    def _one_ending_less(self) -> None:
        self._endings -= 1
        if not self._endings and self._drained and self.status.live:
            self._finish()

    def ending(self, reason: str, *, here: bool = False) -> None:
        """The shim has begun to end its tree: its time is up, or somebody asked the shim; ``here``: its own manager, which knows why."""
        if reason == "stopped" and not here:
            self._owner.let_go(self)
        self.blame(EndReason(reason))
        self._endings += 1

    def tree_ended(self, survivors: Sequence[Survivor]) -> None:
        """That is over."""
        try:
            check_ended(survivors, name=self.name, process_id=self.id)
        except StopFailed as error:
            log.error("%s", error)
        self._one_ending_less()

    def changed(self, *, paused: bool) -> None:
        """Somebody asked the shim to pause or resume it."""
        self.paused = paused
        self._tell(EventKind.PAUSED if paused else EventKind.RESUMED)

    async def end_leftovers(self, *, grace: float) -> None:
        """After its end: end what it left, such as a server that a killed shell had started."""
        if self._child is not None:
            check_ended(await self._child.end_tree(grace=grace), name=self.name, process_id=self.id)

    def blame(self, reason: EndReason) -> None:
        """From now on its end is our doing."""
        if self.status.live and self._reason is None and (self._child is None or self._child.exit is None):
            self._reason = reason

    def ports(self) -> set[int]:
        """The TCP ports that its tree listens on. A scan of the process table: for code on the home loop that asks seldom."""
        from nbprocs.engine.handles import listening_inodes, open_handle  # noqa: PLC0415 - `import nbprocs` stays light

        inodes = listening_inodes()
        found: set[int] = set()
        for member in () if self._child is None else members([self._child.root], scan()):
            handle = open_handle(member.pid)
            if handle is not None:
                found.update(handle.ports(lambda: inodes) or ())
                handle.close()
        return found

    def _out_of_time(self) -> None:
        self._owner.tasks.start(self.end(EndReason.TIMEOUT, grace=TIMEOUT_GRACE), name=f"timeout of {self.name}")

    # -- signals

    def pause(self) -> None:
        """SIGSTOP to its whole tree; nothing if it is paused. Raises CommunicationError when it has ended."""
        self._signalled(lambda child: child.pause())
        self.paused = True
        self._tell(EventKind.PAUSED)

    def resume(self) -> None:
        """SIGCONT to its whole tree. Raises CommunicationError when it has ended."""
        self._signalled(lambda child: child.resume())
        self.paused = False
        self._tell(EventKind.RESUMED)

    def send_signal(self, number: int) -> None:
        """A signal to the process itself. Raises CommunicationError when it has ended."""
        self._signalled(lambda child: child.send_signal(number))

    def interrupt(self) -> None:
        """SIGINT like Ctrl-C: to the foreground group of its terminal, or, without one, to its whole tree.

        Raises CommunicationError when it has ended.
        """
        self._signalled(lambda child: child.interrupt())

    def _signalled(self, act: Callable[[Child], None]) -> None:
        if self._child is None:
            raise self.broken("has not started")
        try:
            act(self._child)
        except ProcessLookupError:
            raise self.broken("has ended; there is nobody to signal") from None

    def _tell(self, kind: EventKind) -> None:
        self.home.post(lambda: self._owner.heard(kind, self))

    # -- looking

    def resize(self, rows: int, columns: int) -> None:
        """The window size of its pseudo-terminal; nothing without one."""
        if self._child is not None:
            self._child.resize(rows, columns)

    @property
    def child(self) -> Child | None:
        """What the engine made of it, for the manager; None while there is none."""
        return self._child

    @property
    def pid(self) -> int | None:
        """Its process id; None while it has none. After its end the number may be somebody else's."""
        return None if self._child is None else self._child.pid

    @property
    def host(self) -> str:
        """The name of the machine that it runs on."""
        return socket.gethostname()

    @property
    def identity(self) -> Identity:
        """(pid, start time). Raises CommunicationError before the start."""
        if self._child is None:
            raise self.broken("has not started")
        return self._child.identity

    @property
    def execution_time(self) -> float:
        """Seconds since its start, or from start to end."""
        return self.result.execution_time if self.result else time.monotonic() - self.started

    @property
    def info(self) -> ProcessInfo:
        """A snapshot."""
        result = self.result
        return ProcessInfo(
            id=self.id,
            name=self.name,
            pid=self.pid,
            status=self.status,
            created_at=self.created_at,
            config=self.config,
            ended_at=self.ended_at,
            exit_code=result.exit_code if result else None,
            signal=result.signal if result else None,
            execution_time=self.execution_time,
            ready=self.ready,
            paused=self.paused,
            restarts=self.restarts,
            reason=self._reason,
            stdout_bytes=self.stdout.end,
            stderr_bytes=self.stderr.end,
            dropped_bytes=self.stdout.dropped + self.stderr.dropped,
            peak_rss=result.peak_rss if result else None,
            last_line=self.last_line(),
        )

    def broken(self, what: str, kind: type[CommunicationError] = CommunicationError) -> CommunicationError:
        """The error of talking to it in vain, with the last lines."""
        result, fields = self.result, {"process_id": self.id, "name": self.name, "command": self.config.display}
        how = {} if result is None else {"exit_code": result.exit_code, "signal": result.signal}
        return kind(f"{self.name} {what}", last_output=self.tail(), **fields, **how)  # type: ignore[arg-type]

    def tail(self, lines: int = 10) -> str:
        """The last lines that it wrote, both streams in their order, as a terminal shows them."""
        data = self.order.tail(self.stdout.tail(_TAIL), self.stderr.tail(_TAIL))
        return tail_text(data.decode(self.config.encoding, "replace"), lines=whole("lines", lines, least=1))

    def last_line(self) -> str:
        """The last line that is not empty of the stream that wrote last; at most 200 characters."""
        latest, other = (self.stdout, self.stderr) if self.order.last == 0 else (self.stderr, self.stdout)
        return latest.last_line() or other.last_line()
