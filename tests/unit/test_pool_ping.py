"""A ping of the pool: answered by a worker, and no task."""

import asyncio
import math

import pytest

from nbprocs import CommunicationError, PoolConfig, ProcessMonitor, ProcessPool


async def test_a_ping_is_answered_and_is_no_task() -> None:
    async with ProcessPool(PoolConfig(initial_processes=1, max_processes=1)) as pool:
        seconds = await pool.ping()
        assert 0 < seconds < 30
        assert pool.metrics().total_tasks_completed == 0


async def test_without_a_ready_worker_there_is_nobody_to_ask() -> None:
    async with ProcessPool(PoolConfig(min_processes=0, initial_processes=0)) as pool:
        with pytest.raises(CommunicationError, match="no worker is ready"):
            await pool.ping()


async def test_the_monitor_takes_a_ping_for_the_response_time() -> None:
    config = PoolConfig(initial_processes=1, max_processes=1)
    async with ProcessPool(config) as pool, ProcessMonitor(interval=0.05) as monitor, asyncio.timeout(30):
        monitor.watch(pool)
        monitor.probe(pool.name, pool, every=0.01)
        times: list[float] = []
        while not times:
            await asyncio.sleep(0.01)  # the probe is a task of its own
            await monitor.sample()
            times = [t for t in monitor.frame(scope="group")["response_time"] if math.isfinite(t)]
        assert 0 < times[0] < 30
        assert pool.metrics().total_tasks_completed == 0
