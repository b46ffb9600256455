"""The pool view: workers, what each one does, and the pool's figures."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from nbprocs.checks import instance
from nbprocs.display import Html, plain
from nbprocs.engine.home import home_of
from nbprocs.pool import ProcessPool, WorkerInfo
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.board_rows import BoardRows, titles
from nbprocs.widgets.wire import Delta, number, op

__all__ = ["PoolPart", "PoolView"]

LOOK_EVERY = 0.5  # seconds: a pool tells no events (a hundred thousand tasks a second would be its own load), so it is looked at
RATES = 60  # points of the throughput's sparkline
_WORKERS = 200
COLUMNS = ("state", "pid", "born", "done", "held", "titles", "why")  # of a row; held: tasks that it has, titles: the first ones' names


class PoolPart(Part):
    """A row a worker; figures with the throughput of the last half minute. Looks only while it is looked at."""

    kind = "pool"

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = instance("pool", pool, ProcessPool, "a ProcessPool")
        self._board = BoardRows()
        self._rates: deque[float] = deque(maxlen=RATES)
        self._before: tuple[float, int] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- models

    def attach(self, host: Host) -> None:
        """Begin to look."""
        super().attach(host)
        self._board.rows, self._before = {}, None
        self._look()

    def detach(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self.host.home.loop.call_later(LOOK_EVERY, self._look)
        metrics = self._pool.metrics()
        ended, now = metrics.total_tasks_completed + metrics.total_tasks_failed, time.monotonic()
        rate = 0.0 if self._before is None else (ended - self._before[1]) / max(now - self._before[0], 0.001)
        self._before = (now, ended)
        self._rates.append(round(rate, 1))
        figures = {
            "workers": metrics.current_active_processes,
            "starting": metrics.current_starting_processes,
            "busy": metrics.current_busy_processes,
            "most": self._pool.config.most,
            "queued": metrics.current_queued_tasks,
            "running": metrics.current_running_tasks,
            "completed": metrics.total_tasks_completed,
            "failed": metrics.total_tasks_failed,
            "retries": metrics.total_retries,
            "crashed": metrics.total_processes_crashed,
            "average": round(metrics.average_execution_time, 4),
            "closed": self._pool.closed,
        }
        rows = {plain(worker.name): _row(worker) for worker in self._pool.workers()[:_WORKERS]}
        if self._board.put(rows, figures, news=rate > 0):
            self.host.want(self)

    # -- what the front ends get

    def snapshot(self) -> Delta:
        """Everything."""
        content = self._board.all(COLUMNS) | {"rates": list(self._rates), "now": time.time()}
        return Delta(content=content, size=400 + 120 * len(self._board.rows))

    def delta(self) -> Delta | None:
        """``u`` rows, ``-`` gone rows, ``figures`` with the newest ``rate``."""
        content = self._board.new(figures={"rate": self._rates[-1]})
        return Delta(content=content, size=400 + 120 * len(content.get("u", ()))) if content else None

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """The pool is open."""
        return not self._pool.closed

    def html(self) -> Html:
        """The pool's own static form."""
        return self._pool._html_()

    def watch_record(self, changed: Callable[[], None], *, live: bool) -> Callable[[], None]:
        """A pool has no end that its record would wait for; with ``live`` it is written again and again."""
        if not live:
            return lambda: None
        loop = home_of(self._pool).loop
        timer: list[asyncio.TimerHandle] = []

        def again() -> None:
            changed()
            timer[:] = [loop.call_later(2.0, again)]

        def stop() -> None:
            timer[0].cancel()

        again()
        return stop

    # -- what the front ends may do

    @op(workers=number(0, 1024))
    def resize(self, workers: float) -> None:
        """So many workers from now on; 0: as many as the load needs."""
        self._pool.resize(int(workers) or None)

    @op()
    def renew(self) -> None:
        """Replace every worker by a fresh one, each when it is free."""
        self._pool.renew()


def _row(worker: WorkerInfo) -> list[Any]:
    """The cells of COLUMNS."""
    return [
        worker.state.value,
        worker.pid,
        round(worker.created_at.timestamp(), 1),
        worker.done,
        len(worker.tasks),
        titles(worker.tasks),
        plain(worker.reason or "", limit=120),
    ]


class PoolView(View):
    """A pool's workers and tasks, live: queued, running, done, throughput; resize and renew.

    >>> async with ProcessPool() as pool:
    ...     PoolView(pool).close()
    """

    def __init__(self, pool: ProcessPool, *, height: int = 210) -> None:
        super().__init__({"pool": PoolPart(pool)}, model=pool, home=home_of(pool), height=height)
