# ruff: noqa: SIM300
"""When workers are hired, replaced and let go: figures in, decision out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.engine.container import usable_cpus
from nbprocs.pool.model import PoolConfig
from nbprocs.pool.scaling import START_COST, Brake, Health, hung, leave_reason, missing

CONFIG = PoolConfig(min_processes=1, max_processes=4)
LONG = {"mean": 1.0, "waiting": 0.0}
CALM = {"workers": 2, "target": 1, "idle_for": None, "age": 1.0, "budget": None, "growth": 0, "stale_code": False}


@pytest.mark.parametrize(
    ("figures", "count"),
    [
        ({"workers": 0, "queued": 0, **LONG}, 1),  # the minimum
        ({"workers": 1, "queued": 0, **LONG}, 0),
        ({"workers": 1, "queued": 2, **LONG}, 2),
        ({"workers": 1, "queued": 99, **LONG}, 3),  # never past the maximum
        ({"workers": 1, "queued": 99, "mean": 1e-6, "waiting": 0.0}, 0),  # not worth a worker
        ({"workers": 1, "queued": 99, "mean": 1e-6, "waiting": START_COST}, 3),  # but it does not get done
        ({"workers": 1, "queued": 1, "mean": None, "waiting": 0.0}, 0),  # unknown: wait a moment
        ({"workers": 1, "queued": 1, "mean": None, "waiting": START_COST}, 1),
        ({"workers": 3, "starting": 2, "queued": 2, **LONG}, 0),  # they are on their way
    ],
)
def test_missing(figures, count):
    assert missing(CONFIG, **{"target": 1, "starting": 0, **figures}) == count


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 1000), st.none() | st.floats(0, 10), st.floats(0, 10), st.integers(1, 4))
def test_missing_within_bounds(workers, starting, queued, mean, waiting, target):
    count = missing(CONFIG, target=target, workers=workers, starting=starting, queued=queued, mean=mean, waiting=waiting)
    assert 0 <= count
    assert workers + count <= max(4, workers)
    assert workers + count >= min(target, 4)


@pytest.mark.parametrize(
    ("options", "figures", "reason"),
    [
        ({}, {}, None),
        ({}, {"stale_code": True}, "code"),
        ({"max_tasks_per_worker": 5}, {"budget": 0}, "ran 5 tasks"),
        ({"max_worker_age": 10}, {"age": 11}, "11 s old"),
        ({"max_memory_growth": 1_000_000}, {"growth": 2_000_000}, "grew by 2 MB"),
        ({"idle_timeout": 5}, {"idle_for": 6}, "idle for 6 s"),
        ({"idle_timeout": 5}, {"idle_for": 6, "workers": 1}, None),  # the minimum stays
        ({"idle_timeout": None}, {"idle_for": 1e9}, None),
    ],
)
def test_reasons_to_leave(options, figures, reason):
    found = leave_reason(PoolConfig(max_processes=4, **options), **{**CALM, **figures})
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    ("pinged", "busy", "stopped", "paused", "replace"),
    [
        (False, False, True, False, False),
        (True, False, False, False, True),
        (True, True, False, False, False),  # one long C call
        (True, True, True, False, True),
        (True, True, True, True, False),  # its owner paused it
    ],
)
def test_hung(pinged, busy, stopped, paused, replace):
    assert hung(Health(pinged=pinged, busy=busy, stopped=stopped, paused=paused)) is replace


def test_the_brake_slows_useless_deaths_only():
    brake = Brake()
    delays = []
    for _ in range(14):
        brake.died(None)
        delays.append(brake.delay)
    assert delays[:2] == [0.0, 0.0]
    assert delays == sorted(delays)
    assert max(delays) == 30.0
    brake.useful()
    assert brake.delay == 0.0
    for _ in range(40):
        brake.died(None, killed=True)
    assert brake.delay == 0.0  # somebody shoots at workers: they are replaced at once


@pytest.mark.parametrize(
    "options",
    [
        {"min_processes": 3, "max_processes": 2},
        {"min_processes": -1},
        {"max_processes": 0, "min_processes": 0},
        {"initial_processes": 9, "max_processes": 2},
        {"idle_timeout": 0},
        {"task_timeout": -1},
        {"max_retries": -1},
        {"retry_delay": -0.1},
        {"max_tasks_per_worker": 0},
        {"health_check_interval": 0},
        {"history": -1},
    ],
)
def test_impossible_configs_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PoolConfig(**options)


def test_the_default_maximum_is_what_this_process_may_use():
    assert PoolConfig().max_processes == usable_cpus() >= 1
    assert PoolConfig(min_processes=50).max_processes == 50
