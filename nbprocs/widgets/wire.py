"""What travels between a view and its front ends, and how what arrives is judged. Pure: no widget, no loop.

::

    front end                                     kernel
    {do: hello, view}                 ──────►
                                      ◄──────     {n, to: view, s: {part: snapshot}}     everything, once
                                      ◄──────     {n+1, p: {part: delta}}                only what changed, to all front ends
    {do: call, view, id, part, op, args}  ──►
                                      ◄──────     {to: view, re: id, ok, data | error, field}
    {do: bye, view}                   ──────►

A front end that misses a number says hello again. Nothing that a front end sends is trusted: every field is checked here, and what
does not fit becomes a :class:`BadMessage`, which turns into an error reply and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = [
    "BadMessage",
    "Call",
    "Delta",
    "Hello",
    "Refused",
    "answer_where_asked",
    "checked",
    "choice",
    "flag",
    "mapping",
    "number",
    "op",
    "parse",
    "text",
    "texts",
]

_ID_LIMIT = 80
_ARGS_LIMIT = 20

Check = Callable[[str, Any], Any]
F = TypeVar("F", bound=Callable[..., Any])


class BadMessage(ValueError):
    """The front end sent something that this view does not understand; the text says what."""


class Refused(ValueError):
    """The request was understood but can't be done; ``field`` names the form field it belongs to, or is empty."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A front end wants everything (or is gone, when ``gone``)."""

    view: str
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A front end wants something done."""

    view: str
    id: int
    part: str
    op: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What a part has to say: JSON content, and raw bytes that need no escaping. ``size`` is about the bytes on the wire."""

    content: Any
    buffers: tuple[bytes, ...] = field(default=())
    size: int = 200


def _string(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= _ID_LIMIT:
        msg = f"{key} must be a string of 1 to {_ID_LIMIT} characters"
        raise BadMessage(msg)
    return value


def parse(content: object) -> Hello | Call:
    """Judge one message of a front end.

    >>> parse({"do": "hello", "view": "a1"})
    Hello(view='a1', gone=False)

    Raises BadMessage for anything else than the three messages of this module's drawing.
    """
    if not isinstance(content, Mapping):
        msg = "a message must be an object"
        raise BadMessage(msg)
    what = content.get("do")
    if what in ("hello", "bye"):
        return Hello(view=_string(content, "view"), gone=what == "bye")
    if what != "call":
        msg = "do must be hello, bye or call"
        raise BadMessage(msg)
    number_ = content.get("id")
    if not isinstance(number_, int) or isinstance(number_, bool) or not 0 <= number_ < 2**53:
        msg = "id must be a whole number"
        raise BadMessage(msg)
    args = content.get("args", {})
    if not isinstance(args, Mapping) or len(args) > _ARGS_LIMIT or not all(isinstance(key, str) for key in args):
        msg = f"args must be an object of at most {_ARGS_LIMIT} fields"
        raise BadMessage(msg)
    return Call(view=_string(content, "view"), id=number_, part=_string(content, "part"), op=_string(content, "op"), args=args)


# -- checks of arguments: each takes (name, value) and returns the value, or raises BadMessage


def text(limit: int = 10_000) -> Check:
    """A string of at most so many characters, without NUL."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > limit or "\0" in value:
            msg = f"{name} must be text of at most {limit:,} characters without NUL"
            raise BadMessage(msg)
        return value

    return check


def texts(count: int, limit: int = 10_000) -> Check:
    """A list of at most so many strings."""
    one = text(limit)

    def check(name: str, value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) > count:
            msg = f"{name} must be a list of at most {count:,} texts"
            raise BadMessage(msg)
        return [one(name, item) for item in value]

    return check


def mapping(count: int, limit: int = 10_000) -> Check:
    """An object of at most so many strings by name."""
    one = text(limit)

    def check(name: str, value: Any) -> dict[str, str]:
        if not isinstance(value, Mapping) or len(value) > count:
            msg = f"{name} must be an object of at most {count:,} texts"
            raise BadMessage(msg)
        return {one(name, key): one(name, item) for key, item in value.items()}

    return check


def number(low: float, high: float) -> Check:
    """A finite number in bounds."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            msg = f"{name} must be a number from {low:g} to {high:g}"
            raise BadMessage(msg)
        return value

    return check


def choice(*allowed: Any) -> Check:
    """One of a few values."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, (list, dict, bool)) or value not in allowed:
            msg = f"{name} must be one of {', '.join(map(str, allowed))}"
            raise BadMessage(msg)
        return value

    return check


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        msg = f"{name} must be true or false"
        raise BadMessage(msg)
    return value


def op(**checks: Check) -> Callable[[F], F]:
    """Mark a part's method as callable by front ends, with a check for each argument. An argument that is not sent keeps its default."""

    def mark(method: F) -> F:
        method.__checks__ = checks  # type: ignore[attr-defined]
        return method

    return mark


def checked(method: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments after their checks. Raises BadMessage for unknown and for bad ones."""
    checks: Mapping[str, Check] = method.__checks__  # type: ignore[attr-defined]
    unknown = args.keys() - checks.keys()
    if unknown:
        msg = f"unknown arguments: {', '.join(sorted(unknown))}"[:200]
        raise BadMessage(msg)
    return {name: checks[name](name, value) for name, value in args.items()}


def answer_where_asked(comm: Any) -> None:
    """Let what a page says on a comm go to the thread that the page chose for it.

    JupyterLab has a subshell for widgets, which answers while a cell runs. ipykernel 7.4 takes a message to the thread for which the comm
    spoke last instead, and that is most often the cell's: a view was dead for as long as a cell computed, also one of a background manager.
    """
    comm._reply_subshell_for = None  # noqa: SLF001 - asked for by its name; a kernel that knows no such thing sees nothing
