"""Numbers of slots, of units of a resource and of GPUs, and the environment that tells a task which are its own. Pure."""

import heapq
from collections.abc import Mapping, Sequence

__all__ = ["GPU", "Gpus", "Numbers", "SlotNumbers"]

GPU = "gpu"  # the resource whose units the backend numbers: they are those of the machine that runs the job

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


class SlotNumbers:
    """Which running task has which slot and which units."""

    def __init__(self) -> None:
        self._slots = Numbers()
        self._units: dict[str, Numbers] = {}

    def take(self, resources: Sequence[tuple[str, float]], capacities: Mapping[str, float]) -> tuple[int, dict[str, list[int]]]:
        """A slot, and units of each resource that comes in whole ones."""
        units: dict[str, list[int]] = {}
        for name, amount in resources:
            capacity = capacities.get(name, 0.0)
            if name != GPU and amount == int(amount) and capacity == int(capacity) and capacity <= _NUMBERED:
                numbers = self._units.setdefault(name, Numbers())
                units[name] = sorted(numbers.take() for _ in range(int(amount)))
        return self._slots.take(), units

    def give(self, slot: int, units: Mapping[str, Sequence[int]]) -> None:
        """All of them are free again."""
        self._slots.give(slot)
        for name, numbers in units.items():
            for number in numbers:
                self._units[name].give(number)

    @staticmethod
    def environment(slot: int, units: Mapping[str, Sequence[int]]) -> dict[str, str | None]:
        """NBPROCS_SLOT, and NBPROCS_SLOT_<RESOURCE> for each numbered resource."""
        env: dict[str, str | None] = {"NBPROCS_SLOT": str(slot)}
        for name, numbers in units.items():
            label = "".join(c if c.isalnum() else "_" for c in name).upper()
            env[f"NBPROCS_SLOT_{label}"] = ",".join(map(str, numbers))
        return env


class Gpus:
    """Which running job has which GPUs of a machine.

    >>> gpus = Gpus(("4", "7"))
    >>> gpus.take("a", 1)
    {'NBPROCS_SLOT_GPU': '0', 'CUDA_VISIBLE_DEVICES': '4'}
    >>> gpus.take("b", 0.5), gpus.take("c", 1)
    ({}, {'NBPROCS_SLOT_GPU': '1', 'CUDA_VISIBLE_DEVICES': '7'})
    >>> gpus.give("a"); gpus.take("d", 1)["CUDA_VISIBLE_DEVICES"]
    '4'
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._free = Numbers()
        self._taken: dict[str, list[int]] = {}

    def take(self, job_id: str, amount: float) -> dict[str, str | None]:
        """The environment that tells a job which are its own; empty for a part of one, which has no number."""
        if amount < 1 or amount != int(amount):
            return {}
        numbers = self._taken[job_id] = sorted(self._free.take() for _ in range(int(amount)))
        names = (self.names[n] if n < len(self.names) else str(n) for n in numbers)
        return {f"NBPROCS_SLOT_{GPU.upper()}": ",".join(map(str, numbers)), "CUDA_VISIBLE_DEVICES": ",".join(names)}

    def give(self, job_id: str) -> None:
        """The job has ended; nothing if it has none."""
        for number in self._taken.pop(job_id, ()):
            self._free.give(number)
