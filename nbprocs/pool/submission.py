"""How a task comes into a pool: from any thread, as bytes, by one door.

::

    submit, map, executor ─► Codec ─► Task ─┬─ on the home loop ────────────────► PoolCore
                                            └─ elsewhere ─► inbox ─one wake-up─►  PoolCore
"""

import asyncio
import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from nbprocs import checks
from nbprocs.config import UNSET, Unset
from nbprocs.engine.home import Home
from nbprocs.errors import Closed
from nbprocs.model import TaskPriority
from nbprocs.policy import RetryPolicy
from nbprocs.pool.codec import Codec, Function
from nbprocs.pool.command import CommandWorker
from nbprocs.pool.core import PoolCore
from nbprocs.pool.kinds import title_of, unpicklable
from nbprocs.pool.model import PoolConfig, PythonWorker
from nbprocs.pool.task import BlockableFuture, PoolTaskHandle, Task, stands_for
from nbprocs.pool.worker_main import dumps

__all__ = ["How", "Submission"]


Future = asyncio.Future[Any] | BlockableFuture[Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a task is to be treated."""

    priority: int
    timeout: float | None
    policy: RetryPolicy | None


class Submission:
    """The one door of a pool. It is also what the executor works with."""

    def __init__(self, core: PoolCore, codec: Codec, kind: PythonWorker | CommandWorker) -> None:
        self._home = core.home
        self._core = core
        self._codec = codec
        self._kind = kind
        self._name = core.name
        self._numbers = itertools.count(1)
        self._inbox: deque[Callable[[], object] | Task] = deque()
        self._posted = False
        self.closed = False
        config = core.workers.config
        policy = policy_of(config.max_retries or None, config)
        self.default: How = How(priority=int(TaskPriority.NORMAL), timeout=config.task_timeout, policy=policy)

    @property
    def home(self) -> Home:
        """Where the results come in."""
        return self._home

    def check_open(self) -> None:
        """Raise Closed after the end."""
        if self.closed:
            raise Closed(f"{self._name} is closed and takes no more tasks", name=self._name, hint="create another ProcessPool")

    def handle(self) -> PoolTaskHandle[Any]:
        """A new handle of the running loop, or of the pool's own where none runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = self._home.loop
        handle: PoolTaskHandle[Any] = PoolTaskHandle(self.give_up, loop)
        if loop is not self._home.loop:  # our own loop beats while workers live; the other one must notice interrupts, too
            caller = Home.current()
            caller.__enter__()
            handle.add_done_callback(lambda _: caller.__exit__(None, None, None))
        return handle

    def how(self, priority: TaskPriority, timeout: float | timedelta | Unset | None, retries: RetryPolicy | int | None) -> How:
        """The pool's defaults with what was given. Raises TypeError and ValueError for what can't be."""
        limit = self.default.timeout if timeout is UNSET else checks.seconds("timeout", timeout)
        policy = self.default.policy if retries is None else policy_of(retries, self._core.workers.config)
        return How(priority=checks.whole("priority", priority), timeout=limit, policy=policy)

    def submit(
        self, future: Future, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: How, *, listed: bool = False
    ) -> Task:
        """One call. Raises Closed; what can't be sent fails its future."""
        if self.closed:
            self.check_open()
        known = buffers = error = None
        payload: Any = None
        try:
            if isinstance(self._kind, CommandWorker):
                payload, title = _question(function, args, kwargs), str(function)[:80]
            else:
                title = title_of(function)
                known, payload, buffers = self._codec.call(function, args, kwargs)
        except Exception as cause:  # noqa: BLE001 - whatever the arguments' own reducers raise is this task's alone
            title, error = title_of(function), unpicklable(function, cause)
        task = Task(
            next(self._numbers),
            title,
            known,
            payload,
            buffers,
            priority=how.priority,
            timeout=how.timeout,
            policy=how.policy,
            future=future,
            context=self._core.speech.here(),
            listed=listed,
        )
        self._put(task, error)
        return task

    def submit_chunk(self, future: Future, known: Function, title: str, chunk: Sequence[Any], how: How, *, star: bool) -> Task:
        """Several calls of one function as one task, whose result is (values, error)."""
        if self.closed:
            self.check_open()
        self._codec.look()
        error = buffers = None
        payload: Any = None
        try:
            payload, buffers = dumps(chunk)
        except Exception as cause:  # noqa: BLE001 - as above
            error = unpicklable(title, cause)
        limit = how.timeout and how.timeout * len(chunk)
        task = Task(
            next(self._numbers),
            title,
            known,
            payload,
            buffers,
            priority=how.priority,
            timeout=limit,
            policy=how.policy,
            future=future,
            context=self._core.speech.here(),
            star=star,
        )
        self._put(task, error)
        return task

    def _put(self, task: Task, error: BaseException | None) -> None:
        """To the core: directly on the home loop, by the inbox from elsewhere (one wake-up for a burst)."""
        if asyncio._get_running_loop() is self._home.loop:  # noqa: SLF001 - like get_running_loop, without an exception where none runs
            if self._inbox:
                self.take_inbox()
            self._core.accept(task, error)
            return
        self._inbox.append((lambda: self._core.accept(task, error)) if error is not None else task)
        if not self._posted:
            self._posted = True
            self._home.post(self.take_inbox)

    def do(self, act: Callable[[], object]) -> None:
        """On the home loop, before what is submitted after this: at once if this is its thread."""
        if self._home.here:
            self.take_inbox()
            act()
            return
        self._inbox.append(act)
        if not self._posted:
            self._posted = True
            self._home.post(self.take_inbox)

    def take_inbox(self) -> None:
        """On the home loop: accept what other threads have put there."""
        self._posted = False  # before the inbox is looked at: who comes later posts again
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Task):
                self._core.accept(item, None)
            else:
                item()

    def give_up(self, task: Task) -> None:
        """A handle was cancelled, on whatever thread."""
        with contextlib.suppress(Closed):  # the loop is gone, and the call with it
            self.do(lambda: self._core.give_up(task))

    def snapshot(self, function: Callable[..., Any]) -> Function:
        """The function as it is now, for a whole map(). Raises CommunicationError if it can't be sent."""
        try:
            return self._codec.snapshot(function)
        except Exception as cause:
            raise unpicklable(function, cause) from cause

    # -- the executor's backend

    @property
    def workers(self) -> int:
        """How many there may be."""
        return self._core.workers.limit

    def future(self) -> BlockableFuture[Any]:
        """For the executor."""
        return BlockableFuture(self._home, self.give_up)

    def call(self, future: BlockableFuture[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """For the executor."""
        stands_for(future, self.submit(future, function, args, kwargs, self.default))

    def chunks(
        self, function: Callable[..., Any], *, star: bool
    ) -> tuple[Callable[[BlockableFuture[Any], list[Any]], None], Callable[[], object]]:
        """For the executor."""
        self.check_open()
        known, title = self.snapshot(function), title_of(function)
        return (
            lambda future, chunk: stands_for(future, self.submit_chunk(future, known, title, chunk, self.default, star=star)),
            lambda: self._codec.retire(known),
        )


def policy_of(retries: RetryPolicy | int | None, config: PoolConfig) -> RetryPolicy | None:
    """A number stands for so many tries after the first, ``retry_delay`` seconds before the second, doubled for each further one."""
    if retries is None or isinstance(retries, RetryPolicy):
        return retries
    if isinstance(retries, bool) or not hasattr(retries, "__index__"):
        checks.refuse(TypeError, "retries", "a RetryPolicy or a whole number, 0 or more", retries)
    checks.whole("retries", retries, least=0)
    return RetryPolicy(max_retries=retries, initial_delay=config.retry_delay, jitter=False) if retries else None


def _question(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if not isinstance(function, str) or args or kwargs:
        raise TypeError("a CommandWorker takes one line of text and nothing else")
    if "\n" in function or "\r" in function:
        raise ValueError("a question is one line; a newline in it would ask two")
    return function
