"""The samples and the alerts of one monitor, taken in together: what the rules see is what the history holds."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nbprocs.monitor.alerts import Batch, Episodes, Transition
from nbprocs.monitor.history import COLUMNS, History, HistorySnapshot, Series
from nbprocs.monitor.metrics import METRICS, Scope, State
from nbprocs.monitor.model import Alert, Rule

__all__ = ["Book"]

Clock = Callable[[], float]


class Book:
    """Written on the home loop, read from any thread.

    Times are the wall clock's when the book was opened plus what the monotonic clock has run since: a clock that is set back can't turn
    the order of samples around.
    """

    def __init__(
        self, rules: Iterable[Rule], *, max_bytes: int, clock: Clock, on_full: Callable[[HistorySnapshot], object] | None = None
    ) -> None:
        self.history: History = History(max_bytes=max_bytes, on_full=on_full)
        self._episodes = Episodes(rules)
        self._clock = clock
        self._offset = time.time() - clock()
        self._lock = threading.Lock()

    def now(self) -> int:
        """Microseconds since the epoch for the next samples."""
        return self.history.next_time(round((self._offset + self._clock()) * 1e6))

    def take(self, columns: Mapping[str, Any], names: list[str], process_ids: list[str]) -> list[Transition]:
        """Write the rows of one moment, judge them; returns what changed."""
        import numpy as np  # noqa: PLC0415 - keeps `import nbprocs` light

        if not names:
            return []
        at = self.now()
        self.history.append({**columns, "time": np.full(len(names), at)})
        with self._lock:
            return self._episodes.step(Batch(at, names, process_ids, columns["scope"], columns["state"], columns))

    def end(
        self, series: Series, state: State, *, errors: int = 0, successes: int = 0, restarts: int = 0, slowdown: float = math.nan
    ) -> list[Transition]:
        """Write that a process has ended, and in how many times its usual time. Nothing else was measured at that moment."""
        import numpy as np  # noqa: PLC0415

        row: dict[str, float] = {name: metric.unknown for name, metric in METRICS.items()}
        row |= {"series": series.code, "scope": Scope.TREE, "state": state, "processes": 0, "restarts": min(restarts, 32767)}
        row |= {"error_count": errors, "success_count": successes, "slowdown": slowdown}
        return self.take({name: np.full(1, value, COLUMNS[name]) for name, value in row.items()}, [series.name], [series.process_id])

    def pending(self, name: str) -> bool:
        """Whether time alone could still fire a rule for a process that has ended."""
        with self._lock:
            return self._episodes.pending(name)

    def has_open(self, name: str) -> bool:
        """Whether a process has an open alert."""
        with self._lock:
            return self._episodes.has_open(name)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force."""
        return self._episodes.rules

    def alerts(self, *, open_only: bool = False) -> tuple[Alert, ...]:
        """By the time they fired."""
        with self._lock:
            return self._episodes.open if open_only else self._episodes.all
