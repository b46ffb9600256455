"""A task of the pool, and the handles that stand for it: one to await, one for code that expects ``concurrent.futures``."""

import asyncio
import concurrent.futures
import contextvars
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar

from nbprocs import guard
from nbprocs.engine.home import Home
from nbprocs.errors import CommunicationError
from nbprocs.policy import RetryPolicy
from nbprocs.pool.codec import Buffers, Function
from nbprocs.pool.model import PoolTaskState

__all__ = ["BlockableFuture", "PoolTaskHandle", "Task", "stands_for"]

T = TypeVar("T")


@dataclass(slots=True, eq=False, repr=False)  # two calls that look alike are still two, and what a call was given is for no log
class Task:
    """What the pool knows of one call. Only the home loop changes it once it is submitted."""

    number: int
    title: str
    function: Function | None
    payload: Any
    buffers: Buffers
    _: KW_ONLY
    priority: int
    timeout: float | None
    policy: RetryPolicy | None
    future: "asyncio.Future[Any] | BlockableFuture[Any] | None"  # None once it is settled
    star: bool | None = None  # None: one call; else a chunk of them, with one argument (False) or several (True)
    listed: bool = False  # the result is wanted as that of a chunk of one
    state: PoolTaskState = PoolTaskState.QUEUED
    attempts: int = 0  # tries that ended
    dropped: bool = False
    worker: str = ""
    queued: float = field(default_factory=time.monotonic)
    started: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0  # in the worker, last try
    error: str = ""
    context: contextvars.Context | None = None  # of the cell that submitted it, where its output is to be seen

    def release(self) -> None:
        """Let go of everything large: the history remembers the rest."""
        self.payload = self.buffers = self.function = self.future = self.context = None


