"""Telling people: callbacks, sync or async, whose failure is reported and harms nobody, at a bounded rate."""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nbprocs.engine.home import Tasks, log
from nbprocs.monitor.alerts import Transition
from nbprocs.monitor.model import Alert

__all__ = ["CallbackFailure", "Callbacks", "RateLimit"]

AlertCallback = Callable[[Alert], object]
_LONGEST = 60.0  # seconds that an async callback may take
_BURST, _PER_SECOND = 50, 1.0  # calls of one callback


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackFailure:
    """A callback that raised."""

    callback: str
    alert: Alert
    error: BaseException
    at: datetime


class RateLimit:
    """A bucket of ``burst`` calls that refills with ``per_second``.

    >>> limit = RateLimit(burst=2, per_second=1.0)
    >>> [limit.allows(0.0), limit.allows(0.0), limit.allows(0.0), limit.allows(1.0)]
    [True, True, False, True]
    """

    def __init__(self, *, burst: int, per_second: float) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._left = float(burst)
        self._at: float | None = None

    def allows(self, now: float) -> bool:
        """Take one, if there is one."""
        if self._at is not None:
            self._left = min(self._burst, self._left + max(now - self._at, 0.0) * self._per_second)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Callbacks:
    """The callbacks of one monitor. ``suppressed`` counts the calls that the rate limit held back: the alerts themselves are all kept."""

    def __init__(self) -> None:
        self.failures: deque[CallbackFailure] = deque(maxlen=100)
        self.suppressed = 0
        self._callbacks: dict[int, tuple[AlertCallback, RateLimit]] = {}
        self._added = 0
        self._said = False

    def add(self, callback: Any) -> Callable[[], None]:
        """Call it with every alert that fires, gets worse or ends; returns what ends it."""
        if not callable(callback):
            msg = f"an alert callback must be callable, not {callback!r}"
            raise TypeError(msg)
        self._added += 1
        key = self._added
        self._callbacks[key] = callback, RateLimit(burst=_BURST, per_second=_PER_SECOND)
        return lambda: self._callbacks.pop(key, None) and None

    def tell(self, changes: Sequence[Transition], *, now: float, tasks: Tasks) -> None:
        """On the home loop. Async callbacks run as tasks of the monitor, each for a minute at most."""
        for transition in changes:
            for callback, limit in list(self._callbacks.values()):
                if limit.allows(now):
                    self._call(callback, transition.alert, tasks)
                else:
                    self._suppress()

    def _suppress(self) -> None:
        self.suppressed += 1
        if not self._said:
            self._said = True
            log.warning("alerts come too fast: some calls of callbacks are left out; monitor.alerts() has them all. Said once.")

    def _call(self, callback: AlertCallback, alert: Alert, tasks: Tasks) -> None:
        try:
            answer = callback(alert)
        except Exception as error:  # noqa: BLE001 - a stranger's code; kept and logged
            self._failed(callback, alert, error)
            return
        if inspect.isawaitable(answer):
            tasks.start(self._wait(callback, alert, answer), name=f"alert callback {_name(callback)}")

    async def _wait(self, callback: AlertCallback, alert: Alert, answer: object) -> None:
        try:
            async with asyncio.timeout(_LONGEST):
                await answer  # type: ignore[misc]  # isawaitable said so
        except Exception as error:  # noqa: BLE001 - a stranger's code; kept and logged
            self._failed(callback, alert, error)

    def _failed(self, callback: AlertCallback, alert: Alert, error: BaseException) -> None:
        self.failures.append(CallbackFailure(callback=_name(callback), alert=alert, error=error, at=datetime.now(UTC)))
        log.error("the alert callback %s failed on %r; the monitor goes on", _name(callback), alert, exc_info=error)


def _name(callback: object) -> str:
    return str(getattr(callback, "__qualname__", callback))
