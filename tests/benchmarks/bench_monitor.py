"""The monitor against psutil, psrecord, glances and a list of dicts, on the same processes in the same run."""

import asyncio
import contextlib
import functools
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from nbprocs.engine.table import identify
from nbprocs.monitor import ProcessMonitor
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.history import COLUMNS, History
from nbprocs.monitor.metrics import METRICS
from nbprocs.monitor.sampler import Ask, Sampler

TICK = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def sleepers(count, *, pair=False):
    """Processes in sessions of their own that sleep; with ``pair`` each is a tree of two."""
    line = "sleep 100000 & echo; wait" if pair else "echo; exec sleep 100000"
    children = [subprocess.Popen(["/bin/sh", "-c", line], stdout=subprocess.PIPE, start_new_session=True) for _ in range(count)]
    try:
        for child in children:
            child.stdout.readline()
        yield [child.pid for child in children]
    finally:
        for child in children:
            os.killpg(child.pid, signal.SIGKILL)
            child.stdout.close()
            child.wait()


def asks_for(pids, history):
    return [
        Ask(
            code=history.series(process_id=str(pid), name=str(pid), pid=pid).code,
            identity=identify(pid),
            name=str(pid),
            process_id=str(pid),
        )
        for pid in pids
    ]


FIELDS = ["memory_info", "cpu_percent", "num_threads", "num_fds", "io_counters", "create_time", "status"]


def test_one_tick_over_200_trees_of_two(bench):
    with sleepers(200, pair=True) as pids:
        history = History()
        sampler, asks = Sampler(gpu=Gpu(library=None)), asks_for(pids, history)
        roots = [psutil.Process(pid) for pid in pids]

        def ours():
            began = time.perf_counter()
            sample = sampler.sample(asks, register=history.series)
            took = time.perf_counter() - began
            assert len(sample.names) == 600  # each tree, and each of its two processes
            return took

        def psutil_way():
            began = time.perf_counter()
            for root in roots:
                for process in (root, *root.children(recursive=True)):
                    process.as_dict(FIELDS)
            return time.perf_counter() - began

        ours()
        try:
            bench.row("one tick, 200 trees of 2 processes", ours=ours, peers={"psutil": psutil_way}, at_most={"psutil": 1 / 20})
        finally:
            sampler.close()


@contextlib.contextmanager
def held():
    """How long one callback held the loop, at worst, in seconds: every handle that a loop runs is timed."""
    worst = [0.0]
    real = asyncio.Handle._run

    def timed(handle):
        began = time.perf_counter()
        real(handle)
        took = time.perf_counter() - began
        worst[0] = max(worst[0], took)

    asyncio.Handle._run = timed
    try:
        yield worst
    finally:
        asyncio.Handle._run = real


async def watching(pids, *, seconds, interval=1.0, timed=False):
    """(share of a core, worst hold of the loop in seconds) of watching some pids, after the first three ticks."""
    async with ProcessMonitor(interval=interval, gpu=Gpu(library=None)) as mon:
        for pid in pids:
            mon.add(pid)
        ticks = asyncio.Queue()
        mon.subscribe(functools.partial(ticks.put_nowait, None))
        for _ in range(3):
            await ticks.get()
        gc.collect()
        with held() if timed else contextlib.nullcontext([0.0]) as worst:
            began, used = time.perf_counter(), time.process_time()
            for _ in range(round(seconds / interval)):
                await ticks.get()
            share = (time.process_time() - used) / (time.perf_counter() - began)
        assert len(mon.current()) == len(pids)
        return share, worst[0]


CHILD = """
import asyncio, sys
from tests.benchmarks.bench_monitor import watching
print(asyncio.run(watching(list(map(int, sys.argv[2:])), seconds=float(sys.argv[1])))[0] * 100)
"""


