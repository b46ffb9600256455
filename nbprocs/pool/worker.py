"""One worker as the pool knows it: its process, its connection, its window, its state. On the home loop only.

::

    STARTING ──► IDLE ◄──► BUSY          LEAVING gets no more tasks: it ends when it is free, or is killed
        │          │         │
        └──────────┴────┬────┘
                        ├──► LEAVING ──► GONE
                        └──────────────► GONE
"""

import asyncio
import time
from collections import deque

from nbprocs.engine.waiting import Waiters
from nbprocs.pool.connection import Connection
from nbprocs.pool.dispatch import Window
from nbprocs.pool.model import WorkerState
from nbprocs.pool.task import Task
from nbprocs.processes.process import ManagedProcess

__all__ = ["InvalidTransition", "WorkerHandle", "may_follow"]

_S = WorkerState
_NEXT: dict[WorkerState, frozenset[WorkerState]] = {
    _S.STARTING: frozenset({_S.IDLE, _S.LEAVING, _S.GONE}),
    _S.IDLE: frozenset({_S.BUSY, _S.LEAVING, _S.GONE}),
    _S.BUSY: frozenset({_S.IDLE, _S.LEAVING, _S.GONE}),
    _S.LEAVING: frozenset({_S.GONE}),
    _S.GONE: frozenset(),
}
_REMEMBERED = 12  # transitions


def may_follow(state: WorkerState, after: WorkerState) -> bool:
    """Whether a worker may go from one state to the other. Pure.

    >>> may_follow(WorkerState.STARTING, WorkerState.IDLE), may_follow(WorkerState.GONE, WorkerState.IDLE)
    (True, False)
    """
    return after in _NEXT[state]


class InvalidTransition(RuntimeError):
    """A fault of nbprocs: a worker was to go where its state does not lead. The text tells how it came there."""


class WorkerHandle:
    """One worker; what becomes of it is decided by nbprocs.pool.workers, what it works on by nbprocs.pool.core."""

    def __init__(self, name: str, *, generation: int, budget: int | None) -> None:
        self.name = name
        self.generation = generation
        self.connection: Connection = _NOT_YET
        self.window: Window[Task] = Window(self, budget=budget)
        self.process: ManagedProcess | None = None
        self.born: float = time.monotonic()
        self.ready_at: float | None = None
        self.ended_at: float | None = None
        self.idle_since: float = self.born
        self.done = 0
        self.memory: int | None = None  # bytes resident, at the last health check
        self.base_memory = 0  # at the first one
        self.pinged_at: float | None = None  # an unanswered ping
        self.pongs: Waiters[None] = Waiters()  # who waits for the next answer
        self.settled: Waiters[None] = Waiters()  # who waits until it is ready, or never will be
        self.reason = ""  # why it leaves or left
        self.asked = False  # to leave by itself
        self.endings = 0  # asyncio tasks that see to its end now
        self.error: BaseException | None = None  # why it never became ready
        self.kill_for: dict[Task, BaseException | None] = {}  # tasks for which it is to be killed; None: cancelled
        self.clock: asyncio.TimerHandle | None = None  # of the task that runs, if it has a timeout
        self.grace: asyncio.TimerHandle | None = None  # for an answer about withdrawn tasks, before it is killed
        self.state: WorkerState = WorkerState.STARTING
        self._history: deque[tuple[float, WorkerState]] = deque([(self.born, self.state)], maxlen=_REMEMBERED)

    def connect(self, connection: Connection) -> None:
        """Give it its connection, before it is started."""
        self.connection = connection
        self.window.deepest = connection.deepest

    @property
    def staying(self) -> bool:
        """It works, or will."""
        return self.state is not WorkerState.LEAVING and self.state is not WorkerState.GONE

    @property
    def gone(self) -> bool:
        """Its process has ended, or never was."""
        return self.state is WorkerState.GONE

    @property
    def usable(self) -> bool:
        """It can take tasks."""
        return self.state is WorkerState.IDLE or self.state is WorkerState.BUSY

    @property
    def has_begun(self) -> bool:
        """It works on what it was given; of a program that answers lines nobody can tell, and that is False."""
        return self.connection.tells_begin and next(iter(self.window.sent), 0) <= self.connection.claimed()[0]

    def move(self, state: WorkerState) -> None:
        """Change its state. Raises InvalidTransition, with its history, for a step that is none."""
        if state not in _NEXT[self.state]:
            steps = ", ".join(f"{was} at {at - self.born:.3f} s" for at, was in self._history)
            raise InvalidTransition(f"{self.name} can't become {state} ({self.reason or 'no reason'}); it was {steps}")
        self.state = state
        self._history.append((time.monotonic(), state))

    def count(self) -> None:
        """Busy or idle, by what it holds."""
        if self.state is (WorkerState.IDLE if self.window.sent else WorkerState.BUSY):
            self.move(WorkerState.BUSY if self.window.sent else WorkerState.IDLE)

    def withdraw(self) -> None:
        """Ask for everything back that has not started."""
        claimed, _ = self.connection.claimed()
        numbers = [number for number in self.window.sent if number > claimed]
        if numbers and not self.window.withdrawing:
            self.window.withdrawing = True
            self.connection.withdraw(numbers)

    def ping(self) -> None:
        """Ask for a sign of life, unless one is expected already."""
        if self.pinged_at is None:
            self.pinged_at = time.monotonic()
        self.connection.ping()

    def pong(self) -> None:
        """It lives."""
        self.pinged_at = None
        self.pongs.wake(None)

    def close(self) -> None:
        """Nothing of ours stays open."""
        for timer in (self.clock, self.grace):
            if timer is not None:
                timer.cancel()
        self.clock = self.grace = None
        self.connection.close()


class _NotYet:
    """Stands for the connection until there is one; nothing is sent before."""

    deepest = 0
    tells_begin = True

    def close(self) -> None:
        """Nothing is open."""


_NOT_YET: Connection = _NotYet()  # type: ignore[assignment]
