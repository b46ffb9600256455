"""How long commands take, learned from how long they took. Pure."""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from nbprocs.processes.recording import KnowsRuns
from nbprocs.scheduler.model import Eta

__all__ = ["Durations", "eta"]

_KEPT = 10_000  # commands
_SPREAD = 0.5  # the standard deviation of a duration that was seen once, or only told: half of it
_SIDE = 1.96  # standard deviations of a normal distribution that hold 95 %


class Durations:
    """Mean and variance of the duration of each command, by Welford's method; the oldest commands are forgotten after 10,000.

    A command is looked up with all its arguments, then by its first argument alone, then among all.

    >>> seen = Durations()
    >>> seen.add(("python", "train.py", "3"), 10.0)
    >>> seen.add(("python", "train.py", "4"), 14.0)
    >>> seen.mean(("python", "train.py", "5"))
    12.0
    """

    def __init__(self) -> None:
        self.past: KnowsRuns | None = None  # asked about commands that did not run here yet
        self._seen: OrderedDict[Hashable, tuple[int, float, float]] = OrderedDict()  # (count, mean, sum of squares)

    @staticmethod
    def _names(argv: tuple[str, ...]) -> list[Hashable]:
        return [argv, *([argv[:2]] if len(argv) > 2 else []), None]  # noqa: PLR2004 - longer than command and first argument

    def add(self, argv: tuple[str, ...], seconds: float) -> None:
        """One more run of it."""
        for name in self._names(argv):
            count, mean, squares = self._seen.get(name, (0, 0.0, 0.0))
            count += 1
            delta = seconds - mean
            mean += delta / count
            self._seen[name] = (count, mean, squares + delta * (seconds - mean))
            self._seen.move_to_end(name)
        while len(self._seen) > _KEPT:
            self._seen.popitem(last=False)

    def mean(self, argv: tuple[str, ...]) -> float | None:
        """Seconds it takes on average, if this command or one with the same first argument ever ran; None otherwise."""
        for name in self._names(argv)[:-1]:
            if name in self._seen:
                return self._seen[name][1]
        usual = None if self.past is None else self.past.usual(argv)
        return None if usual is None else float(usual.mean)

    def guess(self, argv: tuple[str, ...]) -> tuple[float, float] | None:
        """Mean and variance for it, by the closest that is known, if need be all commands; None when nothing ever ran."""
        for name in self._names(argv):
            if name is None and self.past is not None and (usual := self.past.usual(argv)) is not None:
                return usual.mean, (_SPREAD * usual.mean) ** 2 if usual.variance is None else usual.variance
            if name in self._seen:
                count, mean, squares = self._seen[name]
                return mean, squares / (count - 1) if count > 1 else (_SPREAD * mean) ** 2
        return None


def eta(guesses: Iterable[tuple[float, float]], *, slots: int, scale: float = 1.0) -> Eta | None:
    """When ``slots`` at a time will have done all of it, by mean and variance of each; ``scale`` times if only a part was looked at.

    The sum of the durations is taken as normal (central limit theorem); the longest single one is a lower bound. The last tasks run with
    idle slots beside them: on average half a task for every slot but one is added.

    >>> print(eta([(10.0, 0.0)] * 8, slots=4))
    0:24-0:24
    """
    total = variance = longest = 0.0
    count = 0
    for mean, spread in guesses:
        total += mean
        variance += spread
        longest = max(longest, mean)
        count += 1
    total, variance, count = total * scale, variance * scale, round(count * scale)
    if not count:
        return None
    busy = max(1, min(slots, count))
    middle = max(longest, total / busy + total / count * (busy - 1) / busy / 2)
    side = _SIDE * math.sqrt(variance) / busy
    return Eta(low=max(0.0, middle - side), middle=middle, high=middle + side)
