"""The one guard around what is the user's: callbacks, and what exceptions and objects answer when they are shown.

Nothing that such an object does may reach our control flow: a callback that calls ``sys.exit()`` must not end the loop it is called on,
an exception whose ``__str__`` raises must not lose its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ParamSpec, TypeGuard, TypeVar

__all__ = [
    "ShownClearly",
    "WrongType",
    "WrongValue",
    "add_note",
    "attempt",
    "awaitable",
    "call",
    "finish",
    "guarded",
    "message_of",
    "name_of",
    "repr_of",
    "text_of",
    "told",
]

log: logging.Logger = logging.getLogger("nbprocs")
_INSIDE = tuple(module.rpartition(os.sep)[0] for module in (__file__, asyncio.__file__))
P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Log whatever is raised inside, SystemExit and KeyboardInterrupt too, and go on. ``what`` names it: "a done callback of web".

    >>> with guarded("a callback of the example"):
    ...     raise SystemExit(3)
    """
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the user's code: none of its ends may be ours
        told(what, error)


def told(what: str, error: BaseException) -> None:
    """Log an error of the user's code with its traceback, also one that can't be shown."""
    try:
        log.error("%s failed", what, exc_info=error)
    except Exception:  # noqa: BLE001 - its __str__ raises
        log.error("%s failed: %s", what, text_of(error))  # noqa: TRY400 - its traceback can't be written


def call(what: str, callback: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Call it; what it raises is logged under ``what``, and None returned.

    >>> call("the example", len, [1, 2])
    2
    >>> call("the example", len, 5)
    """
    try:
        return callback(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - as above
        told(what, error)
        return None


def attempt(callback: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> tuple[T | None, BaseException | None]:
    """Call it; returns what it returned and what it raised, SystemExit and KeyboardInterrupt too. For who does more than log it.

    >>> attempt(len, "ab"), attempt(len, 5)[0]
    ((2, None), None)
    """
    try:
        return callback(*args, **kwargs), None
    except BaseException as error:  # noqa: BLE001 - as above
        return None, error


async def finish(answer: Awaitable[T], *, timeout: float | None = None) -> tuple[T | None, BaseException | None]:
    """Await what the user's code returned; returns its value and what it raised, TimeoutError after ``timeout`` seconds.

    Only a cancelling of the calling task goes through. Takes ``timeout`` seconds, and as long as the user's ``finally`` after that.
    """
    try:
        async with asyncio.timeout(timeout):
            return await answer, None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return None, error  # its own, such as that of a future that it awaited
    except BaseException as error:  # noqa: BLE001 - as above
        return None, error


def repr_of(thing: object) -> str:
    """``repr``, or what can be said where that raises.

    >>> repr_of("x")
    "'x'"
    """
    try:
        return repr(thing)
    except BaseException as error:  # noqa: BLE001 - the user's __repr__
        return f"<{_kind(thing)} whose repr raises {_kind(error)}>"


def name_of(thing: object) -> str:
    """The name that a function or class was defined under, else its repr, else what can be said.

    >>> name_of(len), name_of(3)
    ('len', '3')
    """
    name, _ = attempt(getattr, thing, "__qualname__", None)
    return name if type(name) is str else repr_of(thing)


def awaitable(answer: object) -> TypeGuard[Awaitable[Any]]:
    """Whether what the user's code returned is to be awaited; False for what can't be asked."""
    return bool(attempt(inspect.isawaitable, answer)[0])


def message_of(error: BaseException) -> str:
    """What an exception says, its type where it says nothing, or what can be said where its ``__str__`` raises.

    >>> message_of(ValueError("no")), message_of(ValueError())
    ('no', 'ValueError')
    """
    message, problem = attempt(str, error)
    return text_of(error) if problem is not None else message or _kind(error)


def text_of(error: BaseException) -> str:
    """``Type: message`` of an exception, or what can be said where its ``__str__`` raises.

    >>> text_of(ValueError("no"))
    'ValueError: no'
    """
    name = _kind(error)
    try:
        message = str(error)
    except BaseException as problem:  # noqa: BLE001 - the user's __str__
        return f"{name} (its text can't be shown: {_kind(problem)})"
    return f"{name}: {message}" if message else name


def _kind(thing: object) -> str:
    """The name of its class, past what a metaclass of the user's answers."""
    return str(vars(type)["__name__"].__get__(type(thing)))


def add_note(error: BaseException, note: str) -> None:
    """``error.add_note``, where the exception lets itself be annotated (a frozen dataclass does not).

    >>> error = ValueError("no"); add_note(error, "in task 3"); error.__notes__
    ['in task 3']
    """
    with contextlib.suppress(BaseException):
        error.add_note(note)


class ShownClearly(BaseException):
    """Base of errors that a notebook shows as one block: what they say, and the lines of the caller's own code. Python itself shows all."""

    def _render_traceback_(self) -> list[str]:
        """What IPython asks for in place of the frames inside nbprocs and asyncio."""
        frames = [f for f in traceback.extract_tb(self.__traceback__) if f.line and not _inside(f.filename)]
        where = [f"  at {f.filename.rpartition(os.sep)[2]}:{f.lineno} in {f.name}: {f.line}" for f in frames[1:]]
        if frames:
            where.insert(0, f"  at line {frames[0].lineno}: {frames[0].line}")
        return [f"{type(self).__name__}: {self}", *where]


def _inside(filename: str) -> bool:
    return filename.startswith(_INSIDE) or f"{os.sep}IPython{os.sep}" in filename


class WrongType(ShownClearly, TypeError):
    """A TypeError for what a call was given."""


class WrongValue(ShownClearly, ValueError):
    """A ValueError for what a call was given."""
