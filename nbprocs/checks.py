"""Checks of what a call is given, in one style: ``timeout must be a positive number of seconds or None, not 'x'``.

Each function takes the argument's name and its value, and returns the value as it is kept. TypeError where no value of that type would do,
ValueError where another of the same type would.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NoReturn, TypeVar

from nbprocs.guard import WrongType, WrongValue, repr_of

__all__ = [
    "data",
    "flag",
    "function",
    "grace",
    "instance",
    "like",
    "mapping",
    "member",
    "name",
    "number",
    "one_of",
    "path",
    "refuse",
    "seconds",
    "text",
    "whole",
    "word",
    "words",
]

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
_SHOWN = 80  # characters of a wrong value in an error
LONGEST = 1e9  # seconds: thirty years; what is longer is a mistake of units, and no clock of the system takes it


def refuse(kind: type[TypeError | ValueError], argument: str, what: str, value: object) -> NoReturn:
    """Raise the error of this style.

    >>> refuse(ValueError, "nice", "a whole number from -20 to 19", 40)
    Traceback (most recent call last):
    nbprocs.guard.WrongValue: nice must be a whole number from -20 to 19, not 40
    """
    shown = repr_of(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}… ({type(value).__name__})"
    raise (WrongType if kind is TypeError else WrongValue)(f"{argument} must be {what}, not {shown}")


def flag(argument: str, value: object) -> bool:
    """True or False, and nothing that is only like it."""
    if not isinstance(value, bool):
        refuse(TypeError, argument, "True or False", value)
    return value


def whole(argument: str, value: object, *, least: int | None = None, most: int | None = None) -> int:
    """A whole number, also numpy's, within its bounds."""
    what = "a whole number" + _bounds(least, most)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        refuse(TypeError, argument, what, value)
    found = operator.index(value)
    if (least is not None and found < least) or (most is not None and found > most):
        refuse(ValueError, argument, what, value)
    return found


def number(
    argument: str, value: object, *, least: float | None = None, above: float | None = None, most: float | None = None, what: str = ""
) -> float:
    """A finite real number within its bounds; ``above`` excludes its own value."""
    if not what:
        what = "a number" + (f" above {above:g}" if above is not None else _bounds(least, most))
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        refuse(TypeError, argument, what, value)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        refuse(ValueError, argument, what, value)
    too_small = (least is not None and found < least) or (above is not None and found <= above)
    if too_small or not math.isfinite(found) or (most is not None and found > most):
        refuse(ValueError, argument, what, value)
    return value if isinstance(value, (int, float)) else found


def seconds(argument: str, value: object, *, zero: bool = False) -> float | None:
    """A time in seconds, or as a timedelta; None and infinity mean that there is no limit, and give None."""
    what = f"{'0 or more' if zero else 'a positive number of'} seconds or None"
    value = _bare(value)
    if value is None or (isinstance(value, float) and value == math.inf):
        return None
    return number(argument, value, least=0 if zero else None, above=None if zero else 0, most=LONGEST, what=what)


def grace(argument: str, value: object) -> float:
    """A time in seconds, or as a timedelta, that has an end: between asking and killing."""
    return number(argument, _bare(value), least=0, most=LONGEST, what="0 or more seconds")


def _bare(value: object) -> object:
    """A timedelta as seconds; anything else as it is."""
    total = getattr(value, "total_seconds", None)
    return total() if callable(total) else value


def text(argument: str, value: object) -> str:
    """Text that can be written: no lone surrogates."""
    if not isinstance(value, str):
        refuse(TypeError, argument, "text", value)
    if any("\ud800" <= char <= "\udfff" for char in value):
        refuse(ValueError, argument, "text that can be written (it holds a lone surrogate)", value)
    return value


def name(argument: str, value: object) -> str:
    """A name: text that is not blank."""
    found = text(argument, value)
    if not found.strip() or "\0" in found:
        refuse(ValueError, argument, "a name: text that is not blank", value)
    return found


