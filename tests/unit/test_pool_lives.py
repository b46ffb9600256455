"""A worker's states, a dead worker's tree, and a pool that nobody holds."""

import asyncio
import gc
import itertools
import os
import subprocess
import time
import weakref

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.errors import ProcessFailed, StartupFailed
from nbprocs.pool import PoolConfig, ProcessPool, PythonWorker, WorkerState
from nbprocs.pool.worker import InvalidTransition, WorkerHandle, may_follow
from tests.waiting import until

ONE = PoolConfig(max_processes=1)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- states


@given(st.lists(st.sampled_from(list(WorkerState)), max_size=8))
def test_a_worker_goes_only_where_its_state_leads_and_tells_its_history_otherwise(steps):
    worker = WorkerHandle("w", generation=0, budget=None)
    been = [worker.state]
    for step in steps:
        if may_follow(worker.state, step):
            worker.move(step)
            been.append(step)
        else:
            with pytest.raises(InvalidTransition) as caught:
                worker.move(step)
            assert worker.state is been[-1]
            text = str(caught.value)
            assert [text.index(f"{state} at", text.index("it was")) for state in been]
    assert been[0] is WorkerState.STARTING


def test_nothing_follows_the_end_and_nothing_leads_back():
    assert not any(may_follow(WorkerState.GONE, state) for state in WorkerState)
    assert [state for state in WorkerState if may_follow(WorkerState.LEAVING, state)] == [WorkerState.GONE]
    assert not any(may_follow(state, WorkerState.STARTING) for state in WorkerState)
    assert all(may_follow(state, WorkerState.GONE) for state in WorkerState if state is not WorkerState.GONE)


# -- what a dead worker leaves


@pytest.mark.parametrize("again", [False, True])
async def test_a_dead_workers_tree_is_ended_before_its_task_fails(tmp_path, again):
    """What the task had started must not run beside a second try."""
    pids = tmp_path / "pids"

    def family():
        started = [subprocess.Popen(["sleep", "600"], start_new_session=own) for own in (False, True)]
        with open(pids, "a") as file:
            file.write("".join(f"{process.pid}\n" for process in started))
        os._exit(7)

    space = {"subprocess": subprocess, "os": os, "pids": str(pids)}
    async with ProcessPool(ONE) as pool:
        handle = pool.submit(_by_value(family, space), retries=1 if again else None)
        with pytest.raises(ProcessFailed, match="exit status 7"):
            await handle
        started = [int(line) for line in pids.read_text().split()]
        assert len(started) == (4 if again else 2)
        assert not any(map(lives, started))
        assert await pool.run(int) == 0


async def test_closing_waits_for_the_trees_of_dead_workers(tmp_path):
    from nbprocs import ProcessManager

    pids = tmp_path / "pids"

    def family():
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        pids.write_text(str(process.pid))
        time.sleep(600)

    async with ProcessManager() as manager:
        pool = ProcessPool(ONE, manager=manager)
        pool.submit(_by_value(family, {"subprocess": subprocess, "pids": pids, "time": time})).add_done_callback(
            lambda done: done.exception()
        )
        await until(lambda: pids.exists() and pids.read_text())
        await pool.aclose()
        assert not lives(int(pids.read_text()))


def _by_value(function, space):
    """As a notebook would define it."""
    import types

    return types.FunctionType(function.__code__, {"__name__": "__main__", **space}, function.__name__, None, function.__closure__)


async def test_a_set_up_that_works_again_after_many_deaths(tmp_path):
    """The delay between starts grows, but the next start comes."""
    good = tmp_path / "good"

    def setup(path):
        import os

        if not os.path.exists(path):
            raise RuntimeError("no licence")

    worker = PythonWorker(initializer=_by_value(setup, {}), initargs=(str(good),))
    pool = ProcessPool(ONE, worker=worker)
    for _ in range(3):
        with pytest.raises(StartupFailed, match="no licence"):
            await pool.run(int)
    assert pool.metrics().total_processes_created >= 4
    good.touch()
    async with asyncio.timeout(20):
        assert await _patient(pool) == 0
    await pool.aclose()


async def _patient(pool):
    while True:
        try:
            return await pool.run(int)
        except StartupFailed:
            pass


# -- a pool that nobody holds


async def test_an_unreferenced_pool_ends_its_workers():
    pool = ProcessPool(ONE)
    pid = await pool.run(os.getpid)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    await until(lambda: not lives(pid))


async def test_an_unreferenced_pool_first_does_what_was_asked_of_it():
    handles = [ProcessPool(ONE).submit(time.sleep, 0.05), ProcessPool(ONE).submit(abs, -3)]
    executor = ProcessPool(ONE).executor()
    future = executor.submit(os.getpid)
    gc.collect()
    assert await asyncio.gather(*handles) == [None, 3]
    pid = await asyncio.wrap_future(future)
    assert lives(pid)  # who holds the executor holds the pool
    del executor, future
    gc.collect()
    await until(lambda: not lives(pid))


async def test_a_map_holds_its_pool():
    results = ProcessPool(ONE).map(abs, itertools.count(), chunksize=1)
    gc.collect()
    assert [await anext(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    await results.aclose()
    del results
    gc.collect()


def test_a_pool_in_the_background_that_nobody_holds():
    pool = ProcessPool(ONE, background=True)
    pid = pool.executor().submit(os.getpid).result(30)
    del pool
    gc.collect()
    deadline = time.monotonic() + 30
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not lives(pid)


# -- nothing is held too long


@pytest.mark.parametrize("chunksize", [1, 3])
async def test_a_map_lets_go_of_each_result_once_it_was_handed_over(chunksize):
    space = {"__name__": "__main__"}
    exec("class Big: pass\ndef make(_): return Big()", space)  # noqa: S102
    async with ProcessPool(ONE) as pool:
        refs = []
        async for value in pool.map(space["make"], range(9), chunksize=chunksize):
            refs.append(weakref.ref(value))
            del value
            assert refs[-1]() is None
        executor = pool.executor()

        def drain():
            kept = []
            for value in executor.map(space["make"], range(9), chunksize=chunksize):
                kept.append(weakref.ref(value))
                del value
                assert kept[-1]() is None
            return len(kept)

        assert await asyncio.to_thread(drain) == 9
