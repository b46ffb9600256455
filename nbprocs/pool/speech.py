"""What workers print, log and warn, shown where it was asked for: in the cell that submitted the call, or by a function of the user's.

A text arrives before the answer of its call, so whoever awaits the call has seen it. It is written in the context of the submitting cell:
that is how a kernel knows which cell's output it is.
"""

import contextvars
import logging
import sys
from typing import Any

from nbprocs.guard import guarded
from nbprocs.pool.model import PythonWorker, WorkerOutput
from nbprocs.pool.worker_streams import RECORD, STDERR

__all__ = ["Speech"]


class Speech:
    """The end of the way that begins in nbprocs.pool.worker_streams. On the home loop only."""

    def __init__(self, kind: object) -> None:
        """``kind`` is the kind of worker; only a PythonWorker's output comes this way."""
        self._show = kind.output if isinstance(kind, PythonWorker) else "log"
        self._context = contextvars.copy_context()

    @property
    def wanted(self) -> bool:
        """False where the workers' own logs are enough."""
        return self._show != "log"

    def here(self) -> contextvars.Context | None:
        """The submitting cell, to be kept with the call."""
        return contextvars.copy_context() if self._show == "cell" else None

    def take(self, worker: str, task: int, context: contextvars.Context | None, stream: int, item: Any) -> None:
        """Show one message of a worker. Nothing that the user's streams, handlers or functions raise gets out."""
        with guarded(f"showing the output of {worker}"):
            if self._show == "cell":
                try:
                    (context or self._context).run(_write, worker, stream, item)
                except LookupError:  # ipykernel 7.0 in a context that never saw a cell
                    _write(worker, stream, item)
            elif callable(self._show):
                self._show(_value(worker, task, stream, item))


def _value(worker: str, task: int, stream: int, item: Any) -> WorkerOutput:
    if stream != RECORD:
        return WorkerOutput(worker=worker, task=task, stream="stderr" if stream == STDERR else "stdout", text=item)
    text = f"{logging.getLevelName(item[1])}:{item[0]}:{item[4]}\n" + (f"{item[9]}\n" if item[9] else "")
    return WorkerOutput(worker=worker, task=task, stream="log", text=text)


def _write(worker: str, stream: int, item: Any) -> None:
    if stream == RECORD:
        _log(worker, item)
        return
    target = sys.stderr if stream == STDERR else sys.stdout
    if target is not None:
        target.write(item.encode("utf-8", "backslashreplace").decode())
        target.flush()


def _log(worker: str, fields: Any) -> None:
    """As if it had been logged here: the levels, filters, handlers and formats of this process apply."""
    name, level, path, line, text, function, created, thread, pid, trace, stack = fields
    logger = logging.getLogger(name)
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(name, level, path, line, text, (), None, function, None, stack)
    record.created, record.msecs = created, (created - int(created)) * 1000
    record.process, record.processName, record.threadName, record.exc_text = pid, worker, thread, trace
    logger.handle(record)