def word(argument: str, value: object) -> str:
    r"""A word of a command line: text, bytes or a path; bytes as text that ``os.fsencode`` gives back.

    >>> word("args[0]", b"caf\xe9")
    'caf\udce9'
    """
    if not isinstance(value, (str, bytes, os.PathLike)):
        refuse(TypeError, argument, "text, bytes or a path", value)
    found = os.fsdecode(value)
    try:
        os.fsencode(found)
    except UnicodeEncodeError:
        refuse(ValueError, argument, "text that the system can take (it holds a lone surrogate)", value)
    return found


def words(argument: str, value: object) -> tuple[str, ...]:
    """The words of a command line."""
    if isinstance(value, (str, bytes, os.PathLike, Mapping)) or not isinstance(value, Iterable):
        refuse(TypeError, argument, "a list of text, bytes or paths", value)
    return tuple(item if type(item) is str and item.isascii() else word(f"{argument}[{i}]", item) for i, item in enumerate(value))


def path(argument: str, value: object) -> str:
    """A path, made absolute now: the working directory may be another one when it is used."""
    found = word(argument, value)
    if not found:
        refuse(ValueError, argument, "a path", value)
    return os.path.abspath(os.path.expanduser(found))  # noqa: PTH100, PTH111 - pathlib would follow links, and loses a name that is not text


def one_of(argument: str, value: object, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        refuse(kind, argument, f"one of {', '.join(map(repr, choices))}", value)
    return str(value)


def mapping(argument: str, value: object) -> Mapping[Any, Any]:
    """A mapping; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        refuse(TypeError, argument, "a mapping", value)
    return value


def data(argument: str, value: object, *, encoding: str = "utf-8", errors: str = "strict") -> bytes:
    r"""Bytes to be written: bytes-like, whole whatever its items are; or text, encoded.

    >>> import array
    >>> data("input", array.array("H", [1, 2])), data("input", "é")
    (b'\x01\x00\x02\x00', b'\xc3\xa9')
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode(encoding, errors if errors.startswith("surrogate") else "strict")
        except UnicodeEncodeError as error:
            refuse(ValueError, argument, f"text that {encoding} can encode ({error.reason} at {error.start})", value)
    try:
        return memoryview(value).tobytes()  # type: ignore[arg-type]  # tried
    except (TypeError, BufferError):
        refuse(TypeError, argument, "bytes or text", value)


def instance(argument: str, value: object, kind: type[T] | tuple[type[T], ...], what: str) -> T:
    """An object of some class, which is told in words.

    >>> instance("policy", 5, dict, "a dict")
    Traceback (most recent call last):
    nbprocs.guard.WrongType: policy must be a dict, not 5
    """
    if not isinstance(value, kind):
        refuse(TypeError, argument, what, value)
    return value


def like(argument: str, value: T, names: tuple[str, ...], what: str) -> T:
    """An object that has these attributes, whatever its class is: one of ours, or what stands in for it. No class.

    >>> like("manager", "web", ("list", "subscribe"), "a ProcessManager")
    Traceback (most recent call last):
    nbprocs.guard.WrongType: manager must be a ProcessManager, not 'web'
    """
    if isinstance(value, type) or not all(hasattr(value, name) for name in names):
        refuse(TypeError, argument, what, value)
    return value


def function(argument: str, value: object) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        refuse(TypeError, argument, "a callable", value)
    return value


def member(argument: str, value: object, kind: type[E]) -> E:
    """A member of an enum, or its value.

    >>> from nbprocs.model import Stream
    >>> member("stream", "stderr", Stream)
    <Stream.STDERR: 'stderr'>
    """
    if isinstance(value, bool) or not isinstance(value, (kind, str, int)):
        refuse(TypeError, argument, f"a {kind.__name__}", value)
    try:
        return kind(value)
    except ValueError:
        refuse(ValueError, argument, f"one of {', '.join(repr(one.value) for one in kind)}", value)


def _bounds(least: float | None, most: float | None) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        return f", {least} or more"
    return f", {most} or less" if least is None else f" from {least} to {most}"
