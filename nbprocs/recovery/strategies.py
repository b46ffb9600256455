"""Strategies that act. Each is a small callable: ``await strategy(incident)`` does it and returns an Outcome.

A strategy of one's own is any function of the incident, sync or async; what it returns may be an Outcome, a text, a bool or nothing, and
an exception is a failed outcome. ``Sequence`` does all of its steps, ``FirstOf`` goes on until one succeeds.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from nbprocs.checks import LONGEST, function, instance, number, whole
from nbprocs.errors import ProcessError, RestartsExhausted
from nbprocs.guard import attempt, awaitable, finish, repr_of, text_of
from nbprocs.notify import publish
from nbprocs.notify.model import url_of
from nbprocs.policy import Fatal, Life, Restart, RestartPolicy, RetryPolicy, decide_restart
from nbprocs.pool.model import PoolConfig, PoolMetrics
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess
from nbprocs.recovery import notify
from nbprocs.recovery.model import Outcome, RecoveryStrategy
from nbprocs.redact import mask_text

__all__ = [
    "DoNothing",
    "FirstOf",
    "Incident",
    "NotifyAdmin",
    "ReplaceProcess",
    "RestartProcess",
    "Scalable",
    "ScaleDown",
    "ScaleUp",
    "Sequence",
    "Strategy",
    "as_strategy",
    "carry_out",
]


class Scalable(Protocol):
    """What SCALE_UP and SCALE_DOWN need; a ProcessPool is one."""

    @property
    def config(self) -> PoolConfig:
        """Its bounds."""

    def metrics(self) -> PoolMetrics:
        """How many workers it has."""

    def resize(self, workers: int, /) -> object:
        """Have so many, within its bounds; may be async."""


@dataclass(slots=True, kw_only=True)
class Incident:
    """What a strategy is told, and what it may act on.

    >>> async with ProcessManager() as pm:
    ...     Incident(name="web", error=TimeoutError("slow"), process=None, manager=pm).told()["message"]
    'slow'
    """

    name: str
    error: BaseException
    process: ManagedProcess | None  # the one that failed, live or ended; None when it never started
    manager: ProcessManager
    pool: Scalable | None = None  # what scaling strategies act on
    attempts: int = 1  # tries in all
    lives: tuple[Life, ...] = ()  # the runs of that name that came to a strategy, this one last
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep  # use it instead of asyncio.sleep: the record shows the wait

    def told(self) -> dict[str, Any]:
        """The incident as plain values for a notification; commands are masked."""
        process = self.process
        return notify.notification(
            self.error,
            process_id=process.id if process else "",
            name=self.name,
            command=process.config.display if process else "",
            result=process.result if process else None,
            attempts=self.attempts,
        )


Result = Outcome | str | bool | None
Strategy = Callable[[Incident], Result | Awaitable[Result]]


def _refusal(incident: Incident) -> str | None:
    """Why it can't or should not be started again."""
    if incident.process is None:
        return f"{incident.name} has never started, so there is no config to start again"
    if isinstance(incident.error, RestartsExhausted):
        return "its supervisor has given up restarting it: FATAL is final"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartProcess:
    """The same config under the same name, with the failed process as predecessor. Stops it first if it still lives.

    The brake: delays and the limit of ``policy`` hold for the restarts that this strategy makes of one name; past it nothing is
    started any more and the outcome is a failure. Its breaker plays no part: that is for supervised processes.

    >>> RestartProcess(policy=RestartPolicy(max_restarts=2)).policy.max_restarts
    2
    """

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    grace: float | None = None  # seconds between SIGTERM and SIGKILL for one that still lives; None: the manager's

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError."""
        _check_restart(self)

    async def __call__(self, incident: Incident) -> Outcome:
        """Restart it, or say why not."""
        action = RecoveryStrategy.RESTART_PROCESS.value
        if (refusal := _refusal(incident)) is not None:
            return Outcome(action=action, ok=False, detail=refusal)
        waited = await _brake(incident, self.policy)
        assert incident.process is not None  # noqa: S101 - else it was refused
        new = await incident.manager.restart(incident.process.id, grace=self.grace)
        return Outcome(action=action, ok=True, detail=f"running as pid {new.pid}", process_id=new.id, waited=waited)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceProcess:
    """A new process becomes ready beside the old one, takes the name, and then the old one is stopped: no moment without one.

    If the new one does not become ready, the old one keeps the name and goes on. The brake is RestartProcess's.

    >>> ReplaceProcess(grace=1.0).grace
    1.0
    """

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    grace: float | None = None  # seconds between SIGTERM and SIGKILL for the old one; None: the manager's

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError."""
        _check_restart(self)

    async def __call__(self, incident: Incident) -> Outcome:
        """Replace it, or say why not."""
        action = RecoveryStrategy.REPLACE_PROCESS.value
        if (refusal := _refusal(incident)) is not None:
            return Outcome(action=action, ok=False, detail=refusal)
        waited = await _brake(incident, self.policy)
        assert incident.process is not None  # noqa: S101 - else it was refused
        new = await incident.manager.replace(incident.process.id, grace=self.grace)
        return Outcome(action=action, ok=True, detail=f"replaced by pid {new.pid}", process_id=new.id, waited=waited)


