"""Alerts as pure state machines: the live monitor and a replay of its frame drive the same code, so they agree to the last alert.

::

      sample  ──advance(rule)──►  Phase: quiet ► pending (since) ► active
                                              any rule of a type active      ──► one open alert per (type, process)
                                              a worse rule becomes active    ──► the same alert, escalated
                                              none active, or process ended  ──► resolved

No clock, no I/O. Times are microseconds since the epoch, as in the history.
"""

import itertools
import math
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from nbprocs.checks import instance
from nbprocs.monitor.metrics import METRICS, AlertType, Scope, State
from nbprocs.monitor.model import Alert, AlertThresholds, Rule

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Batch", "Change", "Episodes", "Phase", "Transition", "advance", "as_rules", "replay"]

_NAMESPACE = uuid.UUID("6f1f0f5e-6d0c-4b8f-9f0e-5f4e6e627072")
_OUTLIVE = (AlertType.PROCESS_DOWN, AlertType.ERROR_RATE)  # what the end of a process does not end
_AT_END = (*_OUTLIVE, AlertType.REGRESSION)  # what is judged at the end: how long it took in all is known only then


class Phase(NamedTuple):
    """Where one rule stands for one process."""

    since: int | None = None  # the condition has held from here on
    active: bool = False
    armed: bool = False


QUIET = Phase()


def advance(rule: Rule, phase: Phase, value: float, at: int) -> Phase:
    """The next phase. NaN is no news: whatever was the case still is.

    >>> rule = Rule(metric="cpu_percent", above=90, clear=50, for_seconds=2)
    >>> pending = advance(rule, Phase(), 95.0, 1_000_000)
    >>> pending.active, advance(rule, pending, 95.0, 3_000_000).active
    (False, True)
    """
    if math.isnan(value):
        return phase
    over = value > rule.limit if rule.above is not None else value < rule.limit
    if phase.active:
        clear = rule.limit if rule.clear is None else rule.clear
        held = value > clear if rule.above is not None else value < clear
        return phase if held else Phase(armed=rule.arm is not None)
    if rule.arm is not None and not phase.armed:
        return Phase(armed=value >= rule.arm if rule.below is not None else value <= rule.arm)
    if not over:
        return Phase(armed=phase.armed)
    since = at if phase.since is None else phase.since
    return Phase(since=since, active=at - since >= rule.for_seconds * 1e6, armed=phase.armed)


class Change(StrEnum):
    """What happened to an alert."""

    FIRED = "fired"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


class Transition(NamedTuple):
    """A change, with the alert as it is now."""

    change: Change
    alert: Alert


class Batch(NamedTuple):
    """Samples of one moment. ``columns`` holds an array a metric, one value a row; a process has at most one row."""

    at: int  # microseconds since the epoch
    names: Sequence[str]  # of the processes; a restarted process keeps its name
    process_ids: Sequence[str]
    scopes: Any  # array of Scope
    states: Any  # array of State
    columns: Mapping[str, Any]


def _down(states: Any) -> Any:
    import numpy as np  # noqa: PLC0415 - keeps `import nbprocs` light

    return np.where(states == State.FATAL, 2.0, np.where((states == State.FAILED) | (states == State.GONE), 1.0, 0.0))


@dataclass(slots=True)
class _Open:
    alert: Alert
    rules: set[int]  # the active ones


