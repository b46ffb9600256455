"""Values of the process manager: statuses, configs, results, infos and events.

Only enums and frozen dataclasses live here, with the pure functions that read them. No I/O, no loop, no clock.
Pool, scheduler and monitor keep their own values in a ``model`` module of their own package.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, SupportsBytes

from nbprocs.config import ProcessConfig
from nbprocs.display import Displayable, Html
from nbprocs.display import text as html_text
from nbprocs.redact import one_line, readable
from nbprocs.terminal import Interleaved, clipped, shown, tail_text

_TAIL = 64 << 10  # bytes of each stream that the last lines are looked for in
_SHOWN = 1 << 20  # bytes of each stream that a display looks at

__all__ = [
    "TRANSITIONS",
    "EndReason",
    "EventKind",
    "ProcessConfig",
    "ProcessEvent",
    "ProcessInfo",
    "ProcessResult",
    "ProcessStatus",
    "Stream",
    "TaskPriority",
    "allowed",
    "ended_status",
    "signal_name",
]


class ProcessStatus(StrEnum):
    """The life of one process. The last three are final.

    >>> ProcessStatus.RUNNING.live, ProcessStatus.TERMINATED.live
    (True, False)
    """

    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TERMINATED = "terminated"

    @property
    def live(self) -> bool:
        """True while the operating system may still have the process."""
        return self in (ProcessStatus.STARTING, ProcessStatus.RUNNING)


TRANSITIONS: Mapping[ProcessStatus, frozenset[ProcessStatus]] = MappingProxyType(
    {
        ProcessStatus.STARTING: frozenset({ProcessStatus.RUNNING, ProcessStatus.FAILED}),
        ProcessStatus.RUNNING: frozenset({ProcessStatus.COMPLETED, ProcessStatus.FAILED, ProcessStatus.TERMINATED}),
        ProcessStatus.COMPLETED: frozenset(),
        ProcessStatus.FAILED: frozenset(),
        ProcessStatus.TERMINATED: frozenset(),
    }
)


def allowed(current: ProcessStatus, following: ProcessStatus) -> bool:
    """Whether a process may go from one status straight to the other."""
    return following in TRANSITIONS[current]


def ended_status(*, exit_code: int | None, signal: int | None, stopped_by_us: bool, success: tuple[int, ...] = (0,)) -> ProcessStatus:
    """The final status of a process that ended: TERMINATED if we stopped it, else by its exit.

    A process that we told to stop but that had already exited 0 by itself counts as TERMINATED too: its owner asked for its end.
    """
    if stopped_by_us:
        return ProcessStatus.TERMINATED
    if exit_code in success and signal is None:
        return ProcessStatus.COMPLETED
    return ProcessStatus.FAILED


class EndReason(StrEnum):
    """Why a process ended, where its end was not its own. The values are the words that are shown and stored.

    >>> EndReason.INTERRUPTED.stopped, EndReason.TIMEOUT.stopped, str(EndReason.OUT_OF_MEMORY)
    (True, False, 'out of memory')
    """

    TIMEOUT = "timeout"  # its time ran out; its whole tree was killed
    OUT_OF_MEMORY = "out of memory"  # the system killed it
    WORKER_LOST = "worker lost"  # the machine or worker of a cluster that ran it is gone
    WORKER_TAKEN_AWAY = "worker taken away"  # the same on purpose: scaled down, retired, preempted, at its walltime
    STOPPED = "stopped"  # its owner asked for its end; as the others below
    KILLED = "stopped: killed"
    INTERRUPTED = "stopped: interrupted"  # the cell that started it was, before anybody else knew the process
    RESTARTED = "stopped: restarted"
    REPLACED = "stopped: replaced"
    NOT_READY = "stopped: not ready"
    MANAGER_CLOSED = "stopped: manager closed"

    @property
    def stopped(self) -> bool:
        """Whether its owner asked for its end; nobody should start such a process again by itself."""
        return self.value.startswith("stopped")

    @property
    def by_us(self) -> bool:
        """Whether we ended it, at its owner's wish or because its time had run out."""
        return self.stopped or self is EndReason.TIMEOUT


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; ``signal 77`` for a number without a name."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Stream(StrEnum):
    """The two output streams of a process.

    >>> Stream("stderr")
    <Stream.STDERR: 'stderr'>
    """

    STDOUT = "stdout"
    STDERR = "stderr"


