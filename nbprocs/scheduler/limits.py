"""Groups and resources: what bounds how many tasks run, besides the slots."""

import math

from nbprocs.scheduler.lanes import Track

__all__ = ["GroupLimit", "Resource", "fits"]

_ROUNDING = 1e-9


def fits(amount: float, capacity: float) -> bool:
    """Whether the amount is within the capacity, but for rounding: ten tenths fit into one.

    >>> fits(sum([0.1] * 10), 1.0)
    True
    """
    return amount <= capacity * (1 + _ROUNDING) + _ROUNDING


class GroupLimit:
    """Tasks with a limit and a pause of their own."""

    __slots__ = ("limit", "name", "parked", "paused", "running")

    def __init__(self, name: str, limit: int | None) -> None:
        self.name: str = name
        self.limit: int | None = limit
        self.running: int = 0
        self.paused: bool = False
        self.parked: list[Track] = []  # tracks that wait for it

    @property
    def room(self) -> float:
        """How many more may start."""
        return 0 if self.paused else math.inf if self.limit is None else max(0, self.limit - self.running)

    @property
    def has_room(self) -> bool:
        """Whether one more may start."""
        return not self.paused and (self.limit is None or self.running < self.limit)


class Resource:
    """A countable or weighable thing that running tasks share."""

    __slots__ = ("capacity", "name", "parked", "used")

    def __init__(self, name: str, capacity: float) -> None:
        self.name: str = name
        self.capacity: float = capacity
        self.used: float = 0.0
        self.parked: list[Track] = []

    def has(self, amount: float) -> bool:
        """Whether that much is free."""
        return fits(self.used + amount, self.capacity)
