"""RestartPolicy and CircuitBreaker by fake clocks."""

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.policy import BreakerState, CircuitBreaker, Fatal, Finished, Life, Restart, RestartPolicy, decide_restart, restart_policy
from nbprocs.testing import FakeClock, instant_waits
from tests.strategies import restart_policies


def live(policy, uptimes, *, late=None):
    """The lives of a process that runs for these times, restarted as decided; the restarts' times and delays, and the last decision."""
    clock = FakeClock()
    lives, restarts, delays = [], [], []
    decision = None
    for index, uptime in enumerate(uptimes):
        started = clock()
        clock.advance(uptime)
        lives.append(Life(started=started, ended=clock()))
        decision = decide_restart(policy, lives[-policy.memory :], clock())
        if not isinstance(decision, Restart):
            break
        clock.advance(decision.delay + (late[index % len(late)] if late else 0))
        restarts.append(clock())
        delays.append(decision.delay)
    return restarts, delays, decision


def test_backoff_with_a_cap_then_fatal():
    policy = RestartPolicy(max_restarts=4, initial_delay=1, max_delay=5, jitter=False)
    _, delays, decision = live(policy, [0.5] * 9)
    assert delays == [1, 2, 4, 5] == policy.delays()
    assert decision == Fatal(reason="4 restarts within 60 s, the most allowed")


def test_a_healthy_uptime_resets_the_backoff():
    policy = RestartPolicy(max_restarts=9, initial_delay=1, jitter=False, healthy_after=10)
    assert live(policy, [1, 1, 1, 10, 1, 1])[1] == [1, 2, 4, 1, 1, 2]


def test_restarts_outside_the_window_do_not_count():
    policy = RestartPolicy(max_restarts=2, initial_delay=0, jitter=False, window=60)
    assert isinstance(live(policy, [31] * 50)[2], Restart)
    assert isinstance(live(policy, [29] * 50)[2], Fatal)


def test_the_backoff_itself_can_lead_out_of_the_window():
    policy = RestartPolicy(max_restarts=2, initial_delay=10, backoff_multiplier=1, window=15, jitter=False)
    assert isinstance(live(policy, [0] * 50)[2], Restart)


def test_no_restarts_allowed():
    assert live(RestartPolicy(max_restarts=0), [1])[2] == Fatal(reason="no restarts allowed")


def test_on_failure_leaves_what_completed_and_always_does_not():
    done = [Life(started=0, ended=1, failed=False)]
    assert decide_restart(RestartPolicy(), done, 1) == Finished()
    assert isinstance(decide_restart(RestartPolicy(on="always"), done, 1), Restart)


@given(
    restart_policies(),
    st.lists(st.floats(min_value=0, max_value=40), max_size=60),
    st.lists(st.floats(min_value=0, max_value=3), min_size=1),
)
def test_no_window_holds_more_restarts_than_the_limit(policy, uptimes, late):
    restarts, _, _ = live(policy, uptimes, late=late)
    for index, first in enumerate(restarts):
        inside = bisect.bisect_left(restarts, first + policy.window * (1 - 1e-9)) - index
        assert inside <= policy.max_restarts


@given(restart_policies(), st.lists(st.floats(min_value=0, max_value=40), max_size=60))
def test_a_delay_never_exceeds_the_cap(policy, uptimes):
    assert all(0 <= delay <= policy.max_delay for delay in live(policy, uptimes)[1])


@given(restart_policies(jitter=False, window=0.5), st.integers(min_value=0, max_value=60))
def test_delays_never_shrink_while_unhealthy(policy, count):
    delays = live(policy, [0.1] * count)[1]
    assert delays == sorted(delays)


@given(restart_policies(jitter=False), st.lists(st.floats(min_value=0, max_value=40), max_size=60))
def test_the_kept_history_is_enough(policy, uptimes):
    clock, lives = FakeClock(), []
    for uptime in uptimes:
        started = clock()
        clock.advance(uptime)
        lives.append(Life(started=started, ended=clock()))
        whole, kept = decide_restart(policy, lives, clock()), decide_restart(policy, lives[-policy.memory :], clock())
        if isinstance(whole, Restart):
            assert whole == kept
            clock.advance(whole.delay)
        else:
            assert type(whole) is type(kept)
            break


def test_instant_waits_are_instant_here_too():
    policy = RestartPolicy(max_restarts=3, initial_delay=9)
    with instant_waits():
        assert live(policy, [1] * 9)[1] == [0, 0, 0]


def test_what_restart_may_be():
    assert restart_policy(None) is restart_policy(False) is None
    assert restart_policy(True) == RestartPolicy()
    policy = RestartPolicy(max_restarts=1)
    assert restart_policy(policy) is policy
    with pytest.raises(TypeError, match="RestartPolicy"):
        restart_policy(3)


