"""The loop an object lives on: hopping to it, owned tasks, the heartbeat, and the background host.

::

      a cell, a subshell thread, a worker thread          the home loop
      ────────────────────────────────────────            ─────────────
      await pm.run(…)  ──@hops──►  Home.hop  ──────────►  the method itself, in a task
             │                                                  │
        heartbeat on the caller's loop                     Tasks: owned, named, failures logged

Every stateful object has one home loop and touches its state only there. This is the only module that creates tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from nbprocs.errors import Closed
from nbprocs.guard import told

__all__ = ["HOST_THREAD", "Home", "Tasks", "home_of", "hops", "hops_or_undo", "log"]

log: logging.Logger = logging.getLogger("nbprocs")

HOST_THREAD = "nbprocs-host"
BEAT = 0.2  # seconds; a Jupyter interrupt is noticed only when the loop wakes, so it must wake by itself
LATE = 2.0  # seconds; a loop found later than this was blocked, and the user is told

P = ParamSpec("P")
T = TypeVar("T")


S = TypeVar("S")


class _Here(threading.local):
    home: Home | None = None


_here = _Here()
_homes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Home] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Home:
    """One event loop as a place to live.

    Also the loop's heartbeat: while anybody holds it (``with home:``), a timer wakes the loop every 200 ms, so that an interrupt
    is noticed. ``watch`` additionally has lateness reported, once: for loops that own live processes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The table of homes is keyed by loop: a strong reference would keep every loop for ever.
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] = weakref.ref(loop)
        self.thread_id: int = threading.get_ident()
        self._holders = 0
        self._watchers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._told = False
        self.latest: float = 0.0  # seconds: the worst lateness seen while watched

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop. Raises Closed once it is gone."""
        loop = self._loop()
        if loop is None:
            raise _gone()
        return loop

    def reach(self) -> asyncio.AbstractEventLoop:
        """The loop, for who waits for it on another thread. Raises Closed where it will never answer.

        That is: it is closed; the interpreter is ending, which stops all threads but the main one; this is a fork of the loop's process.
        """
        loop = self._loop()
        if loop is None or loop.is_closed() or (sys.is_finalizing() and not self.here):
            raise _gone()
        return loop

    def leave_to_parent(self) -> None:
        """In a forked child: a loop of another thread, or the one that was running, is here only in name."""
        loop = self._loop()
        if loop is None or threading.get_ident() != self.thread_id or loop.is_running():
            self._loop = _nowhere

    @classmethod
    def current(cls) -> Home:
        """The home of the running loop. Raises RuntimeError, with the cure, where none runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            msg = (
                "no asyncio loop is running here; create it in a cell or a coroutine, or with background=True (trio: run_sync in a thread)"
            )
            raise RuntimeError(msg) from None
        home = _here.home
        if home is not None and home._loop() is loop:  # noqa: SLF001 - its own class
            return home
        with _lock:
            home = _homes.get(loop)
            if home is None:
                home = _homes[loop] = cls(loop)
        home.thread_id = threading.get_ident()
        _here.home = home
        return home

    @classmethod
    def background(cls) -> Home:
        """The home in a thread of its own, shared by all that ask; started on first use (a few milliseconds)."""
        return _host.start()

    @property
    def here(self) -> bool:
        """True when called on the home loop's own thread."""
        return threading.get_ident() == self.thread_id

    def post(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback on the home loop soon, from any thread. Raises Closed when that loop is gone."""
        try:
            if self.here:
                self.loop.call_soon(callback, *args)
            else:
                self.reach().call_soon_threadsafe(callback, *args)
        except RuntimeError as error:
            raise _gone() from error

    async def hop(self, coroutine: Coroutine[Any, Any, T], *, undo: Callable[[T], object] | None = None) -> T:
        """Run a coroutine on the home loop and wait for it here, on another loop. Cancelling the wait cancels it there too.

        It may be done there at the very moment the wait is cancelled here: ``undo`` then gets the result that nobody will take.
        """
        crossing = _Crossing(self, coroutine, undo)
        try:
            self.reach().call_soon_threadsafe(crossing.begin)
        except (RuntimeError, Closed) as error:
            coroutine.close()
            raise _gone() from error
        try:
            task = await crossing.arrived
        except asyncio.CancelledError:
            self.post(crossing.leave)
            raise
        return task.result()

    # -- heartbeat

    def __enter__(self) -> Self:
        self._holders += 1
        if self._timer is None:
            self._beat_from(self.loop.time())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._holders -= 1

    def watch(self) -> None:
        """Keep the heart beating and have a blocked loop reported; once for each live process. Only on the loop's thread."""
        self._watchers += 1
        self.__enter__()

    def unwatch(self) -> None:
        """The counterpart of watch."""
        self._watchers -= 1
        self.__exit__(None, None, None)

    def _beat_from(self, now: float) -> None:
        self._timer = self.loop.call_at(now + BEAT, self._beat, now + BEAT)

    def _beat(self, due: float) -> None:
        now = self.loop.time()
        if self._watchers:
            self._notice(now - due)
        if self._holders:
            self._beat_from(now)
        else:
            self._timer = None  # the next holder starts it again; stopping at once would cost a timer for each call

    def _notice(self, late: float) -> None:
        self.latest = max(self.latest, late)
        if late < LATE or self._told:
            return
        self._told = True
        if self.thread_id != threading.main_thread().ident:
            log.warning(
                "the background loop was late by %.1f s: something held the interpreter's lock all the time (a long call into C such as a "
                "regular expression or a sort), or the machine was asleep or overloaded. Said once.",
                late,
            )
            return
        log.warning(
            "the event loop was blocked for %.1f s (a cell that computes without await, a slow callback, or a machine that slept): "
            "meanwhile no output was read, no timeout "
            "fired and nothing was started. Cure: ProcessManager(background=True), or `await` in the cell. Said once.",
            late,
        )


def _gone() -> Closed:
    if sys.is_finalizing():
        return Closed("the interpreter is ending: the event loop that this object lives on has stopped", hint="use it before, or in atexit")
    return Closed(
        "the event loop that this object lives on is closed, or another process's that this one was forked from",
        hint="create a new one in this process",
    )


def _nowhere() -> None:
    """In place of a loop that stayed in the parent."""


class _Crossing(Generic[T]):
    """One call from another loop. Whether its result is taken is decided on the home loop alone, where it can't race with the end."""

    def __init__(self, home: Home, coroutine: Coroutine[Any, Any, T], undo: Callable[[T], object] | None) -> None:
        self._home = home
        self._coroutine = coroutine
        self._undo = undo
        self._caller = asyncio.get_running_loop()
        self._task: asyncio.Task[T] | None = None
        self._left = False
        self.arrived: asyncio.Future[asyncio.Task[T]] = self._caller.create_future()

    def begin(self) -> None:
        self._task = self._home.loop.create_task(self._coroutine)
        _crossings.add(self)  # the loop itself holds tasks weakly
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        _crossings.discard(self)
        if self._left:
            self._take_back(task)
            return
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
            self._caller.call_soon_threadsafe(self._arrive, task)

    def _arrive(self, task: asyncio.Task[T]) -> None:
        if not self.arrived.done():
            self.arrived.set_result(task)

    def leave(self) -> None:
        """The caller was cancelled."""
        self._left = True
        if self._task is not None and self._task.done():
            self._take_back(self._task)
        elif self._task is not None:
            # Behind its first step: a task that is cancelled before it starts does nothing at all, not even what it promised to do.
            self._home.loop.call_soon(self._task.cancel)

    def _take_back(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None and self._undo is not None:
            self._undo(task.result())


_crossings: set[_Crossing[Any]] = set()


class Tasks:
    """The tasks of one object: owned, named, their failures logged, all cancelled (or let finish) and waited for at its end."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finishing: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str, finish: bool = False) -> asyncio.Task[T]:
        """Start a task; one that is to ``finish`` is not cancelled at the end, but waited for. Only on the home loop."""
        task = self._home.loop.create_task(coroutine, name=f"nbprocs: {name}")
        self._tasks.add(task)
        if finish:
            self._finishing.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._finishing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def aclose(self) -> None:
        """Cancel all, and wait until all have ended; the calling task itself is left alone."""
        mine = asyncio.current_task()
        while others := {task for task in self._tasks if task is not mine}:  # one that finishes may begin another
            for task in others - self._finishing:
                task.cancel()
            await asyncio.wait(others)


def home_of(thing: object) -> Home:
    """The home of one of our objects; what a user holds has it inside."""
    core: Any = getattr(thing, "_core", thing)
    found: Home = core.home
    return found


def hops(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Make an async method callable from any loop and thread; the heart of the caller's loop beats while it is awaited."""
    return _hopping(method, None)


def hops_or_undo(
    undo: Callable[[S, T], object],
) -> Callable[[Callable[Concatenate[S, P], Coroutine[Any, Any, T]]], Callable[Concatenate[S, P], Coroutine[Any, Any, T]]]:
    """As ``hops``; ``undo(self, result)`` is called on the home loop with a result whose caller was cancelled on another loop."""

    def decorate(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
        return _hopping(method, undo)

    return decorate


def _hopping(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]], undo: Callable[[S, T], object] | None
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    @functools.wraps(method)
    async def hopping(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with Home.current() as caller:
            home = home_of(self)
            if home is caller:
                return await method(self, *args, **kwargs)
            return await home.hop(method(self, *args, **kwargs), undo=None if undo is None else functools.partial(undo, self))

    return hopping


class _Host:
    """The thread that the background loop runs in. A daemon: it must never keep a kernel from ending; the shim ends the children."""

    def __init__(self) -> None:
        self._home: Home | None = None
        self._lock = threading.Lock()

    def start(self) -> Home:
        if sys.is_finalizing():  # a thread that is started now never runs
            raise _gone()
        with self._lock:
            if self._home is None or self._home.loop.is_closed():
                ready: list[Home] = []
                started = threading.Event()
                threading.Thread(target=self._run, args=(ready, started), name=HOST_THREAD, daemon=True).start()
                started.wait()
                self._home = ready[0]
            return self._home

    def _run(self, ready: list[Home], started: threading.Event) -> None:
        # Whatever the kernel's policy says (uvloop's, a GUI toolkit's): on Windows only a Proactor loop can start processes, and
        # elsewhere the shim's children are read by a selector loop.
        loop = getattr(asyncio, "ProactorEventLoop", asyncio.SelectorEventLoop)()

        async def announce() -> None:
            ready.append(Home.current())
            started.set()

        loop.run_until_complete(announce())
        while True:  # what a user's callback ends must not be everybody's loop: asyncio lets these two through
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                told("a callback on the background loop", error)
            else:
                break
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def forget(self) -> None:
        """In a forked child the thread is gone: the next use starts another."""
        self._home = None
        self._lock = threading.Lock()

    def stop(self) -> None:
        """End the thread, for tests. Whatever lives there must be closed before."""
        with self._lock:
            if self._home is not None and not self._home.loop.is_closed():
                self._home.loop.call_soon_threadsafe(self._home.loop.stop)
                for thread in threading.enumerate():
                    if thread.name == HOST_THREAD:
                        thread.join()
            self._home = None


_host = _Host()


def _forked() -> None:
    """In a forked child: what waited for the parent's threads here would wait for ever."""
    global _lock  # noqa: PLW0603 - a thread that is not here may have held it
    _lock = threading.Lock()
    _host.forget()
    for home in list(_homes.values()):
        home.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
