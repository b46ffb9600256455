# ruff: noqa: S102, RUF043
"""Real workers: results, errors, and what a task may do to its worker without harming anybody else."""

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import sys
import time

import numpy as np
import psutil
import pytest

from nbprocs.errors import Closed, CommunicationError, ExecutionTimeout, ProcessCrashed, ProcessFailed
from nbprocs.model import TaskPriority
from nbprocs.policy import RetryPolicy
from nbprocs.pool import PoolConfig, PoolTaskState, ProcessPool, RemoteError, RemoteTraceback, WorkerState

TWO = PoolConfig(min_processes=2, max_processes=2)
ONE = PoolConfig(max_processes=1)


@pytest.fixture
async def pool():
    async with ProcessPool(TWO) as made:
        yield made


@pytest.fixture
async def lonely():
    async with ProcessPool(ONE) as made:
        yield made


class Gate:
    """Lets a test hold a task in its worker: the task says that it runs and waits for the file to appear."""

    def __init__(self, folder):
        self.running, self.open = str(folder / "running"), str(folder / "open")

    def task(self, result=None):
        running, opened = self.running, self.open

        def wait():
            import os
            import time

            with open(running, "a") as file:
                file.write("x")
            while not os.path.exists(opened):
                time.sleep(0.001)
            return result

        return wait

    async def entered(self, times=1):
        async with asyncio.timeout(20):
            while not os.path.exists(self.running) or os.path.getsize(self.running) < times:
                await asyncio.sleep(0.002)

    def let_go(self):
        with open(self.open, "w"):
            pass


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def lives(pid):
    """A zombie is dead: who should have reaped it is dead, too."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- results


@pytest.mark.loop_modes
async def test_results_of_all_kinds(pool):
    values = [None, True, 7, 2**100, 1.5, 1j, "é", b"\x00", [1, [2]], {"a": (1, 2)}, {1, 2}, range(3), Ellipsis]
    assert await asyncio.gather(*(pool.submit(lambda x: x, value) for value in values)) == values


async def test_keyword_arguments_and_closures(pool):
    factor = 3
    assert await pool.run(lambda x, *, y: (x + y) * factor, 1, y=2) == 9


async def test_a_class_of_the_notebook_comes_back_as_itself(pool):
    space = {"__name__": "__main__"}
    exec("class Point:\n def __init__(self, x): self.x = x\ndef move(p): return Point(p.x + 1)", space)
    moved = await pool.run(space["move"], space["Point"](1))
    assert type(moved) is space["Point"]
    assert moved.x == 2


async def test_a_redefined_function_is_the_new_one(pool):
    for value in (1, 2):
        space = {"__name__": "__main__"}
        exec(f"def f(): return {value}", space)
        assert await asyncio.gather(*(pool.submit(space["f"]) for _ in range(20))) == [value] * 20


async def test_big_arrays_there_and_back(pool):
    array = np.arange(2_000_000, dtype="f8").reshape(1000, 2000)
    back = await pool.run(np.negative, array)
    assert (back == -array).all()
    back[0, 0] = 1  # writable


async def test_big_plain_data_there_and_back(pool):
    data = {"text": "x" * 3_000_000, "bytes": b"y" * 3_000_000, "list": list(range(100_000))}
    assert await pool.run(dict, **data) == data


async def test_many_results_are_never_mixed_up(pool):
    results = await asyncio.gather(*(pool.submit(lambda x: -x, i) for i in range(5000)))
    assert results == [-i for i in range(5000)]


async def test_prints_go_to_the_workers_log(pool):
    worker = await pool.run(lambda: (print("hello from a task"), os.getpid())[1])
    process = next(p for p in pool.manager.processes() if p.pid == worker)
    async with asyncio.timeout(10):
        assert await process.receive_output() == "hello from a task"


async def test_the_workers_are_in_the_managers_table(pool):
    assert {info.name for info in pool.manager.list()} == {f"{pool.name}-worker-1", f"{pool.name}-worker-2"}


async def test_sys_path_follows_the_kernel(pool, tmp_path, monkeypatch):
    (tmp_path / "pool_late_module.py").write_text("def f(): return 'found'")
    monkeypatch.syspath_prepend(tmp_path)
    import pool_late_module

    assert await pool.run(pool_late_module.f) == "found"
    monkeypatch.delitem(sys.modules, "pool_late_module")


async def test_worker_main_is_clean(pool):
    assert await pool.run(lambda: [n for n in vars(__import__("__main__")) if not n.startswith("__")]) in (
        [],
        ["sys", "m", "f", "p", "a", "s", "w"],
    )


# -- errors of the function


async def test_an_exception_comes_with_its_remote_traceback(pool):
    def outer():
        def inner():
            raise ValueError("told you")

        inner()

    with pytest.raises(ValueError, match="told you") as caught:
        await pool.run(outer)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    text = str(caught.value.__cause__)
    assert "in inner" in text
    assert "worker_main.py" not in text


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration"])
async def test_exceptions_that_end_interpreters_end_only_the_task(lonely, name):
    def leave():
        import builtins

        raise getattr(builtins, name)(3)

    pid = await lonely.run(os.getpid)
    with pytest.raises(RemoteError) as caught:
        await lonely.run(leave)
    assert caught.value.kind == name
    assert await lonely.run(os.getpid) == pid


async def test_cancelled_error_of_a_task_is_not_our_cancellation(lonely):
    def leave():
        import asyncio

        raise asyncio.CancelledError

    with pytest.raises(RemoteError):
        await lonely.run(leave)


async def test_an_exception_that_does_not_pickle_is_told(pool):
    def fail():
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(f"odd {a}")
                self.lock = __import__("threading").Lock()

        raise Odd(1, 2)

    with pytest.raises(RemoteError, match="odd 1") as caught:
        await pool.run(fail)
    assert caught.value.kind.endswith("Odd")


async def test_an_exception_that_cant_be_rebuilt_is_told(pool):
    def fail():
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(f"odd {a}")

        raise Odd(1, 2)

    with pytest.raises(RemoteError, match="odd 1"):
        await pool.run(fail)


async def test_an_exception_whose_str_fails_is_told(pool):
    def fail():
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError

        raise Odd

    with pytest.raises((RemoteError, Exception)) as caught:
        await pool.run(fail)
    assert "Odd" in type(caught.value).__name__ or "Odd" in str(caught.value)


async def test_a_lock_as_argument(pool):
    import threading

    handle = pool.submit(len, threading.Lock())
    with pytest.raises(CommunicationError, match="lock"):
        await handle
    assert handle.state is PoolTaskState.FAILED


async def test_results_that_do_not_pickle(pool):
    with pytest.raises(CommunicationError, match="does not pickle"):
        await pool.run(lambda: (i for i in range(3)))


async def test_arguments_that_cant_be_rebuilt_there(pool):
    class Bad:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(CommunicationError, match="could not be rebuilt in the worker"):
        await pool.run(len, Bad())


async def test_results_that_cant_be_rebuilt_here(pool):
    def bad():
        class Bad:
            def __reduce__(self):
                return int, ("no number",)

        return Bad()

    with pytest.raises(CommunicationError, match="can't be rebuilt here"):
        await pool.run(bad)


# -- what a task does to its worker


def segfault():
    return lambda: __import__("ctypes").string_at(0)


def suicide(number):
    return lambda: (os.kill(os.getpid(), number), __import__("time").sleep(60))


@pytest.mark.parametrize(
    ("deadly", "error", "text"),
    [
        (segfault(), ProcessCrashed, "SIGSEGV"),
        (suicide(signal.SIGKILL), ProcessFailed, "SIGKILL|out of memory"),
        (suicide(signal.SIGTERM), ProcessCrashed, "SIGTERM"),
        (lambda: os._exit(3), ProcessFailed, "exit status 3"),
        (lambda: os._exit(0), ProcessFailed, "exit status 0"),
        (lambda: (os.closerange(3, 100), __import__("time").sleep(60)), ProcessFailed, "socket|exit status 1"),
    ],
    ids=["segfault", "SIGKILL", "SIGTERM", "_exit(3)", "_exit(0)", "closed sockets"],
)
async def test_a_dead_worker_fails_its_task_alone(pool, deadly, error, text):
    handles = [pool.submit(lambda x: x, i) for i in range(200)]
    victim = pool.submit(deadly)
    handles += [pool.submit(lambda x: x, i) for i in range(200, 400)]
    with pytest.raises(error, match=text):
        await victim
    assert await asyncio.gather(*handles) == list(range(400))
    metrics = pool.metrics()
    assert (metrics.total_tasks_completed, metrics.total_tasks_failed) == (400, 1)


async def test_the_last_output_is_in_the_error(pool):
    def die():
        import os
        import sys

        print("reading matrix.bin", file=sys.stderr)
        os._exit(1)

    with pytest.raises(ProcessFailed, match=r"reading matrix\.bin"):
        await pool.run(die)


async def test_a_fork_that_comes_back_answers_once(lonely):
    def fork():
        import os

        return "child" if os.fork() == 0 else "parent"

    assert await lonely.run(fork) == "parent"
    assert await lonely.run(int, "5") == 5


async def test_ctrl_c_in_a_worker_ends_the_task_not_the_worker(lonely, gate):
    handle = lonely.submit(gate.task())
    await gate.entered()
    (process,) = lonely.manager.processes()
    process.send_signal(signal.SIGINT)
    with pytest.raises(RemoteError, match="interrupted"):
        await handle
    process.send_signal(signal.SIGINT)  # idle: nothing happens
    assert await lonely.run(os.getpid) == process.pid


# -- time


async def test_a_task_out_of_time_is_killed_with_its_whole_tree(pool, tmp_path):
    pids = tmp_path / "pids"

    def family():
        import subprocess
        import sys
        import time

        code = "import os,subprocess,sys,time; subprocess.Popen(['sleep','600'], start_new_session=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code])
        pids.write_text(str(child.pid))
        time.sleep(600)

    began = time.monotonic()
    with pytest.raises(ExecutionTimeout, match="0.5 s") as caught:
        await pool.run(family, timeout=0.5)
    assert time.monotonic() - began < 10
    assert caught.value.name.startswith(pool.name)
    assert isinstance(caught.value, TimeoutError)
    assert not lives(int(pids.read_text()))
    assert await pool.run(int, "5") == 5


async def test_the_clock_of_a_task_starts_with_the_task(lonely):
    def nap():
        import time

        time.sleep(0.15)

    await asyncio.gather(*(lonely.submit(nap, timeout=0.5) for _ in range(6)))  # 0.9 s together


async def test_a_worker_stopped_before_it_starts_costs_no_try(lonely):
    await lonely.run(int)
    (process,) = lonely.manager.processes()
    process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(20):
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.001)
    handle = lonely.submit(os.getpid, timeout=0.3)
    assert await handle != process.pid
    assert handle.attempts == 1


@pytest.mark.parametrize("timeout", [0, -1])
async def test_impossible_timeouts_are_refused(pool, timeout):
    with pytest.raises(ValueError, match="timeout"):
        pool.submit(int, timeout=timeout)


# -- retries


async def test_retries_until_it_works(pool, tmp_path):
    tries = tmp_path / "tries"

    def third_time():
        with tries.open("a") as file:
            file.write("x")
        if tries.stat().st_size < 3:
            raise OSError("not yet")
        return "now"

    handle = pool.submit(third_time, retries=RetryPolicy(max_retries=5, initial_delay=0.01))
    assert await handle == "now"
    assert handle.attempts == 3
    assert pool.metrics().total_retries == 2


async def test_retries_after_a_crash_and_then_the_error(pool):
    with pytest.raises(ProcessFailed) as caught:
        await pool.run(lambda: os._exit(1), retries=RetryPolicy(max_retries=2, initial_delay=0.01))
    assert caught.value.attempts == 3


async def test_the_config_may_ask_for_retries(tmp_path):
    mark = tmp_path / "mark"

    def second_time():
        if not mark.exists():
            mark.touch()
            __import__("os").kill(__import__("os").getpid(), 9)
        return "ok"

    async with ProcessPool(PoolConfig(max_processes=1, max_retries=1, retry_delay=0.01)) as pool:
        assert await pool.run(second_time) == "ok"


# -- priority


async def test_higher_priority_first(lonely, gate, tmp_path):
    order = tmp_path / "order"

    def note(name):
        with order.open("a") as file:
            file.write(name)

    blocker = lonely.submit(gate.task())
    await gate.entered()
    handles = [
        lonely.submit(note, p.name[0], priority=p)
        for p in (TaskPriority.LOW, TaskPriority.NORMAL, TaskPriority.CRITICAL, TaskPriority.HIGH)
    ]
    gate.let_go()
    await asyncio.gather(blocker, *handles)
    assert order.read_text() == "CHNL"


async def test_no_worker_idles_while_a_task_waits_for_another_worker(pool, gate):
    """Prefetched behind a long task, short ones are taken back and run elsewhere."""
    await asyncio.gather(*(pool.submit(int) for _ in range(2000)))  # now tasks count as short and are prefetched
    long = pool.submit(gate.task("long"))
    short = [pool.submit(abs, -i) for i in range(100)]
    async with asyncio.timeout(5):
        assert await asyncio.gather(*short) == list(range(100))
    assert not long.done()
    gate.let_go()
    assert await long == "long"


async def test_many_long_ones_and_short_ones(pool):
    def nap(seconds):
        import time

        time.sleep(seconds)
        return seconds

    await asyncio.gather(*(pool.submit(int) for _ in range(1000)))
    times = [0.001] * 100 + [0.01] * 30 + [0.5] * 2
    times = times[::7] + times[1::7] + times[2::7] + times[3::7] + times[4::7] + times[5::7] + times[6::7]
    began = time.monotonic()
    assert await asyncio.gather(*(pool.submit(nap, t) for t in times)) == times
    assert time.monotonic() - began < sum(times)  # one worker alone would take longer than this: both worked


# -- cancellation


async def test_cancel_a_queued_task(lonely, gate):
    running = lonely.submit(gate.task("done"))
    await gate.entered()
    queued = lonely.submit(int)
    assert queued.cancel()
    assert queued.state is PoolTaskState.CANCELLED
    gate.let_go()
    assert await running == "done"
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert lonely.metrics().total_processes_destroyed == 0


@pytest.mark.loop_modes
async def test_cancel_a_running_task_ends_its_worker_only(pool, gate):
    other = pool.submit(gate.task("other"))
    await gate.entered()
    running = pool.submit(gate.task())
    await gate.entered(2)
    assert running.cancel()
    gate.let_go()
    assert await other == "other"
    async with asyncio.timeout(20):
        while pool.metrics().total_processes_destroyed < 1:
            await asyncio.sleep(0.005)
    assert pool.frame("workers")["reason"].dropna().tolist() == ["a running task was cancelled"]
    assert await pool.run(int) == 0


async def test_a_join_hears_that_a_cancelled_task_was_taken_back(lonely):
    (worker,) = lonely._core.workers.live.values()
    worker.connection.dispatch = lambda _: None  # on its way for ever: it can only be taken back
    handle = lonely.submit(int)
    joining = asyncio.create_task(lonely.join())
    await asyncio.sleep(0)
    assert handle.cancel()
    async with asyncio.timeout(20):
        await joining


async def test_a_join_hears_of_a_future_that_was_cancelled_while_it_was_handed_out(lonely):
    (worker,) = lonely._core.workers.live.values()
    worker.window.open = False  # as while its running task is being ended
    future = lonely.executor().submit(int)
    joining = asyncio.create_task(lonely.join())
    await asyncio.sleep(0)
    assert concurrent.futures.Future.cancel(future)  # so far has another thread come with future.cancel()
    lonely._core.dispatcher.reopen(worker.window)
    lonely._core.pump()
    assert lonely.metrics().total_tasks_cancelled == 1
    future._give_up(future._task)  # and here it goes on
    async with asyncio.timeout(20):
        await joining


async def test_cancelling_the_wait_cancels_the_task(lonely, gate):
    waiting = asyncio.get_running_loop().create_task(lonely.run(gate.task()))
    await gate.entered()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert await lonely.run(int) == 0
    assert lonely.metrics().total_tasks_cancelled == 1


async def test_cancel_a_prefetched_task_leaves_its_worker_alone(lonely, gate):
    await asyncio.gather(*(lonely.submit(int) for _ in range(2000)))
    pid = await lonely.run(os.getpid)
    handles = [lonely.submit(abs, -i) for i in range(50)]
    for handle in handles[1::2]:
        handle.cancel()
    assert await asyncio.gather(*handles[::2]) == list(range(0, 50, 2))
    assert all(handle.cancelled() or handle.done() for handle in handles)
    assert await lonely.run(os.getpid) == pid


async def test_cancel_after_the_end_does_nothing(pool):
    handle = pool.submit(int)
    await handle
    assert not handle.cancel()
    assert handle.state is PoolTaskState.COMPLETED


async def test_cancel_while_it_waits_to_be_tried_again(pool):
    def fail():
        raise OSError

    handle = pool.submit(fail, retries=RetryPolicy(max_retries=5, initial_delay=60, jitter=False))
    async with asyncio.timeout(10):
        while pool.metrics().total_retries == 0:
            await asyncio.sleep(0.005)
    handle.cancel()
    assert pool.metrics().current_queued_tasks == 0


# -- the end


async def test_close_ends_everything_and_says_so(gate):
    pool = ProcessPool(ONE)
    running = pool.submit(gate.task())
    queued = pool.submit(int)
    await gate.entered()
    await pool.aclose()
    await pool.aclose()
    for handle in (running, queued):
        with pytest.raises(Closed):
            await handle
    with pytest.raises(Closed):
        pool.submit(int)
    with pytest.raises(Closed):
        pool.map(int, [])
    assert pool.closed
    assert "closed" in repr(pool)


async def test_an_error_in_the_block_closes_at_once(gate):
    with contextlib.suppress(KeyError):
        async with ProcessPool(ONE) as pool:
            handle = pool.submit(gate.task())
            raise KeyError
    with pytest.raises(Closed):
        await handle


async def test_leaving_the_block_waits_for_the_tasks(tmp_path):
    mark = tmp_path / "mark"
    async with ProcessPool(ONE) as pool:
        handle = pool.submit(mark.touch)
    assert handle.done()
    assert mark.exists()


async def test_a_pool_that_was_never_used_closes():
    pool = ProcessPool()
    assert pool.manager.list() == ()
    await pool.aclose()


async def test_exit_handlers_of_free_workers_run(tmp_path):
    mark = tmp_path / "mark"
    async with ProcessPool(ONE) as pool:
        await pool.run(lambda: __import__("atexit").register(mark.touch) and None)
    assert mark.exists()


# -- looking


async def test_frames_and_displays(pool):
    await asyncio.gather(*(pool.submit(abs, -i) for i in range(10)))
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 / 0)
    frame = pool.frame()
    assert frame["state"].tolist() == ["completed"] * 10 + ["failed"]
    assert frame["error"].iloc[-1] == "ZeroDivisionError: division by zero"
    assert (frame["queued"] <= frame["ended"]).all()
    assert (frame["started"] <= frame["ended"]).all()
    assert set(frame["worker"]) <= set(pool.frame("workers").index)
    assert frame.index.tolist() == list(range(1, 12))
    assert pool.frame("workers")["tasks"].sum() == 11
    bundle = pool._repr_mimebundle_()
    assert pool.name in bundle["text/html"]
    assert "10 completed, 1 failed" in bundle["text/plain"]
    with pytest.raises(ValueError, match="workers"):
        pool.frame("queues")


async def test_workers_tell_what_each_one_does(lonely, gate):
    (idle,) = lonely.workers()
    assert (idle.name, idle.state, idle.done, idle.tasks, idle.reason) == (f"{lonely.name}-worker-1", WorkerState.IDLE, 0, (), None)
    assert idle.created_at <= idle.ready_at
    running = lonely.submit(gate.task())
    await gate.entered()
    (busy,) = await asyncio.to_thread(lonely.workers)  # from any thread
    assert busy.state is WorkerState.BUSY
    assert busy.tasks == ("Gate.task.<locals>.wait",)
    gate.let_go()
    await running
    (after,) = lonely.workers()
    assert (after.pid, after.state, after.done, after.tasks) == (idle.pid, WorkerState.IDLE, 1, ())
    await lonely.aclose()
    assert lonely.workers() == ()
    assert idle.state is WorkerState.IDLE  # a snapshot


async def test_names_are_escaped():
    async with ProcessPool(ONE, name="<script>") as pool:
        await pool.run(int)
        assert "<script>" not in pool._repr_mimebundle_()["text/html"]
