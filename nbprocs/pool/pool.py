"""ProcessPool: workers that are started once and used again and again.

::

    submit / run / map / executor      any thread, any loop
            │  Codec: the call as bytes
            ▼
       Submission ─► PoolCore ─► Dispatcher, TaskTable      tasks: queue, windows, retries, outcomes     (home loop)
                      │
                      └────► Workers ─► WorkerHandle ─► Connection ─► worker process                  (home loop)

This module is the public face; what it decides and does is in the modules named in the drawing.
"""

import asyncio
import contextlib
import itertools
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeAlias, TypeVar, Unpack, overload

from nbprocs import checks
from nbprocs.config import UNSET, Unset
from nbprocs.display import Displayable, Html
from nbprocs.engine.home import Home, hops
from nbprocs.engine.owners import register
from nbprocs.errors import Closed, ProcessError, StartupFailed
from nbprocs.model import TaskPriority
from nbprocs.notify import as_notify
from nbprocs.policy import RetryPolicy
from nbprocs.pool import report
from nbprocs.pool.codec import Codec
from nbprocs.pool.command import CommandWorker
from nbprocs.pool.core import PoolCore
from nbprocs.pool.executor import PoolExecutor
from nbprocs.pool.kinds import connections, is_a, setup_of, title_of
from nbprocs.pool.mapping import MapOptions, Sizer, length_of, mapped, progress_bar
from nbprocs.pool.model import PoolConfig, PoolMetrics, PythonWorker, WorkerInfo
from nbprocs.pool.notices import told_at_the_end
from nbprocs.pool.speech import Speech
from nbprocs.pool.submission import How, Submission
from nbprocs.pool.task import PoolTaskHandle, stands_for
from nbprocs.processes.manager import ProcessManager

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ProcessPool"]

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
P = ParamSpec("P")
Limit: TypeAlias = float | timedelta | Unset | None
Retries: TypeAlias = RetryPolicy | int | None

_names = itertools.count(1)
_HISTORY = 100  # ended workers that a pool's own manager remembers with their output


