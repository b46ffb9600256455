"""Keeps processes alive: when a supervised one ends, decides by its policy, waits, and starts it again, or gives up.

::

    process ends ──done callback──►  decide_restart(policy, lives, now)
         ▲                             │ Restart(delay)    │ Fatal          │ Finished
         │                             ▼                   ▼                ▼
         │                        RESTARTING event     FATAL event       forgotten
         │                             │ one timer
         └────── manager.respawn ◄─────┘   (breaker of the command: may add a wait)

Nothing here polls: an idle supervised process costs one entry in a dictionary. The manager owns one Supervisor and gives it
what it needs by the ``RestartKeeper`` protocol; everything runs on the manager's home loop.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from nbprocs.engine.home import Home, Tasks, log
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import Closed, NameInUse, NotReady, ProcessError, RestartsExhausted, error_from_result
from nbprocs.model import EndReason, EventKind, ProcessConfig, ProcessEvent, ProcessInfo, ProcessResult, ProcessStatus
from nbprocs.policy import CircuitBreaker, Fatal, Finished, Life, RestartPolicy, decide_restart, restart_policy

__all__ = ["RestartKeeper", "Supervised", "Supervisor"]

_EARLY = 0.01  # seconds; a timer may fire before its time by the resolution of the clock
Cancel = Callable[[], object]
Later = Callable[[float, Callable[[], None]], Cancel]


class Supervised(Protocol):
    """What a supervisor knows of a process; ProcessCore is one."""

    @property
    def id(self) -> str:
        """The uuid."""

    @property
    def name(self) -> str:
        """Unique among live processes."""

    @property
    def config(self) -> ProcessConfig:
        """What it runs."""

    @property
    def status(self) -> ProcessStatus:
        """Where in its life it is."""

    @property
    def info(self) -> ProcessInfo:
        """A snapshot."""

    @property
    def result(self) -> ProcessResult | None:
        """How it ended."""

    @property
    def started(self) -> float:
        """When it started, by time.monotonic()."""

    async def stop(self, *, grace: float = 5.0) -> ProcessResult:
        """End it."""


P = TypeVar("P", bound=Supervised)


class RestartKeeper(Protocol[P]):
    """What a supervisor needs of its manager."""

    @property
    def home(self) -> Home:
        """The loop that all of this runs on."""

    def publish(self, event: ProcessEvent) -> None:
        """Tell the subscribers."""

    async def respawn(self, process: P) -> P:
        """Start the same config under the same name, with ``process`` as predecessor. Raises ProcessError when it can't."""

    def on_end(self, process: P, callback: Callable[[P], None]) -> None:
        """Call it once on the home loop when the process has its final status; soon, if it already has."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Lineage(Generic[P]):
    """One supervised name through all its lives."""

    policy: RestartPolicy
    process: P
    lives: tuple[Life, ...] = ()
    told: deque[str] = field(default_factory=lambda: deque(maxlen=50))  # the history that RestartsExhausted shows
    count: int = 0  # lives in all
    timer: Cancel | None = None
    released: bool = False  # its owner wants no more restarts
    starting: bool = False  # a restart is being made right now
    held: bool = False  # somebody is restarting it on purpose; its end is no failure
    born: float = 0.0
    error: BaseException | None = None  # why it was given up
    moves: Waiters[P | None] = field(default_factory=Waiters)  # those who wait for its next process; None: there will be none

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer()
            self.timer = None


class Supervisor(Generic[P]):
    """The supervised processes of one manager. All methods only on the home loop.

    >>> from nbprocs.processes.manager import manager_core
    >>> async with ProcessManager() as pm:
    ...     proc = await pm.spawn("sleep", "1000", restart=True)
    ...     manager_core(pm).supervisor.supervises(proc.id)
    True
    """

    def __init__(self, keeper: RestartKeeper[P], *, clock: Callable[[], float] = time.monotonic, later: Later | None = None) -> None:
        """``clock`` and ``later`` are for tests; by default the monotonic clock and the home loop's timers."""
        self._keeper = keeper
        self._tasks = Tasks(keeper.home)
        self._clock = clock
        self._later = later or self._loop_later
        self._lineages: dict[str, _Lineage[P]] = {}  # by the id of the process that is, or was last, alive
        self._breakers: dict[tuple[str, ...], CircuitBreaker] = {}  # by command line
        self._closed = False

    def _loop_later(self, delay: float, callback: Callable[[], None]) -> Cancel:
        return self._keeper.home.loop.call_later(delay, callback).cancel

    # -- what the manager calls

    policy_for: "staticmethod[[object], RestartPolicy | None]" = staticmethod(restart_policy)

    def attach(self, process: P, policy: RestartPolicy) -> None:
        """Supervise it from now on. Costs no time while it runs."""
        lineage = _Lineage(policy=policy, process=process, born=process.started)
        self._lineages[process.id] = lineage
        self._began(lineage)

    def supervises(self, process_id: str) -> bool:
        """Whether that process is supervised: alive, or dead with a restart to come."""
        return process_id in self._lineages

    def policy(self, process_id: str) -> RestartPolicy | None:
        """The policy that keeps it alive; None when it is not supervised."""
        lineage = self._lineages.get(process_id)
        return None if lineage is None else lineage.policy

    def release(self, process_id: str) -> bool:
        """Supervise it no more; a restart that is waited for does not come. True if it was supervised.

        A restart that is being made right now is finished, and the new process stopped.
        """
        lineage = self._lineages.get(process_id)
        if lineage is None:
            return False
        self._forget(lineage)
        lineage.released = True
        lineage.cancel_timer()
        return True

    def _forget(self, lineage: _Lineage[P]) -> None:
        self._lineages.pop(lineage.process.id, None)
        lineage.moves.wake(None)

    async def first_ready(self, process: P, error: NotReady, *, seconds: float) -> P:
        """After a first life that ended before it was ready: the first one that is, of those that the policy gives.

        Raises RestartsExhausted, or ``error`` when no other life comes, or none is ready within ``seconds``.
        """
        lineage = self._lineages.get(process.id)
        found: P | None = None
        if lineage is not None:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        found = await lineage.moves.wait()
            finally:
                if found is None:
                    self.release(lineage.process.id)
        if found is not None:
            return found
        if lineage is not None and isinstance(lineage.error, ProcessError):
            raise lineage.error from error
        raise error

    def hold(self, process_id: str) -> "_Lineage[P] | None":
        """Somebody is about to stop and start it on purpose: its end is no failure.

        None if it is not supervised, or if its supervisor is starting it right now (the name is taken then).
        What is returned goes back by ``give`` with the new process, or by ``lose`` when there is none.
        """
        lineage = self._lineages.get(process_id)
        if lineage is None or lineage.starting:
            return None
        lineage.held = True
        lineage.cancel_timer()
        return lineage

    def give(self, held: "_Lineage[P]", new: P) -> bool:
        """Go on with the same policy and history for the new process. False if the owner wanted an end meanwhile: stop it then."""
        held.held = held.starting = False
        if held.released or self._closed:
            return False
        self._lineages.pop(held.process.id, None)
        held.process = new
        self._lineages[new.id] = held
        self._began(held)
        held.moves.wake(new)
        return True

    def lose(self, held: "_Lineage[P]", error: BaseException) -> None:
        """The restart on purpose failed: it counts as a life, and the policy decides what follows."""
        held.held = False
        if held.released or self._closed:
            return
        if held.process.result is not None:  # else it still runs, and its end will be noticed
            self._failed_start(held, error)

    def breaker(self, config: ProcessConfig) -> CircuitBreaker | None:
        """The breaker of that command line, if a policy with one has been used for it."""
        return self._breakers.get(config.argv)

    async def aclose(self) -> None:
        """Restart nothing any more. On return no timer and no restart is under way. Idempotent."""
        self._closed = True
        for process_id in tuple(self._lineages):
            self.release(process_id)
        await self._tasks.aclose()

    # -- the life of a lineage

    def _began(self, lineage: _Lineage[P]) -> None:
        """A process of the lineage is running: wait for its end, and tell the breaker when it has been healthy."""
        process = lineage.process
        self._keeper.on_end(process, lambda ended: self._ended(lineage, ended))
        if lineage.policy.breaker is not None:
            lineage.timer = self._later(lineage.policy.healthy_after, lambda: self._healthy(lineage))

    def _healthy(self, lineage: _Lineage[P]) -> None:
        lineage.timer = None
        self._went_well(lineage)

    def _went_well(self, lineage: _Lineage[P]) -> None:
        key = lineage.process.config.argv
        if key in self._breakers:
            self._breakers[key] = self._breakers[key].succeeded(self._clock())

    def _ended(self, lineage: _Lineage[P], process: P) -> None:
        if lineage.released or lineage.held or lineage.process is not process:
            return
        lineage.cancel_timer()
        result = process.result
        if self._closed or result is None or (process.status is ProcessStatus.TERMINATED and result.reason is not EndReason.TIMEOUT):
            self._forget(lineage)  # its owner wanted its end
            return
        error = error_from_result(result)
        what = "completed" if error is None else _first_line(error)
        ended = process.started + result.execution_time
        self._next(
            lineage, Life(started=process.started, ended=ended, failed=error is not None, what=what, exit_code=result.exit_code), error
        )

    def _next(self, lineage: _Lineage[P], life: Life, error: BaseException | None) -> None:
        """After a life: restart, leave or give up."""
        now = self._clock()
        policy = lineage.policy
        lineage.lives = (*lineage.lives, life)[-policy.memory :]
        lineage.count += 1
        lineage.told.append(f"{life.started - lineage.born:.2f} s started, {life.ended - lineage.born:.2f} s {life.what}")
        if not life.failed:
            self._went_well(lineage)
        elif policy.breaker is not None:
            key = lineage.process.config.argv
            self._breakers[key] = self._breakers.get(key, policy.breaker).failed(now)
        match decide_restart(policy, lineage.lives, now):
            case Finished():
                self._forget(lineage)
            case Fatal(reason=reason):
                self._fatal(lineage, reason, error)
            case decision:
                self._wait(lineage, max(decision.delay, self._breaker_wait(lineage, now)), error)

    def _breaker_wait(self, lineage: _Lineage[P], now: float) -> float:
        breaker = self._breakers.get(lineage.process.config.argv)
        return 0.0 if breaker is None or lineage.policy.breaker is None else breaker.retry_after(now)

    def _wait(self, lineage: _Lineage[P], delay: float, error: BaseException | None) -> None:
        self._publish(EventKind.RESTARTING, lineage, delay=delay, error=error)
        lineage.told.append(f"{self._clock() - lineage.born:.2f} s restart in {delay:.2f} s")
        if lineage.released or self._closed:
            return  # a subscriber reacted to the event by stopping it
        if delay <= 0:
            self._due(lineage)
        else:
            lineage.timer = self._later(delay, lambda: self._due(lineage))

    def _due(self, lineage: _Lineage[P]) -> None:
        lineage.timer = None
        now = self._clock()
        more = self._breaker_wait(lineage, now)
        if more > _EARLY:  # somebody else's try of the half-open breaker is under way
            self._wait(lineage, more, None)
            return
        key = lineage.process.config.argv
        if key in self._breakers:
            self._breakers[key] = self._breakers[key].tried(now)
        lineage.starting = True
        self._tasks.start(self._respawn(lineage), name=f"restart of {lineage.process.name}")

    async def _respawn(self, lineage: _Lineage[P]) -> None:
        old = lineage.process
        try:
            new = await self._keeper.respawn(old)
        except Closed:
            self._forget(lineage)
        except NameInUse as error:
            self._fatal(lineage, f"another process has taken the name {old.name} meanwhile", error)
        except ProcessError as error:
            if not lineage.released:
                self._failed_start(lineage, error)
        else:
            if not self.give(lineage, new):  # its owner stopped the name while it was being started again
                await new.stop()

    def _failed_start(self, lineage: _Lineage[P], error: BaseException) -> None:
        lineage.starting = False
        now = self._clock()
        self._next(lineage, Life(started=now, ended=now, what=_first_line(error)), error)

    def _fatal(self, lineage: _Lineage[P], reason: str, cause: BaseException | None) -> None:
        process = lineage.process
        result = process.result
        last = cause if isinstance(cause, ProcessError) else None
        error = RestartsExhausted(
            f"{process.name} was given up: {reason}",
            process_id=process.id,
            name=process.name,
            command=process.config.display,
            exit_code=None if result is None else result.exit_code,
            signal=None if result is None else result.signal,
            last_output="" if last is None else last.last_output,
            attempts=lineage.count,
            hint="find the cause in its last output, then spawn it again; RestartPolicy(max_restarts=, window=) sets the limit",
        )
        error.history, error.result = tuple(lineage.told), result
        error.__cause__ = cause
        lineage.error = error
        self._forget(lineage)
        log.warning("%s; its last output: %s", error.message, error.last_output.rpartition("\n")[2] or "none")
        self._publish(EventKind.FATAL, lineage, error=error)

    def _publish(self, kind: EventKind, lineage: _Lineage[P], *, delay: float | None = None, error: BaseException | None = None) -> None:
        process = lineage.process
        event = ProcessEvent(
            kind=kind, process_id=process.id, name=process.name, at=time.monotonic(), info=process.info, delay=delay, error=error
        )
        self._keeper.publish(event)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
