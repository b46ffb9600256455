"""Nothing that a task, a result, an exception, a repr or a callback does reaches the pool's own control flow."""

import asyncio
import concurrent.futures as cf
import dataclasses
import logging
import re
import sys
import threading

import pytest

from nbprocs.errors import CommunicationError, ProcessError
from nbprocs.policy import RetryPolicy
from nbprocs.pool import CommandWorker, PoolConfig, PoolTaskState, ProcessPool, RemoteError, RemoteTraceback

ONE = PoolConfig(max_processes=1)


class Mute(Exception):
    """Its text is lost on the way, as an attribute that __reduce__ forgets is."""

    def __reduce__(self):
        return Mute, self.args

    def __str__(self):
        return self.detail


class Leaving(Exception):
    def __str__(self):  # noqa: PLE0307
        sys.exit(3)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class FrozenWithState(Exception):
    code: int = 1


class Unnoted(Exception):
    def add_note(self, note):
        raise RuntimeError(note)


class Slotted(str):
    __slots__ = ()


class Texty(Exception):
    def __str__(self):
        return Slotted("a text of its own kind")


class Surrogate(Exception):
    def __str__(self):
        return "\udcff"


class Cancelling(Exception, asyncio.CancelledError):
    pass


class Falsy(Exception):
    def __bool__(self):
        raise RuntimeError("neither")


class Secretive(Exception):
    """Answers nothing, not even to its own interpreter."""

    def __getattribute__(self, name):
        if name.startswith("__reduce") or name == "__class__":
            return object.__getattribute__(self, name)
        raise RuntimeError(name)


class Rootless(Exception):
    @property
    def __traceback__(self):
        raise RuntimeError("no traceback")


class Classless(Exception):
    @property
    def __class__(self):
        raise RuntimeError("no class")


