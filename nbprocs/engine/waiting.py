"""The one waiting primitive: a waiter takes itself out, however its wait ends.

::

    await waiters.wait()   ──►  a future in the set  ──►  wake(): all go on   |   fail(error): all raise   |   cancelled, timed out
                                                                  └──────────── taken out in every case ────────────┘
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

__all__ = ["Waiters"]

T = TypeVar("T")


class Waiters(Generic[T]):
    """Those who wait for one thing to happen, on one loop. A timeout is the caller's ``asyncio.timeout``.

    >>> waiters = Waiters()
    >>> try:
    ...     async with asyncio.timeout(0.001):
    ...         await waiters.wait()
    ... except TimeoutError:
    ...     print(len(waiters))
    0
    """

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: dict[asyncio.Future[T], None] = {}  # in the order of arrival

    def __len__(self) -> int:
        return len(self._futures)

    async def wait(self) -> T:
        """Wait for the next ``wake`` and return its value. Raises what ``fail`` says. Only on the loop that wakes."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._futures[future] = None
        try:
            return await future
        finally:
            self._futures.pop(future, None)

    def wake(self, value: T) -> None:
        """Let everybody go on who waits now."""
        for future in self._take():
            future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Let everybody who waits now raise this error."""
        for future in self._take():
            future.set_exception(error)

    def _take(self) -> list[asyncio.Future[T]]:
        futures, self._futures = self._futures, {}
        return [future for future in futures if not future.done()]
