"""Workers come, are watched, are replaced for a recorded reason, and go."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from nbprocs.engine.home import Home
from nbprocs.errors import ResourceExhausted, StartupFailed
from nbprocs.pool import CommandWorker, PoolConfig, ProcessPool, PythonWorker
from nbprocs.pool.workers import Workers
from nbprocs.processes.manager import ProcessManager
from tests.waiting import until


def reasons(pool):
    return pool.frame("workers")["reason"].dropna().tolist()


def nap():
    import time

    time.sleep(0.2)


# -- size


async def test_start_brings_the_initial_workers_and_idle_ones_leave():
    config = PoolConfig(min_processes=1, initial_processes=3, max_processes=4, idle_timeout=0.1)
    async with ProcessPool(config) as pool:
        assert pool.metrics().total_processes_created == 3
        await until(lambda: pool.metrics().current_active_processes == 1)
        assert all(reason.startswith("idle for") for reason in reasons(pool))
        assert pool.metrics().total_processes_destroyed == 2


async def test_load_brings_more_workers_up_to_the_maximum():
    async with ProcessPool(PoolConfig(min_processes=0, max_processes=3, idle_timeout=0.1)) as pool:
        assert pool.metrics().current_active_processes == 0
        await asyncio.gather(*(pool.submit(nap) for _ in range(9)))
        assert pool.metrics().total_processes_created == 3
        assert set(pool.frame()["worker"]) == set(pool.frame("workers").index)
        await until(lambda: pool.metrics().current_active_processes == 0)
        assert await pool.run(int) == 0  # and it comes back


async def test_resize_live():
    async with ProcessPool(PoolConfig(min_processes=1, max_processes=4)) as pool:
        pool.resize(3)
        await until(lambda: pool.metrics().current_active_processes == 3)
        naps = [pool.submit(nap) for _ in range(6)]
        pool.resize(1)
        await asyncio.gather(*naps)
        await until(lambda: pool.metrics().current_active_processes == 1 and len(pool.manager.list()) >= 3)
        assert reasons(pool) == ["resized to 1"] * 2
        await asyncio.gather(*(pool.submit(nap) for _ in range(3)))
        assert pool.metrics().total_processes_created == 3  # no autoscaling until it is allowed again
        pool.resize(None)
        await asyncio.gather(*(pool.submit(nap) for _ in range(8)))
        assert pool.metrics().total_processes_created > 3


@pytest.mark.parametrize("size", [0, 5])
async def test_resize_within_the_bounds_only(size):
    async with ProcessPool(PoolConfig(min_processes=1, max_processes=4)) as pool:
        with pytest.raises(ValueError, match="from 1 to 4"):
            pool.resize(size)


# -- recycling


async def test_recycled_after_so_many_tasks():
    async with ProcessPool(PoolConfig(max_processes=1, max_tasks_per_worker=5)) as pool:
        pids = await asyncio.gather(*(pool.submit(os.getpid) for _ in range(20)))
        assert sorted(pids.count(pid) for pid in set(pids)) == [5] * 4
        assert set(reasons(pool)) == {"ran 5 tasks"}


async def test_recycled_by_age():
    async with ProcessPool(PoolConfig(max_processes=1, max_worker_age=0.2)) as pool:
        first = await pool.run(os.getpid)
        await until(lambda: reasons(pool))
        assert "s old" in reasons(pool)[0]
        assert await pool.run(os.getpid) != first


async def test_recycled_by_memory_growth():
    def grow():
        import builtins

        builtins.kept = bytearray(b"x" * 60_000_000)

    config = PoolConfig(max_processes=1, max_memory_growth=30_000_000, health_check_interval=0.1)
    async with ProcessPool(config) as pool:
        await pool.run(int)
        await until(lambda: pool.workers()[0].memory)  # measured once before
        await pool.run(grow)
        await until(lambda: reasons(pool))
        assert "memory grew by" in reasons(pool)[0]


async def test_renewed_on_demand():
    async with ProcessPool(PoolConfig(min_processes=2, max_processes=2)) as pool:
        before = set(await asyncio.gather(*(pool.submit(os.getpid) for _ in range(50))))
        pool.renew()
        await until(lambda: pool.metrics().total_processes_created == 4 and pool.metrics().current_active_processes == 2)
        assert not before & set(await asyncio.gather(*(pool.submit(os.getpid) for _ in range(50))))


# -- health


async def test_an_idle_worker_that_dies_is_replaced():
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        pid = await pool.run(os.getpid)
        os.kill(pid, signal.SIGKILL)
        assert await pool.run(os.getpid) != pid
        assert pool.metrics().total_processes_crashed == 1


async def test_an_idle_worker_that_hangs_is_replaced():
    async with ProcessPool(PoolConfig(max_processes=1, health_check_interval=0.1)) as pool:
        pid = await pool.run(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: pool.metrics().total_processes_created == 2)
        assert reasons(pool) == ["it does not answer"]
        assert await pool.run(os.getpid) != pid


async def stop_from_outside(pool):
    """Stop its only worker, as ``kill -STOP`` does; returns its process once it stands."""
    (process,) = pool.manager.processes()
    os.kill(process.pid, signal.SIGSTOP)
    await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    return process


@pytest.mark.parametrize(("worker", "task", "answer"), [(None, (pow, 2, 5), 32), (CommandWorker("cat"), ("hello",), "hello")])
async def test_a_worker_that_was_stopped_while_idle_is_continued_for_a_task(monkeypatch, caplog, worker, task, answer):
    monkeypatch.setattr("nbprocs.pool.core._LATE", 0.05)  # and no health check comes for a minute
    async with ProcessPool(PoolConfig(max_processes=1, health_check_interval=60), worker=worker) as pool:
        assert await pool.run(*task) == answer
        process = await stop_from_outside(pool)
        async with asyncio.timeout(30):
            assert await pool.run(*task) == answer
        assert (pool.metrics().total_processes_created, process.status.live) == (1, True)
        assert [m for m in caplog.messages if f"(pid {process.pid}) and a task waits for it: it is continued" in m]


async def test_a_worker_that_its_owner_paused_is_not_continued_for_a_task(monkeypatch):
    monkeypatch.setattr("nbprocs.pool.core._LATE", 0.01)
    looks = []
    monkeypatch.setattr(Workers, "wake", lambda workers, worker, wake=Workers.wake: looks.append(wake(workers, worker)))
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        await pool.run(int)
        (process,) = pool.manager.processes()
        process.pause()
        await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        handle = pool.submit(int)
        await until(lambda: len(looks) > 2)
        assert (handle.done(), psutil.Process(process.pid).status()) == (False, psutil.STATUS_STOPPED)
        process.resume()
        assert await handle == 0


async def test_who_works_on_a_long_task_is_not_looked_at(monkeypatch, tmp_path):
    monkeypatch.setattr("nbprocs.pool.core._LATE", 0.01)
    monkeypatch.setattr(Workers, "wake", lambda _, worker: looks.append(worker))
    looks, go_on = [], tmp_path / "go on"

    def wait():
        while not go_on.exists():
            __import__("time").sleep(0.001)

    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        core = pool._core
        handle = pool.submit(wait)
        await until(lambda: (w := next(iter(core.workers.live.values()))).window.sent and w.has_begun)
        looks.clear()
        timer = core._watch
        await until(lambda: core._watch is not timer)
        go_on.touch()
        await handle
        assert looks == []
        await until(lambda: core._watch is None)  # with nothing to do nobody looks


async def test_a_stopped_busy_worker_is_replaced_and_its_task_fails_by_name(tmp_path):
    mark = tmp_path / "mark"

    def wait():
        mark.touch()
        __import__("time").sleep(600)

    async with ProcessPool(PoolConfig(max_processes=1, health_check_interval=0.1)) as pool:
        handle = pool.submit(wait)
        await until(mark.exists)
        next(p for p in pool.manager.processes()).send_signal(signal.SIGSTOP)
        with pytest.raises(Exception, match="does not answer"):
            await handle


async def test_a_long_task_is_not_taken_for_a_hung_worker():
    def compute():
        end = __import__("time").monotonic() + 0.8
        while __import__("time").monotonic() < end:
            sum(range(100_000))
        return "done"

    async with ProcessPool(PoolConfig(max_processes=1, health_check_interval=0.05)) as pool:
        assert await pool.run(compute) == "done"
        assert reasons(pool) == []


async def test_a_paused_worker_is_left_alone():
    async with ProcessPool(PoolConfig(max_processes=1, health_check_interval=0.3)) as pool:
        pid = await pool.run(os.getpid)
        (process,) = pool.manager.processes()
        process.pause()
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 1)
        process.resume()
        assert await pool.run(os.getpid) == pid


# -- set-up


async def test_initialiser_and_preload():
    def setup(value):
        import builtins

        builtins.ready_value = value

    worker = PythonWorker(initializer=setup, initargs=(42,), preload=("json",), env_vars={"POOL_TEST": "here"})
    async with ProcessPool(PoolConfig(max_processes=1), worker=worker) as pool:
        found = await pool.run(
            lambda: (__import__("builtins").ready_value, "json" in __import__("sys").modules, __import__("os").environ["POOL_TEST"])
        )
    assert found == (42, True, "here")


async def test_a_failing_initialiser_fails_the_start_and_leaves_nothing():
    def setup():
        raise RuntimeError("no licence")

    pool = ProcessPool(PoolConfig(max_processes=1), worker=PythonWorker(initializer=setup))
    with pytest.raises(StartupFailed, match="no licence"):
        await pool.start()
    assert pool.closed


async def test_a_failing_initialiser_fails_waiting_tasks_instead_of_a_fork_bomb():
    def setup():
        raise RuntimeError("no licence")

    pool = ProcessPool(PoolConfig(max_processes=2), worker=PythonWorker(initializer=setup))
    with pytest.raises(StartupFailed, match="no licence"):
        await pool.run(int)
    assert pool.metrics().total_processes_created <= 6
    await pool.aclose()


async def test_an_initialiser_that_kills_the_worker():
    pool = ProcessPool(PoolConfig(max_processes=1), worker=PythonWorker(initializer=os._exit, initargs=(7,)))
    with pytest.raises(StartupFailed):
        await pool.run(int)
    await pool.aclose()


async def test_an_initialiser_that_hangs_is_timed_out():
    pool = ProcessPool(PoolConfig(max_processes=1, start_timeout=0.5), worker=PythonWorker(initializer=time.sleep, initargs=(600,)))
    with pytest.raises(StartupFailed, match=r"not ready within 0\.5 s"):
        await pool.start()


# -- where it lives


async def test_a_loop_that_was_blocked_does_not_take_its_workers_for_dead():
    async with ProcessPool(PoolConfig(min_processes=2, max_processes=2, health_check_interval=0.05)) as pool:
        await asyncio.gather(*(pool.submit(int) for _ in range(100)))
        for _ in range(5):
            await asyncio.sleep(0.02)
            time.sleep(0.2)  # a cell that does not await
        assert await asyncio.gather(*(pool.submit(int, timeout=5) for _ in range(100))) == [0] * 100
        assert reasons(pool) == []


async def test_no_descriptors_left(monkeypatch):
    def none_left(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    pool = ProcessPool(PoolConfig(max_processes=1))
    monkeypatch.setattr("socket.socketpair", none_left)
    with pytest.raises(StartupFailed, match="Too many open files") as caught:
        await pool.run(int)
    assert isinstance(caught.value.__cause__, ResourceExhausted)
    monkeypatch.undo()
    assert await pool.run(int) == 0
    await pool.aclose()


async def test_in_a_shared_manager():
    async with ProcessManager() as manager:
        async with ProcessPool(PoolConfig(max_processes=1), manager=manager, name="mine") as pool:
            await pool.run(int)
            assert manager.get("mine-worker-1").status.live
        assert not manager.get("mine-worker-1").status.live
        assert (await manager.run("echo", "still open")).text == "still open\n"


async def test_on_a_background_loop_while_this_one_is_blocked():
    async with ProcessPool(PoolConfig(max_processes=2), background=True) as pool:
        handles = [pool.submit(nap) for _ in range(4)]
        deadline = time.monotonic() + 20
        while pool.metrics().total_tasks_completed < 4 and time.monotonic() < deadline:
            time.sleep(0.01)  # a cell that does not await
        assert pool.metrics().total_tasks_completed == 4
        assert await asyncio.gather(*handles) == [None] * 4


@pytest.mark.loop_modes
async def test_used_from_several_loops_and_threads():
    async with ProcessPool(PoolConfig(max_processes=2)) as pool:

        async def elsewhere(n):
            first = pool.submit(pow, n, 2)
            return (
                await first,
                await asyncio.gather(*(pool.submit(abs, -i) for i in range(100))),
                [y async for y in pool.map(abs, range(50))],
            )

        results = await asyncio.gather(*(asyncio.to_thread(asyncio.run, elsewhere(n)) for n in range(3)), elsewhere(3))
        assert results == [(n * n, list(range(100)), list(range(50))) for n in range(4)]


async def test_a_handle_awaited_and_cancelled_on_another_loop():
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        handle = pool.submit(int, 5)

        async def elsewhere():
            return await handle

        assert await asyncio.to_thread(asyncio.run, elsewhere()) == 5
        hanging = pool.submit(time.sleep, 600)

        async def give_up():
            try:
                async with asyncio.timeout(0.2):
                    await hanging
            except TimeoutError:
                return "gave up"

        assert await asyncio.to_thread(asyncio.run, give_up()) == "gave up"
        await until(hanging.cancelled)
        assert await pool.run(int) == 0


@pytest.mark.loop_modes
async def test_cancelled_from_another_thread():
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        hanging = pool.submit(time.sleep, 600)
        assert await asyncio.to_thread(hanging.cancel)
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert not await asyncio.to_thread(hanging.cancel)
        assert await pool.run(int) == 0


async def test_submitted_from_a_thread_without_a_loop():
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        handle = await asyncio.to_thread(pool.submit, int, 7)
        assert await handle == 7


async def test_the_loop_beats_while_a_foreign_handle_is_awaited():
    async with ProcessPool(PoolConfig(max_processes=1), background=True) as pool:
        home = Home.current()
        before = home._holders
        handle = pool.submit(nap)
        assert home._holders == before + 1
        await handle
        await until(lambda: home._holders == before)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)", "sys.exit()"])
def test_no_worker_outlives_the_kernel(end):
    code = """
    import asyncio, os, sys, time
    from nbprocs.pool import PoolConfig, ProcessPool
    async def main():
        pool = await ProcessPool(PoolConfig(min_processes=2, max_processes=2)).start()
        busy = pool.submit(time.sleep, 600)
        pids = [p.pid for p in pool.manager.processes()]
        print(*pids, flush=True)
        sys.stdin.readline()
        END
    asyncio.run(main())
    """
    source = textwrap.dedent(code).replace("END", end)
    kernel = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with kernel:
        workers = [psutil.Process(int(pid)) for pid in kernel.stdout.readline().split()]
        assert len(workers) == 2
        kernel.stdin.write("go\n")
        kernel.stdin.close()
        gone, alive = psutil.wait_procs(workers, timeout=20)
        alive = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        assert not alive, (gone, alive)
