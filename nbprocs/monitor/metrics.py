"""The one table of metrics: each is one annotated field of ProcessMetrics, and its reading is one line of the sampler.

::

      ProcessMetrics.threads: Annotated[int | None, Metric("i4", …)]
                                   │
                                METRICS ──► columns and bytes of the history, columns of frame() and latest()
                                        ──► how a tree's members and a group's trees are added up; what a resting process does to it
                                        ──► type and words of its alerts, thresholds, panels of plot(), summary(), static table
                                        ──► families of Prometheus
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum, IntEnum, StrEnum, auto
from typing import Annotated, Any

from nbprocs.checks import member

__all__ = ["METRICS", "AlertType", "Fold", "Metric", "ProcessMetrics", "Prometheus", "Rest", "Scope", "State", "Threshold"]

MIB = 1 << 20
_MOST = {"i2": 2**15 - 1, "i4": 2**31 - 1, "i8": 2**63 - 1}


class AlertType(StrEnum):
    """What an alert is about. The last three are asked for by rules of their own; thresholds give the first six.

    >>> AlertType("process_down")
    <AlertType.PROCESS_DOWN: 'process_down'>
    """

    MEMORY_USAGE = "memory_usage"
    CPU_USAGE = "cpu_usage"
    RESPONSE_TIME = "response_time"
    ERROR_RATE = "error_rate"
    PROCESS_DOWN = "process_down"
    PROCESS_HUNG = "process_hung"
    ACTIVITY = "activity"
    SILENCE = "silence"
    REGRESSION = "regression"


class Scope(IntEnum):
    """What a sample is of.

    >>> [scope.name.lower() for scope in Scope]
    ['tree', 'process', 'group']
    """

    TREE = 0  # a watched process with all its descendants
    PROCESS = 1  # one process of a tree that has several
    GROUP = 2  # a manager or a pool as a whole

    @classmethod
    def of(cls, given: object) -> "Scope":
        """A scope by itself or its name. Raises TypeError or ValueError."""
        known = isinstance(given, str) and given.upper() in cls.__members__
        return cls[str(given).upper()] if known else member("scope", given, cls)


class State(IntEnum):
    """What a process was doing when it was sampled. From COMPLETED on it has ended.

    >>> State.FAILED.ended, State.ZOMBIE.ended
    (True, False)
    """

    UNKNOWN = 0
    RUNNING = 1  # on a processor, or ready for it
    SLEEPING = 2
    BLOCKED = 3  # in an uninterruptible wait, mostly for a disk
    STOPPED = 4  # by a signal or a debugger
    ZOMBIE = 5  # ended, not yet reaped by its parent
    COMPLETED = 6  # exit status 0
    TERMINATED = 7  # we stopped it
    FAILED = 8  # another exit status, a signal, a timeout
    GONE = 9  # ended; not our child, so nobody can tell how
    FATAL = 10  # its supervisor gave up
    FORGOTTEN = 11  # fell out of the history of what was watched

    @property
    def ended(self) -> bool:
        """True when there is no process any more."""
        return self >= State.COMPLETED

    def __str__(self) -> str:
        return self.name.lower()


class Fold(Enum):
    """How the values of a tree's members become the tree's, and those of a group's trees the group's."""

    SUM = auto()  # the sum; unknown if one of them is
    KNOWN = auto()  # the sum of those that are known
    OWN = auto()  # not added up: read of the tree or the group itself, or unknown


class Rest(Enum):
    """What becomes of the value while the process does not run."""

    HELD = auto()  # stays
    ZERO = auto()  # is nothing
    CLOCK = auto()  # grows with the time, in seconds
    UNKNOWN = auto()  # is unknown until it is read again


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The family of a metric in an exposition: name without ``nbprocs_``, help, factor to Prometheus's base unit."""

    name: str
    help: str
    factor: float = 1.0

    @property
    def kind(self) -> str:
        """By Prometheus's naming: what ends with ``_total`` only grows."""
        return "counter" if self.name.endswith("_total") else "gauge"


