"""Which task goes to which worker, and what is known when one dies. Pure: no loop, no socket, no clock.

::

    submit ─► queue (by priority, then arrival) ─plan()─► window of a worker: running, prefetched, prefetched …
                ▲   ▲                                          │
                │   └──── withdrawn by us (stolen back) ◄──────┤
                └──────── never started, worker dead ◄─────────┤    lost(): the claimed one fails
                                                               └──► answered: answered()

A worker runs its window in order, and claims a task before it runs it. So of a dead worker's window all behind the last claimed number
was never started, and goes back to the *front* of the queue without counting as a try.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["DEEPEST", "Dispatcher", "Pace", "Queue", "Queued", "Window"]

DEEPEST = 256  # tasks in a window at most
WORTH = 0.004  # seconds of work that a window may hold: enough to hide the way there and back, too little to be missed
SHORT = 0.02  # seconds; behind tasks shorter than this one more may wait in a window, so that its worker does not wait for us
STALE = 0.005  # seconds after which what a window holds is taken back, if it could run elsewhere
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
    """How long tasks take of late, and so how many a window may hold."""

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
        """Tasks that a window may hold now: one, until tasks are known to be short."""
        if self.mean is None or self.mean > SHORT:
            return 1
        return max(2, min(deepest, 1 + int(WORTH / max(self.mean, 1e-6))))


class Window(Generic[T]):
    """One worker as the dispatcher sees it: what it was sent and has not answered, by number, in order."""

    __slots__ = ("budget", "deepest", "filled_at", "next", "open", "owner", "sent", "stuck", "withdrawing")

    def __init__(self, owner: Any, *, deepest: int = DEEPEST, budget: int | None = None) -> None:
        self.owner: Any = owner
        self.deepest: int = deepest
        self.budget: int | None = budget  # tasks that it may still be given; None: any number
        self.sent: dict[int, T] = {}
        self.next: int = 1
        self.open: bool = True  # gets tasks
        self.withdrawing: bool = False  # an answer about withdrawn tasks is on its way: nothing new until then
        self.stuck: bool = False  # what it runs is long: nothing new behind that until it answers
        self.filled_at: float = 0.0  # when it was last given tasks


class Dispatcher(Generic[T]):
    """The queue, the windows, and the rules between them."""

    def __init__(self) -> None:
        self.queue: Queue[T] = Queue()
        self.windows: dict[Window[T], None] = {}  # of ready workers
        self.running: int = 0  # tasks in windows
        self.pace: Pace = Pace()
        self._idle: dict[Window[T], None] = {}  # empty ones; the one that became so last is the last
        self._room: dict[Window[T], None] = {}  # those that may have room: plan() looks at no others

    def add(self, window: Window[T]) -> None:
        """A worker is ready."""
        self.windows[window] = self._idle[window] = self._room[window] = None

    def remove(self, window: Window[T]) -> None:
        """Its worker leaves, or is dead."""
        window.open = False
        for known in (self.windows, self._idle, self._room):
            known.pop(window, None)

    def reopen(self, window: Window[T]) -> None:
        """It gets tasks again."""
        window.open = True
        self._room[window] = None

    def plan(self, now: float) -> list[tuple[Window[T], int, list[T]]]:
        """Take from the queue what should be sent now: (window, number of the first, tasks).

        Empty windows first, the one used last before the others, so that those not needed stay idle and may leave. A deep window is
        refilled when it is half empty: fewer and larger writes. What little there is is shared evenly: no worker holds a task that another
        one could start.
        """
        if not self.queue:
            return []
        depth = self.pace.depth()
        free = []
        for window in list(self._room):
            limit, held = min(depth, window.deepest), len(window.sent)
            if held < limit and held <= limit // 2 and window.open and not (window.withdrawing or window.stuck):
                free.append(window)
            else:
                del self._room[window]  # until something happens to it
        if len(free) > 1:
            free.sort(key=lambda window: (len(window.sent), -window.filled_at))
        found = []
        for index, window in enumerate(free):
            share = math.ceil(len(self.queue) / (len(free) - index))
            room = min(depth, window.deepest) - len(window.sent)
            count = min(share, room, room if window.budget is None else window.budget)
            if count > 0 and (tasks := self.queue.take(count)):
                found.append((window, self._put(window, tasks, now), tasks))
        return found

    def direct(self, task: T, now: float) -> tuple[Window[T], int] | None:
        """A lone task for an idle worker, past the queue: (window, number). None if others wait or nobody is idle."""
        if self.queue:
            return None
        for window in reversed(self._idle):
            if window.open and not window.withdrawing and window.budget != 0:
                return window, self._put(window, [task], now)
        return None

    def _put(self, window: Window[T], tasks: list[T], now: float) -> int:
        """Append; returns the number of the first."""
        first = window.next
        window.next = first + len(tasks)
        window.sent.update(zip(range(first, window.next), tasks, strict=True))
        window.filled_at = now
        if window.budget is not None:
            window.budget -= len(tasks)
        self.running += len(tasks)
        self._idle.pop(window, None)
        return first

    def answered(self, window: Window[T], count: int) -> None:
        """So many of its tasks were answered; the caller has taken them out of ``sent``."""
        self.running -= count
        window.stuck = False
        if window in self.windows:
            self._room[window] = None
            if not window.sent:
                self._idle[window] = None

    def stale(self, now: float) -> list[tuple[Window[T], list[int]]]:
        """What to take back from windows that do not get on: (window, numbers that may not have started).

        Only where it helps: another worker has nothing to do, or something more urgent waits. Call it every ``STALE`` seconds while a
        window holds more than one, and when a worker runs out of work. The first of a window is taken to be running; the worker has the
        last word.
        """
        top = self.queue.top
        idle = top is None and any(window.open for window in self._idle)
        found: list[tuple[Window[T], list[int]]] = []
        if top is None and not idle:
            return found
        for window in self.windows:
            if len(window.sent) > 1 and not window.withdrawing and now - window.filled_at >= STALE:
                waiting = list(window.sent.items())[1:]
                if idle or (top is not None and any(task.priority < top for _, task in waiting)):
                    found.append((window, [number for number, _ in waiting]))
        return found

    def returned(self, window: Window[T], numbers: Iterable[int]) -> None:
        """The worker gave these back unstarted: to the front of the queue, cancelled ones to nowhere."""
        window.withdrawing = False
        tasks = [task for number in numbers if (task := window.sent.pop(number, None)) is not None]
        if window.budget is not None:
            window.budget += len(tasks)
        self.answered(window, len(tasks))
        window.stuck = bool(window.sent)
        self.queue.give_back(task for task in tasks if not task.dropped)

    def lost(self, window: Window[T], claimed: int) -> list[T]:
        """The worker is dead: returns the tasks that it had claimed (one at most, unless an answer was torn), requeues the others."""
        self.remove(window)
        failed = [task for number, task in window.sent.items() if number <= claimed]
        unstarted = [task for number, task in window.sent.items() if number > claimed and not task.dropped]
        self.running -= len(window.sent)
        window.sent.clear()
        self.queue.give_back(unstarted)
        return failed
