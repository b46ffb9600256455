"""Values of the monitor: thresholds, rules, alerts, one process's metrics. No I/O, no clock."""

import math
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase

__all__ = [
    "Alert",
    "AlertSeverity",
    "AlertThresholds",
    "AlertType",
    "ProcessMetrics",
    "Rule",
    "Scope",
    "State",
]


class AlertType(StrEnum):
    """What an alert is about. ACTIVITY and SILENCE are asked for by rules of their own; thresholds give the first six.

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


class AlertSeverity(IntEnum):
    """How bad; comparable.

    >>> AlertSeverity.CRITICAL > AlertSeverity.WARNING
    True
    >>> str(AlertSeverity.CRITICAL)
    'critical'
    """

    INFO = 0
    WARNING = 1
    CRITICAL = 2
    EMERGENCY = 3

    def __str__(self) -> str:
        return self.name.lower()


class Scope(IntEnum):
    """What a sample is of.

    >>> [scope.name.lower() for scope in Scope]
    ['tree', 'process', 'group']
    """

    TREE = 0  # a watched process with all its descendants
    PROCESS = 1  # one process of a tree that has several
    GROUP = 2  # a manager or a pool as a whole


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


_TYPES = {
    "memory_usage_mb": AlertType.MEMORY_USAGE,
    "memory_percent": AlertType.MEMORY_USAGE,
    "pss_mb": AlertType.MEMORY_USAGE,
    "uss_mb": AlertType.MEMORY_USAGE,
    "gpu_memory_mb": AlertType.MEMORY_USAGE,
    "cpu_percent": AlertType.CPU_USAGE,
    "response_time": AlertType.RESPONSE_TIME,
    "error_rate": AlertType.ERROR_RATE,
    "down": AlertType.PROCESS_DOWN,
    "idle_seconds": AlertType.PROCESS_HUNG,
    "silence_seconds": AlertType.SILENCE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When to raise an alert: a metric beyond a limit for some time. Give ``above`` or ``below``.

    The alert ends when the metric is back beyond ``clear`` (hysteresis; by default the limit itself), or when the process ends.
    ``down`` is a metric too: 1 for a process that failed or is gone, 2 when its supervisor gave up.

    >>> rule = Rule(metric="memory_usage_mb", above=500, clear=450, for_seconds=10)
    >>> rule.type
    <AlertType.MEMORY_USAGE: 'memory_usage'>
    >>> Rule.silence(30).metric
    'silence_seconds'
    """

    metric: str  # a column of the monitor's frame, or "down"
    above: float | None = None
    below: float | None = None
    for_seconds: float = 0.0  # the condition must hold this long before the alert fires
    clear: float | None = None
    severity: AlertSeverity = AlertSeverity.WARNING
    type: AlertType | None = None  # None: by the metric
    scope: Scope | None = Scope.TREE  # None: any
    process: str = "*"  # pattern of names
    arm: float | None = None  # only after the metric was on the other side of this: "output again, after a silence"

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that could never work."""
        if (self.above is None) == (self.below is None):
            msg = f"a rule on {self.metric} needs either above= or below="
            raise ValueError(msg)
        limit = self.limit
        if math.isnan(limit) or self.for_seconds < 0:
            msg = f"a rule on {self.metric} needs a number as its limit and for_seconds >= 0, not {limit!r} and {self.for_seconds!r}"
            raise ValueError(msg)
        if self.clear is not None and (self.clear > limit if self.above is not None else self.clear < limit):
            msg = f"clear={self.clear:g} of the rule on {self.metric} lies beyond its limit {limit:g}: the alert could never end"
            raise ValueError(msg)
        if self.type is None:
            if self.metric not in _TYPES:
                msg = f"no alert type is known for the metric {self.metric!r}: give type="
                raise ValueError(msg)
            object.__setattr__(self, "type", _TYPES[self.metric])

    @property
    def limit(self) -> float:
        """The limit, whichever side it is for."""
        return float(self.above if self.above is not None else self.below or 0.0)

    @property
    def kind(self) -> AlertType:
        """The alert's type, never None."""
        return self.type or AlertType.PROCESS_HUNG

    @classmethod
    def silence(cls, seconds: float, *, process: str = "*", severity: AlertSeverity = AlertSeverity.INFO) -> "Rule":
        """Tell me when a process has written nothing for so many seconds."""
        return cls(metric="silence_seconds", above=seconds, process=process, severity=severity)

    @classmethod
    def activity(cls, after: float = 10.0, *, process: str = "*", severity: AlertSeverity = AlertSeverity.INFO) -> "Rule":
        """Tell me when a process writes again after so many seconds of silence; the alert ends with the next such silence."""
        return cls(
            metric="silence_seconds", below=after, clear=after, arm=after, type=AlertType.ACTIVITY, process=process, severity=severity
        )

    def matches(self, name: str) -> bool:
        """Whether the rule is for a process of that name."""
        return self.process == "*" or fnmatchcase(name, self.process)


