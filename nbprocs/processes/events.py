"""Who hears what happens: subscribers of any kind of news, and the event stream of a manager. Nobody polls for state."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, ParamSpec, Self

from nbprocs.engine.home import Home, hops
from nbprocs.engine.waiting import Waiters
from nbprocs.guard import call
from nbprocs.model import EventKind, ProcessEvent

__all__ = ["EventStream", "Subscriber", "Subscribers"]

P = ParamSpec("P")
Subscriber = Callable[[ProcessEvent], object]
BACKLOG = 100_000  # events that a slow reader of stream() may be behind


class Subscribers(Generic[P]):
    """Callbacks that are told one after the other; what one of them raises is logged and harms nobody. Add and remove from any thread.

    >>> heard = []
    >>> news = Subscribers("the news")
    >>> remove = news.add(heard.append)
    >>> news.tell("first"); remove(); news.tell("second")
    >>> heard
    ['first']
    """

    __slots__ = ("_callbacks", "_lock", "_of")

    def __init__(self, of: str) -> None:
        """``of`` what, for the log."""
        self._of = of
        self._callbacks: dict[object, Callable[P, object]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._callbacks)

    def add(self, callback: Callable[P, object]) -> Callable[[], None]:
        """Tell it from now on; returns what ends that, idempotent."""
        key = object()
        with self._lock:
            self._callbacks = {**self._callbacks, key: callback}  # replaced, not changed: tell() may be going through it

        def remove() -> None:
            with self._lock:
                self._callbacks = {k: v for k, v in self._callbacks.items() if k is not key}

        return remove

    def tell(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call them all."""
        for callback in self._callbacks.values():
            call(f"a subscriber of {self._of}", callback, *args, **kwargs)


class _Reader:
    """One reader of the stream: an async iterator, subscribed from the moment it is made until it is closed."""

    def __init__(self, home: Home, *, over: bool) -> None:
        self.home = home
        self.unsubscribe: Callable[[], None] = lambda: None
        self._events: deque[ProcessEvent] = deque(maxlen=BACKLOG)
        self._waiters: Waiters[None] = Waiters()
        self._over = over

    def put(self, event: ProcessEvent) -> None:
        self._events.append(event)
        self._waiters.wake(None)

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
            await self._waiters.wait()

    async def aclose(self) -> None:
        """Read no more. Idempotent."""
        self._over = True
        self.unsubscribe()


class EventStream:
    """The events of a manager: who hears them. Publishing happens on the home loop; subscribing anywhere."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._over = False
        self._everything: Subscribers[[ProcessEvent]] = Subscribers("the process events")
        self._output: Subscribers[[ProcessEvent]] = Subscribers("the process events")

    def subscribe(self, callback: Subscriber, *, output: bool) -> Callable[[], None]:
        """Add a subscriber; returns what removes it, idempotent."""
        removes = [self._everything.add(callback), *([self._output.add(callback)] if output else [])]

        def unsubscribe() -> None:
            for remove in removes:
                remove()

        return unsubscribe

    def stream(self, *, output: bool) -> AsyncIterator[ProcessEvent]:
        """Events from now on, until CLOSED; on any loop. Close it (``contextlib.aclosing``) when it is left before the end."""
        reader = _Reader(self._home, over=self._over)
        reader.unsubscribe = self.subscribe(reader.put, output=output)
        return reader

    def heard_by_nobody(self, kind: EventKind) -> bool:
        """Whether an event of that kind need not even be made."""
        return not (self._output if kind is EventKind.OUTPUT else self._everything)

    def publish(self, event: ProcessEvent) -> None:
        """Tell the subscribers."""
        self._over = self._over or event.kind is EventKind.CLOSED
        (self._output if event.kind is EventKind.OUTPUT else self._everything).tell(event)
