"""What can be seen of a scheduler: status, snapshots, tables, pictures. Reads only, on any thread."""

import itertools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from nbprocs.display import Html, table, text
from nbprocs.scheduler.backend import Ended
from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.estimate import eta
from nbprocs.scheduler.frames import stored_rows
from nbprocs.scheduler.model import Attempt, Eta, Now, ScheduledTask, SchedulerStatus, TaskState, priority_name
from nbprocs.scheduler.outcome import RunningAttempt, TaskOutcome, attempt_of
from nbprocs.scheduler.times import to_datetime

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["at_once", "attempts", "ended", "estimated", "graph", "html", "snapshot", "status", "tasks"]

_SAMPLE = 2000  # tasks looked at for the ETA
_SHOWN = 12  # rows in the display
_SHORT = 100  # characters of an argument of a function that are shown


def status(core: SchedulerCore) -> SchedulerStatus:
    """A snapshot; constant time, but for a sample of at most 2,000 tasks for the ETA."""
    runner = core.runner
    queue, now = runner.queue, core.clock()
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
        eta=estimated(core),
        store=None if core.store is None else str(core.store.path),
    )


def estimated(core: SchedulerCore) -> Eta | None:
    """When all that has not ended will have (series apart); None when there is nothing to do, or nothing to judge by."""
    queue, seen, now = core.runner.queue, core.runner.durations, core.clock()
    guesses = []
    sample = [e for e in at_once(lambda: itertools.islice(queue, _SAMPLE)) if e.options.recurrence is None]
    for entry in sample:
        told = entry.options.estimated_duration
        guess = (told, (told / 4) ** 2) if told is not None else seen.guess(entry.argv)
        if guess is None:
            continue
        if (run := entry.run) is not None:
            guess = (max(guess[0] - (now.elapsed - run.elapsed), 0.0), guess[1])
        guesses.append(guess)
    if not guesses:
        return None
    return eta(guesses, slots=max(1, queue.max_running), scale=core.runner.pending / len(guesses))


def _spent(core: SchedulerCore, entry: Entry) -> float | None:
    """Seconds that it has run so far, or that its latest attempt took."""
    if (run := entry.run) is not None:  # read once: it may end meanwhile, where another thread looks
        return float(core.clock().elapsed - run.elapsed)
    outcome: TaskOutcome | None = entry.outcome
    return outcome.attempts[-1].execution_time if outcome is not None and outcome.attempts else None


def _place(entry: Entry) -> tuple[str, str]:
    """Host and worker of its latest attempt."""
    if (run := entry.run) is not None:
        seen = run.seen
        return ("", "") if seen is None else (seen.host, seen.worker)
    outcome: TaskOutcome | None = entry.outcome
    return (outcome.attempts[-1].host, outcome.attempts[-1].worker) if outcome is not None and outcome.attempts else ("", "")


def snapshot(core: SchedulerCore, entry: Entry) -> ScheduledTask:
    """One task as a value."""
    options = entry.options
    told = options.estimated_duration
    config = options.config
    host, worker = _place(entry)
    return ScheduledTask(
        id=core.runner.task_id(entry),
        command=entry.display if callable(entry.command) else entry.command,
        args=tuple(map(_short, entry.args)) if callable(entry.command) else entry.args,
        priority=entry.priority,
        scheduled_time=to_datetime(entry.time),
        estimated_duration=told if told is not None else core.runner.durations.mean(entry.argv),
        retry_count=entry.retries,
        max_retries=core.runner.tries.most(entry),
        state=entry.state,
        execution_time=_spent(core, entry),
        name=options.name,
        key=options.key,
        group=options.group,
        resources=options.resources,
        after=tuple(core.runner.task_id(other) for other, _ in (entry.needs or {}).values()),
        runs=entry.runs,
        working_dir=config.working_dir if config is not None and config.working_dir is not None else entry.folder,
        display=entry.display,
        host=host,
        worker=worker,
    )


def _short(value: object) -> str:
    """An argument of a function: the user's object is shown by its type, unless it is small by nature."""
    if isinstance(value, (str, int, float, type(None))) and type(value).__module__ == "builtins":
        return str(value)[:_SHORT]
    return f"<{type(value).__name__}>"


