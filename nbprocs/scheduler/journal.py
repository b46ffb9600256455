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
from nbprocs.model import EndReason, ProcessResult, ProcessStatus
from nbprocs.scheduler.entry import DEFAULTS, Entry
from nbprocs.scheduler.model import Attempt, Condition, TaskState
from nbprocs.scheduler.options import encode
from nbprocs.scheduler.schema import ATTEMPT
from nbprocs.scheduler.store import Store

__all__ = ["Journal", "attempt_row", "read_attempt", "read_error", "read_result", "task_row"]

_WAITING = frozenset({TaskState.SCHEDULED, TaskState.BLOCKED, TaskState.QUEUED})  # one state on disk: the rest follows from time and after
_DUMPS = json.JSONEncoder(separators=(",", ":")).encode


def stored_state(state: TaskState) -> str:
    """The state as it is on disk."""
    return "queued" if state in _WAITING else state.value


def _argv_text(command: str, args: Iterable[str]) -> str:
    """A JSON list; json.dumps makes an encoder for each call, which is most of its time."""
    return f"[{','.join(map(encode_basestring_ascii, (command, *args)))}]"


def task_row(entry: Entry, after: Iterable[tuple[Entry, Condition]] = (), *, held: bool = False) -> tuple[Any, ...]:
    """The row of a new task: four columns if nothing about it is special, else all."""
    argv = _argv_text(str(entry.command), entry.args)
    if entry.options is DEFAULTS and entry.due is None and not after and not held:
        return (entry.key, argv, int(entry.priority), entry.time)
    links = [[other.key, condition.value] for other, condition in after]
    return (
        entry.key,
        argv,
        int(entry.priority),
        entry.time,
        0 if entry.due is None else 1 + entry.on_wall,
        "held" if held else "queued",
        encode(entry.options),
        _DUMPS(links) if links else None,
        entry.options.name,
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
    hint = getattr(error, "hint", "")
    return _DUMPS({"kind": type(error).__name__, "message": getattr(error, "message", None) or repr(error), "hint": hint})


def read_error(text: str | None, result: ProcessResult, attempts: int) -> ProcessError | None:
    """The error of a failed task of a former kernel: made anew from its result where it has one, else from its text."""
    made = error_from_result(result, attempts=attempts) if result.exit_code is not None or result.signal is not None else None
    if made is not None or text is None:
        return made
    raw = json.loads(text)
    kind = getattr(errors, str(raw.get("kind")), ProcessError)
    known = kind if isinstance(kind, type) and issubclass(kind, ProcessError) else ProcessError
    return known(str(raw.get("message")), hint=str(raw.get("hint", "")), command=result.command, name=result.name, attempts=attempts)


def read_attempt(entry: Entry, row: tuple[Any, ...], task_id: str) -> Attempt:
    """An attempt from the columns of ATTEMPT."""
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


class Journal:
    """Gathers changes; ``flush`` writes them. Without a store all of it does nothing."""

    def __init__(self, store: Store | None, *, limit: int) -> None:
        self.store = store
        self._limit = limit
        self._changes: dict[int, dict[str, Any]] = {}
        self._attempts: list[tuple[Any, ...]] = []

    def change(self, entry: Entry, **columns: Any) -> None:
        """The task's state now, and what else changed."""
        if self.store is not None:
            self._changes.setdefault(entry.key, {}).update(state=stored_state(entry.state), **columns)

    def waits_again(self, entry: Entry) -> None:
        """A retry, the next run of a series, or a start that was taken back."""
        clock = 0 if entry.due is None else 1 + entry.on_wall
        counts = {"retries": entry.retries, "runs": entry.runs, "interruptions": entry.interruptions}
        self.change(entry, time=entry.time, clock=clock, started=None, pid=None, host=None, worker=None, **counts)

    def attempt(self, entry: Entry, attempt: Attempt, result: Any, error: BaseException | None) -> None:
        """An attempt has ended."""
        if self.store is not None:
            self._attempts.append(attempt_row(entry.key, attempt, result, error, limit=self._limit))

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
        if self.store is not None and (self._changes or self._attempts):
            self.store.batch(self._changes.items(), self._attempts)
            self._changes, self._attempts = {}, []
