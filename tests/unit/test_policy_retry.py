"""RetryPolicy: every schedule by a fake clock or none at all, every filter by the error it is for."""

import pickle
import random
import signal

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.errors import (
    Closed,
    CommunicationError,
    ExecutionTimeout,
    NameInUse,
    NotReady,
    OutOfMemory,
    PermissionDenied,
    ProcessCrashed,
    ProcessFailed,
    ResourceExhausted,
    RestartsExhausted,
    StartupFailed,
)
from nbprocs.model import EndReason
from nbprocs.policy import RetryPolicy
from nbprocs.testing import FakeClock, instant_waits
from tests.strategies import retry_policies

FAILED = ProcessFailed("failed", exit_code=1)


def decided(policy, error=FAILED, tries=30):
    """The delays that decide gives, one try after the other, by a clock that only the waits move."""
    clock = FakeClock()
    found = []
    for attempt in range(1, tries + 1):
        delay = policy.decide(error, attempt=attempt, elapsed=clock())
        if delay is None:
            return found
        found.append(delay)
        clock.advance(delay)
    return found


def test_the_default_schedule():
    assert RetryPolicy().delays() == [0.5, 1.0, 2.0]
    assert RetryPolicy(max_retries=8).delays() == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_retries": 0}, []),
        ({"max_retries": 2, "initial_delay": 0}, [0, 0]),
        ({"max_retries": 3, "initial_delay": 2, "backoff_multiplier": 1}, [2, 2, 2]),
        ({"max_retries": 4, "initial_delay": 1, "backoff_multiplier": 3, "max_delay": 10}, [1, 3, 9, 10]),
        ({"max_retries": 2, "initial_delay": 50, "max_delay": 10}, [10, 10]),
        ({"max_retries": 9, "initial_delay": 1, "total_time": 10}, [1, 2, 4]),
        ({"max_retries": 3, "initial_delay": 1, "max_delay": 5, "backoff_multiplier": 1e300}, [1, 5, 5]),
    ],
)
def test_schedules(fields, expected):
    policy = RetryPolicy(jitter=False, **fields)
    assert policy.delays() == expected
    assert decided(policy) == expected


@given(retry_policies())
def test_a_delay_never_exceeds_the_cap_and_tries_never_the_limit(policy):
    found = decided(policy)
    assert all(0 <= delay <= policy.max_delay for delay in found)
    assert len(found) == policy.max_retries


@given(retry_policies(jitter=False))
def test_delays_never_shrink_without_jitter_and_are_the_ones_shown(policy):
    found = decided(policy)
    assert found == sorted(found)
    assert found == policy.delays()


@given(retry_policies())
def test_the_shown_schedule_bounds_the_one_with_jitter(policy):
    shown = policy.delays()
    assert shown == sorted(shown)
    for delay, most in zip(decided(policy), shown, strict=True):
        assert delay <= most
        if policy.jitter == "proportional":
            assert delay >= most / 2


@given(retry_policies(), st.floats(min_value=0.1, max_value=2000))
def test_no_try_starts_after_the_total_time(policy, limit):
    import dataclasses

    found = decided(dataclasses.replace(policy, total_time=limit))
    clock = 0.0
    for delay in found:
        clock += delay
    assert clock <= limit * (1 + 1e-9)


def test_jitter_uses_the_given_source():
    def delays(jitter):
        return decided(RetryPolicy(max_retries=20, jitter=jitter, initial_delay=1, backoff_multiplier=1, rng=random.Random(7)))

    assert delays(True) == delays("full") == delays(True)
    assert min(delays("full")) < 0.5 <= min(delays("proportional")) < 0.6
    source = random.Random(7)
    assert delays("full") == [source.uniform(0, 1) for _ in range(20)]


class TestFilters:
    @pytest.mark.parametrize(
        "error",
        [
            FAILED,
            ProcessCrashed("crashed", signal=11),
            OutOfMemory("oom", signal=9),
            ExecutionTimeout("slow"),
            NotReady("not ready"),
            CommunicationError("pipe"),
            ResourceExhausted("full"),
            ConnectionError("reset"),
            ValueError("a task's own"),
        ],
    )
    def test_tried_again_by_default(self, error):
        assert RetryPolicy().retryable(error)

    @pytest.mark.parametrize(
        "error",
        [
            StartupFailed("no such program"),
            PermissionDenied("not executable"),
            Closed("closed"),
            NameInUse("taken"),
            RestartsExhausted("fatal"),
            KeyboardInterrupt(),
        ],
    )
    def test_never_tried_again(self, error):
        assert not RetryPolicy().retryable(error)
        assert RetryPolicy().decide(error, attempt=1, elapsed=0) is None

    def test_stopped_by_its_owner(self):
        error = ProcessCrashed("stopped", signal=15)
        error.reason = EndReason.STOPPED
        assert not RetryPolicy().retryable(error)

    def test_exit_codes(self):
        policy = RetryPolicy(exit_codes=[75, 111])
        assert policy.retryable(ProcessFailed("busy", exit_code=75))
        assert not policy.retryable(FAILED)
        assert policy.retryable(ProcessCrashed("a signal is another filter", signal=9))
        assert not RetryPolicy(exit_codes=()).retryable(FAILED)

    def test_signals(self):
        policy = RetryPolicy(signals={signal.SIGBUS})
        assert policy.retryable(ProcessCrashed("bus", signal=signal.SIGBUS))
        assert not policy.retryable(ProcessCrashed("segv", signal=signal.SIGSEGV))
        assert policy.retryable(OutOfMemory("has its own switch", signal=9))

    def test_out_of_memory_and_timeout(self):
        policy = RetryPolicy(out_of_memory=False, timeout=False)
        assert not policy.retryable(OutOfMemory("oom", signal=9))
        assert not policy.retryable(ExecutionTimeout("slow"))
        assert policy.retryable(ProcessCrashed("killed", signal=9))

    def test_output_pattern(self):
        policy = RetryPolicy(output=r"(?i)connection (reset|refused)")
        assert policy.retryable(ProcessFailed("failed", exit_code=1, last_output="x\nError: Connection refused\n"))
        assert not policy.retryable(ProcessFailed("failed", exit_code=1, last_output="SyntaxError"))
        assert policy.retryable(OSError("connection reset"))

    def test_exception_types(self):
        policy = RetryPolicy(exceptions=(ConnectionError, ProcessCrashed))
        assert policy.retryable(ConnectionResetError())
        assert policy.retryable(OutOfMemory("oom", signal=9))
        assert not policy.retryable(FAILED)
        assert RetryPolicy(exceptions=ValueError).retryable(ValueError())

    def test_when_has_the_last_word(self):
        policy = RetryPolicy(when=lambda error: "again" in str(error))
        assert policy.retryable(ValueError("try again"))
        assert not policy.retryable(ValueError("no"))

    def test_all_filters_must_pass(self):
        policy = RetryPolicy(exit_codes={1}, output="busy")
        assert policy.retryable(ProcessFailed("f", exit_code=1, last_output="busy"))
        assert not policy.retryable(ProcessFailed("f", exit_code=2, last_output="busy"))
        assert not policy.retryable(ProcessFailed("f", exit_code=1, last_output="done"))


