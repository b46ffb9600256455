"""The delay of one attempt: tenacity's exponential wait, with the jitter that tenacity can't do (a random source of the caller's).

tenacity's own random waits draw from the global generator, so a schedule with jitter could not be repeated in a test.
"""

import math
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import tenacity  # at run time only where a wait is computed: it loads asyncio's and tornado's helpers, and import must stay light

__all__ = ["Jitter", "Stop", "Wait", "backoff", "call_state", "instant", "instant_waits", "spread", "valid_delays"]

Jitter = bool | Literal["full", "proportional"]
Wait = Callable[["tenacity.RetryCallState"], float | int]
Stop = Callable[["tenacity.RetryCallState"], bool]

_SHARED = random.Random()  # noqa: S311 - spreads load, keeps no secret
_lock = threading.Lock()
_instant_depth = 0


def backoff(*, initial: float, cap: float, multiplier: float) -> Wait:
    """``initial * multiplier ** (attempt - 1)``, at most ``cap`` seconds."""
    import tenacity  # noqa: PLC0415 - see above

    return tenacity.wait_exponential(multiplier=initial, max=cap, exp_base=multiplier)


def call_state(error: BaseException, *, attempt: int, elapsed: float) -> "tenacity.RetryCallState":
    """What tenacity's waits and stops look at, as if tenacity had made these attempts itself."""
    import tenacity  # noqa: PLC0415 - see above

    caller = tenacity.Retrying(reraise=True)  # a RetryCallState wants one; nothing is ever called through it
    state = tenacity.RetryCallState(caller, None, (), {})
    state.attempt_number = attempt
    state.outcome = tenacity.Future(attempt)
    state.outcome.set_exception(error)
    state.outcome_timestamp = state.start_time + elapsed
    return state


def spread(delay: float, jitter: Jitter, rng: random.Random | None) -> float:
    """The delay with jitter: full draws from [0, delay], proportional from [delay / 2, delay]. Never longer than the delay.

    Both are from the AWS Architecture Blog, "Exponential Backoff And Jitter" (there: full and equal jitter).
    """
    if jitter is False or delay <= 0:
        return delay
    low = 0.5 * delay if jitter == "proportional" else 0.0
    return min(delay, (rng or _SHARED).uniform(low, delay))


def valid_delays(*, initial: float, cap: float, multiplier: float, jitter: Jitter) -> None:
    """Raise ValueError for fields that make no schedule."""
    for field, value in (("initial_delay", initial), ("max_delay", cap)):
        if not (math.isfinite(value) and value >= 0):
            msg = f"{field} must be a number of seconds, 0 or more, not {value!r}"
            raise ValueError(msg)
    if not (math.isfinite(multiplier) and multiplier >= 1):
        msg = f"backoff_multiplier must be 1 or more, not {multiplier!r}; delays never shrink"
        raise ValueError(msg)
    if jitter not in (True, False, "full", "proportional"):
        msg = f'jitter must be True (the same as "full"), "proportional" or False, not {jitter!r}'
        raise ValueError(msg)


def instant() -> bool:
    """Whether the test mode is on, in which every wait is 0.0 seconds."""
    return _instant_depth > 0


@contextmanager
def instant_waits() -> Iterator[None]:
    """The test mode; public as ``nbprocs.testing.instant_waits``. A plain counter, not a context variable: it must reach other threads.

    >>> from nbprocs.policy import RetryPolicy
    >>> with instant_waits():
    ...     RetryPolicy(initial_delay=30).decide(TimeoutError(), attempt=1, elapsed=0.0)
    0.0
    """
    global _instant_depth  # noqa: PLW0603 - one switch of the whole process is the point
    with _lock:
        _instant_depth += 1
    try:
        yield
    finally:
        with _lock:
            _instant_depth -= 1
