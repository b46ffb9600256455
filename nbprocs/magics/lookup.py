"""Processes by name, of whichever manager of this kernel: the default one first, then the others, the youngest first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from IPython.core.error import UsageError

from nbprocs.engine.home import Tasks
from nbprocs.engine.owners import managers
from nbprocs.errors import UnknownProcess
from nbprocs.model import ProcessInfo
from nbprocs.processes.default import default_manager
from nbprocs.processes.manager import ProcessManager, manager_core

__all__ = ["NoSuchProcess", "act", "all_managers", "find", "known"]

T = TypeVar("T")


class NoSuchProcess(UsageError, UnknownProcess):
    """A magic was given the name of no process."""


def all_managers() -> list[ProcessManager]:
    """The default manager, and the others of this kernel that are open."""
    first = default_manager()
    return [first, *(owner for owner in reversed(managers()) if isinstance(owner, ProcessManager) and owner is not first)]


def known(*, live: bool = False) -> Iterator[tuple[ProcessManager, ProcessInfo]]:
    """Every process of every manager, or the live ones."""
    for manager in all_managers():
        for info in manager.list():
            if info.status.live or not live:
                yield manager, info


def find(name: str) -> ProcessManager:
    """The manager of the process with that name or id: one where it is alive, else one that remembers it. Raises NoSuchProcess."""
    having = [manager for manager in all_managers() if name in manager]
    for manager in having:
        if manager[name].status.live:
            return manager
    if having:
        return having[0]
    names = ", ".join(dict.fromkeys(info.name for _, info in known())) or "none"
    msg = f"no process is called {name!r}; there are: {names}"
    raise NoSuchProcess(msg)


def act(manager: ProcessManager, make: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """Do it on the manager's loop and wait; None where that is this thread's own loop, which can't be waited for: it goes on by itself."""
    home = manager_core(manager).home
    if home.here:
        Tasks(home).start(make(), name="a line magic")
        return None
    return asyncio.run_coroutine_threadsafe(make(), home.loop).result()
