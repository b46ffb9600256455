"""Telling people: callbacks, sync or async, whose failure is reported and harms nobody, at a bounded rate."""

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nbprocs.engine.home import Tasks, log
from nbprocs.guard import attempt, awaitable, finish, name_of, repr_of, told
from nbprocs.monitor.alerts import Transition
from nbprocs.monitor.model import Alert
from nbprocs.policy.bucket import TokenBucket

__all__ = ["AlertCallbacks", "CallbackFailure"]

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


class AlertCallbacks:
    """The callbacks of one monitor. ``suppressed`` counts the calls that the rate limit held back: the alerts themselves are all kept."""

    def __init__(self) -> None:
        self.failures: deque[CallbackFailure] = deque(maxlen=100)
        self.suppressed: int = 0
        self._callbacks: dict[int, tuple[AlertCallback, TokenBucket]] = {}
        self._added = 0
        self._said = False

    def add(self, callback: Any) -> Callable[[], None]:
        """Call it with every alert that fires, gets worse or ends; returns what ends it."""
        if not callable(callback):
            msg = f"an alert callback must be callable, not {repr_of(callback)}"
            raise TypeError(msg)
        self._added += 1
        key = self._added
        self._callbacks[key] = callback, TokenBucket(burst=_BURST, per_second=_PER_SECOND)
        return lambda: self._callbacks.pop(key, None) and None

    def tell(self, changes: Sequence[Transition], *, now: float, tasks: Tasks) -> None:
        """On the home loop. Async callbacks run as tasks of the monitor, each for a minute at most."""
        for transition in changes:
            for callback, limit in list(self._callbacks.values()):
                if limit.take(now):
                    self._call(callback, transition.alert, tasks)
                else:
                    self._suppress()

    def _suppress(self) -> None:
        self.suppressed += 1
        if not self._said:
            self._said = True
            log.warning("alerts come too fast: some calls of callbacks are left out; monitor.alerts() has them all. Said once.")

    def _call(self, callback: AlertCallback, alert: Alert, tasks: Tasks) -> None:
        answer, error = attempt(callback, alert)
        if error is not None:
            self._failed(callback, alert, error)
        elif awaitable(answer):
            task = tasks.start(self._wait(callback, alert, answer), name=f"alert callback {name_of(callback)}")
            if inspect.iscoroutine(answer):
                task.add_done_callback(lambda _: answer.close())  # a task cancelled before it began has not awaited it

    async def _wait(self, callback: AlertCallback, alert: Alert, answer: Awaitable[object]) -> None:
        _, error = await finish(answer, timeout=_LONGEST)
        if error is not None:
            self._failed(callback, alert, error)

    def _failed(self, callback: AlertCallback, alert: Alert, error: BaseException) -> None:
        self.failures.append(CallbackFailure(callback=name_of(callback), alert=alert, error=error, at=datetime.now(UTC)))
        told(f"the alert callback {name_of(callback)} on {alert!r}", error)
