"""Which task goes to which worker, and what is known when one dies. Pure: no loop, no socket, no clock.

::

    submit ─► queue (by priority, then arrival) ─plan()─► lane of a worker: running, prefetched, prefetched …
                ▲   ▲                                          │
                │   └──── withdrawn by us (stolen back) ◄──────┤
                └──────── never started, worker dead ◄─────────┤    lost(): the claimed one is its victim
                                                               └──► answered: the desk takes it out

A worker runs its lane in order, and claims a task before it runs it. So of a dead worker's lane everything after the last claimed number
was never started, and goes back to the *front* of the queue without counting as a try.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["DEEPEST", "Dispatcher", "Lane", "Pace", "Queue", "Queued"]

DEEPEST = 256  # tasks in a lane at most
WORTH = 0.002  # seconds of work that a lane may hold: enough to hide the way there and back, too little to be missed
SHORT = 0.02  # seconds; behind tasks shorter than this one more may wait in a lane, so that its worker does not wait for us
STALE = 0.005  # seconds after which what a lane holds is taken back, if it could run elsewhere
_WEIGHT = 1 / 16  # of the newest duration in the running mean


class Queued(Protocol):
    """What the dispatcher needs to know of a task."""

    priority: int
    dropped: bool  # cancelled: it is skipped


T = TypeVar("T", bound=Queued)


class Queue(Generic[T]):
    """Higher priority first, then by arrival; what is given back goes to the front of its priority."""

    __slots__ = ("_levels", "_size")

    def __init__(self) -> None:
        self._levels: dict[int, deque[T]] = {}
        self._size = 0

    def __len__(self) -> int:
        """How many wait, cancelled ones not counted."""
        return self._size

    def __iter__(self) -> Iterator[T]:
        """In the order in which they would be taken."""
        for level in sorted(self._levels, reverse=True):
            yield from (task for task in self._levels[level] if not task.dropped)

    def push(self, task: T) -> None:
        """Behind its equals."""
        level = self._levels.get(task.priority)
        if level is None:
            level = self._levels[task.priority] = deque()
        level.append(task)
        self._size += 1

    def give_back(self, tasks: Iterable[T]) -> None:
        """In front of their equals, in this order."""
        for task in reversed(list(tasks)):
            self._levels.setdefault(task.priority, deque()).appendleft(task)
            self._size += 1

    def drop(self, task: T) -> None:
        """Mark a queued one as cancelled: it costs nothing to leave it in its place."""
        task.dropped = True
        self._size -= 1
        if not self._size:
            self._levels.clear()

    @property
    def top(self) -> int | None:
        """The highest priority that waits (or waited: of a cancelled one); None when nobody does."""
        return max(self._levels) if self._size else None

    def take(self, count: int) -> list[T]:
        """The next ones, at most so many."""
        taken: list[T] = []
        if not self._size:
            return taken
        for priority in sorted(self._levels, reverse=True):
            level = self._levels[priority]
            while level and len(taken) < count:
                task = level.popleft()
                if not task.dropped:
                    taken.append(task)
            if level:
                break
            del self._levels[priority]
        self._size -= len(taken)
        return taken


class Pace:
    """How long tasks take of late, and so how many a lane may hold."""

    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean: float | None = None  # seconds; None before the first

    def note(self, seconds: float, count: int = 1) -> None:
        """So many tasks took this long on average."""
        if self.mean is None:
            self.mean = seconds
        else:
            weight = _WEIGHT if count == 1 else 1 - (1 - _WEIGHT) ** count
            self.mean += (seconds - self.mean) * weight

    def depth(self, deepest: int = DEEPEST) -> int:
        """Tasks that a lane may hold now: one, until tasks are known to be short."""
        if self.mean is None or self.mean > SHORT:
            return 1
        return max(2, min(deepest, 1 + int(WORTH / max(self.mean, 1e-6))))


class Lane(Generic[T]):
    """One worker as the dispatcher sees it: what it was sent and has not answered, by number, in order."""

    __slots__ = ("budget", "deepest", "filled_at", "key", "next", "open", "sent", "stuck", "withdrawing")

    def __init__(self, key: Hashable, *, deepest: int = DEEPEST, budget: int | None = None) -> None:
        self.key = key
        self.deepest = deepest
        self.budget = budget  # tasks that it may still be given; None: any number
        self.sent: dict[int, T] = {}
        self.next = 1
        self.open = True  # gets tasks
        self.withdrawing = False  # an answer about withdrawn tasks is on its way: nothing new until then
        self.stuck = False  # what it runs is long: nothing new behind that until it answers
        self.filled_at = 0.0  # when it was last given tasks

    def put(self, tasks: list[T]) -> int:
        """Append; returns the number of the first."""
        first = self.next
        self.sent.update(zip(range(first, first + len(tasks)), tasks, strict=True))
        self.next += len(tasks)
        if self.budget is not None:
            self.budget -= len(tasks)
        return first


class Dispatcher(Generic[T]):
    """The queue, the lanes, and the rules between them."""

    def __init__(self) -> None:
        self.queue: Queue[T] = Queue()
        self.lanes: dict[Hashable, Lane[T]] = {}
        self.pace = Pace()

    @property
    def running(self) -> int:
        """Tasks in lanes."""
        return sum(len(lane.sent) for lane in self.lanes.values())

    def add(self, lane: Lane[T]) -> None:
        """A worker is ready."""
        self.lanes[lane.key] = lane

    def plan(self, now: float) -> list[tuple[Lane[T], int, list[T]]]:
        """Take from the queue what should be sent now: (lane, number of the first, tasks).

        Empty lanes first, the one used last before the others, so that those not needed stay idle and may leave. A deep lane is refilled
        when it is half empty: fewer and larger writes. What little there is is shared evenly: no worker holds a task that another one
        could start.
        """
        if not self.queue:
            return []
        depth = self.pace.depth()
        free = []
        for lane in self.lanes.values():
            limit, held = min(depth, lane.deepest), len(lane.sent)
            if held < limit and held <= limit // 2 and lane.open and not (lane.withdrawing or lane.stuck):
                free.append(lane)
        free.sort(key=lambda lane: (len(lane.sent), -lane.filled_at))
        found = []
        for index, lane in enumerate(free):
            share = math.ceil(len(self.queue) / (len(free) - index))
            room = min(depth, lane.deepest) - len(lane.sent)
            count = min(share, room, room if lane.budget is None else lane.budget)
            if count > 0 and (tasks := self.queue.take(count)):
                lane.filled_at = now
                found.append((lane, lane.put(tasks), tasks))
        return found

    def direct(self, task: T, now: float) -> tuple[Lane[T], int] | None:
        """A lone task for an idle worker, past the queue: (lane, number). None if others wait or nobody is idle."""
        if self.queue:
            return None
        best: Lane[T] | None = None
        for lane in self.lanes.values():
            if (
                not lane.sent
                and lane.open
                and not lane.withdrawing
                and lane.budget != 0
                and (best is None or lane.filled_at > best.filled_at)
            ):
                best = lane
        if best is None:
            return None
        best.filled_at = now
        return best, best.put([task])

    def stale(self, now: float) -> list[tuple[Lane[T], list[int]]]:
        """What to take back from lanes that do not get on: (lane, numbers that may not have started).

        Only where it helps: another worker has nothing to do, or something more urgent waits. Call it every ``STALE`` seconds while a
        lane holds more than one, and when a worker runs out of work. The first of a lane is taken to be running; the worker has the last
        word.
        """
        top = self.queue.top
        idle = top is None and any(lane.open and not lane.sent for lane in self.lanes.values())
        found = []
        for lane in self.lanes.values():
            if len(lane.sent) > 1 and not lane.withdrawing and now - lane.filled_at >= STALE:
                waiting = list(lane.sent.items())[1:]
                if idle or (top is not None and any(task.priority < top for _, task in waiting)):
                    found.append((lane, [number for number, _ in waiting]))
        return found

    def returned(self, lane: Lane[T], numbers: Iterable[int]) -> None:
        """The worker gave these back unstarted: to the front of the queue, cancelled ones to nowhere."""
        lane.withdrawing = False
        tasks = [task for number in numbers if (task := lane.sent.pop(number, None)) is not None]
        if lane.budget is not None:
            lane.budget += len(tasks)
        lane.stuck = bool(lane.sent)
        self.queue.give_back(task for task in tasks if not task.dropped)

    def lost(self, lane: Lane[T], claimed: int) -> list[T]:
        """The worker is dead: returns the tasks that it had claimed (one at most, unless an answer was torn), requeues the others."""
        self.lanes.pop(lane.key, None)
        lane.open = False
        victims = [task for number, task in lane.sent.items() if number <= claimed]
        unstarted = [task for number, task in lane.sent.items() if number > claimed and not task.dropped]
        lane.sent.clear()
        self.queue.give_back(unstarted)
        return victims