_CLEAR = 0.95  # an alert of a threshold ends when 5 % below it: no flapping at the edge


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertThresholds:
    """The five limits; None: no such alert. A process that fails always raises PROCESS_DOWN.

    >>> [str(rule.kind) for rule in AlertThresholds(max_memory_mb=500).rules()]
    ['process_down', 'process_down', 'memory_usage']
    """

    max_memory_mb: float | None = None  # MiB, resident, whole tree
    max_cpu_percent: float | None = None  # 100 is one core, whole tree
    max_response_time: float | None = None  # seconds, of a probe
    max_error_rate: float | None = None  # 0..1: failures among the outcomes of the last minute
    max_idle_time: float | None = None  # seconds without CPU use, I/O and output

    def rules(self) -> tuple["Rule", ...]:
        """The same as rules."""
        found = [
            Rule(metric="down", above=0.5, severity=AlertSeverity.CRITICAL),
            Rule(metric="down", above=1.5, severity=AlertSeverity.EMERGENCY),
        ]
        for metric, limit, severity, scope in (
            ("memory_usage_mb", self.max_memory_mb, AlertSeverity.WARNING, Scope.TREE),
            ("cpu_percent", self.max_cpu_percent, AlertSeverity.WARNING, Scope.TREE),
            ("response_time", self.max_response_time, AlertSeverity.WARNING, None),
            ("error_rate", self.max_error_rate, AlertSeverity.CRITICAL, None),
            ("idle_seconds", self.max_idle_time, AlertSeverity.CRITICAL, Scope.TREE),
        ):
            if limit is not None:
                clear = limit if metric == "idle_seconds" else limit * _CLEAR
                found.append(Rule(metric=metric, above=limit, clear=clear, severity=severity, scope=scope))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One episode of one condition of one process. A snapshot: when the episode goes on, a new Alert with the same id says so.

    The id depends on what and when only, so that a replay gives the same one.

    >>> import pandas as pd
    >>> samples = pd.DataFrame({"timestamp": pd.to_datetime(["2026-01-01"]), "name": "job", "cpu_percent": [99.0]})
    >>> (alert,) = nbprocs.monitor.replay(samples, Rule(metric="cpu_percent", above=90))
    >>> alert.message, alert.resolved, alert.duration
    ('job: CPU 99 % (above 90)', False, None)
    """

    id: str
    process_id: str
    name: str
    type: AlertType
    severity: AlertSeverity  # the worst so far
    message: str
    timestamp: datetime  # when it fired; timezone-aware
    metric: str
    value: float  # when it fired, or got worse
    limit: float
    peak: float  # the worst value so far
    resolved: bool = False
    resolved_at: datetime | None = None

    @property
    def duration(self) -> float | None:
        """Seconds from fire to resolve; None while it is open."""
        return None if self.resolved_at is None else (self.resolved_at - self.timestamp).total_seconds()

    def __repr__(self) -> str:
        end = "open" if self.resolved_at is None else f"resolved after {self.duration:.3g} s"
        return f"<Alert {self.severity} {self.type}: {self.message} ({end})>"


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
    memory_usage_mb: float | None  # resident, of the whole tree; MiB
    pss_mb: float | None  # the latest measurement: seldom, it is slow
    uss_mb: float | None
    memory_percent: float | None  # of the container's limit, or of the machine
    cpu_percent: float | None
    threads: int | None
    file_descriptors: int | None
    processes: int | None
    restarts: int
    error_count: int
    success_count: int
    read_bytes: int | None
    write_bytes: int | None
    age_seconds: float | None
    response_time: float | None  # seconds; inf: it was asked and did not answer
    error_rate: float | None
    throughput: float | None  # a second: lines of output; tasks of a pool; ends of a manager's processes
    output_bytes_per_second: float | None
    idle_seconds: float | None
    silence_seconds: float | None
    gpu_memory_mb: float | None
    gpu_percent: float | None
    ports: tuple[int, ...] = ()  # TCP ports it listens on
