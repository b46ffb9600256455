"""When a failed task is tried again, and after how long."""

import math
import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from nbprocs.checks import flag, refuse, seconds, whole
from nbprocs.errors import (
    Closed,
    ExecutionTimeout,
    NameInUse,
    NotReady,
    OutOfMemory,
    ProcessError,
    ProcessFailed,
    RestartsExhausted,
    StartupFailed,
    StopFailed,
    UnknownProcess,
)
from nbprocs.policy.waits import Jitter, Stop, Wait, backoff, call_state, instant, spread, valid_codes, valid_delays, valid_rng

if TYPE_CHECKING:
    import tenacity

__all__ = ["RetryPolicy"]

# Trying these again changes nothing: somebody decided it, or a file has to be changed first.
_NEVER = (Closed, NameInUse, UnknownProcess, RestartsExhausted, StopFailed)
_LONGEST_SCHEDULE = 1000  # entries of delays(), for a stop that never stops


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Which failures are tried again, how often, and how long to wait before each try.

    Immutable and without a clock: the same object serves any number of managers, pools, schedulers and handlers at once.
    Every filter that applies to an error must let it pass; by default all do, except those that a new try can't change
    (no such program, no permission, stopped by its owner, closed). ``wait=`` replaces the four delay fields and ``jitter``
    by any tenacity wait, ``stop=`` replaces ``max_retries`` by any tenacity stop.

    >>> policy = RetryPolicy(max_retries=4, initial_delay=0.5, max_delay=3, jitter=False)
    >>> policy.delays()
    [0.5, 1.0, 2.0, 3.0]
    >>> policy.decide(TimeoutError(), attempt=2, elapsed=10.0)
    1.0
    >>> policy.decide(TimeoutError(), attempt=5, elapsed=10.0) is None
    True

    Raises TypeError or ValueError when made with what makes no schedule.
    """

    max_retries: int = 3  # tries after the first one; 0: never again
    initial_delay: float = 0.5  # seconds before the second try
    max_delay: float = 30.0  # seconds; no delay is longer
    backoff_multiplier: float = 2.0  # each delay is this many times the one before
    jitter: Jitter = True  # True or "full": anything from 0 to the delay; "proportional": from half of it; False: exact
    total_time: float | None = None  # seconds from the first start; no try starts later
    exit_codes: Collection[int] | None = None  # of the non-zero exits only these; None: all
    signals: Collection[int] | None = None  # of the crashes only those by these signals; None: all
    out_of_memory: bool = True  # whether one that the system killed for its memory is tried again
    timeout: bool = True  # whether one that ran out of time is tried again
    output: str | re.Pattern[str] | None = None  # a regular expression that the last output must contain
    exceptions: type[BaseException] | tuple[type[BaseException], ...] = Exception  # only errors of these types
    when: Callable[[BaseException], bool] | None = None  # the last word on an error that passed all the others
    wait: Wait | None = None  # any tenacity wait
    stop: Stop | None = None  # any tenacity stop
    rng: random.Random | None = field(default=None, repr=False, compare=False)  # the source of jitter; None: a shared one

    def __post_init__(self) -> None:
        """Refuse what makes no schedule, before anything runs."""
        valid_delays(initial=self.initial_delay, cap=self.max_delay, multiplier=self.backoff_multiplier, jitter=self.jitter)
        kept = object.__setattr__
        kept(self, "max_retries", whole("max_retries", self.max_retries, least=0))
        kept(self, "total_time", seconds("total_time", self.total_time))
        kept(self, "exit_codes", valid_codes("exit_codes", self.exit_codes))
        kept(self, "signals", valid_codes("signals", self.signals))
        flag("out_of_memory", self.out_of_memory)
        flag("timeout", self.timeout)
        kept(self, "output", _pattern(self.output))
        for name in ("when", "wait", "stop"):
            if (given := getattr(self, name)) is not None and not callable(given):
                refuse(TypeError, name, "a callable or None", given)
        kinds = self.exceptions if isinstance(self.exceptions, tuple) else (self.exceptions,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            refuse(TypeError, "exceptions", "an exception class or a tuple of them", self.exceptions)
        valid_rng(self.rng)

    @classmethod
    def from_tenacity(cls, retrying: "tenacity.BaseRetrying", **changes: Any) -> Self:
        """The policy that does what a tenacity ``Retrying`` or ``AsyncRetrying`` would: its wait, its stop, its retry condition.

        >>> import tenacity
        >>> RetryPolicy.from_tenacity(tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(2))).delays()
        [2.0, 2.0]
        """
        condition = retrying.retry

        def when(error: BaseException) -> bool:
            return bool(condition(call_state(error, attempt=1, elapsed=0.0)))

        return cls(**{"wait": retrying.wait, "stop": retrying.stop, "when": when, **changes})

    def retryable(self, error: BaseException) -> bool:
        """Whether the filters let this error be tried again, if tries and time are left.

        >>> from nbprocs.errors import ProcessFailed
        >>> RetryPolicy(exit_codes={75}).retryable(ProcessFailed("busy", exit_code=75))
        True
        >>> RetryPolicy(exit_codes={75}).retryable(ProcessFailed("wrong", exit_code=2))
        False
        """
        if not isinstance(error, self.exceptions) or isinstance(error, _NEVER):
            return False
        if isinstance(error, StartupFailed) and not isinstance(error, NotReady):
            return False
        return self._passes_kind(error) and self._passes_output(error) and (self.when is None or bool(self.when(error)))

    def _passes_kind(self, error: BaseException) -> bool:
        if isinstance(error, ExecutionTimeout):
            return self.timeout
        if not isinstance(error, ProcessFailed):
            return True
        if error.stopped:
            return False
        if isinstance(error, OutOfMemory):
            return self.out_of_memory
        if error.signal is not None:
            return self.signals is None or error.signal in self.signals
        return self.exit_codes is None or error.exit_code in self.exit_codes

    def _passes_output(self, error: BaseException) -> bool:
        if self.output is None:
            return True
        text = error.last_output if isinstance(error, ProcessError) else str(error)
        return re.search(self.output, text) is not None

    def decide(self, error: BaseException, *, attempt: int, elapsed: float) -> float | None:
        """Seconds to wait before the next try, or None to give up.

        Args:
            error: What the last try ended with.
            attempt: Tries already made; 1 after the first failure.
            elapsed: Seconds since the first try started.

        Under ``nbprocs.testing.instant_waits()`` every wait is 0.0; the number of tries stays the same.
        """
        if attempt < 1:
            msg = f"attempt counts the tries already made and is 1 or more, not {attempt!r}"
            raise ValueError(msg)
        if not self.retryable(error):
            return None
        delay, again = self._step(error, attempt=attempt, elapsed=elapsed, exact=False)
        return delay if again else None

    def delays(self) -> list[float]:
        """The delays before the second, third, … try, without jitter, as if the tries took no time.

        At most 1,000 of them, for a ``stop`` that never stops. The waiting never takes longer than their sum.

        >>> RetryPolicy(max_retries=3, initial_delay=1, backoff_multiplier=3).delays()
        [1.0, 3.0, 9.0]
        """
        error = ProcessFailed("a failed try", exit_code=1)
        found: list[float] = []
        while len(found) < _LONGEST_SCHEDULE:
            delay, again = self._step(error, attempt=len(found) + 1, elapsed=math.fsum(found), exact=True)
            if not again:
                break
            found.append(delay)
        return found

    def _step(self, error: BaseException, *, attempt: int, elapsed: float, exact: bool) -> tuple[float, bool]:
        """The delay, and whether a try after it is within the limits."""
        state = call_state(error, attempt=attempt, elapsed=elapsed)
        delay = 0.0 if instant() and not exact else max(0.0, float(self._wait(exact=exact)(state)))
        state.upcoming_sleep = delay
        over = self._stop()(state) or (self.total_time is not None and elapsed + delay > self.total_time)
        return delay, not over

    def _wait(self, *, exact: bool) -> Wait:
        if self.wait is not None:
            return self.wait
        base = backoff(initial=self.initial_delay, cap=self.max_delay, multiplier=self.backoff_multiplier)
        return base if exact else lambda state: spread(float(base(state)), self.jitter, self.rng)

    def _stop(self) -> Stop:
        import tenacity  # noqa: PLC0415 - loaded where it is used: import must stay light

        return self.stop if self.stop is not None else tenacity.stop_after_attempt(self.max_retries + 1)


def _pattern(given: object) -> re.Pattern[str] | None:
    """The regular expression that ``output`` is. Raises TypeError, or ValueError for one that is none."""
    if isinstance(given, str):
        try:
            return re.compile(given)
        except re.error as error:
            refuse(ValueError, "output", f"a regular expression ({error})", given)
    if given is None or (isinstance(given, re.Pattern) and isinstance(given.pattern, str)):
        return given
    return refuse(TypeError, "output", "a regular expression or None", given)