class TaskPriority(IntEnum):
    """Order of tasks in a pool or a scheduler: higher first, equal ones by arrival.

    >>> TaskPriority.CRITICAL > TaskPriority.HIGH > TaskPriority.NORMAL > TaskPriority.LOW
    True
    """

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResult(Displayable):
    """How one process ended, with all that it wrote (or what the byte budget and the spill file kept of it).

    A large output stays where it is, in memory and in the spill file, until ``stdout`` or ``stderr`` is asked for.

    >>> ProcessResult(process_id="1", name="date", command="date", exit_code=0, execution_time=0.1, status=ProcessStatus.COMPLETED).ok
    True
    """

    process_id: str
    name: str
    command: str  # masked, as displayed
    exit_code: int | None  # None when a signal ended it, or when somebody else reaped it
    signal: int | None = None  # the signal's number
    stdout_source: SupportsBytes = field(default=b"", repr=False, compare=False)
    stderr_source: SupportsBytes = field(default=b"", repr=False, compare=False)
    execution_time: float = 0.0  # seconds from start to exit, by the monotonic clock
    status: ProcessStatus = ProcessStatus.COMPLETED
    reason: EndReason | None = None  # None: an end of its own
    dropped_bytes: int = 0  # output that neither memory nor the spill file could hold
    peak_rss: int | None = None  # bytes, of the process itself, as the kernel accounted it at the exit
    cpu_time: float | None = None  # seconds, user + system, with the children it waited for
    read_bytes: int | None = None  # from disk, with those children; what was in the system's cache was not read
    written_bytes: int | None = None  # to disk
    encoding: str = "utf-8"  # of its text
    errors: str = "replace"  # what becomes of bytes that are not in that encoding
    order: Interleaved | None = field(default=None, repr=False, compare=False)  # in which order the two streams came, as far as known

    @property
    def stdout(self) -> bytes:
        """All of the standard output that was kept."""
        return bytes(self.stdout_source)

    @property
    def stderr(self) -> bytes:
        """All of the standard error that was kept; empty with ``pty=True``, where both are one stream."""
        return bytes(self.stderr_source)

    @property
    def ok(self) -> bool:
        """True for exit status 0 of its own accord."""
        return self.status is ProcessStatus.COMPLETED

    @property
    def text(self) -> str:
        """The standard output as text, in the encoding that it was started with; what can't be decoded becomes U+FFFD by default."""
        return self.stdout.decode(self.encoding, self.errors)

    def tail(self, lines: int = 10) -> str:
        """The last lines that it wrote, both streams in their order, as a terminal shows them. Reads only the ends."""
        return tail_text(self._ends(_TAIL), lines=lines)

    def _ends(self, size: int) -> str:
        ends = []
        for source in (self.stdout_source, self.stderr_source):
            tail = getattr(source, "tail", None)
            ends.append(tail(size) if callable(tail) else bytes(source)[-size:])
        order = self.order or Interleaved()
        data = order.tail(*ends) if self.order else b"\n".join(end.removesuffix(b"\n") for end in ends if end)
        return data.decode(self.encoding, self.errors if self.errors != "strict" else "replace")

    def __str__(self) -> str:
        """The line of the repr, and what it wrote: both streams as a terminal shows them, the middle of much left out."""
        written = clipped("\n".join(shown(self._ends(_SHOWN))))
        return f"{self!r}\n{written}" if written else repr(self)

    def _html_(self) -> Html:
        line, _, written = str(self).partition("\n")
        return Html("<div><code>{}</code><pre>{}</pre></div>").format(html_text(line), html_text(written))

    @property
    def _ipython_display_(self) -> None:
        """A result has no live view: IPython goes on to the mimebundle."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """As text the whole of ``str``: the output is what the cell was for."""
        bundle = super(ProcessResult, self)._repr_mimebundle_(include, exclude)
        return {**bundle, "text/plain": str(self)} if isinstance(bundle, dict) and "text/plain" in bundle else bundle

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the output itself."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return _result_from, ({**state, "stdout_source": self.stdout, "stderr_source": self.stderr},)

    def __repr__(self) -> str:
        """One line, with the exit and the amount of output, not the output."""
        end = f"exit_code={self.exit_code}" if self.signal is None else f"signal={signal_name(self.signal)}"
        why = f" ({self.reason})" if self.reason else ""
        return f"<ProcessResult {readable(self.name)}: {self.status}{why} {end} in {self.execution_time:.3f} s: {one_line(self.command)}>"


def _result_from(state: dict[str, object]) -> ProcessResult:
    return ProcessResult(**state)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A snapshot of one process; it never changes afterwards.

    >>> async with ProcessManager() as pm:
    ...     process = await pm.spawn("sleep", "100", name="sleeper")
    ...     before = process.info
    >>> before.status, process.info.status
    (<ProcessStatus.RUNNING: 'running'>, <ProcessStatus.TERMINATED: 'terminated'>)
    """

    id: str
    name: str
    pid: int | None
    status: ProcessStatus
    created_at: datetime  # timezone-aware
    config: ProcessConfig
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None
    execution_time: float = 0.0  # seconds so far, or in all
    ready: bool = False  # its readiness probe has passed (True at once without one)
    paused: bool = False
    restarts: int = 0  # how many predecessors of the same lineage there were
    reason: EndReason | None = None
    stdout_bytes: int = 0  # written so far
    stderr_bytes: int = 0
    dropped_bytes: int = 0
    peak_rss: int | None = None
    last_line: str = ""


class EventKind(StrEnum):
    """What the manager's event stream tells.

    >>> EventKind.EXITED
    <EventKind.EXITED: 'exited'>
    """

    STARTED = "started"
    READY = "ready"
    OUTPUT = "output"
    PAUSED = "paused"
    RESUMED = "resumed"
    EXITED = "exited"  # info holds the final status
    FAILED = "failed"  # a start failed; there is no process, error says why
    RESTARTING = "restarting"  # a supervisor will start it again after delay seconds
    FATAL = "fatal"  # a supervisor gave up; error holds the history
    REMOVED = "removed"  # fell out of the bounded history
    ADOPTED = "adopted"
    CLOSED = "closed"  # the manager closed; the last event


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEvent:
    """One thing that happened to one process.

    >>> kinds = []
    >>> async with ProcessManager() as pm:
    ...     _ = pm.subscribe(lambda event: kinds.append(event.kind.value))
    ...     _ = await pm.run("true")
    >>> kinds
    ['started', 'ready', 'exited', 'closed']
    """

    kind: EventKind
    process_id: str  # "" for CLOSED
    name: str
    at: float  # seconds, time.monotonic()
    info: ProcessInfo | None = None  # not for OUTPUT: that one is frequent
    stream: Stream | None = None  # OUTPUT
    size: int = 0  # bytes, OUTPUT
    delay: float | None = None  # seconds, RESTARTING
    error: BaseException | None = None
