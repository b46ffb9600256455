"""Who is told of a task's end: whoever awaits it, and whom its ``notify=`` names, once, however many attempts it had."""

from dataclasses import replace

from nbprocs.display import duration
from nbprocs.engine.home import Home, Tasks
from nbprocs.guard import guarded, text_of
from nbprocs.model import ProcessResult
from nbprocs.notify import Notice, tell
from nbprocs.processes.notices import ended
from nbprocs.redact import mask_text, one_line
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.model import TaskState

__all__ = ["notice_of", "tell_end", "wake"]

_WORDS = {TaskState.SUCCEEDED: "completed", TaskState.FAILED: "failed"}
_LEVELS = {TaskState.SUCCEEDED: "success", TaskState.FAILED: "error"}


def wake(entry: Entry) -> None:
    """Let everybody go on who awaits the task."""
    waiters, entry.waiters = entry.waiters, None
    if waiters is not None:
        waiters.wake(None)


def tell_end(entry: Entry, *, task_id: str, home: Home | None) -> None:
    """Tell whom its ``notify=`` names. On the home loop; returns at once, raises nothing."""
    config = entry.options.config
    if config is None or config.notify is None or home is None:
        return
    with guarded(f"notify= of {entry.label}"):
        notice = notice_of(entry, task_id=task_id, lines=config.notify.lines)
        tell(notice, config.notify, start=lambda work: Tasks(home).start(work, name=f"notify of {entry.label}"))


def notice_of(entry: Entry, *, task_id: str, lines: int = 10) -> Notice:
    """What is told of it: as of a process where it had one, else its state and its error."""
    outcome = entry.outcome
    result = getattr(outcome, "result", None)
    if isinstance(result, ProcessResult) and (entry.state in _WORDS or not entry.state.final):
        return replace(ended(result, lines=lines, kind="task", title=entry.label), process_id=task_id, name=entry.label)
    error, attempts = getattr(outcome, "error", None), getattr(outcome, "attempts", ())
    seconds = attempts[-1].execution_time if attempts else None
    state = entry.state if entry.state.final else TaskState.FAILED if error is not None else TaskState.SUCCEEDED  # a run of a series
    return Notice(
        title=f"{entry.label} {_WORDS.get(state, f'was {state}')}" + ("" if seconds is None else f" after {duration(seconds)}"),
        body=one_line(mask_text(text_of(error)), limit=500) if error is not None and lines else "",
        level=_LEVELS.get(state, "warning"),  # type: ignore[arg-type]
        process_id=task_id,
        name=entry.label,
        kind="task",
        seconds=seconds,
    )
