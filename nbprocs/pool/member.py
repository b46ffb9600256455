"""One worker as the pool knows it: its process, its link, its lane, and what is to become of it. On the home loop only."""

import asyncio
import time
from typing import TYPE_CHECKING

from nbprocs.engine.output import wake
from nbprocs.errors import ExecutionTimeout
from nbprocs.pool.dispatch import Lane
from nbprocs.pool.model import WorkerState
from nbprocs.pool.outcome import raised, timed_out
from nbprocs.pool.python import Link
from nbprocs.pool.task import Task
from nbprocs.pool.worker_main import READY, Message
from nbprocs.processes.process import ManagedProcess

if TYPE_CHECKING:
    from nbprocs.pool.crew import Crew

__all__ = ["Member"]

_LAST_WORDS = 0.05  # seconds for an answer about withdrawn tasks before a worker is killed


class Member:
    """One worker. It hears what its link is told, and passes it to the desk."""

    def __init__(self, crew: "Crew", name: str, *, generation: int, budget: int | None) -> None:
        self.crew = crew
        self.name = name
        self.generation = generation
        self.link: Link = crew.make_link(self)
        self.lane: Lane[Task] = Lane(self, deepest=self.link.deepest, budget=budget)
        self.process: ManagedProcess | None = None
        self.born = time.monotonic()
        self.ready_at: float | None = None
        self.ended_at: float | None = None
        self.idle_since = self.born
        self.done = 0
        self.memory: int | None = None  # bytes resident, at the last health check
        self.base_memory = 0  # at the first one
        self.pinged_at: float | None = None  # an unanswered ping
        self.pongs: list[asyncio.Future[None]] = []  # who waits for the next answer
        self.reason = ""  # why it leaves or left
        self.leaving = False
        self.dismissed = False
        self.seen_off = 0  # tasks that see to its end now
        self.gone = False
        self.error: BaseException | None = None  # why it never became ready
        self.ready: asyncio.Future[None] = crew.home.loop.create_future()  # settled when it is ready, or never will be
        self.sentences: dict[Task, BaseException | None] = {}  # tasks for which it is to be killed; None: cancelled
        self._clock: asyncio.TimerHandle | None = None
        self._farewell: asyncio.TimerHandle | None = None

    @property
    def state(self) -> WorkerState:
        """As it is shown."""
        if self.gone:
            return WorkerState.GONE
        if self.leaving:
            return WorkerState.LEAVING
        if self.ready_at is None:
            return WorkerState.STARTING
        return WorkerState.BUSY if self.lane.sent else WorkerState.IDLE

    # -- Listener

    def answers(self, messages: list[Message]) -> None:
        """Straight to the desk."""
        self.crew.desk.answers(self, messages)

    def reported(self, message: Message) -> None:
        """READY or BROKEN."""
        if message[0] == READY:
            self.crew.arrived(self)
        else:
            self.crew.unusable(self, raised(message[3], title="", worker=self.name))

    def returned(self, numbers: list[int]) -> None:
        """It gave tasks back."""
        self.crew.returned(self, numbers)

    def pong(self) -> None:
        """It lives."""
        self.pinged_at = None
        wake(self.pongs)

    def spent(self, reason: str) -> None:
        """No more tasks for it."""
        self.crew.leave(self, reason)

    def hung_up(self) -> None:
        """Its socket is closed: normally because it is ending. One that lives on without it is of no use."""
        self.lane.open = False
        if not self.gone:
            self.crew.home.loop.call_later(4 * _LAST_WORDS, self.crew.end, self, "it closed its socket")

    # -- tasks

    def worked(self, count: int, now: float) -> None:
        """It answered so many tasks."""
        self.done += count
        self.idle_since = now
        self.pinged_at = None
        self.crew.brake.useful()
        if self.lane.sent:
            return
        if self.leaving:
            self.crew.dismiss(self)
        elif self.lane.budget is not None and self.lane.budget <= 0:
            self.crew.leave(self, f"ran {self.done} tasks")

    def withdraw(self) -> None:
        """Ask for everything back that has not started."""
        claimed, _ = self.link.claimed()
        numbers = [number for number in self.lane.sent if number > claimed]
        if numbers and not self.lane.withdrawing:
            self.lane.withdrawing = True
            self.link.withdraw(numbers)

    def watch_time(self) -> None:
        """Some task here has a timeout: look when the first could be over. One timer a worker, since only one task runs."""
        if self._clock is None:
            limits = [task.timeout for task in self.lane.sent.values() if task.timeout is not None]
            if limits:
                self._clock = self.crew.home.loop.call_later(min(limits), self._check_time)

    def _check_time(self) -> None:
        self._clock = None
        self.link.drain()
        if self.gone:
            return
        now = time.monotonic()
        number, began = self.link.claimed()
        task = self.lane.sent.get(number)
        if task is None or task.timeout is None:
            if not task and any(t.timeout and now - t.started > t.timeout for t in self.lane.sent.values()):
                self.crew.suspect(self)  # it does not even start what it was sent
            self.watch_time()
            return
        left = began + task.timeout - now
        if left > 0:
            self._clock = self.crew.home.loop.call_later(left + 0.001, self._check_time)
        elif task not in self.sentences:
            process = self.process
            error = timed_out(
                task.title,
                seconds=task.timeout,
                worker=self.name,
                process_id=process.id if process else "",
                last_output=process.tail() if process else "",
            )
            self.condemn(task, error)

    def condemn(self, task: Task, error: BaseException | None) -> None:
        """Kill it because of the task that it runs, but first take back the others: none of them may start in its last moment."""
        self.sentences[task] = error
        self.lane.open = False
        claimed, _ = self.link.claimed()
        if any(number > claimed for number in self.lane.sent):
            self.withdraw()
            if self._farewell is None:
                self._farewell = self.crew.home.loop.call_later(_LAST_WORDS, self.execute)
        else:
            self.execute()

    def execute(self) -> None:
        """Carry the sentence out, unless the task has ended in the meantime."""
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None
        self.link.drain()
        if self.gone:
            return
        if any(task in self.sentences for task in self.lane.sent.values()):
            late = any(isinstance(error, ExecutionTimeout) for error in self.sentences.values())
            self.crew.end(self, "a task ran out of time" if late else "a running task was cancelled")
        else:
            self.sentences.clear()
            self.lane.open = not self.leaving
            self.crew.desk.pump()

    def close(self) -> None:
        """Nothing of ours stays open."""
        for timer in (self._clock, self._farewell):
            if timer is not None:
                timer.cancel()
        self._clock = self._farewell = None
        self.link.close()
