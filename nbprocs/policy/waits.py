"""The delay of one attempt: tenacity's exponential wait, with the jitter that tenacity can't do (a random source of the caller's).

tenacity's own random waits draw from the global generator, so a schedule with jitter could not be repeated in a test.
"""

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from nbprocs.checks import LONGEST, number, refuse, whole

if TYPE_CHECKING:
    import tenacity  # at run time only where a wait is computed: it loads asyncio's and tornado's helpers, and import must stay light

__all__ = [
    "Jitter",
    "Stop",
    "Wait",
    "backoff",
    "call_state",
    "instant",
    "instant_waits",
    "spread",
    "valid_codes",
    "valid_delays",
    "valid_rng",
]

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


def valid_delays(*, initial: object, cap: object, multiplier: object, jitter: object) -> None:
    """Raise TypeError or ValueError for fields that make no schedule."""
    for field, value in (("initial_delay", initial), ("max_delay", cap)):
        number(field, value, least=0, most=LONGEST, what="a number of seconds, 0 or more")
    number("backoff_multiplier", multiplier, least=1, what="a number, 1 or more; delays never shrink")
    if jitter not in (True, False, "full", "proportional") or not isinstance(jitter, (bool, str)):
        kind = ValueError if isinstance(jitter, (bool, str)) else TypeError
        refuse(kind, "jitter", 'True (the same as "full"), "proportional" or False', jitter)


def valid_codes(field: str, value: object) -> frozenset[int] | None:
    """Numbers of exit statuses or signals, or None. Raises TypeError or ValueError."""
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        refuse(TypeError, field, "a collection of whole numbers or None", value)
    return frozenset(whole(field, item) for item in value)


def valid_rng(value: object) -> None:
    """Raise TypeError for what gives no random numbers."""
    if value is not None and not callable(getattr(value, "uniform", None)):
        refuse(TypeError, "rng", "a random.Random or None", value)


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