@pytest.mark.parametrize(
    "fields",
    [
        {"on": "success"},
        {"max_restarts": -1},
        {"window": 0},
        {"window": float("inf")},
        {"healthy_after": 0},
        {"backoff_multiplier": 0.9},
        {"jitter": 2.5},
    ],
)
def test_numbers_that_make_no_schedule(fields):
    with pytest.raises((TypeError, ValueError), match=r"must be"):
        RestartPolicy(**fields)


class TestBreaker:
    def test_it_opens_half_opens_and_closes(self):
        breaker = CircuitBreaker(failures=3, window=10, open_for=30)
        for now in (0, 1):
            breaker = breaker.failed(now)
            assert breaker.state(now) is BreakerState.CLOSED
            assert breaker.allows(now)
        breaker = breaker.failed(2)
        assert breaker.state(2) is BreakerState.OPEN
        assert breaker.recent == ()
        assert not breaker.allows(31.9)
        assert breaker.retry_after(12) == 20
        assert breaker.state(32) is BreakerState.HALF_OPEN
        assert breaker.allows(32)
        trying = breaker.tried(32)
        assert not trying.allows(32)
        assert trying.succeeded(33).state(33) is BreakerState.CLOSED
        again = trying.failed(33)
        assert again.state(33) is BreakerState.OPEN
        assert again.retry_after(33) == 30

    def test_old_failures_are_forgotten(self):
        breaker = CircuitBreaker(failures=2, window=10)
        assert breaker.failed(0).failed(10.5).state(10.5) is BreakerState.CLOSED

    def test_a_lost_try_does_not_block_for_ever(self):
        breaker = CircuitBreaker(failures=1, open_for=5).failed(0).tried(5)
        assert not breaker.allows(9)
        assert breaker.allows(10)

    def test_a_late_success_does_not_close_an_open_one(self):
        assert CircuitBreaker(failures=1, open_for=5).failed(0).succeeded(1).state(1) is BreakerState.OPEN

    def test_late_failures_do_not_keep_it_open(self):
        assert CircuitBreaker(failures=1, open_for=5).failed(0).failed(4).state(5) is BreakerState.HALF_OPEN

    @pytest.mark.parametrize("fields", [{"failures": 0}, {"window": 0}, {"open_for": -1}])
    def test_nonsense(self, fields):
        with pytest.raises((TypeError, ValueError), match="must be"):
            CircuitBreaker(**fields)

    @given(st.lists(st.tuples(st.sampled_from(["failed", "succeeded", "tried"]), st.floats(min_value=0, max_value=20)), max_size=60))
    def test_it_always_allows_a_start_again_in_time(self, steps):
        breaker, now = CircuitBreaker(failures=2, window=30, open_for=10), 0.0
        for what, later in steps:
            now += later
            breaker = getattr(breaker, what)(now)
            assert 0 <= breaker.retry_after(now) <= 10 + 1e-6
            assert breaker.allows(now + breaker.retry_after(now) + 1e-6)


def test_only_some_exit_codes_are_restarted():
    policy = RestartPolicy(exit_codes={75, 1}, jitter=False)
    for code, decision in ((75, Restart), (1, Restart), (2, Fatal), (None, Restart)):  # None: a signal, or a start that failed
        assert type(decide_restart(policy, [Life(started=0, ended=1, exit_code=code)], 1)) is decision
    assert decide_restart(policy, [Life(started=0, ended=1, exit_code=2)], 1).reason == "exit status 2 is none that a restart helps"
    always = RestartPolicy(exit_codes={75}, on="always")
    assert type(decide_restart(always, [Life(started=0, ended=1, failed=False, exit_code=0)], 1)) is Restart


def test_restarts_without_a_limit():
    policy = RestartPolicy(max_restarts=None, initial_delay=1, max_delay=4, jitter=False)
    lives = [Life(started=0, ended=0)]
    for number in range(500):
        decision = decide_restart(policy, lives[-policy.memory :], lives[-1].ended)
        assert decision.delay == min(4, 2**number)
        start = lives[-1].ended + decision.delay
        lives.append(Life(started=start, ended=start))
    assert policy.memory < 10
    assert len(policy.delays()) == 1000


def test_the_edges_of_the_windows():
    """What lies exactly a window back is outside of it."""
    lives = [Life(started=0, ended=10), Life(started=10, ended=70)]
    assert decide_restart(RestartPolicy(max_restarts=1, initial_delay=0, window=60), lives, 70) == Restart(delay=0)
    breaker = CircuitBreaker(failures=2, window=10).failed(0.0).failed(10.0)
    assert breaker.state(10.0) is BreakerState.CLOSED
    assert breaker.failed(19.9).state(19.9) is BreakerState.OPEN


def test_a_life_says_nothing_of_its_end_unless_told():
    assert Life(started=0, ended=1).what == ""
