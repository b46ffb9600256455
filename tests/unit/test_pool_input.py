"""Whatever a pool is given is checked at the call, in one style, before anything is started."""

import dataclasses
import itertools
import math
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import ProcessConfig
from nbprocs.pool import CommandWorker, PoolConfig, ProcessPool, PythonWorker

WRONG = (
    st.none() | st.booleans() | st.text(max_size=3) | st.binary(max_size=3) | st.floats() | st.integers() | st.lists(st.integers(), max_size=1)
    | st.complex_numbers() | st.just(object()) | st.sampled_from([math.inf, -math.inf, math.nan, 10**400, -(10**400), "\udcff"])
)  # fmt: skip
_ids = itertools.count()
STYLE = re.compile(r"\w+(\[\d+\])? must be .+, not ", re.DOTALL)


@given(name=st.sampled_from([f.name for f in dataclasses.fields(PoolConfig)]), value=WRONG)
def test_a_pool_config_is_sound_or_refused(name, value):
    try:
        config = PoolConfig(**{name: value})
    except (TypeError, ValueError) as error:
        assert STYLE.match(str(error)), error
        assert name in str(error) or name in ("min_processes", "max_processes", "initial_processes")
        return
    assert 0 <= config.min_processes <= config.initial <= config.most
    assert config.most >= 1
    for field in ("idle_timeout", "task_timeout", "max_worker_age", "health_check_interval", "start_timeout"):
        limit = getattr(config, field)
        assert limit is None or 0 < limit <= 1e9
    assert config.health_check_interval and config.start_timeout
    assert 0 <= config.retry_delay <= 1e9
    assert type(config.max_retries) is int
    assert config.max_retries >= 0


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("max_processes", "4", TypeError),
        ("max_processes", 2.0, TypeError),
        ("max_processes", True, TypeError),
        ("task_timeout", "1", TypeError),
        ("task_timeout", math.nan, ValueError),
        ("task_timeout", -1, ValueError),
        ("health_check_interval", None, TypeError),
        ("health_check_interval", math.inf, ValueError),
        ("retry_delay", math.nan, ValueError),
        ("retry_delay", None, TypeError),
        ("history", -1, ValueError),
        ("max_retries", 1.5, TypeError),
        ("max_memory_growth", 0, ValueError),
    ],
)
def test_the_error_tells_a_wrong_type_from_a_wrong_value(name, value, kind):
    with pytest.raises(kind, match=f"^{name} must be"):
        PoolConfig(**{name: value})


def test_numbers_of_other_kinds_are_taken():
    from datetime import timedelta

    import numpy as np

    config = PoolConfig(max_processes=np.int64(3), task_timeout=timedelta(minutes=1), idle_timeout=math.inf)
    assert (config.most, config.task_timeout, config.idle_timeout) == (3, 60, None)
    assert type(config.max_processes) is int


@pytest.mark.parametrize(
    "make",
    [
        lambda: PythonWorker(initializer=3),
        lambda: PythonWorker(initargs="ab"),
        lambda: PythonWorker(initargs=5),
        lambda: PythonWorker(preload="json"),
        lambda: PythonWorker(preload=[1]),
        lambda: PythonWorker(output="pane"),
        lambda: PythonWorker(output=None),
        lambda: PythonWorker(threads=0),
        lambda: PythonWorker(threads="many"),
        lambda: PythonWorker(threads=1.5),
        lambda: PythonWorker(follow="yes"),
        lambda: PythonWorker(env_vars={"A": 1}),
        lambda: PythonWorker(working_dir=7),
        lambda: PythonWorker(process={"stdin": True}),
        lambda: PythonWorker(process={"nice": 50}),
        lambda: PythonWorker(process=5),
        lambda: PythonWorker(process=ProcessConfig(command="x", timeout=5)),
        lambda: CommandWorker("bc", process={"name": "x"}),
        lambda: CommandWorker("bc", end=True),
        lambda: CommandWorker("bc", end=None),
        lambda: CommandWorker("bc", end=0),
        lambda: CommandWorker("bc", after=None),
        lambda: CommandWorker("bc", errors=1),
        lambda: CommandWorker("bc", pty="no"),
        lambda: CommandWorker(3),
        lambda: ProcessPool("4"),
        lambda: ProcessPool(4),
        lambda: ProcessPool(PoolConfig),
        lambda: ProcessPool(worker="bc"),
        lambda: ProcessPool(worker=PythonWorker),
        lambda: ProcessPool(manager="pm"),
        lambda: ProcessPool(background="yes"),
        lambda: ProcessPool(name=3),
        lambda: ProcessPool(name=""),
    ],
    ids=lambda given: f"{next(_ids)}",
)
async def test_constructors(make):
    with pytest.raises((TypeError, ValueError)):
        make()


