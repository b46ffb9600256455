"""When a supervised process that ended is started again, after how long, and when that has to stop."""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nbprocs.checks import LONGEST, number, one_of, refuse, whole
from nbprocs.errors import ProcessFailed
from nbprocs.policy.breaker import CircuitBreaker
from nbprocs.policy.waits import Jitter, Wait, backoff, call_state, instant, spread, valid_codes, valid_delays, valid_rng

__all__ = ["Decision", "Fatal", "Finished", "Life", "Restart", "RestartPolicy", "decide_restart", "restart_policy"]

_LONGEST_SCHEDULE = 1000  # entries of delays()


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One run of a supervised process. Times are seconds of any one clock; a start that failed began and ended at the same time.

    >>> Life(started=10.0, ended=12.5).uptime
    2.5
    """

    started: float
    ended: float
    failed: bool = True  # False: exit status 0
    what: str = ""  # one line for the history: how it ended
    exit_code: int | None = None  # None: a signal, or a start that failed

    @property
    def uptime(self) -> float:
        """Seconds from its start to its end."""
        return self.ended - self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Start it again after ``delay`` seconds.

    >>> Restart(delay=0.5).delay
    0.5
    """

    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """It ended as it should; leave it.

    >>> decide_restart(RestartPolicy(), [Life(started=0, ended=1, failed=False)], 1)
    Finished()
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """Stop trying; ``reason`` says which limit was reached.

    >>> decide_restart(RestartPolicy(max_restarts=0), [Life(started=0, ended=1)], 1)
    Fatal(reason='no restarts allowed')
    """

    reason: str


Decision = Restart | Finished | Fatal


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How a supervised process is kept alive.

    A run of at least ``healthy_after`` seconds was healthy: the backoff begins anew after it. The limit in the window counts
    healthy or not, so that no window of ``window`` seconds ever holds more than ``max_restarts`` restarts. ``exit_codes`` are those
    that a restart may help; a failure with another exit status is FATAL at once: a wrong option stays wrong.

    >>> policy = RestartPolicy(initial_delay=1, jitter=False, max_restarts=2, window=60)
    >>> lives = [Life(started=0, ended=5)]
    >>> decide_restart(policy, lives, 5)
    Restart(delay=1.0)
    >>> lives += [Life(started=6, ended=7), Life(started=9, ended=9.5)]
    >>> decide_restart(policy, lives, 9.5)
    Fatal(reason='2 restarts within 60 s, the most allowed')

    >>> decide_restart(RestartPolicy(exit_codes={75}), [Life(started=0, ended=5, exit_code=2)], 5)
    Fatal(reason='exit status 2 is none that a restart helps')

    Raises TypeError or ValueError when made with what makes no schedule.
    """

    on: Literal["failure", "always"] = "failure"  # "always": also after exit status 0
    max_restarts: int | None = 5  # within the window; one more is FATAL. 0: the first failure is. None: no limit
    window: float = 60.0  # seconds
    initial_delay: float = 0.5  # seconds before the first restart
    max_delay: float = 30.0  # seconds; no delay is longer
    backoff_multiplier: float = 2.0  # each delay is this many times the one before
    jitter: Jitter = True  # as in RetryPolicy
    healthy_after: float = 10.0  # seconds of uptime after which the backoff begins anew
    exit_codes: Collection[int] | None = None  # of the non-zero exits only these are restarted; None: all
    breaker: CircuitBreaker | None = None  # shared by all supervised processes of the same command; None: without
    rng: random.Random | None = field(default=None, repr=False, compare=False)  # the source of jitter; None: a shared one

    def __post_init__(self) -> None:
        """Refuse what makes no schedule, before anything runs."""
        valid_delays(initial=self.initial_delay, cap=self.max_delay, multiplier=self.backoff_multiplier, jitter=self.jitter)
        one_of("on", self.on, ("failure", "always"))
        if self.max_restarts is not None:
            object.__setattr__(self, "max_restarts", whole("max_restarts", self.max_restarts, least=0))
        number("window", self.window, above=0, most=LONGEST, what="a positive number of seconds")
        if self.healthy_after != math.inf:  # never healthy: the backoff goes on for ever
            number("healthy_after", self.healthy_after, above=0, what="a positive number of seconds")
        object.__setattr__(self, "exit_codes", valid_codes("exit_codes", self.exit_codes))
        if self.breaker is not None and not isinstance(self.breaker, CircuitBreaker):
            refuse(TypeError, "breaker", "a CircuitBreaker or None", self.breaker)
        valid_rng(self.rng)

    @property
    def memory(self) -> int:
        """How many past lives a decision can depend on; older ones need not be kept. At most ``max_restarts`` + 1,002."""
        steps = 0.0
        if self.backoff_multiplier > 1 and 0 < self.initial_delay < self.max_delay:
            steps = math.log(self.max_delay / self.initial_delay) / math.log(self.backoff_multiplier)
        return (self.max_restarts or 0) + 2 + math.ceil(min(steps, 1000))

    def delays(self) -> list[float]:
        """The delays before the first, second, … restart of a process that is never healthy, without jitter; at most 1,000 of them.

        >>> RestartPolicy(max_restarts=4, initial_delay=0.5, max_delay=3).delays()
        [0.5, 1.0, 2.0, 3.0]
        """
        most = _LONGEST_SCHEDULE if self.max_restarts is None else min(self.max_restarts, _LONGEST_SCHEDULE)
        return [self._base(number) for number in range(1, most + 1)]

    def _base(self, number: int) -> float:
        wait: Wait = backoff(initial=self.initial_delay, cap=self.max_delay, multiplier=self.backoff_multiplier)
        return float(wait(call_state(ProcessFailed("a failed run"), attempt=number, elapsed=0.0)))


