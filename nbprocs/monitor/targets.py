"""Who is watched, and what the home loop counts for them: exits, tasks, answers of probes."""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from nbprocs.engine.home import Home, home_of
from nbprocs.engine.table import Identity
from nbprocs.model import EndReason, ProcessInfo, ProcessStatus
from nbprocs.monitor.history import Series
from nbprocs.monitor.metrics import State
from nbprocs.processes.process import ManagedProcess

__all__ = ["WINDOW", "Group", "MonitorPlace", "Tallies", "Tally", "Target", "current_home", "end_state", "failed", "known_home"]

WINDOW = 60.0  # seconds: the error rate is that of the outcomes of the last minute
_KEPT = 10_000  # outcomes, at most, in the window
_NAMES = 2000  # with a tally, at most


class Tally:
    """Outcomes of one name, a manager or a pool."""

    __slots__ = ("_recent", "errors", "successes")

    def __init__(self) -> None:
        self.errors: int = 0
        self.successes: int = 0
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=_KEPT)  # when, errors, successes

    def add(self, now: float, *, errors: int = 0, successes: int = 0) -> None:
        """Count outcomes."""
        self.errors += errors
        self.successes += successes
        if errors or successes:
            self._recent.append((now, errors, successes))

    def rate(self, now: float) -> float:
        """Failures among the outcomes of the window; NaN without any."""
        recent = self._recent
        if not recent:
            return float("nan")
        while recent and recent[0][0] < now - WINDOW:
            recent.popleft()
        errors = sum(entry[1] for entry in recent)
        outcomes = errors + sum(entry[2] for entry in recent)
        return errors / outcomes if outcomes else float("nan")


class Tallies:
    """A tally for each name, the least recently used ones forgotten past 2,000: names of short jobs come without end."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, Tally] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_name)

    def of(self, name: str) -> Tally:
        """The tally of a name, made if it is new."""
        tally = self._by_name.get(name)
        if tally is None:
            tally = self._by_name[name] = Tally()
            if len(self._by_name) > _NAMES:
                self._by_name.popitem(last=False)
        else:
            self._by_name.move_to_end(name)
        return tally


@dataclass(slots=True, kw_only=True)
class Group:
    """A manager or a pool that is watched as a whole."""

    series: Series
    source: Any
    tally: Tally = field(default_factory=Tally)
    counted: tuple[int, int] = (0, 0)  # failed and completed tasks of a pool, as last seen
    before: tuple[float, int] | None = None  # when, and outcomes by then: for the throughput
    unsubscribe: Any = None

    @property
    def pool(self) -> bool:
        """A pool: its outcomes are those of its tasks, not the ends of its workers."""
        return callable(getattr(self.source, "metrics", None))

    def has(self, name: str) -> bool:
        """Whether a process of that name is one of its. The manager of a pool may have others too."""
        return not self.pool or name.startswith(f"{self.source.name}-worker-")

    def look(self, now: float) -> float:
        """Take in a pool's figures; returns outcomes a second since the last look, NaN at the first."""
        if self.pool:
            figures = self.source.metrics()
            counts = figures.total_tasks_failed, figures.total_tasks_completed
            self.tally.add(now, errors=counts[0] - self.counted[0], successes=counts[1] - self.counted[1])
            self.counted = counts
        before, total = self.before, self.tally.errors + self.tally.successes
        self.before = now, total
        return (total - before[1]) / (now - before[0]) if before and now > before[0] else float("nan")


@dataclass(slots=True, kw_only=True)
class Target:
    """One watched process."""

    series: Series
    name: str
    process_id: str
    identity: Identity
    tally: Tally
    process: ManagedProcess | None = None  # None: any pid
    group: Group | None = None
    user: str = ""
    note: str = ""
    usual: float = math.nan  # seconds that its command used to take


def group_name(target: object) -> str | None:
    """What a manager or a pool is called as a group, by what it offers; None for anything else, such as a class or another monitor."""
    if isinstance(target, type):
        return None
    name = getattr(target, "name", None)
    if callable(getattr(target, "metrics", None)):
        return name if isinstance(name, str) else None
    return "manager" if callable(getattr(target, "processes", None)) else None


def failed(info: ProcessInfo) -> bool:
    """Whether an end counts as an error. One that we stopped counts as neither, unless its time had run out."""
    return info.status is ProcessStatus.FAILED or (info.status is ProcessStatus.TERMINATED and info.reason is EndReason.TIMEOUT)


def end_state(info: ProcessInfo) -> State:
    """How a sample tells the end."""
    if failed(info):
        return State.FAILED
    return State.COMPLETED if info.status is ProcessStatus.COMPLETED else State.TERMINATED


def current_home() -> Home | None:
    """The home of the loop that runs here; None where none does."""
    try:
        return Home.current()
    except RuntimeError:
        return None


class MonitorPlace:
    """The loop that a monitor lives on: a given one, that of the first target, or the one that runs at the first use."""

    def __init__(self, home: Home | None) -> None:
        self._home = home

    @property
    def home(self) -> Home:
        """Settled by asking, if it is not yet."""
        if self._home is None:
            self._home = current_home() or Home.background()
        return self._home

    def settle_with(self, target: object) -> None:
        """Where this target lives, if it is one of ours and no other place was chosen."""
        if self._home is None:
            self._home = known_home(target)


def known_home(thing: object) -> Home | None:
    """The home of one of our objects; None for others."""
    try:
        found: object = home_of(thing)
    except AttributeError:
        return None
    return found if isinstance(found, Home) else None
