"""ProcessPool: workers that are started once and used again and again.

::

    submit / run / map / executor      any thread, any loop
            │  Codec: the call as bytes
            ▼
        inbox ──► Desk ──► Dispatcher     tasks: queue, lanes, retries, outcomes        (home loop)
                   │ ▲
                   ▼ │
                  Crew ──► Member ──► Link ──► worker process                           (home loop)

This module is the public face; what it decides and does is in the modules named in the drawing.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from nbprocs import checks
from nbprocs.config import UNSET, Unset
from nbprocs.display import Displayable, Html
from nbprocs.engine.home import Home, Tasks, hops
from nbprocs.errors import Closed, ProcessError, StartupFailed
from nbprocs.model import TaskPriority
from nbprocs.notify import as_notify
from nbprocs.policy import RetryPolicy
from nbprocs.pool import report
from nbprocs.pool.codec import Codec
from nbprocs.pool.command import CommandLink, CommandWorker
from nbprocs.pool.crew import Crew
from nbprocs.pool.desk import Desk
from nbprocs.pool.executor import PoolExecutor
from nbprocs.pool.intake import How, Intake, setup_of, title_of
from nbprocs.pool.mapping import Sizer, length_of, mapped, progress_bar
from nbprocs.pool.model import PoolConfig, PoolMetrics, PythonWorker, WorkerInfo
from nbprocs.pool.notices import told_at_the_end
from nbprocs.pool.python import Link, Listener, PythonLink
from nbprocs.pool.speech import Speech
from nbprocs.pool.task import TaskHandle
from nbprocs.processes.manager import ProcessManager, manager_core

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ProcessPool"]

T = TypeVar("T")

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
        config = PoolConfig() if config is None else _is(PoolConfig, "config", config)
        self.name = f"pool-{next(_names)}" if name is None else checks.name("name", name)
        self.worker = PythonWorker() if worker is None else _is((PythonWorker, CommandWorker), "worker", worker)
        if manager is not None:
            _is(ProcessManager, "manager", manager)
        checks.flag("background", background)
        setup = setup_of(self.worker)
        self._own_manager = manager is None
        self.manager = manager or ProcessManager(background=background, history=_HISTORY)
        self._home = manager_core(self.manager).home
        self._codec = Codec(on_reload=self._reloaded)
        self._desk = Desk(self._home, Speech(self.worker), history=config.history, most=config.most)
        self._tasks = Tasks(self._home)
        tasks = Tasks(self._home)
        make_link = self._link_maker(setup, tasks)
        self._crew = self._desk.crew = Crew(self.manager, self._desk, config, name=self.name, tasks=tasks, make_link=make_link)
        self._intake = Intake(self._desk, self._crew, self._codec, self.worker, name=self.name)
        self._closing: asyncio.Task[None] | None = None

    def _link_maker(self, setup: bytes | None, tasks: Tasks) -> Callable[[Listener], Link]:
        kind = self.worker
        if isinstance(kind, CommandWorker):
            return lambda listener: CommandLink(kind, listener, tasks)
        most = self._desk.most
        return lambda listener: PythonLink(kind, self._codec, listener, setup=setup, most=most)

    @property
    def home(self) -> Home:
        """The home of the loop that the pool lives on."""
        return self._home

    @property
    def config(self) -> PoolConfig:
        """What it was made with."""
        return self._crew.config

    @property
    def closed(self) -> bool:
        """True from the beginning of aclose() on."""
        return self._intake.closed

    # -- life

    @hops
    async def start(self) -> Self:
        """Start ``initial_processes`` workers and return when all are ready. Idempotent; without it the first task starts them.

        Raises StartupFailed (or what a start can raise) if one of them can't be started or set up; the pool is closed then and nothing is
        left running. Takes at most ``start_timeout`` seconds and what stopping takes.
        """
        self._intake.check_open()
        self._crew.begin()
        members = list(self._crew.members.values())
        if members:
            await asyncio.wait({member.ready for member in members})
        if not self._crew.closing and (error := next((member.error for member in members if member.error is not None), None)):
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
        self._intake.take_inbox()
        await self._desk.join()

    @hops
    async def aclose(self) -> None:
        """End all workers with their trees and take no more tasks. Idempotent.

        Tasks that have not ended fail with Closed (``join()`` first if they should not). On return no process is left; free workers get
        up to 2 s for their exit handlers, busy ones are killed. Cancelling the wait does not call it off.
        """
        if self._closing is None:
            self._intake.closed = True
            self._closing = self._tasks.start(self._close(), name=f"close {self.name}")
        await asyncio.wait({self._closing})
        self._closing.result()

    async def _close(self) -> None:
        self._intake.take_inbox()
        self._crew.closing = True
        closed = Closed(f"{self.name} was closed before the task was started", name=self.name)
        self._desk.abandon(closed)
        await self._crew.aclose()
        self._desk.abandon(closed)  # what the workers had not started
        self._desk.close()
        if self._own_manager:
            await self.manager.aclose(grace=0.5)

    # -- tasks

    def submit(
        self,
        function: Callable[..., Any] | str,
        /,
        *args: Any,
        priority: TaskPriority = TaskPriority.NORMAL,
        timeout: float | Unset | None = UNSET,
        retries: RetryPolicy | int | None = None,
        **kwargs: Any,
    ) -> TaskHandle[Any]:
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
        if not callable(function) and not (isinstance(function, str) and isinstance(self.worker, CommandWorker)):
            checks.refuse(TypeError, "function", "a callable, or a line of text for a CommandWorker", function)
        how = self._intake.default
        if priority is not TaskPriority.NORMAL or timeout is not UNSET or retries is not None:
            how = self._intake.how(priority, timeout, retries)
        handle = self._intake.handle()
        try:
            self._intake.submit(handle, function, args, kwargs, how)
        except BaseException:  # closed, or interrupted while it was pickled
            handle.cancel()
            raise
        return handle

    async def run(self, function: Callable[..., Any] | str, /, *args: Any, **options: Any) -> Any:
        """submit() and wait for the result. When the wait is cancelled, so is the task.

        >>> async with ProcessPool() as pool:
        ...     result = await pool.run(max, 3, 7, timeout=10)
        >>> result
        7
        """
        with Home.current():
            return await self.submit(function, *args, **options)

    def map(
        self,
        function: Callable[..., Any] | Iterable[str],
        /,
        *iterables: Iterable[Any],
        ordered: bool = True,
        chunksize: int | None = None,
        priority: TaskPriority = TaskPriority.NORMAL,
        timeout: float | Unset | None = UNSET,
        retries: RetryPolicy | int | None = None,
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
        self._intake.check_open()
        how = self._intake.how(priority, timeout, retries)
        whom = as_notify("notify", notify)
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
        workers = self._crew.size or self.config.most
        sizer = Sizer(chunksize or (1 if careful else None), total=total, workers=workers)
        star = len(iterables) > 1
        items = zip(*iterables) if star else iterables[0]  # noqa: B905 - the shortest ends it, as with the built-in map
        known = self._intake.snapshot(function)
        title = title_of(function)

        def submit(chunk: Sequence[Any], start: int) -> TaskHandle[Any]:
            handle = self._intake.handle()
            self._intake.submit_chunk(handle, known, f"{title}[{start}:{start + len(chunk)}]", chunk, how, star=star)
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
        def submit(chunk: Sequence[Any], _start: int) -> TaskHandle[Any]:
            handle = self._intake.handle()
            self._intake.submit(handle, chunk[0], (), {}, how, listed=True)
            return handle

        return mapped(
            submit,
            iter(lines),
            ordered=ordered,
            sizer=Sizer(1, total=None, workers=1),
            window=2 * (self._crew.size or self.config.most),
            bar=bar,
            finish=lambda: None,
        )

    # -- other faces

    def executor(self) -> PoolExecutor:
        """The pool as a ``concurrent.futures.Executor``, usable from any thread. Closing one leaves the pool alone.

        Where the pool lives on the kernel's own loop, wait for its futures with ``asyncio.wrap_future`` or ``loop.run_in_executor``; to
        block for them use ``background=True``.
        """
        return PoolExecutor(self._intake)

    # -- size and code

    def _reloaded(self) -> None:
        self._intake.do(self._crew.renew)

    def resize(self, workers: int | None) -> None:
        """Have exactly so many workers from now on; None: again as many as the load needs, between minimum and maximum. From any thread.

        New ones are ready some 30 ms later; those that are too many leave when they are free. Raises ValueError outside the pool's bounds.
        """
        if workers is not None:
            checks.whole("workers", workers)
        if workers is not None and not max(1, self.config.min_processes) <= workers <= self.config.most:
            raise ValueError(f"{self.name} may have from {max(1, self.config.min_processes)} to {self.config.most} workers, not {workers}")
        self._home.post(self._resize, workers)

    def _resize(self, workers: int | None) -> None:
        if not self._crew.closing:
            self._crew.size = workers
            if workers is not None:
                self._crew.begin()
            self._crew.resize(workers)

    def renew(self) -> None:
        """Replace every worker by a fresh one, each when it is free: after a module was changed on disk, say. From any thread."""
        self._home.post(self._crew.renew)

    # -- looking

    @hops
    async def ping(self) -> float:
        """Seconds that a worker took to answer an empty message, which is no task. Cancel it to limit the time.

        Raises CommunicationError where no worker is ready.

        >>> async with ProcessPool(PoolConfig(initial_processes=1)) as pool:
        ...     await pool.ping() < 60
        True
        """
        return await self._crew.ping()

    def metrics(self) -> PoolMetrics:
        """The pool's figures now.

        >>> async with ProcessPool() as pool:
        ...     _ = await pool.run(abs, -1)
        ...     pool.metrics().total_tasks_completed
        1
        """
        return self._look(lambda: report.metrics(self._desk, self._crew))

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that are there now, the oldest first; ``frame("workers")`` remembers the others, too.

        >>> async with ProcessPool(PoolConfig(initial_processes=1)) as pool:
        ...     [worker.state.value for worker in pool.workers()]
        ['idle']
        """
        return self._look(lambda: report.workers(self._crew))

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
        return self._look(lambda: report.worker_frame(self._crew) if what == "workers" else report.task_frame(self._desk))

    def _look(self, read: Callable[[], T]) -> T:
        """A read from another thread may meet a change; it is made again then."""
        while True:
            try:
                return read()
            except RuntimeError:  # a container changed size while it was read
                if self._home.here:
                    raise
                time.sleep(0)

    def __repr__(self) -> str:
        return report.summary(self.name, self.metrics(), self.config.most, closed=self.closed)

    def _html_(self) -> Html:
        return report.html(repr(self), self.workers())


def _is(kind: type[Any] | tuple[type[Any], ...], argument: str, value: Any) -> Any:
    """The value, if it is one of these. Raises TypeError."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        checks.refuse(TypeError, argument, " or ".join(f"a {one.__name__}" for one in kinds), value)
    return value
