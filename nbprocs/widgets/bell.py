"""The bell of a row and of a pane: tell me when it is done.

A bell belongs to a process, not to a view: the table and every pane, in all windows, show the same one. It rings once, through
``nbprocs.notify``, and not where ``notify=`` tells of that end in the notebook already.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any, Protocol

from nbprocs.config import ProcessConfig
from nbprocs.engine.home import Tasks
from nbprocs.errors import Closed
from nbprocs.model import ProcessInfo
from nbprocs.notify import Notify
from nbprocs.processes.core import ProcessCore
from nbprocs.processes.notices import ended, tell_end
from nbprocs.processes.process import process_core
from nbprocs.widgets.wire import Refused

__all__ = ["Hears", "hear", "ring", "rung"]


class _Bell:
    """Held by its process, as a callback of its end."""

    def __init__(self) -> None:
        self.asked = True

    def end(self, core: ProcessCore) -> None:
        notify, result = core.config.notify, core.result
        if not self.asked or result is None:
            return
        if notify is None or not notify.notebook or not notify.wants(ended(result, lines=0)):
            tell_end(result, Notify(), tasks=Tasks(core.home))


_bells: weakref.WeakValueDictionary[str, _Bell] = weakref.WeakValueDictionary()  # by the process's id


def _given(config: ProcessConfig) -> bool:
    return config.notify is not None and config.notify.notebook and not config.notify.failures_only


def rung(info: ProcessInfo) -> bool:
    """Whether its end will be told in the notebook."""
    bell = _bells.get(info.id)
    return info.status.live and (_given(info.config) or (bell is not None and bell.asked))


def ring(process: Any, *, on: bool) -> None:
    """Tell of its end, or not. On its home loop. Raises Refused where it has ended, or where ``notify=`` has promised it."""
    core = process_core(process)
    if not core.status.live:
        msg = f"{core.name} has ended"
        raise Refused(msg)
    if not on and _given(core.config):
        msg = f"{core.name} was started with notify=, which is not taken back here"
        raise Refused(msg)
    bell = _bells.get(core.id)
    if bell is not None:
        bell.asked = on
    elif on:
        bell = _bells[core.id] = _Bell()
        core.add_done_callback(bell.end)
    with _lock:
        parts = list(_hearing)
    for part in parts:
        with contextlib.suppress(Closed):  # a view that outlived its loop
            part.bell_changed(core.id)


class Hears(Protocol):
    """A part that shows bells."""

    def bell_changed(self, process_id: str) -> None:
        """The bell of that process was set or taken back. On the thread where that was done."""


_hearing: weakref.WeakSet[Hears] = weakref.WeakSet()  # weak: a view that nobody closes is freed with its model
_lock = threading.Lock()


def hear(part: Hears, *, on: bool) -> None:
    """Tell that part of changes, or no more."""
    with _lock:
        (_hearing.add if on else _hearing.discard)(part)
