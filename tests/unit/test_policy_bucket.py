"""The one token bucket, against a plain count of what it may ever have given."""

from hypothesis import given
from hypothesis import strategies as st

from nbprocs.policy.bucket import TokenBucket


def test_a_bucket_refills():
    bucket = TokenBucket(burst=2, per_second=0.5)
    taken = [bucket.take(t) for t in (0, 0, 0, 1, 2, 2.5, 4, 100, 100, 100)]
    assert taken == [True, True, False, False, True, False, True, True, True, False]


def test_a_clock_that_is_set_back_gives_nothing():
    bucket = TokenBucket(burst=1, per_second=1)
    assert bucket.take(100)
    assert not bucket.take(0)
    assert not bucket.take(0.5)
    assert bucket.take(1.5)


def test_a_debt_is_paid_first():
    bucket = TokenBucket(burst=1, per_second=0.5)
    bucket.spend(0, 3)
    assert bucket.held(0) == -2
    assert bucket.wait(0) == 6
    assert not bucket.take(5)
    assert bucket.take(6)


@given(burst=st.integers(1, 10), per_second=st.floats(0.1, 100), steps=st.lists(st.floats(0, 5), max_size=60))
def test_never_more_than_the_burst_and_what_came_in(burst, per_second, steps):
    bucket, now, given_out = TokenBucket(burst=burst, per_second=per_second), 0.0, 0
    for step in steps:
        now += step
        wait = bucket.wait(now)
        taken = bucket.take(now)
        assert taken == (wait <= 1e-8)
        given_out += taken
        assert given_out <= burst + per_second * now + 1e-6
        if not taken:
            now += wait
            assert bucket.take(now)
            given_out += 1
