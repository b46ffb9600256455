"""What an async method returns before it is awaited: says so when it is looked at, and when it is forgotten."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from nbprocs.guard import repr_of

__all__ = ["PendingCall", "must_be_awaited"]

P = ParamSpec("P")
T = TypeVar("T")
_SHOWN = 60  # characters of the arguments


class PendingCall(Coroutine[Any, Any, T]):
    """A call that begins when it is awaited; a coroutine for asyncio. Its repr and every wrong attribute say that ``await`` is missing.

    >>> call = must_be_awaited("double")(lambda x: None)(3)
    >>> call
    <double(3) was not awaited, and nothing was started: write `await double(…)`>
    >>> call.stdout
    Traceback (most recent call last):
    AttributeError: there is no 'stdout' before the call is awaited: write `(await double(…)).stdout`
    """

    def __init__(self, name: str, make: Callable[[], Coroutine[Any, Any, T]], words: tuple[object, ...]) -> None:
        self._name = name
        self._make: Callable[[], Coroutine[Any, Any, T]] | None = make
        self._words = words
        self._coroutine: Coroutine[Any, Any, T] | None = None
        self._shown = False

    def _begun(self) -> Coroutine[Any, Any, T]:
        if self._coroutine is None:
            if self._make is None:
                msg = "cannot reuse already awaited coroutine"
                raise RuntimeError(msg)
            self._coroutine, self._make, self._words = self._make(), None, ()
        return self._coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begun().__await__()

    def send(self, value: Any) -> Any:
        """For the loop."""
        return self._begun().send(value)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None, /) -> Any:
        """For the loop."""
        coroutine = self._begun()
        return coroutine.throw(kind) if value is None else coroutine.throw(kind, value, trace)

    def close(self) -> None:
        """Give it up. Idempotent."""
        self._make = None
        if self._coroutine is not None:
            self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "cr_")):  # what IPython, copy and asyncio look for
            raise AttributeError(name)
        raise AttributeError(f"there is no {name!r} before the call is awaited: write `(await {self._name}(…)).{name}`")

    def __repr__(self) -> str:
        if self._make is None:
            return f"<{self._name}(…), awaited>"
        self._shown = True  # whoever has read this needs no warning
        return f"<{self._name}({self._said()}) was not awaited, and nothing was started: write `await {self._name}(…)`>"

    def _said(self) -> str:
        """The arguments: made when somebody looks, since most calls are awaited and nobody does."""
        return ", ".join(map(repr_of, self._words))[:_SHOWN]

    def __del__(self) -> None:
        if self._make is not None and not self._shown:
            warnings.warn(
                f"{self._name}({self._said()}) was not awaited, and nothing was started: write `await {self._name}(…)`",
                RuntimeWarning,
                stacklevel=2,
            )


def must_be_awaited(name: str, *, skip: int = 0) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """For an async function: what a call returns is a PendingCall. ``skip`` arguments, such as self, are not shown."""

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> PendingCall[T]:
            return PendingCall(name, functools.partial(function, *args, **kwargs), args[skip : skip + 3])

        return call

    return decorate
