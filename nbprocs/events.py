"""The event stream of a manager: who hears what happens to processes. Nobody polls for state."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from nbprocs.engine.home import Home, hops, log
from nbprocs.model import EventKind, ProcessEvent

__all__ = ["EventStream", "Subscriber"]

Subscriber = Callable[[ProcessEvent], object]
BACKLOG = 100_000  # events that a slow reader of stream() may be behind


class _Queue:
    """What one reader of the stream has not read yet."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._events: deque[ProcessEvent] = deque(maxlen=BACKLOG)
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: ProcessEvent) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @hops
    async def get(self) -> ProcessEvent:
        while not self._events:
            self._waiter = self.home.loop.create_future()
            await self._waiter
        return self._events.popleft()


class EventStream:
    """Subscribers by number. Publishing happens on the home loop; subscribing anywhere."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._everything: dict[int, Subscriber] = {}
        self._output: dict[int, Subscriber] = {}
        self._count = 0

    def subscribe(self, callback: Subscriber, *, output: bool) -> Callable[[], None]:
        """Add a subscriber; returns what removes it, idempotent."""
        self._count += 1
        key = self._count
        self._everything = {**self._everything, key: callback}  # replaced, not changed: a publish may be going through it
        if output:
            self._output = {**self._output, key: callback}

        def unsubscribe() -> None:
            self._everything = {k: v for k, v in self._everything.items() if k != key}
            self._output = {k: v for k, v in self._output.items() if k != key}

        return unsubscribe

    async def stream(self, *, output: bool) -> AsyncIterator[ProcessEvent]:
        """Events from now on, until CLOSED; on any loop."""
        queue = _Queue(self._home)
        unsubscribe = self.subscribe(queue.put, output=output)
        try:
            while True:
                event = await queue.get()
                yield event
                if event.kind is EventKind.CLOSED:
                    return
        finally:
            unsubscribe()

    def heard_by_nobody(self, kind: EventKind) -> bool:
        """Whether an event of that kind need not even be made."""
        return not (self._output if kind is EventKind.OUTPUT else self._everything)

    def publish(self, event: ProcessEvent) -> None:
        """Tell the subscribers."""
        for callback in (self._output if event.kind is EventKind.OUTPUT else self._everything).values():
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - a stranger's callback must not keep the others from hearing
                log.exception("a subscriber of the process events failed")
