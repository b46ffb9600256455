"""What a new kernel finds in the store: every task that had not ended, each once. Runs before anything starts."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from nbprocs.engine.home import log
from nbprocs.guard import text_of
from nbprocs.scheduler.entry import DEFAULTS, Entry, TaskOptions
from nbprocs.scheduler.errors import StoreCorrupt
from nbprocs.scheduler.model import Attempt, Condition, Interrupted, Misfire, Now, SchedulerConfig, TaskState
from nbprocs.scheduler.options import decode
from nbprocs.scheduler.outcome import TaskOutcome, error_of, skip_reason
from nbprocs.scheduler.queue import TaskQueue
from nbprocs.scheduler.schema import ATTEMPT, OUTPUT
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.times import latest_due, next_run
from nbprocs.scheduler.writer import StoreWriter, attempt_row, read_attempt, read_error, read_result, read_text, stored_text

__all__ = ["Resumed", "load", "lookup"]

_COLUMNS = (
    "key, argv, priority, time, clock, state, options, after, retries, runs, interruptions, started, error, pid, host, worker, folder"
)
_UNFINISHED = "state IN ('queued', 'held', 'running')"
_CUT_OFF = "(state = 'cancelled' AND started IS NOT NULL)"  # its kernel died while it was being ended
_SHOWN = 300  # characters of what is wrong with a row
_LATEST = 1e11  # seconds since the epoch: the year 5138


class Resumed:
    """Entries that wait again, and what could not be restored."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.links: dict[int, list[list[Any]]] = {}  # key -> [key that must end, condition]
        self.missing: dict[int, tuple[str, ...]] = {}  # key -> names of secrets that this kernel does not have
        self.running: dict[int, float] = {}  # key -> since when: started detached, so that they may be running still
        self.aside: dict[int, str] = {}  # key -> why its row can't be read
        self.interrupted: dict[int, tuple[Attempt, tuple[Any, ...]]] = {}  # key -> the attempt that the former kernel did not end, its row


def _entry(row: tuple[Any, ...], options: TaskOptions) -> Entry:
    """The task of a row. Raises ValueError for one that no version of ours wrote."""
    key, argv, priority, time = row[:4]
    words = json.loads(argv)
    if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words) and words[0]):
        raise ValueError(f"its command is {words!r}")
    if not isinstance(priority, int) or not isinstance(time, (int, float)) or not abs(time) < _LATEST or row[4] not in (0, 1, 2):
        raise ValueError(f"its priority and time are {priority!r}, {time!r}, {row[4]!r}")
    if not all(isinstance(count, int) and count >= 0 for count in row[8:11]):
        raise ValueError(f"its counts are {row[8:11]!r}")
    entry = Entry(key, words[0], tuple(words[1:]), priority, time, options, read_text(row[16]))
    entry.retries, entry.runs, entry.interruptions = row[8:11]
    return entry


def _links(text: str | None) -> list[list[Any]]:
    """What a row waits for. Raises ValueError for what is no such list."""
    if text is None:
        return []
    found = json.loads(text)
    for key, condition in found:
        if not isinstance(key, int):
            raise ValueError(f"it waits for {key!r}")  # noqa: TRY004 - of what a file holds no type is known
        Condition(condition)
    return list(found)


def load(store: Store, queue: TaskQueue, writer: StoreWriter, config: SchedulerConfig, now: Now, *, host: str) -> Resumed:
    """Put every unfinished task of the store into the queue, and settle those that a former kernel left running, in one transaction.

    A row that can't be read harms no other: it is set aside, stays in the file with the reason, and is told of.
    """
    found = Resumed()
    entries, held = _read(store, found, config, now, host)
    tried = {key for (key,) in store.rows(f"SELECT DISTINCT key FROM attempts JOIN tasks USING (key) WHERE {_UNFINISHED}")}  # noqa: S608
    known = {**entries, **_ended(store, found.links, entries)}
    for entry in _dependencies_first(entries, found.links):
        if entry.state is TaskState.INTERRUPTED:
            queue.counts[entry.state] += 1
            writer.change(entry, interruptions=entry.interruptions, started=None)
            continue
        if entry.state is TaskState.CANCELLED:
            writer.change(entry, started=None)
            continue
        if entry.key in found.running:
            queue.take_over(entry)
            _remember(entry, store, found, tried=entry.key in tried)
            continue
        links = found.links.get(entry.key, ())
        after = [(known[k], Condition(c)) for k, c in links if k in known]
        if queue.add(entry, now, after=after, held=entry.key in held) is TaskState.SKIPPED:
            why, root = skip_reason(next(other for other, condition in after if other.state.final and not condition.met(other.state)))
            entry.outcome = TaskOutcome(error=error_of(entry, TaskState.SKIPPED, why), root=root)
            writer.change(entry, error=stored_text(why))
        else:
            _remember(entry, store, found, tried=entry.key in tried)
            if entry.key in found.interrupted:
                writer.waits_again(entry)
    writer.add_attempts(row for _, row in found.interrupted.values())
    for key, why in found.aside.items():
        writer.set_aside(key, why)
    writer.flush()
    _tell(store, found)
    return found


