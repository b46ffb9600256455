"""From what a worker answered to a value or an exception. Pure, apart from unpickling."""

import asyncio
import pickle
from typing import Any

from nbprocs.errors import (
    CommunicationError,
    ExecutionTimeout,
    OutOfMemory,
    ProcessCrashed,
    ProcessError,
    ProcessFailed,
    StartupFailed,
    error_from_result,
)
from nbprocs.guard import text_of
from nbprocs.model import ProcessResult, signal_name
from nbprocs.pool.model import RemoteError, RemoteTraceback
from nbprocs.pool.worker_main import ERROR, PICKLED, STOPPED, VALUE, Message

__all__ = ["Outcome", "crashed", "raised", "read", "timed_out"]

Outcome = tuple[Any, BaseException | None]  # for a chunk both: the values before the error, and the error

_HINTS = {
    "load": "what is sent must be importable in a fresh interpreter, or defined in the notebook itself",
    "dump": "return something that pickles: data instead of open files, sockets, locks, generators or coroutines",
}
_ENDS_LOOPS = (StopIteration, StopAsyncIteration, asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit)


def read(message: Message, *, title: str, worker: str) -> Outcome:
    """The outcome in one answer: (value, None) or (None, exception)."""
    kind, payload = message[0], message[3]
    buffers = message[4] if len(message) > 4 else None  # noqa: PLR2004 - the optional fifth item
    if kind == VALUE:
        return payload, None
    if kind == ERROR:
        if isinstance(payload, BaseException):
            return None, payload
        return None, raised(payload, title=title, worker=worker)
    error = None
    try:
        if kind == STOPPED:
            payload, told = payload
            error = raised(told, title=title, worker=worker)
        value = pickle.loads(payload, buffers=buffers)  # noqa: S301 - from our own worker
    except BaseException as cause:  # noqa: BLE001 - whatever the value's own code raises when it is rebuilt, sys.exit() too
        problem = CommunicationError(
            f"the result of {title} came, but can't be rebuilt here: {text_of(cause)}",
            name=worker,
            hint="what it returns must be importable in this kernel, too",
        )
        problem.__cause__ = cause
        return None, problem
    if kind == PICKLED:
        return value, None
    return (value, error), None


def raised(told: Message, *, title: str, worker: str) -> BaseException:
    """The exception that a worker told of, with the remote traceback as its cause."""
    pickled, kind, text, shown, phase = told
    cause = RemoteTraceback(shown)
    error: BaseException
    if phase == "setup":
        error = StartupFailed(f"worker {worker} could not be set up: {kind}: {text}", name=worker, hint="its initialiser or preload failed")
    elif phase == "place":
        error = CommunicationError(
            f"{title} was not started: its worker can't follow the kernel into its folder: {kind}: {text}",
            name=worker,
            hint="does it still exist?",
        )
    elif phase in _HINTS:
        what = "the call" if phase == "load" else "the result"
        verb = "could not be rebuilt in the worker" if phase == "load" else "does not pickle"
        error = CommunicationError(f"{what} of {title} {verb}: {kind}: {text}", name=worker, hint=_HINTS[phase])
    else:
        rebuilt = _rebuilt(pickled)
        error = _foreign(kind, text, title=title, worker=worker) if rebuilt is None else rebuilt  # its truth value is the user's code
    _set_cause(error, cause)
    return error


def _set_cause(error: BaseException, cause: BaseException) -> None:
    """Past a ``__setattr__`` of its own: a frozen dataclass refuses even this."""
    BaseException.__setattr__(error, "__cause__", cause)


def _rebuilt(pickled: bytes | None) -> BaseException | None:
    if pickled is None:
        return None
    try:
        error = pickle.loads(pickled)  # noqa: S301 - from our own worker
    except BaseException:  # noqa: BLE001 - many exceptions pickle but can't be rebuilt: their text is kept
        return None
    kind = type(error)  # not isinstance(), which asks the object what it would like to be
    return error if issubclass(kind, Exception) and not issubclass(kind, _ENDS_LOOPS) else None


def _foreign(kind: str, text: str, *, title: str, worker: str) -> RemoteError:
    name = kind.removeprefix("builtins.")
    if name == "SystemExit":
        said = f"{title} called sys.exit({text}); only the task ended, its worker goes on"
    elif name == "KeyboardInterrupt":
        said = f"{title} was interrupted in its worker"
    else:
        said = f"{title} raised {name}: {text}"
    error = RemoteError(said, name=worker, hint="the remote traceback above tells where")
    error.kind = name
    return error


def timed_out(title: str, *, seconds: float, worker: str, process_id: str, last_output: str) -> ExecutionTimeout:
    """The error of a task whose worker was killed because it took too long."""
    return ExecutionTimeout(
        f"{title} ran longer than {seconds:g} s and was killed with its whole tree",
        name=worker,
        process_id=process_id,
        last_output=last_output,
        hint="give it more with timeout=, or find out what it waits for",
    )


def crashed(title: str, result: ProcessResult | None, *, last_output: str, why: str | None = None) -> ProcessError:
    """The error of a task that ran when its worker ended; ``why`` if we ended it for a reason of our own."""
    found = error_from_result(result) if result is not None else None
    kind = type(found) if found is not None and why is None else ProcessFailed
    if why is not None or result is None:
        said = f"the worker that ran {title} was replaced: {why or 'it is gone'}"
    elif isinstance(found, OutOfMemory):
        said = f"{title} took its worker with it: killed by the system, out of memory"
    elif result.signal is not None:
        said = f"{title} took its worker with it: {signal_name(result.signal)}"
    else:
        said = f"{title} ended its worker with exit status {result.exit_code}"
    return kind(
        said,
        process_id=result.process_id if result else None,
        name=result.name if result else None,
        exit_code=result.exit_code if result else None,
        signal=result.signal if result else None,
        last_output=last_output,
        hint="only this task is lost; the pool has already replaced the worker" if issubclass(kind, ProcessCrashed) else "",
    )
