"""The scheduler's views: status, snapshots, DataFrames, plots, its display. They read and change nothing."""

import itertools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from nbprocs.display import Displayable, Html, table, text
from nbprocs.scheduler.backend import Ended
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.estimate import eta
from nbprocs.scheduler.frames import attempts_frame, stored_rows, tasks_frame
from nbprocs.scheduler.model import Attempt, Eta, Now, ScheduledTask, SchedulerConfig, SchedulerStatus, TaskState, priority_name
from nbprocs.scheduler.outcome import Run, attempt_of
from nbprocs.scheduler.reasons import reason
from nbprocs.scheduler.runner import Runner
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.times import to_datetime

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Views", "at_once"]

_SAMPLE = 2000  # tasks looked at for the ETA
_SHOWN = 12  # rows in the display


class Views(Displayable):
    """Part of TaskScheduler."""

    config: SchedulerConfig
    runner: Runner
    _store: Store | None
    _clock: Callable[[], Now]

    def status(self) -> SchedulerStatus:
        """A snapshot; constant time, but for a sample of at most 2,000 tasks for the ETA."""
        runner = self.runner
        queue, now = runner.queue, self._clock()
        counts = queue.counts
        due = queue.next_time()
        soonest = min(due.wall, now.wall + due.elapsed - now.elapsed)
        return SchedulerStatus(
            queued_tasks=queue.waiting(),
            running_tasks=counts[TaskState.RUNNING],
            max_concurrent=queue.max_running,
            next_scheduled_time=None if soonest == float("inf") else to_datetime(soonest),
            scheduled=counts[TaskState.SCHEDULED],
            blocked=counts[TaskState.BLOCKED],
            ready=counts[TaskState.QUEUED],
            held=counts[TaskState.HELD],
            succeeded=counts[TaskState.SUCCEEDED],
            failed=counts[TaskState.FAILED],
            cancelled=counts[TaskState.CANCELLED],
            skipped=counts[TaskState.SKIPPED],
            interrupted=counts[TaskState.INTERRUPTED],
            retries=runner.retries,
            paused=queue.paused,
            halted=runner.halted,
            closed=runner.closed,
            groups=queue.groups(),
            resources=queue.resources(),
            eta=self.eta(),
            store=None if self._store is None else str(self._store.path),
        )

    def eta(self) -> Eta | None:
        """When all that has not ended will have (series apart); None when there is nothing to do, or nothing to judge by."""
        queue, seen, now = self.runner.queue, self.runner.durations, self._clock()
        guesses = []
        sample = [e for e in at_once(lambda: itertools.islice(queue, _SAMPLE)) if e.options.recurrence is None]
        for entry in sample:
            told = entry.options.estimated_duration
            guess = (told, (told / 4) ** 2) if told is not None else seen.guess((str(entry.command), *map(str, entry.args)))
            if guess is None:
                continue
            if entry.run is not None:
                guess = (max(guess[0] - (now.elapsed - entry.run.elapsed), 0.0), guess[1])
            guesses.append(guess)
        if not guesses:
            return None
        pending = self.runner.pending
        return eta(guesses, slots=max(1, queue.max_running), scale=pending / len(guesses))

    def snapshot(self, entry: Entry) -> ScheduledTask:
        """One task as a value."""
        argv = (str(entry.command), *map(str, entry.args))
        options = entry.options
        told = options.estimated_duration
        return ScheduledTask(
            id=self.runner.task_id(entry),
            command=entry.display if callable(entry.command) else entry.command,
            args=argv[1:],
            priority=entry.priority,
            scheduled_time=to_datetime(entry.time),
            estimated_duration=told if told is not None else self.runner.durations.mean(argv),
            retry_count=entry.retries,
            max_retries=self.runner.max_retries(entry),
            state=entry.state,
            name=options.name,
            group=options.group,
            resources=options.resources,
            after=tuple(self.runner.task_id(other) for other, _ in (entry.needs or {}).values()),
            runs=entry.runs,
            working_dir=options.working_dir if options.working_dir is not None else entry.folder,
            display=entry.display,
        )

    def tasks(self, *, limit: int | None = None) -> tuple[ScheduledTask, ...]:
        """Snapshots of the tasks that have not ended, in the order of their arrival, then of those that have, latest last."""
        queue, finished = self.runner.queue, self.runner.finished
        return tuple(map(self.snapshot, at_once(lambda: itertools.islice(itertools.chain(queue, finished.values()), limit))))

    def ended(self, *, limit: int | None = None) -> tuple[ScheduledTask, ...]:
        """Snapshots of the tasks that have ended, latest first; of very many the last ``history``."""
        return tuple(map(self.snapshot, at_once(lambda: itertools.islice(reversed(self.runner.finished.values()), limit))))

    def why(self, entry: Entry) -> str:
        """In a sentence, why a task does not run now."""
        return reason(entry, self.runner)

    # -- tables and pictures

    def attempts(self) -> list[Attempt]:
        """Every attempt that is known, the running ones last: of the store, or the last ones of this scheduler."""
        runner, now = self.runner, self._clock()
        past = list(runner.attempts) if self._store is None or runner.closed else stored_rows(self._store, runner.prefix)
        under_way = [(entry, entry.run) for entry in runner.running()]
        return [*past, *(_running(entry, run, runner.task_id(entry), now) for entry, run in under_way if run is not None)]

    def frame(self) -> "pd.DataFrame":
        """One row an attempt: queued, started, ended, outcome, exit code, retry, peak memory, host …; with a store all there ever were."""
        return attempts_frame(self.attempts())

    def tasks_frame(self) -> "pd.DataFrame":
        """One row a task: those that have not ended, and the last ones that have."""
        return tasks_frame(self.tasks())

    def timeline(self, ax: "Axes | None" = None, *, color: str = "priority") -> "Axes":
        """A Gantt chart of the attempts, a row for each slot; ``color`` by "priority", "outcome" or "group"."""
        from nbprocs.scheduler.plots import timeline  # noqa: PLC0415 - matplotlib only when something is drawn

        return timeline(self.attempts(), ax=ax, color=color)

    def graph(self, ax: "Axes | None" = None) -> "Axes":
        """What waits, or waited, for what: tasks as boxes, coloured by their state, from left to right."""
        from nbprocs.scheduler.plots import graph  # noqa: PLC0415 - matplotlib only when something is drawn

        runner = self.runner
        entries = at_once(lambda: itertools.chain(runner.finished.values(), runner.queue))
        edges: dict[tuple[Hashable, Hashable], str] = {
            (first, then): condition for then, links in runner.edges.items() for first, condition in links.items()
        }
        return graph([(e.key, e.label, e.state.value) for e in entries], edges, ax=ax)

    def _html_(self) -> Html:
        status = self.status()
        facts = [f"{status.queued_tasks:,} queued", f"{status.running_tasks} of {status.max_concurrent} running"]
        facts += [
            f"{n:,} {word}" for n, word in ((status.succeeded, "succeeded"), (status.failed, "failed"), (status.skipped, "skipped")) if n
        ]
        facts += [f"{status.eta} left"] if status.eta and status.queued_tasks + status.running_tasks else []
        facts += ["halted: " + status.halted] if status.halted else ["paused"] if status.paused else []
        running = self.runner.running()
        waiting = [e for e in at_once(lambda: itertools.islice(self.runner.queue, _SHOWN)) if e.run is None]
        ended = at_once(lambda: itertools.islice(reversed(self.runner.finished.values()), _SHOWN))
        rows = table(("task", "priority", "state", "tries"), map(self._row, (running + waiting + ended)[:_SHOWN]))
        return Html("<div><b>TaskScheduler</b> {}{}</div>").format(text(", ".join(facts)), rows)

    @staticmethod
    def _row(entry: Entry) -> tuple[str, ...]:
        tries = entry.retries + 1 if entry.run is not None or entry.outcome is not None else 0
        return text(entry.label, limit=80), text(priority_name(entry.priority)), entry.state.value, str(tries)


def at_once(look: Callable[[], Iterable[Entry]]) -> list[Entry]:
    """What is there now, on whatever thread: the home loop may add or remove in the middle of a look, which is then made again."""
    while True:
        try:
            return list(look())
        except RuntimeError:  # a dictionary changed while it was walked
            continue


def _running(entry: Entry, run: Run, task_id: str, now: Now) -> Attempt:
    """The row of an attempt under way."""
    made: Attempt = attempt_of(entry, run, Ended(), task_id=task_id, wall=now.wall, elapsed=now.elapsed)
    return replace(made, ended=None, outcome="running")