class TestTenacity:
    @pytest.mark.parametrize(
        ("wait", "expected"),
        [
            (tenacity.wait_fixed(3), [3, 3, 3]),
            (tenacity.wait_incrementing(start=1, increment=2), [1, 3, 5]),
            (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(4)), [1, 4, 4]),
            (tenacity.wait_fixed(1) + tenacity.wait_exponential(multiplier=1), [2, 3, 5]),
            (lambda state: state.attempt_number * 10, [10, 20, 30]),
            (tenacity.wait_exception(lambda error: float(error.exit_code)), [1, 1, 1]),
        ],
    )
    def test_any_wait(self, wait, expected):
        policy = RetryPolicy(wait=wait)
        assert decided(policy) == expected
        assert policy.delays() == expected

    @pytest.mark.parametrize(
        ("stop", "expected"),
        [
            (tenacity.stop_after_attempt(2), [1]),
            (tenacity.stop_after_delay(3), [1, 1, 1]),
            (tenacity.stop_before_delay(3), [1, 1]),
            (tenacity.stop_after_attempt(5) | tenacity.stop_after_delay(2), [1, 1]),
            (tenacity.stop_after_attempt(3) & tenacity.stop_after_delay(1), [1, 1]),
        ],
    )
    def test_any_stop(self, stop, expected):
        policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=stop)
        assert decided(policy) == expected
        assert policy.delays() == expected

    def test_a_stop_that_never_stops_shows_a_bounded_schedule(self):
        assert len(RetryPolicy(stop=tenacity.stop_never, wait=tenacity.wait_fixed(1)).delays()) == 1000

    def test_a_whole_retrying_object(self):
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(2), retry=tenacity.retry_if_exception_type(OSError)
        )
        policy = RetryPolicy.from_tenacity(retrying)
        assert policy.delays() == [2, 2]
        assert policy.decide(OSError(), attempt=1, elapsed=0) == 2
        assert policy.decide(ValueError(), attempt=1, elapsed=0) is None

    def test_a_negative_wait_is_none(self):
        assert RetryPolicy(wait=lambda _: -1, max_retries=1).delays() == [0]


class TestInstant:
    def test_every_wait_is_instant_and_the_count_stays(self):
        policy = RetryPolicy(initial_delay=10, total_time=1, jitter=False)
        assert decided(policy) == []
        with instant_waits():
            assert decided(policy) == [0, 0, 0]
            with instant_waits():
                assert decided(RetryPolicy(wait=tenacity.wait_fixed(9))) == [0, 0, 0]
            assert RetryPolicy().decide(FAILED, attempt=1, elapsed=0) == 0
            assert RetryPolicy().delays() == [0.5, 1, 2]  # the schedule shown is the real one
        assert RetryPolicy(jitter=False).decide(FAILED, attempt=1, elapsed=0) == 0.5

    def test_it_ends_with_an_error_too(self):
        with pytest.raises(ZeroDivisionError), instant_waits():
            raise ZeroDivisionError
        assert RetryPolicy(jitter=False).decide(FAILED, attempt=1, elapsed=0) == 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": True},
        {"initial_delay": -1},
        {"initial_delay": float("nan")},
        {"max_delay": float("inf")},
        {"backoff_multiplier": 0.5},
        {"jitter": "half"},
        {"total_time": 0},
    ],
)
def test_numbers_that_make_no_schedule(fields):
    with pytest.raises((TypeError, ValueError), match=next(iter(fields))):
        RetryPolicy(**fields)


def test_a_bad_pattern_is_refused_when_made():
    with pytest.raises(Exception, match="unterminated"):
        RetryPolicy(output="(")


def test_attempts_count_from_one():
    with pytest.raises((TypeError, ValueError), match="attempt"):
        RetryPolicy().decide(FAILED, attempt=0, elapsed=0)


def test_it_pickles():
    policy = RetryPolicy(max_retries=7, output="x", exit_codes=frozenset({1}))
    assert pickle.loads(pickle.dumps(policy)) == policy