def own_share(pids, seconds):
    """Percent of a core that watching takes in a process of its own, as the peers have: without pytest and its heap."""
    command = [sys.executable, "-c", CHILD, str(seconds), *map(str, pids)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def test_watching_500_processes_once_a_second(bench):
    with sleepers(500) as pids:

        def share():
            return own_share(pids, 8)

        bench.row("CPU of watching 500 processes at 1 Hz (aim: 2 %)", ours=share, ceiling=5.0, unit="% of a core", rounds=1)

        async def hold():
            return (await watching(pids, seconds=6, timed=True))[1] * 1000

        bench.row("longest hold of the event loop while watching 500", ours=hold, ceiling=5.0, unit="ms", rounds=1)


MANY = """
import asyncio, sys, time
from nbprocs import ProcessManager
from nbprocs.monitor import ProcessMonitor
from nbprocs.monitor.gpu import Gpu

async def measured(seconds):
    loop, late = asyncio.get_running_loop(), []
    began, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        due = loop.time() + 0.005
        await asyncio.sleep(0.005)
        late.append(loop.time() - due)
    share = (time.process_time() - used) / (time.perf_counter() - began)
    return share * 100, sorted(late)[int(len(late) * 0.99)] * 1000

async def main(count, seconds):
    async with ProcessManager() as pm:
        for _ in range(count):
            await pm.spawn("sleep", "100000")
        await asyncio.sleep(1)
        without, _ = await measured(seconds)
        async with ProcessMonitor(gpu=Gpu(library=None)) as mon:
            mon.watch(pm)
            await asyncio.sleep(3)
            share, late = await measured(seconds)
            assert len(mon.current()) == count + 1
        print(share - without, late)

asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
"""


def test_2000_live_children_and_one_monitor(bench):
    """In a process of its own; the ticker that measures the lag is in both shares, and taken off."""
    found = []

    def share():
        command = [sys.executable, "-c", MANY, "2000", "6"]
        found[:] = map(float, subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split())
        return found[0]

    bench.row("CPU of one monitor at 1 Hz over 2,000 live children", ours=share, ceiling=5.0, unit="% of a core", rounds=1)
    bench.row("lag of the event loop meanwhile, p99", ours=lambda: found[1], ceiling=5.0, unit="ms", rounds=1)


def filled(samples, *, processes=100):
    history = History(max_bytes=1 << 40)
    series = [history.series(process_id=f"id-{n}", name=f"job-{n}", pid=n + 1) for n in range(processes)]
    codes = np.array([s.code for s in series])
    columns = {name: np.full(processes, 1.5 if kind == "f4" else 3, kind) for name, kind in COLUMNS.items()}
    columns |= {"series": codes, "scope": np.zeros(processes, "u1"), "state": np.ones(processes, "u1")}
    for tick in range(samples // processes):
        history.append({**columns, "time": np.full(processes, 1_000_000 * tick)})
    return history


def test_frame_of_a_million_samples(bench):
    import pandas as pd

    history = filled(1_000_000)
    stamp = pd.Timestamp("2026-01-01", tz="UTC")
    row = {"timestamp": stamp, "name": "job-1", "process_id": "id-1", "pid": 2, "scope": "tree", "state": "running"}
    row |= {name: 3 if COLUMNS[name][0] == "i" else 1.5 for name in METRICS}
    rows = [dict(row) for _ in range(1_000_000)]

    def ours():
        assert len(history.snapshot().frame()) == 1_000_000

    def dicts():
        assert len(pd.DataFrame(rows)) == 1_000_000

    bench.row(
        "frame() of 1,000,000 samples", ours=ours, peers={"list of dicts": dicts}, work=1e6, unit="samples/s", at_least={"list of dicts": 5}
    )
    bench.row("memory held a sample", ours=lambda: history.nbytes / len(history), ceiling=120, unit="bytes", rounds=1)


def cpu_of(pids):
    """Seconds of CPU that some processes have used so far."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def steady(pids, seconds):
    before, began = cpu_of(pids), time.perf_counter()
    time.sleep(seconds)  # the length of the measurement
    return (cpu_of(pids) - before) / (time.perf_counter() - began) * 100


@contextlib.contextmanager
def running(commands, **options):
    started = [subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, **options) for command in commands]
    try:
        yield started
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_the_same_100_processes_at_1_hz(bench, tmp_path):
    psrecord = Path(sys.executable).with_name("psrecord")
    glances = Path(sys.executable).with_name("glances")
    if not (psrecord.exists() and glances.exists() and shutil.which("sleep")):
        pytest.fail("this row needs psrecord and glances: pip install psrecord glances")
    with sleepers(100) as pids:

        def with_psrecord():
            logs = [tmp_path / f"{pid}.log" for pid in pids]
            commands = [[psrecord, str(pid), "--interval", "1", "--log", log] for pid, log in zip(pids, logs, strict=True)]
            with running(commands, stdout=subprocess.DEVNULL) as started:
                while not all(log.exists() for log in logs):
                    time.sleep(0.1)
                steady([p.pid for p in started], 2)  # the imports are over, and not counted
                return steady([p.pid for p in started], 8)

        def with_glances():
            command = [glances, "--stdout", "processcount.total", "--time", "1", "--disable-check-update"]
            with running([command], stdout=subprocess.PIPE) as (process,):
                for _ in range(3):
                    process.stdout.readline()
                return steady([process.pid], 8)

        def ours():
            return own_share(pids, 8)

        bench.row(
            "CPU of watching 100 processes at 1 Hz",
            ours=ours,
            peers={"psrecord": with_psrecord, "glances": with_glances},
            at_most={"psrecord": 0.1, "glances": 0.1},
            unit="% of a core",
            rounds=1,
        )
