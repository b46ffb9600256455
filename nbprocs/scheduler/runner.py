"""The part of the scheduler that acts: starts what the queue says, hears how it ended, waits for the next time.

::

    schedule ─► admit ─► queue ─┐
                                ▼ once a turn of the loop
    timer ──────────────────► pump: take(now) ─► journal.flush() ─► tell who awaits ─► backend.start
                                ▲                                                          │
                                └──────────── ended: outcome, retry, next run ◄────────────┘

Everything here runs on the home loop, in callbacks that never wait; there is no task of its own and nobody polls. A timer never sleeps
longer than two seconds while a time is awaited: a machine that was suspended, or a clock that was set, is noticed within that.
"""

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from nbprocs.engine.home import Home, log
from nbprocs.errors import Closed, ProcessError, WorkerLost
from nbprocs.policy import RetryPolicy
from nbprocs.processes.events import Subscribers
from nbprocs.scheduler.backend import Backend, Ended, Started
from nbprocs.scheduler.entry import DEFAULTS, Entry
from nbprocs.scheduler.errors import StoreError
from nbprocs.scheduler.estimate import Durations
from nbprocs.scheduler.fence import Fence
from nbprocs.scheduler.joining import Joiners
from nbprocs.scheduler.journal import Journal
from nbprocs.scheduler.model import Attempt, Now, SchedulerConfig, SchedulerEvent, TaskEventKind, TaskState
from nbprocs.scheduler.options import timeout_factor
from nbprocs.scheduler.outcome import Outcome, Run, attempt_of, error_of, job_of
from nbprocs.scheduler.queue import TaskQueue
from nbprocs.scheduler.room import Room
from nbprocs.scheduler.slots import Slots
from nbprocs.scheduler.times import Recurrence, latest_due, next_run

__all__ = ["Runner"]

_NO_TIME = Now(0.0, 0.0)
_LONGEST_SLEEP = 2.0  # seconds
_GATE_SLEEP = 0.5  # seconds between looks at the free memory while a task waits for that alone
_ATTEMPTS_KEPT = 100  # of one task, in memory
_RETRY_STORE = 2.0  # seconds until a store that could not be written is tried again


