"""Chaos: workers are killed, stopped and abandoned at random moments. No task is lost, answered twice or answered with another's result.

What a test must not leave behind (processes, descriptors, tasks, threads) is checked after each by the fixtures of every test.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter

import pytest

from nbprocs.errors import ExecutionTimeout, ProcessError
from nbprocs.policy import RetryPolicy
from nbprocs.pool import PoolConfig, PoolTaskState, ProcessPool

AGAIN = RetryPolicy(max_retries=3, initial_delay=0.001, jitter=False)
KINDS = (PoolTaskState.COMPLETED, PoolTaskState.FAILED, PoolTaskState.TIMED_OUT, PoolTaskState.CANCELLED)


def make(name):
    """By value: a worker need not be able to import this file."""
    space = {"__name__": "__main__"}
    source = {
        "double": "def f(x):\n import time\n if x % 200 == 0: time.sleep(0.004)\n return 2 * x",
        "family": "def f(x):\n import subprocess, time\n subprocess.Popen(['sleep', '600'], start_new_session=bool(x % 2))\n time.sleep(x % 3 * 0.4)\n return x",
    }[name]
    exec(source, space)  # noqa: S102
    return space["f"]


class Chaos:
    """Sends a signal to a random worker every so many seconds."""

    def __init__(self, pool, number, every, seed):
        self.pool, self.number, self.every = pool, number, every
        self.random = random.Random(seed)
        self.hits = 0
        self._timer = None

    def __enter__(self):
        self._again()
        return self

    def __exit__(self, *_):
        self._timer.cancel()

    def _again(self):
        self._timer = asyncio.get_running_loop().call_later(self.every, self._again)
        live = [p for p in self.pool.manager.processes() if p.status.live and p.pid]
        if live:
            with contextlib.suppress(Exception):
                os.kill(self.random.choice(live).pid, self.number)
                self.hits += 1


def settled(pool, handles):
    """The books agree with the handles."""
    states = Counter(handle.state for handle in handles)
    metrics = pool.metrics()
    assert metrics.current_queued_tasks == metrics.current_running_tasks == 0
    assert metrics.total_tasks_completed == states[PoolTaskState.COMPLETED]
    assert metrics.total_tasks_failed == states[PoolTaskState.FAILED] + states[PoolTaskState.TIMED_OUT]
    assert metrics.total_tasks_cancelled == states[PoolTaskState.CANCELLED]
    assert sum(states[kind] for kind in KINDS) == len(handles)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [50_000])
async def test_a_worker_killed_every_50_ms(count):
    async with ProcessPool(PoolConfig(min_processes=4, max_processes=4)) as pool:
        function = make("double")
        with Chaos(pool, signal.SIGKILL, 0.05, seed=1) as chaos:
            handles = [pool.submit(function, i, retries=AGAIN) for i in range(count)]
            results = await asyncio.gather(*handles, return_exceptions=True)
        wrong = [(i, r) for i, r in enumerate(results) if r != 2 * i and not isinstance(r, ProcessError)]
        assert wrong == []
        failed = [r for r in results if isinstance(r, ProcessError)]
        assert all(error.attempts == 4 for error in failed)
        assert len(failed) < count / 100
        settled(pool, handles)
        assert chaos.hits > 10
        assert pool.metrics().total_processes_crashed >= chaos.hits / 2


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_without_retries_a_kill_costs_one_task():
    """At most one task for each worker that died; all others never notice, and nothing runs twice."""
    async with ProcessPool(PoolConfig(min_processes=2, max_processes=2)) as pool:
        function = make("double")
        with Chaos(pool, signal.SIGKILL, 0.05, seed=2):
            handles = [pool.submit(function, i) for i in range(8_000)]
            results = await asyncio.gather(*handles, return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        assert [r for i, r in enumerate(results) if r != 2 * i and not isinstance(r, ProcessError)] == []
        assert len(failed) <= pool.metrics().total_processes_crashed
        assert all(handle.attempts == 1 for handle in handles)
        settled(pool, handles)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_nothing_runs_twice(tmp_path):
    """Each start leaves a mark; without retries no task has two."""
    marks = tmp_path / "marks"

    def mark(i):
        fd = __import__("os").open(marks, 0o2101)  # write, create, append
        __import__("os").write(fd, b"%d\n" % i)
        __import__("os").close(fd)
        return i

    async with ProcessPool(PoolConfig(min_processes=2, max_processes=2)) as pool:
        with Chaos(pool, signal.SIGKILL, 0.05, seed=3):
            results = await asyncio.gather(*(pool.submit(mark, i) for i in range(3_000)), return_exceptions=True)
    counted = Counter(int(line) for line in marks.read_text().split())
    assert max(counted.values()) == 1
    assert all(counted[i] == 1 for i, result in enumerate(results) if result == i)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_stopped_workers_timeouts_and_grandchildren():
    config = PoolConfig(min_processes=2, max_processes=2, health_check_interval=0.1)
    async with ProcessPool(config) as pool:
        function = make("family")
        with Chaos(pool, signal.SIGSTOP, 0.5, seed=4):
            handles = [pool.submit(function, i, timeout=0.6, retries=AGAIN if i % 2 else None) for i in range(12)]
            results = await asyncio.gather(*handles, return_exceptions=True)
        for i, result in enumerate(results):
            assert result == i or isinstance(result, ProcessError), (i, result)
        assert any(isinstance(r, ExecutionTimeout) for r in results)
        assert any(r == i for i, r in enumerate(results))
        settled(pool, handles)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_cancellation_at_random_moments():
    dice = random.Random(5)
    async with ProcessPool(PoolConfig(min_processes=2, max_processes=2)) as pool:
        function = make("double")
        handles = []
        for _ in range(100):
            handles += [pool.submit(function, len(handles) + i) for i in range(30)]
            if dice.random() < 0.7:
                await asyncio.sleep(dice.choice([0, 0, 0.0005, 0.002]))
            for handle in dice.sample(handles[-60:], 8):
                handle.cancel()
        results = await asyncio.gather(*handles, return_exceptions=True)
        assert [r for i, r in enumerate(results) if r != 2 * i and not isinstance(r, asyncio.CancelledError)] == []
        await pool.join()
        settled(pool, handles)
        assert await pool.run(function, 1) == 2


@pytest.mark.slow
async def test_a_broken_consumer_a_crash_and_a_close_at_once():
    for seed in range(15):
        dice = random.Random(seed)
        pool = ProcessPool(PoolConfig(min_processes=1, max_processes=2))
        function = make("double")
        handles = [pool.submit(function, i) for i in range(dice.randrange(1, 400))]
        await asyncio.sleep(dice.random() * 0.06)
        with contextlib.suppress(Exception):
            os.kill(next(p for p in pool.manager.processes() if p.status.live).pid, signal.SIGKILL)
        began = time.monotonic()
        await pool.aclose()
        assert time.monotonic() - began < 10
        assert all(handle.done() for handle in handles)
        for i, handle in enumerate(handles):
            if handle.exception() is None:
                assert handle.result() == 2 * i
            else:
                assert isinstance(handle.exception(), ProcessError)
