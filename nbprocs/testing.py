"""Helpers for testing code that uses nbprocs: a clock that moves when told, waits that take no time, and chaos."""

import asyncio
import contextlib
import fnmatch
import heapq
import itertools
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nbprocs.errors import CommunicationError
from nbprocs.manager import ProcessManager
from nbprocs.model import ProcessStatus
from nbprocs.policy.waits import instant_waits

__all__ = ["FakeClock", "Kill", "chaos", "instant_waits"]

_DEADLY = tuple(getattr(signal, name) for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM") if hasattr(signal, name))

# --- clocks and waits ---------------------------------------------------------------------------------------------------


class FakeClock:
    """A monotonic clock that moves only when told. Call it for the time; give its ``sleep`` where code takes one.

    >>> clock = FakeClock(100.0)
    >>> clock.advance(2.5)
    >>> clock()
    102.5
    """

    def __init__(self, start: float = 0.0) -> None:
        """Start at a time, in seconds."""
        self.now = start
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


# --- chaos ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One blow of ``chaos``.

    >>> Kill(at=0.0, name="web", process_id="1", signal=9).signal
    9
    """

    at: float  # time.monotonic()
    name: str
    process_id: str
    signal: int


async def chaos(
    manager: ProcessManager,
    *,
    seconds: float,
    every: float = 0.02,
    pattern: str = "*",
    signals: Sequence[int] = _DEADLY,
    rng: random.Random | None = None,
) -> tuple[Kill, ...]:
    """Send a deadly signal to a random live process of a manager, again and again, from outside of all supervision.

    Args:
        manager: whose processes.
        seconds: how long it goes on; it returns then.
        every: mean seconds between two blows; the pauses are exponentially distributed, so that some fall together.
        pattern: of the names that may be hit (``fnmatch``).
        signals: one of them is taken each time; by default SIGKILL, SIGSEGV, SIGABRT and SIGTERM.
        rng: the source of chance; pass a seeded one to repeat a run.

    Returns every blow, in order.

    >>> async with ProcessManager() as pm:
    ...     proc = await pm.spawn("sleep", "1000")
    ...     kills = await chaos(pm, seconds=0.1, every=0.01)
    ...     result = await proc.wait()
    >>> len(kills) >= 1, result.signal is not None
    (True, True)
    """
    chance = rng or random.Random()  # noqa: S311 - chooses victims, keeps no secret
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    kills = []
    while (left := until - loop.time()) > 0:
        victims = [p for p in manager.processes() if p.status is ProcessStatus.RUNNING and fnmatch.fnmatchcase(p.name, pattern)]
        if victims:
            victim, number = chance.choice(victims), chance.choice(signals)
            with contextlib.suppress(CommunicationError):  # it has ended just now
                victim.send_signal(number)
                kills.append(Kill(at=time.monotonic(), name=victim.name, process_id=victim.id, signal=number))
        await asyncio.sleep(min(left, chance.expovariate(1 / every)))
    return tuple(kills)
