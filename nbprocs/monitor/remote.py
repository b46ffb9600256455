"""Process trees on other machines: whoever runs them measures them there, while a monitor asks.

::

      backend.trees() ◄── asked every interval ── RemoteWatch ── rows ──► Book: history, rules      as for trees of this machine
          │ one call a worker
          ▼
      the worker's own Sampler: its figures, by the names of the metrics

A remote pid is nothing that this machine's process table knows: it is told, and never looked up.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nbprocs.engine.home import log
from nbprocs.monitor.alerts import Transition
from nbprocs.monitor.book import Book
from nbprocs.monitor.history import COLUMNS, Series
from nbprocs.monitor.metrics import METRICS, Scope, State

__all__ = ["RemoteSource", "RemoteTree", "RemoteWatches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTree:
    """A process with all its descendants on another machine, as measured there just now."""

    id: str
    name: str
    pid: int | None  # there
    host: str
    worker: str
    row: Mapping[str, float]  # by the names of the metrics, with "state"; empty: it runs, and was not measured


@runtime_checkable
class RemoteSource(Protocol):
    """Where such trees run: a DaskBackend is one."""

    async def trees(self) -> Sequence[RemoteTree]:
        """All that run now, measured now. Takes seconds at most."""

    def how_ended(self, tree_id: str) -> State:
        """Of one that trees() has told of, and tells no more."""


@dataclass(slots=True)
class _Seen:
    series: Series
    note: str


class RemoteWatch:
    """One source; on the monitor's home loop only."""

    def __init__(self, source: RemoteSource, book: Book, taken: Callable[[str], bool]) -> None:
        self.source = source
        self.seen: dict[str, _Seen] = {}  # those that ran at the last look, by id
        self.task: asyncio.Task[None] | None = None
        self._book = book
        self._taken = taken

    async def look(self) -> list[Transition]:
        """Ask, write down, judge; what changed among the alerts. Raises what the source raises."""
        trees = await self.source.trees()
        for tree in trees:
            if tree.id not in self.seen:
                self.seen[tree.id] = self._new(tree)
        changes = self._take([tree for tree in trees if tree.row])
        running = {tree.id for tree in trees}
        for key in [key for key in self.seen if key not in running]:
            state, series = self.source.how_ended(key), self.seen.pop(key).series
            changes += self._book.end(series, state, errors=int(state is State.FAILED), successes=int(state is State.COMPLETED))
        return changes

    def _new(self, tree: RemoteTree) -> _Seen:
        name = tree.name
        if self._taken(name) or any(name == seen.series.name for seen in self.seen.values()):
            name = f"{name}#{tree.id}"
        return _Seen(self._book.history.series(process_id=tree.id, name=name, pid=tree.pid or 0), f"on {tree.host}, {tree.worker}")

    def _take(self, trees: Sequence[RemoteTree]) -> list[Transition]:
        import numpy as np  # noqa: PLC0415 - keeps `import nbprocs` light

        series = [self.seen[tree.id].series for tree in trees]
        own = {"scope": Scope.TREE, "state": State.UNKNOWN}
        columns: dict[str, Any] = {"series": np.array([each.code for each in series], COLUMNS["series"])}
        for name in COLUMNS.keys() - {"time", "series"}:
            unknown = METRICS[name].unknown if name in METRICS else own[name]
            columns[name] = np.array([_number(tree.row.get(name, unknown), unknown) for tree in trees], COLUMNS[name])
        return self._book.take(columns, [each.name for each in series], [each.process_id for each in series])

    async def run(self, interval: float, done: Callable[[list[Transition]], object]) -> None:
        """Look every so many seconds; one that takes longer delays the next."""
        clock, failed = asyncio.get_running_loop().time, ""
        while True:
            began = clock()
            try:
                done(await self.look())
                failed = ""
            except Exception as error:  # noqa: BLE001 - a look that fails must not end the watch: said once, and tried again
                if failed != (failed := type(error).__name__):
                    log.warning("%r could not be looked at; it is tried again", self.source, exc_info=error)
            await asyncio.sleep(max(began + interval - clock(), interval / 2))


def _number(value: float | None, unknown: float) -> float:
    whole = unknown == unknown  # noqa: PLR0124 - NaN
    return unknown if value is None or (whole and math.isnan(value)) else value


class RemoteWatches:
    """All remote sources of one monitor."""

    def __init__(
        self, book: Book, *, taken: Callable[[str], bool], done: Callable[[list[Transition]], object], ticked: Callable[[], object]
    ) -> None:
        self._book, self._taken, self._tell, self._ticked = book, taken, done, ticked
        self._watches: dict[int, RemoteWatch] = {}

    def add(self, source: RemoteSource, start: Callable[..., asyncio.Task[None]], interval: float | None) -> None:
        """Watch it from now on. Idempotent."""
        if id(source) not in self._watches:
            watch = self._watches[id(source)] = RemoteWatch(source, self._book, self._taken)
            if interval is not None:
                watch.task = start(watch.run(interval, self._done), name=f"look at {getattr(source, 'name', 'a remote source')}")

    def remove(self, source: object) -> None:
        """Watch it no longer; its open alerts end."""
        watch = self._watches.pop(id(source), None)
        if watch is None:
            return
        if watch.task is not None:
            watch.task.cancel()
        for seen in watch.seen.values():
            if self._book.has_open(seen.series.name):
                self._tell(self._book.end(seen.series, State.FORGOTTEN))

    async def look(self) -> None:
        """Look at all, now."""
        for watch in list(self._watches.values()):
            self._done(await watch.look())

    def _done(self, changes: list[Transition]) -> None:
        self._tell(changes)
        self._ticked()

    def live(self) -> set[str]:
        """The ids of those that run. From any thread."""
        return {key for watch in list(self._watches.values()) for key in list(watch.seen)}

    def notes(self) -> dict[str, str]:
        """Where those that run do, by name."""
        return {seen.series.name: seen.note for watch in list(self._watches.values()) for seen in list(watch.seen.values())}
