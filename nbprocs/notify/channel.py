"""The notebook's channel: who listens for notices, on any thread. A notice that nobody hears is kept for a day."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from nbprocs.guard import call
from nbprocs.notify.model import Notice

__all__ = ["listen", "publish", "recent"]

KEPT = 100  # notices
UNHEARD = 86_400.0  # seconds for which one that nobody heard is told to who comes later: a page can be kept waiting by a cell for hours

_lock = threading.Lock()
_listeners: dict[object, Callable[[Notice], object]] = {}
_recent: deque[Notice] = deque(maxlen=KEPT)
_unheard: deque[Notice] = deque(maxlen=KEPT)


def listen(callback: Callable[[Notice], object]) -> Callable[[], None]:
    """Call it with every notice from now on, on the thread where it comes up; returns what ends that, idempotent.

    The first listener is told at once what nobody heard in the last day.

    >>> heard = []
    >>> end = listen(heard.append)
    >>> publish(Notice(title="done", level="success", process_id="1")); end()
    >>> heard[-1].title
    'done'
    """
    key = object()
    with _lock:
        _listeners[key] = callback
        missed = [notice for notice in _unheard if notice.at > time.time() - UNHEARD]
        _unheard.clear()
    for notice in missed:
        call("a listener of notices", callback, notice)

    def end() -> None:
        with _lock:
            _listeners.pop(key, None)

    return end


def publish(notice: Notice) -> None:
    """Tell all who listen. Thread-safe; raises nothing."""
    with _lock:
        _recent.append(notice)
        listeners = list(_listeners.values())
        if not listeners:
            _unheard.append(notice)
    for callback in listeners:
        call("a listener of notices", callback, notice)


def recent() -> tuple[Notice, ...]:
    """The last hundred notices, oldest first."""
    with _lock:
        return tuple(_recent)
