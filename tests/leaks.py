"""What a test must not leave behind: children, zombies, threads, descriptors, comms, tasks; each reported by name.

A snapshot is taken before the test; afterwards everything that was not there is a leak, unless nbprocs keeps it once for the whole interpreter: the
leash process with its pipe and table, and the background host thread with its loop. Both are started before the first snapshot (``warm``), so they
are part of it; the leash is excused by name as well, because a test may kill it and have it replaced.
"""

import asyncio
import gc
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 2.0  # seconds for what is already ending: a reaper thread, a closing descriptor
HOST_THREAD = "nbprocs-host"
FDS = Path("/proc/self/fd")
KEPT: set[int] = set()  # processes that a fixture of the session keeps, such as a Jupyter server; what they start is not excused


def _leash() -> Any:
    module = sys.modules.get("nbprocs.engine.leash")
    return None if module is None else module.leash


def children() -> dict[tuple[int, float], str]:
    """All descendants, zombies included, except the leash."""
    found = {}
    leash = _leash()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.pid in KEPT or (leash is not None and child.pid == leash.pid):
                continue
            state = child.status()
            command = "zombie" if state == psutil.STATUS_ZOMBIE else " ".join(child.cmdline())[:120]
            found[child.pid, child.create_time()] = f"child {child.pid} ({state}): {command}"
        except psutil.NoSuchProcess:
            continue
    return found


def strays() -> dict[tuple[int, float], str]:
    """Processes that carry our token but are nobody's children any more: daemons, grandchildren in a session of their own."""
    found: dict[tuple[int, float], str] = {}
    leash = _leash()
    if leash is None:
        return found
    needle, me = leash.token.encode(), os.getpid()
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


def threads() -> dict[int, str]:
    """Live threads of Python, except the host's."""
    return {t.ident or 0: f"thread {t.name!r}" for t in threading.enumerate() if t.name != HOST_THREAD}


def descriptors() -> dict[tuple[int, str], str]:
    """Open descriptors with what they are."""
    found = {}
    leash = _leash()
    excused = set() if leash is None else {leash._pipe, leash._table}
    for entry in FDS.iterdir() if FDS.exists() else ():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the listing's own
        if int(entry.name) not in excused:
            found[int(entry.name), target] = f"descriptor {entry.name} → {target}"
    return found


def comms() -> dict[str, str]:
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
    """What there is now."""

    children: dict[tuple[int, float], str]
    strays: dict[tuple[int, float], str]
    threads: dict[int, str]
    descriptors: dict[tuple[int, str], str]
    comms: dict[str, str]

    @classmethod
    def take(cls) -> "Snapshot":
        """Look at everything once."""
        return cls(children=children(), strays=strays(), threads=threads(), descriptors=descriptors(), comms=comms())

    def since(self, before: "Snapshot") -> list[str]:
        """What is here and was not there before."""
        found = []
        for name in ("children", "strays", "threads", "descriptors", "comms"):
            was, now = getattr(before, name), getattr(self, name)
            found += [now[key] for key in now if key not in was]
        return found


def leaked(before: Snapshot, *, patience: float = PATIENCE) -> list[str]:
    """The leaks since a snapshot, after those that are just ending had the time to end."""
    deadline = time.monotonic() + patience
    found = Snapshot.take().since(before)
    if found:
        gc.collect()  # sockets in reference cycles are closed by it; a ResourceWarning then says so by itself
    while (found := Snapshot.take().since(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


async def leaked_tasks(before: set["asyncio.Task[object]"], *, patience: float = PATIENCE) -> list[str]:
    """The tasks of this loop that were not there before and do not end by themselves."""
    extra = asyncio.all_tasks() - before - {asyncio.current_task()}
    if extra:
        await asyncio.wait(extra, timeout=patience)
    return [f"task {task.get_name()!r}: {task.get_coro()}" for task in extra if not task.done()]


def warm() -> None:
    """Start what nbprocs keeps for the whole interpreter, so that every snapshot holds it."""
    from nbprocs.engine.home import Home
    from nbprocs.engine.leash import leash

    Home.background()
    leash.ensure()
