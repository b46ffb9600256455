"""CPU and memory for the table's sparklines and the charts. The views measure nothing themselves: a monitor does.

Where the user gives none, all views of one manager share a private monitor, which exists only while somebody looks.
"""

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbprocs.checks import instance, like
from nbprocs.engine.home import Tasks
from nbprocs.model import EventKind
from nbprocs.monitor import ProcessMonitor
from nbprocs.processes.manager import manager_core

__all__ = ["Reading", "Readings", "manager_given", "readings_of"]

KEPT = 120  # readings of each process
INTERVAL = 1.0  # seconds, of a private monitor
_HISTORY_BYTES = 2 << 20  # a private monitor's own history: nobody asks it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One process with its tree at one moment; None: not measured yet."""

    at: float  # seconds since the epoch
    cpu: float | None  # percent of one core
    memory: float | None  # bytes
    ports: tuple[int, ...] = ()  # listening


class Readings:
    """The newest readings of a manager's processes, from a monitor; all views of it share one object. Lives on the manager's home loop."""

    def __init__(self, manager: Any, monitor: ProcessMonitor | None = None) -> None:
        self._manager = manager
        self._given = monitor
        self._monitor: ProcessMonitor | None = None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._rings: dict[str, deque[Reading]] = {}
        self._unsubscribe: list[Callable[[], None]] = []
        self.current: Mapping[str, Reading] = {}  # of what lives, by process id

    @property
    def interval(self) -> float:
        """Seconds between two readings."""
        return INTERVAL if self._given is None else self._given.interval or INTERVAL

    def history(self, process_id: str) -> Sequence[Reading]:
        """The last readings of one, oldest first."""
        return list(self._rings.get(process_id, ()))

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each tick; returns what ends it. The first one starts the sampling, the end of the last one ends it."""
        key, self._next = self._next, self._next + 1
        self._callbacks[key] = callback
        if len(self._callbacks) == 1:
            self._begin()

        def unsubscribe() -> None:
            if self._callbacks.pop(key, None) is not None and not self._callbacks:
                self._end()

        return unsubscribe

    def _begin(self) -> None:
        monitor = self._given
        if monitor is None:
            monitor = self._monitor = ProcessMonitor(interval=INTERVAL, members=False, history_bytes=_HISTORY_BYTES)
            monitor.watch(self._manager)
        home = manager_core(self._manager).home
        self._unsubscribe = [
            monitor.subscribe(lambda: self._tick() if home.here else home.post(self._tick)),
            self._manager.subscribe(lambda event: home.post(self._end) if event.kind is EventKind.CLOSED else None),
        ]

    def _end(self) -> None:
        """Sample no more; also when the manager is closed, which a monitor's task would keep in memory."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []
        if self._monitor is not None:
            Tasks(manager_core(self._manager).home).start(self._monitor.aclose(), name="close a view's monitor")
            self._monitor = None

    def _tick(self) -> None:
        monitor = self._monitor or self._given
        if monitor is None or not self._callbacks:
            return
        self.current = {key: _reading(found) for key, found in monitor.current().items() if found.pid is not None}
        for process_id, reading in self.current.items():
            ring = self._rings.get(process_id)
            if ring is None:
                ring = self._rings[process_id] = deque(maxlen=KEPT)
            ring.append(reading)
        if len(self._rings) > 2 * len(self.current) + 100:  # those that ended long ago
            self._rings = {key: ring for key, ring in self._rings.items() if key in self.current}
        for callback in list(self._callbacks.values()):
            callback()


def _reading(found: Any) -> Reading:
    memory = found.memory_usage_mb
    return Reading(
        at=found.timestamp.timestamp(),
        cpu=found.cpu_percent,
        memory=None if memory is None else memory * 1048576,
        ports=found.ports,
    )


# weak: as long as a view holds it; the readings hold their manager and monitor, so an id can't be another's meanwhile
_shared: "weakref.WeakValueDictionary[tuple[int, int], Readings]" = weakref.WeakValueDictionary()


def manager_given(manager: Any) -> Any:
    """The manager that a view is made for. Raises TypeError for anything else."""
    return like("manager", manager, ("list", "subscribe"), "a ProcessManager")


def readings_of(manager: Any, monitor: ProcessMonitor | None = None) -> Readings:
    """The readings of a manager by a monitor, or by a private one; all views share them, so a later view knows what an earlier one saw.

    Raises TypeError for what is no manager or no monitor.
    """
    manager_given(manager)
    if monitor is not None:
        instance("monitor", monitor, ProcessMonitor, "a ProcessMonitor or None")
    key = (id(manager), id(monitor))
    known = _shared.get(key)
    if known is None:
        known = _shared[key] = Readings(manager, monitor)
    return known