def tasks(core: SchedulerCore, *, limit: int | None = None) -> tuple[ScheduledTask, ...]:
    """Those that have not ended, in the order of their arrival, then those that have, latest last."""
    queue, finished = core.runner.queue, core.runner.finished
    return tuple(snapshot(core, e) for e in at_once(lambda: itertools.islice(itertools.chain(queue, finished.values()), limit)))


def ended(core: SchedulerCore, *, limit: int | None = None) -> tuple[ScheduledTask, ...]:
    """Those that have ended, latest first."""
    return tuple(snapshot(core, e) for e in at_once(lambda: itertools.islice(reversed(core.runner.finished.values()), limit)))


def attempts(core: SchedulerCore) -> list[Attempt]:
    """Every attempt that is known, the running ones last."""
    runner, now = core.runner, core.clock()
    past = list(runner.attempts) if core.store is None or runner.closed else stored_rows(core.store, runner.prefix)
    under_way = [(entry, entry.run) for entry in runner.running()]
    return [*past, *(_running(entry, run, runner.task_id(entry), now) for entry, run in under_way if run is not None)]


def _running(entry: Entry, run: RunningAttempt, task_id: str, now: Now) -> Attempt:
    """The row of an attempt under way."""
    made: Attempt = attempt_of(entry, run, Ended(), task_id=task_id, wall=now.wall, elapsed=now.elapsed)
    return replace(made, ended=None, outcome="running")


def graph(core: SchedulerCore, ax: "Axes | None") -> "Axes":
    """What waits, or waited, for what."""
    from nbprocs.scheduler.plots import graph as drawn  # noqa: PLC0415 - matplotlib only when something is drawn

    runner = core.runner
    entries = at_once(lambda: itertools.chain(runner.finished.values(), runner.queue))
    edges: dict[tuple[Hashable, Hashable], str] = {
        (first, then): condition for then, links in list(runner.edges.items()) for first, condition in list(links.items())
    }
    return drawn([(e.key, e.label, e.state.value) for e in entries], edges, ax=ax)


def html(core: SchedulerCore) -> Html:
    """The static form."""
    now = status(core)
    facts = [f"{now.queued_tasks:,} queued", f"{now.running_tasks} of {now.max_concurrent} running"]
    facts += [f"{n:,} {word}" for n, word in ((now.succeeded, "succeeded"), (now.failed, "failed"), (now.skipped, "skipped")) if n]
    facts += [f"{now.eta} left"] if now.eta and now.queued_tasks + now.running_tasks else []
    facts += ["halted: " + now.halted] if now.halted else ["paused"] if now.paused else []
    running = core.runner.running()
    waiting = [e for e in at_once(lambda: itertools.islice(core.runner.queue, _SHOWN)) if e.run is None]
    latest = at_once(lambda: itertools.islice(reversed(core.runner.finished.values()), _SHOWN))
    shown = (running + waiting + latest)[:_SHOWN]
    far = any(_place(entry)[1] for entry in shown)
    head = ("task", "priority", "state", "tries", *(("worker", "host") if far else ()))
    rows = table(head, (_row(entry, far=far) for entry in shown))
    return Html("<div><b>TaskScheduler</b> {}{}</div>").format(text(", ".join(facts)), rows)


def _row(entry: Entry, *, far: bool) -> tuple[str, ...]:
    """The cells of a task; of a queue on a cluster with the place of its latest attempt."""
    tries = entry.retries + 1 if entry.run is not None or entry.outcome is not None else 0
    host, worker = _place(entry)
    place = (text(worker, limit=80), text(host, limit=60)) if far else ()
    return text(entry.label, limit=80), text(priority_name(entry.priority)), entry.state.value, str(tries), *place


def at_once(look: Callable[[], Iterable[Entry]]) -> list[Entry]:
    """What is there now, on whatever thread: the home loop may add or remove in the middle of a look, which is then made again."""
    while True:
        try:
            return list(look())
        except RuntimeError:  # a dictionary changed while it was walked
            continue
