"""Readiness of many descriptors for the price of one: an epoll of our own, watched by the loop as a single reader.

``loop.add_reader`` makes a handle, looks the descriptor up three times, and is undone again, for each of a child's three descriptors: a
tenth of a millisecond a child. Here a descriptor is one ``epoll_ctl`` and a dictionary entry. Where there is no epoll, add_reader does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import weakref
from collections.abc import Callable
from typing import Protocol

__all__ = ["Nursery", "Poller", "nursery_of", "poller_of"]

Callback = Callable[[int], object]
_AT_ONCE = 4  # descriptors a turn of the loop
_YOUTH = 0.002  # seconds
_IN_A_ROW = 4  # calls for the only one that is ready, while it says that there may be more


class Poller(Protocol):
    """What can tell when a descriptor becomes readable."""

    def add(self, fd: int, callback: Callback) -> None:
        """Call back with the descriptor whenever it is readable; its answer True means that there may be more. Raises OSError."""

    def close(self, fd: int) -> None:
        """Forget a descriptor, if it was added, and close it."""

    def abandon(self) -> None:
        """The loop is closed or gone: give back what was kept for it."""


class _Epoll:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._of = weakref.ref(loop)  # kept by loop in a table: a strong reference would keep every loop for ever
        self._epoll: select.epoll | None = None
        self._callbacks: dict[int, Callback] = {}

    def add(self, fd: int, callback: Callback) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop().add_reader(self._epoll.fileno(), self._ready)
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def close(self, fd: int) -> None:
        known = self._callbacks.pop(fd, None)
        if known is not None and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)  # somebody may hold a copy of the descriptor, and the copy would go on reporting
        os.close(fd)
        if not self._callbacks and self._epoll is not None:  # an idle loop holds nothing of ours
            self._loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def abandon(self) -> None:
        self._callbacks.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = self._of()
        assert loop is not None  # noqa: S101 - it is running us
        return loop

    def _ready(self) -> None:
        if self._epoll is None:
            return
        ready = self._epoll.poll(0, _AT_ONCE)  # the rest comes in the next turn: others live on this loop too
        if len(ready) == 1:
            fd = ready[0][0]
            for _ in range(_IN_A_ROW):  # nobody else of ours waits
                callback = self._callbacks.get(fd)
                if callback is None or not callback(fd):
                    return
            return
        for fd, _ in ready:
            callback = self._callbacks.get(fd)  # closed by a callback before it in this round
            if callback is not None:
                callback(fd)


class _Readers:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def add(self, fd: int, callback: Callback) -> None:
        self._loop.add_reader(fd, callback, fd)

    def close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)

    def abandon(self) -> None:
        """Nothing is kept."""


class Nursery:
    """Children too young to be worth an epoll: one that ends within some milliseconds is read once, at its end."""

    def __init__(self) -> None:
        self._young: list[Callable[[], object]] = []
        self._since: list[Callable[[], object]] = []

    def add(self, grown: Callable[[], object]) -> None:
        """Call it when two to four milliseconds have gone by. Only on the running loop."""
        if not self._young and not self._since:
            asyncio.get_running_loop().call_later(_YOUTH, self._turn)
        self._young.append(grown)

    def _turn(self) -> None:
        grown, self._since, self._young = self._since, self._young, []
        if self._since:
            asyncio.get_running_loop().call_later(_YOUTH, self._turn)
        for callback in grown:
            callback()


_nurseries: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Nursery] = weakref.WeakKeyDictionary()


def nursery_of(loop: asyncio.AbstractEventLoop) -> Nursery:
    """The nursery of a loop; made when it is first asked for."""
    nursery = _nurseries.get(loop)
    if nursery is None:
        nursery = _nurseries[loop] = Nursery()
    return nursery


_epolls: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Epoll] = weakref.WeakKeyDictionary()


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """The poller of a loop; made when it is first asked for."""
    if not hasattr(select, "epoll"):
        return _Readers(loop)
    poller = _epolls.get(loop)
    if poller is None:
        poller = _epolls[loop] = _Epoll(loop)
    return poller
