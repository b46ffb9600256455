"""The core of a pool: it knows the tasks and the workers, which don't know each other. On the home loop only.

::

    enqueue ─► Dispatcher.queue ─pump─► Window ─► Connection.dispatch      one write for all that is ready
                   ▲     ▲                           │
       retry timer ┘     └─ taken back ──────────────┤
                                                     ▼
     TaskTable.complete, fail ◄── outcome.read ◄── answers ◄── Connection

The dispatcher decides which task goes where, Workers how many there are, Kills who must go; this passes on what each has to know. All
answers that come in one turn of the loop are settled before anything new is planned.
"""

import asyncio
import functools
import time

from nbprocs.engine.home import Home, Tasks
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import Closed, CommunicationError
from nbprocs.guard import attempt, text_of
from nbprocs.pool.connection import Connection, ConnectionEvents, MakeConnection
from nbprocs.pool.dispatch import STALE, Dispatcher, Window
from nbprocs.pool.kills import Kills
from nbprocs.pool.model import PoolConfig, PoolTaskState
from nbprocs.pool.outcome import crashed, raised, read
from nbprocs.pool.speech import Speech
from nbprocs.pool.table import TaskTable
from nbprocs.pool.task import BlockableFuture, Task
from nbprocs.pool.worker import WorkerHandle
from nbprocs.pool.worker_main import MANY, OUTPUT, READY, STOPPED, VALUE, Message
from nbprocs.pool.workers import Demand, Workers
from nbprocs.processes.manager import ProcessManager, manager_core

__all__ = ["PoolCore"]

_BURST = 64  # tasks submitted in one go before they are handed out without waiting for the loop
_LATE = 1.0  # seconds after which a worker that has not begun what it was given is looked at
_DOUBT = 0.2  # seconds after a worker closed its socket: normally it is ending


