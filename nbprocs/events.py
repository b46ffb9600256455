"""The event stream of a manager: who hears what happens to processes. Nobody polls for state."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from nbprocs.engine.home import Home, hops, log
from nbprocs.engine.output import wake
from nbprocs.model import EventKind, ProcessEvent

__all__ = ["EventStream", "Subscriber"]

Subscriber = Callable[[ProcessEvent], object]
BACKLOG = 100_000  # events that a slow reader of stream() may be behind


class _Reader:
    """One reader of the stream: an async iterator, subscribed from the moment it is made until it is closed."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.unsubscribe: Callable[[], None] = lambda: None
        self._events: deque[ProcessEvent] = deque(maxlen=BACKLOG)
        self._waiters: list[asyncio.Future[None]] = []
        self._over = False

    def put(self, event: ProcessEvent) -> None:
        self._events.append(event)
        wake(self._waiters)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProcessEvent:
        while not self._over:
            try:
                event = self._events.popleft()  # on the caller's side of the hop: a cancelled wait must lose nothing
            except IndexError:
                await self._more()
                continue
            if event.kind is EventKind.CLOSED:
                await self.aclose()
            return event
        raise StopAsyncIteration

    @hops
    async def _more(self) -> None:
        if not self._events:
            waiter = self.home.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    async def aclose(self) -> None:
        """Read no more. Idempotent."""
        self._over = True
        self.unsubscribe()


class EventStream:
    """Subscribers by number. Publishing happens on the home loop; subscribing anywhere."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._everything: dict[int, Subscriber] = {}
        self._output: dict[int, Subscriber] = {}
        self._count = 0
        self._lock = threading.Lock()

    def subscribe(self, callback: Subscriber, *, output: bool) -> Callable[[], None]:
        """Add a subscriber; returns what removes it, idempotent."""
        with self._lock:
            self._count += 1
            key = self._count
            self._everything = {**self._everything, key: callback}  # replaced, not changed: a publish may be going through it
            if output:
                self._output = {**self._output, key: callback}

        def unsubscribe() -> None:
            with self._lock:
                self._everything = {k: v for k, v in self._everything.items() if k != key}
                self._output = {k: v for k, v in self._output.items() if k != key}

        return unsubscribe

    def stream(self, *, output: bool) -> AsyncIterator[ProcessEvent]:
        """Events from now on, until CLOSED; on any loop. Close it (``contextlib.aclosing``) when it is left before the end."""
        reader = _Reader(self._home)
        reader.unsubscribe = self.subscribe(reader.put, output=output)
        return reader

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
