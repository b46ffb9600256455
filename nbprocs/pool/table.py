"""The tasks of a pool from their submission to their end: waiting to be tried again, settled, counted, remembered. On the home loop only.

Which worker runs them when is nbprocs.pool.dispatch's; here is what becomes of each.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from nbprocs.engine.home import Home
from nbprocs.errors import ProcessError
from nbprocs.guard import add_note, text_of, told
from nbprocs.pool.model import PoolTaskState
from nbprocs.pool.outcome import Outcome
from nbprocs.pool.task import BlockableFuture, Task

__all__ = ["TaskTable"]


class TaskTable:
    """What was submitted and is neither queued nor in a worker, and what has ended."""

    def __init__(self, home: Home, *, history: int, again: Callable[[Task], None]) -> None:
        """``again`` gets a task that is to be tried once more, when its time has come."""
        self._home = home
        self._again = again
        self.ended: deque[Task] = deque(maxlen=history)
        self.delayed: dict[Task, asyncio.TimerHandle] = {}  # they wait to be tried again
        self.dying: dict[Task, BaseException] = {}  # their worker is dead, what it left is being cleared away
        self.retrying = True
        self.completed: int = 0
        self.failed: int = 0
        self.cancelled: int = 0
        self.retries: int = 0
        self.seconds: float = 0.0  # in workers, of completed tasks
        self._foreign: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Outcome]]] = {}

    @property
    def waiting(self) -> int:
        """How many of them have not ended."""
        return len(self.delayed) + len(self.dying)

    def complete(self, task: Task, outcome: Outcome) -> None:
        """It has a result."""
        task.attempts += 1
        task.state = PoolTaskState.COMPLETED
        self.completed += 1
        self.seconds += task.seconds
        self._settle(task, (([outcome[0]], None), None) if task.listed else outcome)

    def fail(self, task: Task, error: BaseException, outcome: Outcome | None = None) -> None:
        """A try failed: another one after a while, or the end."""
        now = time.monotonic()
        task.attempts += 1
        task.error = text_of(error)[:500].encode("utf-8", "backslashreplace").decode()
        delay = _decide(task, error, now) if self.retrying else None
        if delay is not None:
            self.retries += 1
            task.state = PoolTaskState.QUEUED
            self.delayed[task] = self._home.loop.call_later(delay, self._try_again, task)
            return
        ours = issubclass(type(error), ProcessError)  # isinstance() would ask the user's object for its __class__
        if ours:
            with contextlib.suppress(Exception):  # a subclass of the user's may be frozen
                error.attempts = task.attempts  # type: ignore[attr-defined]
        elif task.attempts > 1:
            add_note(error, f"after {task.attempts} attempts")
        task.ended = now
        task.state = PoolTaskState.TIMED_OUT if ours and issubclass(type(error), TimeoutError) else PoolTaskState.FAILED
        self.failed += 1
        self._settle(task, outcome or (None, error))

    def _try_again(self, task: Task) -> None:
        del self.delayed[task]
        self._again(task)

    def refuse(self, task: Task, error: BaseException) -> None:
        """It never runs, and is not tried again."""
        task.policy = None
        if self.wanted(task):
            self.fail(task, error)

    def wanted(self, task: Task) -> bool:
        """False for an executor's future that was cancelled before its task started: the task ends here. Once this was True it can't be."""
        future = task.future
        if isinstance(future, BlockableFuture) and not future.begin():
            self.cancel(task)
            return False
        return True

    def cancel(self, task: Task) -> None:
        """It was given up."""
        self.dying.pop(task, None)
        if (timer := self.delayed.pop(task, None)) is not None:
            timer.cancel()
        task.dropped = True
        if isinstance(task.future, BlockableFuture):
            task.future.begin()
        task.ended = time.monotonic()
        task.state = PoolTaskState.CANCELLED
        self.cancelled += 1
        task.release()
        self.ended.append(task)

    def fail_dying(self, worker: str) -> None:
        """Of a dead worker nothing is left: now its tasks fail, or are tried again."""
        for task in [task for task in self.dying if task.worker == worker]:
            error = self.dying.pop(task)
            if not task.dropped:
                self.fail(task, error)

    def take_delayed(self) -> list[Task]:
        """Those that wait to be tried again; they don't wait any more."""
        for timer in self.delayed.values():
            timer.cancel()
        tasks = list(self.delayed)
        self.delayed.clear()
        return tasks

    def _settle(self, task: Task, outcome: Outcome) -> None:
        future = task.future
        task.release()
        self.ended.append(task)
        if future is None:
            return
        if isinstance(future, BlockableFuture):
            resolve(future, outcome)
            return
        loop = future.get_loop()
        if loop is self._home.loop:
            resolve(future, outcome)
        else:
            self._foreign.setdefault(loop, []).append((future, outcome))

    def deliver(self) -> None:
        """Tell the handles of other loops: one wake-up for each loop, not for each handle."""
        if not self._foreign:
            return
        foreign, self._foreign = self._foreign, {}
        for loop, settled in foreign.items():
            try:
                loop.call_soon_threadsafe(_resolve_all, settled)
            except RuntimeError:
                continue  # that loop is closed: nobody can await there any more


def _decide(task: Task, error: BaseException, now: float) -> float | None:
    """Seconds until the next try. A policy's own functions are the user's: one that fails gives the task up."""
    if task.policy is None:
        return None
    try:
        return task.policy.decide(error, attempt=task.attempts, elapsed=now - task.queued)
    except BaseException as problem:  # noqa: BLE001 - sys.exit() in a condition ends no loop of ours
        told(f"the retry policy of {task.title}", problem)
        return None


def resolve(future: Any, outcome: Outcome) -> None:
    """Give a future its result, unless it was cancelled."""
    if future.done() or (type(future) is BlockableFuture and not future.begin()):
        return
    value, error = outcome
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _resolve_all(settled: list[tuple[asyncio.Future[Any], Outcome]]) -> None:
    for handle, outcome in settled:
        resolve(handle, outcome)
