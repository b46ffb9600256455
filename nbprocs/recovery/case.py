"""One recovery, carried out: tries by the policy, then the strategy, then a report. The handler starts it and hears its end."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nbprocs.errors import ProcessError, ProcessFailed, RestartsExhausted, error_from_result
from nbprocs.guard import attempt, message_of, repr_of, text_of, told
from nbprocs.policy import Life
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess, process_core
from nbprocs.recovery.journal import Journal
from nbprocs.recovery.model import Outcome, RecoveryReport, Step, StepKind
from nbprocs.recovery.rules import Plan
from nbprocs.recovery.strategies import Incident, Scalable, carry_out
from nbprocs.redact import mask_text

__all__ = ["Case", "Episode", "Surroundings"]


_FOREVER = 1e8  # seconds, some three years: timers can't be set to infinity


@dataclass(slots=True, kw_only=True)
class Episode:
    """The failures of one name since it was last well; they outlive the single recovery."""

    began: float  # monotonic seconds: the start of the first try
    attempts: int = 0  # tries that failed
    lives: deque[Life] = field(default_factory=lambda: deque(maxlen=100))  # those that came to a strategy


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What all recoveries of one handler share."""

    manager: ProcessManager
    pool: Scalable | None
    journal: Journal
    settle: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Case:
    """One error of one name, until it is recovered or given up."""

    def __init__(
        self, around: Surroundings, *, name: str, process: ManagedProcess | None, error: BaseException, plan: Plan, episode: Episode
    ) -> None:
        self._around = around
        self._plan = plan
        self._episode = episode
        self._actions: list[Outcome] = []
        self._began = around.clock()
        self.name = name
        self.first = process
        self.process = process  # the latest of the name
        self.error: BaseException = error
        self.seen: set[str] = {process.id} if process else set()  # processes whose end this recovery has dealt with
        self.ended_early = ""  # why, once somebody ends it

    async def run(self) -> RecoveryReport:
        """Do it all. Raises CancelledError only when somebody else than the handler cancels it."""
        try:
            recovered = await self._retry() or await self._resort()
        except asyncio.CancelledError:
            if not self.ended_early:
                raise
            self._actions.append(Outcome(action="recovery", ok=False, detail=f"ended early: {self.ended_early}"))
            recovered = False
        report = RecoveryReport(
            name=self.name,
            process_id=self.first.id if self.first else "",
            error=self.error,
            recovered=recovered,
            attempts=max(1, self._episode.attempts + (bool(self._actions) and recovered and self._actions[-1].action == "retry")),
            actions=tuple(self._actions),
            seconds=self._around.clock() - self._began,
        )
        did = str(self._actions[-1]) if self._actions else "nothing was done"
        self._note(StepKind.OUTCOME, what=f"{'recovered' if recovered else 'not recovered'}; {did}", ok=recovered, attempt=report.attempts)
        return report

    # -- tries by the policy

    async def _retry(self) -> bool:
        """Try again as often as the policy says; True once a try went well."""
        while (delay := self._decide()) is not None:
            self._note(StepKind.WAIT, delay=delay, attempt=self._episode.attempts)
            await self._around.sleep(delay)
            outcome = await self._try(delay)
            self._actions.append(outcome)
            self._note(StepKind.ATTEMPT, what=outcome.detail, ok=outcome.ok, attempt=self._episode.attempts + 1)
            if outcome.ok:
                return True
        return False

    def _decide(self) -> float | None:
        """One more failure: the delay before the next try, or None."""
        policy, episode = self._plan.policy, self._episode
        episode.attempts += 1
        if isinstance(self.error, ProcessError):
            self.error.attempts = max(self.error.attempts, episode.attempts)
        if policy is None or self.process is None or self._stopped:
            return None
        elapsed = self._around.clock() - episode.began
        delay, problem = attempt(policy.decide, self.error, attempt=episode.attempts, elapsed=elapsed)
        said = "no further try by the retry policy" if delay is None else f"try {episode.attempts + 1}, in {delay:.2f} s"
        if problem is not None:  # its ``when``, ``wait`` or ``stop`` is the user's
            told(f"the retry policy for {self.name}", problem)
            said = f"the retry policy raised {mask_text(text_of(problem))}"
        self._note(StepKind.DECISION, what=said, delay=delay, attempt=episode.attempts)
        return delay

    @property
    def _stopped(self) -> bool:
        return isinstance(self.error, ProcessFailed) and self.error.stopped

    async def _try(self, waited: float) -> Outcome:
        """Start it again and see what becomes of it."""
        assert self.process is not None  # noqa: S101 - _decide has looked
        clock, began = self._around.clock, self._around.clock()
        try:
            self.process = new = await self._around.manager.restart(self.process.id)
        except ProcessError as problem:
            self.error = problem
            return Outcome(action="retry", ok=False, detail=f"did not start: {problem.message}", waited=waited, seconds=clock() - began)
        self.seen.add(new.id)
        detail, error = await self._settled(new)
        if error is not None:
            self.error = error
        return Outcome(action="retry", ok=error is None, detail=detail, process_id=new.id, waited=waited, seconds=clock() - began)

    async def _settled(self, process: ManagedProcess) -> tuple[str, BaseException | None]:
        """What became of a new process: it completed, it runs on, or it failed."""
        settle = self._around.settle if self._plan.settle is None else self._plan.settle
        if not await process_core(process).ended_within(min(settle, _FOREVER)):
            self.seen.discard(process.id)  # should it end from here on, that is another error
            self._note(StepKind.HEALTHY, process_id=process.id)
            return f"running as pid {process.pid}", None
        assert process.result is not None  # noqa: S101 - it has ended
        error = error_from_result(process.result, attempts=self._episode.attempts + 1)
        return ("completed", None) if error is None else (str(error).partition("\n")[0], error)

    # -- the last resort

    async def _resort(self) -> bool:
        """Carry out the strategy; True if the name is well after it."""
        strategy = self._plan.strategy
        if strategy is None or self._stopped:
            return False
        incident = self._incident()
        self._note(StepKind.DECISION, what=f"strategy {mask_text(repr_of(strategy))}")
        outcomes = await carry_out(strategy, incident)
        self._actions += outcomes
        for outcome in outcomes:
            self._note(StepKind.ACTION, what=str(outcome), word=_word(outcome), ok=outcome.ok, process_id=outcome.process_id or "")
            if isinstance(outcome.error, RestartsExhausted):
                self.error = outcome.error
                self._note(StepKind.FATAL, what=str(outcome.error), word="given up", error="RestartsExhausted", ok=False)
        made = [outcome for outcome in outcomes if outcome.process_id]
        if not made:
            return False
        self.process = self._around.manager.get(made[-1].process_id or "")
        self.seen.add(self.process.id)
        _, error = await self._settled(self.process)
        if error is not None:
            self.error = error
            self.seen.discard(self.process.id)  # it failed again: that is the next recovery's, with the brake on
        return error is None

    def _incident(self) -> Incident:
        process, episode = self.process, self._episode
        now = time.monotonic()
        if process is not None:
            ended = process_core(process).started + process.result.execution_time if process.result else now
            code = process.result.exit_code if process.result else None
            episode.lives.append(
                Life(started=process_core(process).started, ended=ended, what=message_of(self.error).partition("\n")[0], exit_code=code)
            )
        return Incident(
            name=self.name,
            error=self.error,
            process=process,
            manager=self._around.manager,
            pool=self._around.pool,
            attempts=episode.attempts,
            lives=tuple(episode.lives),
            wait=self._wait,
        )

    async def _wait(self, delay: float) -> None:
        self._note(StepKind.WAIT, delay=delay, attempt=self._episode.attempts)
        await self._around.sleep(delay)

    def _note(self, kind: StepKind, *, process_id: str = "", **fields: Any) -> None:
        latest = self.process.id if self.process else ""
        self._around.journal.add(Step(kind=kind, name=self.name, process_id=process_id or latest, **fields))


def _word(outcome: Outcome) -> str:
    return f"{outcome.action.replace('_', ' ')}{'' if outcome.ok else ' failed'}"
