"""What a new kernel finds in the store: every task that had not ended, each once. Runs before anything starts."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from nbprocs.engine.home import log
from nbprocs.scheduler.entry import DEFAULTS, Entry, TaskOptions
from nbprocs.scheduler.journal import Journal, attempt_row, read_attempt, read_error, read_result
from nbprocs.scheduler.model import Attempt, Condition, Interrupted, Misfire, Now, SchedulerConfig, TaskState
from nbprocs.scheduler.options import decode
from nbprocs.scheduler.outcome import Outcome, error_of
from nbprocs.scheduler.queue import TaskQueue
from nbprocs.scheduler.schema import ATTEMPT, OUTPUT
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.times import latest_due, next_run

__all__ = ["Resumed", "load", "lookup"]

_COLUMNS = "key, argv, priority, time, clock, state, options, after, retries, runs, interruptions, started, error, pid, host, worker"
_UNFINISHED = "state IN ('queued', 'held', 'running')"


class Resumed:
    """Entries that wait again, and what could not be restored."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.links: dict[int, list[list[Any]]] = {}  # key -> [key that must end, condition]
        self.missing: dict[int, tuple[str, ...]] = {}  # key -> names of secrets that this kernel does not have
        self.interrupted: dict[int, tuple[Attempt, tuple[Any, ...]]] = {}  # key -> the attempt that the former kernel did not end, its row


def _entry(row: tuple[Any, ...], options: TaskOptions) -> Entry:
    key, argv, priority, time = row[:4]
    command, *args = json.loads(argv)
    entry = Entry(key, command, tuple(args), priority, time, options)
    entry.retries, entry.runs, entry.interruptions = row[8:11]
    return entry


def load(store: Store, queue: TaskQueue, journal: Journal, config: SchedulerConfig, now: Now, *, host: str) -> Resumed:
    """Put every unfinished task of the store into the queue, and settle those that a former kernel left running, in one transaction."""
    found = Resumed()
    entries, held = _read(store, found, config, now, host)
    tried = {key for (key,) in store.rows(f"SELECT DISTINCT key FROM attempts JOIN tasks USING (key) WHERE {_UNFINISHED}")}  # noqa: S608
    states = _ended_states(store, found.links, entries)
    for entry in _dependencies_first(entries, found.links):
        if entry.state is TaskState.INTERRUPTED:
            queue.counts[entry.state] += 1
            journal.change(entry, interruptions=entry.interruptions, started=None)
            continue
        links = found.links.get(entry.key, ())
        after = [(entries.get(k) or _ghost(k, states), Condition(c)) for k, c in links if k in entries or k in states]
        if queue.add(entry, now, after=after, held=entry.key in held) is TaskState.SKIPPED:
            entry.outcome = Outcome(error=error_of(entry, TaskState.SKIPPED))
            journal.change(entry)
        else:
            _remember(entry, store, found, tried=entry.key in tried)
            if entry.key in found.interrupted:
                journal.waits_again(entry)
    journal.add_attempts(row for _, row in found.interrupted.values())
    journal.flush()
    _tell(store, found)
    return found


def _read(store: Store, found: Resumed, config: SchedulerConfig, now: Now, host: str) -> tuple[dict[int, Entry], set[int]]:
    """The unfinished tasks, and the keys of those that are held."""
    entries: dict[int, Entry] = {}
    held: set[int] = set()
    cache: dict[str, tuple[TaskOptions, tuple[str, ...]]] = {}

    def take(*row: Any) -> None:
        text = row[6]
        options, missing = (DEFAULTS, ()) if text is None else cache.get(text) or cache.setdefault(text, decode(text, os.environ))
        entry = entries[row[0]] = _entry(row, options)
        _due(entry, row[4], now)
        if row[5] == "running":
            found.interrupted[entry.key] = _interrupted(entry, row[11], row[13:16], config, host=host, store=store)
        if row[5] == "held" or missing:
            held.add(entry.key)
        if missing:
            found.missing[entry.key] = missing
        if row[7] is not None:
            found.links[entry.key] = json.loads(row[7])

    store.each(f"SELECT {_COLUMNS} FROM tasks WHERE {_UNFINISHED} ORDER BY key", take)  # noqa: S608 - our own column names
    return entries, held


def _dependencies_first(entries: Mapping[int, Entry], links: Mapping[int, list[list[Any]]]) -> Iterator[Entry]:
    """Each after those that it waits for, which nearly always is the order of arrival."""
    done: set[int] = set()
    for root in entries:
        path = [root]
        while path:
            following = next((k for k, _ in links.get(path[-1], ()) if k in entries and k not in done and k not in path), None)
            if following is not None:
                path.append(following)
                continue
            key = path.pop()
            if key not in done:
                done.add(key)
                yield entries[key]


def _remember(entry: Entry, store: Store, found: Resumed, *, tried: bool) -> None:
    """Its past attempts."""
    found.entries.append(entry)
    past = _attempts(store, entry) if tried else ()
    if entry.key in found.interrupted:
        past = (*past, found.interrupted[entry.key][0])
    if past:
        entry.outcome = Outcome(attempts=past)


