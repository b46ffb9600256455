# ruff: noqa: BLE001
"""The Executor face, held against the standard library's contract, from threads and from loops."""

import asyncio
import concurrent.futures as cf
import gc
import os
import threading
import time
import weakref

import pytest

from nbprocs.engine.home import Home
from nbprocs.errors import Closed, CommunicationError, ProcessFailed
from nbprocs.pool import PoolConfig, ProcessPool
from nbprocs.pool.executor import PoolExecutor
from nbprocs.pool.task import BlockableFuture, stands_for

# -- with a fake pool: states and callbacks, one step at a time


class FakeBackend:
    """Keeps the calls; the test starts and ends them."""

    def __init__(self):
        self.home = Home.background()
        self.calls = []
        self.closed = False
        self.cancelled = []

    def future(self):
        return BlockableFuture(self.home, self.cancelled.append)

    def call(self, future, function, args, kwargs):
        if self.closed:
            raise Closed("closed")
        stands_for(future, (function, args, kwargs))
        self.calls.append((future, function, args, kwargs))

    def chunks(self, function, *, star):
        return lambda future, chunk: self.call(future, function, (chunk, star), {}), lambda: None

    def run(self, index=0):
        future, function, args, kwargs = self.calls.pop(index)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)


@pytest.fixture
def fake():
    return FakeBackend()


@pytest.fixture
def executor(fake):
    return PoolExecutor(fake)


def test_states(fake, executor):
    future = executor.submit(pow, 2, 3)
    assert (future.running(), future.done(), future.cancelled()) == (False, False, False)
    fake.run()
    assert (future.running(), future.done(), future.result(), future.exception()) == (False, True, 8, None)


def test_exceptions(fake, executor):
    future = executor.submit(int, "x")
    fake.run()
    assert isinstance(future.exception(), ValueError)
    with pytest.raises(ValueError, match="invalid literal"):
        future.result()


def test_cancel_before_and_after_the_start(fake, executor):
    first, second = executor.submit(int), executor.submit(int)
    assert first.cancel()
    assert first.cancel()
    assert len(fake.cancelled) == 1
    fake.calls[1][0].set_running_or_notify_cancel()
    assert second.running()
    assert not second.cancel()
    with pytest.raises(cf.CancelledError):
        first.result()
    fake.run()
    assert first.cancelled()


def test_callbacks_are_called_once_in_order_even_if_added_late(fake, executor):
    seen = []
    future = executor.submit(int, 5)
    future.add_done_callback(lambda f: seen.append(("a", f.result())))
    future.add_done_callback(lambda f: seen.append(("b", f.result())))
    fake.run()
    future.add_done_callback(lambda f: seen.append(("late", f.result())))
    assert seen == [("a", 5), ("b", 5), ("late", 5)]


def test_result_times_out(executor):
    future = executor.submit(int)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.01)


def test_wait_and_as_completed(fake, executor):
    futures = [executor.submit(int, i) for i in range(3)]
    fake.run(1)
    done, not_done = cf.wait(futures, return_when=cf.FIRST_COMPLETED)
    assert done == {futures[1]}
    assert not_done == {futures[0], futures[2]}
    fake.run(), fake.run()
    assert {f.result() for f in cf.as_completed(futures, timeout=5)} == {0, 1, 2}


def test_no_submit_after_shutdown(fake, executor):
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)
    with pytest.raises(RuntimeError):
        executor.map(int, [1])


def test_no_submit_after_the_pool_is_closed(fake, executor):
    fake.closed = True
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)


def test_shutdown_waits(fake, executor):
    future = executor.submit(int, 3)
    thread = threading.Thread(target=executor.shutdown)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    fake.run()
    thread.join(5)
    assert not thread.is_alive()
    assert future.result() == 3


def test_shutdown_without_waiting_and_with_cancelling(fake, executor):
    first, second = executor.submit(int), executor.submit(int)
    fake.calls[0][0].set_running_or_notify_cancel()
    executor.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    assert first.running()


def test_submit_takes_any_keyword(fake, executor):
    future = executor.submit(dict, fn=1, self=2, function=3, timeout=4, priority=5)
    fake.run()
    assert future.result() == {"fn": 1, "self": 2, "function": 3, "timeout": 4, "priority": 5}


def test_map_refuses_nonsense(executor):
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(int, [1], chunksize=0)
    with pytest.raises(TypeError):
        executor.map(int, [1], speed=3)


# -- the real thing


@pytest.fixture
async def pool():
    async with ProcessPool(PoolConfig(min_processes=2, max_processes=2), background=True) as made:
        yield made