class Nameless(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")


class OfANamelessKind(Exception, metaclass=Nameless):
    def __str__(self):
        raise RuntimeError("no text")


class Own(ProcessError):
    def __setattr__(self, name, value):
        if name == "attempts" and name in vars(self):
            raise AttributeError(name)
        super().__setattr__(name, value)


class ExitsWhenRebuilt:
    def __reduce__(self):
        return sys.exit, (4,)


class ErrorExitsWhenRebuilt(Exception):
    def __reduce__(self):
        return sys.exit, (4,)


def mute():
    error = Mute("x")
    error.detail = "there"
    raise error


ODD = {
    "its text is lost on the way": (mute, Mute),
    "its text calls sys.exit": (lambda: (_ for _ in ()).throw(Leaving()), Leaving),
    "frozen": (lambda: (_ for _ in ()).throw(Frozen()), Frozen),
    "frozen, so that it can't be rebuilt": (lambda: (_ for _ in ()).throw(FrozenWithState()), RemoteError),
    "refuses notes": (lambda: (_ for _ in ()).throw(Unnoted()), Unnoted),
    "its text is a subclass": (lambda: (_ for _ in ()).throw(Texty()), Texty),
    "its text is a lone surrogate": (lambda: (_ for _ in ()).throw(Surrogate()), Surrogate),
    "it would cancel who awaits it": (lambda: (_ for _ in ()).throw(Cancelling()), RemoteError),
    "one of ours that refuses attributes": (lambda: (_ for _ in ()).throw(Own("no")), Own),
    "it exits when it is rebuilt": (lambda: (_ for _ in ()).throw(ErrorExitsWhenRebuilt()), RemoteError),
    "its truth value raises": (lambda: (_ for _ in ()).throw(Falsy()), Falsy),
    "all its attributes raise": (lambda: (_ for _ in ()).throw(Secretive()), Secretive),
    "its traceback raises": (lambda: (_ for _ in ()).throw(Rootless()), Rootless),
    "its class raises": (lambda: (_ for _ in ()).throw(Classless()), Classless),
    "the name of its class raises": (lambda: (_ for _ in ()).throw(OfANamelessKind()), RemoteError),
    "a result that exits when it is rebuilt": (ExitsWhenRebuilt, CommunicationError),
}


@pytest.mark.parametrize("retries", [None, 1])
async def test_an_odd_exception_fails_its_task_and_no_other(retries):
    """All of them by one worker: whichever harmed it would be seen by the next."""
    async with ProcessPool(PoolConfig(max_processes=1, retry_delay=0.0)) as pool:
        pid = await pool.run(_pid)
        for number, (what, (function, expected)) in enumerate(ODD.items(), 1):
            handles = [pool.submit(abs, -i) for i in range(20)]
            odd = pool.submit(function, retries=retries)
            handles += [pool.submit(abs, -i) for i in range(20, 40)]
            async with asyncio.timeout(20):
                assert await asyncio.gather(*handles) == list(range(40)), what
                (error,) = await asyncio.gather(odd, return_exceptions=True)
            assert type(error) is expected, what
            assert odd.state is PoolTaskState.FAILED, what
            assert await pool.run(_pid) == pid, what
            assert len(pool.frame()) == min(42 * number + 1, PoolConfig().history), what  # also a text with a surrogate is shown
            if expected is not CommunicationError:
                assert type(vars(BaseException)["__cause__"].__get__(error)) is RemoteTraceback, what


class Unshown:
    """A result that nobody may look at."""

    def __repr__(self):
        raise SystemExit(3)

    __bool__ = __len__ = __repr__

    def __getattr__(self, name):
        raise SystemExit(3) if not name.startswith("__") else AttributeError(name)


async def test_an_odd_result_and_argument_arrive_and_are_not_looked_at():
    async with ProcessPool(ONE) as pool:
        handle = pool.submit(lambda given: given, Unshown())
        assert type(await handle) is Unshown
        assert repr(handle).endswith("completed>")
        async for found in pool.map(lambda given: given, [Unshown(), Unshown()]):
            assert type(found) is Unshown
        assert type(await asyncio.wrap_future(pool.executor().submit(Unshown))) is Unshown
        assert len(pool.frame()) == 4
        assert await pool.run(int) == 0


def _pid():
    import os

    return os.getpid()


async def test_a_retry_policy_whose_condition_exits_gives_the_task_up(caplog):
    policy = RetryPolicy(max_retries=3, initial_delay=0.001, when=lambda error: sys.exit(5))
    async with ProcessPool(ONE) as pool:
        with pytest.raises(ValueError, match="invalid literal"):
            await pool.run(int, "x", retries=policy)
        assert await pool.run(int, "5") == 5
    assert "the retry policy of int failed" in caplog.text


def test_a_callback_that_exits_leaves_the_background_loop_running(caplog):
    pool = ProcessPool(ONE, background=True)
    with pool.executor() as executor, caplog.at_level(logging.ERROR):
        seen = []
        future = executor.submit(int, "1")
        future.add_done_callback(lambda _: sys.exit(6))
        future.add_done_callback(lambda _: seen.append(1))
        assert executor.submit(int, "2").result(20) == 2
        assert seen == [1]
        handle = pool.submit(int, "3")  # of no loop but the pool's own
        handle.add_done_callback(lambda _: sys.exit(7))
        assert executor.submit(int, "4").result(20) == 4
    asyncio.run(pool.aclose())
    assert "a done callback failed" in caplog.text


async def test_a_function_with_a_name_of_its_own_kind():
    class Named:
        def __getattr__(self, name):
            if name == "__qualname__":
                raise RuntimeError(name)
            raise AttributeError(name)

        def __call__(self):
            return 1

    async with ProcessPool(ONE) as pool:
        handle = pool.submit(Named())
        assert await handle == 1
        assert "Named" in pool.frame()["task"].iloc[0]


async def test_an_argument_whose_reducer_can_not_be_shown():
    class Bad:
        def __reduce__(self):
            raise Leaving

    async with ProcessPool(ONE) as pool:
        with pytest.raises(CommunicationError, match="its text can't be shown"):
            await pool.run(len, Bad())


async def test_the_end_of_an_answer_that_exits():
    def end(lines):
        sys.exit(8)

    async with ProcessPool(ONE, worker=CommandWorker("cat", end=end)) as pool:
        with pytest.raises(CommunicationError, match="SystemExit: 8"):
            await pool.run("x")


async def test_a_submit_interrupted_while_pickling_leaves_nothing_waiting():
    class Interrupting:
        def __reduce__(self):
            raise KeyboardInterrupt

    async with ProcessPool(ONE) as pool:
        executor = pool.executor()
        with pytest.raises(KeyboardInterrupt):
            executor.submit(len, Interrupting())
        with pytest.raises(KeyboardInterrupt):
            pool.submit(len, Interrupting())
        async with asyncio.timeout(20):
            await asyncio.to_thread(executor.shutdown)


async def test_waiting_for_several_on_the_pools_own_thread_is_an_error_and_no_hang():
    async with ProcessPool(ONE) as pool:
        executor = pool.executor()
        futures = [executor.submit(abs, -i) for i in range(3)]
        for hangs in (cf.wait, lambda fs: list(cf.as_completed(fs)), lambda fs: list(cf.as_completed(fs, timeout=5))):
            with pytest.raises(CommunicationError, match=re.escape("background=True")):
                hangs(futures)
        done, waiting = cf.wait(futures, timeout=0)  # a look is no wait
        assert (len(done), len(waiting)) == (0, 3)
        assert {future.result() for future in await asyncio.to_thread(lambda: list(cf.as_completed(futures, timeout=20)))} == {0, 1, 2}
        assert [future.result() for future in cf.as_completed(futures)]  # all done: nothing to wait for
        assert threading.active_count()


async def test_max_workers_is_what_the_executors_of_the_standard_library_have():
    async with ProcessPool(PoolConfig(max_processes=3)) as pool:
        assert pool.executor()._max_workers == 3


async def test_a_worker_that_a_call_made_unusable_ends_though_a_thread_of_the_call_goes_on():
    def cut_off():
        import os
        import threading

        threading.Thread(target=threading.Event().wait).start()
        os.closerange(3, 100)  # as programs that make daemons of themselves do

    async with ProcessPool(ONE) as pool, asyncio.timeout(30):
        with pytest.raises(ProcessError, match="ended its worker with exit status 1"):
            await pool.run(cut_off)
        assert await pool.run(abs, -1) == 1
