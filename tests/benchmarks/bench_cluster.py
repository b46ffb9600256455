"""The cluster against plain Dask on the same cluster: a scheduler and two workers of four threads each, all processes of this machine.

The peer is what people do today: ``client.map(subprocess.run)``, whose output and cancelling end at the worker.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nbprocs import DaskBackend, TaskCancelled, TaskScheduler
from tests.benchmarks.harness import sized
from tests.cluster.real import RealCluster, marked

COUNT = sized(2_000, quick=200)
ROUNDS = sized(20, quick=5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with tempfile.TemporaryDirectory(prefix="nbprocs-bench-") as folder, RealCluster(Path(folder)) as cluster:
        cluster.start_scheduler()
        for name in ("one", "two"):
            cluster.start_worker(name, threads=4)
        yield cluster


def true() -> None:
    subprocess.run(["true"], check=True, capture_output=True)


async def _map(cluster: RealCluster) -> float:
    from distributed import Client

    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        await client.gather([client.submit(true, pure=False) for _ in range(16)])
        began = time.monotonic()
        await client.gather(client.map(lambda _: true(), range(COUNT), pure=False))
        return COUNT / (time.monotonic() - began)


async def _ours(cluster: RealCluster) -> float:
    async with TaskScheduler(backend=DaskBackend(cluster.address)) as sch:
        await asyncio.gather(*(sch.schedule("true") for _ in range(64)))
        began = time.monotonic()
        sch.schedule_many([("true",)] * COUNT)
        await sch.join()
        return COUNT / (time.monotonic() - began)


def test_many_small_ones(bench, cluster):
    bench.row(
        "2,000 × true on 2 workers × 4 threads",
        ours=lambda: asyncio.run(_ours(cluster)),
        peers={"client.map(subprocess.run)": lambda: asyncio.run(_map(cluster))},
        at_least={"client.map(subprocess.run)": 0.9},
        unit="tasks/s",
    )


# --- CPU -------------------------------------------------------------------------------------------------------------------


def _spent(cluster: RealCluster) -> float:
    """CPU seconds of scheduler and workers, without the commands."""
    return sum(sum(psutil.Process(process.pid).cpu_times()[:2]) for process in cluster.processes.values())


def _cpu(cluster: RealCluster, run) -> float:
    """CPU milliseconds a task: kernel, scheduler, workers."""
    before, mine = _spent(cluster), time.process_time()
    asyncio.run(run(cluster))
    return 1000 * (_spent(cluster) - before + time.process_time() - mine) / COUNT


def test_cpu_of_a_task(bench, cluster):
    bench.row(
        "CPU of kernel, scheduler and workers a task",
        ours=lambda: _cpu(cluster, _ours),
        peers={"client.map(subprocess.run)": lambda: _cpu(cluster, _map)},
        at_most={"client.map(subprocess.run)": 1.0},
        unit="ms",
    )


async def _lag(cluster: RealCluster) -> float:
    """p99 of how late the kernel's loop is while 2,000 tasks run, ms."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            due = time.monotonic() + 0.005
            await asyncio.sleep(0.005)
            lags.append(time.monotonic() - due)

    async with TaskScheduler(backend=DaskBackend(cluster.address)) as sch:
        await asyncio.gather(*(sch.schedule("true") for _ in range(64)))
        watcher = asyncio.get_running_loop().create_task(watch())
        sch.schedule_many([("true",)] * COUNT)
        await sch.join()
        watcher.cancel()
    return 1000 * sorted(lags)[int(0.99 * len(lags))]


def test_the_loop_goes_on(bench, cluster):
    bench.row("lag of the kernel's loop meanwhile, p99", ours=lambda: asyncio.run(_lag(cluster)), ceiling=25.0, unit="ms")


# --- latency ------------------------------------------------------------------------------------------------------------------


async def _latency(cluster: RealCluster, what: str, *, proxy: bool = False) -> float:
    """Median of the first line, or of the end by cancel(), seen in the process table; ms."""
    firsts, ends = [], []
    mark = f"bench-{os.urandom(6).hex()}"
    async with TaskScheduler(backend=DaskBackend(cluster.address, proxy=proxy)) as sch:
        await sch.schedule("true")
        for _ in range(ROUNDS):
            began = time.monotonic()
            task = sch.schedule("sh", "-c", "setsid sleep 1000 & echo ready; sleep 1000", env_vars={"BENCH_MARK": mark})
            await anext(aiter(task.lines()))
            firsts.append(time.monotonic() - began)
            began = time.monotonic()
            task.cancel()
            try:
                await task
            except TaskCancelled:
                ends.append(time.monotonic() - began)
            assert not marked(mark)
    return 1000 * statistics.median(firsts if what == "first" else ends)


@pytest.mark.parametrize("proxy", [False, True], ids=["direct", "by way of the scheduler"])
def test_first_line(bench, cluster, proxy):
    way = "by way of the scheduler" if proxy else "direct"
    bench.row(f"first line, {way}", ours=lambda: asyncio.run(_latency(cluster, "first", proxy=proxy)), ceiling=50.0, unit="ms")


def test_cancel_to_an_empty_tree(bench, cluster):
    bench.row("cancel() to an empty tree", ours=lambda: asyncio.run(_latency(cluster, "end")), ceiling=200.0, unit="ms")


async def _urgent(cluster: RealCluster) -> float:
    """An urgent task behind 100 × 0.2 s on 8 slots, of which 4 may be used; ms until it has ended."""
    from nbprocs import SchedulerConfig

    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=4), backend=DaskBackend(cluster.address)) as sch:
        await asyncio.gather(*(sch.schedule("true") for _ in range(32)))
        others = sch.schedule_many([("sleep", "0.2")] * 100)
        await others[4]
        began = time.monotonic()
        await sch.schedule("true", priority=3)
        took = time.monotonic() - began
        for other in others:
            other.cancel()
    return 1000 * took


def test_an_urgent_task(bench, cluster):
    bench.row("an urgent task behind 100 × 0.2 s on 4 slots", ours=lambda: asyncio.run(_urgent(cluster)), ceiling=400.0, unit="ms")


# --- output -------------------------------------------------------------------------------------------------------------------


async def _output(cluster: RealCluster) -> float:
    size = 256 << 20
    code = f"import sys\nblock = b'x' * 65535 + b'\\n'\nfor _ in range({size >> 16}): sys.stdout.buffer.write(block)"
    async with TaskScheduler(backend=DaskBackend(cluster.address)) as sch:
        await sch.schedule("true")
        began = time.monotonic()
        result = await sch.schedule(sys.executable, "-c", code)
        took = time.monotonic() - began
        assert len(result.stdout) == size
    return size / 1e6 / took


def test_output(bench, cluster):
    bench.row("256 MiB of output to the kernel", ours=lambda: asyncio.run(_output(cluster)), floor=50.0, unit="MB/s")
