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

from nbprocs.engine.home import HOST_THREAD, Home
from nbprocs.engine.shim import WATCHER, shims

__all__ = ["Snapshot", "kept_futures", "leaked", "leaked_tasks", "nothing_left", "spare", "warm"]

_PATIENCE = 2.0  # seconds for what is already ending: a reaper thread, a closing descriptor
_FDS = Path("/proc/self/fd")
_spared: set[int] = set()


def spare(pid: int) -> None:
    """A process that is kept on purpose, such as a server for all tests, is no leak; what it starts is not excused."""
    _spared.add(pid)


def _children() -> dict[tuple[int, float], str]:
    """All descendants, zombies included, except the shims."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if child.pid in _spared or child.pid in shims.pids:
                continue
            state = child.status()
            command = "zombie" if state == psutil.STATUS_ZOMBIE else " ".join(child.cmdline())[:120]
            found[child.pid, child.create_time()] = f"child {child.pid} ({state}): {command}"
        except psutil.NoSuchProcess:
            continue
    return found


def _strays() -> dict[tuple[int, float], str]:
    """Processes that carry our token but are nobody's children any more: daemons, grandchildren in a session of their own."""
    found: dict[tuple[int, float], str] = {}
    needle, me = shims.token.encode(), os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == me:
            continue
        try:
            if needle in (folder / "environ").read_bytes():
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[pid, process.create_time()] = f"stray {pid}: {' '.join(process.cmdline())[:120]}"
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


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
    """What there is now: descendants, zombies included; processes that carry our token; threads; descriptors; comms.

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

    children: dict[tuple[int, float], str]
    strays: dict[tuple[int, float], str]
    threads: dict[int, str]
    descriptors: dict[tuple[int, str], str]
    comms: dict[str, str]

    @classmethod
    def take(cls) -> "Snapshot":
        """Look at everything once."""
        return cls(children=_children(), strays=_strays(), threads=_threads(), descriptors=_descriptors(), comms=_comms())

    def since(self, before: "Snapshot") -> list[str]:
        """What is here and was not there before."""
        found = []
        for name in ("children", "strays", "threads", "descriptors", "comms"):
            was, now = getattr(before, name), getattr(self, name)
            found += [now[key] for key in now if key not in was]
        return found


def leaked(before: Snapshot, *, patience: float = _PATIENCE) -> list[str]:
    """What is here that was not there at a snapshot, a line each; what is just ending has ``patience`` seconds to end, and blocks so long.

    >>> leaked(Snapshot.take())
    []
    """
    deadline = time.monotonic() + patience
    found = Snapshot.take().since(before)
    if found:
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
def kept_futures() -> Iterator[Callable[[], int]]:
    """Count the futures of the running loop that are made inside: how many of them are done and still held, by a list of waiters say.

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

    def count() -> int:
        if sum(future.done() for future in made):
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
