"""The pool against the pools that people use now: latency, rate, map, big arrays, fairness, start-up. Two workers each, unless they say more."""

import asyncio
import concurrent.futures as cf
import multiprocessing
import os
import statistics
import time
from contextlib import contextmanager
from multiprocessing import shared_memory

import loky
import numpy as np
import pebble
import pytest

from nbprocs.pool import PoolConfig, ProcessPool
from tests.benchmarks.harness import sized

WORKERS = 2
CALLS = sized(1_000, quick=200)  # awaited one after the other
MANY = sized(20_000, quick=4_000)  # at once
FEW = sized(3_000, quick=500)  # at once, for peers that take seconds for that
ITEMS = sized(1_000_000, quick=100_000)
ARRAY = 100 << 20  # bytes
TRIPS = 4
NAPS = ([0.001] * 5 + [0.01] * 3) * 25 + [1.0] * 3  # seconds; the long ones are spread among the short ones
CONFIG = PoolConfig(min_processes=WORKERS, max_processes=WORKERS)


def naps():
    """The mix, with the long ones at a quarter, a half and three quarters."""
    short, long = NAPS[:-3], NAPS[-3:]
    quarter = len(short) // 4
    mixed = list(short)
    for i, nap in enumerate(long):
        mixed.insert((i + 1) * quarter, nap)
    return mixed


def greedy(times):
    """The makespan if every free worker always takes the next task at once: what no worker idle means."""
    free = [0.0] * WORKERS
    for nap in times:
        free[free.index(min(free))] += nap
    return max(free)


@contextmanager
def standard(**options):
    with cf.ProcessPoolExecutor(WORKERS, **options) as executor:
        list(executor.map(int, [0] * 50))  # warm
        yield executor


# --- one at a time ----------------------------------------------------------------------------------------------------------


async def ours_one_by_one():
    async with ProcessPool(CONFIG) as pool:
        return await _one_by_one(lambda: pool.run(int))


async def standard_one_by_one():
    loop = asyncio.get_running_loop()
    with standard() as executor:
        return await _one_by_one(lambda: loop.run_in_executor(executor, int))


