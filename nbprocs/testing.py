"""Helpers for testing code that uses nbprocs: a clock that moves when told, waits that take no time, chaos, and leak checks.

Nothing in the package uses them; its own tests do.
"""

import asyncio
import contextlib
import fnmatch
import gc
import heapq
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from nbprocs.engine.home import HOST_THREAD, Home
from nbprocs.engine.leash import leash
from nbprocs.errors import CommunicationError
from nbprocs.manager import ProcessManager
from nbprocs.model import ProcessStatus
from nbprocs.policy.waits import instant_waits

__all__ = ["FakeClock", "Kill", "Snapshot", "chaos", "instant_waits", "leaked", "leaked_tasks", "nothing_left", "spare", "warm"]

_DEADLY = tuple(getattr(signal, name) for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM") if hasattr(signal, name))

# --- clocks and waits ---------------------------------------------------------------------------------------------------


class FakeClock:
    """A monotonic clock that moves only when told. Call it for the time; give its ``sleep`` where code takes one.

    >>> clock = FakeClock(100.0)
    >>> clock.advance(2.5)
    >>> clock()
    102.5
    """

    def __init__(self, start: float = 0.0) -> None:
        """Start at a time, in seconds."""
        self.now = start
        self.slept: list[float] = []  # what was asked of sleep(), in order
        self._sleepers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on; everybody whose time has come is woken, earliest first, at its own time."""
        until = self.now + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, wake = heapq.heappop(self._sleepers)
            self.now = max(self.now, at)
            wake()
        self.now = until

    def call_later(self, delay: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call it when the clock has moved by ``delay`` seconds; returns what cancels it. Like a loop's ``call_later``."""
        entry = (self.now + delay, next(self._order), callback)
        heapq.heappush(self._sleepers, entry)

        def cancel() -> None:
            if entry in self._sleepers:
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

        return cancel

    async def sleep(self, delay: float) -> None:
        """Wait until ``advance`` has moved the clock by ``delay`` seconds."""
        self.slept.append(delay)
        if delay <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        cancel = self.call_later(delay, woken.set)
        try:
            await woken.wait()
        finally:
            cancel()


# --- chaos ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One blow of ``chaos``.

    >>> Kill(at=0.0, name="web", process_id="1", signal=9).signal
    9
    """

    at: float  # time.monotonic()
    name: str
    process_id: str
    signal: int


async def chaos(
    manager: ProcessManager,
    *,
    seconds: float,
    every: float = 0.02,
    pattern: str = "*",
    signals: Sequence[int] = _DEADLY,
    rng: random.Random | None = None,
) -> tuple[Kill, ...]:
    """Send a deadly signal to a random live process of a manager, again and again, from outside of all supervision.

    Args:
        manager: whose processes.
        seconds: how long it goes on; it returns then.
        every: mean seconds between two blows; the pauses are exponentially distributed, so that some fall together.
        pattern: of the names that may be hit (``fnmatch``).
        signals: one of them is taken each time; by default SIGKILL, SIGSEGV, SIGABRT and SIGTERM.
        rng: the source of chance; pass a seeded one to repeat a run.

    Returns every blow, in order.

    >>> async with ProcessManager() as pm:
    ...     proc = await pm.spawn("sleep", "1000")
    ...     kills = await chaos(pm, seconds=0.1, every=0.01)
    ...     result = await proc.wait()
    >>> len(kills) >= 1, result.signal is not None
    (True, True)
    """
    chance = rng or random.Random()  # noqa: S311 - chooses victims, keeps no secret
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    kills = []
    while (left := until - loop.time()) > 0:
        victims = [p for p in manager.processes() if p.status is ProcessStatus.RUNNING and fnmatch.fnmatchcase(p.name, pattern)]
        if victims:
            victim, number = chance.choice(victims), chance.choice(signals)
            with contextlib.suppress(CommunicationError):  # it has ended just now
                victim.send_signal(number)
                kills.append(Kill(at=time.monotonic(), name=victim.name, process_id=victim.id, signal=number))
        await asyncio.sleep(min(left, chance.expovariate(1 / every)))
    return tuple(kills)


# --- leaks ----------------------------------------------------------------------------------------------------------------

_PATIENCE = 2.0  # seconds for what is already ending: a reaper thread, a closing descriptor
_FDS = Path("/proc/self/fd")
_spared: set[int] = set()


def spare(pid: int) -> None:
    """A process that is kept on purpose, such as a server for all tests, is no leak; what it starts is not excused."""
    _spared.add(pid)


def _children() -> dict[tuple[int, float], str]:
    """All descendants, zombies included, except the leash."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if child.pid in _spared or child.pid == leash.pid:
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


def _threads() -> dict[int, str]:
    """Live threads of Python, except the host's."""
    return {t.ident or 0: f"thread {t.name!r}" for t in threading.enumerate() if t.name != HOST_THREAD}


def _descriptors() -> dict[tuple[int, str], str]:
    """Open descriptors with what they are."""
    found = {}
    excused = leash.descriptors
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

    nbprocs keeps three things for the whole interpreter: the leash with its pipe and table, and the thread of the background loop. They
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


def warm() -> None:
    """Start what nbprocs keeps for the whole interpreter, so that every snapshot from now on holds it."""
    Home.background()
    leash.ensure()


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
