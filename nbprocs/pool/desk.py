"""The tasks' side of a pool: queue them, hand them out, take the answers, try again, settle. On the home loop only.

::

    enqueue ─► Dispatcher.queue ─pump─► Lane ─► Link.dispatch          one write for all that is ready
                   ▲     ▲                         │
       retry timer ┘     └─ stolen back ───────────┤
                                                   ▼
        settle ◄── outcome.read ◄── answers ◄── Member (nbprocs.pool.crew)

The dispatcher decides; this carries out.
"""

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from nbprocs.engine.home import Home
from nbprocs.errors import ProcessError
from nbprocs.guard import add_note, text_of, told
from nbprocs.pool.dispatch import STALE, Dispatcher, Lane
from nbprocs.pool.model import TaskState
from nbprocs.pool.outcome import Outcome, read
from nbprocs.pool.speech import Speech
from nbprocs.pool.task import BlockableFuture, Task, TaskHandle
from nbprocs.pool.worker_main import MANY, OUTPUT, READY, STOPPED, VALUE, Message

if TYPE_CHECKING:
    from nbprocs.pool.crew import Crew
    from nbprocs.pool.member import Member

__all__ = ["Desk"]

_BURST = 64  # tasks submitted in one go before they are handed out without waiting for the loop


class Desk:
    """See the module's text."""

    def __init__(self, home: Home, speech: Speech, *, history: int, most: int) -> None:
        self.home = home
        self.speech = speech
        self.most = most  # workers
        self.dispatcher: Dispatcher[Task] = Dispatcher()
        self.crew: Crew | None = None
        self.ended: deque[Task] = deque(maxlen=history)
        self.delayed: dict[Task, asyncio.TimerHandle] = {}  # they wait to be tried again
        self.limbo: dict[Task, BaseException] = {}  # their worker is dead, what it left is being cleared away
        self.completed = self.failed = self.cancelled = self.retries = 0
        self.seconds = 0.0  # in workers, of completed tasks
        self._due = False
        self._tick: asyncio.TimerHandle | None = None
        self._foreign: dict[asyncio.AbstractEventLoop, list[tuple[TaskHandle[Any], Outcome]]] = {}
        self._joiners: list[asyncio.Future[None]] = []

    @property
    def outstanding(self) -> int:
        """Tasks that have not ended."""
        return len(self.dispatcher.queue) + self.dispatcher.running + len(self.delayed) + len(self.limbo)

    # -- out

    def enqueue(self, task: Task) -> None:
        """A new task, or one to be tried again. A lone one goes out at once, a burst in few writes."""
        if not self._due and (found := self.dispatcher.direct(task, now := time.monotonic())) is not None:
            self._hand(found[0], found[1], [task], now)
            return
        queue = self.dispatcher.queue
        queue.push(task)
        if not self._due:
            self._due = True
            self.home.loop.call_soon(self._pump_due)
        elif not len(queue) % _BURST:
            self.pump()

    def _pump_due(self) -> None:
        self._due = False
        self.pump()

    def pump(self) -> None:
        """Hand out what the dispatcher plans."""
        if not self.dispatcher.queue:
            return
        now = time.monotonic()
        for lane, first, tasks in self.dispatcher.plan(now):
            self._hand(lane, first, tasks, now)
        if self.dispatcher.queue and self.crew is not None:
            self.crew.short_of_hands()

    def _hand(self, lane: Lane[Task], first: int, tasks: list[Task], now: float) -> None:
        member: Member = lane.key  # type: ignore[assignment]
        timed = False
        sent = []
        head = first if len(lane.sent) == len(tasks) else 0  # this one starts now; the others can still be taken back, and cancelled
        for number, task in enumerate(tasks, first):
            if number == head and type(task.future) is not TaskHandle and not self._wanted(task):
                lane.sent.pop(number)
                continue
            task.state = TaskState.RUNNING
            task.worker = member.name
            task.started = now
            timed = timed or task.timeout is not None
            sent.append((number, task))
        member.link.dispatch(sent)
        if timed:
            member.watch_time()
        if len(lane.sent) > 1 and self._tick is None:
            self._tick = self.home.loop.call_later(STALE, self._take_stale)

    def _take_stale(self) -> None:
        """Runs every few milliseconds while a lane holds more than one task: what does not get on is taken back."""
        self._tick = None
        self._take_back()
        if self._tick is None and any(len(lane.sent) > 1 for lane in self.dispatcher.lanes.values()):
            self._tick = self.home.loop.call_later(STALE, self._take_stale)

    def _take_back(self) -> None:
        for lane, _ in self.dispatcher.stale(time.monotonic()):
            lane.key.withdraw()  # type: ignore[attr-defined]

    # -- in

    def answers(self, member: "Member", messages: list[Message]) -> None:
        """What one worker answered; all of it is settled before anything new is handed out."""
        sent = member.lane.sent
        now = time.monotonic()
        count = total = 0
        for message in messages:
            if message[0] >= READY:
                if message[0] == OUTPUT:
                    self._said(member, message)
                else:
                    member.reported(message)
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
            if message[0] == VALUE:
                self._complete(task, (message[3], None))
            else:
                self._judge(task, message)
        if count:
            self.dispatcher.pace.note(total * 1e-9 / count, count)
            member.lane.stuck = False
            member.worked(count, now)
        self._go_on(member)

    def _said(self, member: "Member", message: Message) -> None:
        task = member.lane.sent.get(message[1])
        number, context = (0, None) if task is None else (task.number, task.context)
        self.speech.take(member.name, number, context, *message[3])

    def _go_on(self, member: "Member") -> None:
        """Some tasks have ended: deliver, and hand out new ones."""
        sent = member.lane.sent
        if sent and isinstance((head := next(iter(sent.values()))).future, BlockableFuture):
            self._wanted(head)
        if self._foreign:
            self._deliver()
        self.pump()
        if not sent and self._tick is not None:
            self._take_back()  # it has nothing to do: perhaps another one holds what it could do
        if self._joiners and not self.outstanding:
            self._tell_joiners()

    def _judge(self, task: Task, message: Message) -> None:
        """An answer that needs unpickling, or is an error."""
        outcome = read(message, title=task.title, worker=task.worker)
        if outcome[1] is not None:
            self.fail(task, outcome[1])
        elif message[0] in (MANY, STOPPED) and outcome[0][1] is not None and task.policy is not None:
            self.fail(task, outcome[0][1], outcome)
        else:
            self._complete(task, outcome)

    def _complete(self, task: Task, outcome: Outcome) -> None:
        task.attempts += 1
        task.state = TaskState.COMPLETED
        self.completed += 1
        self.seconds += task.seconds
        self._settle(task, (([outcome[0]], None), None) if task.listed else outcome)

    def _wanted(self, task: Task) -> bool:
        """False for an executor's future that was cancelled before its task started: the task ends here. From now on it can't be."""
        future = task.future
        if isinstance(future, BlockableFuture) and not future.begin():
            self._cancelled(task)
            return False
        return True

    def refuse(self, task: Task, error: BaseException) -> None:
        """It never gets into the queue."""
        if not self._wanted(task):
            return
        self.fail(task, error)
        self.flush()

    def fail(self, task: Task, error: BaseException, outcome: Outcome | None = None) -> None:
        """A try failed: another one after a while, or the end."""
        now = time.monotonic()
        task.attempts += 1
        task.error = text_of(error)[:500].encode("utf-8", "backslashreplace").decode()
        delay = None
        if task.policy is not None and self.crew is not None and not self.crew.closing:
            delay = _decide(task, error, now)
        if delay is not None:
            self.retries += 1
            task.state = TaskState.QUEUED
            self.delayed[task] = self.home.loop.call_later(delay, self._again, task)
            return
        if isinstance(error, ProcessError):
            with contextlib.suppress(Exception):  # a subclass of the user's may be frozen
                error.attempts = task.attempts
        elif task.attempts > 1:
            add_note(error, f"after {task.attempts} attempts")
        task.ended = now
        task.state = TaskState.TIMED_OUT if isinstance(error, TimeoutError) and isinstance(error, ProcessError) else TaskState.FAILED
        self.failed += 1
        self._settle(task, outcome or (None, error))

    def bury(self, worker: str) -> None:
        """Of a dead worker nothing is left: now its tasks fail, or are tried again."""
        for task in [task for task in self.limbo if task.worker == worker]:
            error = self.limbo.pop(task)
            if not task.dropped:
                self.fail(task, error)
        self.flush()

    def _again(self, task: Task) -> None:
        del self.delayed[task]
        self.enqueue(task)

    # -- the end of a task

    def _settle(self, task: Task, outcome: Outcome) -> None:
        future = task.future
        task.release()
        self.ended.append(task)
        if type(future) is TaskHandle:
            loop = future.get_loop()
            if loop is self.home.loop:
                _resolve(future, outcome)
            else:
                self._foreign.setdefault(loop, []).append((future, outcome))
        elif future is not None:
            _resolve(future, outcome)

    def _deliver(self) -> None:
        """Handles of other loops: one wake-up for each loop, not for each handle."""
        foreign, self._foreign = self._foreign, {}
        for loop, settled in foreign.items():
            try:
                loop.call_soon_threadsafe(_resolve_all, settled)
            except RuntimeError:
                continue  # that loop is closed: nobody can await there any more

    def flush(self) -> None:
        """Deliver what was settled outside of answers()."""
        if self._foreign:
            self._deliver()
        if self._joiners and not self.outstanding:
            self._tell_joiners()

    def _cancelled(self, task: Task) -> None:
        task.dropped = True
        if isinstance(task.future, BlockableFuture):
            task.future.begin()
        task.ended = time.monotonic()
        task.state = TaskState.CANCELLED
        self.cancelled += 1
        task.release()
        self.ended.append(task)

    def give_up(self, task: Task) -> None:
        """Its handle was cancelled."""
        if task.state.final or task.dropped:
            self.flush()  # it ended when it was handed out, which tells nobody
            return
        running = task.state is TaskState.RUNNING
        self.limbo.pop(task, None)
        if (timer := self.delayed.pop(task, None)) is not None:
            timer.cancel()
        elif not running:
            self.dispatcher.queue.drop(task)
        self._cancelled(task)
        if running and self.crew is not None:
            self.crew.interrupt(task)
        self.flush()

    def abandon(self, error: BaseException) -> None:
        """Every task that is not in a worker fails with this error: nobody will ever run it."""
        for timer in self.delayed.values():
            timer.cancel()
        waiting = [*self.dispatcher.queue.take(len(self.dispatcher.queue)), *self.delayed]
        self.delayed.clear()
        for task in waiting:
            task.policy = None
            if self._wanted(task):
                self.fail(task, error)
        self.flush()

    async def join(self) -> None:
        """Wait until every task has ended."""
        if self.outstanding:
            joiner = self.home.loop.create_future()
            self._joiners.append(joiner)
            await joiner

    def _tell_joiners(self) -> None:
        for joiner in self._joiners:
            if not joiner.done():
                joiner.set_result(None)
        self._joiners.clear()

    def close(self) -> None:
        """No timer of ours is left."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None


def _decide(task: Task, error: BaseException, now: float) -> float | None:
    """Seconds until the next try. A policy's own functions are the user's: one that fails gives the task up."""
    if task.policy is None:
        return None
    try:
        return task.policy.decide(error, attempt=task.attempts, elapsed=now - task.queued)
    except BaseException as problem:  # noqa: BLE001 - sys.exit() in a condition ends no loop of ours
        told(f"the retry policy of {task.title}", problem)
        return None


def _resolve(future: Any, outcome: Outcome) -> None:
    if future.done() or (type(future) is BlockableFuture and not future.begin()):
        return
    value, error = outcome
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _resolve_all(settled: list[tuple[TaskHandle[Any], Outcome]]) -> None:
    for handle, outcome in settled:
        _resolve(handle, outcome)