@dataclass(frozen=True, slots=True)
class Threshold:
    """The field of AlertThresholds that limits a metric."""

    field: str
    critical: bool = False  # else a warning
    clear: float = 0.95  # of the limit: where the alert ends, so that it does not flap at the edge
    any_scope: bool = False  # else whole trees only


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One column."""

    dtype: str  # of numpy: "f4" with NaN, or "i2", "i4", "i8" with -1 for what is unknown
    label: str  # of a panel
    unit: str = ""  # behind a value, as it is shown
    said: str = ""  # how an alert says it: "web: memory 600 MiB"; "": the label
    fold: Fold = Fold.OWN
    rest: Rest = Rest.HELD
    alert: AlertType | None = None  # the type of a rule on it; None: the rule has to tell
    threshold: Threshold | None = None
    summary: tuple[tuple[str, str], ...] = ()  # columns of summary(), each with the aggregation of pandas
    prometheus: Prometheus | None = None
    head: str = ""  # over its column of the static table; "": none there
    digits: int = 0  # shown behind the point

    @property
    def counts(self) -> bool:
        """Whether it is a whole number."""
        return self.dtype[0] == "i"

    @property
    def unknown(self) -> float:
        """What stands for a value that was not measured."""
        return -1 if self.counts else float("nan")

    def known(self, value: float) -> bool:
        """Whether that is a measured value."""
        return value >= 0 if self.counts else value == value  # noqa: PLR0124 - NaN

    def folded(self, values: Sequence[float]) -> float:
        """The value of the whole from those of its parts."""
        if self.fold is Fold.KNOWN:
            known = [value for value in values if value >= 0] if self.counts else [value for value in values if value == value]  # noqa: PLR0124
            return math.fsum(known) if known or not values else self.unknown
        if not self.counts:
            return math.fsum(values)
        return min(sum(values), _MOST[self.dtype]) if min(values, default=0) >= 0 else -1

    def rested(self, values: Any, elapsed: Any) -> Any:
        """An array of values after so many seconds in which their processes did not run."""
        match self.rest:
            case Rest.HELD:
                return values
            case Rest.ZERO:
                return values * 0  # NaN stays: what could not be measured is not nothing
            case Rest.CLOCK:
                return values + elapsed
        return self.unknown

    @property
    def word(self) -> str:
        """How an alert says it."""
        return self.said or self.label

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMetrics:
    """The latest sample of one watched thing. None: not measured, or the system doesn't tell.

    >>> async with nbprocs.ProcessManager() as pm, nbprocs.monitor.ProcessMonitor(interval=None) as mon:
    ...     mon.watch(pm)
    ...     _ = await pm.spawn("sleep", "100", name="sleeper")
    ...     await mon.sample()
    ...     found = mon.metrics("sleeper")
    >>> found.processes, found.cpu_percent, found.response_time
    (1, None, None)
    """

    process_id: str
    name: str
    pid: int | None
    timestamp: datetime
    state: State
    # resident memory, of the whole tree
    memory_usage_mb: Annotated[float | None, Metric(
        dtype="f4", label="Memory", unit="MiB", said="memory", fold=Fold.SUM, alert=AlertType.MEMORY_USAGE, head="MiB", digits=1,
        threshold=Threshold("max_memory_mb"), summary=(("memory_mean_mb", "mean"), ("memory_max_mb", "max")),
        prometheus=Prometheus("memory_resident_bytes", "Resident memory of the process tree.", MIB),
    )]  # fmt: skip
    # the latest measurement: seldom, it is slow
    pss_mb: Annotated[float | None, Metric(
        dtype="f4", label="Memory, PSS", unit="MiB", said="memory (PSS)", rest=Rest.UNKNOWN, alert=AlertType.MEMORY_USAGE,
        summary=(("pss_max_mb", "max"),),
        prometheus=Prometheus("memory_proportional_bytes", "Proportional set size of the process tree.", MIB),
    )]  # fmt: skip
    uss_mb: Annotated[float | None, Metric(
        dtype="f4", label="Memory, USS", unit="MiB", said="memory (USS)", rest=Rest.UNKNOWN, alert=AlertType.MEMORY_USAGE
    )]  # fmt: skip
    # of the container's limit, or of the machine
    memory_percent: Annotated[float | None, Metric(
        dtype="f4", label="Memory", unit="% of what there is", said="memory", fold=Fold.SUM, alert=AlertType.MEMORY_USAGE,
        head="% of memory", digits=1, prometheus=Prometheus("memory_percent", "Resident memory in percent of the container's limit."),
    )]  # fmt: skip
    cpu_percent: Annotated[float | None, Metric(
        dtype="f4", label="CPU", unit="% of one core", said="CPU", fold=Fold.KNOWN, rest=Rest.ZERO, alert=AlertType.CPU_USAGE, head="CPU %",
        threshold=Threshold("max_cpu_percent"), summary=(("cpu_mean_percent", "mean"), ("cpu_max_percent", "max")),
        prometheus=Prometheus("cpu_percent", "CPU use of the process tree; 100 is one core."),
    )]  # fmt: skip
    threads: Annotated[int | None, Metric(
        dtype="i4", label="Threads", fold=Fold.SUM, prometheus=Prometheus("threads", "Threads of the process tree.")
    )]  # fmt: skip
    file_descriptors: Annotated[int | None, Metric(
        dtype="i4", label="Open descriptors", fold=Fold.SUM, head="descriptors", summary=(("descriptors_max", "max"),),
        prometheus=Prometheus("open_fds", "Open file descriptors of the process tree."),
    )]  # fmt: skip
    processes: Annotated[int | None, Metric(
        dtype="i2", label="Processes", fold=Fold.SUM, head="processes", summary=(("processes_max", "max"),),
        prometheus=Prometheus("processes", "Processes in the tree."),
    )]  # fmt: skip
    restarts: Annotated[int, Metric(
        dtype="i2", label="Restarts", summary=(("restarts", "max"),), prometheus=Prometheus("restarts_total", "Restarts so far.")
    )]  # fmt: skip
    error_count: Annotated[int, Metric(
        dtype="i4", label="Errors", summary=(("errors", "max"),), prometheus=Prometheus("errors_total", "Exits and tasks that failed.")
    )]  # fmt: skip
    success_count: Annotated[int, Metric(
        dtype="i4", label="Successes", summary=(("successes", "max"),),
        prometheus=Prometheus("successes_total", "Exits and tasks that succeeded."),
    )]  # fmt: skip
    read_bytes: Annotated[int | None, Metric(
        dtype="i8", label="Read", unit="B", fold=Fold.SUM, summary=(("read_bytes", "max"),),
        prometheus=Prometheus("read_bytes_total", "Bytes read by system calls."),
    )]  # fmt: skip
    write_bytes: Annotated[int | None, Metric(
        dtype="i8", label="Written", unit="B", fold=Fold.SUM, summary=(("write_bytes", "max"),),
        prometheus=Prometheus("written_bytes_total", "Bytes written by system calls."),
    )]  # fmt: skip
    age_seconds: Annotated[float | None, Metric(
        dtype="f4", label="Age", unit="s", rest=Rest.CLOCK, prometheus=Prometheus("age_seconds", "Seconds since the process started.")
    )]  # fmt: skip
    # inf: it was asked and did not answer
    response_time: Annotated[float | None, Metric(
        dtype="f4", label="Response time", unit="s", said="response time", alert=AlertType.RESPONSE_TIME,
        threshold=Threshold("max_response_time", any_scope=True), summary=(("response_median", "median"),),
        prometheus=Prometheus("response_seconds", "Latest answer of its probe; +Inf: none."),
    )]  # fmt: skip
    error_rate: Annotated[float | None, Metric(
        dtype="f4", label="Error rate", said="error rate", alert=AlertType.ERROR_RATE,
        threshold=Threshold("max_error_rate", critical=True, any_scope=True),
        prometheus=Prometheus("error_rate", "Failures among the outcomes of the last minute."),
    )]  # fmt: skip
    # lines of output; tasks of a pool; ends of a manager's processes
    throughput: Annotated[float | None, Metric(
        dtype="f4", label="Throughput", unit="1/s", rest=Rest.ZERO,
        prometheus=Prometheus("throughput_per_second", "Lines of output, or tasks, a second."),
    )]  # fmt: skip
    output_bytes_per_second: Annotated[float | None, Metric(
        dtype="f4", label="Output", unit="B/s", rest=Rest.ZERO,
        prometheus=Prometheus("output_bytes_per_second", "Output in bytes a second."),
    )]  # fmt: skip
    idle_seconds: Annotated[float | None, Metric(
        dtype="f4", label="Idle", unit="s", said="no sign of life for", rest=Rest.CLOCK, alert=AlertType.PROCESS_HUNG,
        threshold=Threshold("max_idle_time", critical=True, clear=1.0),
        prometheus=Prometheus("idle_seconds", "Seconds without CPU use, I/O and output."),
    )]  # fmt: skip
    silence_seconds: Annotated[float | None, Metric(
        dtype="f4", label="Silence", unit="s", said="no output for", rest=Rest.CLOCK, alert=AlertType.SILENCE
    )]  # fmt: skip
    gpu_memory_mb: Annotated[float | None, Metric(
        dtype="f4", label="GPU memory", unit="MiB", fold=Fold.KNOWN, alert=AlertType.MEMORY_USAGE,
        prometheus=Prometheus("gpu_memory_bytes", "GPU memory of the process tree.", MIB),
    )]  # fmt: skip
    gpu_percent: Annotated[float | None, Metric(
        dtype="f4", label="GPU", unit="%", fold=Fold.KNOWN, prometheus=Prometheus("gpu_percent", "GPU load of the process tree.")
    )]  # fmt: skip
    # its age, in times of the median of its command's last 20 successful runs, where a run history knows some
    slowdown: Annotated[float | None, Metric(
        dtype="f4", label="Slowdown", rest=Rest.UNKNOWN, alert=AlertType.REGRESSION,
        prometheus=Prometheus("slowdown_ratio", "Age in times of what the command used to take."),
    )] = None  # fmt: skip
    ports: tuple[int, ...] = ()  # TCP ports it listens on


def _declared() -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for field in fields(ProcessMetrics):
        for note in getattr(field.type, "__metadata__", ()):
            if isinstance(note, Metric):
                found[field.name] = note
    return found


METRICS = _declared()  # by the name of the column, in the order of the columns
