"""ErrorHandler: hears of every error of a manager's processes and sees to it that something is done about it, once.

::

      pm events ──► _hear ──► record, callbacks
                       │ an error without a supervisor, and there is a plan for the name
      alerts, liveness ┤
      handle_error ────┴──► one Case per name: tries by the policy ─► strategy ─► RecoveryReport
                                    (an owned task: an interrupted cell does not end it)
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nbprocs.checks import LONGEST, flag, function, instance, like, number
from nbprocs.checks import text as check_text
from nbprocs.display import Displayable, Html, text
from nbprocs.engine.home import Home, Tasks, hops
from nbprocs.errors import Closed, ProcessError, ProcessFailed, RestartsExhausted, UnknownProcess, error_from_result
from nbprocs.guard import add_note, attempt, message_of
from nbprocs.model import EventKind, ProcessEvent, ProcessStatus
from nbprocs.policy import RetryPolicy
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess
from nbprocs.recovery.callbacks import ErrorCallbacks
from nbprocs.recovery.case import Case, Episode, Surroundings
from nbprocs.recovery.journal import Journal
from nbprocs.recovery.model import Outcome, RecoveryReport, RecoveryStrategy, Step, StepKind, in_a_word
from nbprocs.recovery.rules import Plan, Rules
from nbprocs.recovery.strategies import Scalable, Strategy, as_strategy
from nbprocs.recovery.triggers import AlertSource, AlertTrigger, Liveness
from nbprocs.redact import mask_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ErrorHandler"]

_KEPT = 1000  # reports, errors and episodes, so that the same error handled twice is recovered once


def _bound(table: OrderedDict[str, Any], keep: Container[str] = ()) -> None:
    """Forget the oldest entries past the limit."""
    while len(table) > _KEPT:
        oldest = next((key for key in table if key not in keep), None)
        if oldest is None:
            return
        del table[oldest]


def _told_by(error: BaseException, field: str) -> str:
    """What an error says of its process; nothing where it does not say it in a word."""
    value, _ = attempt(getattr, error, field, None)
    return value if isinstance(value, str) else ""


class ErrorHandler(Displayable):
    """Retries, strategies and callbacks for the processes of a manager, by name or by name pattern (``web``, ``worker-*``).

    It acts by itself on the manager's events, and on what is handed to ``handle_error``. Processes with a supervisor of their own
    (``spawn(restart=…)``) are left to that; it takes over when the supervisor gives up.

    Args:
        manager: whose processes.
        pool: what SCALE_UP and SCALE_DOWN act on.
        automatic: False acts only when asked by ``handle_error``; the record and the callbacks work all the same.
        settle: seconds that a restarted process must live to count as recovered, unless it completes before.
        callback_timeout: seconds that an async callback may take.
        clock, sleep: for tests with a fake clock.

    >>> async with ProcessManager() as pm, ErrorHandler(pm, automatic=False) as handler:
    ...     handler.set_retry_policy("flaky*", RetryPolicy(max_retries=2, initial_delay=0))
    ...     proc = await pm.spawn("false", name="flaky-1")
    ...     _ = await proc.wait()
    ...     report = await handler.handle_error(proc)
    >>> report.recovered, report.attempts
    (False, 3)
    """

    def __init__(
        self,
        manager: ProcessManager,
        *,
        pool: Scalable | None = None,
        automatic: bool = True,
        settle: float = 1.0,
        callback_timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Begin to listen to the manager."""
        instance("manager", manager, ProcessManager, "a ProcessManager")
        if settle != math.inf:  # for jobs: until it has ended
            number("settle", settle, least=0, most=LONGEST, what="a number of seconds, 0 or more")
        number("callback_timeout", callback_timeout, above=0, most=LONGEST, what="a positive number of seconds")
        if pool is not None:
            like("pool", pool, ("config", "metrics", "resize"), "a ProcessPool or None")
        for name, given in (("clock", clock), ("sleep", sleep)):
            function(name, given)
        self.home: Home = manager_core(manager).home
        self._manager = manager
        self._automatic = flag("automatic", automatic)
        self._tasks = Tasks(manager_core(manager).home)
        self.journal: Journal = Journal()
        self._around = Surroundings(manager=manager, pool=pool, journal=self.journal, settle=settle, clock=clock, sleep=sleep)
        self._rules = Rules()
        self._callbacks = ErrorCallbacks(tasks=self._tasks, journal=self.journal, timeout=callback_timeout)
        self._episodes: OrderedDict[str, Episode] = OrderedDict()
        self._cases: dict[str, tuple[Case, asyncio.Task[RecoveryReport]]] = {}  # by name: never two for one name
        self._reports: OrderedDict[str, RecoveryReport] = OrderedDict()  # by the id of each process dealt with
        self._heard: OrderedDict[str, None] = OrderedDict()  # ids whose error the callbacks know
        self._live: dict[str, ManagedProcess] = {}  # a history of no length forgets an end before it tells of it
        self._titles: OrderedDict[str, str] = OrderedDict()  # the name in the record: in a replacement both have another one for a moment
        self._watches: dict[str, asyncio.TimerHandle] = {}
        self._liveness: list[Liveness] = []
        self._closers: list[Callable[[], None]] = []
        self._closed = False
        self._closers.append(manager.subscribe(self._hear))

    # -- settings

    def set_retry_policy(
        self, pattern: str, policy: RetryPolicy | None, *, healthy_after: float | None = None, settle: float | None = None
    ) -> None:
        """Failures of such names are tried again by this policy; None takes it back.

        The name itself beats a pattern, and a pattern that is set later beats an earlier one.

        The policy counts the failures of a name until it completes with exit status 0, or, with ``healthy_after``, until it has run for so
        many seconds. Give that for servers; without it a job that always fails late can't be retried without end.
        ``settle`` seconds are what a try must live to count as recovered, instead of the handler's; ``math.inf``, for jobs: until it
        has ended.
        """
        self._rules.set_policy(pattern, policy, healthy_after=healthy_after, settle=settle)

    def set_recovery_strategy(self, pattern: str, strategy: RecoveryStrategy | Strategy | Iterable[Any] | None) -> None:
        """What to do when no try is left: a RecoveryStrategy, a callable, or a list of them (all are done). None takes it back."""
        self._rules.set_strategy(pattern, None if strategy is None else as_strategy(strategy))

    def on_error(self, callback: Callable[[BaseException], object], *, pattern: str = "*") -> Callable[[], None]:
        """Call it, sync or async, with every error of such names; returns what ends that.

        A sync callback runs on the home loop and must be quick. Nothing that a callback does or fails to do holds a recovery back.
        """
        return self._callbacks.add(function("callback", callback), check_text("pattern", pattern))

    def recover_on_alert(
        self,
        monitor: AlertSource,
        *types: str,
        pattern: str = "*",
        lasting: float = 0.0,
        strategy: RecoveryStrategy | Strategy | Iterable[Any] = RecoveryStrategy.RESTART_PROCESS,
    ) -> Callable[[], None]:
        """Carry out a strategy when an alert of these types (all, if none is given) of such names stays open for ``lasting`` seconds.

        For "more than 500 MiB for 30 s": a monitor with ``max_memory_mb=500``, type MEMORY_USAGE, ``lasting=30``. Returns what ends it.
        """
        like("monitor", monitor, ("on_alert",), "a ProcessMonitor")
        plan = Plan(strategy=as_strategy(strategy))
        number("lasting", lasting, least=0, most=LONGEST, what="a number of seconds, 0 or more")
        trigger = AlertTrigger(
            types=frozenset(map(str, types)),
            pattern=check_text("pattern", pattern),
            lasting=lasting,
            monitor=monitor,
            home=self.home,
            act=lambda process_id, error: self._unwell(process_id, error, plan),
        )
        end = trigger.listen()
        self._closers.append(end)
        return end

    def watch_liveness(
        self,
        pattern: str,
        probe: Any,
        *,
        interval: float = 10.0,
        timeout: float = 5.0,
        failures: int = 3,
        strategy: RecoveryStrategy | Strategy | Iterable[Any] = RecoveryStrategy.RESTART_PROCESS,
    ) -> Callable[[], None]:
        """Ask each live process of such names every ``interval`` seconds; after ``failures`` bad answers in a row carry out the strategy.

        ``probe`` is what ``ready=`` takes: Port, Url, or a callable. An answer later than ``timeout`` seconds is a bad one.
        Probing starts when a process is ready. Returns what ends it.
        """
        plan = Plan(strategy=as_strategy(strategy))
        liveness = Liveness(
            pattern=pattern,
            probe=probe,
            interval=interval,
            timeout=timeout,
            failures=failures,
            tasks=self._tasks,
            act=lambda process_id, error: self._unwell(process_id, error, plan),
        )
        self._liveness.append(liveness)
        self._closers.append(liveness.end)
        for process in self._manager.processes():
            self.home.post(liveness.consider, process)
        return liveness.end

    # -- acting

    @hops
    async def handle_error(self, error: BaseException | ManagedProcess | str) -> RecoveryReport:
        """See to it that something is done about an error, and return what was done.

        Takes a failed process, its id or name, or an error of ours that tells it. Tries by the policy first, then the strategy.
        If the same process is being recovered already, or was, that recovery's report is returned: no error is recovered twice.
        Takes as long as the policy's waits, the tries and the strategy; cancelling the wait does not end the recovery.

        Raises the error itself, with a note that says what to set, when there is neither policy nor strategy for its name; ValueError for a
        process without an error; Closed after aclose().
        """
        self._check_open()
        process, problem = self._resolve(error)
        name = process.name if process else _told_by(problem, "name")
        if process is not None and process.id in self._reports:
            return self._reports[process.id]
        if name not in self._cases:
            if process is not None and manager_core(self._manager).supervisor.supervises(process.id):
                return self._left_to_supervisor(process, problem)
            plan = self._rules.plan(name)
            if not plan:
                add_note(
                    problem,
                    f"nothing is set for {name!r}: handler.set_retry_policy({name!r}, RetryPolicy()) tries it again, "
                    f"handler.set_recovery_strategy({name!r}, RecoveryStrategy.RESTART_PROCESS) says what to do then",
                )
                raise problem
            self._learn(name, process.id if process else "", problem)
            self._begin(name, process, problem, plan)
        _, task = self._cases[name]
        await asyncio.wait({task})  # not awaited directly: an interrupt of the cell must not end the recovery
        if task.cancelled():
            raise Closed(f"the recovery of {name} had not begun when its handler was closed", hint="ask another ErrorHandler for it")
        return task.result()

    @hops
    async def leave_alone(self, name: str) -> bool:
        """End the recovery of that name that is under way, if there is one; True if there was. What it has started already stays.

        For an owner who stops something while the handler is about to start it again.
        """
        found = self._cases.get(check_text("name", name))
        if found is None:
            return False
        case, task = found
        case.ended_early = "its owner wants it left alone"
        task.cancel()
        await asyncio.wait({task})
        return True

    def _resolve(self, error: BaseException | ManagedProcess | str) -> tuple[ManagedProcess | None, BaseException]:
        process: ManagedProcess | None = None
        if isinstance(error, BaseException):
            key = _told_by(error, "process_id") or _told_by(error, "name")
            try:
                process = self._manager.get(key) if key else None
            except UnknownProcess:
                process = None
            return process, error
        what = "an exception, a ManagedProcess, its name or its id"
        process = self._manager.get(error) if isinstance(error, str) else instance("error", error, ManagedProcess, what)
        problem = error_from_result(process.result) if process.result is not None else None
        if problem is None:
            state = "is still running" if process.status.live else "completed"
            msg = f"{process.name} {state}; there is no error to handle. For one that runs but is not well pass an Unhealthy error"
            raise ValueError(msg)
        return process, problem

    def _left_to_supervisor(self, process: ManagedProcess, problem: BaseException) -> RecoveryReport:
        done = Outcome(action="supervision", ok=True, detail="its own supervisor restarts it")
        return RecoveryReport(name=process.name, process_id=process.id, error=problem, recovered=True, actions=(done,))

    def _begin(self, name: str, process: ManagedProcess | None, error: BaseException, plan: Plan) -> None:
        """One recovery for a name that has none. On the home loop."""
        now = self._around.clock()
        episode = self._episodes.get(name)
        uptime = process.result.execution_time if process and process.result else 0.0
        if episode is None:
            episode = self._episodes[name] = Episode(began=now - uptime)
            _bound(self._episodes, keep=self._cases)
        elif plan.healthy_after is not None and uptime >= plan.healthy_after:
            episode.attempts, episode.began = 0, now - uptime
        case = Case(self._around, name=name, process=process, error=error, plan=plan, episode=episode)
        task = self._tasks.start(self._carry_out(case), name=f"recovery of {name}")
        self._cases[name] = (case, task)
        task.add_done_callback(lambda _: self._finished(case))  # not a finally: a task cancelled before it began runs none

    async def _carry_out(self, case: Case) -> RecoveryReport:
        report = await case.run()
        for process_id in case.seen:
            self._reports[process_id] = report
        _bound(self._reports)
        return report

    def _finished(self, case: Case) -> None:
        del self._cases[case.name]
        process = case.process  # it may have failed while its recovery was just ending; its event found the name busy
        if process is None or process.status.live or process.id in case.seen or process.result is None:
            return
        error = error_from_result(process.result)
        if error is not None:
            self._act(process.name, process, error)

    # -- hearing

    def _hear(self, event: ProcessEvent) -> None:
        """Every event of the manager."""
        match event.kind:
            case EventKind.STARTED:
                self._started(event)
            case EventKind.READY:
                self._ready(event)
            case EventKind.EXITED:
                self._exited(event)
            case EventKind.FAILED if event.error is not None:
                self._learn(event.name, event.process_id, event.error)
            case EventKind.RESTARTING:
                self._note(StepKind.WAIT, event, what="by its supervisor", delay=event.delay)
            case EventKind.FATAL if event.error is not None:
                self._note(StepKind.FATAL, event, what=str(event.error), word="given up", error=type(event.error).__name__, ok=False)
                self._callbacks.tell(event.error, name=event.name, process_id=event.process_id)
                self._act(event.name, self._known(event.process_id), event.error)
            case EventKind.CLOSED:
                self._close_now()

    def _started(self, event: ProcessEvent) -> None:
        self._callbacks.started(event.process_id)
        again = event.info is not None and event.info.restarts > 0
        process = self._known(event.process_id)
        if process is not None:
            self._live[event.process_id] = process
        before = process.predecessor if process is not None else None
        self._titles[event.process_id] = title = event.name if before is None else self._titles.get(before.id, event.name)
        _bound(self._titles)
        self._note(StepKind.RESTARTED if again else StepKind.STARTED, event)
        if again and title not in self._cases:
            self._watches[event.process_id] = self.home.loop.call_later(self._around.settle, self._still_well, event)

    def _ready(self, event: ProcessEvent) -> None:
        process = self._known(event.process_id) if self._liveness else None
        if process is not None:
            for liveness in self._liveness:
                liveness.consider(process)

    def _still_well(self, event: ProcessEvent) -> None:
        self._watches.pop(event.process_id, None)
        self._note(StepKind.HEALTHY, event)

    def _exited(self, event: ProcessEvent) -> None:
        if (watch := self._watches.pop(event.process_id, None)) is not None:
            watch.cancel()
        process = self._live.pop(event.process_id, None) or self._known(event.process_id)
        error = error_from_result(process.result) if process is not None and process.result is not None else None
        if error is None:
            self._note(StepKind.COMPLETED, event)
            self._episodes.pop(event.name, None)
        elif isinstance(error, ProcessFailed) and error.stopped:
            self._note(StepKind.STOPPED, event, what=error.reason or "")
        else:
            self._learn(event.name, event.process_id, error)
            if not manager_core(self._manager).supervisor.supervises(event.process_id):
                self._act(event.name, process, error)

    def _act(self, name: str, process: ManagedProcess | None, error: BaseException) -> None:
        """By itself, if there is a plan and nobody is at it already."""
        plan = self._rules.plan(name)
        if self._automatic and not self._closed and plan and name not in self._cases:
            if isinstance(error, RestartsExhausted):
                plan = Plan(strategy=plan.strategy)
            self._begin(name, process, error, plan)

    def _unwell(self, process_id: str, error: ProcessError, plan: Plan) -> None:
        """An alert or a liveness probe has spoken; the process still runs."""
        process = self._known(process_id)
        if self._closed or process is None or process.status is not ProcessStatus.RUNNING or process.name in self._cases:
            return
        self._learn(process.name, process_id, error)
        self._begin(process.name, process, error, plan)

    def _known(self, process_id: str) -> ManagedProcess | None:
        try:
            return self._manager.get(process_id)
        except UnknownProcess:
            return None

    def _learn(self, name: str, process_id: str, error: BaseException) -> None:
        """An error: a row, and the callbacks; once for each process."""
        if process_id and process_id in self._heard:
            return
        self._heard[process_id] = None
        _bound(self._heard)
        what = mask_text(error.message if isinstance(error, ProcessError) else message_of(error))
        word, kind = in_a_word(error, name=name), type(error).__name__
        title = self._titles.get(process_id, name)
        self.journal.add(Step(kind=StepKind.ERROR, name=title, process_id=process_id, what=what, word=word, error=kind, ok=False))
        self._callbacks.tell(error, name=name, process_id=process_id)

    def _note(self, kind: StepKind, event: ProcessEvent, **fields: Any) -> None:
        title = self._titles.get(event.process_id, event.name)
        self.journal.add(Step(kind=kind, name=title, process_id=event.process_id, **fields))

    # -- looking

    def frame(self) -> "pd.DataFrame":
        """The record as a DataFrame, a row for every error, decision, wait, attempt, action and outcome, oldest first.

        >>> async with ProcessManager() as pm, ErrorHandler(pm) as handler:
        ...     _ = await pm.run("true", name="job")
        ...     print([str(kind) for kind in handler.frame()["kind"]])
        ['started', 'completed']
        """
        return self.journal.frame()

    def story(self, name: str) -> str:
        """The life of one name in a line: started → crashed → waited 0.4 s → restarted → healthy."""
        return self.journal.story(name)

    def __repr__(self) -> str:
        names = len(self.journal.names())
        closed = ", closed" if self._closed else ""
        return f"<ErrorHandler: {len(self.journal)} steps of {names} name{'s' * (names != 1)}, {len(self._cases)} recovering{closed}>"

    def _html_(self) -> Html:
        return Html("<div>{}{}</div>").format(text(repr(self)), self.journal.html())

    # -- end

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this handler is closed", hint="make another ErrorHandler for the manager")

    def _close_now(self) -> None:
        """End everything that is under way, without waiting for it."""
        self._closed = True
        for close in self._closers:
            close()
        self._closers.clear()
        for watch in self._watches.values():
            watch.cancel()
        self._watches.clear()
        for case, task in self._cases.values():
            case.ended_early = "the handler or its manager was closed"
            task.cancel()

    @hops
    async def aclose(self) -> None:
        """Listen no more and end the recoveries under way; processes stay as they are. Idempotent; also done when the manager closes."""
        self._close_now()
        cases = {task for _, task in self._cases.values()}
        if cases:
            await asyncio.wait(cases)
        await self._tasks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()