def _check_restart(strategy: "RestartProcess | ReplaceProcess") -> None:
    instance("policy", strategy.policy, RestartPolicy, "a RestartPolicy")
    if strategy.grace is not None:
        number("grace", strategy.grace, least=0, most=LONGEST, what="a number of seconds, 0 or more, or None")


async def _brake(incident: Incident, policy: RestartPolicy) -> float:
    """Wait as the policy says, and return the seconds waited. Raises RestartsExhausted at its limit."""
    if not incident.lives:
        return 0.0
    born = incident.lives[0].started
    decision = decide_restart(policy, incident.lives, incident.lives[-1].ended)
    if isinstance(decision, Fatal):
        fatal = RestartsExhausted(
            f"{incident.name} was given up: {decision.reason}",
            name=incident.name,
            process_id=incident.process.id if incident.process else None,
            command=incident.process.config.display if incident.process else None,
            attempts=incident.attempts,
            hint="find the cause in its last output; the policy of the strategy sets the limit",
        )
        fatal.history = tuple(f"{life.started - born:.2f} s started, {life.ended - born:.2f} s {life.what}" for life in incident.lives)
        raise fatal from incident.error
    delay = decision.delay if isinstance(decision, Restart) else 0.0
    if delay > 0:
        await incident.wait(delay)
    return delay


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUp:
    """So many workers more in the pool, at most its ``max_processes``. At the bound the outcome is a failure and says so.

    >>> ScaleUp(by=2)
    ScaleUp(by=2)
    """

    by: int = 1

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError."""
        whole("by", self.by, least=1)

    async def __call__(self, incident: Incident) -> Outcome:
        """Resize the pool."""
        return await _scale(incident, self.by, RecoveryStrategy.SCALE_UP)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDown:
    """So many workers fewer in the pool, at least its ``min_processes``. At the bound the outcome is a failure and says so.

    >>> ScaleDown().by
    1
    """

    by: int = 1

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError."""
        whole("by", self.by, least=1)

    async def __call__(self, incident: Incident) -> Outcome:
        """Resize the pool."""
        return await _scale(incident, -self.by, RecoveryStrategy.SCALE_DOWN)


async def _scale(incident: Incident, by: int, strategy: RecoveryStrategy) -> Outcome:
    pool = incident.pool
    if pool is None:
        return Outcome(action=strategy.value, ok=False, detail="no pool to scale: make the handler with ErrorHandler(pm, pool=pool)")
    before = _workers(pool)
    low, high = max(1, pool.config.min_processes), pool.config.most
    wanted = min(max(before + by, low), high)
    if wanted == before:
        return Outcome(action=strategy.value, ok=False, detail=f"the pool stays at {before}, the bound of {low} to {high}")
    answer = pool.resize(wanted)
    if inspect.isawaitable(answer):
        await answer
    await asyncio.sleep(0)  # a pool on this loop has begun by then, so that a second strategy sees the new number
    return Outcome(action=strategy.value, ok=True, detail=f"the pool goes from {before} to {wanted} workers")


