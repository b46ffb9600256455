"""How often something may happen: a token bucket, the only one. Pure: each question tells the time."""

__all__ = ["TokenBucket"]

_ROUNDING = 1e-9


class TokenBucket:
    """Holds at most ``burst`` tokens and gains ``per_second`` of them each second; it is full at first. Times are seconds of any one clock.

    A clock that is set back adds nothing. The algorithm is the leaky bucket as a meter of ITU-T I.371.

    >>> bucket = TokenBucket(burst=2, per_second=1.0)
    >>> [bucket.take(0.0), bucket.take(0.0), bucket.take(0.0), bucket.take(1.0)]
    [True, True, False, True]
    """

    __slots__ = ("_at", "_burst", "_held", "_per_second")

    def __init__(self, *, burst: float, per_second: float) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._held = float(burst)
        self._at: float | None = None

    def held(self, now: float) -> float:
        """How many it holds; negative while it is in debt."""
        if self._at is not None:
            self._held = min(self._burst, self._held + max(now - self._at, 0.0) * self._per_second)
        self._at = now
        return self._held

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take so many, if it holds them."""
        if self.held(now) < amount - _ROUNDING:
            return False
        self._held -= amount
        return True

    def spend(self, now: float, amount: float) -> None:
        """Take what was used already; it may end in debt.

        >>> bucket = TokenBucket(burst=1, per_second=2.0)
        >>> bucket.spend(0.0, 3.0); bucket.held(0.0), bucket.wait(0.0)
        (-2.0, 1.5)
        """
        self._held = self.held(now) - amount

    def wait(self, now: float, amount: float = 1.0) -> float:
        """Seconds until it holds so many; 0.0 if it does."""
        return max(0.0, (amount - self.held(now)) / self._per_second)
