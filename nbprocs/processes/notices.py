"""The notice of a process's end."""

from __future__ import annotations

from collections.abc import Callable

from nbprocs.config import ProcessConfig
from nbprocs.display import duration
from nbprocs.engine.home import Tasks
from nbprocs.errors import last_output
from nbprocs.guard import guarded
from nbprocs.model import EndReason, ProcessResult, signal_name
from nbprocs.notify import Notice, Notify, tell
from nbprocs.redact import mask_text

__all__ = ["ended", "tell_end", "told_of_the_last"]


def ended(result: ProcessResult, *, lines: int = 10, kind: str = "process", title: str = "") -> Notice:
    """What is told of it: how it ended, after how long, and its last lines, secrets masked. ``title`` is used in place of its name.

    >>> from nbprocs.model import ProcessStatus
    >>> failed = ProcessResult(process_id="1", name="job", command="job", exit_code=3, status=ProcessStatus.FAILED, execution_time=75)
    >>> ended(failed).title
    'job failed (exit status 3) after 1 m 15 s'
    """
    stopped = result.reason is not None and result.reason.stopped
    return Notice(
        title=f"{title or result.name} {_how(result)} after {duration(result.execution_time)}",
        body=mask_text("\n".join(last_output(result).splitlines()[-lines:])) if lines else "",
        level="success" if result.ok else "warning" if stopped else "error",
        process_id=result.process_id,
        name=result.name,
        kind=kind,
        exit_code=result.exit_code,
        signal=None if result.signal is None else signal_name(result.signal),
        seconds=result.execution_time,
    )


def tell_end(result: ProcessResult, notify: Notify | None, *, tasks: Tasks) -> None:
    """Tell whom ``notify`` names. On the home loop; returns at once, raises nothing."""
    if notify is not None:
        with guarded(f"notify= of {result.name}"):
            tell(ended(result, lines=notify.lines), notify, start=lambda work: tasks.start(work, name=f"notify of {result.name}"))


def told_of_the_last(config: ProcessConfig, *, tasks: Tasks) -> tuple[ProcessConfig, Callable[[ProcessResult], None] | None]:
    """For a run that may be tried again: the config of its tries, which tell nobody, and what tells of the last one's end."""
    notify = config.notify
    return config.replace(notify=None), None if notify is None else lambda result: tell_end(result, notify, tasks=tasks)


def _how(result: ProcessResult) -> str:
    if result.ok:
        return "completed"
    if result.reason is EndReason.TIMEOUT:
        return "ran out of time"
    if result.reason is EndReason.OUT_OF_MEMORY:
        return "ran out of memory"
    if result.reason is not None and result.reason.stopped:
        return "was stopped"
    return f"crashed ({signal_name(result.signal)})" if result.signal is not None else f"failed (exit status {result.exit_code})"
