"""The ready tasks, in order, split so that what can't start never stands in front of what can.

::

    Track   tasks with the same group, resources and memory gate: all may start now, or none
     └─ Lane    one priority of a track, ordered by (time, arrival)
         ├─ run    a deque: whatever arrives in order, which is nearly everything; O(1) both ways, eight bytes each
         └─ late   a heap: whatever arrives out of order (retries, released and re-ordered tasks)

Entries are removed lazily: an item is void when the entry's ticket has moved on; a lane in which voids prevail is rebuilt.
"""

import heapq
from collections import deque

from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.model import TaskState

__all__ = ["Lane", "Track"]

_QUEUED = TaskState.QUEUED
_SPARE = 64  # voids that are not worth a rebuild


class Lane:
    """The tasks of one priority in one track."""

    __slots__ = ("last", "late", "run", "track", "void")

    def __init__(self, track: "Track") -> None:
        self.track: Track = track
        self.run: deque[Entry] = deque()
        self.late: list[tuple[float, int, int, Entry]] = []
        self.last: tuple[float, int] = (float("-inf"), -1)  # the order of the last one in run
        self.void: int = 0

    def push(self, entry: Entry) -> None:
        """Put a queued entry in."""
        entry.lane = self
        order = (entry.time, entry.key)
        if entry.ticket == 0 and order > self.last:
            self.last = order
            self.run.append(entry)
        else:
            heapq.heappush(self.late, (entry.time, entry.key, entry.ticket, entry))

    def drop(self) -> None:
        """One entry in here has become void."""
        self.void += 1
        if self.void > _SPARE and self.void * 2 > len(self.run) + len(self.late):
            self.run = deque(e for e in self.run if e.ticket == 0 and e.lane is self)
            self.late = [item for item in self.late if item[3].ticket == item[2] and item[3].lane is self]
            heapq.heapify(self.late)
            self.void = 0

    def head(self) -> Entry | None:
        """The first entry, without taking it."""
        run, late = self.run, self.late
        while run and (run[0].ticket or run[0].lane is not self):
            run.popleft()
            self.void -= 1
        while late and (late[0][3].ticket != late[0][2] or late[0][3].lane is not self):
            heapq.heappop(late)
            self.void -= 1
        if late and (not run or late[0][:2] < (run[0].time, run[0].key)):
            return late[0][3]
        return run[0] if run else None

    def pop(self, entry: Entry) -> None:
        """Take the entry that ``head`` returned."""
        if self.run and self.run[0] is entry:
            self.run.popleft()
        else:
            heapq.heappop(self.late)
        entry.lane = None


Order = tuple[int, float, int]


class Track:
    """The tasks that are blocked or not together."""

    __slots__ = ("gate", "group", "lanes", "order", "parked", "priorities", "resources", "stamp")

    def __init__(self, group: str | None, resources: tuple[tuple[str, float], ...], gate: int) -> None:
        self.group: str | None = group
        self.resources: tuple[tuple[str, float], ...] = resources
        self.gate: int = gate
        self.lanes: dict[int, Lane] = {}
        self.priorities: list[int] = []  # a heap of negated priorities
        self.order: Order | None = None  # of the item that stands for it among the open tracks; None: it has none
        self.stamp: int = 0
        self.parked: bool = False

    def __len__(self) -> int:
        """How many wait in it."""
        return sum(len(lane.run) + len(lane.late) - lane.void for lane in self.lanes.values())

    def push(self, entry: Entry) -> Order:
        """Put an entry in; its order is returned."""
        priority = entry.priority
        lane = self.lanes.get(priority)
        if lane is None:
            lane = self.lanes[priority] = Lane(self)
            heapq.heappush(self.priorities, -priority)
        lane.push(entry)
        return (-priority, entry.time, entry.key)

    def pop(self) -> Entry:
        """Take the first entry. Only when ``head`` has just seen one."""
        entry = self.lanes[-self.priorities[0]].head()
        assert entry is not None  # noqa: S101 - for the type checker
        assert entry.lane is not None  # noqa: S101 - for the type checker
        entry.lane.pop(entry)
        return entry

    def head(self) -> Entry | None:
        """The first entry of the track."""
        while self.priorities:
            entry = self.lanes[-self.priorities[0]].head()
            if entry is not None:
                return entry
            del self.lanes[-heapq.heappop(self.priorities)]
        return None
