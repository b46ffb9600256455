"""Numbers of slots and of units of a resource, and the environment that tells a task which are its own. Pure."""

import heapq
from collections.abc import Mapping, Sequence

__all__ = ["Numbers", "Slots"]

_NUMBERED = 1024  # a resource of at most so many whole units has them numbered


class Numbers:
    """The lowest free whole numbers.

    >>> free = Numbers()
    >>> free.take(), free.take()
    (0, 1)
    >>> free.give(0); free.take()
    0
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        """The lowest that is free."""
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """It is free again."""
        heapq.heappush(self._free, number)


class Slots:
    """Which running task has which slot and which units."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self._gpus = gpus
        self._slots = Numbers()
        self._units: dict[str, Numbers] = {}

    def take(self, resources: Sequence[tuple[str, float]], capacities: Mapping[str, float]) -> tuple[int, dict[str, list[int]]]:
        """A slot, and units of each resource that comes in whole ones."""
        units: dict[str, list[int]] = {}
        for name, amount in resources:
            capacity = capacities.get(name, 0.0)
            if amount == int(amount) and capacity == int(capacity) and capacity <= _NUMBERED:
                numbers = self._units.setdefault(name, Numbers())
                units[name] = sorted(numbers.take() for _ in range(int(amount)))
        return self._slots.take(), units

    def give(self, slot: int, units: Mapping[str, Sequence[int]]) -> None:
        """All of them are free again."""
        self._slots.give(slot)
        for name, numbers in units.items():
            for number in numbers:
                self._units[name].give(number)

    def environment(self, slot: int, units: Mapping[str, Sequence[int]]) -> dict[str, str | None]:
        """NBPROCS_SLOT, NBPROCS_SLOT_<RESOURCE> for each numbered resource, and CUDA_VISIBLE_DEVICES for ``gpu``."""
        env: dict[str, str | None] = {"NBPROCS_SLOT": str(slot)}
        for name, numbers in units.items():
            label = "".join(c if c.isalnum() else "_" for c in name).upper()
            env[f"NBPROCS_SLOT_{label}"] = ",".join(map(str, numbers))
            if name == "gpu":
                env["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus[n] if n < len(self._gpus) else str(n) for n in numbers)
        return env
