"""Between the queue and the store: rows of tasks and attempts, changes gathered, one transaction for each turn of the loop.

The order is the promise. A task's row is on disk before ``schedule`` returns; "it runs" is on disk before its process starts; "it ended",
with the end of every task that this skips, is on disk before anybody who awaits it is told. So whatever moment the kernel dies at, a task
recorded as finished stays finished, and one that had begun is known to have begun.
"""

import json
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii
from typing import Any

from nbprocs import errors
from nbprocs.errors import ProcessError, error_from_result
from nbprocs.guard import repr_of
from nbprocs.model import EndReason, ProcessResult, ProcessStatus
from nbprocs.scheduler.entry import DEFAULTS, Entry
from nbprocs.scheduler.model import Attempt, Condition, TaskState
from nbprocs.scheduler.options import encode
from nbprocs.scheduler.schema import ATTEMPT
from nbprocs.scheduler.store import Store

__all__ = ["StoreWriter", "attempt_row", "read_attempt", "read_error", "read_result", "read_text", "stored_text", "task_row"]

ASIDE = "aside"  # the state of a row that can't be read
_ENDING = ("cancelled", "halted")  # why we end a run that is not to run again
_WAITING = frozenset({TaskState.SCHEDULED, TaskState.BLOCKED, TaskState.QUEUED})  # one state on disk: the rest follows from time and after
_DUMPS = json.JSONEncoder(separators=(",", ":")).encode


def stored_state(entry: Entry) -> str:
    """The state as it is on disk. One that is being ended has been cancelled, also if the kernel dies before its tree is gone."""
    if entry.state is TaskState.RUNNING and entry.run is not None and entry.run.intent in _ENDING:
        return TaskState.CANCELLED.value
    return "queued" if entry.state in _WAITING else entry.state.value


