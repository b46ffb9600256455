"""The part of the scheduler that acts: starts what the queue says, hears how it ended, waits for the next time.

::

    schedule ─► admit ─► queue ─┐
                                ▼ once a turn of the loop
    timer ──────────────────► pump: take(now) ─► writer.flush() ─► tell who awaits ─► backend.start
                                ▲                                                          │
                                └──────────── ended: outcome, retry, next run ◄────────────┘

All of it runs on the home loop, in callbacks that never wait. A timer sleeps two seconds at most: a clock that was set is noticed by then.
"""

import functools
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from nbprocs.engine.home import Home, log
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import Closed, ProcessError, UnknownProcess, WorkerLost
from nbprocs.processes.events import Subscribers
from nbprocs.processes.recording import RecordsJobs
from nbprocs.scheduler.alarm import Alarm
from nbprocs.scheduler.backend import Adopting, Backend, Ended, Report, Started
from nbprocs.scheduler.entry import DEFAULTS, Entry
from nbprocs.scheduler.errors import StoreError
from nbprocs.scheduler.estimate import Durations
from nbprocs.scheduler.fence import Fence
from nbprocs.scheduler.joining import check_joiners
from nbprocs.scheduler.model import Attempt, Condition, Now, SchedulerConfig, SchedulerEvent, TaskEventKind, TaskState
from nbprocs.scheduler.notices import tell_end, wake
from nbprocs.scheduler.outcome import KERNEL_DIED, RunningAttempt, TaskOutcome, attempt_of, error_of, job_of, skip_reason
from nbprocs.scheduler.queue import TaskQueue
from nbprocs.scheduler.room import Room
from nbprocs.scheduler.settings import QueueSettings
from nbprocs.scheduler.slots import SlotNumbers
from nbprocs.scheduler.times import next_run
from nbprocs.scheduler.tries import Tries, base_of
from nbprocs.scheduler.writer import StoreWriter, stored_text

__all__ = ["Runner"]

_NO_TIME = Now(0.0, 0.0)
_ATTEMPTS_KEPT = 100  # of one task, in memory
_RETRY_STORE = 2.0  # seconds until a store that could not be written is tried again