async def _one_by_one(call):
    """The median of a few stretches: a burst of other load spoils one of them, not all."""
    for _ in range(100):
        await call()
    stretches = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(CALLS // 10):
            await call()
        stretches.append((time.perf_counter() - began) / (CALLS // 10) * 1e6)
    return statistics.median(stretches)


def test_latency(bench):
    bench.row(
        "one warm no-op, awaited",
        ours=ours_one_by_one,
        peers={"ProcessPoolExecutor": standard_one_by_one},
        at_most={"ProcessPoolExecutor": 0.4},
        unit="µs",
        rounds=5,
    )


# --- many at once -----------------------------------------------------------------------------------------------------------


async def ours_gathered():
    async with ProcessPool(CONFIG) as pool:
        await asyncio.gather(*(pool.submit(int) for _ in range(500)))
        began = time.perf_counter()
        await asyncio.gather(*(pool.submit(int) for _ in range(MANY)))
        return MANY / (time.perf_counter() - began)


async def standard_gathered():
    loop = asyncio.get_running_loop()
    with standard() as executor:
        return await _gathered(lambda: loop.run_in_executor(executor, int), MANY)


async def loky_gathered():
    loop = asyncio.get_running_loop()
    with loky.ProcessPoolExecutor(WORKERS) as executor:
        list(executor.map(int, [0] * 50))
        return await _gathered(lambda: loop.run_in_executor(executor, int), FEW)


async def pebble_gathered():
    pool = pebble.ProcessPool(WORKERS)
    try:
        await asyncio.gather(*(asyncio.wrap_future(pool.schedule(int)) for _ in range(50)))
        return await _gathered(lambda: asyncio.wrap_future(pool.schedule(int)), FEW)
    finally:
        pool.stop()
        pool.join()


async def _gathered(call, count):
    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(count)))
    return count / (time.perf_counter() - began)


def apply_async():
    with multiprocessing.Pool(WORKERS) as pool:
        pool.map(int, [0] * 50)
        began = time.perf_counter()
        for result in [pool.apply_async(int) for _ in range(MANY)]:
            result.get()
        return MANY / (time.perf_counter() - began)


@pytest.mark.filterwarnings("ignore")
def test_rate(bench):
    bench.row(
        "20,000 no-ops at once",
        ours=ours_gathered,
        peers={"ProcessPoolExecutor": standard_gathered, "apply_async": apply_async, "pebble": pebble_gathered, "loky": loky_gathered},
        at_least={"ProcessPoolExecutor": 5, "apply_async": 1.5, "pebble": 5, "loky": 8},
        unit="tasks/s",
    )


# --- map --------------------------------------------------------------------------------------------------------------------


async def ours_map():
    async with ProcessPool(CONFIG) as pool:
        await asyncio.gather(*(pool.submit(int) for _ in range(500)))
        began = time.perf_counter()
        count = 0
        async for _ in pool.map(abs, range(ITEMS)):
            count += 1
        assert count == ITEMS
        return ITEMS / (time.perf_counter() - began)


def imap(chunksize):
    def measured():
        with multiprocessing.Pool(WORKERS) as pool:
            pool.map(int, [0] * 50)
            began = time.perf_counter()
            count = 0
            for _ in pool.imap(abs, range(ITEMS), chunksize):
                count += 1
            assert count == ITEMS
            return ITEMS / (time.perf_counter() - began)

    return measured


def pool_map():
    with multiprocessing.Pool(WORKERS) as pool:
        pool.map(int, [0] * 50)
        began = time.perf_counter()
        assert len(pool.map(abs, range(ITEMS))) == ITEMS
        return ITEMS / (time.perf_counter() - began)


def test_map(bench):
    sizes = (1_000, 5_000, 20_000, 50_000)
    bench.row(
        "map of 1,000,000 tiny items",
        ours=ours_map,
        peers={"Pool.map": pool_map, **{f"imap({size})": imap(size) for size in sizes}},
        at_least={f"imap({size})": 1.0 for size in sizes},
        unit="items/s",
        rounds=5,
    )


# --- big arrays -------------------------------------------------------------------------------------------------------------


def same(array):
    return array


def by_value(function):
    """As a notebook would define it: the worker can't import this file."""
    space = {"__name__": "__main__"}
    exec("def f(array): return array", space)  # noqa: S102
    return space["f"]


async def ours_array():
    array = np.ones(ARRAY // 8)
    function = by_value(same)
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        await pool.run(function, array[:10])
        began = time.perf_counter()
        for _ in range(TRIPS):
            assert (await pool.run(function, array)).nbytes == ARRAY
        return TRIPS * ARRAY / 1e6 / (time.perf_counter() - began)


def standard_array():
    array = np.ones(ARRAY // 8)
    with cf.ProcessPoolExecutor(1) as executor:
        executor.submit(same, array[:10]).result()
        began = time.perf_counter()
        for _ in range(TRIPS):
            assert executor.submit(same, array).result().nbytes == ARRAY
        return TRIPS * ARRAY / 1e6 / (time.perf_counter() - began)


def _shared_worker(pipe):
    while (told := pipe.recv()) is not None:
        name, shape, dtype = told
        given = shared_memory.SharedMemory(name=name)
        answer = shared_memory.SharedMemory(create=True, size=given.size)
        np.ndarray(shape, dtype, buffer=answer.buf)[:] = np.ndarray(shape, dtype, buffer=given.buf)
        pipe.send(answer.name)
        given.close()
        answer.close()


def shared_array():
    """By hand: a block there, a block back, each copied once on either side."""
    array = np.ones(ARRAY // 8)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_shared_worker, args=(theirs,), daemon=True)
    worker.start()

    def trip():
        given = shared_memory.SharedMemory(create=True, size=array.nbytes)
        np.ndarray(array.shape, array.dtype, buffer=given.buf)[:] = array
        ours.send((given.name, array.shape, array.dtype.str))
        answer = shared_memory.SharedMemory(name=ours.recv())
        result = np.ndarray(array.shape, array.dtype, buffer=answer.buf).copy()
        for block in (given, answer):
            block.close()
            block.unlink()
        return result

    trip()
    began = time.perf_counter()
    for _ in range(TRIPS):
        assert trip().nbytes == ARRAY
    took = time.perf_counter() - began
    ours.send(None)
    worker.join()
    return TRIPS * ARRAY / 1e6 / took


def joblib_array():
    """Its memmapping: the argument by a file in shared memory, the result by a pipe."""
    joblib = pytest.importorskip("joblib")
    array = np.ones(ARRAY // 8)
    with joblib.Parallel(n_jobs=2, max_nbytes="1M") as parallel:
        parallel(joblib.delayed(np.copy)(array[:10]) for _ in range(2))
        began = time.perf_counter()
        for _ in range(TRIPS):
            (result,) = parallel([joblib.delayed(np.copy)(array)])
            assert result.nbytes == ARRAY
        return TRIPS * ARRAY / 1e6 / (time.perf_counter() - began)


@pytest.mark.filterwarnings("ignore")
def test_arrays(bench):
    bench.row(
        "100 MB numpy array there and back",
        ours=ours_array,
        peers={"ProcessPoolExecutor": standard_array, "SharedMemory by hand": shared_array, "joblib's memmapping": joblib_array},
        at_least={"ProcessPoolExecutor": 2},
        unit="MB/s",
    )


# --- mixed lengths ----------------------------------------------------------------------------------------------------------


async def ours_mixed():
    async with ProcessPool(CONFIG) as pool:
        await asyncio.gather(*(pool.submit(int) for _ in range(2_000)))  # so that it prefetches
        began = time.perf_counter()
        await asyncio.gather(*(pool.submit(time.sleep, nap) for nap in naps()))
        return (time.perf_counter() - began) / greedy(naps())


async def standard_mixed():
    loop = asyncio.get_running_loop()
    with standard() as executor:
        began = time.perf_counter()
        await asyncio.gather(*(loop.run_in_executor(executor, time.sleep, nap) for nap in naps()))
        return (time.perf_counter() - began) / greedy(naps())


def test_mixed_lengths(bench):
    bench.row(
        "203 tasks of 1 ms, 10 ms and 1 s: time ÷ that of workers that are never idle",
        ours=ours_mixed,
        peers={"ProcessPoolExecutor": standard_mixed},
        unit="×",
        ceiling=1.15,
    )


# --- start-up ---------------------------------------------------------------------------------------------------------------


async def ours_ready():
    pool = ProcessPool(PoolConfig(max_processes=1))
    began = time.perf_counter()
    await pool.start()
    await pool.run(int)
    took = time.perf_counter() - began
    await pool.aclose()
    return took * 1e3


def loky_ready():
    began = time.perf_counter()
    executor = loky.ProcessPoolExecutor(1)
    executor.submit(int).result()
    took = time.perf_counter() - began
    executor.shutdown()
    return took * 1e3


def spawn_ready():
    began = time.perf_counter()
    executor = cf.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    executor.submit(int).result()
    took = time.perf_counter() - began
    executor.shutdown()
    return took * 1e3


@pytest.mark.filterwarnings("ignore")
def test_start(bench):
    bench.row(
        "first result from one new worker",
        ours=ours_ready,
        peers={"loky": loky_ready, "ProcessPoolExecutor (spawn)": spawn_ready},
        at_most={"loky": 0.7},
        unit="ms",
        rounds=5,
    )


# --- many workers -----------------------------------------------------------------------------------------------------------


CORES = len(os.sched_getaffinity(0))
SECONDS = 1.0  # of ideal work a measurement


def _enough(workers):
    if workers > CORES:
        pytest.skip(f"{workers} workers on {CORES} cores would measure the scheduler of the system")


def busy(_=0):
    """A millisecond of work: neither a sleep, whose end the system rounds up, nor something that depends on the machine's speed."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass


def ours_busy(workers, how):
    async def measured():
        count = int(workers * SECONDS * 1000)
        function = notebook(BUSY)
        async with ProcessPool(PoolConfig(min_processes=workers, max_processes=workers)) as pool:
            await asyncio.gather(*(pool.submit(function) for _ in range(50 * workers)))
            began = time.perf_counter()
            await asyncio.gather(*(getattr(pool, how)(function) for _ in range(count)))
            return count / (time.perf_counter() - began) / (workers * 1000) * 100

    return measured


BUSY = "import time\ndef f(_=0):\n    end = time.perf_counter() + 0.001\n    while time.perf_counter() < end: pass"


def notebook(source):
    """A function as a notebook would define it."""
    space = {"__name__": "__main__"}
    exec(source, space)  # noqa: S102
    return space["f"]


def apply_busy(workers):
    def measured():
        count = int(workers * SECONDS * 1000)
        with multiprocessing.Pool(workers) as pool:
            pool.map(busy, range(50 * workers))
            began = time.perf_counter()
            for result in [pool.apply_async(busy) for _ in range(count)]:
                result.get()
            return count / (time.perf_counter() - began) / (workers * 1000) * 100

    return measured


def futures_busy(make, workers, few=1.0):
    def measured():
        count = int(workers * SECONDS * 1000 * few)
        with make(workers) as executor:
            list(executor.map(busy, range(50 * workers)))
            began = time.perf_counter()
            cf.wait([executor.submit(busy) for _ in range(count)])
            return count / (time.perf_counter() - began) / (workers * 1000) * 100

    return measured


@contextmanager
def pebbles(workers):
    pool = pebble.ProcessPool(workers)
    pool.submit = pool.schedule
    pool_map = pool.map
    pool.map = lambda function, items: pool_map(function, items).result()
    try:
        yield pool
    finally:
        pool.stop()
        pool.join()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [2, 8, 16])
@pytest.mark.parametrize("how", ["submit", "run"])
def test_milliseconds(bench, workers, how):
    _enough(workers)
    bench.row(
        f"tasks of 1 ms on {workers} workers by {how}, of the ideal",
        ours=ours_busy(workers, how),
        peers={
            "apply_async": apply_busy(workers),
            "pebble": futures_busy(pebbles, workers, 0.3),
            "loky": futures_busy(loky.ProcessPoolExecutor, workers, 0.3),
        },
        unit="%",
        rounds=3,
    )


def ours_cpu(how):
    async def measured():
        count = 4_000
        async with ProcessPool(PoolConfig(min_processes=16, max_processes=16)) as pool:
            await asyncio.gather(*(pool.submit(int) for _ in range(2_000)))
            began = time.process_time()
            await asyncio.gather(*(getattr(pool, how)(time.sleep, 0.001) for _ in range(count)))
            return (time.process_time() - began) / count * 1e6

    return measured


def apply_cpu():
    count = 4_000
    with multiprocessing.Pool(16) as pool:
        pool.map(int, [0] * 500)
        began = time.process_time()
        for result in [pool.apply_async(time.sleep, (0.001,)) for _ in range(count)]:
            result.get()
        return (time.process_time() - began) / count * 1e6


@pytest.mark.parametrize("how", ["submit", "run"])
def test_cpu_of_a_call(bench, how):
    """The workers sleep, so that this runs on few cores, too."""
    bench.row(
        f"CPU of this process for a call by {how}, 16 workers",
        ours=ours_cpu(how),
        peers={"apply_async": apply_cpu},
        unit="µs",
        rounds=5,
    )
