"""What users of executors and pools count on: the contract that CPython's, loky's and pebble's suites hold theirs to, in our own words."""

import asyncio
import concurrent.futures as cf
import contextlib
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from nbprocs.errors import CommunicationError, ExecutionTimeout, ProcessFailed
from nbprocs.pool import PoolConfig, ProcessPool, RemoteError, RemoteTraceback

ONE = PoolConfig(max_processes=1)
TWO = PoolConfig(min_processes=2, max_processes=2)

# -- what goes wrong on the way there and back: none of it harms anybody else

KIT = """
import os, sys
PARENT = {parent}
def harm(how):
    if how == "raise": raise RuntimeError("on the way")
    if how == "exit": sys.exit(3)
    if how == "crash" and os.getpid() != PARENT: os._exit(3)
class AtPickle(Exception):
    def __init__(self, how): self.how = how
    def __reduce__(self):
        harm(self.how)
        return AtPickle, (self.how,)
class AtUnpickle(Exception):
    def __init__(self, how): self.how = how
    def __reduce__(self): return rebuild, (self.how,)
def rebuild(how):
    harm(how)
    return AtUnpickle(how)
def give(name, how): return globals()[name](how)
def fail(name, how): raise globals()[name](how)
"""
_numbers = itertools.count()


@pytest.fixture
def kit(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    name = f"pool_contract_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(KIT.format(parent=os.getpid()))
    yield __import__(name)
    del sys.modules[name]


MISHAPS = [
    ("argument", "AtPickle", "raise", CommunicationError),
    ("argument", "AtUnpickle", "raise", CommunicationError),
    ("argument", "AtUnpickle", "exit", RemoteError),
    ("argument", "AtUnpickle", "crash", ProcessFailed),
    ("result", "AtPickle", "raise", CommunicationError),
    ("result", "AtPickle", "exit", RemoteError),
    ("result", "AtPickle", "crash", ProcessFailed),
    ("result", "AtUnpickle", "raise", CommunicationError),
    ("result", "AtUnpickle", "exit", CommunicationError),
    ("exception", "AtPickle", "raise", RemoteError),
    ("exception", "AtPickle", "exit", RemoteError),
    ("exception", "AtPickle", "crash", ProcessFailed),
    ("exception", "AtUnpickle", "raise", RemoteError),
    ("exception", "AtUnpickle", "exit", RemoteError),
]


@pytest.mark.parametrize(("what", "when", "how", "error"), MISHAPS)
async def test_a_mishap_on_the_way_is_its_calls_alone(kit, what, when, how, error):
    async with ProcessPool(TWO) as pool:
        before = [pool.submit(abs, -i) for i in range(30)]
        if what == "argument":
            handle = pool.submit(id, getattr(kit, when)(how))
        else:
            handle = pool.submit(kit.give if what == "result" else kit.fail, when, how)
        after = [pool.submit(abs, -i) for i in range(30)]
        async with asyncio.timeout(30):
            with pytest.raises(error):
                await handle
            assert await asyncio.gather(*before, *after) == [*range(30)] * 2


# -- the executor


def echo(*args, **kwargs):
    return args, kwargs


ECHO = {"__name__": "__main__"}
exec("def echo(*args, **kwargs): return args, kwargs", ECHO)  # noqa: S102


def test_keywords_may_have_any_name(executor):
    kwargs = {"self": 1, "fn": 2, "function": 3, "timeout": 4, "priority": 5, "retries": 6}
    assert executor.submit(ECHO["echo"], 7, **kwargs).result(20) == ((7,), kwargs)


def test_a_callback_may_submit(executor):
    chained, done = [], threading.Event()

    def again(future):
        if future.result() < 5:
            executor.submit(lambda x: x + 1, future.result()).add_done_callback(again)
        else:
            chained.append(future.result())
            done.set()

    executor.submit(int, 0).add_done_callback(again)
    assert done.wait(30)
    assert chained == [5]


def test_map_is_in_order_eager_and_raises_in_its_turn(executor):
    started = time.monotonic()
    results = executor.map(lambda x: (time.sleep(0.05 if x == 0 else 0), 1 / (x - 3), x)[2], range(6))
    assert time.monotonic() - started < 5
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert list(results) == []  # as a generator that has raised
    assert list(executor.map(pow, (2, 3), (3, 2, 9))) == [8, 9]
    assert list(executor.map(int, ())) == []


def test_shutdown_waits_and_refuses(executor):
    futures = [executor.submit(time.sleep, 0.05) for _ in range(6)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    with pytest.raises(RuntimeError, match="after shutdown"):
        list(executor.map(int, [1]))
    executor.shutdown()  # any number of times


def test_shutdown_may_cancel_what_waits(executor):
    executor.submit(int).result(20)
    running = [executor.submit(time.sleep, 0.5) for _ in range(2)]
    while not all(future.running() for future in running):
        time.sleep(0.001)
    waiting = [executor.submit(time.sleep, 60) for _ in range(20)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    assert not any(future.cancelled() for future in running)


def test_wait_tells_the_done_from_the_others(executor):
    quick, slow, wrong = executor.submit(int), executor.submit(time.sleep, 1), executor.submit(int, "x")
    done, waiting = cf.wait([quick, slow, wrong], return_when=cf.FIRST_COMPLETED, timeout=20)
    assert done
    done, waiting = cf.wait([quick, slow, wrong], return_when=cf.FIRST_EXCEPTION, timeout=20)
    assert wrong in done
    done, waiting = cf.wait([quick, slow, wrong], timeout=20)
    assert not waiting
    assert [future.exception() is None for future in (quick, slow, wrong)] == [True, True, False]


@pytest.mark.parametrize("close", ["", "pool_executor.shutdown()"])
def test_a_program_that_closes_nothing_ends(close):
    code = """
    import time
    from nbprocs import PoolConfig, ProcessPool
    pool = ProcessPool(PoolConfig(max_processes=1), background=True)
    pool_executor = pool.executor()
    print(pool_executor.submit(abs, -3).result(20))
    pool_executor.submit(time.sleep, 600) if not CLOSE else None
    CLOSE
    """
    source = textwrap.dedent(code).replace("if not CLOSE", f"if not {close!r}").replace("CLOSE", close)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


# -- crashes and timeouts


async def test_a_task_that_ignores_sigterm_is_ended_at_its_timeout():
    def deaf():
        import signal
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)

    async with ProcessPool(ONE) as pool:
        with pytest.raises(ExecutionTimeout):
            await pool.run(deaf, timeout=0.2)
        assert await pool.run(int) == 0


async def test_a_task_that_holds_the_interpreter_lock_is_ended_at_its_timeout():
    async with ProcessPool(ONE) as pool:
        with pytest.raises(ExecutionTimeout):
            await pool.run(lambda: sum(range(10**12)), timeout=0.3)
        assert await pool.run(int) == 0


async def test_time_in_the_queue_is_not_time_of_the_task():
    async with ProcessPool(ONE) as pool:
        first = pool.submit(time.sleep, 0.6, timeout=30)
        others = [pool.submit(int, timeout=0.4) for _ in range(5)]
        await first
        assert await asyncio.gather(*others) == [0] * 5


async def test_of_many_each_gets_its_own_end():
    """Results, errors, crashes and timeouts, mixed: no outcome goes to another call."""

    def act(i):
        import os
        import time

        if i % 10 == 3:
            raise ValueError(i)
        if i % 10 == 5:
            os._exit(i)
        if i % 10 == 7:
            time.sleep(600)
        return i

    async with ProcessPool(TWO) as pool:
        handles = [pool.submit(act, i, timeout=0.5) for i in range(20)]
        ends = await asyncio.gather(*handles, return_exceptions=True)
    for i, end in enumerate(ends):
        match i % 10:
            case 3:
                assert isinstance(end, ValueError)
                assert end.args == (i,)
            case 5:
                assert isinstance(end, ProcessFailed)
                assert end.exit_code == i
            case 7:
                assert isinstance(end, ExecutionTimeout)
            case _:
                assert end == i


async def test_a_large_answer_of_a_worker_that_dies_next_is_not_lost():
    def last_words():
        import os
        import threading

        threading.Timer(0.05, os._exit, (0,)).start()
        return b"x" * (8 << 20)

    async with ProcessPool(ONE) as pool:
        with contextlib.suppress(ProcessFailed):  # it died while it wrote: then nothing of it is taken for an answer
            assert len(await pool.run(last_words)) == 8 << 20
        assert await pool.run(int) == 0