class Runner:
    """The state of one scheduler on its home loop."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        writer: StoreWriter,
        prefix: str,
        backend: Backend,
        calls: Backend | None,
        clock: Callable[[], Now],
    ) -> None:
        self.config: SchedulerConfig = config
        self.writer: StoreWriter = writer
        self.prefix: str = prefix
        self.backend: Backend = backend
        self.calls: Backend | None = calls
        self.clock: Callable[[], Now] = clock
        self.home: Home | None = None
        self.inside: object = None  # what is to live as long as this does
        self.queue: TaskQueue = TaskQueue(groups=config.groups, resources=config.resources)
        self.room: Room = Room(backend, self.queue, config.max_concurrent_tasks)
        self.settings: QueueSettings = QueueSettings(writer.store, config)
        self.durations: Durations = Durations()
        self.attempts: deque[Attempt] = deque(maxlen=config.history)
        self.finished: OrderedDict[int, Entry] = OrderedDict()
        self.names: dict[str, Entry] = {}  # the latest of each name
        self.keys: dict[str, Entry] = {}  # and of each key
        self.edges: dict[int, dict[int, str]] = {}  # what waits -> what must end -> condition; kept with the ended ones, for the graph
        self.missing: dict[int, tuple[str, ...]] = {}  # secrets that this kernel does not have
        self.adoptees: dict[int, tuple[Entry, float]] = {}  # run already, since then: started detached by a former kernel
        self.retries: int = 0
        self.failures: int = 0
        self.successes: int = 0
        self.series: int = 0
        self._halt: str | None = None  # by the halt policy, until resume()
        self._store_error: str | None = None  # until the store can be written again
        self.closed: bool = False
        self.subscribers: Subscribers[[SchedulerEvent]] = Subscribers("the scheduler")
        self.tries: Tries = Tries(config)
        self._runs, self._running, self._told = itertools.count(1), dict[int, Entry](), list[Entry]()  # told: once it is on disk
        self._slots, self._alarm, self._wanted = SlotNumbers(), Alarm(), False
        self.joiners: Waiters[None] = Waiters()
        self.at_rest: Callable[[], object] | None = None  # called once nothing runs and nothing starts by itself
        self.recorder: RecordsJobs | None = None
        self.fence: Fence = Fence(backend, prefix, stored=writer.store is not None)
        self._free_memory: Callable[[], float] | None = getattr(backend, "free_memory", None)

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

    def restore(self) -> None:
        """Take over what former kernels said of the queue itself."""
        self._halt = self.settings.restore(self.queue, self.room)

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
        self._alarm.off()
        for entry in list(self._running.values()):
            if not entry.options.detached:  # those go on; the next scheduler of the store takes them up
                self._end_run(entry, "closing")
        await self.fence.aclose()
        await self.backend.aclose()
        if self.calls is not None:
            await self.calls.aclose()
        try:
            self.writer.flush()
        except StoreError as error:  # a full disk: what is not noted as ended runs again, and that is the promise
            log.warning("the last ends of tasks are not on disk, so the next scheduler of this store runs these tasks again: %s", error)
        self._tell()
        for entry in self.queue:
            wake(entry)
        self.joiners.fail(Closed("the scheduler was closed while it was awaited"))
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
        if options.key is not None:
            self.keys[options.key] = entry
        if self.queue.add(entry, self.clock(), after=after, held=held) is TaskState.SKIPPED:
            self.settled(entry, next(other for other, condition in after if other.state.final and not condition.met(other.state)))
        if self.subscribers:
            self.emit(TaskEventKind.SCHEDULED, entry)
        self.want()

    def revive(self, entry: Entry, after: list[tuple[Entry, Condition]], stamp: float) -> None:
        """Have an ended task run again, with all its retries, once those that it waits for have ended."""
        if self.finished.pop(entry.key, None) is not None:
            self.queue.counts[entry.state] -= 1
        entry.state, entry.time, entry.due, entry.on_wall = TaskState.QUEUED, stamp, None, False
        entry.retries = entry.runs = entry.interruptions = 0
        entry.needs = entry.dependents = entry.lane = entry.run = None
        entry.ticket += 1
        if entry.outcome is not None:
            entry.outcome.first = entry.outcome.base = entry.outcome.root = None
        self._told = [other for other in self._told if other is not entry]
        self.admit(entry, after)
        self.writer.waits_again(entry)
        self.writer.change(entry, error=None)

    # -- the pump

    def _pump(self) -> None:
        self._wanted = False
        if self.closed:
            return
        now = self.clock()
        if self.adoptees and self.fence.up:
            self._adopt_all(now)
        taken = [] if self.halted or not self.fence.up else self.queue.take(now, self._free_memory)
        for entry in taken:
            self.writer.change(entry, started=now.wall)
        try:
            self.writer.flush()
        except StoreError as error:
            self._give_back(taken, now, error)
            return
        if self._store_error is not None:
            self._store_error = None
            log.warning("the task queue goes on: its database can be written again")
            self.want()
        for entry in taken:
            self._launch(entry, now)
        self._tell()
        if self.home is not None:
            self._alarm.set(self.home, self.queue, now, self.want)
        self._check_joiners()
        self.room.demand(self.running(), idle=bool(self.halted))

    def _check_joiners(self) -> None:
        queue, idle = self.queue, not self._running and not self._wanted
        quiet = idle and not queue.paused and not self.store_failed and self.fence.up
        check_joiners(self.joiners, queue, done=self.settled_all, quiet=quiet, halted=self.halted)
        if idle and self.at_rest is not None:
            counts = queue.counts
            if self.halted or queue.paused or not (counts[TaskState.QUEUED] or counts[TaskState.SCHEDULED]):
                at_rest, self.at_rest = self.at_rest, None
                at_rest()

    def _give_back(self, taken: list[Entry], now: Now, error: StoreError) -> None:
        """The disk does not take that they start, so they must not; nor is anybody told of an end that is not on disk. Tried again soon."""
        for entry in taken:
            self.queue.again(entry, now, time=entry.time, due=None)
            self.writer.waits_again(entry)
        if self._store_error is None:
            log.error("the task queue stands still: %s", error)
        self._store_error = str(error)
        if self.home is not None:
            self._alarm.set_in(self.home, _RETRY_STORE, self.want)

    def _adopt_all(self, now: Now) -> None:
        """Take up what a former kernel started and left running: it is not run again."""
        adoptees, self.adoptees = self.adoptees, {}
        for entry, started in adoptees.values():
            self._launch(entry, now, started=started)

    def _launch(self, entry: Entry, now: Now, *, started: float | None = None) -> None:
        """Hand it to its backend: to be started, or with ``started`` to be taken up as it runs since then."""
        options = entry.options
        outcome = entry.outcome = entry.outcome or TaskOutcome()
        if outcome.first is None:
            outcome.first = now.elapsed
            if options.recurrence is not None:
                outcome.base = base_of(entry, options.recurrence, now)
        slot, units = self._slots.take(options.resources, {r.name: r.capacity for r in self.queue.resources()} if options.resources else {})
        number = next(self._runs)
        run = entry.run = RunningAttempt(
            id=f"{self.prefix}{entry.key}.{number}",
            number=outcome.attempts[-1].attempt + 1 if outcome.attempts else 1,
            started=now.wall if started is None else started,
            elapsed=now.elapsed - (0.0 if started is None else now.wall - started),
            slot=slot,
            units=units,
        )
        env = self._slots.environment(slot, units)
        job = job_of(entry, run, task_id=self.task_id(entry), timeout=self.tries.timeout(entry, self.durations), env=env)
        self._running[entry.key] = entry
        backend = self._backend(entry)
        report: Report = functools.partial(self._heard, entry, run)
        if self.recorder is not None:
            report = self.recorder.listening(job, report)
        if started is None:
            backend.start(job, report)
        elif isinstance(backend, Adopting):
            run.adopted = True
            backend.adopt(job, report)
        else:
            run.adopted = True
            report(Ended(error=UnknownProcess(f"the backend {backend.name!r} can't take it up")))

    def _backend(self, entry: Entry) -> Backend:
        return self.calls if callable(entry.command) and self.calls is not None else self.backend

    # -- ends

    def _heard(self, entry: Entry, run: RunningAttempt, event: Started | Ended) -> None:
        now = self.clock()
        if isinstance(event, Started):
            self._began(entry, run, event, now)
            return
        self._running.pop(entry.key, None)
        self._slots.give(run.slot, run.units)
        unknown = run.adopted and isinstance(event.error, UnknownProcess)
        run.intent = run.intent or (KERNEL_DIED if unknown else "")
        attempt = attempt_of(entry, run, event, task_id=self.task_id(entry), wall=now.wall, elapsed=now.elapsed)
        self.attempts.append(attempt)
        outcome: TaskOutcome = entry.outcome
        outcome.attempts = (*outcome.attempts[-_ATTEMPTS_KEPT:], attempt)
        outcome.result, outcome.error = event.result, event.error
        entry.run = None
        self.writer.attempt(entry, attempt, event.result, event.error)
        lost = event.error if isinstance(event.error, WorkerLost) else None
        stopped = event.stopped or lost is not None  # where its machine went nothing of it runs either
        if unknown and run.intent == KERNEL_DIED:
            self._died_with_kernel(entry, now)
        elif stopped and run.intent == "closing":
            self._back_to_queue(entry, now)
        elif stopped and run.intent:
            self._finish(entry, TaskState.CANCELLED, now)
        elif lost is not None and lost.expected:
            self._taken_away(entry, lost, now)
        else:
            self._judge(entry, attempt, event.error, now)
        self.want()

    def _began(self, entry: Entry, run: RunningAttempt, event: Started, now: Now) -> None:
        """It runs: this is its start, not the hand-over. Where is noted too: on another machine it may outlive this kernel."""
        run.seen = event
        if not run.adopted:
            run.started, run.elapsed = now.wall, now.elapsed
        self.writer.change(entry, started=run.started, pid=event.pid, host=event.host, worker=event.worker)
        if event.worker:
            self.want()
        if self.subscribers:
            self.emit(TaskEventKind.STARTED, entry)

    def _taken_away(self, entry: Entry, error: WorkerLost, now: Now) -> None:
        """Its worker went on purpose: again, not counted. At once the first time, then with growing delays: it may be too long for any."""
        delay = self.tries.delay_after_loss(entry, error)
        self.queue.again(entry, now, time=entry.time, due=now.elapsed + delay if delay else None)
        self.writer.waits_again(entry)
        self.emit(TaskEventKind.RETRYING, entry, delay=delay, error=error)

    def _died_with_kernel(self, entry: Entry, now: Now) -> None:
        """It was to outlive its kernel and is not there: as any other that ran when its kernel died."""
        entry.interruptions += 1
        if self.tries.marks_interrupted(entry):
            self._finish(entry, TaskState.INTERRUPTED, now)
        else:
            self._back_to_queue(entry, now)

    def _back_to_queue(self, entry: Entry, now: Now) -> None:
        self.queue.again(entry, now, time=entry.time, due=None)
        self.writer.waits_again(entry)

    def _judge(self, entry: Entry, attempt: Attempt, error: BaseException | None, now: Now) -> None:
        entry.interruptions = 0
        if error is None:
            self.successes += 1
            self.durations.add(entry.argv, attempt.execution_time or 0.0)
            self._finish(entry, TaskState.SUCCEEDED, now)
            return
        delay = self.tries.delay(entry, error, now)
        if delay is not None:
            entry.retries += 1
            self.retries += 1
            self.queue.again(entry, now, time=now.wall + delay, due=now.elapsed + delay)
            self.writer.waits_again(entry)
            self.emit(TaskEventKind.RETRYING, entry, delay=delay, error=error)
            return
        self.failures += 1
        if isinstance(error, ProcessError):
            error.attempts = entry.retries + 1
        self._finish(entry, TaskState.FAILED, now)
        self._maybe_halt()

    def _finish(self, entry: Entry, state: TaskState, now: Now) -> None:
        """The end of a task, or of one run of a series."""
        rule = entry.options.recurrence
        entry.runs += 1
        if rule is not None and state is not TaskState.CANCELLED and (rule.repeat is None or entry.runs < rule.repeat):
            outcome: TaskOutcome = entry.outcome
            base = outcome.base if outcome.base is not None else base_of(entry, rule, now)
            on_wall = rule.cron is not None
            due, _ = next_run(rule, base, now.wall if on_wall else now.elapsed)
            entry.retries, outcome.first, outcome.base = 0, None, None
            self.queue.again(entry, now, time=due if on_wall else now.wall + due - now.elapsed, due=due, on_wall=on_wall)
            self.writer.waits_again(entry)
            self._told.append(entry)
            self.emit(TaskEventKind.ENDED, entry)
            return
        self.end(entry, state, now)

    def end(self, entry: Entry, state: TaskState, now: Now) -> None:
        """A task reaches a final state; those that can't run any more because of it are skipped."""
        skipped = self.queue.end(entry, state, now)
        self.settled(entry)
        for other, cause in skipped:
            self.settled(other, cause)

    def settled(self, entry: Entry, cause: Entry | None = None) -> None:
        """A task has got a final state: make its error, remember it, have it told. ``cause``: what it waited for and why it is skipped."""
        if entry.options.recurrence is not None:
            self.series -= 1
        if entry.outcome is None:
            entry.outcome = TaskOutcome()
        why = ""
        if cause is not None:
            why, entry.outcome.root = skip_reason(cause)
        error = error_of(entry, entry.state, why)
        if error is not None:
            entry.outcome.error = error
            if cause is not None and (root := entry.outcome.root.outcome) is not None:
                error.__cause__ = root.error
        self.finished[entry.key] = entry
        while len(self.finished) > self.config.history:
            _, old = self.finished.popitem(last=False)
            self.edges.pop(old.key, None)
            for known, name in ((self.names, old.options.name), (self.keys, old.options.key)):
                if name is not None and known.get(name) is old:
                    del known[name]
        self.missing.pop(entry.key, None)
        extra = {"error": stored_text(why)} if why else {}
        self.writer.change(entry, retries=entry.retries, runs=entry.runs, started=None, **extra)
        self._told.append(entry)
        self.want()

    def _tell(self) -> None:
        """Now that it is on disk: wake who awaits."""
        told, self._told = self._told, []
        for entry in told:
            wake(entry)
            tell_end(entry, task_id=self.task_id(entry), home=self.home)
            if self.subscribers and entry.state.final:
                self.emit(TaskEventKind.ENDED, entry)

    def told(self, entry: Entry) -> bool:
        """Whether its end is on disk, so that it may be told."""
        return entry.state.final and entry not in self._told

    # -- control

    def cancel(self, entry: Entry, *, flush: bool = True) -> None:
        """End it: at once if it waits, its whole tree if it runs."""
        if entry.state is TaskState.RUNNING:
            self._end_run(entry, "cancelled")
            self.writer.change(entry)  # now: the kernel may die before its tree is gone, and it is not to run again
        elif not entry.state.final:
            self.end(entry, TaskState.CANCELLED, self.clock())
        if flush:
            self.writer.flush()

    def _end_run(self, entry: Entry, intent: str) -> None:
        if entry.key in self.adoptees and self.home is not None:
            self._launch(entry, self.clock(), started=self.adoptees.pop(entry.key)[1])
        run: RunningAttempt | None = entry.run
        if run is not None:
            run.intent = run.intent or intent
            self._backend(entry).cancel(run.id, grace=self.config.grace)

    def _maybe_halt(self) -> None:
        halt = self.config.halt
        if halt is None or self._halt or not halt.reached(failed=self.failures, ended=self.failures + self.successes):
            return
        self._halt = f"{self.failures} of {self.failures + self.successes} ended tasks failed"
        self.writer.setting(QueueSettings.key("halted"), {"value": self._halt, "config": None})
        if halt.now:
            for entry in list(self._running.values()):
                self._end_run(entry, "halted")
                self.writer.change(entry)
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
    def store_failed(self) -> bool:
        """Whether it stands still because its store can't be written."""
        return self._store_error is not None

    @property
    def halted(self) -> str | None:
        """Why nothing starts: the store, or the halt policy."""
        return self._store_error or self._halt
