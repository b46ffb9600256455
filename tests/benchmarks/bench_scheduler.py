"""The scheduler against a bare priority queue, bare ``pm.run``, GNU parallel, and pueue's way to keep its state.

Rates that have a floor of their own are counted by the CPU time of this process: that is what they are on a machine with nothing else to do, and
what other load can't take away. Everything else is wall-clock time, all parties in turn.
"""

import asyncio
import contextlib
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbprocs import ProcessManager
from nbprocs.scheduler import SchedulerConfig, TaskScheduler, TaskState
from nbprocs.testing.conformance import FakeBackend
from tests.benchmarks.harness import sized

COUNT = sized(100_000, quick=10_000)
MANY = sized(1_000_000, quick=100_000)
RUNS = sized(2_000, quick=300)


@contextlib.contextmanager
def queue_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nbprocs-bench-") as folder:
        yield Path(folder, "queue.db")


# --- putting tasks in -------------------------------------------------------------------------------------------------------


async def _priority_queue() -> float:
    """Tuples that hold what a task holds: priority, time, arrival, command."""
    queue: asyncio.PriorityQueue[tuple] = asyncio.PriorityQueue()
    began = time.process_time()
    for n in range(COUNT):
        queue.put_nowait((-1, time.time(), n, ("true", str(n))))
    return COUNT / (time.process_time() - began)


async def _schedule_in_memory() -> float:
    sch = TaskScheduler(backend=FakeBackend())
    sch.pause()
    began = time.process_time()
    for n in range(COUNT):
        sch.schedule("true", str(n))
    rate = COUNT / (time.process_time() - began)
    await sch.aclose()
    return rate


def test_schedule_in_memory(bench) -> None:
    bench.row(
        "schedule() in memory, by CPU time",
        ours=_schedule_in_memory,
        peers={"PriorityQueue.put_nowait": _priority_queue},
        at_least={"PriorityQueue.put_nowait": 0.08},
        floor=60_000,
        unit="tasks/s",
        rounds=5,
    )


async def _schedule_durable() -> float:
    with queue_file() as path:
        sch = TaskScheduler(store=path, backend=FakeBackend())
        sch.pause()
        began = time.process_time()
        for n in range(20_000):
            sch.schedule("true", str(n))
        rate = 20_000 / (time.process_time() - began)
        await sch.aclose()
        return rate


async def _schedule_many_durable() -> float:
    with queue_file() as path:
        sch = TaskScheduler(store=path, backend=FakeBackend())
        sch.pause()
        tasks = [("true", str(n)) for n in range(COUNT)]
        began = time.process_time()
        handles = sch.schedule_many(tasks)
        rate = len(handles) / (time.process_time() - began)
        await sch.aclose()
        return rate


def test_schedule_durable(bench) -> None:
    bench.row("durable schedule(), by CPU time", ours=_schedule_durable, floor=10_000, unit="tasks/s")
    bench.row("durable schedule_many(), by CPU time", ours=_schedule_many_durable, floor=100_000, unit="tasks/s")


LIVES = sized(2_000, quick=300)


async def _whole_life_durable() -> None:
    """Scheduled one by one, each on disk when schedule() returns; started, ended, its end on disk. No process: the queue alone."""
    with queue_file() as path:
        async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=4), store=path, backend=FakeBackend()) as sch:
            for n in range(LIVES):
                sch.schedule("true", str(n))
            assert (await sch.join()).succeeded == LIVES


def _whole_life_huey() -> None:
    """The same with huey's SQLite storage (WAL, synchronous off: less than ours promises): enqueued, taken, called, its result stored."""
    import huey

    with queue_file() as path:
        queue = huey.SqliteHuey(filename=str(path))

        @queue.task()
        def job(number: int) -> int:
            return number

        for n in range(LIVES):
            job(n)
        while (task := queue.dequeue()) is not None:
            queue.execute(task)
        queue.storage.close()


def test_whole_life_durable(bench) -> None:
    """Celery's SQLite transport (kombu, SQLAlchemy) was measured first and left out: a third of huey's rate for put, get and ack alone."""
    pytest.importorskip("huey")
    bench.row(
        f"{LIVES:,} durable tasks, from schedule() to their end on disk, without processes",
        ours=_whole_life_durable,
        peers={"huey (SQLite)": _whole_life_huey},
        at_least={"huey (SQLite)": 3.0},
        work=LIVES,
        unit="tasks/s",
    )


# --- a million of them ------------------------------------------------------------------------------------------------------

RESIDENT = f"""
import asyncio, gc, os
from nbprocs.scheduler import TaskScheduler
from nbprocs.testing.conformance import FakeBackend

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main():
    sch = TaskScheduler(backend=FakeBackend())
    sch.pause()
    gc.collect()
    before = resident()
    handles = [sch.schedule("python", "train.py", str(n)) for n in range({MANY})]
    print((resident() - before) / len(handles))

asyncio.run(main())
"""


