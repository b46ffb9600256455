"""The seam between *when* and *where*: a scheduler decides when a task runs, a backend runs it.

::

    TaskScheduler ── bind(home, changed) ───► Backend ──► a process, a pool's worker, a cluster
                  ── fence(prefix) ─────────►    │        (only where it has one, and before a stored queue starts anything)
                  ── start(job, report) ────►    │
                  ── cancel(job.id) ────────►    │
                  ── demand(shapes) ────────►    │        (only where it has one: what would run if there were room)
                  ◄── changed() ─────────────────┤        capacity() tells another thing now
                  ◄── report(Started) ───────────┤        at most once, as soon as it runs
                  ◄── report(Ended) ─────────────┘        exactly once, whatever happens

Who decides what: slots, groups, priorities, retries and named resources are the scheduler's; which machine, the numbers of its GPUs and
whether a memory gate is open there are the backend's. Only what has a slot is handed over: at most ``capacity().slots`` jobs are with a
backend at any time.

A backend that passes ``check_backend`` (nbprocs.testing.conformance) works with the scheduler.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from nbprocs.engine.home import Home
from nbprocs.model import Stream

__all__ = ["Adopting", "Backend", "Capacity", "Elastic", "Ended", "Fenced", "Job", "JobOutput", "JobProcess", "Report", "Shape", "Started"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt to run one task.

    >>> Job(id="k-1.1", task_id="k-1", name="list", command="ls").timeout is None
    True
    """

    id: str  # of the attempt, in this kernel
    task_id: str
    attempt: int = 1  # of the task: with task_id the same in every kernel
    name: str
    command: str | Callable[..., Any]
    args: tuple[Any, ...] = ()
    working_dir: str | None = None  # absolute, as asked for
    folder: str | None = None  # absolute, where it was scheduled: its working_dir on a machine that has this folder, too
    env_vars: dict[str, str | None] = field(default_factory=dict)  # what to change in the environment of the place where it runs
    options: Mapping[str, Any] = field(default_factory=dict)  # all other options of its ProcessConfig, by name
    timeout: float | None = None  # seconds from its start; the backend ends the whole tree after it
    shell: bool = False
    named: bool = False  # the name is the task's own, not its command line
    priority: int = 1  # a TaskPriority, or any whole number
    resources: tuple[tuple[str, float], ...] = ()  # sorted by name; units of "gpu" are numbered by the backend
    memory_gate: int = 0  # bytes that must be free where it starts; the scheduler looks only if the backend has ``free_memory``
    group: str | None = None
    files: tuple[tuple[str, str], ...] = ()  # (name as the task sees it, absolute path here)


@runtime_checkable
class JobOutput(Protocol):
    """What a stream of a running job has written so far; an OutputLog is one."""

    def getvalue(self) -> bytes:
        """All that is kept, first to last."""


@runtime_checkable
class JobProcess(Protocol):
    """What runs a job, wherever that is: all that a task's handle and the views ask of it. A ManagedProcess is one.

    >>> async with ProcessManager() as pm:
    ...     isinstance(await pm.spawn("true"), JobProcess)
    True
    """

    @property
    def stdout(self) -> JobOutput:
        """What it wrote."""

    @property
    def stderr(self) -> JobOutput:
        """What it wrote as errors."""

    @property
    def created_at(self) -> datetime:
        """Timezone-aware."""

    @property
    def pid(self) -> int | None:
        """On its host; None before it has one."""

    @property
    def host(self) -> str:
        """The machine that it runs on."""

    def lines(self, stream: Stream | str = Stream.STDOUT) -> AsyncIterator[str]:
        """Its lines from the first one, as they come; several readers see all of them."""

    def pause(self) -> None:
        """Stop it where it is. Raises CommunicationError when it has ended."""

    def resume(self) -> None:
        """Undo pause()."""

    def interrupt(self) -> None:
        """SIGINT, like Ctrl-C in a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The job runs now.

    >>> Started(pid=42, host="here").pid
    42
    """

    pid: int | None = None  # on its host
    host: str = ""
    worker: str = ""  # the worker's name and address, where a host may have several
    process: JobProcess | None = None  # None for what is no process of its own: it can't be paused and has no output


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The job has ended; nothing of it runs any more.

    >>> Ended(result=7).error is None
    True
    """

    result: Any = None  # a ProcessResult, or what the callable returned
    error: BaseException | None = None  # why it failed, WorkerLost where its machine went; None for success
    stopped: bool = False  # it ended because of cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much a backend can run at once.

    >>> Capacity(slots=4).why
    ''
    """

    slots: int  # jobs at a time; 0: none now
    resources: Mapping[str, float] = field(default_factory=dict)  # what it has by itself ("gpu"), in all; need not be declared then
    elastic: bool = False  # it may get more: what asks for more than there is waits instead of being refused
    why: str = ""  # what is waited for where there is no slot: "a worker", "the cluster tcp://… to come back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """So many tasks with the same needs run, or would if there were room. What a backend that grows is told.

    >>> Shape(count=3, resources=(("gpu", 1.0),)).memory
    0
    """

    count: int
    resources: tuple[tuple[str, float], ...] = ()
    memory: int = 0  # bytes, each


Report = Callable[[Started | Ended], None]


class Backend(Protocol):
    """What runs jobs. All methods are called on the scheduler's home loop, and reports are made on it; ``capacity`` on any thread.

    It may also have ``demand`` (see Elastic), ``fence`` (see Fenced) and ``free_memory() -> float``: bytes that a new job could have,
    asked for tasks with a memory gate. Without it the scheduler leaves gates to the backend.

    >>> from nbprocs.scheduler import LocalBackend
    >>> LocalBackend().name
    'local'
    """

    name: str

    def capacity(self) -> Capacity:
        """How much it can run at once, at this moment; also before bind(), and from any thread. Returns at once and never raises."""

    def bind(self, home: Home, changed: Callable[[], None]) -> None:
        """Called once before any job, with the scheduler's home. ``changed`` is to be called there when capacity() tells another thing."""

    def start(self, job: Job, report: Report) -> None:
        """Start a job; returns at once and never raises. ``report`` gets at most one Started, then exactly one Ended."""

    def cancel(self, job_id: str, *, grace: float) -> None:
        """End a job that was started, its tree and all; returns at once. Idempotent, and nothing for one that has ended."""

    async def aclose(self) -> None:
        """End everything; on return nothing runs. Ended has been reported for every job."""


@runtime_checkable
class Elastic(Protocol):
    """A backend that grows and shrinks with what is asked of it."""

    def demand(self, shapes: tuple[Shape, ...]) -> None:
        """What runs and what would run if there were room, each time that this changes; () when nothing is to do. Returns at once."""


@runtime_checkable
class Adopting(Protocol):
    """A backend with jobs that go on without the kernel: those whose options say ``detach``. ``aclose`` leaves them running, unreported."""

    def adopt(self, job: Job, report: Report) -> None:
        """Take up what a former kernel started as this task's attempt; reports as ``start``.

        Also when it has ended meanwhile. Ended with UnknownProcess says that nothing of it is known: it never ran, or left no record.
        """


@runtime_checkable
class Fenced(Protocol):
    """A backend whose jobs may outlive the kernel that started them."""

    async def fence(self, prefix: str) -> None:
        """End what a former kernel started whose task ids begin with ``prefix``; on return none of it runs, nor will.

        Called once, after bind() and before the first start(), when a stored queue was opened. May take as long as it must: the queue
        stands still meanwhile. If it raises, the queue says why, and asks again after two seconds.
        """
