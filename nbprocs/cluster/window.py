"""What a worker has to tell one kernel, in batches that are repeated until they are acknowledged.

::

    nudge(run) ─► dirty runs ─► pull(ack) composes one batch ─► kept until its number comes back ─► settled
                                 └ at most `room` bytes of output, each run in turn; an end after the last byte of its run
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from nbprocs.engine.waiting import Waiters

__all__ = ["PullWindow", "Teller"]

_TURN = 64 << 10  # bytes of one stream before the next run has its turn
_BUNCH = 0.005  # seconds: news that come faster than this are told together

Item = tuple[Any, ...]


class Teller(Protocol):
    """What has news: a run."""

    def news(self) -> list[Item]:
        """Items that are told before output: that it has started."""

    def output(self, size: int) -> list[Item]:
        """The next output, at most so many bytes a stream; [] when there is none now."""

    def end(self) -> Item | None:
        """The last item, once all output has been told."""

    def settled(self) -> None:
        """Its last item has been acknowledged."""


class PullWindow:
    """One batch at a time; on the worker's loop only."""

    def __init__(self, extra: Callable[[], list[Item]]) -> None:
        """``extra`` gives the items that belong to no run, if there is something new."""
        self.number: int = 0  # of the last batch that was composed
        self.batch: list[Item] | None = None  # until it is acknowledged
        self.closed: bool = False
        self._extra = extra
        self._dirty: dict[int, Teller] = {}
        self._ending: list[Teller] = []
        self._waiters: Waiters[None] = Waiters()
        self._final: Item | None = None
        self._told = 0.0
        self._settles: Waiters[None] = Waiters()

    @property
    def empty(self) -> bool:
        """Whether everything has been told and acknowledged."""
        return self.batch is None and not self._dirty and self._final is None

    def finish(self, item: Item) -> None:
        """Tell this when all else has been told."""
        self._final = item
        self._waiters.wake(None)

    async def settled(self, seconds: float) -> None:
        """Wait for the next acknowledgement, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._settles.wait()

    def nudge(self, teller: Teller | None = None) -> None:
        """There is something new."""
        if teller is not None:
            self._dirty[id(teller)] = teller
        self._waiters.wake(None)

    def close(self) -> None:
        """No more waiting: pulls answer at once."""
        self.closed = True
        self._waiters.wake(None)

    async def pull(self, ack: int, *, wait: float, room: int) -> tuple[int, list[Item]]:
        """The batch behind ``ack``, or the same one again for a former number; ``(ack, [])`` if nothing happens for ``wait`` seconds."""
        if self.batch is not None and ack == self.number:
            self._settle()
        until = time.monotonic() + wait
        while self.batch is None:
            items = self._compose(room)
            if items:
                self.number += 1
                self.batch = items
                self._told = time.monotonic()
                break
            if self.closed or not await self._news(until - time.monotonic()):
                return self.number, []
        return self.number, self.batch

    async def _news(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._waiters.wait()
        except TimeoutError:
            return False
        if (bunch := self._told + _BUNCH - time.monotonic()) > 0 and not self.closed:
            await asyncio.sleep(bunch)
        return True

    def _settle(self) -> None:
        self.batch = None
        ending, self._ending = self._ending, []
        for teller in ending:
            teller.settled()
        self._settles.wake(None)

    def _compose(self, room: int) -> list[Item]:
        items = self._extra()
        for teller in self._dirty.values():
            items += teller.news()
        while self._dirty and room > 0:
            key, teller = next(iter(self._dirty.items()))
            del self._dirty[key]
            found = teller.output(min(_TURN, room))
            if found:
                items += found
                room -= sum(len(item[-1]) for item in found)
                self._dirty[key] = teller  # behind the others
            elif (last := teller.end()) is not None:
                items.append(last)
                self._ending.append(teller)
        if not self._dirty and self._final is not None:
            items.append(self._final)
            self._final = None
        return items