class Episodes:
    """All alerts of one run: feed it batches in order of time.

    At any time there is at most one open alert of one type for one process. Memory is bounded by ``history`` alerts, and by the processes
    that have an open alert or a pending condition.
    """

    def __init__(self, rules: Iterable[Rule], *, history: int = 10_000) -> None:
        self.rules: tuple[Rule, ...] = tuple(rules)
        self.closed: deque[Alert] = deque(maxlen=history)
        self._open: dict[tuple[AlertType, str], _Open] = {}
        self._phases: list[dict[str, Phase]] = [{} for _ in self.rules]

    @property
    def open(self) -> tuple[Alert, ...]:
        """The open alerts, oldest first."""
        return tuple(entry.alert for entry in self._open.values())

    @property
    def all(self) -> tuple[Alert, ...]:
        """Resolved and open ones by the time they fired."""
        return tuple(sorted((*self.closed, *self.open), key=lambda alert: (alert.timestamp, alert.id)))

    def pending(self, name: str) -> bool:
        """Whether time alone could still fire a rule for a process."""
        return any(name in phases and not phases[name].active for phases in self._phases)

    def has_open(self, name: str) -> bool:
        """Whether a process has an open alert."""
        return any(key == name for _, key in self._open)

    def step(self, batch: Batch) -> list[Transition]:
        """Take in the samples of one moment; returns what changed."""
        changes: list[Transition] = []
        ended = (batch.states >= State.COMPLETED).nonzero()[0].tolist()
        batch = batch._replace(columns={**batch.columns, "down": _down(batch.states) if ended else batch.states * 0.0})
        where: dict[str, int] = {}
        if any(self._phases) or self._open:
            where = {name: row for row, name in enumerate(batch.names)}
        for number, rule in enumerate(self.rules):
            for row, value in self._candidates(number, rule, batch, where):
                self._judge(number, rule, batch, row, value, changes)
        if self._open or any(self._phases):
            for row in ended:
                self._end(batch, row, changes)
        return changes

    def _candidates(self, number: int, rule: Rule, batch: Batch, where: Mapping[str, int]) -> list[tuple[int, float]]:
        """The few rows that the rule has to look at: over the limit, or not quiet. Everything else is one comparison of arrays."""
        values = batch.columns.get(rule.metric)
        if values is None:
            return []
        edge = rule.limit if rule.arm is None else rule.arm
        mask = (values >= edge) if rule.arm is not None else (values > edge) if rule.above is not None else (values < edge)
        if rule.arm is not None and rule.above is not None:
            mask = values <= edge
        if rule.scope is not None:
            mask &= batch.scopes == rule.scope
        rows = set(mask.nonzero()[0].tolist())
        rows.update(where[name] for name in self._phases[number] if name in where)
        if rule.kind not in _AT_END:  # who has ended uses nothing
            rows = {row for row in rows if batch.states[row] < State.COMPLETED}
        return [(row, float(values[row])) for row in sorted(rows) if rule.matches(batch.names[row])]

    def _judge(self, number: int, rule: Rule, batch: Batch, row: int, value: float, changes: list[Transition]) -> None:
        name = batch.names[row]
        phases = self._phases[number]
        before = phases.get(name, QUIET)
        after = advance(rule, before, value, batch.at)
        if after == QUIET:
            phases.pop(name, None)
        else:
            phases[name] = after
        if after.active:
            self._activate(number, rule, batch, row, value, changes)
        elif before.active:
            self._deactivate(number, rule.kind, name, batch.at, changes)

    def _activate(self, number: int, rule: Rule, batch: Batch, row: int, value: float, changes: list[Transition]) -> None:
        key = (rule.kind, batch.names[row])
        entry = self._open.get(key)
        if entry is None:
            alert = _alert(rule, batch, row, value)
            self._open[key] = _Open(alert, {number})
            changes.append(Transition(Change.FIRED, alert))
            return
        entry.rules.add(number)
        if not math.isnan(value) and rule.metric == entry.alert.metric:
            worst = max if rule.above is not None else min
            entry.alert = replace(entry.alert, peak=worst(entry.alert.peak, value))
        if rule.severity > entry.alert.severity:
            text = _message(rule, batch.names[row], value, batch.states[row])
            entry.alert = replace(entry.alert, severity=rule.severity, message=text, value=value, limit=rule.limit)
            changes.append(Transition(Change.ESCALATED, entry.alert))

    def _deactivate(self, number: int, kind: AlertType, name: str, at: int, changes: list[Transition]) -> None:
        entry = self._open.get((kind, name))
        if entry is None:
            return
        entry.rules.discard(number)
        if not entry.rules:
            del self._open[kind, name]
            alert = replace(entry.alert, resolved=True, resolved_at=_moment(at))
            self.closed.append(alert)
            changes.append(Transition(Change.RESOLVED, alert))

    def _end(self, batch: Batch, row: int, changes: list[Transition]) -> None:
        """A process that has ended uses no memory and is slow no more: only that it is down, and how often it failed, stays true."""
        name = batch.names[row]
        forgotten = batch.states[row] == State.FORGOTTEN
        for number, rule in enumerate(self.rules):
            if (forgotten or rule.kind not in _OUTLIVE) and (phase := self._phases[number].pop(name, None)) is not None and phase.active:
                self._deactivate(number, rule.kind, name, batch.at, changes)


def _moment(at: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)


def _message(rule: Rule, name: str, value: float, state: int) -> str:
    if rule.metric == "down":
        return f"{name} is down: {State(int(state))}"
    if rule.kind is AlertType.ACTIVITY:
        return f"{name} writes again"
    if rule.kind is AlertType.REGRESSION:
        return f"{name}: {value:.1f} \N{MULTIPLICATION SIGN} slower than its last 20 runs"
    if rule.metric == "response_time" and math.isinf(value):
        return f"{name}: no answer"
    metric = METRICS.get(rule.metric)
    word, unit = (metric.word, f" {metric.unit}" if metric.unit else "") if metric else (rule.metric, "")
    side = "above" if rule.above is not None else "below"
    held = f" for {rule.for_seconds:g} s" if rule.for_seconds else ""
    return f"{name}: {word} {value:.4g}{unit} ({side} {rule.limit:g}{held})"