class ProcessPool(Displayable):
    """A pool of warm workers. ``async with`` it, or ``await pool.aclose()`` in the end; it starts by itself with the first task.

    Args:
        config: a PoolConfig; by default one worker, and up to as many as there are CPUs under load.
        worker: the kind of worker: a PythonWorker (the default) or a CommandWorker.
        manager: whose processes the workers are to be; by default a manager of the pool's own. The pool lives on its loop.
        background: True keeps the pool going while a cell blocks the kernel (not with ``manager``: that has chosen already).
        name: as in "name-worker-1"; by default "pool-1", "pool-2", …

    Raises RuntimeError where no event loop runs, unless ``background`` or ``manager`` is given, and CommunicationError for an
    initialiser that does not pickle.

    >>> async with ProcessPool(PoolConfig(max_processes=2)) as pool:
    ...     result = await pool.run(sum, [1, 2, 3])
    >>> result
    6
    """

    def __init__(
        self,
        config: PoolConfig | None = None,
        *,
        worker: PythonWorker | CommandWorker | None = None,
        manager: ProcessManager | None = None,
        background: bool = False,
        name: str | None = None,
    ) -> None:
        config = PoolConfig() if config is None else is_a(PoolConfig, "config", config)
        self.name: str = f"pool-{next(_names)}" if name is None else checks.name("name", name)
        self.worker: PythonWorker | Any = PythonWorker() if worker is None else is_a((PythonWorker, CommandWorker), "worker", worker)
        if manager is not None:
            is_a(ProcessManager, "manager", manager)
        checks.flag("background", background)
        own = manager is None
        self.manager: ProcessManager = manager or ProcessManager(background=background, history=_HISTORY)
        codec = Codec()
        make = connections(self.worker, codec, setup_of(self.worker), most=config.most)
        core = PoolCore(self.manager, config, name=self.name, speech=Speech(self.worker), make_connection=make, own_manager=own)
        self._core = core
        self._submission = submission = Submission(core, codec, self.worker)
        codec.on_reload = lambda: submission.do(core.workers.renew)
        self._codec = codec
        self._finalizer = weakref.finalize(self, _forget, core)
        self._finalizer.atexit = False
        register(self)

    @property
    def config(self) -> PoolConfig:
        """What it was made with."""
        return self._core.workers.config

    @property
    def closed(self) -> bool:
        """True from the beginning of aclose() on."""
        return self._submission.closed

    # -- life

    @hops
    async def start(self) -> Self:
        """Start ``initial_processes`` workers and return when all are ready. Idempotent; without it the first task starts them.

        Raises StartupFailed (or what a start can raise) if one of them can't be started or set up; the pool is closed then and nothing is
        left running. Takes at most ``start_timeout`` seconds and what stopping takes.
        """
        self._submission.check_open()
        self._core.workers.begin()
        error = await self._core.workers.all_started()
        if error is not None and not self._core.workers.closing:
            await self.aclose()
            if isinstance(error, ProcessError):
                raise error
            raise StartupFailed(f"{self.name} could not be started: {error}", name=self.name) from error
        return self

    initialize = start

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """After a block without error wait for its tasks; then close."""
        try:
            if kind is None:
                await self.join()
        finally:
            await self.aclose()

    @hops
    async def join(self) -> None:
        """Wait until no task is queued, running or waiting to be tried again. Takes as long as they do."""
        self._submission.take_inbox()
        await self._core.join()

    @hops
    async def aclose(self) -> None:
        """End all workers with their trees and take no more tasks. Idempotent.

        Tasks that have not ended fail with Closed (``join()`` first if they should not). On return no process is left; free workers get
        up to 2 s for their exit handlers, busy ones are killed. Cancelling the wait does not call it off.
        """
        self._submission.closed = True
        self._submission.take_inbox()
        await self._core.aclose()
        self._finalizer.detach()  # it holds the core

    # -- tasks

    # With options of ours a call's own arguments are not checked: no type can tell them apart.

    @overload
    def submit(
        self, function: str, /, *, priority: TaskPriority = ..., timeout: Limit = ..., retries: Retries = ...
    ) -> PoolTaskHandle[str]: ...
    @overload
    def submit(self, function: Callable[..., T], /, *args: Any, timeout: Limit, **options: Any) -> PoolTaskHandle[T]: ...
    @overload
    def submit(self, function: Callable[..., T], /, *args: Any, priority: TaskPriority, **options: Any) -> PoolTaskHandle[T]: ...
    @overload
    def submit(self, function: Callable[..., T], /, *args: Any, retries: Retries, **options: Any) -> PoolTaskHandle[T]: ...
    @overload
    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> PoolTaskHandle[T]: ...
    def submit(  # type: ignore[misc]  # no type can tell our options from the function's own
        self,
        function: Callable[..., Any] | str,
        /,
        *args: Any,
        priority: TaskPriority = TaskPriority.NORMAL,
        timeout: Limit = UNSET,
        retries: Retries = None,
        **kwargs: Any,
    ) -> PoolTaskHandle[Any]:
        """Queue one call and return its handle at once. From any thread.

        Args:
            function: what to call in a worker; for a CommandWorker the line to send to it.
            args: its arguments, written down now: changing them later changes nothing (except inside numpy arrays and the like that are
                larger than 64 kB: these are sent uncopied).
            priority: higher ones are started first, equal ones in order.
            timeout: seconds from the start in a worker; past it the worker's tree is killed. By default ``task_timeout``; None: no limit.
            retries: a number or a RetryPolicy; by default ``max_retries``.
            kwargs: its keyword arguments.

        Awaiting the handle gives the result or raises: the function's own exception (its remote traceback is the cause), ExecutionTimeout,
        ProcessCrashed, ProcessFailed or OutOfMemory if the worker died of it, CommunicationError if call or result don't pickle, Closed.
        Raises Closed itself, and ValueError for a timeout that is not positive.
        """
        how = self._how(function, priority, timeout, retries)
        handle = self._submission.handle()
        try:
            stands_for(handle, self._submission.submit(handle, function, args, kwargs, how))
        except BaseException:  # closed, or interrupted while it was pickled
            handle.cancel()
            raise
        return handle

    def _how(self, function: Any, priority: TaskPriority, timeout: Any, retries: Retries) -> How:
        if not callable(function) and not (isinstance(function, str) and isinstance(self.worker, CommandWorker)):
            checks.refuse(TypeError, "function", "a callable, or a line of text for a CommandWorker", function)
        if priority is TaskPriority.NORMAL and timeout is UNSET and retries is None:
            return self._submission.default
        return self._submission.how(priority, timeout, retries)

    @overload
    async def run(self, line: str, /, *, priority: TaskPriority = ..., timeout: Limit = ..., retries: Retries = ...) -> str: ...
    @overload
    async def run(self, function: Callable[..., T], /, *args: Any, timeout: Limit, **options: Any) -> T: ...
    @overload
    async def run(self, function: Callable[..., T], /, *args: Any, priority: TaskPriority, **options: Any) -> T: ...
    @overload
    async def run(self, function: Callable[..., T], /, *args: Any, retries: Retries, **options: Any) -> T: ...
    @overload
    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def run(  # type: ignore[misc]  # no type can tell our options from the function's own
        self,
        function: Callable[..., Any] | str,
        /,
        *args: Any,
        priority: TaskPriority = TaskPriority.NORMAL,
        timeout: Limit = UNSET,
        retries: Retries = None,
        **kwargs: Any,
    ) -> Any:
        """submit() and wait for the result. When the wait is cancelled, so is the task.

        >>> async with ProcessPool() as pool:
        ...     result = await pool.run(max, 3, 7, timeout=10)
        >>> result
        7
        """
        how = self._how(function, priority, timeout, retries)
        with Home.current() as caller:
            if caller is not self._core.home:
                return await self.submit(function, *args, priority=priority, timeout=timeout, retries=retries, **kwargs)
            future: asyncio.Future[Any] = caller.loop.create_future()  # a plain one: what awaits it is woken without a call into Python
            task = self._submission.submit(future, function, args, kwargs, how)
            try:
                return await future
            except asyncio.CancelledError:
                if future.cancelled():
                    self._submission.give_up(task)
                raise

    @overload
    def map(self, function: Callable[[A], T], items: Iterable[A], /, **options: Unpack[MapOptions]) -> AsyncGenerator[T, None]: ...
    @overload
    def map(
        self, function: Callable[[A, B], T], first: Iterable[A], second: Iterable[B], /, **options: Unpack[MapOptions]
    ) -> AsyncGenerator[T, None]: ...
    @overload
    def map(
        self,
        function: Callable[..., T],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        /,
        *more: Iterable[Any],
        **options: Unpack[MapOptions],
    ) -> AsyncGenerator[T, None]: ...
    @overload
    def map(self, lines: Iterable[str], /, **options: Unpack[MapOptions]) -> AsyncGenerator[str, None]: ...
    def map(
        self,
        function: Callable[..., Any] | Iterable[str],
        /,
        *iterables: Iterable[Any],
        ordered: bool = True,
        chunksize: int | None = None,
        priority: TaskPriority = TaskPriority.NORMAL,
        timeout: Limit = UNSET,
        retries: Retries = None,
        progress: bool | str = False,
        notify: object = None,
    ) -> AsyncGenerator[Any, None]:
        """Call the function with each item (of several iterables: with one item of each) and yield the results.

        Args:
            function: as it is now; changing it while map() goes on changes nothing. For a CommandWorker leave it out.
            iterables: may be endless: only a few chunks are taken ahead of the results.
            ordered: False yields results as they come.
            chunksize: items that travel together; by default chunks of some 30 ms, and 1 where ``timeout`` or ``retries`` is given.
            timeout: seconds for an item; a chunk gets as much for each of its items.
            retries: as in submit(); a chunk is tried again as a whole.
            priority: as in submit().
            progress: True, or a title, shows a tqdm bar.
            notify: whom to tell when it has ended, with the number of results and the time: True, a URL, a callable, or a Notify.

        An exception of the function is raised when its turn comes, after the results before it; a dead worker fails its chunk. What is
        under way is cancelled when the iteration ends early (``async with contextlib.aclosing(pool.map(…))`` makes that happen at once).
        A chunk counts as one task in metrics() and frame().

        >>> async with ProcessPool() as pool:
        ...     squares = [y async for y in pool.map(pow, range(5), [2] * 5)]
        >>> squares
        [0, 1, 4, 9, 16]
        """
        self._submission.check_open()
        how = self._submission.how(priority, timeout, retries)
        whom, ordered = as_notify("notify", notify), checks.flag("ordered", ordered)
        if isinstance(self.worker, CommandWorker):
            lines: Any = function
            bar = progress_bar(progress, title=self.name, total=length_of((lines,)))
            return self._map_lines(lines, how, ordered=ordered, bar=told_at_the_end(bar, whom, title=self.name))
        if not callable(function) or not iterables:
            raise TypeError("map() takes a function and at least one iterable")
        for i, items in enumerate(iterables):
            if not hasattr(items, "__iter__") and not hasattr(items, "__getitem__"):
                checks.refuse(TypeError, f"iterables[{i}]", "an iterable", items)
        if chunksize is not None:
            checks.whole("chunksize", chunksize, least=1)
        careful = retries is not None or (timeout is not UNSET and timeout is not None)
        total = length_of(iterables)
        workers = self._core.workers.limit
        sizer = Sizer(chunksize or (1 if careful else None), total=total, workers=workers)
        star = len(iterables) > 1
        items = zip(*iterables) if star else iterables[0]  # noqa: B905 - the shortest ends it, as with the built-in map
        known = self._submission.snapshot(function)
        title = title_of(function)

        def submit(chunk: Sequence[Any], start: int) -> PoolTaskHandle[Any]:
            handle = self._submission.handle()
            task = self._submission.submit_chunk(handle, known, f"{title}[{start}:{start + len(chunk)}]", chunk, how, star=star)
            stands_for(handle, task)
            return handle

        return mapped(
            submit,
            items,
            ordered=ordered,
            sizer=sizer,
            window=4 * workers,
            bar=told_at_the_end(progress_bar(progress, title=title, total=total), whom, title=title),
            finish=lambda: self._codec.retire(known),
        )

    def _map_lines(self, lines: Any, how: How, *, ordered: bool, bar: Callable[[], Any]) -> AsyncGenerator[Any, None]:
        def submit(chunk: Sequence[Any], _start: int) -> PoolTaskHandle[Any]:
            handle = self._submission.handle()
            stands_for(handle, self._submission.submit(handle, chunk[0], (), {}, how, listed=True))
            return handle

        return mapped(
            submit,
            iter(lines),
            ordered=ordered,
            sizer=Sizer(1, total=None, workers=1),
            window=2 * self._core.workers.limit,
            bar=bar,
            finish=lambda: None,
        )

    # -- other faces

    def executor(self) -> PoolExecutor:
        """The pool as a ``concurrent.futures.Executor``, usable from any thread. Closing one leaves the pool alone.

        Where the pool lives on the kernel's own loop, wait for its futures with ``asyncio.wrap_future`` or ``loop.run_in_executor``; to
        block for them use ``background=True``.
        """
        return PoolExecutor(self._submission, owner=self)

    # -- size and code

    def resize(self, workers: int | None) -> None:
        """Have exactly so many workers from now on; None: again as many as the load needs, between minimum and maximum. From any thread.

        New ones are ready some 30 ms later; those that are too many leave when they are free. Raises ValueError outside the pool's bounds.
        """
        if workers is not None:
            checks.whole("workers", workers)
        if workers is not None and not max(1, self.config.min_processes) <= workers <= self.config.most:
            raise ValueError(f"{self.name} may have from {max(1, self.config.min_processes)} to {self.config.most} workers, not {workers}")
        self._core.home.post(self._core.workers.resize, workers)

    def renew(self) -> None:
        """Replace every worker by a fresh one, each when it is free: after a module was changed on disk, say. From any thread."""
        self._core.home.post(self._core.workers.renew)

    # -- looking

    @hops
    async def ping(self) -> float:
        """Seconds that a worker took to answer an empty message, which is no task. Cancel it to limit the time.

        Raises CommunicationError where no worker is ready.

        >>> async with ProcessPool(PoolConfig(initial_processes=1)) as pool:
        ...     await pool.ping() < 60
        True
        """
        return await self._core.workers.ping()

    def metrics(self) -> PoolMetrics:
        """The pool's figures now.

        >>> async with ProcessPool() as pool:
        ...     _ = await pool.run(abs, -1)
        ...     pool.metrics().total_tasks_completed
        1
        """
        return self._look(lambda: report.metrics(self._core))

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that are there now, the oldest first; ``frame("workers")`` remembers the others, too.

        >>> async with ProcessPool(PoolConfig(initial_processes=1)) as pool:
        ...     [worker.state.value for worker in pool.workers()]
        ['idle']
        """
        return self._look(lambda: report.workers(self._core))

    def frame(self, what: Literal["tasks", "workers"] = "tasks") -> "pd.DataFrame":
        """Tasks (the last ``history`` ended ones, those at work, those that wait) or workers as a DataFrame.

        Tasks, indexed by number: task, state, priority, queued, started, ended, seconds, worker, attempts, error.
        Workers, indexed by name: state, pid, started, ready, ended, tasks, holds, reason (why it left).

        >>> async with ProcessPool() as pool:
        ...     _ = await pool.run(abs, -1)
        ...     print(pool.frame().loc[1, "state"])
        completed
        """
        if what not in ("tasks", "workers"):
            raise ValueError(f"there are frames of 'tasks' and of 'workers', not of {what!r}")
        return self._look(lambda: report.worker_frame(self._core) if what == "workers" else report.task_frame(self._core))

    def _look(self, read: Callable[[], T]) -> T:
        """A read from another thread may meet a change; it is made again then."""
        while True:
            try:
                return read()
            except RuntimeError:  # a container changed size while it was read
                if self._core.home.here:
                    raise
                time.sleep(0)

    def __repr__(self) -> str:
        return report.summary(self.name, self.metrics(), self.config.most, closed=self.closed)

    def _html_(self) -> Html:
        return report.html(repr(self), self.workers())


def _forget(core: PoolCore) -> None:
    """Nobody holds the pool any more; called by the garbage collector, on any thread."""
    with contextlib.suppress(Closed):  # its loop is gone, and the workers with it
        core.home.post(core.forget)
