"""The pure queue: which task may start now. One synchronous class without a loop, a clock or a process.

::

                 add ──┬─ needs others ──► BLOCKED ──(they end)──┐
                       ├─ not yet due ───► SCHEDULED  (two heaps: wall clock, elapsed time)
                       └─ else ──────────► QUEUED     (tracks of lanes, see lanes.py) ◄──(time comes)
                                              │ take(now)
        finish(state) ◄── RUNNING ◄───────────┘          again(due): back to SCHEDULED (a retry, the next run of a series)

Order: higher priority first, then earlier time, then arrival. The order decides only among tasks that *may* start: one that is not due,
blocked, held, or over the limit of its group, of a resource or of memory never holds back one that can run. There is no rule against
starvation, and none is hidden: nothing is reserved for a large request, so a task that needs four of a resource waits for as long as tasks
that need one keep coming, and a low priority waits for as long as higher ones come. Give it a higher priority, hold the others, or pause
their group.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from nbprocs.scheduler.backend import Shape
from nbprocs.scheduler.entry import DEFAULTS, Entry
from nbprocs.scheduler.lanes import Order, Track
from nbprocs.scheduler.limits import GroupLimit, Resource, fits
from nbprocs.scheduler.model import Condition, GroupStatus, Now, ResourceStatus, TaskState

__all__ = ["TaskQueue"]

_SCHEDULED, _BLOCKED, _QUEUED, _HELD, _RUNNING = (
    TaskState.SCHEDULED,
    TaskState.BLOCKED,
    TaskState.QUEUED,
    TaskState.HELD,
    TaskState.RUNNING,
)
_SPARE = 64
_GATE_MEMORY = 2.0  # seconds for which a started task's memory gate counts as taken: it has not yet grown to its size

Due = tuple[float, int, int, Entry]


class TaskQueue:
    """Tasks that wait or run, and the limits that they run under. All methods are for one thread."""

    def __init__(
        self, *, max_running: int = 4, groups: Mapping[str, int] | None = None, resources: Mapping[str, float] | None = None
    ) -> None:
        self.max_running: int = max_running
        self.elastic = False  # more of a resource may come: asking for more than there is is not in vain
        self.paused: bool = False
        self.entries: dict[int, Entry] = {}  # all that are not final
        self.counts: dict[TaskState, int] = dict.fromkeys(TaskState, 0)
        self._groups = {name: GroupLimit(name, limit) for name, limit in (groups or {}).items()}
        self._resources = {name: Resource(name, capacity) for name, capacity in (resources or {}).items()}
        self._tracks: dict[tuple[object, ...], Track] = {}
        self._open: list[tuple[Order, int, int, Track]] = []  # tracks that may have something to start, by their first task
        self._plain = self._tracks[DEFAULTS.track] = Track(None, (), 0)  # of tasks without group, resources and gate; it is never parked
        self._numbers = 0  # breaks ties in _open between a void item and its successor
        self._memory_parked: list[Track] = []
        self._gates: list[tuple[float, int]] = []  # (elapsed, bytes) of tasks started lately
        self._due: tuple[list[Due], list[Due]] = ([], [])  # by elapsed time, by the wall clock
        self._due_void = [0, 0]

    # -- in and out

    def add(self, entry: Entry, now: Now, *, after: Iterable[tuple[Entry, Condition]] = (), held: bool = False) -> TaskState:
        """Take in a new entry; returns its state. SKIPPED, at once, when a dependency has already ended otherwise than asked."""
        if entry.options is DEFAULTS and entry.due is None and not after and not held:
            self.entries[entry.key] = entry  # the common case, in the fewest steps: all of this again, without the questions
            self.counts[_QUEUED] += 1
            order = self._plain.push(entry)
            if self._plain.order is None or order < self._plain.order:
                self._open_track(self._plain, order)
            return _QUEUED
        for other, condition in after:
            if other.state.final:
                if not condition.met(other.state):
                    self._forget_needs(entry)
                    entry.state = TaskState.SKIPPED
                    self.counts[TaskState.SKIPPED] += 1
                    return TaskState.SKIPPED
            else:
                self._link(entry, other, condition)
        self.entries[entry.key] = entry
        entry.state = _HELD  # a state that _place may leave
        self.counts[_HELD] += 1
        if not held:
            self._place(entry, now)
        return entry.state

    def take_over(self, entry: Entry) -> None:
        """Take in an entry that runs already."""
        for name, _ in entry.options.resources:
            self._resources.setdefault(name, Resource(name, 0.0))
        self.entries[entry.key] = entry
        entry.state = _HELD
        self.counts[_HELD] += 1
        self._occupy(entry)

    def depend(self, entry: Entry, other: Entry, condition: Condition, now: Now) -> list[Entry]:
        """Make a waiting entry wait for one more; returns what that skipped (itself first, if the other has already ended otherwise).

        Raises ValueError, and changes nothing, when the entry runs or has ended, or when the two would wait for each other.
        """
        if entry.key not in self.entries or entry.state is _RUNNING:
            raise ValueError(f"{entry.label} is {entry.state}; only a waiting task can get another dependency")
        if (cycle := other.path_to(entry)) is not None:
            raise ValueError("these tasks would wait for each other: " + " → ".join(e.label for e in [entry, *cycle]))
        if other.state.final:
            return [] if condition.met(other.state) else [entry, *(lost for lost, _ in self.end(entry, TaskState.SKIPPED, now))]
        self._link(entry, other, condition)
        if entry.state is not _HELD:
            self._unplace(entry)
            self._place(entry, now)
        return []

    @staticmethod
    def _link(entry: Entry, other: Entry, condition: Condition) -> None:
        if entry.needs is None:
            entry.needs = {}
        if other.key not in entry.needs:
            if other.dependents is None:
                other.dependents = {}
            other.dependents[entry.key] = entry
        entry.needs[other.key] = (other, condition)

    def take(self, now: Now, memory: Callable[[], float] | None = None) -> list[Entry]:
        """The tasks that start now, best first; they count as running from here on.

        ``memory()`` tells the bytes available and is asked only if a task with a memory gate is at the head; without it gates stand open.
        """
        self._promote(now)
        self._wake(self._memory_parked)
        taken: list[Entry] = []
        if self.paused:
            return taken
        free = self.max_running - self.counts[_RUNNING]
        available: float | None = None
        while free > 0 and (track := self._first()) is not None:
            if track.gate and memory is not None and available is None:
                self._gates = [(at, size) for at, size in self._gates if now.elapsed - at < _GATE_MEMORY]
                available = memory() - sum(size for _, size in self._gates)
            if not self._admit(track, available):
                continue
            entry = track.pop()
            self._reopen(track)
            self._occupy(entry)
            if track.gate:
                self._gates.append((now.elapsed, track.gate))
                available = None if available is None else available - track.gate
            taken.append(entry)
            free -= 1
        return taken

    def _occupy(self, entry: Entry) -> None:
        self._set(entry, _RUNNING)
        if entry.options.group is not None:
            self.group(entry.options.group).running += 1
        for name, amount in entry.options.resources:
            self.resource(name).used += amount

    def _vacate(self, entry: Entry) -> None:
        if entry.options.group is not None:
            group = self.group(entry.options.group)
            group.running -= 1
            self._wake(group.parked)
        for name, amount in entry.options.resources:
            resource = self.resource(name)
            resource.used -= amount
            self._wake(resource.parked)

    def again(self, entry: Entry, now: Now, *, time: float, due: float | None, on_wall: bool = False) -> None:
        """A running entry goes back to wait: for a retry or its next run. ``time`` orders it, ``due`` is on the clock named."""
        self._vacate(entry)
        entry.time, entry.due, entry.on_wall = time, due, on_wall
        entry.ticket += 1
        self._set(entry, _HELD)
        self._place(entry, now)

    def end(self, entry: Entry, state: TaskState, now: Now) -> list[tuple[Entry, Entry]]:
        """An entry reaches a final state, from any other; returns the tasks that are thereby skipped, each with the one it waited for."""
        skipped: list[tuple[Entry, Entry]] = []
        todo: list[tuple[Entry, TaskState, Entry]] = [(entry, state, entry)]
        while todo:
            ending, final, cause = todo.pop()
            if ending.key not in self.entries:
                continue
            if ending.state is _RUNNING:
                self._vacate(ending)
            else:
                self._unplace(ending)
            self._set(ending, final)
            del self.entries[ending.key]
            self._forget_needs(ending)
            if ending is not entry:
                skipped.append((ending, cause))
            dependents, ending.dependents = ending.dependents, None
            lost = [other for other in (dependents or {}).values() if not self._settle(other, ending, now)]
            todo += [(other, TaskState.SKIPPED, ending) for other in lost]
        return skipped

    def _settle(self, entry: Entry, ended: Entry, now: Now) -> bool:
        """One dependency has ended; False when the entry can't run any more."""
        link = (entry.needs or {}).pop(ended.key, None)
        if link is None:
            return True
        if not link[1].met(ended.state):
            return False
        if not entry.needs:
            entry.needs = None
            if entry.state is _BLOCKED:
                self._place(entry, now)
        return True

    @staticmethod
    def _forget_needs(entry: Entry) -> None:
        for other, _ in (entry.needs or {}).values():
            if other.dependents is not None:
                other.dependents.pop(entry.key, None)
        entry.needs = None

    # -- changes to one entry

    def hold(self, entry: Entry) -> bool:
        """Keep a waiting entry from starting; False if it is not waiting."""
        if entry.key not in self.entries or entry.state in (_RUNNING, _HELD):
            return False
        self._unplace(entry)
        self._set(entry, _HELD)
        return True

    def release(self, entry: Entry, now: Now) -> bool:
        """Undo ``hold``; False if it is not held."""
        if entry.state is not _HELD:
            return False
        self._place(entry, now)
        return True

    def reprioritise(self, entry: Entry, priority: int, now: Now) -> None:
        """Another priority, wherever the entry is; a running one keeps it for its retries."""
        entry_waits = entry.state is _QUEUED
        if entry_waits:
            self._unplace(entry)
        entry.priority = priority
        if entry_waits:
            self._place(entry, now)

    # -- limits

    def group(self, name: str) -> GroupLimit:
        """The group of that name; made without a limit if it is new."""
        found = self._groups.get(name)
        if found is None:
            found = self._groups[name] = GroupLimit(name, None)
        return found

    def resource(self, name: str) -> Resource:
        """The resource of that name. Raises KeyError."""
        return self._resources[name]

    def limit(self, max_running: int) -> None:
        """Another number of tasks at a time; those that run go on."""
        self.max_running = max_running

    def limit_group(self, name: str, limit: int | None) -> None:
        """Another limit for a group; None: no limit."""
        group = self.group(name)
        group.limit = limit
        self._wake(group.parked)

    def set_resource(self, name: str, capacity: float) -> None:
        """A new or another capacity; what is in use stays in use."""
        found = self._resources.get(name)
        if found is None:
            found = self._resources[name] = Resource(name, capacity)
        found.capacity = capacity
        self._wake(found.parked)

    def pause(self) -> None:
        """Start nothing."""
        self.paused = True

    def pause_group(self, name: str, *, paused: bool) -> None:
        """Start nothing of a group, or do again."""
        group = self.group(name)
        group.paused = paused
        if not paused:
            self._wake(group.parked)

    # -- views

    def next_time(self) -> Now:
        """When the next waiting task is due: on the wall clock, and in elapsed time; infinity where none is. Safe on any thread.

        Only a look: the head of a heap is never void. What another thread took out here, the home loop could have just put there.
        """
        elapsed, wall = (head[0][0] if head else float("inf") for head in (heap[:1] for heap in self._due))
        return Now(wall, elapsed)

    def waiting(self) -> int:
        """How many have not started."""
        counts = self.counts
        return counts[_SCHEDULED] + counts[_BLOCKED] + counts[_QUEUED] + counts[_HELD]

    def gated(self) -> bool:
        """Whether something waits for memory alone: nobody tells when that is there."""
        return bool(self._memory_parked)

    def groups(self) -> tuple[GroupStatus, ...]:
        """All groups that were ever named."""
        groups = list(self._groups.values())  # in one step: another thread may ask
        return tuple(GroupStatus(name=g.name, running=g.running, limit=g.limit, paused=g.paused) for g in groups)

    def resources(self) -> tuple[ResourceStatus, ...]:
        """All resources."""
        resources = list(self._resources.values())
        return tuple(ResourceStatus(name=r.name, used=r.used, capacity=r.capacity) for r in resources)

    def impossible(self, entry: Entry) -> str | None:
        """Why the entry could not start even if nothing else ran; None if it could, or could once the backend has grown."""
        for name, amount in () if self.elastic else entry.options.resources:
            resource = self._resources.get(name)
            if resource is None:
                return f"needs {amount:g} of {name!r}, which this scheduler does not have"
            if not fits(amount, resource.capacity):
                return f"needs {amount:g} of {name!r}, of which there are only {resource.capacity:g}"
        group = self._groups.get(entry.options.group) if entry.options.group is not None else None
        return f"its group {group.name!r} has the limit 0" if group is not None and group.limit == 0 else None

    def demand(self, running: Iterable[Entry], limit: int) -> tuple[Shape, ...]:
        """What runs and what would run if only slots and resources were missing, at most ``limit`` in all, best first."""
        counts: dict[tuple[tuple[tuple[str, float], ...], int], int] = {}
        for entry in running:
            needs = (entry.options.resources, entry.options.memory_gate)
            counts[needs] = counts.get(needs, 0) + 1
        left = limit - sum(counts.values())
        rooms = {group.name: group.room for group in self._groups.values()}
        heads = ((track, track.head()) for track in list(self._tracks.values()))
        waiting = [] if self.paused else [(head.order, track) for track, head in heads if head is not None]
        for _, track in sorted(waiting, key=lambda item: item[0]):
            room = rooms.get(track.group, math.inf) if track.group is not None else math.inf
            count = int(min(len(track), room, max(left, 0)))
            if count:
                needs = (track.resources, track.gate)
                counts[needs] = counts.get(needs, 0) + count
                left -= count
                if track.group in rooms:
                    rooms[track.group] -= count
        return tuple(Shape(count=count, resources=resources, memory=memory) for (resources, memory), count in counts.items())

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    # -- inside

    def _set(self, entry: Entry, state: TaskState) -> None:
        self.counts[entry.state] -= 1
        self.counts[state] += 1
        entry.state = state

    def _place(self, entry: Entry, now: Now) -> None:
        """Put an entry where it belongs now."""
        if entry.needs:
            self._set(entry, _BLOCKED)
        elif entry.due is not None and entry.due > (now.wall if entry.on_wall else now.elapsed):
            heapq.heappush(self._due[entry.on_wall], (entry.due, entry.key, entry.ticket, entry))
            self._set(entry, _SCHEDULED)
        else:
            self._ready(entry)

    def _unplace(self, entry: Entry) -> None:
        """Make its place in a heap or lane void."""
        if entry.state is _QUEUED and entry.lane is not None:
            lane, entry.lane = entry.lane, None
            entry.ticket += 1
            lane.drop()
        elif entry.state is _SCHEDULED:
            entry.ticket += 1
            self._drop_due(entry.on_wall)

    def _drop_due(self, side: int) -> None:
        self._due_void[side] += 1
        heap = self._due[side]
        if self._due_void[side] > _SPARE and self._due_void[side] * 2 > len(heap):
            heap[:] = [item for item in heap if not self._is_void(item)]
            heapq.heapify(heap)
            self._due_void[side] = 0
        self._trim(side)

    def _trim(self, side: int) -> None:
        heap = self._due[side]
        while heap and self._is_void(heap[0]):
            heapq.heappop(heap)
            self._due_void[side] -= 1

    @staticmethod
    def _is_void(item: Due) -> bool:
        return item[3].ticket != item[2] or item[3].state is not _SCHEDULED

    def _promote(self, now: Now) -> None:
        """What has become due is ready."""
        for side, reading in ((0, now.elapsed), (1, now.wall)):
            heap = self._due[side]
            while heap and heap[0][0] <= reading:
                item = heapq.heappop(heap)
                if self._is_void(item):
                    self._due_void[side] -= 1
                else:
                    self._ready(item[3])
            self._trim(side)

    def _ready(self, entry: Entry) -> None:
        if entry.state is not _QUEUED:
            self._set(entry, _QUEUED)
        options = entry.options
        name = options.track
        track = self._tracks.get(name)
        if track is None:
            track = self._tracks[name] = Track(options.group, options.resources, options.memory_gate)
        order = track.push(entry)
        if not track.parked and (track.order is None or order < track.order):
            self._open_track(track, order)

    def _open_track(self, track: Track, order: Order) -> None:
        track.order = order
        self._numbers += 1
        track.stamp = self._numbers
        heapq.heappush(self._open, (order, track.stamp, track.stamp, track))

    def _reopen(self, track: Track) -> None:
        """Its first task has changed: find its place again, or close it when it is empty."""
        head = track.head()
        if head is not None:
            self._open_track(track, head.order)
        else:
            track.order = None
            track.stamp = 0
            if track is not self._plain:
                self._tracks.pop((track.group, track.resources, track.gate), None)

    def _first(self) -> Track | None:
        """The open track with the best first task."""
        while self._open:
            order, _, stamp, track = self._open[0]
            if stamp != track.stamp:
                heapq.heappop(self._open)
                continue
            head = track.head()
            if head is not None and head.order == order:
                return track
            heapq.heappop(self._open)
            self._reopen(track)
        return None

    def _admit(self, track: Track, available: float | None) -> bool:
        """Whether the track may start one; if not it is parked at what blocks it."""
        if track.group is not None and not (group := self.group(track.group)).has_room:
            self._park(track, group.parked)
            return False
        for name, amount in track.resources:
            resource = self._resources.get(name)
            if resource is None:
                resource = self._resources[name] = Resource(name, 0.0)
            if not resource.has(amount):
                self._park(track, resource.parked)
                return False
        if track.gate and available is not None and track.gate > available:
            self._park(track, self._memory_parked)
            return False
        return True

    def _park(self, track: Track, where: list[Track]) -> None:
        track.parked = True
        track.order = None
        track.stamp = 0
        where.append(track)

    def _unpark(self, track: Track) -> None:
        track.parked = False
        self._reopen(track)

    def _wake(self, parked: list[Track]) -> None:
        for track in parked:
            self._unpark(track)
        parked.clear()