class Runner:
    """The state of one scheduler on its home loop."""

    def __init__(
        self, config: SchedulerConfig, *, journal: Journal, prefix: str, backend: Backend, calls: Backend | None, clock: Callable[[], Now]
    ) -> None:
        self.config = config
        self.journal = journal
        self.prefix = prefix
        self.backend = backend
        self.calls = calls
        self.clock = clock
        self.home: Home | None = None
        self.queue = TaskQueue(groups=config.groups, resources=config.resources)
        self.room = Room(backend, self.queue, config.max_concurrent_tasks)
        self.durations = Durations()
        self.attempts: deque[Attempt] = deque(maxlen=config.history)
        self.finished: OrderedDict[int, Entry] = OrderedDict()
        self.names: dict[str, Entry] = {}
        self.edges: dict[int, dict[int, str]] = {}  # what waits -> what must end -> condition; kept with the ended ones, for the graph
        self.missing: dict[int, tuple[str, ...]] = {}  # secrets that this kernel does not have
        self.retries = self.failures = self.successes = self.series = 0
        self._halt: str | None = None  # by the halt policy, until resume()
        self._store_error: str | None = None  # until the store can be written again
        self.closed = False
        self.subscribers: Subscribers[[SchedulerEvent]] = Subscribers("the scheduler")
        self._slots = Slots()
        self._policies: dict[int, RetryPolicy] = {}
        self._runs = itertools.count(1)
        self._running: dict[int, Entry] = {}
        self._wanted = False
        self._timer: asyncio.TimerHandle | None = None
        self._told: list[Entry] = []  # ended, and to be told once it is on disk
        self.joiners = Joiners(self)
        self.fence = Fence(backend, prefix, stored=journal.store is not None)
        self._free_memory: Callable[[], float] | None = getattr(backend, "free_memory", None)

    # -- life

    def bind(self, home: Home) -> None:
        """Live on this loop from now on."""
        self.home = home
        self.backend.bind(home, self._capacity_changed)
        if self.calls is not None:
            self.calls.bind(home, lambda: None)
        self.room.read()
        self.fence.begin(home, self.want)
        self.want()

    def _capacity_changed(self) -> None:
        if not self.closed:
            self.room.read()
            self.emit(TaskEventKind.CHANGED)
            self.want()

    def want(self) -> None:
        """Pump in this turn of the loop. Without a home yet: when there is one."""
        if not self._wanted and self.home is not None and not self.closed:
            self._wanted = True
            self.home.post(self._pump)

    def task_id(self, entry: Entry) -> str:
        """The id that users know."""
        return f"{self.prefix}{entry.key}"

    async def close(self) -> None:
        """End what runs, note it as interrupted by us, close the backends. Tasks that had not ended stay in the store as queued."""
        self.closed = True
        self._disarm()
        for entry in list(self._running.values()):
            self._end_run(entry, "closing")
        await self.fence.aclose()
        await self.backend.aclose()
        if self.calls is not None:
            await self.calls.aclose()
        try:
            self.journal.flush()
        except StoreError as error:  # a full disk: what is not noted as ended runs again, and that is the promise
            log.warning("the last ends of tasks are not on disk, so the next scheduler of this store runs these tasks again: %s", error)
        self._tell()
        for entry in self.queue:
            self._wake(entry)
        self.joiners.end(Closed("the scheduler was closed while it was awaited"))
        self.emit(TaskEventKind.CLOSED)

    # -- in

    def admit(self, entry: Entry, after: Any = (), *, held: bool = False) -> None:
        """Take a new task into the queue."""
        options = entry.options
        if options is DEFAULTS and entry.due is None and not after and not held:
            self.queue.add(entry, _NO_TIME)  # nothing to compare with the clocks: don't ask for them
            if self.subscribers:
                self.emit(TaskEventKind.SCHEDULED, entry)
            if not self._wanted:
                self.want()
            return
        if options.recurrence is not None:
            self.series += 1
        if options.name is not None:
            self.names[options.name] = entry
        for other, condition in after:
            self.edges.setdefault(entry.key, {})[other.key] = condition.value
        if self.queue.add(entry, self.clock(), after=after, held=held) is TaskState.SKIPPED:
            self.settled(entry, None)
        if self.subscribers:
            self.emit(TaskEventKind.SCHEDULED, entry)
        self.want()

    # -- the pump

    def _pump(self) -> None:
        self._wanted = False
        if self.closed:
            return
        now = self.clock()
        taken = [] if self.halted or not self.fence.up else self.queue.take(now, self._free_memory)
        for entry in taken:
            self.journal.change(entry, started=now.wall)
        try:
            self.journal.flush()
        except StoreError as error:
            self._give_back(taken, now, error)
            return
        self._store_recovered()
        for entry in taken:
            self._launch(entry, now)
        self._tell()
        self._arm(now)
        self.joiners.check()
        self.room.demand(self.running(), idle=bool(self.halted))

    def _give_back(self, taken: list[Entry], now: Now, error: StoreError) -> None:
        """The disk does not take that they start, so they must not; nor is anybody told of an end that is not on disk. Tried again soon."""
        for entry in taken:
            self.queue.again(entry, now, time=entry.time, due=None)
            self.journal.waits_again(entry)
        if self._store_error is None:
            log.error("the task queue stands still: %s", error)
        self._store_error = str(error)
        if self.home is not None:
            self._disarm()
            self._timer = self.home.loop.call_later(_RETRY_STORE, self.want)

    def _store_recovered(self) -> None:
        if self._store_error is not None:
            self._store_error = None
            log.warning("the task queue goes on: its database can be written again")
            self.want()

    def _arm(self, now: Now) -> None:
        """Wake at the next time."""
        if self.home is None:
            return
        due = self.queue.next_time()
        delay = min(due.elapsed - now.elapsed, due.wall - now.wall, _LONGEST_SLEEP)
        if self.queue.gated():
            delay = min(delay, _GATE_SLEEP)
        elif due.elapsed == due.wall == float("inf"):
            self._disarm()
            return
        at = self.home.loop.time() + max(delay, 0.0)
        if self._timer is not None and not self._timer.cancelled() and self.home.loop.time() < self._timer.when() <= at:
            return
        self._disarm()
        self._timer = self.home.loop.call_at(at, self.want)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _launch(self, entry: Entry, now: Now) -> None:
        options = entry.options
        outcome = entry.outcome
        if outcome is None:
            outcome = entry.outcome = Outcome()
        if outcome.first is None:
            outcome.first = now.elapsed
            if options.recurrence is not None:
                outcome.base = self._base(entry, options.recurrence, now)
        slot, units = self._slots.take(options.resources, {r.name: r.capacity for r in self.queue.resources()} if options.resources else {})
        number = next(self._runs)
        run = entry.run = Run(
            id=f"{self.prefix}{entry.key}.{number}",
            number=outcome.attempts[-1].attempt + 1 if outcome.attempts else 1,
            started=now.wall,
            elapsed=now.elapsed,
            slot=slot,
            units=units,
        )
        env = self._slots.environment(slot, units)
        job = job_of(entry, run, task_id=self.task_id(entry), timeout=self.timeout(entry), env=env)
        self._running[entry.key] = entry
        self._backend(entry).start(job, lambda event: self._heard(entry, run, event))

    def _backend(self, entry: Entry) -> Backend:
        return self.calls if callable(entry.command) and self.calls is not None else self.backend

    def timeout(self, entry: Entry) -> float | None:
        """Seconds this attempt may take; a multiple of a duration that is not known yet is the config's default."""
        timeout = entry.options.timeout
        factor = timeout_factor(timeout)
        if factor is not None:
            usual = self.durations.mean((str(entry.command), *map(str, entry.args)))
            timeout = self.config.default_timeout if usual is None else max(factor * usual, 0.1)
        elif timeout is None:
            timeout = self.config.default_timeout
        return None if timeout is None or timeout == float("inf") else float(timeout)

    # -- ends

    def _heard(self, entry: Entry, run: Run, event: Started | Ended) -> None:
        now = self.clock()
        if isinstance(event, Started):
            self._began(entry, run, event, now)
            return
        self._running.pop(entry.key, None)
        self._slots.give(run.slot, run.units)
        attempt = attempt_of(entry, run, event, task_id=self.task_id(entry), wall=now.wall, elapsed=now.elapsed)
        self.attempts.append(attempt)
        outcome: Outcome = entry.outcome
        outcome.attempts = (*outcome.attempts[-_ATTEMPTS_KEPT:], attempt)
        outcome.result, outcome.error = event.result, event.error
        entry.run = None
        self.journal.attempt(entry, attempt, event.result, event.error)
        lost = event.error if isinstance(event.error, WorkerLost) else None
        stopped = event.stopped or lost is not None  # where its machine went nothing of it runs either
        if stopped and run.intent == "closing":
            self._back_to_queue(entry, now)
        elif stopped and run.intent:
            self._finish(entry, TaskState.CANCELLED, now)
        elif lost is not None and lost.expected:
            self._taken_away(entry, lost, now)
        else:
            self._judge(entry, attempt, event.error, now)
        self.want()

    def _began(self, entry: Entry, run: Run, event: Started, now: Now) -> None:
        """It runs: this is its start, not the hand-over. Where is noted too: on another machine it may outlive this kernel."""
        run.seen, run.started, run.elapsed = event, now.wall, now.elapsed
        self.journal.change(entry, started=now.wall, pid=event.pid, host=event.host, worker=event.worker)
        if event.worker:
            self.want()
        if self.subscribers:
            self.emit(TaskEventKind.STARTED, entry)

    def _taken_away(self, entry: Entry, error: WorkerLost, now: Now) -> None:
        """Its worker went on purpose: again, not counted. At once the first time, then with growing delays: it may be too long for any."""
        before = reversed(entry.outcome.attempts[:-1])
        losses = sum(1 for _ in itertools.takewhile(lambda attempt: attempt.reason == error.reason, before))
        delay = 0.0
        if losses:
            asked = self.config.policy(losses).decide(error, attempt=losses, elapsed=0.0)
            delay = self.config.retry_delay if asked is None else asked
        self.queue.again(entry, now, time=entry.time, due=now.elapsed + delay if delay else None)
        self.journal.waits_again(entry)
        self.emit(TaskEventKind.RETRYING, entry, delay=delay, error=error)

    def _back_to_queue(self, entry: Entry, now: Now) -> None:
        self.queue.again(entry, now, time=entry.time, due=None)
        self.journal.waits_again(entry)

    def _judge(self, entry: Entry, attempt: Attempt, error: BaseException | None, now: Now) -> None:
        entry.interruptions = 0
        if error is None:
            self.successes += 1
            self.durations.add((str(entry.command), *map(str, entry.args)), attempt.execution_time or 0.0)
            self._finish(entry, TaskState.SUCCEEDED, now)
            return
        delay = self._retry_delay(entry, error, now)
        if delay is not None:
            entry.retries += 1
            self.retries += 1
            self.queue.again(entry, now, time=now.wall + delay, due=now.elapsed + delay)
            self.journal.waits_again(entry)
            self.emit(TaskEventKind.RETRYING, entry, delay=delay, error=error)
            return
        self.failures += 1
        if isinstance(error, ProcessError):
            error.attempts = entry.retries + 1
        self._finish(entry, TaskState.FAILED, now)
        self._maybe_halt()

    def _retry_delay(self, entry: Entry, error: BaseException, now: Now) -> float | None:
        limit = self.max_retries(entry)
        policy = self._policies.get(limit)
        if policy is None:
            policy = self._policies[limit] = self.config.policy(limit)
        first = entry.outcome.first
        return policy.decide(error, attempt=entry.retries + 1, elapsed=now.elapsed - (now.elapsed if first is None else first))

    def max_retries(self, entry: Entry) -> int:
        """How often this task is tried again."""
        config, asked = self.config, entry.options.max_retries
        if asked is not None:
            return asked
        return config.max_retries if config.retry is None else config.retry.max_retries

    def _finish(self, entry: Entry, state: TaskState, now: Now) -> None:
        """The end of a task, or of one run of a series."""
        rule = entry.options.recurrence
        entry.runs += 1
        if rule is not None and state is not TaskState.CANCELLED and (rule.repeat is None or entry.runs < rule.repeat):
            outcome: Outcome = entry.outcome
            base = outcome.base if outcome.base is not None else self._base(entry, rule, now)
            on_wall = rule.cron is not None
            due, _ = next_run(rule, base, now.wall if on_wall else now.elapsed)
            entry.retries, outcome.first, outcome.base = 0, None, None
            self.queue.again(entry, now, time=due if on_wall else now.wall + due - now.elapsed, due=due, on_wall=on_wall)
            self.journal.waits_again(entry)
            self._told.append(entry)
            self.emit(TaskEventKind.ENDED, entry)
            return
        self.end(entry, state, now)

    @staticmethod
    def _base(entry: Entry, rule: Recurrence, now: Now) -> float:
        """Which of its times a run of a series that starts now stands for."""
        reading = now.wall if rule.cron is not None else now.elapsed
        due = entry.due
        if due is not None and entry.on_wall and rule.cron is None:
            due = now.elapsed - (now.wall - due)
        return reading if due is None else latest_due(rule, due, reading)

    def end(self, entry: Entry, state: TaskState, now: Now, why: str = "") -> None:
        """A task reaches a final state; those that can't run any more because of it are skipped."""
        skipped = self.queue.end(entry, state, now)
        self.settled(entry, None, why)
        for other, cause in skipped:
            self.settled(other, cause)

    def settled(self, entry: Entry, cause: Entry | None, why: str = "") -> None:
        """A task has got a final state: make its error, remember it, have it told."""
        if entry.options.recurrence is not None:
            self.series -= 1
        if entry.outcome is None:
            entry.outcome = Outcome()
        if cause is not None:
            why = (
                f"it depends on {cause.label}, which was {cause.state}" if cause.state is not TaskState.FAILED else f"{cause.label} failed"
            )
        error = error_of(entry, entry.state, why)
        if error is not None:
            entry.outcome.error = error
        self.finished[entry.key] = entry
        while len(self.finished) > self.config.history:
            _, old = self.finished.popitem(last=False)
            self.edges.pop(old.key, None)
            if old.options.name is not None and self.names.get(old.options.name) is old:
                del self.names[old.options.name]
        self.missing.pop(entry.key, None)
        extra = {"error": why} if why else {}
        self.journal.change(entry, retries=entry.retries, runs=entry.runs, started=None, **extra)
        self._told.append(entry)
        self.want()

    def _tell(self) -> None:
        """Now that it is on disk: wake who awaits."""
        told, self._told = self._told, []
        for entry in told:
            self._wake(entry)
            if self.subscribers and entry.state.final:
                self.emit(TaskEventKind.ENDED, entry)

    def told(self, entry: Entry) -> bool:
        """Whether its end is on disk, so that it may be told."""
        return entry.state.final and entry not in self._told

    @staticmethod
    def _wake(entry: Entry) -> None:
        waiters, entry.waiters = entry.waiters, None
        for wake in waiters or ():
            wake()

    # -- control

    def cancel(self, entry: Entry, *, flush: bool = True) -> None:
        """End it: at once if it waits, its whole tree if it runs."""
        if entry.state is TaskState.RUNNING:
            self._end_run(entry, "cancelled")
        elif not entry.state.final:
            self.end(entry, TaskState.CANCELLED, self.clock())
            if flush:
                self.journal.flush()

    def _end_run(self, entry: Entry, intent: str) -> None:
        run: Run | None = entry.run
        if run is not None:
            run.intent = run.intent or intent
            self._backend(entry).cancel(run.id, grace=self.config.grace)

    def _maybe_halt(self) -> None:
        halt = self.config.halt
        if halt is None or self._halt or not halt.reached(failed=self.failures, ended=self.failures + self.successes):
            return
        self._halt = f"{self.failures} of {self.failures + self.successes} ended tasks failed"
        if halt.now:
            for entry in list(self._running.values()):
                self._end_run(entry, "halted")
        self.emit(TaskEventKind.CHANGED)

    def resume(self) -> None:
        """Start again what there is; the failures so far are forgiven."""
        self.queue.paused = False
        self._halt = None
        self.failures = self.successes = 0
        self.want()

    def emit(self, kind: TaskEventKind, entry: Entry | None = None, **fields: Any) -> None:
        """Tell the subscribers."""
        if not self.subscribers:
            return
        task_id, state = ("", None) if entry is None else (self.task_id(entry), entry.state)
        self.subscribers.tell(SchedulerEvent(kind=kind, task_id=task_id, state=state, **fields))

    def running(self) -> list[Entry]:
        """The tasks that run."""
        return list(self._running.values())

    @property
    def pending(self) -> int:
        """Tasks that have not ended, without series."""
        return len(self.queue) - self.series

    @property
    def settled_all(self) -> bool:
        """Whether nothing is pending, and everybody has been told."""
        return self.pending <= 0 and not self._told

    @property
    def idle(self) -> bool:
        """Whether nothing runs and no pump is due."""
        return not self._running and not self._wanted

    @property
    def store_failed(self) -> bool:
        """Whether it stands still because its store can't be written."""
        return self._store_error is not None

    @property
    def halted(self) -> str | None:
        """Why nothing starts: the store, or the halt policy."""
        return self._store_error or self._halt