def _alert(rule: Rule, batch: Batch, row: int, value: float) -> Alert:
    name = batch.names[row]
    return Alert(
        id=str(uuid.uuid5(_NAMESPACE, f"{rule.kind}|{name}|{batch.at}")),
        process_id=batch.process_ids[row],
        name=name,
        type=rule.kind,
        severity=rule.severity,
        message=_message(rule, name, value, batch.states[row]),
        timestamp=_moment(batch.at),
        metric=rule.metric,
        value=value,
        limit=rule.limit,
        peak=value,
    )


def as_rules(rules: AlertThresholds | Rule | Iterable[Rule]) -> tuple[Rule, ...]:
    """Thresholds, a rule or several, as a tuple of rules."""
    if isinstance(rules, AlertThresholds):
        return rules.rules()
    if isinstance(rules, Rule):
        return (rules,)
    found = tuple(instance("rules", rules, (Iterable,), "AlertThresholds, a Rule or several"))
    return tuple(instance("rules", rule, Rule, "AlertThresholds, a Rule or several") for rule in found)


def replay(frame: "pd.DataFrame", rules: AlertThresholds | Rule | Iterable[Rule]) -> tuple[Alert, ...]:
    """The alerts that would have fired, had these rules watched these samples. Pure: nothing is called, nothing is changed.

    ``frame`` is what ``ProcessMonitor.frame(scope=None)`` gave, now or last month from a file; of any other frame the columns ``timestamp``
    (aware, or taken as UTC) and ``name`` and the metrics of the rules are needed. On a frame of a run and its own rules the result
    equals the alerts of that run. 1,000,000 samples take about a second.

    >>> import pandas as pd
    >>> times = pd.date_range("2026-01-01", periods=4, freq="s", tz="UTC")
    >>> frame = pd.DataFrame({"timestamp": times, "name": "job", "memory_usage_mb": [100.0, 600.0, 700.0, 90.0]})
    >>> replay(frame, AlertThresholds(max_memory_mb=500))
    (<Alert warning memory_usage: job: memory 600 MiB (above 500) (resolved after 2 s)>,)
    """
    import numpy as np  # noqa: PLC0415 - keeps `import nbprocs` light
    import pandas as pd  # noqa: PLC0415

    chosen = as_rules(rules)
    instance("frame", frame, pd.DataFrame, "a DataFrame, as ProcessMonitor.frame(scope=None) gives it")
    episodes = Episodes(chosen, history=1_000_000)
    if frame.empty:
        return ()
    times = pd.DatetimeIndex(pd.to_datetime(frame["timestamp"], utc=True)).as_unit("us").asi8
    if (times[1:] < times[:-1]).any():
        order = np.argsort(times, kind="stable")
        frame, times = frame.iloc[order], times[order]
    names = _text(frame, "name")
    ids = _text(frame, "process_id") if "process_id" in frame else names
    scopes, states = _codes(frame, "scope", Scope, Scope.TREE), _codes(frame, "state", State, State.UNKNOWN)
    if "pid" in frame and (inner := np.flatnonzero(scopes == Scope.PROCESS)).size:
        pids = frame["pid"].to_numpy(dtype="float64", na_value=-1)
        for row in inner.tolist():
            names[row] = member_key(names[row], int(pids[row]))
    metrics = {rule.metric for rule in chosen} & set(frame.columns)
    columns = {metric: frame[metric].to_numpy(dtype="float64", na_value=np.nan) for metric in metrics}
    cuts = [0, *(np.flatnonzero(np.diff(times)) + 1).tolist(), len(times)]
    for first, last in itertools.pairwise(cuts):
        part = {metric: values[first:last] for metric, values in columns.items()}
        episodes.step(Batch(int(times[first]), names[first:last], ids[first:last], scopes[first:last], states[first:last], part))
    return episodes.all


def member_key(name: str, pid: int) -> str:
    """The name under which one process of a tree has its alerts."""
    return f"{name}/{pid}"


def _text(frame: "pd.DataFrame", column: str) -> list[str]:
    return [str(value) for value in frame[column].tolist()]


def _codes(frame: "pd.DataFrame", column: str, kind: type[Scope | State], default: int) -> Any:
    import numpy as np  # noqa: PLC0415

    if column not in frame:
        return np.full(len(frame), int(default))
    codes = {str(member): int(member) for member in kind} | {member.name.lower(): int(member) for member in kind}
    return np.array([codes.get(str(value), int(default)) for value in frame[column].tolist()], dtype="int64")
