"""How many tasks may run: as many as were asked for, and no more than the backend can run at this moment."""

import sys

from nbprocs.scheduler.backend import Backend, Capacity, Elastic
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.queue import TaskQueue

__all__ = ["Room"]


class Room:
    """Keeps the queue's limits in step with the backend's capacity, and tells an elastic backend what is asked of it."""

    def __init__(self, backend: Backend, queue: TaskQueue, asked: int | None) -> None:
        self._backend = backend
        self._queue = queue
        self._asked = asked
        self._given: set[str] = set()  # resources that are the backend's, not the config's
        self._told: object = None
        self.capacity: Capacity = Capacity(slots=0)
        self.read()

    def read(self) -> None:
        """Take over what the backend can run now."""
        capacity = self.capacity = self._backend.capacity()
        self._queue.elastic = capacity.elastic
        self._queue.limit(capacity.slots if self._asked is None else min(self._asked, capacity.slots))
        for name in self._given:
            self._queue.set_resource(name, capacity.resources.get(name, 0.0))

    def ask(self, limit: int | None) -> None:
        """Another number of tasks at a time; None: the backend's."""
        self._asked = limit
        self.read()

    def declare(self, name: str) -> None:
        """What the backend has by itself, such as ``gpu``, need not be declared: it is there from its first use on."""
        resources = self.capacity.resources
        known = {r.name for r in self._queue.resources()}
        if name not in known and (name in resources or self.capacity.elastic):
            self._given.add(name)
            self._queue.set_resource(name, resources.get(name, 0.0))

    def demand(self, running: list[Entry], *, idle: bool) -> None:
        """Tell an elastic backend what would run if there were room, when that has changed."""
        if isinstance(self._backend, Elastic):
            limit = sys.maxsize if self._asked is None else self._asked
            shapes = self._queue.demand(running, len(running) if idle else limit)
            if shapes != self._told:
                self._told = shapes
                self._backend.demand(shapes)

    def waits_for(self) -> str:
        """What a task waits for where the backend has no slot; "" where it has."""
        full = len(self._queue) and self._queue.max_running == self.capacity.slots
        return self.capacity.why if full else ""
