"""The timer of the runner: wakes it at the next time of its queue, and never sleeps long while a time is awaited."""

import asyncio
from collections.abc import Callable

from nbprocs.engine.home import Home
from nbprocs.scheduler.model import Now
from nbprocs.scheduler.queue import TaskQueue

__all__ = ["Alarm"]

_LONGEST_SLEEP = 2.0  # seconds
_GATE_SLEEP = 0.5  # seconds between looks at the free memory while a task waits for that alone


class Alarm:
    """One timer at most. On the home loop only."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def set(self, home: Home, queue: TaskQueue, now: Now, ring: Callable[[], object]) -> None:
        """Ring at the queue's next time; not at all if it has none."""
        due = queue.next_time()
        delay = min(due.elapsed - now.elapsed, due.wall - now.wall, _LONGEST_SLEEP)
        if queue.gated():
            delay = min(delay, _GATE_SLEEP)
        elif due.elapsed == due.wall == float("inf"):
            self.off()
            return
        at = home.loop.time() + max(delay, 0.0)
        if self._timer is not None and not self._timer.cancelled() and home.loop.time() < self._timer.when() <= at:
            return
        self.off()
        self._timer = home.loop.call_at(at, ring)

    def set_in(self, home: Home, seconds: float, ring: Callable[[], object]) -> None:
        """Ring in so many seconds, instead of at any other time."""
        self.off()
        self._timer = home.loop.call_later(seconds, ring)

    def off(self) -> None:
        """Don't ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
