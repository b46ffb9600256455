"""Live CPU and memory of processes, with alerts marked."""

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from nbprocs.display import Html, cell, joined, plain, text
from nbprocs.model import EventKind, ProcessEvent, ProcessInfo
from nbprocs.monitor import Alert, ProcessMonitor
from nbprocs.processes.manager import manager_core
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.record import MUTED, sparkline
from nbprocs.widgets.sampling import Readings, readings_of
from nbprocs.widgets.wire import Delta

__all__ = ["Charts", "ChartsPart"]

SERIES = 60  # processes whose lines travel; the browser draws the busiest and sums up the others
SAMPLES = 600  # of each line
ALERTS = 50  # the newest
_IN_RECORD = 12
_FIRST = 3  # ticks until a record has a line to show


class Line:
    """The samples of one process."""

    __slots__ = ("key", "name", "points")

    def __init__(self, key: int, name: str) -> None:
        self.key: int = key
        self.name: str = name
        self.points: deque[tuple[float, float | None, float | None]] = deque(maxlen=SAMPLES)  # time, CPU percent, MiB

    def add(self, at: float, cpu: float | None, memory: float | None) -> bool:
        """A sample, if it is newer than those that are there."""
        if self.points and self.points[-1][0] >= at:
            return False
        mib = None if memory is None else round(memory / 1048576, 1)
        self.points.append((round(at, 2), None if cpu is None else round(cpu, 1), mib))
        return True


class ChartsPart(Part):
    """Lines by short numbers; a tick costs some ten bytes a process."""

    kind = "charts"

    def __init__(self, manager: Any, monitor: ProcessMonitor | None, readings: Readings) -> None:
        self._manager = manager
        self._monitor = monitor
        self._readings = readings
        self._lines: dict[str, Line] = {}
        self._next_key = 1
        self._names: dict[str, str] = {}
        self._unsubscribe: list[Callable[[], None]] = []
        self._new: list[Line] = []
        self._ticks: list[list[Any]] = []
        self._alerts: dict[str, Alert] = {}
        self._changed_alerts: dict[str, Alert] = {}

    # -- models

    def attach(self, host: Host) -> None:
        """Subscribe to the readings and the alerts."""
        super().attach(host)
        for info in self._manager.list():
            self._names[info.id] = info.name
            if info.status.live:
                self._fill(info.id)
        self._new, self._ticks = [], []
        self._unsubscribe = [self._readings.subscribe(host.carry(self._on_readings))]
        if self._monitor is not None:
            self._alerts = {alert.id: alert for alert in self._monitor.alerts()[-ALERTS:]}
            self._unsubscribe.append(self._monitor.on_alert(host.carry(self._on_alert)))

    def detach(self) -> None:
        """Unsubscribe."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def _fill(self, process_id: str) -> None:
        for reading in self._readings.history(process_id):
            self._point(process_id, reading.at, reading.cpu, reading.memory)

    def _line(self, process_id: str) -> Line | None:
        line = self._lines.get(process_id)
        if line is None and len(self._lines) < SERIES:
            line = self._lines[process_id] = Line(self._next_key, plain(self._name(process_id), limit=80))
            self._next_key += 1
            self._new.append(line)
        return line

    def _name(self, process_id: str) -> str:
        if process_id not in self._names:
            self._names = {info.id: info.name for info in self._manager.list()}
        return self._names.get(process_id, process_id[:8])

    def _point(self, process_id: str, at: float, cpu: float | None, memory: float | None) -> list[Any] | None:
        line = self._line(process_id)
        if line is None or not line.add(at, cpu, memory):
            return None
        return [line.key, *line.points[-1][1:]]

    def _on_readings(self) -> None:
        current = self._readings.current
        if not current:
            return
        at = max(reading.at for reading in current.values())
        found = (self._point(key, reading.at, reading.cpu, reading.memory) for key, reading in current.items())
        points = [point for point in found if point is not None]
        if points:
            self._ticks.append([round(at, 2), points])
            self._forget(current.keys())
            self.host.want(self)

    def _forget(self, live: Any) -> None:
        """Room for new ones: lines of what ended leave when it gets tight."""
        if len(self._lines) >= SERIES:
            self._lines = {key: line for key, line in self._lines.items() if key in live}

    def _on_alert(self, alert: Alert) -> None:
        self._alerts[alert.id] = self._changed_alerts[alert.id] = alert
        while len(self._alerts) > ALERTS:
            self._alerts.pop(next(iter(self._alerts)))
        self.host.want(self)

    # -- what the front ends get

    def snapshot(self) -> Delta:
        """Every line with its samples, and the alerts."""
        lines = [[line.key, line.name, [list(point) for point in line.points]] for line in self._lines.values()]
        content = {"lines": lines, "alerts": [_alert(alert) for alert in self._alerts.values()], "every": self._readings.interval}
        return Delta(content=content, size=200 + 25 * sum(len(line.points) for line in self._lines.values()))

    def delta(self) -> Delta | None:
        """``+`` new lines, ``t`` ticks of ``[time, [[line, cpu, mem], …]]``, ``a`` alerts."""
        content: dict[str, Any] = {}
        if self._new:
            content["+"], self._new = [[line.key, line.name] for line in self._new], []
        size = 200 + 18 * sum(len(points) for _, points in self._ticks)
        if self._ticks:
            content["t"], self._ticks = self._ticks, []
        if self._changed_alerts:
            content["a"], self._changed_alerts = [_alert(alert) for alert in self._changed_alerts.values()], {}
        if not content:
            return None
        return Delta(content=content, size=size)

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Some process lives."""
        return any(info.status.live for info in self._manager.list())

    def html(self) -> Html:
        """The static record: a sparkline a process, and the alerts. What was measured counts, also while nobody looks."""
        measured = [line for info in self._manager.list() if len((line := self._recorded(info)).points) > 1]
        rows = joined(map(_row, measured[-_IN_RECORD:]))
        known = self._alerts.values() if self._monitor is None else self._monitor.alerts()
        alerts = joined(Html("<li>{}: {}</li>").format(text(a.severity), text(a.message, limit=200)) for a in list(known)[-10:])
        if not rows and not alerts:
            return Html('<div style="{}">no measurements yet</div>').format(MUTED)
        head = joined(cell(name, head=True, style=f";{MUTED}") for name in ("", "CPU", "memory"))
        table = Html("<table><tr>{}</tr>{}</table>").format(head, rows) if rows else Html()
        return table + (Html("<ul>{}</ul>").format(alerts) if alerts else "")

    def _recorded(self, info: ProcessInfo) -> Line:
        line = self._lines.get(info.id)
        if line is None:  # of the record alone: the front ends get what is drawn
            line = Line(0, plain(info.name, limit=80))
            for reading in self._readings.history(info.id):
                line.add(reading.at, reading.cpu, reading.memory)
        return line

    def watch_record(self, changed: Callable[[], None], *, live: bool) -> Callable[[], None]:
        """After a process ended, and after the first measurements of a monitor that measures anyway."""
        stops: list[Callable[[], None]] = []
        if self._monitor is not None:
            stops.append(self._readings.subscribe(changed if live else _once(changed, after=_FIRST)))

        def heard(event: ProcessEvent) -> None:
            if event.kind in (EventKind.EXITED, EventKind.CLOSED):
                changed()

        stops.append(self._manager.subscribe(heard))

        def stop() -> None:
            for one in stops:
                one()

        return stop


