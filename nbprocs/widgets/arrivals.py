"""The calls of one front end, in the order in which it made them.

ipykernel 7 hands the messages of one comm now to the main thread and now to a subshell's, and those of the one overtake those of the other:
two letters that are typed into a program changed places. A front end numbers its calls, so one that came early waits for those before it.
"""

import asyncio
from collections.abc import Callable

from nbprocs.widgets.wire import Call

__all__ = ["Arrivals"]

PATIENCE = 1.0  # seconds that a call waits for one before it: it may be with a thread that a cell blocks, or lost
MOST = 256  # calls that wait


class Arrivals:
    """Performs each call in its turn. All methods on the home loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, perform: Callable[[Call], None]) -> None:
        self._loop, self._perform = loop, perform
        self._next: int | None = None  # the number of the next one; that of the first is not known beforehand
        self._early: dict[int, Call] = {}
        self._patience: asyncio.TimerHandle | None = None

    def take(self, call: Call) -> None:
        """Perform the call, and those that waited for it; or let it wait, for PATIENCE at most. A late one is performed at once."""
        if self._next is None:
            self._next = call.id
        if call.id < self._next or call.id in self._early:
            self._perform(call)
            return
        self._early[call.id] = call
        if len(self._early) > MOST:
            self._skip()
        elif call.id == self._next:
            self._go_on()
        elif self._patience is None:
            self._patience = self._loop.call_later(PATIENCE, self._skip)

    def _go_on(self) -> None:
        self.end()
        while self._next is not None and (call := self._early.pop(self._next, None)) is not None:
            self._next += 1
            self._perform(call)
        if self._early:
            self._patience = self._loop.call_later(PATIENCE, self._skip)

    def _skip(self) -> None:
        """Wait no longer for what is missing."""
        self.end()
        early, self._early = self._early, {}
        self._next = max(early) + 1
        for number in sorted(early):
            self._perform(early[number])

    def end(self) -> None:
        """Wait no longer: for what is missing, or, when the front end is gone, at all."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
