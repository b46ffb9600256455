"""Leak checks: what there is now, and what is left of what was started."""

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nbprocs.engine.child import TOKEN
from nbprocs.engine.home import HOST_THREAD, Home
from nbprocs.engine.shim import WATCHER, shims
from nbprocs.engine.table import Row, descendants, environ_value, scan

__all__ = ["Snapshot", "kept_futures", "leaked", "leaked_tasks", "nothing_left", "spare", "warm"]

_PATIENCE = 10.0  # seconds for what is already ending: a reaper thread, a closing descriptor; on a busy machine that takes a while
_FDS = Path("/proc/self/fd")
_spared: set[int] = set()


def spare(pid: int) -> None:
    """A process that is kept on purpose, such as a server for all tests, is no leak; what it starts is not excused."""
    _spared.add(pid)


def _processes(now: dict[int, Row], before: dict[int, Row]) -> list[str]:
    """The descendants that began meanwhile, zombies included, the shims not; and the strays.

    A stray carries our token and is nobody's child any more: a daemon, a grandchild in a session of its own.
    """
    new = [row for row in now.values() if (was := before.get(row.pid)) is None or was.start != row.start]
    if not new:
        return []
    ours = descendants(now, [os.getpid()])
    found = []
    for row in new:
        if row.pid in _spared or row.pid in shims.pids:
            continue
        if row.pid in ours:
            found.append(f"child {row.pid} ({row.state}): {'zombie' if row.gone else _command(row.pid)}")
        elif not row.gone and shims.token in environ_value(row.pid, TOKEN):
            found.append(f"stray {row.pid}: {_command(row.pid)}")
    return found


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:120]
    except psutil.Error:
        return "gone meanwhile"


def _threads() -> dict[int, str]:
    """Live threads of Python, except the host's and the one that watches the shims."""
    return {t.ident or 0: f"thread {t.name!r}" for t in threading.enumerate() if t.name not in (HOST_THREAD, WATCHER)}


def _descriptors() -> dict[tuple[int, str], str]:
    """Open descriptors with what they are."""
    found = {}
    excused = shims.descriptors
    for entry in _FDS.iterdir() if _FDS.exists() else ():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the listing's own
        if int(entry.name) not in excused:
            found[int(entry.name), target] = f"descriptor {entry.name} → {target}"
    return found


def _comms() -> dict[str, str]:
    """Open comms of widgets and others."""
    module = sys.modules.get("comm")
    if module is None:
        return {}
    widgets = sys.modules.get("ipywidgets.widgets.widget")
    instances = getattr(widgets, "_instances", {})
    found = module.get_comm_manager().comms
    return {key: f"comm of {type(instances[key]).__name__ if key in instances else value.target_name}" for key, value in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What there is now: processes, threads, descriptors, comms.

    Who of the processes is a descendant or carries our token is asked of those only that began after an earlier snapshot.

    nbprocs keeps some things for the whole interpreter: its shims with a socket each, the thread that watches them, and that of the
    background loop. They
    are excused; ``warm`` starts them, so that their descriptors are in the first snapshot.

    >>> before = Snapshot.take()
    >>> async with ProcessManager() as pm:
    ...     proc = await pm.spawn("sleep", "1000")
    ...     print(Snapshot.take().since(before)[0].rpartition(": ")[2])
    sleep 1000
    >>> leaked(before)
    []
    """

    processes: dict[int, Row]
    threads: dict[int, str]
    descriptors: dict[tuple[int, str], str]
    comms: dict[str, str]

    @classmethod
    def take(cls) -> "Snapshot":
        """Look at everything once; 2-5 ms where 300 processes run."""
        return cls(processes=scan(), threads=_threads(), descriptors=_descriptors(), comms=_comms())

    def since(self, before: "Snapshot") -> list[str]:
        """What is here and was not there before, a line each: children and strays, threads, descriptors, comms."""
        found = _processes(self.processes, before.processes)
        for name in ("threads", "descriptors", "comms"):
            was, now = getattr(before, name), getattr(self, name)
            found += [now[key] for key in now if key not in was]
        return found


def leaked(before: Snapshot, *, patience: float = _PATIENCE) -> list[str]:
    """What is here that was not there at a snapshot, a line each; what is just ending has ``patience`` seconds to end, and blocks so long.

    >>> leaked(Snapshot.take())
    []
    """
    deadline = time.monotonic() + patience
    if not Snapshot.take().since(before):
        return []
    gc.collect()  # sockets in reference cycles are closed by it; a ResourceWarning then says so by itself
    while (found := Snapshot.take().since(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


async def leaked_tasks(before: set["asyncio.Task[object]"], *, patience: float = _PATIENCE) -> list[str]:
    """The tasks of this loop that were not there before and do not end by themselves within ``patience`` seconds.

    >>> await leaked_tasks(asyncio.all_tasks())
    []
    """
    extra = asyncio.all_tasks() - before - {asyncio.current_task()}
    if extra:
        await asyncio.wait(extra, timeout=patience)
    return [f"task {task.get_name()!r}: {task.get_coro()}" for task in extra if not task.done()]


@contextlib.contextmanager
def kept_futures() -> Iterator[Callable[..., int]]:
    """Count the futures of the running loop that are made inside: how many of them are done and still held, by a list of waiters say.

    The garbage is collected first where ``more_than`` so many (0 unless given) seem to be held: that takes 0.1 s in a large interpreter.

    >>> with kept_futures() as count:
    ...     kept = [asyncio.get_running_loop().create_future() for _ in range(100)]
    ...     for future in kept:
    ...         _ = future.cancel()
    ...     print(count())
    100
    """
    loop, made = asyncio.get_running_loop(), weakref.WeakSet[asyncio.Future[Any]]()
    usual = loop.create_future

    def create_future() -> asyncio.Future[Any]:
        future = usual()
        made.add(future)
        return future

    def count(*, more_than: int = 0) -> int:
        if (number := sum(future.done() for future in made)) <= more_than:
            return number
        gc.collect()
        return sum(future.done() for future in made)

    loop.create_future = create_future  # type: ignore[method-assign]  # for as long as it is counted
    try:
        yield count
    finally:
        loop.create_future = usual  # type: ignore[method-assign]


def warm() -> None:
    """Start what nbprocs keeps for the whole interpreter, so that every snapshot from now on holds it."""
    Home.background()
    shims.ensure()


@contextlib.contextmanager
def nothing_left(*, patience: float = _PATIENCE) -> Iterator[None]:
    """Raise AssertionError, naming each, if anything is left of what was started inside; see Snapshot for what is looked at.

    What is just ending has ``patience`` seconds to end, and blocks so long.

    >>> with nothing_left():
    ...     async with ProcessManager() as pm:
    ...         proc = await pm.spawn("sleep", "1000")
    """
    warm()
    before = Snapshot.take()
    yield
    if found := leaked(before, patience=patience):
        raise AssertionError("left behind:\n  " + "\n  ".join(found))