class PoolTaskHandle(asyncio.Future[T]):
    """Stands for one task of a pool. Await it for the result; ``cancel()`` it at any time, also while it runs.

    It is an asyncio future of the loop that submitted it, so ``asyncio.gather``, ``wait`` and ``timeout`` take it as it is, without a
    task for each. That also means: when what awaits it is cancelled (an interrupted cell, a timeout), the task is cancelled. Awaiting on
    another loop works, too.

    >>> pool = ProcessPool()
    >>> handle = pool.submit(pow, 2, 10)
    >>> await handle
    1024
    >>> handle.state
    <PoolTaskState.COMPLETED: 'completed'>
    >>> await pool.aclose()
    """

    __slots__ = ("_give_up", "_task")

    def __init__(self, give_up: "Callable[[Task], object]", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._give_up = give_up
        self._task: Task | None = None

    @property
    def id(self) -> int:
        """The task's number in its pool, as in ``pool.frame()``."""
        return self._task.number if self._task else 0

    @property
    def state(self) -> PoolTaskState:
        """Where the task is now."""
        return self._task.state if self._task else PoolTaskState.FAILED

    @property
    def attempts(self) -> int:
        """Tries that have ended."""
        return self._task.attempts if self._task else 0

    @property
    def seconds(self) -> float:
        """How long its last try took in the worker; 0.0 before it ended."""
        return self._task.seconds if self._task else 0.0

    @property
    def worker(self) -> str:
        """The name of the worker that it was handed to last; empty before."""
        return self._task.worker if self._task else ""

    def cancel(self, msg: Any | None = None) -> bool:
        """Give the task up; True unless it had ended. One that runs is ended with its worker's whole tree; nobody else's task is touched.

        On return the handle is cancelled (called on another thread than its loop's: soon after); the worker's end takes a few
        milliseconds more.
        """
        loop = self.get_loop()
        if asyncio._get_running_loop() is not loop and loop.is_running():  # noqa: SLF001 - like get_running_loop, without an exception
            if self.done():
                return False
            loop.call_soon_threadsafe(self.cancel, msg)
            return True
        if not super().cancel(msg):
            return False
        if self._task is not None:
            self._give_up(self._task)
        return True

    def __repr__(self) -> str:
        """Without the result or the error: what they answer when they are shown is the user's code."""
        return (
            f"<PoolTaskHandle {self.id}{f' {self._task.title}' if self._task else ''}: {'cancelled' if self.cancelled() else self.state}>"
        )

    def __await__(self) -> Generator[Any, None, T]:
        """The result. On another loop than the handle's own it comes by way of a future of that loop."""
        loop = asyncio.get_running_loop()
        if loop is self.get_loop():
            return super().__await__()
        return _elsewhere(self, loop).__await__()

    def __iter__(self) -> Generator[Any, None, T]:
        """As ``__await__``: asyncio.Future has both."""
        return self.__await__()


def stands_for(future: "PoolTaskHandle[Any] | BlockableFuture[Any]", task: Task) -> None:
    """Tell a handle which task it is for; not a method, since users don't call it."""
    future._task = task  # noqa: SLF001 - of this module


def _elsewhere(handle: "PoolTaskHandle[T]", loop: asyncio.AbstractEventLoop) -> "asyncio.Future[T]":
    """A future of this loop that ends as the handle does, and gives the handle up when it is cancelled."""
    mirror: concurrent.futures.Future[T] = concurrent.futures.Future()

    def copy(done: "asyncio.Future[T]") -> None:
        if done.cancelled():
            mirror.cancel()
        elif mirror.set_running_or_notify_cancel():
            error = done.exception()
            if error is not None:
                mirror.set_exception(error)
            else:
                mirror.set_result(done.result())

    def watch() -> None:
        handle.add_done_callback(copy)

    handle.get_loop().call_soon_threadsafe(watch)
    here = asyncio.wrap_future(mirror, loop=loop)

    def give_up(done: "asyncio.Future[T]") -> None:
        if done.cancelled():
            handle.get_loop().call_soon_threadsafe(handle.cancel)

    here.add_done_callback(give_up)
    return here


class BlockableFuture(concurrent.futures.Future[T]):
    """A ``concurrent.futures.Future`` that refuses to wait for ever: on the thread whose loop must do the work it would."""

    def __init__(self, home: Home, give_up: Callable[[Task], object]) -> None:
        super().__init__()
        self._home = home
        self._give_up = give_up
        self._task: Task | None = None
        self._begun: bool | None = None
        self._waiters = _Waiters(home)  # the standard library's own list of those who wait() and use as_completed()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """As the standard library's; also sys.exit() in a callback is logged, and ends nothing."""
        super().add_done_callback(lambda future: guard.call("a done callback", fn, future))

    def begin(self) -> bool:
        """From the pool: it runs, and can't be cancelled any more; False if it was cancelled before. Any number of times."""
        if self._begun is None:
            self._begun = self.set_running_or_notify_cancel()  # also what wakes who waits for a cancelled one
        return self._begun

    def cancel(self) -> bool:
        """As the standard library's: True if the call had not started."""
        was = self.cancelled()
        done = super().cancel()
        if done and not was and self._task is not None:
            self._give_up(self._task)
        return done

    def result(self, timeout: float | None = None) -> T:
        """As the standard library's. Raises CommunicationError instead of a deadlock on the pool's own thread."""
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As the standard library's. Raises CommunicationError instead of a deadlock on the pool's own thread."""
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        if not self.done():
            _check_thread(self._home)


def _check_thread(home: Home) -> None:
    if threading.get_ident() == home.thread_id:
        raise CommunicationError(
            "waiting here would stop the event loop that the result must come through",
            hint="make the pool with background=True, or await pool.run(…) instead of blocking for the result",
        )
    home.reach()


class _Waiters(list[Any]):
    """Those who wait for several futures at once. Each gets an event that does not wait on the pool's own thread."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home

    def append(self, waiter: Any) -> None:
        """From ``concurrent.futures``, which holds the locks of all the futures meanwhile: none of them can end in between."""
        if not isinstance(waiter.event, _Event):
            event = _Event(self._home)
            if waiter.event.is_set():
                event.set()
            waiter.event = event
        super().append(waiter)


class _Event(threading.Event):
    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home

    def wait(self, timeout: float | None = None) -> bool:
        """A mere look is allowed everywhere."""
        if not self.is_set() and timeout != 0:
            _check_thread(self._home)
        return super().wait(timeout)
