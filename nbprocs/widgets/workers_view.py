"""The view of a cluster's workers: what each has to do, and what that takes.

A page asks for a look once a second while the view is in its sight, and the workers measure then; nobody else does. So nothing is measured
while the view is hidden, scrolled away or closed, and no task of the kernel has to be ended for that.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nbprocs.checks import like
from nbprocs.display import Html, plain
from nbprocs.engine.home import Home, Tasks, home_of
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.board_rows import BoardRows, titles
from nbprocs.widgets.wire import Delta, op

if TYPE_CHECKING:
    from nbprocs.cluster import DaskBackend
    from nbprocs.cluster.frames import SeenWorker
    from nbprocs.scheduler.backend import Capacity

__all__ = ["WorkersPart", "WorkersView"]

APART = 0.7  # seconds between two looks: several pages that ask share one
RECORD_EVERY = 2.0  # seconds, where the record is all there is to see
_WORKERS = 200
COLUMNS = ("name", "host", "state", "slots", "running", "cpu", "used", "memory", "tasks")  # of a row


class Cluster(Protocol):
    """What is shown: a DaskBackend."""

    @property
    def home(self) -> Home:
        """Its loop."""

    @property
    def closed(self) -> bool:
        """Nothing of it runs any more."""

    def seen(self) -> "Sequence[SeenWorker]":
        """The workers, as they are known now."""

    async def trees(self) -> Sequence[object]:
        """Measure what they run. Takes seconds at most."""

    def capacity(self) -> "Capacity":
        """Why there is none, where there is none."""

    def _html_(self) -> Html:
        """The static form."""


class WorkersPart(Part):
    """A row a worker; looks only while a page asks for it."""

    kind = "workers"

    def __init__(self, backend: Cluster) -> None:
        self._backend = like("backend", backend, ("seen", "trees", "capacity"), "a DaskBackend")
        self._board = BoardRows()
        self._looking: asyncio.Task[None] | None = None
        self._looked = float("-inf")
        self._told: dict[object, Callable[[], None]] = {}

    # -- models

    def attach(self, host: Host) -> None:
        """Begin with what is known, measured or not."""
        super().attach(host)
        self._update()
        self._board.new()  # the snapshot has it

    def detach(self) -> None:
        """Nothing to unsubscribe: a look that goes on ends by itself, or with the view."""

    @op()
    async def look(self) -> None:
        """Measure now, on behalf of a page that shows this. On return it is sent."""
        task = self._looking
        if task is None or task.done():
            if self.host.home.loop.time() - self._looked < APART:
                return
            task = self._looking = self.host.tasks.start(self._look(), name="look at the workers")
        await asyncio.wait([task])

    async def _look(self) -> None:
        await self._backend.trees()
        self._looked = self._backend.home.loop.time()
        self._update()

    def _update(self) -> None:
        seen = self._backend.seen()
        figures = {
            "workers": len(seen),
            "slots": sum(worker.slots for worker in seen),
            "running": sum(len(worker.tasks) for worker in seen),
            "why": "" if any(worker.slots for worker in seen) else plain(self._backend.capacity().why, limit=200),
            "closed": self._backend.closed,
        }
        rows = {plain(worker.address, limit=120): _row(worker) for worker in seen[:_WORKERS]}
        new = figures != self._board.figures
        if self._board.put(rows, figures):
            self.host.want(self)
        for changed in list(self._told.values()) if new else ():
            changed()

    # -- what the front ends get

    def snapshot(self) -> Delta:
        """Everything."""
        return Delta(content=self._board.all(COLUMNS) | {"now": time.time()}, size=300 + 150 * len(self._board.rows))

    def delta(self) -> Delta | None:
        """``u`` rows, ``-`` gone rows, ``figures``."""
        content = self._board.new()
        return Delta(content=content, size=100 + 150 * len(content.get("u", ()))) if content else None

    @property
    def over(self) -> bool:  # type: ignore[override]
        """The backend was closed, with its scheduler."""
        return self._backend.closed

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """The cluster may have changed since."""
        return not self._backend.closed

    def html(self) -> Html:
        """The backend's own static form."""
        return self._backend._html_()

    def watch_record(self, changed: Callable[[], None], *, live: bool) -> Callable[[], None]:
        """After a look that found other workers, more or less to do; with ``live`` again and again, measured for that."""
        if not live:
            key = object()
            self._told[key] = changed
            return lambda: self._told.pop(key, None)  # type: ignore[return-value]
        task = Tasks(self._backend.home).start(self._record(changed), name="the record of the workers")
        return task.cancel  # type: ignore[return-value]

    async def _record(self, changed: Callable[[], None]) -> None:
        while not self._backend.closed:
            await self._backend.trees()
            changed()
            await asyncio.sleep(RECORD_EVERY)
        changed()


def _row(worker: "SeenWorker") -> list[Any]:
    """The cells of COLUMNS."""
    return [
        plain(worker.name or "", limit=60),
        plain(worker.host or "", limit=60),
        worker.state,
        worker.slots,
        len(worker.tasks),
        None if worker.cpu is None else round(worker.cpu),
        worker.used,
        worker.memory,
        titles(worker.tasks),
    ]


class WorkersView(View):
    """The workers of a DaskBackend, live: slots, what runs there, and the CPU and memory that it takes, measured while somebody looks.

    The backend must have been given to a scheduler; raises Closed before. Displaying the backend itself shows the same.

    >>> async with TaskScheduler(backend=(backend := DaskBackend(workers=1, threads=2))) as sch:
    ...     WorkersView(backend).close()
    """

    def __init__(self, backend: "DaskBackend", *, height: int = 210) -> None:
        super().__init__({"workers": WorkersPart(backend)}, model=backend, home=home_of(backend), height=height)