def _row(line: Line) -> Html:
    points = list(line.points)  # at once: it may grow on another thread
    cpu = [point[1] or 0.0 for point in points]
    memory = [point[2] or 0.0 for point in points]
    cells = (
        Html("<b>{}</b>").format(text(line.name)),
        sparkline(cpu[-120:], label=f"CPU of {line.name}", top=max(100.0, *cpu)) + f" {cpu[-1]:.0f} %",
        sparkline(memory[-120:], label=f"memory of {line.name}") + f" {memory[-1]:.1f} MiB",
    )
    return Html("<tr>{}</tr>").format(joined(map(cell, cells)))


def _once(call: Callable[[], None], *, after: int) -> Callable[[], None]:
    """Calls once, when it has been called so often."""
    counter = itertools.count(1)
    return lambda: call() if next(counter) == after else None


def _alert(alert: Alert) -> list[Any]:
    ended = alert.resolved_at
    return [
        alert.id,
        str(alert.severity),
        plain(alert.message, limit=300),
        round(alert.timestamp.timestamp(), 2),
        None if ended is None else round(ended.timestamp(), 2),
        bool(alert.resolved),
        str(alert.type),
    ]


class Charts(View):
    """Live charts of CPU and memory of a manager's processes. With a monitor its alerts are marked, and its interval holds.

    >>> async with ProcessManager() as pm:
    ...     Charts(pm).close()
    """

    def __init__(self, manager: Any, *, monitor: ProcessMonitor | None = None, height: int = 170) -> None:
        super().__init__(
            {"charts": ChartsPart(manager, monitor, readings_of(manager, monitor))},
            model=manager,
            home=manager_core(manager).home,
            height=height,
        )