CALLS = {
    "submit": ("priority", "timeout", "retries"),
    "map": ("priority", "timeout", "retries", "chunksize"),
}


@given(call=st.sampled_from([(method, option) for method, options in CALLS.items() for option in options]), value=WRONG)
async def test_calls_are_sound_or_refused(call, value):
    method, option = call
    pool = ProcessPool(PoolConfig(max_processes=1, initial_processes=0, min_processes=0))
    try:
        if method == "submit":
            pool.submit(int, **{option: value}).cancel()
        else:
            await pool.map(int, [], **{option: value}).aclose()
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{option} must be "), error
    finally:
        await pool.aclose()


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (lambda pool: pool.submit(3), "function"),
        (lambda pool: pool.submit(None), "function"),
        (lambda pool: pool.submit("abs"), "function"),
        (lambda pool: pool.map(3, [1]), "map"),
        (lambda pool: pool.map(int, 3), "iterables"),
        (lambda pool: pool.map(int, [1], None), "iterables"),
        (lambda pool: pool.resize("2"), "workers"),
        (lambda pool: pool.resize(1.0), "workers"),
        (lambda pool: pool.resize(0), "may have from"),
        (lambda pool: pool.executor().map(int, [1], chunksize=0), "chunksize"),
        (lambda pool: pool.executor().map(int, [1], chunksize=1.5), "chunksize"),
        (lambda pool: pool.executor().map(int, [1], timeout="1"), "timeout"),
        (lambda pool: pool.executor().map(int, [1], timeout=math.nan), "timeout"),
        (lambda pool: pool.executor().map(int, [1], buffersize=-1), "buffersize"),
    ],
    ids=lambda given: f"{next(_ids)}",
)
async def test_other_calls(act, what):
    async with ProcessPool(PoolConfig(max_processes=1, initial_processes=0, min_processes=0)) as pool:
        with pytest.raises((TypeError, ValueError), match=what):
            act(pool)
        assert pool.metrics().total_processes_created == 0


@pytest.mark.parametrize("config", [ProcessConfig(command="x", nice=3, umask=0o27, rlimits={"NOFILE": (99, 200)}), None])
async def test_a_workers_process_runs_as_its_config_says(config):
    """A ProcessConfig and a mapping of its fields say the same; a program and an interpreter take it alike."""
    process = config or {"nice": 3, "umask": 0o27, "rlimits": {"NOFILE": (99, 200)}}

    def found():
        import os
        import resource

        return os.nice(0), os.umask(0), resource.getrlimit(resource.RLIMIT_NOFILE)

    async with ProcessPool(PoolConfig(max_processes=1), worker=PythonWorker(process=process)) as pool:
        assert await pool.run(found) == (os.nice(0) + 3, 0o27, (99, 200))
    shell = CommandWorker("sh", "-c", 'while read line; do eval "$line"; done', process=process)
    async with ProcessPool(PoolConfig(max_processes=1), worker=shell) as pool:
        assert await pool.run("echo $(nice) $(umask) $(ulimit -n)") == f"{os.nice(0) + 3} 0027 99"
