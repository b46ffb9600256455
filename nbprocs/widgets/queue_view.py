"""The queue of a scheduler: what runs, what waits and why, what ended; with progress, ETA and timeline."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from nbprocs.checks import instance
from nbprocs.display import Html, duration, plain
from nbprocs.engine.home import home_of
from nbprocs.errors import ProcessError
from nbprocs.model import TaskPriority
from nbprocs.scheduler import ScheduledTask, SchedulerEvent, TaskEventKind, TaskScheduler, TaskState
from nbprocs.scheduler.model import priority_name
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.wire import Delta, Refused, choice, flag, number, op, texts

__all__ = ["QueuePart", "QueueView"]

WAITING = 150  # rows of tasks that wait
ENDED = 50  # rows of tasks that have ended, the latest
BARS = 200  # in the timeline
STATUS_EVERY = 0.5  # seconds: figures of a busy queue change at most this often
_SELECTED = 2000
COLUMNS = ("name", "cmd", "state", "priority", "level", "group", "tries", "due", "expected", "why", "worker", "host")  # of a row
_FINAL = {state.value for state in TaskState if state.final}


class QueuePart(Part):
    """Rows of the tasks at the head of the queue, those that run, and the last that ended."""

    kind = "queue"

    def __init__(self, scheduler: TaskScheduler) -> None:
        self._scheduler = instance("scheduler", scheduler, TaskScheduler, "a TaskScheduler")
        self._rows: dict[str, list[Any]] = {}
        self._dirty: dict[str, None] = {}
        self._ended: deque[str] = deque()
        self._bars: deque[list[Any]] = deque(maxlen=BARS)
        self._open: dict[str, list[Any]] = {}  # bars of what runs
        self._new_bars: list[list[Any]] = []
        self._sent_status: dict[str, Any] = {}
        self._unsubscribe: Callable[[], None] | None = None

    # -- models

    def attach(self, host: Host) -> None:
        """Subscribe."""
        super().attach(host)
        self._rows, self._dirty = {}, {}
        self._ended.clear()
        self._bars = deque((bar for bar in self._bars if bar[2] is not None), maxlen=BARS)  # nobody saw how the others ended
        self._open, self._new_bars = {}, []
        running = [handle.task for handle in self._scheduler.handles(state=TaskState.RUNNING)]
        tasks = self._scheduler.tasks(limit=WAITING)
        latest = self._scheduler.ended(limit=ENDED)
        for task in (*running, *tasks, *latest):
            self._put(task)
        for task in running:
            self._start_bar(task.id, self._started(task.id))
        self._sent_status = self._status()
        self._unsubscribe = self._scheduler.subscribe(host.carry(self._on_event))

    def detach(self) -> None:
        """Unsubscribe."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _finished(self) -> int:
        status = self._scheduler.status()
        return status.succeeded + status.failed + status.cancelled + status.skipped + status.interrupted

    def _started(self, task_id: str) -> float:
        process = self._scheduler.get(task_id).process
        return time.time() if process is None else process.created_at.timestamp()

    def _put(self, task: ScheduledTask) -> list[Any]:
        """The row of a task, as the front ends get it: the cells of COLUMNS."""
        if task.state.final and task.id not in self._ended:
            self._ended.append(task.id)
        row = [
            plain(task.name or task.display, limit=160),
            plain(task.display, limit=300),
            task.state.value,
            task.priority,
            priority_name(task.priority),
            plain(task.group or "", limit=60),
            f"{task.retry_count}/{task.max_retries}" if task.retry_count or task.max_retries else "",
            round(task.scheduled_time.timestamp(), 1),
            None if task.estimated_duration is None else round(task.estimated_duration, 2),
            self._why(task),
            plain(task.worker, limit=120),
            plain(task.host, limit=120) if task.worker else "",  # of a task here, it goes without saying
        ]
        self._rows[task.id] = row
        return row

    def _why(self, task: ScheduledTask) -> str:
        if task.state.final or task.state is TaskState.RUNNING:
            return ""
        try:
            why = plain(self._scheduler.get(task.id).why(), limit=200)
        except ProcessError:
            return ""
        return why if task.estimated_duration is None else f"{why}; then about {duration(task.estimated_duration)}"

    def _on_event(self, event: SchedulerEvent) -> None:
        now = time.time()
        if event.kind is TaskEventKind.STARTED:
            if event.task_id not in self._open:  # it ran already when somebody came to look, and this is told after that
                self._start_bar(event.task_id, now)
        elif event.kind in (TaskEventKind.ENDED, TaskEventKind.RETRYING) and (bar := self._open.pop(event.task_id, None)):
            bar[2] = round(now, 2)
            bar[3] = event.state.value if event.kind is TaskEventKind.ENDED and event.state is not None else "failed"
            self._new_bars.append(bar)
        wanted = event.kind is not TaskEventKind.SCHEDULED or len(self._rows) < WAITING + ENDED
        if event.task_id and wanted:
            self._dirty[event.task_id] = None
        self.host.want(self, after=0.0 if event.kind is TaskEventKind.CHANGED else STATUS_EVERY / 2)

    def _start_bar(self, task_id: str, started: float) -> None:
        bar = self._open[task_id] = [task_id, round(started, 2), None, "running"]
        self._bars.append(bar)
        self._new_bars.append(bar)

    # -- what the front ends get

    def _status(self) -> dict[str, Any]:
        status = self._scheduler.status()
        eta = status.eta
        return {
            "running": status.running_tasks,
            "limit": status.max_concurrent,
            "waiting": status.queued_tasks,
            "counts": {state.value: count for state, count in _counts(status).items() if count},
            "paused": status.paused,
            "halted": plain(status.halted or "", limit=200),
            "closed": status.closed,
            "eta": None if eta is None else [round(eta.low, 1), round(eta.middle, 1), round(eta.high, 1)],
            "next": None if status.next_scheduled_time is None else round(status.next_scheduled_time.timestamp(), 1),
            "resources": [[plain(r.name), r.used, r.capacity] for r in status.resources],
        }

    def snapshot(self) -> Delta:
        """Rows, bars and figures."""
        content = {
            "columns": COLUMNS,
            "rows": list(self._rows.items()),
            "bars": list(self._bars),
            "status": self._sent_status,
            "now": time.time(),
            "priorities": {p.name: int(p) for p in TaskPriority},
        }
        return Delta(content=content, size=300 + 250 * len(self._rows) + 60 * len(self._bars))

    def delta(self) -> Delta | None:
        """``u`` rows, ``-`` gone rows, ``b`` bars, ``status``."""
        content: dict[str, Any] = {}
        dirty, self._dirty = self._dirty, {}
        changed = {}
        for task_id in dirty:
            try:
                task = self._scheduler.get(task_id).task
            except ProcessError:
                continue
            before = self._rows.get(task_id)
            row = self._put(task)
            if row != before:
                changed[task_id] = row
        if changed:
            content["u"] = list(changed.items())
        if gone := self._surplus():
            content["-"] = gone
        if self._new_bars:
            content["b"], self._new_bars = self._new_bars[-BARS:], []
        status = self._status()
        if status != self._sent_status:
            self._sent_status = content["status"] = status
        return Delta(content=content, size=300 + 250 * len(changed)) if content else None

    def _surplus(self) -> list[str]:
        gone = []
        while len(self._ended) > ENDED:
            task_id = self._ended.popleft()
            if self._rows.pop(task_id, None) is not None:
                gone.append(task_id)
        return gone

    @property
    def over(self) -> bool:  # type: ignore[override]
        """The scheduler was closed."""
        return bool(self._scheduler.status().closed)

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Something runs or waits."""
        status = self._scheduler.status()
        return bool(status.running_tasks + status.queued_tasks) and not status.closed

    def html(self) -> Html:
        """The scheduler's own static form."""
        return self._scheduler._html_()

    def watch_record(self, changed: Callable[[], None], *, live: bool) -> Callable[[], None]:
        """After a task ended; with ``live`` after every event."""
        return self._scheduler.subscribe(
            lambda event: changed() if live or event.kind in (TaskEventKind.ENDED, TaskEventKind.CLOSED) else None
        )

    # -- what the front ends may do

    def _each(self, ids: Iterable[str], act: Callable[[Any], object]) -> None:
        problems = []
        for task_id in ids:
            try:
                act(self._scheduler.get(task_id))
            except (ProcessError, ValueError) as error:
                problems.append(plain(error, limit=300))
        if problems:
            raise Refused("\n".join(problems))

    @op(ids=texts(_SELECTED, 100))
    def cancel(self, ids: list[str]) -> None:
        """Cancel each, running ones tree and all."""
        self._each(ids, lambda handle: handle.cancel())

    @op(ids=texts(_SELECTED, 100))
    def hold(self, ids: list[str]) -> None:
        """Hold each back."""
        self._each(ids, lambda handle: handle.hold())

    @op(ids=texts(_SELECTED, 100))
    def release(self, ids: list[str]) -> None:
        """The opposite."""
        self._each(ids, lambda handle: handle.release())

    @op(ids=texts(_SELECTED, 100), priority=choice(*(int(p) for p in TaskPriority)))
    def reprioritise(self, ids: list[str], priority: int) -> None:
        """Give each another priority."""
        self._each(ids, lambda handle: handle.reprioritise(priority))

    @op(on=flag)
    def pause(self, on: bool = True) -> None:  # noqa: FBT001, FBT002 - by name, from the wire
        """Start nothing more, or go on."""
        if on:
            self._scheduler.pause()
        else:
            self._scheduler.resume()

    @op(limit=number(0, 10_000))
    def set_limit(self, limit: float) -> None:
        """How many run at a time."""
        self._scheduler.set_limit(int(limit))


def _counts(status: Any) -> dict[TaskState, int]:
    return {
        TaskState.RUNNING: status.running_tasks,
        TaskState.QUEUED: status.ready,
        TaskState.SCHEDULED: status.scheduled,
        TaskState.BLOCKED: status.blocked,
        TaskState.HELD: status.held,
        TaskState.SUCCEEDED: status.succeeded,
        TaskState.FAILED: status.failed,
        TaskState.CANCELLED: status.cancelled,
        TaskState.SKIPPED: status.skipped,
        TaskState.INTERRUPTED: status.interrupted,
    }


class QueueView(View):
    """A scheduler's queue by state, with progress, ETA and timeline; buttons for pause, cancel, hold and priority.

    >>> async with TaskScheduler() as sch:
    ...     QueueView(sch).close()
    """

    def __init__(self, scheduler: TaskScheduler, *, height: int = 270) -> None:
        super().__init__({"queue": QueuePart(scheduler)}, model=scheduler, home=home_of(scheduler), height=height)
