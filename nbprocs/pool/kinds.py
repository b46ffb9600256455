"""What differs between the kinds of workers, and what a pool says of calls that can't be sent to one."""

from typing import Any

from nbprocs import checks
from nbprocs.errors import CommunicationError
from nbprocs.guard import text_of
from nbprocs.pool.codec import Codec
from nbprocs.pool.command import CommandConnection, CommandWorker
from nbprocs.pool.connection import MakeConnection
from nbprocs.pool.model import PythonWorker
from nbprocs.pool.python import PythonConnection
from nbprocs.pool.worker_main import dumps

__all__ = ["connections", "is_a", "setup_of", "title_of", "unpicklable"]


def setup_of(kind: PythonWorker | CommandWorker) -> bytes | None:
    """The initialiser as bytes. Raises CommunicationError if it can't be sent."""
    if isinstance(kind, CommandWorker) or kind.initializer is None:
        return None
    try:
        return dumps((kind.initializer, kind.initargs), apart=False)[0]
    except Exception as cause:
        raise unpicklable(kind.initializer, cause) from cause


def connections(kind: PythonWorker | CommandWorker, codec: Codec, setup: bytes | None, *, most: int) -> MakeConnection:
    """What makes the connection of a worker of this kind."""
    if isinstance(kind, CommandWorker):
        return lambda events, tasks: CommandConnection(kind, events, tasks)
    return lambda events, _: PythonConnection(kind, codec, events, setup=setup, most=most)


def title_of(function: Any) -> str:
    """What a task is called in errors and frames."""
    try:
        name = getattr(function, "__qualname__", None)
    except BaseException:  # noqa: BLE001 - its own __getattr__
        name = None
    return name if type(name) is str else type(function).__qualname__


def is_a(kind: type[Any] | tuple[type[Any], ...], argument: str, value: Any) -> Any:
    """The value, if it is one of these. Raises TypeError."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        checks.refuse(TypeError, argument, " or ".join(f"a {one.__name__}" for one in kinds), value)
    return value


def unpicklable(function: Any, cause: BaseException) -> CommunicationError:
    """The error of a call that does not pickle, and what to do instead."""
    title = function if isinstance(function, str) else title_of(function)
    error = CommunicationError(
        f"{title} can't be sent to a worker: {text_of(cause)}",
        hint="send data, and open files, sockets or locks inside the function",
    )
    error.__cause__ = cause
    return error
