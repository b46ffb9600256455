"""A circuit breaker: while a command keeps failing, nobody starts it again; then one try tells whether it is well."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from nbprocs.checks import LONGEST, number, whole

__all__ = ["BreakerState", "CircuitBreaker"]


class BreakerState(StrEnum):
    """What a breaker lets pass.

    >>> str(BreakerState.HALF_OPEN)
    'half-open'
    """

    CLOSED = "closed"  # everything
    OPEN = "open"  # nothing
    HALF_OPEN = "half-open"  # one try, whose outcome decides


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """An immutable breaker: each thing that happens gives the breaker that follows. Times are seconds of any one clock.

    Closed until ``failures`` failures fall within ``window`` seconds, then open for ``open_for`` seconds, then half-open:
    one try. If it is well the breaker closes and forgets, if not it opens again. A try that nobody reports on
    counts as lost after another ``open_for`` seconds, so that a breaker can't stay half-open for ever.

    >>> b = CircuitBreaker(failures=2, window=10, open_for=30)
    >>> b = b.failed(0.0).failed(1.0)
    >>> b.state(2.0), b.retry_after(2.0)
    (<BreakerState.OPEN: 'open'>, 29.0)
    >>> b.state(31.0)
    <BreakerState.HALF_OPEN: 'half-open'>
    >>> trying = b.tried(31.0)
    >>> trying.allows(31.5), trying.succeeded(32.0).state(32.0)
    (False, <BreakerState.CLOSED: 'closed'>)
    """

    failures: int = 5  # within the window; they open it
    window: float = 60.0  # seconds
    open_for: float = 30.0  # seconds until one try is allowed
    recent: tuple[float, ...] = ()  # the failures that still count, oldest first
    opened_at: float | None = None  # None: closed
    trial_at: float | None = None  # when the half-open try started

    def __post_init__(self) -> None:
        """Refuse a breaker that could never open or never close."""
        object.__setattr__(self, "failures", whole("failures", self.failures, least=1))
        for field in ("window", "open_for"):
            number(field, getattr(self, field), above=0, most=LONGEST, what="a positive number of seconds")

    def state(self, now: float) -> BreakerState:
        """What it is at this time."""
        if self.opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.opened_at + self.open_for else BreakerState.HALF_OPEN

    def retry_after(self, now: float) -> float:
        """Seconds until a try may be allowed; 0.0 when one is allowed now."""
        if self.opened_at is None:
            return 0.0
        since = self.opened_at if self.trial_at is None else self.trial_at
        return max(0.0, since + self.open_for - now)

    def allows(self, now: float) -> bool:
        """Whether a start is allowed at this time."""
        return self.retry_after(now) <= 0

    def tried(self, now: float) -> Self:
        """A start was made; a half-open breaker allows no second one until the outcome is told."""
        return self if self.state(now) is not BreakerState.HALF_OPEN else replace(self, trial_at=now)

    def succeeded(self, now: float) -> Self:
        """A start turned out well: a half-open breaker closes. Nothing changes in an open or closed one."""
        if self.state(now) is not BreakerState.HALF_OPEN:
            return self
        return replace(self, recent=(), opened_at=None, trial_at=None)

    def failed(self, now: float) -> Self:
        """A start turned out badly: a half-open breaker opens again, a closed one if that was one too many."""
        state = self.state(now)
        if state is BreakerState.OPEN:
            return self
        if state is BreakerState.HALF_OPEN:
            return replace(self, opened_at=now, trial_at=None)
        recent = (*(at for at in self.recent if at > now - self.window), now)
        if len(recent) >= self.failures:
            return replace(self, recent=(), opened_at=now, trial_at=None)
        return replace(self, recent=recent)
