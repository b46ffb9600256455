"""A clock that moves only when it is told."""

import asyncio
import heapq
import itertools
from collections.abc import Callable

__all__ = ["FakeClock"]


class FakeClock:
    """A monotonic clock that moves only when told. Call it for the time; give its ``sleep`` where code takes one.

    >>> clock = FakeClock(100.0)
    >>> clock.advance(2.5)
    >>> clock()
    102.5
    """

    def __init__(self, start: float = 0.0) -> None:
        """Start at a time, in seconds."""
        self.now: float = start
        self.slept: list[float] = []  # what was asked of sleep(), in order
        self._sleepers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on; everybody whose time has come is woken, earliest first, at its own time."""
        until = self.now + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, wake = heapq.heappop(self._sleepers)
            self.now = max(self.now, at)
            wake()
        self.now = until

    def call_later(self, delay: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call it when the clock has moved by ``delay`` seconds; returns what cancels it. Like a loop's ``call_later``."""
        entry = (self.now + delay, next(self._order), callback)
        heapq.heappush(self._sleepers, entry)

        def cancel() -> None:
            if entry in self._sleepers:
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

        return cancel

    async def sleep(self, delay: float) -> None:
        """Wait until ``advance`` has moved the clock by ``delay`` seconds."""
        self.slept.append(delay)
        if delay <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        cancel = self.call_later(delay, woken.set)
        try:
            await woken.wait()
        finally:
            cancel()
