"""Values of the scheduler: states, configs, snapshots, events. Enums and frozen dataclasses only; no loop, no clock, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from nbprocs import checks
from nbprocs.display import clock
from nbprocs.model import TaskPriority
from nbprocs.policy import RetryPolicy

__all__ = [
    "After",
    "Attempt",
    "Condition",
    "Eta",
    "GroupStatus",
    "Halt",
    "Interrupted",
    "Misfire",
    "Now",
    "ResourceStatus",
    "ScheduledTask",
    "SchedulerConfig",
    "SchedulerEvent",
    "SchedulerStatus",
    "TaskEventKind",
    "TaskState",
]


class TaskState(StrEnum):
    """Where a task is. The last five are final."""

    SCHEDULED = "scheduled"  # its time has not come (a delay, a date, a retry, the next run of a series)
    BLOCKED = "blocked"  # waits for other tasks to end
    QUEUED = "queued"  # would start if there were room
    HELD = "held"  # somebody holds it back
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # after its last retry
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # a task it depends on ended otherwise than it asked for
    INTERRUPTED = "interrupted"  # its kernel died while it ran, and the policy says not to run it again

    @property
    def final(self) -> bool:
        """True when nothing will happen to the task any more.

        >>> TaskState.SKIPPED.final, TaskState.HELD.final
        (True, False)
        """
        return self in _FINAL


_FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.SKIPPED, TaskState.INTERRUPTED})


class Condition(StrEnum):
    """How a task that another one waits for must end.

    >>> Condition("any") is Condition.ANY
    True
    """

    SUCCESS = "success"
    FAILURE = "failure"  # failed or interrupted; a cancelled or skipped task did not fail
    ANY = "any"

    def met(self, state: TaskState) -> bool:
        """Whether an end in this state satisfies the condition.

        >>> Condition.FAILURE.met(TaskState.FAILED), Condition.SUCCESS.met(TaskState.CANCELLED), Condition.ANY.met(TaskState.CANCELLED)
        (True, False, True)
        """
        if self is Condition.ANY:
            return state.final
        wanted = (TaskState.SUCCEEDED,) if self is Condition.SUCCESS else (TaskState.FAILED, TaskState.INTERRUPTED)
        return state in wanted


@dataclass(frozen=True, slots=True)
class After:
    """A dependency with its condition: ``after=[After(a, "failure")]``. A bare handle or id means success.

    >>> After("k-1", "any").on
    <Condition.ANY: 'any'>
    """

    task: object  # a TaskHandle, an id, or (in schedule_many) the name of another task of the same call
    on: Condition = Condition.SUCCESS

    def __post_init__(self) -> None:
        """Accept the condition by its name. Raises ValueError for another word."""
        object.__setattr__(self, "on", Condition(checks.one_of("on", self.on, tuple(Condition))))


class Misfire(StrEnum):
    """What becomes of times of a series that passed while it ran, or while no kernel was there. A series never overlaps itself.

    >>> [rule.value for rule in Misfire]
    ['once', 'skip', 'all']
    """

    ONCE = "once"  # one run at once for all of them
    SKIP = "skip"  # none: the next time in the future
    ALL = "all"  # one run for each, one after the other


class Interrupted(StrEnum):
    """What becomes of a task that ran when its kernel died.

    >>> SchedulerConfig(on_interrupted="mark").on_interrupted
    <Interrupted.MARK: 'mark'>
    """

    RETRY = "retry"  # queued again, at most max_interruptions times in a row; it does not count as a retry
    MARK = "mark"  # ends as INTERRUPTED


class Now(NamedTuple):
    """An instant on both clocks, in seconds.

    >>> Now(wall=1000.0, elapsed=5.0).elapsed
    5.0
    """

    wall: float  # since the epoch; may jump
    elapsed: float  # never goes back; counts a suspended machine's sleep where the system can tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """When to stop the queue because too much fails: after so many failures, or at a percentage of the ended tasks.

    ``now=True`` also kills what runs. A halted queue starts nothing until ``resume()``; ``join()`` raises.

    >>> Halt(failures=1).reached(failed=1, ended=5), Halt(percent=50).reached(failed=2, ended=5)
    (True, False)
    """

    failures: int | None = None
    percent: float | None = None  # of the tasks that succeeded or failed, 0 to 100
    minimum: int = 3  # ended tasks before the percentage counts
    now: bool = False

    def __post_init__(self) -> None:
        """Refuse a policy that can't trigger. Raises ValueError."""
        if self.failures is None and self.percent is None:
            raise ValueError("a Halt needs failures= or percent=")
        if self.failures is not None:
            checks.whole("failures", self.failures, least=1)
        if self.percent is not None:
            checks.number("percent", self.percent, above=0, most=100)
        checks.whole("minimum", self.minimum, least=0)
        checks.flag("now", self.now)

    def reached(self, *, failed: int, ended: int) -> bool:
        """Whether that many failures among that many ended tasks stop the queue."""
        if self.failures is not None and failed >= self.failures:
            return True
        return self.percent is not None and failed > 0 and ended >= self.minimum and 100 * failed >= self.percent * ended


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How a scheduler works. Raises ValueError for numbers that make no sense.

    >>> SchedulerConfig(max_concurrent_tasks=2, groups={"download": 1}).max_concurrent_tasks
    2
    """

    max_concurrent_tasks: int | None = (
        None  # None: as many as the backend can run at once (on this machine 4, or one a core if it has more)
    )
    default_timeout: float | None = None  # seconds; None: no limit
    max_retries: int = 0  # for tasks that don't say
    retry_delay: float = 1.0  # seconds before the first retry
    max_retry_delay: float = 60.0  # seconds; no delay is longer
    backoff_multiplier: float = 2.0
    retry_jitter: bool = False  # True: a random part of each delay
    retry: RetryPolicy | None = None  # instead of the five above, the same object that managers, pools and handlers take
    groups: Mapping[str, int] = field(default_factory=dict)  # group -> how many of it run at a time; others are not limited
    resources: Mapping[str, float] = field(default_factory=dict)  # name -> capacity; "gpu" is found out by itself
    halt: Halt | None = None
    on_interrupted: Interrupted = Interrupted.RETRY
    max_interruptions: int = 2  # retries after a kernel's death in a row; one more, and the task is taken for its cause and marked
    grace: float = 5.0  # seconds between SIGTERM and SIGKILL when a task is cancelled
    history: int = 10_000  # attempts kept in memory for frame(); a store keeps all
    store_output: int = 64 * 1024  # bytes of each stream's end that a store keeps of an attempt

    def policy(self, max_retries: int) -> RetryPolicy:
        """The retry policy of a task that may be tried again so often."""
        if self.retry is not None:
            return self.retry if self.retry.max_retries == max_retries else replace(self.retry, max_retries=max_retries)
        return RetryPolicy(
            max_retries=max_retries,
            initial_delay=self.retry_delay,
            max_delay=self.max_retry_delay,
            backoff_multiplier=self.backoff_multiplier,
            jitter=self.retry_jitter,
        )

    def __post_init__(self) -> None:
        """Check and freeze."""
        if self.max_concurrent_tasks is not None:
            checks.whole("max_concurrent_tasks", self.max_concurrent_tasks, least=1)
        for name in ("max_retries", "max_interruptions", "history", "store_output"):
            checks.whole(name, getattr(self, name), least=0, most=2**31 - 1)
        for name in ("retry_delay", "max_retry_delay", "grace"):
            checks.number(name, getattr(self, name), least=0, most=checks.LONGEST)
        checks.number("backoff_multiplier", self.backoff_multiplier, least=1, most=1e6)
        checks.flag("retry_jitter", self.retry_jitter)
        if self.halt is not None and not isinstance(self.halt, Halt):
            checks.refuse(TypeError, "halt", "a Halt or None", self.halt)
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            checks.refuse(TypeError, "retry", "a RetryPolicy or None", self.retry)
        for name in ("groups", "resources"):
            for key, value in checks.mapping(name, getattr(self, name)).items():
                if not isinstance(key, str) or not key.strip():
                    checks.refuse(TypeError, f"a name in {name}", "text that is not blank", key)
                if name == "groups":
                    checks.whole(f"groups[{key!r}]", value, least=0)
                else:
                    checks.number(f"resources[{key!r}]", value, above=0)
        seconds = checks.seconds("default_timeout", self.default_timeout)
        interrupted = checks.one_of("on_interrupted", self.on_interrupted, tuple(Interrupted))
        object.__setattr__(self, "default_timeout", seconds)
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))
        object.__setattr__(self, "resources", MappingProxyType(dict(self.resources)))
        object.__setattr__(self, "on_interrupted", Interrupted(interrupted))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledTask:
    """A snapshot of one task; it never changes afterwards. ``command`` and ``args`` are as given; their display is masked.

    >>> async with TaskScheduler() as sch:
    ...     task = sch.schedule("make", "-j4", max_retries=2, hold=True).task
    >>> task.args, task.retry_count, task.max_retries, task.state.value
    (('-j4',), 0, 2, 'held')
    """

    id: str
    command: str = field(repr=False)
    args: tuple[str, ...] = field(repr=False)
    priority: int  # TaskPriority, or any whole number
    scheduled_time: datetime  # timezone-aware; the time from which it may run
    estimated_duration: float | None  # seconds: as given, or what this command took before
    retry_count: int
    max_retries: int
    state: TaskState
    execution_time: float | None = None  # seconds: of the latest attempt, so far if it runs
    name: str | None = None
    key: str | None = None
    group: str | None = None
    resources: tuple[tuple[str, float], ...] = ()
    after: tuple[str, ...] = ()  # ids it still waits for
    runs: int = 0  # ended runs of a series
    working_dir: str | None = None  # as asked for, or where it was scheduled
    display: str = ""  # the command line, masked
    host: str = ""  # the machine of the latest attempt
    worker: str = ""  # … and of a cluster, the worker's name and address


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of one task. Times are seconds since the epoch; None where it did not happen or is not known.

    >>> async with TaskScheduler() as sch:
    ...     handle = sch.schedule("true")
    ...     _ = await handle
    >>> [(a.attempt, a.outcome, a.exit_code) for a in handle.attempts]
    [(1, 'succeeded', 0)]
    """

    task_id: str
    attempt: int  # 1 is the first
    name: str
    command: str  # masked
    priority: int
    group: str | None
    queued: float
    started: float | None  # when it ran, not when it was handed to the backend
    ended: float | None
    outcome: str  # "succeeded", "failed", "timeout", "cancelled", "interrupted", "running"
    exit_code: int | None = None
    signal: int | None = None
    retry: int = 0  # 0 for a first try
    execution_time: float | None = None  # seconds
    peak_rss: int | None = None  # bytes
    cpu_time: float | None = None  # seconds
    pid: int | None = None
    host: str = ""
    worker: str = ""  # of a cluster
    slot: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """One group: how many run, how many may, and whether it is paused.

    >>> TaskScheduler(SchedulerConfig(groups={"download": 2})).status().groups
    (GroupStatus(name='download', running=0, limit=2, paused=False),)
    """

    name: str
    running: int
    limit: int | None
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """One resource: how much is in use, and of how much.

    >>> TaskScheduler(SchedulerConfig(resources={"licence": 3})).status().resources
    (ResourceStatus(name='licence', used=0.0, capacity=3),)
    """

    name: str
    used: float
    capacity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """When the queue will be empty, in seconds from now: a middle value, and the interval that it is in with 95 % probability.

    From the durations of the same commands so far (or ``estimated_duration``), taken as independent, spread over the slots.

    >>> print(Eta(low=50, middle=65, high=80))
    0:50-1:20
    """

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        """Short, for a progress bar."""
        return f"{clock(self.low)}-{clock(self.high)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatus:
    """A snapshot of a scheduler.

    >>> status = TaskScheduler(SchedulerConfig(max_concurrent_tasks=3)).status()
    >>> status.queued_tasks, status.running_tasks, status.max_concurrent, status.next_scheduled_time
    (0, 0, 3, None)
    """

    queued_tasks: int  # everything that has not started: scheduled, blocked, queued and held
    running_tasks: int
    max_concurrent: int
    next_scheduled_time: datetime | None  # timezone-aware; when the next task's time comes
    scheduled: int = 0
    blocked: int = 0
    ready: int = 0
    held: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    interrupted: int = 0
    retries: int = 0
    paused: bool = False
    halted: str | None = None  # why nothing starts, until resume()
    closed: bool = False
    groups: tuple[GroupStatus, ...] = ()
    resources: tuple[ResourceStatus, ...] = ()
    eta: Eta | None = None
    store: str | None = None


class TaskEventKind(StrEnum):
    """What a scheduler's event stream tells.

    >>> TaskEventKind("retrying") is TaskEventKind.RETRYING
    True
    """

    SCHEDULED = "scheduled"
    STARTED = "started"  # it runs: its process is there
    RETRYING = "retrying"
    ENDED = "ended"
    CHANGED = "changed"  # held, released, reprioritised, paused, resumed, a limit
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerEvent:
    """One thing that happened to one task (``task_id`` is "" for the scheduler itself).

    >>> async with TaskScheduler() as sch:
    ...     seen = []
    ...     stop = sch.subscribe(lambda event: seen.append(event.kind.value))
    ...     _ = await sch.schedule("true")
    >>> seen[:3]
    ['scheduled', 'started', 'ended']
    """

    kind: TaskEventKind
    task_id: str = ""
    state: TaskState | None = None
    delay: float | None = None  # seconds, RETRYING
    error: BaseException | None = None


def priority_name(priority: int) -> str:
    """``HIGH`` for a TaskPriority's number, the number itself for any other.

    >>> priority_name(2), priority_name(17)
    ('HIGH', '17')
    """
    try:
        return TaskPriority(priority).name
    except ValueError:
        return str(priority)