def restart_policy(given: object) -> RestartPolicy | None:
    """What ``restart=`` of ``spawn`` stands for: True is the default policy, None and False are none. Raises TypeError for anything else.

    >>> restart_policy(True).max_restarts
    5
    """
    if given is None or given is False:
        return None
    if given is True:
        return RestartPolicy()
    if isinstance(given, RestartPolicy):
        return given
    msg = f"restart must be a RestartPolicy, True, False or None, not {type(given).__name__}"
    raise TypeError(msg)


def decide_restart(policy: RestartPolicy, history: Sequence[Life], now: float) -> Decision:
    """What follows after the last life of ``history``, which has just ended.

    Args:
        policy: The rules.
        history: The lives, oldest first, at least the last ``policy.memory`` of them; the first one that ever was is no restart.
        now: Seconds, by the clock of the history.

    The restart itself must not come before ``now + delay``; then no window holds more restarts than the limit.

    >>> decide_restart(RestartPolicy(initial_delay=2, jitter=False), [Life(started=0, ended=1)], 1)
    Restart(delay=2.0)
    """
    last = history[-1]
    if not last.failed and policy.on == "failure":
        return Finished()
    if last.failed and last.exit_code is not None and policy.exit_codes is not None and last.exit_code not in policy.exit_codes:
        return Fatal(reason=f"exit status {last.exit_code} is none that a restart helps")
    unhealthy = 0
    for life in reversed(history):
        if life.uptime >= policy.healthy_after:
            break
        unhealthy += 1
    delay = 0.0 if instant() else spread(policy._base(max(1, unhealthy)), policy.jitter, policy.rng)  # noqa: SLF001 - its own module
    if policy.max_restarts is None:
        return Restart(delay=delay)
    recent = sum(1 for life in history[1:] if life.started > now + delay - policy.window)
    if recent >= policy.max_restarts:
        if policy.max_restarts == 0:
            return Fatal(reason="no restarts allowed")
        return Fatal(reason=f"{recent} restarts within {policy.window:g} s, the most allowed")
    return Restart(delay=delay)