def _attempts(store: Store, entry: Entry) -> tuple[Attempt, ...]:
    """The last attempts that are on record."""
    rows = store.rows(f"SELECT {ATTEMPT} FROM attempts WHERE key = ? ORDER BY attempt DESC LIMIT 100", entry.key)  # noqa: S608
    return tuple(read_attempt(entry, row, f"{store.prefix}{entry.key}") for row in reversed(rows))


def _ghost(key: int, states: Mapping[int, TaskState]) -> Entry:
    """A task that has ended, as something to depend on."""
    ghost = Entry(key, "", (), 0, 0.0, DEFAULTS)
    ghost.state = states[key]
    return ghost


def _ended_states(store: Store, links: Mapping[int, list[list[Any]]], entries: Mapping[int, Entry]) -> dict[int, TaskState]:
    """States of the ended tasks that others name. A forgotten one is missing: it ended as asked, or the other would be skipped."""
    wanted = {key for rows in links.values() for key, _ in rows if key not in entries}
    states: dict[int, TaskState] = {}
    for key in wanted:
        for (state,) in store.rows("SELECT state FROM tasks WHERE key = ?", key):
            states[key] = TaskState(state)
    return states


def _due(entry: Entry, clock: int, now: Now) -> None:
    """Its time on today's clocks. A series whose times passed meanwhile goes by its misfire rule."""
    rule = entry.options.recurrence
    if rule is not None and entry.time <= now.wall and entry.retries == 0:
        # The stored time is itself one that may have been missed: count from just before it.
        entry.time = _caught_up(entry, now)
    if clock == 2:  # noqa: PLR2004 - a date, see the schema
        entry.due, entry.on_wall = entry.time, True
    elif clock == 1:
        entry.due = now.elapsed + entry.time - now.wall


def _caught_up(entry: Entry, now: Now) -> float:
    rule = entry.options.recurrence
    if rule is None or rule.misfire is Misfire.ALL:
        return entry.time
    return next_run(rule, entry.time, now.wall)[0] if rule.misfire is Misfire.SKIP else latest_due(rule, entry.time, now.wall)


def _interrupted(
    entry: Entry, started: float | None, where: tuple[Any, ...], config: SchedulerConfig, *, host: str, store: Store
) -> tuple[Attempt, tuple[Any, ...]]:
    """A former kernel died while it ran: queued again, or marked."""
    entry.interruptions += 1
    policy = entry.options.on_interrupted or config.on_interrupted
    pid, known_host, worker = where
    number = int(store.rows("SELECT count(*) FROM attempts WHERE key = ?", entry.key)[0][0]) + 1
    attempt = Attempt(
        task_id=f"{store.prefix}{entry.key}",
        attempt=number,
        name=entry.label,
        command=entry.display,
        priority=entry.priority,
        group=entry.options.group,
        queued=entry.time,
        started=started,
        ended=None,
        outcome="interrupted",
        retry=entry.retries,
        pid=pid,
        host=known_host or host,
        worker=worker or "",
        reason="the kernel died",
    )
    if policy is Interrupted.MARK or entry.interruptions > config.max_interruptions:
        entry.state = TaskState.INTERRUPTED
        entry.outcome = Outcome(error=error_of(entry, TaskState.INTERRUPTED), attempts=(attempt,))
    else:
        entry.due = None
    return attempt, attempt_row(entry.key, attempt, None, None, limit=0)


def _tell(store: Store, found: Resumed) -> None:
    if found.missing:
        names = sorted({name for missing in found.missing.values() for name in missing})
        log.warning(
            "%d tasks of %s are held: secrets are not stored, and this kernel has no %s in its environment. Set them in os.environ, then "
            "release() the tasks.",
            len(found.missing),
            store.path,
            ", ".join(names),
        )


def lookup(store: Store, key: int, task_id: str) -> Entry | None:
    """A task that has ended, with its attempts and the result of the last one."""
    rows = store.rows(f"SELECT {_COLUMNS} FROM tasks WHERE key = ?", key)  # noqa: S608 - our own column names
    if not rows:
        return None
    row = rows[0]
    entry = _entry(row, decode(row[6], os.environ)[0])
    entry.state = TaskState(row[5])
    attempts: list[Attempt] = []
    result, error = None, error_of(entry, entry.state, row[12] or "")
    for found in store.rows(f"SELECT {OUTPUT}, {ATTEMPT} FROM attempts WHERE key = ? ORDER BY attempt", key):  # noqa: S608
        out, err, dropped, text, *columns = found
        attempt = read_attempt(entry, tuple(columns), task_id)
        attempts.append(attempt)
        result = read_result(attempt, out, err, dropped)
        if entry.state is TaskState.FAILED:
            error = read_error(text, result, attempt.retry + 1)
    entry.outcome = Outcome(result=result, error=error, attempts=tuple(attempts))
    return entry
