"""When a view may speak: at most 10 messages a second each, 20 a second all together, and no more bytes than the wire bears.

The notebook server drops messages past 1,000 a second and the last state with them; a browser tab is busy long before. So nobody sends
when something happens: it says *want*, and is asked for its delta when its turn comes. While nothing changes there is no timer.
"""

import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from nbprocs.engine.home import Home
from nbprocs.policy.bucket import TokenBucket

__all__ = ["Pacer", "PacingSlots", "Speaker", "pacer_of"]

EACH = 0.1  # seconds between two messages of one view
ALL = 0.05  # seconds between two messages of any
RATE = 300_000  # bytes a second of one view; a bigger message makes the pause after it longer


class Speaker(Protocol):
    """A view, for the pacer."""

    def speak(self) -> int:
        """Send what is new; returns about how many bytes that was, 0 for nothing."""


class PacingSlots:
    """Turns of all views of the interpreter, whatever loop they live on. Thread-safe."""

    def __init__(self, gap: float = ALL) -> None:
        self._bucket = TokenBucket(burst=1, per_second=1 / gap)
        self._lock = threading.Lock()

    def take(self, now: float) -> float:
        """Seconds to wait for a turn that is ours now; 0 means speak at once."""
        with self._lock:
            return 0.0 if self._bucket.take(now) else self._bucket.wait(now)


_slots = PacingSlots()


class Timer(Protocol):
    """What ``loop.call_later`` returns."""

    def cancel(self) -> object:
        """Not any more."""


class Pacer:
    """Gives the views of one loop their turns. Only used on that loop's thread."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], Timer],
        *,
        clock: Callable[[], float] = time.monotonic,
        slots: PacingSlots = _slots,
    ) -> None:
        self._call_later = call_later
        self._clock = clock
        self._slots = slots
        self._due: dict[Speaker, float] = {}  # who wants to speak, and not before when
        self._rest: weakref.WeakKeyDictionary[Speaker, float] = weakref.WeakKeyDictionary()  # quiet until then
        self._timer: Timer | None = None
        self._timer_due = float("inf")

    @property
    def idle(self) -> bool:
        """True while nobody wants to speak; no timer runs then."""
        return self._timer is None

    def want(self, speaker: Speaker, *, after: float = 0.0) -> None:
        """``speaker`` has something to say, which may wait ``after`` seconds so that more comes together."""
        now = self._clock()
        due = max(now + after, self._rest.get(speaker, now))
        if due < self._due.get(speaker, float("inf")):
            self._due[speaker] = due
            self._plan(due, now)

    def forget(self, speaker: Speaker) -> None:
        """It is closed and has nothing more to say."""
        self._due.pop(speaker, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_due = None, float("inf")

    def _plan(self, due: float, now: float) -> None:
        if due >= self._timer_due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._call_later(max(due - now, 0.0), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        now = self._clock()
        speaker = min(self._due, key=lambda one: self._due[one], default=None)
        if speaker is None:
            return
        wait = max(self._due[speaker] - now, 0.0) or self._slots.take(now)
        if wait > 0:
            self._plan(now + wait, now)
            return
        del self._due[speaker]
        size = speaker.speak()
        if size:
            self._rest[speaker] = now + max(EACH, size / RATE)
        if self._due:
            self._plan(max(min(self._due.values()), now), now)


_pacers: "weakref.WeakKeyDictionary[Home, Pacer]" = weakref.WeakKeyDictionary()


def pacer_of(home: Home) -> Pacer:
    """The one pacer of a home loop."""
    pacer = _pacers.get(home)
    if pacer is None:
        pacer = _pacers[home] = Pacer(home.loop.call_later)
    return pacer