class PoolCore:
    """Everything of a pool that lives on its home loop."""

    def __init__(
        self,
        manager: ProcessManager,
        config: PoolConfig,
        *,
        name: str,
        speech: Speech,
        make_connection: MakeConnection,
        own_manager: bool,
    ) -> None:
        self.home: Home = manager_core(manager).home
        self.name = name
        self.speech = speech
        self.dispatcher: Dispatcher[Task] = Dispatcher()
        self.table: TaskTable = TaskTable(self.home, history=config.history, again=self.enqueue)
        self._worker_tasks = Tasks(self.home)
        self.workers: Workers = Workers(self, manager, config, name=name, tasks=self._worker_tasks)
        self._make_connection = make_connection
        self._kills = Kills(self.home, self.workers, spared=self._spared)
        self._manager = manager if own_manager else None
        self._due = False
        self._tick: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._joiners: Waiters[None] = Waiters()
        self._tasks = Tasks(self.home)
        self._closing: asyncio.Task[None] | None = None

    @property
    def outstanding(self) -> int:
        """Tasks that have not ended."""
        return len(self.dispatcher.queue) + self.dispatcher.running + self.table.waiting

    # -- out

    def enqueue(self, task: Task) -> None:
        """A new task, or one to be tried again. A lone one goes out at once, a burst in few writes."""
        if not self._due and (found := self.dispatcher.direct(task, now := time.monotonic())) is not None:
            self._hand(found[0], found[1], [task], now)
            return
        queue = self.dispatcher.queue
        queue.push(task)
        if not len(queue) % _BURST:
            self.pump()
        else:
            self._pump_soon()

    def _pump_soon(self) -> None:
        """Once for all that happens in this turn of the loop."""
        if not self._due:
            self._due = True
            self.home.loop.call_soon(self._pump_due)

    def _pump_due(self) -> None:
        self._due = False
        self.pump()

    def pump(self) -> None:
        """Hand out what the dispatcher plans."""
        if not self.dispatcher.queue:
            return
        now = time.monotonic()
        for window, first, tasks in self.dispatcher.plan(now):
            self._hand(window, first, tasks, now)
        if self.dispatcher.queue:
            self.workers.short()

    def _hand(self, window: Window[Task], first: int, tasks: list[Task], now: float) -> None:
        worker: WorkerHandle = window.owner
        timed = False
        sent = []
        head = first if len(window.sent) == len(tasks) else 0  # this one starts now; the others can still be taken back, and cancelled
        for number, task in enumerate(tasks, first):
            if number == head and type(task.future) is BlockableFuture and not self.table.wanted(task):
                window.sent.pop(number)
                self.dispatcher.answered(window, 1)
                continue
            task.state = PoolTaskState.RUNNING
            task.worker = worker.name
            task.started = now
            timed = timed or task.timeout is not None
            sent.append((number, task))
        worker.count()
        worker.connection.dispatch(sent)
        if timed:
            self._kills.watch(worker)
        if self._tick is None and len(window.sent) > 1:
            self._tick = self.home.loop.call_later(STALE, self._take_stale)
        if self._watch is None:
            self._watch = self.home.loop.call_later(_LATE, self._look_at_late)

    def _look_at_late(self) -> None:
        """Runs once a second while tasks are out: a worker that somebody has stopped while it was idle begins nothing (ADR 0215)."""
        self._watch = None
        out = [window for window in self.dispatcher.windows if window.sent]
        for window in out:
            if time.monotonic() - window.filled_at >= _LATE and not window.owner.has_begun:
                self.workers.wake(window.owner)
        if out:
            self._watch = self.home.loop.call_later(_LATE, self._look_at_late)

    def _take_stale(self) -> None:
        """Runs every few milliseconds while a window holds more than one task: what does not get on is taken back."""
        self._tick = None
        self._take_back()
        if self._tick is None and any(len(window.sent) > 1 for window in self.dispatcher.windows):
            self._tick = self.home.loop.call_later(STALE, self._take_stale)

    def _take_back(self) -> None:
        for window, _ in self.dispatcher.stale(time.monotonic()):
            window.owner.withdraw()

    # -- in: what connections tell

    def connect(self, worker: WorkerHandle) -> Connection:
        """The connection of a new worker."""
        return self._make_connection(
            ConnectionEvents(
                answers=functools.partial(self.answers, worker),
                returned=functools.partial(self._returned, worker),
                pong=worker.pong,
                spent=functools.partial(self.workers.leave, worker),
                hung_up=functools.partial(self._hung_up, worker),
            ),
            self._worker_tasks,
        )

    def answers(self, worker: WorkerHandle, messages: list[Message]) -> None:
        """What one worker answered."""
        window = worker.window
        sent = window.sent
        now = time.monotonic()
        count = total = 0
        for message in messages:
            kind = message[0]
            if kind >= READY:
                self._said(worker, message)
                continue
            task = sent.pop(message[1], None)
            if task is None:
                continue
            count += 1
            total += message[2]
            if task.dropped:
                continue
            task.seconds = message[2] * 1e-9
            task.ended = now
            task.started = now - task.seconds
            if kind == VALUE:
                self.table.complete(task, (message[3], None))
            else:
                self._judge(task, message)
        if not count:
            return
        self.dispatcher.pace.note(total * 1e-9 / count, count)
        self.dispatcher.answered(window, count)
        self.workers.worked(worker, count, now)
        if sent and type((head := next(iter(sent.values()))).future) is BlockableFuture:
            self.table.wanted(head)
        self.table.deliver()
        if self.dispatcher.queue:
            self._pump_soon()
        elif not sent and self._tick is not None:
            self._take_back()  # it has nothing to do: perhaps another one holds what it could do
        self._tell_joiners()

    def _judge(self, task: Task, message: Message) -> None:
        """An answer that needs unpickling, or is an error."""
        outcome, problem = attempt(read, message, title=task.title, worker=task.worker)
        if outcome is None:  # whatever the user's object did: its task must not be lost
            said = "" if problem is None else text_of(problem)
            outcome = None, CommunicationError(f"the answer of {task.title} can't be taken: {said}", name=task.worker)
        if outcome[1] is not None:
            self.table.fail(task, outcome[1])
        elif message[0] in (MANY, STOPPED) and outcome[0][1] is not None and task.policy is not None:
            self.table.fail(task, outcome[0][1], outcome)
        else:
            self.table.complete(task, outcome)

    def _said(self, worker: WorkerHandle, message: Message) -> None:
        """READY, BROKEN, or some output."""
        if message[0] == OUTPUT:
            task = worker.window.sent.get(message[1])
            number, context = (0, None) if task is None else (task.number, task.context)
            self.speech.take(worker.name, number, context, *message[3])
        elif message[0] == READY:
            self.workers.arrived(worker)
        else:
            self.workers.unusable(worker, raised(message[3], title="", worker=worker.name))

    def _returned(self, worker: WorkerHandle, numbers: list[int]) -> None:
        """These never started there."""
        for number in numbers:
            task = worker.window.sent.get(number)
            if task is not None and not task.dropped:
                task.state = PoolTaskState.QUEUED
        self.dispatcher.returned(worker.window, numbers)
        worker.count()
        self._kills.returned(worker)
        if not worker.staying and not worker.window.sent:
            self.workers.dismiss(worker)
        self.pump()
        self.flush()  # cancelled ones go nowhere from here: perhaps they were the last that a join() waits for

    def _hung_up(self, worker: WorkerHandle) -> None:
        """Its socket is closed: normally because it is ending. One that lives on without it is of no use."""
        worker.window.open = False
        if not worker.gone:
            self.home.loop.call_later(_DOUBT, self.workers.end, worker, "it closed its socket")

    # -- in: what the workers tell

    def demand(self) -> Demand:
        """What waits for workers now."""
        queue = self.dispatcher.queue
        first = next(iter(queue), None)
        return Demand(queued=len(queue), mean=self.dispatcher.pace.mean, waiting=time.monotonic() - first.queued if first else 0.0)

    def ready(self, worker: WorkerHandle) -> None:
        """It takes tasks."""
        self.dispatcher.add(worker.window)
        self.pump()

    def closed_to_tasks(self, worker: WorkerHandle) -> None:
        """It takes none any more."""
        self.dispatcher.remove(worker.window)

    def _spared(self, worker: WorkerHandle) -> None:
        self.dispatcher.reopen(worker.window)
        self.pump()

    def lost(self, worker: WorkerHandle, *, ours: bool) -> None:
        """Its process has ended: what it ran fails once its tree is gone, too; the others go back to the queue."""
        claimed, _ = worker.connection.claimed()
        for number, task in worker.window.sent.items():
            if number > claimed and not task.dropped:
                task.state = PoolTaskState.QUEUED
        for task in self.dispatcher.lost(worker.window, claimed):
            if not task.dropped:
                self.table.dying[task] = worker.kill_for.get(task) or self._crash_error(worker, task, ours=ours)
        self._pump_soon()

    def _crash_error(self, worker: WorkerHandle, task: Task, *, ours: bool) -> BaseException:
        if self.workers.closing:
            return Closed(f"{task.title} was still running when {self.name} was closed", name=self.name)
        process = worker.process
        why = worker.reason if ours else None
        return crashed(task.title, process.result if process else None, last_output=process.tail() if process else "", why=why)

    def tree_ended(self, worker: WorkerHandle) -> None:
        """Nothing of a dead worker is left: now its tasks fail, or are tried again."""
        self.table.fail_dying(worker.name)
        self.flush()

    def hopeless(self, error: BaseException) -> None:
        """No worker can be started: nobody will ever run what waits."""
        for task in [*self.dispatcher.queue.take(len(self.dispatcher.queue)), *self.table.take_delayed()]:
            self.table.refuse(task, error)
        self.flush()

    # -- in: what submitters tell

    def accept(self, task: Task, error: BaseException | None) -> None:
        """A new task; with an error, one that can't be run."""
        if self.workers.closing:
            error = error or Closed(f"{self.name} was closed before the task was started", name=self.name)
        if error is not None:
            self.table.refuse(task, error)
            self.flush()
            return
        if not self.workers.started:
            self.workers.begin()
        self.enqueue(task)

    def give_up(self, task: Task) -> None:
        """Its handle was cancelled."""
        if task.state.final or task.dropped:
            self.flush()  # it ended when it was handed out, which tells nobody
            return
        running = task.state is PoolTaskState.RUNNING
        if not running and task not in self.table.delayed:
            self.dispatcher.queue.drop(task)
        dying = task in self.table.dying
        self.table.cancel(task)
        if running and not dying and (worker := self.workers.live.get(task.worker)) is not None:
            self._kills.interrupt(worker, task)
        self.flush()

    # -- ends

    def flush(self) -> None:
        """Deliver what was settled outside of answers()."""
        self.table.deliver()
        self._tell_joiners()

    def _tell_joiners(self) -> None:
        if self._joiners and not self.outstanding:
            self._joiners.wake(None)

    async def join(self) -> None:
        """Wait until every task has ended."""
        while self.outstanding:
            await self._joiners.wait()

    async def aclose(self) -> None:
        """End everything. Idempotent, and not called off when the wait is cancelled."""
        if self._closing is None:
            self._closing = self._tasks.start(self._close(), name=f"close {self.name}")
        await asyncio.wait({self._closing})
        self._closing.result()

    async def _close(self) -> None:
        self.workers.closing = True
        self.table.retrying = False
        closed = Closed(f"{self.name} was closed before the task was started", name=self.name)
        self.hopeless(closed)
        await self.workers.aclose()
        self.hopeless(closed)  # what the workers had not started
        for timer in (self._tick, self._watch):
            if timer is not None:
                timer.cancel()
        self._tick = self._watch = None
        if self._manager is not None:
            await self._manager.aclose(grace=0.5)

    def forget(self) -> None:
        """Nobody holds the pool any more: it ends when the last of its tasks has."""
        if self._closing is None:
            self._tasks.start(self._end_forgotten(), name=f"end of {self.name}, which nobody holds")

    async def _end_forgotten(self) -> None:
        await self.join()
        await self.aclose()
