"""How a task comes into a pool: from any thread, as bytes, by one door.

::

    submit, map, executor ─► Codec ─► Task ─┬─ on the home loop ────────────────► Desk
                                            └─ elsewhere ─► inbox ─one wake-up─►  Desk
"""

import asyncio
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nbprocs import checks
from nbprocs.config import UNSET, Unset
from nbprocs.engine.home import Home
from nbprocs.errors import Closed, CommunicationError
from nbprocs.guard import text_of
from nbprocs.model import TaskPriority
from nbprocs.policy import RetryPolicy
from nbprocs.pool.codec import Codec, Function
from nbprocs.pool.command import CommandWorker
from nbprocs.pool.crew import Crew
from nbprocs.pool.desk import Desk
from nbprocs.pool.model import PoolConfig, PythonWorker
from nbprocs.pool.task import BlockableFuture, Task, TaskHandle
from nbprocs.pool.worker_main import dumps

__all__ = ["How", "Intake", "setup_of", "title_of"]


Future = TaskHandle[Any] | BlockableFuture[Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a task is to be treated."""

    priority: int
    timeout: float | None
    policy: RetryPolicy | None


class Intake:
    """See the module's text. It is also what the executor works with."""

    def __init__(self, desk: Desk, crew: Crew, codec: Codec, kind: PythonWorker | CommandWorker, *, name: str) -> None:
        self._home = desk.home
        self._desk = desk
        self._crew = crew
        self._codec = codec
        self._kind = kind
        self._name = name
        self._numbers = itertools.count(1)
        self._inbox: deque[Callable[[], object] | Task] = deque()
        self._posted = False
        self.closed = False
        config = crew.config
        policy = policy_of(config.max_retries or None, config)
        self.default = How(priority=int(TaskPriority.NORMAL), timeout=config.task_timeout, policy=policy)

    @property
    def home(self) -> Home:
        """Where the results come in."""
        return self._home

    def check_open(self) -> None:
        """Raise Closed after the end."""
        if self.closed:
            raise Closed(f"{self._name} is closed and takes no more tasks", name=self._name, hint="create another ProcessPool")

    def handle(self) -> TaskHandle[Any]:
        """A new handle of the running loop, or of the pool's own where none runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = self._home.loop
        handle: TaskHandle[Any] = TaskHandle(self.give_up, loop)
        if loop is not self._home.loop:  # our own loop beats while workers live; the other one must notice interrupts, too
            caller = Home.current()
            caller.__enter__()
            handle.add_done_callback(lambda _: caller.__exit__(None, None, None))
        return handle

    def how(self, priority: TaskPriority, timeout: float | Unset | None, retries: RetryPolicy | int | None) -> How:
        """The pool's defaults with what was given. Raises TypeError and ValueError for what can't be."""
        limit = self.default.timeout if timeout is UNSET else checks.seconds("timeout", timeout)
        policy = self.default.policy if retries is None else policy_of(retries, self._crew.config)
        return How(priority=checks.whole("priority", priority), timeout=limit, policy=policy)

    def submit(
        self, future: Future, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: How, *, listed: bool = False
    ) -> None:
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
            title, error = title_of(function), _unpicklable(function, cause)
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
            context=self._desk.speech.here(),
            listed=listed,
        )
        future.stands_for(task)
        self._put(task, error)

    def submit_chunk(self, future: Future, known: Function, title: str, chunk: Sequence[Any], how: How, *, star: bool) -> None:
        """Several calls of one function as one task, whose result is (values, error)."""
        if self.closed:
            self.check_open()
        self._codec.look()
        error = buffers = None
        payload: Any = None
        try:
            payload, buffers = dumps(chunk)
        except Exception as cause:  # noqa: BLE001 - as above
            error = _unpicklable(title, cause)
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
            context=self._desk.speech.here(),
            star=star,
        )
        future.stands_for(task)
        self._put(task, error)

    def _put(self, task: Task, error: BaseException | None) -> None:
        """Onto the desk: directly on the home loop, by the inbox from elsewhere (one wake-up for a burst)."""
        if asyncio._get_running_loop() is self._home.loop:  # noqa: SLF001 - like get_running_loop, without an exception where none runs
            if self._inbox:
                self.take_inbox()
            self._accept(task, error)
            return
        self._inbox.append((lambda: self._accept(task, error)) if error is not None else task)
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
                self._accept(item, None)
            else:
                item()

    def _accept(self, task: Task, error: BaseException | None) -> None:
        if self._crew.closing:
            error = error or Closed(f"{self._name} was closed before the task was started", name=self._name)
        if error is not None:
            task.policy = None
            self._desk.refuse(task, error)
            return
        if not self._crew.started:
            self._crew.begin()
        self._desk.enqueue(task)

    def give_up(self, task: Task) -> None:
        """A handle was cancelled, on whatever thread."""
        self.do(lambda: self._desk.give_up(task))

    def snapshot(self, function: Callable[..., Any]) -> Function:
        """The function as it is now, for a whole map(). Raises CommunicationError if it can't be sent."""
        try:
            return self._codec.snapshot(function)
        except Exception as cause:
            raise _unpicklable(function, cause) from cause

    # -- the executor's backend

    @property
    def workers(self) -> int:
        """How many there may be."""
        return self._crew.size or self._crew.config.most

    def future(self) -> BlockableFuture[Any]:
        """For the executor."""
        return BlockableFuture(self._home, self.give_up)

    def call(self, future: BlockableFuture[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """For the executor."""
        self.submit(future, function, args, kwargs, self.default)

    def chunks(
        self, function: Callable[..., Any], *, star: bool
    ) -> tuple[Callable[[BlockableFuture[Any], list[Any]], None], Callable[[], object]]:
        """For the executor."""
        self.check_open()
        known, title = self.snapshot(function), title_of(function)
        return (
            lambda future, chunk: self.submit_chunk(future, known, title, chunk, self.default, star=star),
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


def title_of(function: Any) -> str:
    """What a task is called in errors and frames."""
    try:
        name = getattr(function, "__qualname__", None)
    except BaseException:  # noqa: BLE001 - its own __getattr__
        name = None
    return name if type(name) is str else type(function).__qualname__


def setup_of(kind: PythonWorker | CommandWorker) -> bytes | None:
    """The initialiser as bytes. Raises CommunicationError if it can't be sent."""
    if isinstance(kind, CommandWorker) or kind.initializer is None:
        return None
    try:
        return dumps((kind.initializer, kind.initargs), apart=False)[0]
    except Exception as cause:
        raise _unpicklable(kind.initializer, cause) from cause


def _question(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if not isinstance(function, str) or args or kwargs:
        raise TypeError("a CommandWorker takes one line of text and nothing else")
    if "\n" in function or "\r" in function:
        raise ValueError("a question is one line; a newline in it would ask two")
    return function


def _unpicklable(function: Any, cause: BaseException) -> CommunicationError:
    title = function if isinstance(function, str) else title_of(function)
    error = CommunicationError(
        f"{title} can't be sent to a worker: {text_of(cause)}",
        hint="send data, and open files, sockets or locks inside the function",
    )
    error.__cause__ = cause
    return error
