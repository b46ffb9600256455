"""More of what executors owe their users: the kinds of CPython's, loky's and pebble's suites that test_pool_contract has not, in our words."""

import asyncio
import concurrent.futures as cf
import contextvars
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref

import pytest

from nbprocs.errors import Closed, CommunicationError, ExecutionTimeout, ProcessCrashed, ProcessError, ProcessFailed
from nbprocs.pool import PoolConfig, ProcessPool, PythonWorker, RemoteError, RemoteTraceback

ONE = PoolConfig(max_processes=1)
TWO = PoolConfig(min_processes=2, max_processes=2)


# --- futures ---------------------------------------------------------------------------------------------------------------------


def test_the_helpers_of_the_standard_library(executor, tmp_path):
    """wait and as_completed: none, twice the same, none done in no time; who has been given a future holds it alone."""
    assert cf.wait([]) == (set(), set())
    assert list(cf.as_completed([])) == []
    first = executor.submit(int)
    assert list(cf.as_completed([first, first], timeout=20)) == [first]
    os.mkfifo(tmp_path / "gate")
    slow = executor.submit((tmp_path / "gate").read_bytes)
    with pytest.raises(TimeoutError):
        list(cf.as_completed([slow], timeout=0))
    assert cf.wait([slow, first], timeout=0).done >= {first}
    (tmp_path / "gate").write_bytes(b"open")
    futures = [executor.submit(dict, n=n) for n in range(5)]
    refs = []
    for future in cf.as_completed(futures, timeout=20):
        futures.remove(future)
        refs.append(weakref.ref(future))
        del future
    gc.collect()
    assert [ref() for ref in refs] == [None] * 5
    assert first.add_done_callback(lambda future: future.result() / 0) is None


def test_an_error_is_the_same_each_time(executor):
    future = executor.submit(int, "x")
    error = future.exception(20)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        future.result()
    assert caught.value is error is future.exception()
    assert isinstance(error.__cause__, RemoteTraceback)


def test_what_is_no_call_is_refused_where_it_stands(executor):
    for wrong in (None, 5, "text"):
        with pytest.raises(TypeError):
            executor.submit(wrong)
        with pytest.raises(TypeError):
            executor.map(wrong, [1])
    with pytest.raises(TypeError):
        executor.submit()
    assert list(executor.map(int)) == []
    with pytest.raises(TypeError):
        executor.map(int, 5)
    assert executor.submit(int, 3).result(20) == 3


def test_what_an_iterable_raises_is_the_callers(executor):
    def items():
        yield 1
        raise LookupError("in the middle")

    with pytest.raises(LookupError, match="in the middle"):
        list(executor.map(abs, items()))
    assert list(executor.map(abs, [-1])) == [1]


def test_an_error_in_the_with_block_comes_through():
    pool = ProcessPool(ONE, background=True)
    with pytest.raises(ZeroDivisionError), pool.executor() as made:
        future = made.submit(int, 7)
        raise ZeroDivisionError
    assert future.result(0) == 7, "leaving the block waits, also after an error"
    asyncio.run(pool.aclose())


def test_results_come_after_a_shutdown_that_does_not_wait(executor):
    futures = [executor.submit(abs, -n) for n in range(20)]
    executor.shutdown(wait=False)
    assert [future.result(20) for future in futures] == list(range(20))


def test_a_cancelled_task_of_asyncio_cancels_its_call(executor, tmp_path):
    mark, gates = tmp_path / "ran", [tmp_path / "one", tmp_path / "two"]
    for gate in gates:
        os.mkfifo(gate)

    async def main():
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(executor, gate.read_bytes) for gate in gates]
        waiting = loop.run_in_executor(executor, mark.touch)
        await asyncio.sleep(0)
        waiting.cancel()
        for gate in gates:
            await asyncio.to_thread(gate.write_bytes, b"open")
        await asyncio.gather(*busy)
        await loop.run_in_executor(executor, int)

    asyncio.run(main())
    assert not mark.exists()


def test_a_pool_and_an_executor_do_not_travel(executor):
    with pytest.raises((TypeError, pickle.PicklingError, CommunicationError)):
        executor.submit(id, executor).result(20)
    assert executor.submit(int, 3).result(20) == 3