def stored_text(text: str | None) -> str | bytes | None:
    """Text as SQLite takes it: a name of a file or a task need not be valid text, and is kept as bytes then."""
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def read_text(value: Any) -> str | None:
    """What ``stored_text`` kept. Raises ValueError for what is none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogatepass")
    raise ValueError(f"text was expected, not {value!r}")


def _argv_text(command: str, args: Iterable[str]) -> str:
    """A JSON list; json.dumps makes an encoder for each call, which is most of its time."""
    return f"[{','.join(map(encode_basestring_ascii, (command, *args)))}]"


def task_row(entry: Entry, after: Iterable[tuple[Entry, Condition]] = (), *, held: bool = False) -> tuple[Any, ...]:
    """The row of a new task: five columns if nothing about it is special, else all."""
    argv = _argv_text(str(entry.command), entry.args)
    if entry.options is DEFAULTS and entry.due is None and not after and not held:
        return (entry.key, argv, int(entry.priority), entry.time, stored_text(entry.folder))
    links = [[other.key, condition.value] for other, condition in after]
    return (
        entry.key,
        argv,
        int(entry.priority),
        entry.time,
        stored_text(entry.folder),
        0 if entry.due is None else 1 + entry.on_wall,
        "held" if held else "queued",
        encode(entry.options),
        _DUMPS(links) if links else None,
        stored_text(entry.options.name),
        stored_text(entry.options.key),
    )


def _tail(data: bytes, limit: int) -> tuple[bytes, int]:
    return (data, 0) if len(data) <= limit else (data[len(data) - limit :], len(data) - limit)


def attempt_row(key: int, attempt: Attempt, result: Any, error: BaseException | None, *, limit: int) -> tuple[Any, ...]:
    """The row of an ended attempt, with the end of its output and its error."""
    out = err = b""
    dropped = 0
    if isinstance(result, ProcessResult):
        out, cut_out = _tail(result.stdout, limit)
        err, cut_err = _tail(result.stderr, limit)
        dropped = result.dropped_bytes + cut_out + cut_err
    a = attempt
    known = (a.exit_code, a.signal, a.reason, a.execution_time, a.peak_rss, a.cpu_time, a.pid, a.host, a.slot, a.worker)
    return (key, a.attempt, a.retry, a.queued, a.started, a.ended, a.outcome, *known, out, err, dropped, _error_text(error))


def _error_text(error: BaseException | None) -> str | None:
    """An error as JSON. No pickle: opening a queue must not run what somebody wrote into it."""
    if error is None:
        return None
    message, hint = (error.message, error.hint) if isinstance(error, ProcessError) else (repr_of(error), "")
    return _DUMPS({"kind": type(error).__name__, "message": message, "hint": hint})


def read_error(text: str | None, result: ProcessResult, attempts: int) -> ProcessError | None:
    """The error of a failed task of a former kernel: made anew from its result where it has one, else from its text."""
    made = error_from_result(result, attempts=attempts) if result.exit_code is not None or result.signal is not None else None
    if made is not None or text is None:
        return made
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        raw = {"message": "its error can't be read"}
    raw = raw if isinstance(raw, dict) else {"message": raw}
    kind = getattr(errors, str(raw.get("kind")), ProcessError)
    known = kind if isinstance(kind, type) and issubclass(kind, ProcessError) else ProcessError
    return known(str(raw.get("message")), hint=str(raw.get("hint", "")), command=result.command, name=result.name, attempts=attempts)


def read_attempt(entry: Entry, row: tuple[Any, ...], task_id: str) -> Attempt:
    """An attempt from the columns of ATTEMPT. Raises ValueError for a row that is none."""
    for value, kinds in zip(row[1:], _ATTEMPT_TYPES, strict=True):
        if not isinstance(value, kinds):
            raise ValueError(f"an attempt with {value!r} in it")  # noqa: TRY004 - of what a file holds no type is known
    fields = dict(zip(ATTEMPT.split(", ")[1:], row[1:], strict=True))
    fields.update(host=fields["host"] or "", worker=fields["worker"] or "")
    return Attempt(task_id=task_id, name=entry.label, command=entry.display, priority=entry.priority, group=entry.options.group, **fields)


def read_result(attempt: Attempt, out: bytes | None, err: bytes | None, dropped: int | None) -> ProcessResult:
    """The result of an attempt that a former kernel ran, with as much output as was kept."""
    ends = {"succeeded": ProcessStatus.COMPLETED, "failed": ProcessStatus.FAILED}
    return ProcessResult(
        process_id=attempt.task_id,
        name=attempt.name,
        command=attempt.command,
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        stdout_source=out or b"",
        stderr_source=err or b"",
        execution_time=attempt.execution_time or 0.0,
        status=ends.get(attempt.outcome, ProcessStatus.TERMINATED),
        reason=next((known for known in EndReason if known == attempt.reason), None),  # an attempt has words of its own, too
        dropped_bytes=dropped or 0,
        peak_rss=attempt.peak_rss,
        cpu_time=attempt.cpu_time,
    )


_NUMBER, _WHOLE, _TEXT = (int, float, type(None)), (int, type(None)), (str, type(None))
_ATTEMPT_TYPES: tuple[tuple[type, ...], ...] = (
    *((int,), (int,), (int, float), _NUMBER, _NUMBER, (str,), _WHOLE, _WHOLE, _TEXT),
    *(_NUMBER, _WHOLE, _NUMBER, _WHOLE, _TEXT, _WHOLE, _TEXT),
)


class StoreWriter:
    """Gathers changes; ``flush`` writes them. Without a store all of it does nothing."""

    def __init__(self, store: Store | None, *, limit: int) -> None:
        self.store = store
        self._limit = limit
        self._changes: dict[int, dict[str, Any]] = {}
        self._attempts: list[tuple[Any, ...]] = []
        self._settings: dict[str, str | None] = {}

    def setting(self, name: str, value: Any) -> None:
        """Something about the queue itself, as JSON; None: no more."""
        if self.store is not None:
            self._settings[name] = None if value is None else _DUMPS(value)

    def change(self, entry: Entry, **columns: Any) -> None:
        """The task's state now, and what else changed."""
        if self.store is not None:
            self._changes.setdefault(entry.key, {}).update(state=stored_state(entry), **columns)

    def waits_again(self, entry: Entry) -> None:
        """A retry, the next run of a series, or a start that was taken back."""
        clock = 0 if entry.due is None else 1 + entry.on_wall
        counts = {"retries": entry.retries, "runs": entry.runs, "interruptions": entry.interruptions}
        self.change(entry, time=entry.time, clock=clock, started=None, pid=None, host=None, worker=None, **counts)

    def attempt(self, entry: Entry, attempt: Attempt, result: Any, error: BaseException | None) -> None:
        """An attempt has ended."""
        if self.store is not None:
            self._attempts.append(attempt_row(entry.key, attempt, result, error, limit=self._limit))

    def set_aside(self, key: int, why: str) -> None:
        """A row that can't be read is none of the queue's any more."""
        if self.store is not None:
            self._changes.setdefault(key, {}).update(state=ASIDE, error=stored_text(why))

    def add_attempts(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Attempts that are rows already."""
        if self.store is not None:
            self._attempts.extend(rows)

    @staticmethod
    def json(value: Any) -> str:
        """As the store keeps it."""
        return _DUMPS(value)

    def flush(self) -> None:
        """Write all that was gathered. Raises StoreError, and keeps it for the next time."""
        if self.store is not None and (self._changes or self._attempts or self._settings):
            self.store.batch(self._changes.items(), self._attempts, self._settings)
            self._changes, self._attempts, self._settings = {}, [], {}