def _resident() -> float:
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    return float(subprocess.run([sys.executable, "-c", RESIDENT], check=True, capture_output=True, env=env).stdout)


def test_a_million_queued(bench) -> None:
    bench.row("1,000,000 queued with their handles, bytes a task", ours=_resident, ceiling=1024, unit="B", rounds=1)


class _Instant(FakeBackend):
    """Every job ends in the turn of the loop after its start."""


async def _start_next(queued: int) -> float:
    """Seconds from the end of one task to the start of the next, with so many waiting: the whole way, but for the process."""
    backend = _Instant(gated=True)
    sch = TaskScheduler(SchedulerConfig(max_concurrent_tasks=1, history=100), backend=backend)
    sch.schedule_many([("true", str(n)) for n in range(queued)])
    gc.collect()
    gc.freeze()
    turns = 2000
    try:
        while not backend.running:
            await asyncio.sleep(0)
        began = time.process_time()
        for n in range(turns):
            backend.finish(next(iter(backend.running)))
            sch.schedule("true", str(n))
            while not backend.running:
                await asyncio.sleep(0)
        return (time.process_time() - began) / turns
    finally:
        gc.unfreeze()
        backend.gated = False
        sch._core.runner.queue.entries.clear()
        await sch.aclose()


def test_starting_the_next(bench) -> None:
    bench.row(
        "starting the next task with 1,000,000 queued (peer: with 10)",
        ours=lambda: _start_next(MANY),
        peers={"10 queued": lambda: _start_next(10)},
        at_most={"10 queued": 1.5},
        unit="s",
    )


# --- running them -----------------------------------------------------------------------------------------------------------


async def _bare_run() -> None:
    async with ProcessManager() as pm:
        todo = iter(range(RUNS))

        async def worker() -> None:
            for _ in todo:
                await pm.run("true")

        await asyncio.gather(*(worker() for _ in range(4)))


async def _scheduled(store: Path | None = None) -> None:
    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=4), store=store) as sch:
        sch.schedule_many([("true",)] * RUNS)
        status = await sch.join()
        assert status.succeeded == RUNS


async def _scheduled_durable() -> None:
    with queue_file() as path:
        await _scheduled(path)


def _gnu_parallel() -> None:
    lines = "\n".join(["true"] * RUNS)
    subprocess.run(["parallel", "-j4"], input=lines.encode(), check=True, capture_output=True)


async def _whole_state_at_each_change() -> None:
    """Pueue's model: the whole state is one JSON file, written anew and renamed at every change of a task."""
    with queue_file() as path:
        state = {n: {"id": n, "command": "true", "status": "Queued", "path": "/", "group": "default", "envs": {}} for n in range(RUNS)}

        def save() -> None:
            draft = path.with_suffix(".partial")
            draft.write_text(json.dumps(state))
            draft.rename(path)

        async with ProcessManager() as pm:
            todo = iter(range(RUNS))

            async def worker() -> None:
                for n in todo:
                    state[n]["status"] = "Running"
                    save()
                    await pm.run("true")
                    state[n]["status"] = "Done"
                    save()

            await asyncio.gather(*(worker() for _ in range(4)))


def test_running(bench) -> None:
    peers = {"pm.run": _bare_run}
    if shutil.which("parallel"):
        peers["GNU parallel"] = _gnu_parallel
    targets = {"pm.run": 0.9, "GNU parallel": 3.0}
    bench.row(
        f"{RUNS:,} × true, 4 at a time",
        ours=_scheduled,
        peers=peers,
        at_least={name: targets[name] for name in peers},
        work=RUNS,
        unit="runs/s",
    )


def test_running_durable(bench) -> None:
    bench.row(
        f"{RUNS:,} × true, 4 at a time, durable",
        ours=_scheduled_durable,
        peers={"in memory": _scheduled, "whole state at each change": _whole_state_at_each_change},
        at_least={"in memory": 0.6, "whole state at each change": 1.0},
        work=RUNS,
        unit="runs/s",
    )


@pytest.mark.parametrize("seed", [1])
def test_ten_thousand_at_one_instant(bench, seed: int) -> None:
    """For information: the loop is never held for long when very many come due together."""

    async def longest() -> float:
        backend = FakeBackend()
        sch = TaskScheduler(SchedulerConfig(max_concurrent_tasks=8), backend=backend)
        order = list(range(10_000))
        random.Random(seed).shuffle(order)
        at = time.time() + 0.5
        handles = [sch.schedule("x", str(n), at=at) for n in order]
        late, last = 0.0, time.perf_counter()
        while sch._core.runner.pending:
            await asyncio.sleep(0)
            late, last = max(late, time.perf_counter() - last), time.perf_counter()
        assert all(h.state is TaskState.SUCCEEDED for h in handles)
        await sch.aclose()
        return late

    bench.row("10,000 due at one instant: longest turn of the loop", ours=longest, unit="s")
