"""What a pool shows: figures, DataFrames, and a static table. Reads only."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nbprocs.display import Html, table, text
from nbprocs.pool.core import PoolCore
from nbprocs.pool.model import PoolMetrics, WorkerInfo
from nbprocs.pool.task import Task
from nbprocs.pool.worker import WorkerHandle

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["html", "metrics", "summary", "task_frame", "worker_frame", "workers"]

_SHOWN = 50  # workers in the static table


def metrics(core: PoolCore) -> PoolMetrics:
    """The figures now."""
    table, workers, dispatcher = core.table, core.workers, core.dispatcher
    live = list(workers.live.values())
    starting = sum(worker.ready_at is None for worker in live)
    return PoolMetrics(
        total_tasks_completed=table.completed,
        total_tasks_failed=table.failed,
        total_tasks_cancelled=table.cancelled,
        total_retries=table.retries,
        average_execution_time=table.seconds / table.completed if table.completed else 0.0,
        total_processes_created=workers.created,
        total_processes_destroyed=workers.destroyed,
        total_processes_crashed=workers.crashed,
        current_active_processes=len(live) - starting,
        current_starting_processes=starting,
        current_busy_processes=sum(bool(worker.window.sent) for worker in live),
        current_queued_tasks=len(dispatcher.queue) + len(table.delayed),
        current_running_tasks=dispatcher.running,
    )


def _tasks(core: PoolCore) -> list[Task]:
    """The remembered ones, then those at work, then those that wait."""
    table, dispatcher = core.table, core.dispatcher
    sent = [task for window in list(dispatcher.windows) for task in list(window.sent.values()) if not task.dropped]
    return [*table.ended.copy(), *sent, *table.dying, *table.delayed, *dispatcher.queue]


def task_frame(core: PoolCore) -> "pd.DataFrame":
    """A row a task, indexed by its number; see ProcessPool.frame."""
    import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

    when = _Clock()
    found = _tasks(core)
    rows = [
        (
            task.title,
            task.state.value,
            task.priority,
            when(task.queued),
            when(task.started),
            when(task.ended),
            task.seconds if task.state.final else None,
            task.worker or None,
            task.attempts,
            task.error or None,
        )
        for task in found
    ]
    columns = ["task", "state", "priority", "queued", "started", "ended", "seconds", "worker", "attempts", "error"]
    index = pd.Index([task.number for task in found], name="number", dtype="int64")
    frame = pd.DataFrame(rows, columns=columns, index=index)
    words = dict.fromkeys(("task", "state", "worker", "error"), "string")
    times = dict.fromkeys(("queued", "started", "ended"), "datetime64[us, UTC]")
    return frame.astype({**words, **times, "seconds": "float64", "attempts": "int64", "priority": "int64"}).sort_index()


def workers(core: PoolCore) -> tuple[WorkerInfo, ...]:
    """Those that are there, the oldest first."""
    when = _Clock()
    return tuple(_info(worker, when) for worker in core.workers.live.values())


def _info(worker: WorkerHandle, when: "_Clock") -> WorkerInfo:
    return WorkerInfo(
        name=worker.name,
        pid=worker.process.pid if worker.process else None,
        state=worker.state,
        created_at=when.date(worker.born),
        ready_at=when(worker.ready_at),
        ended_at=when(worker.ended_at),
        done=worker.done,
        tasks=tuple(task.title for task in worker.window.sent.values()),
        memory=worker.memory,
        reason=worker.reason or None,
    )


def worker_frame(core: PoolCore) -> "pd.DataFrame":
    """A row a worker, indexed by name; see ProcessPool.frame."""
    import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

    when = _Clock()
    found = [_info(worker, when) for worker in (*core.workers.past, *core.workers.live.values())]
    rows = [
        (info.state.value, info.pid, info.created_at, info.ready_at, info.ended_at, info.done, len(info.tasks), info.reason)
        for info in found
    ]
    columns = ["state", "pid", "started", "ready", "ended", "tasks", "holds", "reason"]
    frame = pd.DataFrame(rows, columns=columns, index=pd.Index([info.name for info in found], name="worker"))
    words = dict.fromkeys(("state", "reason"), "string")
    times = dict.fromkeys(("started", "ready", "ended"), "datetime64[us, UTC]")
    return frame.astype({**words, **times, "pid": "Int64", "tasks": "int64", "holds": "int64"})


class _Clock:
    """Monotonic seconds as dates, by the wall clock of now: the clock may be set, the durations stay right."""

    def __init__(self) -> None:
        self._now, self._mono = datetime.now(UTC), time.monotonic()

    def date(self, seconds: float) -> datetime:
        return self._now - timedelta(seconds=self._mono - seconds)

    def __call__(self, seconds: float | None) -> datetime | None:
        return self.date(seconds) if seconds else None


def summary(name: str, figures: PoolMetrics, most: int, *, closed: bool) -> str:
    """One line."""
    state = "closed" if closed else f"{figures.current_active_processes} of {most} workers, {figures.current_busy_processes} busy"
    return (
        f"<ProcessPool {name}: {state}; {figures.current_queued_tasks} queued, {figures.current_running_tasks} running, "
        f"{figures.total_tasks_completed} completed, {figures.total_tasks_failed} failed>"
    )


def html(title: str, infos: Iterable[WorkerInfo]) -> Html:
    """A static table of workers."""
    now = datetime.now(UTC)
    rows = (_row(info, now) for info in list(infos)[:_SHOWN])
    return Html("<div>{}{}</div>").format(text(title), table(("worker", "state", "pid", "tasks", "holds", "age"), rows))


def _row(info: WorkerInfo, now: datetime) -> list[Html]:
    age = f"{(now - info.created_at).total_seconds():.0f} s"
    return [text(content) for content in (info.name, info.state.value, info.pid or "", info.done, len(info.tasks), age)]
