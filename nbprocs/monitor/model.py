"""Values of the monitor: thresholds, rules, alerts. No I/O, no clock."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from fnmatch import fnmatchcase

from nbprocs.checks import LONGEST, member, name, number, seconds, text
from nbprocs.monitor.metrics import METRICS, AlertType, Scope

__all__ = ["Alert", "AlertSeverity", "AlertThresholds", "Rule"]


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
        """Raises TypeError or ValueError for a rule that could never work."""
        kept = object.__setattr__
        name("metric", self.metric)
        if (self.above is None) == (self.below is None):
            msg = f"a rule on {self.metric} needs either above= or below="
            raise ValueError(msg)
        for field in ("above", "below", "clear", "arm"):
            if (given := getattr(self, field)) is not None:
                kept(self, field, number(field, given))
        number("for_seconds", self.for_seconds, least=0, most=LONGEST, what="a number of seconds, 0 or more")
        kept(self, "severity", member("severity", self.severity, AlertSeverity))
        kept(self, "type", None if self.type is None else member("type", self.type, AlertType))
        kept(self, "scope", None if self.scope is None else member("scope", self.scope, Scope))
        text("process", self.process)
        limit = self.limit
        if self.clear is not None and (self.clear > limit if self.above is not None else self.clear < limit):
            msg = f"clear={self.clear:g} of the rule on {self.metric} lies beyond its limit {limit:g}: the alert could never end"
            raise ValueError(msg)
        if self.type is None:
            known = AlertType.PROCESS_DOWN if self.metric == "down" else getattr(METRICS.get(self.metric), "alert", None)
            if known is None:
                msg = f"no alert type is known for the metric {self.metric!r}: give type="
                raise ValueError(msg)
            object.__setattr__(self, "type", known)

    @property
    def limit(self) -> float:
        """The limit, whichever side it is for."""
        return float(self.above if self.above is not None else self.below or 0.0)

    @property
    def kind(self) -> AlertType:
        """The alert's type, never None."""
        return self.type or AlertType.PROCESS_HUNG

    @classmethod
    def silence(cls, after: float, *, process: str = "*", severity: AlertSeverity = AlertSeverity.INFO) -> "Rule":
        """Tell me when a process has written nothing for so many seconds."""
        return cls(metric="silence_seconds", above=after, process=process, severity=severity)

    @classmethod
    def activity(cls, after: float = 10.0, *, process: str = "*", severity: AlertSeverity = AlertSeverity.INFO) -> "Rule":
        """Tell me when a process writes again after so many seconds of silence; the alert ends with the next such silence."""
        return cls(
            metric="silence_seconds", below=after, clear=after, arm=after, type=AlertType.ACTIVITY, process=process, severity=severity
        )

    @classmethod
    def regression(cls, factor: float = 2.0, *, process: str = "*", severity: AlertSeverity = AlertSeverity.WARNING) -> "Rule":
        """Tell me when a process has run, or ran in all, for so many times the median of its command's last 20 successful runs.

        By the monitor's ``runs``; of a command that fewer than 5 successful runs are known of it says nothing. It is told while the
        process runs, at the end of a short one at the latest, and resolved with that end.
        """
        return cls(metric="slowdown", above=factor, process=process, severity=severity)

    def matches(self, name: str) -> bool:
        """Whether the rule is for a process of that name."""
        return self.process == "*" or fnmatchcase(name, self.process)


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

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what is no limit."""
        for field, most in (("max_memory_mb", None), ("max_cpu_percent", None), ("max_error_rate", 1.0)):
            if (given := getattr(self, field)) is not None:
                object.__setattr__(self, field, number(field, given, least=0, most=most))
        for field in ("max_response_time", "max_idle_time"):
            object.__setattr__(self, field, seconds(field, getattr(self, field), zero=True))

    def rules(self) -> tuple["Rule", ...]:
        """The same as rules."""
        found = [
            Rule(metric="down", above=0.5, severity=AlertSeverity.CRITICAL),
            Rule(metric="down", above=1.5, severity=AlertSeverity.EMERGENCY),
        ]
        for column, metric in METRICS.items():
            if (limit := self.limit(column)) is not None and (told := metric.threshold) is not None:
                severity = AlertSeverity.CRITICAL if told.critical else AlertSeverity.WARNING
                scope = None if told.any_scope else Scope.TREE
                found.append(Rule(metric=column, above=limit, clear=limit * told.clear, severity=severity, scope=scope))
        return tuple(found)

    def limit(self, metric: str) -> float | None:
        """The limit of a metric, if there is one.

        >>> AlertThresholds(max_cpu_percent=90).limit("cpu_percent")
        90
        """
        told = METRICS[metric].threshold if metric in METRICS else None
        return None if told is None else getattr(self, told.field)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One episode of one condition of one process. A snapshot: when the episode goes on, a new Alert with the same id says so.

    The id depends on what and when only, so that a replay gives the same one.

    >>> import pandas as pd
    >>> samples = pd.DataFrame({"timestamp": pd.to_datetime(["2026-01-01"]), "name": "job", "cpu_percent": [99.0]})
    >>> (alert,) = nbprocs.monitor.replay(samples, Rule(metric="cpu_percent", above=90))
    >>> alert.message, alert.resolved, alert.duration
    ('job: CPU 99 % of one core (above 90)', False, None)
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