def _workers(pool: Scalable) -> int:
    metrics = pool.metrics()
    return metrics.current_active_processes + metrics.current_starting_processes


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyAdmin:
    """Tells somebody: always a logging record (logger ``nbprocs.admin``) and the notebook, and a callback and a webhook if given.

    A webhook of Slack or ntfy gets what these show (as ``Notify`` has it), any other a POST with JSON: id, name, command (masked),
    exit_code, signal, duration, error, message, last_lines, attempts, at. Tried again by ``retry`` where that may help. The outcome is a
    failure if the callback raised or the webhook could not be reached.

    >>> NotifyAdmin(webhook="https://example.org/hook").timeout
    10.0
    """

    callback: Callable[[notify.Notification], object] | None = None  # sync or async
    webhook: str | None = field(default=None, repr=False)  # its URL is often a secret
    timeout: float = 10.0  # seconds for an async callback, and for each try of the webhook
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(max_retries=2))

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError."""
        number("timeout", self.timeout, above=0, most=LONGEST, what="a positive number of seconds")
        instance("retry", self.retry, RetryPolicy, "a RetryPolicy")
        if self.callback is not None:
            function("callback", self.callback)
        if self.webhook is not None:
            url_of("webhook", self.webhook)

    async def __call__(self, incident: Incident) -> Outcome:
        """Tell them all; one that fails keeps no other from being told."""
        told = incident.told()
        notify.announce(told)
        publish(notify.as_notice(told))
        done, failed = ["logged"], []
        if self.callback is not None:
            answer, error = attempt(self.callback, told)
            if error is None and awaitable(answer):
                _, error = await finish(answer, timeout=self.timeout)
            if error is None:
                done.append("callback called")
            else:
                failed.append(f"callback failed: {mask_text(repr_of(error))}")
        if self.webhook is not None:
            try:
                status = await notify.post_with_retries(self.webhook, told, timeout=self.timeout, policy=self.retry)
                done.append(f"webhook answered {status}")
            except (OSError, TimeoutError) as error:
                failed.append(f"webhook failed: {error or type(error).__name__}")
        return Outcome(action=RecoveryStrategy.NOTIFY_ADMIN.value, ok=not failed, detail=", ".join(done + failed))


@dataclass(frozen=True, slots=True, kw_only=True)
class DoNothing:
    """Leaves it; the record shows that it was seen.

    >>> DoNothing()
    DoNothing()
    """

    async def __call__(self, incident: Incident) -> Outcome:
        """Nothing."""
        return Outcome(action=RecoveryStrategy.DO_NOTHING.value, ok=True, detail=f"{incident.name} is left as it is")


class _Composed:
    __slots__ = ("steps",)

    def __init__(self, *steps: "RecoveryStrategy | Strategy") -> None:
        self.steps: tuple[Any, ...] = tuple(as_strategy(step) for step in steps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.steps))})"


class Sequence(_Composed):
    """All steps, in order, whatever becomes of the ones before.

    >>> Sequence(RecoveryStrategy.DO_NOTHING, ScaleUp(by=2))
    Sequence(DoNothing(), ScaleUp(by=2))
    """

    __slots__ = ()

    async def outcomes(self, incident: Incident) -> list[Outcome]:
        """What each step did."""
        return [outcome for step in self.steps for outcome in await carry_out(step, incident)]


class FirstOf(_Composed):
    """The steps in order until one succeeds: try a restart, and only if that fails notify.

    >>> FirstOf(RecoveryStrategy.DO_NOTHING, RecoveryStrategy.SCALE_UP)
    FirstOf(DoNothing(), ScaleUp(by=1))
    """

    __slots__ = ()

    async def outcomes(self, incident: Incident) -> list[Outcome]:
        """What each step did, up to the first that succeeded."""
        found: list[Outcome] = []
        for step in self.steps:
            outcomes = await carry_out(step, incident)
            found += outcomes
            if all(outcome.ok for outcome in outcomes):
                break
        return found


_DEFAULTS: dict[RecoveryStrategy, Callable[[], Strategy]] = {
    RecoveryStrategy.RESTART_PROCESS: RestartProcess,
    RecoveryStrategy.REPLACE_PROCESS: ReplaceProcess,
    RecoveryStrategy.SCALE_UP: ScaleUp,
    RecoveryStrategy.SCALE_DOWN: ScaleDown,
    RecoveryStrategy.NOTIFY_ADMIN: NotifyAdmin,
    RecoveryStrategy.DO_NOTHING: DoNothing,
}


def as_strategy(given: object) -> Any:
    """The callable that a name stands for; a list is a Sequence, a callable is itself. Raises TypeError or ValueError for anything else."""
    if isinstance(given, str):
        return _DEFAULTS[RecoveryStrategy(given)]()
    if callable(given) or isinstance(given, _Composed):
        return given
    if isinstance(given, Iterable):
        return Sequence(*given)
    msg = f"a strategy is a RecoveryStrategy, a callable, or several of them, not {type(given).__name__}"
    raise TypeError(msg)


async def carry_out(strategy: Any, incident: Incident) -> list[Outcome]:
    """Do it, and say what was done: what it raises is a failed outcome. Cancelling goes through."""
    if isinstance(strategy, (Sequence, FirstOf)):
        return await strategy.outcomes(incident)
    action = _name(strategy)
    began = time.monotonic()
    answer: Any
    answer, error = attempt(strategy, incident)
    if error is None and awaitable(answer):
        answer, error = await finish(answer)
    if error is not None:
        why = error.message if isinstance(error, ProcessError) else mask_text(text_of(error))
        return [Outcome(action=action, ok=False, detail=why, seconds=time.monotonic() - began, error=error)]
    return [_outcome(answer, action, time.monotonic() - began)]


def _outcome(answer: Any, action: str, seconds: float) -> Outcome:
    kind = type(answer)  # not isinstance: what the user's code returned may answer that by raising
    if issubclass(kind, Outcome):
        known: Outcome = answer
        return replace(known, seconds=seconds)
    if issubclass(kind, ManagedProcess):
        return Outcome(action=action, ok=True, detail=f"running as pid {answer.pid}", process_id=answer.id, seconds=seconds)
    return Outcome(action=action, ok=answer is not False, detail=answer if issubclass(kind, str) else "", seconds=seconds)


def _name(strategy: Any) -> str:
    for strategy_name, kind in _DEFAULTS.items():
        if type(strategy) is kind:
            return strategy_name.value
    name, _ = attempt(getattr, strategy, "__name__", None)
    return name if type(name) is str else type(strategy).__name__