def _read(store: Store, found: Resumed, config: SchedulerConfig, now: Now, host: str) -> tuple[dict[int, Entry], set[int]]:
    """The unfinished tasks, and the keys of those that are held."""
    entries: dict[int, Entry] = {}
    held: set[int] = set()
    cache: dict[str, tuple[TaskOptions, tuple[str, ...]]] = {}

    def take(*row: Any) -> None:
        key, text = row[0], row[6]
        try:
            options, missing = (DEFAULTS, ()) if text is None else cache.get(text) or cache.setdefault(text, decode(text, os.environ))
            entry = _entry(row, options)
            links = _links(row[7])
            _due(entry, row[4], now)
            if row[5] == "running" and options.detached:
                found.running[key] = float(row[11] or now.wall)
            elif row[5] in ("running", "cancelled"):
                entry.state = TaskState(row[5])
                found.interrupted[key] = _interrupted(entry, row[11], row[13:16], config, host=host, store=store)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one row, the others are run
            found.aside[key] = text_of(error)[:_SHOWN]
            return
        entries[key] = entry
        if row[5] == "held" or missing:
            held.add(key)
        if missing:
            found.missing[key] = missing
        if links:
            found.links[key] = links

    store.each(f"SELECT {_COLUMNS} FROM tasks WHERE {_UNFINISHED} OR {_CUT_OFF} ORDER BY key", take)  # noqa: S608 - our own column names
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
        entry.outcome = TaskOutcome(attempts=past)


def _attempts(store: Store, entry: Entry) -> tuple[Attempt, ...]:
    """The last attempts that are on record, but for rows that can't be read."""
    rows = store.rows(f"SELECT {ATTEMPT} FROM attempts WHERE key = ? ORDER BY attempt DESC LIMIT 100", entry.key)  # noqa: S608
    found = []
    for row in reversed(rows):
        with contextlib.suppress(ValueError):
            found.append(read_attempt(entry, row, f"{store.prefix}{entry.key}"))
    return tuple(found)


def _ended(store: Store, links: Mapping[int, list[list[Any]]], entries: Mapping[int, Entry]) -> dict[int, Entry]:
    """The ended tasks that others name. A forgotten one is missing: it ended as asked, or the other would be skipped."""
    wanted = {key for rows in links.values() for key, _ in rows if key not in entries}
    found: dict[int, Entry] = {}
    for key in wanted:
        for row in store.rows(f"SELECT {_COLUMNS} FROM tasks WHERE key = ?", key):  # noqa: S608 - our own column names
            try:
                ghost = _entry(row, decode(row[6], {})[0])
                ghost.state = TaskState(row[5])
                if not ghost.state.final:
                    raise ValueError(f"it is {ghost.state}")  # noqa: TRY301 - it is being set aside now
            except Exception:  # noqa: BLE001 - set aside: it never ran to an end
                ghost = Entry(key, f"task {store.prefix}{key}", (), 0, 0.0, DEFAULTS)
                ghost.state = TaskState.INTERRUPTED
            found[key] = ghost
    return found


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
    """A former kernel died while it ran: queued again, or marked. One that was being ended stays cancelled."""
    cancelled = entry.state is TaskState.CANCELLED
    entry.state = TaskState.CANCELLED if cancelled else TaskState.QUEUED
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
        outcome="cancelled" if cancelled else "interrupted",
        retry=entry.retries,
        pid=pid,
        host=known_host or host,
        worker=worker or "",
        reason="the kernel died",
    )
    if cancelled:
        entry.outcome = TaskOutcome(error=error_of(entry, TaskState.CANCELLED), attempts=(attempt,))
    elif policy is Interrupted.MARK or entry.interruptions > config.max_interruptions:
        entry.state = TaskState.INTERRUPTED
        entry.outcome = TaskOutcome(error=error_of(entry, TaskState.INTERRUPTED), attempts=(attempt,))
    else:
        entry.due = None
    return attempt, attempt_row(entry.key, attempt, None, None, limit=0)


def _tell(store: Store, found: Resumed) -> None:
    if found.aside:
        first, why = next(iter(found.aside.items()))
        log.error(
            "%d tasks of %s can't be read and are set aside, the first is %s%s: %s. All others go on; the rows stay in the file.",
            len(found.aside),
            store.path,
            store.prefix,
            first,
            why,
        )
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
    try:
        entry = _entry(row, decode(row[6], os.environ)[0])
        entry.state = TaskState(row[5])
    except Exception as unread:
        hint = "it was set aside when the queue was opened; all others go on"
        raise StoreCorrupt(f"task {task_id} of the queue {store.path} can't be read: {text_of(unread)}", hint=hint) from unread
    attempts: list[Attempt] = []
    result, error = None, error_of(entry, entry.state, row[12] or "")
    for found in store.rows(f"SELECT {OUTPUT}, {ATTEMPT} FROM attempts WHERE key = ? ORDER BY attempt", key):  # noqa: S608
        out, err, dropped, text, *columns = found
        try:
            attempt = read_attempt(entry, tuple(columns), task_id)
        except ValueError:
            continue
        attempts.append(attempt)
        result = read_result(attempt, out, err, dropped)
        if entry.state is TaskState.FAILED:
            error = read_error(text, result, attempt.retry + 1)
    entry.outcome = TaskOutcome(result=result, error=error, attempts=tuple(attempts))
    return entry