# --- what tasks do ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "interrupt", "cancel", "generator", "stop"])
async def test_a_task_that_leaves_leaves_the_worker_alone(how):
    """None of it ends the worker, the loop, or the caller as if the caller had been told to end."""

    def leave(how):
        if how == "exit":
            sys.exit(3)
        raise {"interrupt": KeyboardInterrupt, "cancel": asyncio.CancelledError, "generator": GeneratorExit, "stop": StopIteration}[how]

    async with ProcessPool(ONE) as pool:
        pid = await pool.run(os.getpid)
        try:
            await pool.run(leave, how)
        except BaseException as error:  # noqa: BLE001
            assert isinstance(error, Exception), repr(error)
        assert await pool.run(os.getpid) == pid


async def test_chains_and_groups_of_errors_come_over():
    def chain():
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    def group():
        raise ExceptionGroup("several", [ValueError("a"), ExceptionGroup("more", [KeyError("b")])])

    def noted():
        error = ValueError("v")
        error.add_note("a note")
        raise error

    async with ProcessPool(ONE) as pool:
        with pytest.raises(ValueError, match="second") as caught:
            await pool.run(chain)
        shown = "".join(traceback.format_exception(caught.value))
        assert "first" in shown
        assert "chain" in shown
        with pytest.raises(ExceptionGroup) as caught:
            await pool.run(group)
        assert caught.value.subgroup(KeyError) is not None
        with pytest.raises(ValueError, match="v") as caught:
            await pool.run(noted)
        assert "a note" in caught.value.__notes__


async def test_what_can_not_travel_back_is_told():
    async with ProcessPool(ONE) as pool:
        for make in (lambda: (n for n in range(3)), threading.Lock):
            with pytest.raises((CommunicationError, RemoteError)):
                await pool.run(make)

        class Wide(Exception):
            def __init__(self, a, b):
                super().__init__(a)

        def wide():
            raise Wide(1, 2)

        with pytest.raises((RemoteError, Wide)):
            await pool.run(wide)
        assert await pool.run(int) == 0


async def test_pools_inside_pools():
    def inside(n):
        import asyncio

        from nbprocs import PoolConfig, ProcessPool

        async def main():
            async with ProcessPool(PoolConfig(max_processes=1)) as pool:
                return await pool.run(pow, n, 2)

        return asyncio.run(main())

    async with ProcessPool(ONE) as pool:
        assert await pool.run(inside, 7) == 49


async def test_subprocesses_threads_and_multiprocessing_inside_tasks():
    def inside():
        import concurrent.futures as cf
        import multiprocessing
        import subprocess

        out = subprocess.run(["sh", "-c", "cat; echo x; exit 3"], input=b"in", capture_output=True, check=False)
        with cf.ThreadPoolExecutor(2) as threads:
            squares = list(threads.map(lambda n: n * n, range(4)))
        with multiprocessing.get_context("fork").Pool(1) as processes:
            sizes = processes.map(len, ["a", "bb"])
        return out.stdout, out.returncode, squares, sizes

    async with ProcessPool(ONE) as pool:
        assert await pool.run(inside) == (b"inx\n", 3, [0, 1, 4, 9], [1, 2])


async def test_standard_streams_of_a_task_are_usable():
    def inside():
        import sys

        print("out", flush=True)
        print("err", file=sys.stderr, flush=True)
        return sys.stdin.read(), sys.stdout.isatty(), os.read(0, 10)

    async with ProcessPool(ONE, worker=PythonWorker(output=lambda _: None)) as pool:
        assert await pool.run(inside) == ("", False, b"")


async def test_context_variables_and_recursion_stay_where_they_are():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)

    def deep(n):
        return 0 if n == 0 else 1 + deep(n - 1)

    async with ProcessPool(ONE) as pool:
        with pytest.raises(RecursionError):
            await pool.run(deep, 10**5)
        nested = []
        for _ in range(10**5):
            nested = [nested]
        with pytest.raises((CommunicationError, RecursionError)):
            await pool.run(len, nested)
        while nested:
            nested = nested.pop()
        assert await pool.run(int) == 0


# --- crashes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
async def test_the_end_of_a_worker_is_told_with_its_signal(how):
    def end(number):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(number, signal.SIG_DFL) if number != 9 else None
        os.kill(os.getpid(), number)
        time.sleep(60)

    async with ProcessPool(ONE) as pool:
        with pytest.raises(ProcessCrashed) as caught:
            await pool.run(end, int(how))
        assert caught.value.signal == how
        assert await pool.run(int) == 0