async def test_from_a_thread(pool):
    def work():
        with pool.executor() as executor:
            futures = [executor.submit(pow, 2, i) for i in range(50)]
            with pytest.raises(ZeroDivisionError):
                executor.submit(divmod, 1, 0).result(10)
            return (
                [f.result(10) for f in futures],
                list(executor.map(pow, [2] * 5, range(5))),
                list(executor.map(abs, range(-9, 0), chunksize=4)),
            )

    singles, mapped, chunked = await asyncio.to_thread(work)
    assert singles == [2**i for i in range(50)]
    assert mapped == [1, 2, 4, 8, 16]
    assert chunked == list(range(9, 0, -1))
    assert await pool.run(int) == 0  # shutdown left the pool alone


async def test_with_run_in_executor(pool):
    loop = asyncio.get_running_loop()
    executor = pool.executor()
    assert await asyncio.gather(*(loop.run_in_executor(executor, abs, -i) for i in range(200))) == list(range(200))


async def test_run_in_executor_on_the_pools_own_loop():
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        assert await asyncio.get_running_loop().run_in_executor(pool.executor(), abs, -1) == 1


async def test_a_dead_worker_does_not_break_the_executor(pool):
    executor = pool.executor()
    with pytest.raises(ProcessFailed):
        await asyncio.wrap_future(executor.submit(os._exit, 1))
    assert await asyncio.wrap_future(executor.submit(int, 3)) == 3


async def test_map_times_out_and_cancels_the_rest(pool):
    def work():
        executor = pool.executor()
        results = executor.map(time.sleep, [0, 1.5, 1.5, 1.5], timeout=0.5)
        assert next(results) is None
        with pytest.raises(TimeoutError):
            next(results)
        executor.shutdown(wait=False, cancel_futures=True)

    await asyncio.to_thread(work)
    async with asyncio.timeout(20):
        while not pool.metrics().total_tasks_cancelled:  # the thread's word for it is on its way to the pool's loop
            await asyncio.sleep(0.01)


async def test_waiters_hear_of_cancelled_futures(pool):
    def work():
        executor = pool.executor()
        blockers = [executor.submit(time.sleep, 0.3) for _ in range(2)]
        futures = [executor.submit(int) for _ in range(4)]
        assert all(future.cancel() for future in futures)
        done, _ = cf.wait(futures, timeout=10)
        assert done == set(futures)
        executor.shutdown()
        assert all(blocker.done() for blocker in blockers)

    await asyncio.to_thread(work)


async def test_map_raises_in_its_turn(pool):
    def work():
        results = pool.executor().map(int, ["1", "2", "x", "4"], chunksize=2)
        assert (next(results), next(results)) == (1, 2)
        with pytest.raises(ValueError, match="invalid literal"):
            next(results)

    await asyncio.to_thread(work)


async def test_map_with_a_buffer_takes_an_endless_iterable(pool):
    def work():
        results = pool.executor().map(abs, iter(lambda: -1, 0), buffersize=4)
        assert [next(results) for _ in range(20)] == [1] * 20
        results.close()

    await asyncio.to_thread(work)


async def test_a_future_runs_then_can_no_longer_be_cancelled(pool, tmp_path):
    mark, go = tmp_path / "mark", tmp_path / "go"

    def wait():
        mark.touch()
        while not go.exists():
            __import__("time").sleep(0.002)

    future = pool.executor().submit(wait)
    async with asyncio.timeout(20):
        while not mark.exists():
            await asyncio.sleep(0.002)
    assert future.running()
    assert not future.cancel()
    go.touch()
    await asyncio.wrap_future(future)


async def test_waiting_on_the_pools_own_thread_is_refused_not_a_deadlock():
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        executor = pool.executor()
        future = executor.submit(int, 7)
        with pytest.raises(CommunicationError, match="background=True"):
            future.result()
        with pytest.raises(CommunicationError):
            executor.shutdown()
        assert await asyncio.wrap_future(future) == 7
        assert future.result() == 7
        executor.shutdown()


async def test_arguments_and_results_are_not_held(pool):
    class Big:
        pass

    big = Big()
    ref = weakref.ref(big)
    executor = pool.executor()
    await asyncio.wrap_future(executor.submit(type, big))
    del big
    gc.collect()
    assert ref() is None


async def test_many_threads_at_once(pool):
    def work(n):
        executor = pool.executor()
        return [executor.submit(pow, n, 2).result(20) for _ in range(50)]

    results = await asyncio.gather(*(asyncio.to_thread(work, n) for n in range(4)))
    assert results == [[n * n] * 50 for n in range(4)]
