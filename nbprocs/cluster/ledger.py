"""Which job goes to which worker. Pure: no loop, no clock, no messages.

::

    add(job) ──► waiting, best first ──place()──► a worker with a free slot ──ended() or lose()──► gone
                                                  (or one with room ahead, for commands known to be short)

A worker is handed what it has a slot for, so that an urgent job never stands behind others there. Only commands that are known to take
less than 50 ms are handed over ahead, eight a worker: there the way to and fro would take longer than the work.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["AHEAD", "SHORT", "Ledger", "Wish"]

AHEAD = 8  # jobs a worker
SHORT = 0.05  # seconds
_RECENT = 16  # ends that decide whether anything is handed over ahead
_KNOWN = 1000  # commands whose durations are remembered
_NO_GPU = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the ledger must know of a job."""

    id: str
    priority: int = 1
    gpus: float = 0.0
    kind: str = ""  # the command: what has the same is expected to take as long


@dataclass(slots=True)
class Place:
    """A worker, as the ledger sees it."""

    slots: int = 0
    gpus: float = 0.0
    open: bool = True  # False: it leaves, or can't be reached
    jobs: dict[str, Wish] = field(default_factory=dict)
    used: float = 0.0  # GPUs

    @property
    def free(self) -> int:
        """Slots without a job."""
        return self.slots - len(self.jobs)

    def fits(self, wish: Wish) -> bool:
        """Whether its GPUs are enough."""
        return not wish.gpus or self.used + wish.gpus <= self.gpus + 1e-9


class Ledger:
    """The jobs that were handed to a backend, and its workers.

    >>> ledger = Ledger(); ledger.add(Wish(id="a")); ledger.join("w1", gpus=0.0); ledger.set_slots("w1", 1)
    >>> list(ledger.place()), ledger.where("a")
    ([('w1', 'a')], 'w1')
    """

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._where: dict[str, str] = {}
        self._waiting: list[tuple[int, int, Wish]] = []
        self._held: dict[str, Wish] = {}  # those in _waiting that still count
        self._number = 0
        self._durations: OrderedDict[str, float] = OrderedDict()
        self._recent: deque[bool] = deque(maxlen=_RECENT)

    # -- jobs

    def add(self, wish: Wish) -> None:
        """A job that waits for a place."""
        self._number += 1
        self._held[wish.id] = wish
        heapq.heappush(self._waiting, (-wish.priority, self._number, wish))

    def remove(self, job_id: str) -> bool:
        """Take back a job that has no place yet; False if it has one, or is not known."""
        return self._held.pop(job_id, None) is not None

    def where(self, job_id: str) -> str | None:
        """The worker that has the job."""
        return self._where.get(job_id)

    def ended(self, job_id: str, seconds: float | None = None) -> None:
        """A job has left its place. ``seconds``: how long it ran, if that tells anything of its command."""
        worker = self._where.pop(job_id, None)
        place = self.places.get(worker or "")
        wish = place.jobs.pop(job_id, None) if place is not None else None
        if place is not None and wish is not None:
            place.used -= wish.gpus
            if seconds is not None:
                self._learn(wish.kind, seconds)

    def _learn(self, kind: str, seconds: float) -> None:
        before = self._durations.pop(kind, seconds)
        self._durations[kind] = max(seconds, 0.7 * before + 0.3 * seconds)
        self._recent.append(seconds < SHORT)
        while len(self._durations) > _KNOWN:
            self._durations.popitem(last=False)

    def place(self) -> Iterator[tuple[str, str]]:
        """Hand out what has a place now: pairs of worker and job, best job first. Each is noted when it is yielded."""
        left: list[tuple[int, int, Wish]] = []
        while self._waiting and self._room():
            item = heapq.heappop(self._waiting)
            wish = item[2]
            if self._held.get(wish.id) is not wish:
                continue
            worker = self._choose(wish)
            if worker is None:
                left.append(item)
                continue
            place = self.places[worker]
            place.jobs[wish.id] = wish
            place.used += wish.gpus
            self._where[wish.id] = worker
            del self._held[wish.id]
            yield worker, wish.id
        for item in left:
            heapq.heappush(self._waiting, item)

    def _room(self) -> bool:
        return any(place.open and len(place.jobs) < place.slots + self._ahead(place) for place in self.places.values())

    def _choose(self, wish: Wish) -> str | None:
        """The worker with most free slots; else, for a short command, the one with least ahead."""
        best, most = None, 0
        for worker, place in self.places.items():
            if place.open and place.free > most and place.fits(wish):
                best, most = worker, place.free
        if best is not None or wish.gpus or self._durations.get(wish.kind, SHORT) >= SHORT:
            return best
        room = [(-place.free, worker) for worker, place in self.places.items() if place.open and -place.free < self._ahead(place)]
        return min(room)[1] if room else None

    def _ahead(self, place: Place) -> int:
        return AHEAD if place.slots and len(self._recent) == _RECENT and all(self._recent) else 0

    # -- workers

    def join(self, worker: str, *, gpus: float) -> None:
        """A worker is there; its slots come with its carriers."""
        self.places.setdefault(worker, Place()).gpus = gpus

    def set_slots(self, worker: str, slots: int) -> None:
        """How many jobs it may have at a time."""
        if worker in self.places:
            self.places[worker].slots = slots

    def spare(self, worker: str) -> bool:
        """Take a free slot of a worker out of use; False if it has none. A worker that is not known has only what is to be given up."""
        place = self.places.get(worker)
        if place is None:
            return True
        if place.free <= 0:
            return False
        place.slots -= 1
        return True

    def close(self, worker: str, *, closed: bool = True) -> None:
        """Hand it nothing more: it leaves, or does not answer; or do again."""
        if worker in self.places:
            self.places[worker].open = not closed

    def lose(self, worker: str) -> list[str]:
        """A worker is gone; the jobs that it had."""
        place = self.places.pop(worker, None)
        lost = list(place.jobs) if place is not None else []
        for job_id in lost:
            self._where.pop(job_id, None)
        return lost

    # -- views

    @property
    def slots(self) -> int:
        """Of all workers that take jobs."""
        return sum(place.slots for place in self.places.values() if place.open)

    @property
    def room(self) -> int:
        """Jobs that can be with the workers at a time, those ahead included."""
        return sum(place.slots + self._ahead(place) for place in self.places.values() if place.open)

    @property
    def gpus(self) -> float:
        """Of all workers that take jobs."""
        return sum(place.gpus for place in self.places.values() if place.open)

    @property
    def busy(self) -> int:
        """Jobs that have a place."""
        return len(self._where)

    @property
    def waiting(self) -> int:
        """Jobs that have none."""
        return len(self._held)