async def test_a_worker_that_is_killed_from_outside_fails_what_it_ran(tmp_path):
    def run(folder):
        (folder / str(os.getpid())).touch()
        time.sleep(600)

    async with ProcessPool(TWO) as pool:
        running = [pool.submit(run, tmp_path) for _ in range(2)]
        waiting = [pool.submit(abs, -n) for n in range(10)]
        async with asyncio.timeout(60):
            while len(pids := {int(file.name) for file in tmp_path.iterdir()}) < 2:
                await asyncio.sleep(0.01)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            ends = await asyncio.gather(*running, return_exceptions=True)
            assert [type(end) for end in ends] == [ProcessCrashed] * 2
            assert await asyncio.gather(*waiting) == list(range(10))
        assert not pids & {info.pid for info in pool.workers()}


async def test_an_idle_worker_that_is_killed_costs_no_task():
    async with ProcessPool(TWO) as pool:
        for _ in range(3):
            for info in pool.workers():
                if info.pid:
                    os.kill(info.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                done = await asyncio.gather(*(pool.run(abs, -n, retries=3) for n in range(8)))
            assert done == list(range(8))


async def test_a_stopped_worker_is_ended_at_the_timeout():
    def stop():
        os.kill(os.getpid(), signal.SIGSTOP)

    async with ProcessPool(ONE) as pool:
        with pytest.raises(ExecutionTimeout):
            await pool.run(stop, timeout=0.3)
        assert await pool.run(int) == 0


async def test_a_forked_child_of_a_task_does_not_keep_its_end_from_being_seen():
    def fork():
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        os._exit(7)

    async with ProcessPool(ONE) as pool:
        async with asyncio.timeout(30):
            with pytest.raises(ProcessFailed) as caught:
                await pool.run(fork)
        assert caught.value.exit_code == 7


@pytest.mark.parametrize("how", ["raise", "exit", "crash"])
async def test_an_initialiser_that_fails_fails_the_calls(how):
    def initialise(how):
        if how == "raise":
            raise ValueError("no set-up")
        if how == "exit":
            sys.exit(3)
        os._exit(4)

    async with asyncio.timeout(60):
        pool = ProcessPool(ONE, worker=PythonWorker(initializer=initialise, initargs=(how,)))
        with pytest.raises(ProcessError):
            await pool.run(int)
        await pool.aclose()


# --- timeouts and cancelling ----------------------------------------------------------------------------------------------------------


async def test_a_running_call_that_is_cancelled_ends_and_leaves_room():
    async with ProcessPool(ONE) as pool:
        handle = pool.submit(time.sleep, 600)
        async with asyncio.timeout(30):
            while not pool.metrics().current_running_tasks:
                await asyncio.sleep(0.001)
            handle.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handle
            assert await pool.run(int) == 0
        assert pool.metrics().total_tasks_cancelled == 1


async def test_timeouts_of_a_map_are_each_items_own():
    def nap(seconds):
        time.sleep(seconds)
        return seconds

    async with ProcessPool(TWO) as pool:
        seen = []
        with pytest.raises(ExecutionTimeout):
            async for value in pool.map(nap, [0, 0.01, 60, 0], timeout=1.0):
                seen.append(value)
        assert seen == [0, 0.01]
        assert await pool.run(int) == 0


async def test_closing_fails_what_runs_and_what_waits():
    pool = ProcessPool(ONE)
    handles = [pool.submit(time.sleep, 600) for _ in range(5)]
    async with asyncio.timeout(30):
        while not pool.metrics().current_running_tasks:
            await asyncio.sleep(0.001)
        await pool.aclose()
        ends = await asyncio.gather(*handles, return_exceptions=True)
    assert {type(end) for end in ends} == {Closed}
    with pytest.raises(Closed):
        pool.submit(int)
    await pool.aclose()


async def test_closing_while_workers_start():
    pool = ProcessPool(TWO)
    starting = asyncio.create_task(pool.start())
    handle = pool.submit(int)
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await pool.aclose()
        ends = await asyncio.gather(starting, handle, return_exceptions=True)
    assert isinstance(ends[0], (Closed, ProcessPool, ProcessError)), ends
    assert isinstance(ends[1], (Closed, int)), ends


def test_a_fork_of_the_caller_is_harmless():
    """A forked copy of the program that uses nothing of the pool and ends: the pool goes on in the parent."""
    code = """
    import asyncio, os
    from nbprocs import PoolConfig, ProcessPool
    async def main():
        async with ProcessPool(PoolConfig(max_processes=1)) as pool:
            print(await pool.run(abs, -1), flush=True)
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            print(await pool.run(abs, -2))
    asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["1", "2"], done.stderr
