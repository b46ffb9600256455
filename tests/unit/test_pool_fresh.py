# ruff: noqa: S102
"""Workers run the code that this process would run: after a reload, at the very call; and state that lives in the worker stays there."""

import asyncio
import functools
import importlib
import itertools
import multiprocessing
import os
import sys
import textwrap
import threading
from multiprocessing import resource_tracker

import pytest

from nbprocs.errors import CommunicationError
from nbprocs.pool import PoolConfig, ProcessPool, PythonWorker
from nbprocs.pool.freshness import Freshness

ONE = PoolConfig(max_processes=1)
_numbers = itertools.count(1)


class Source:
    """A module on disk that can be edited and loaded again."""

    def __init__(self, folder, text):
        self.name = f"pool_fresh_{next(_numbers)}"
        self.file = folder / f"{self.name}.py"
        self.write(text)
        self.module = importlib.import_module(self.name)

    def write(self, text):
        self.file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()

    def notebook(self, code):
        """The names of a notebook that has imported it as m."""
        space = {"__name__": "__main__", "__builtins__": __builtins__, "m": self.module, "functools": functools}
        exec(textwrap.dedent(code), space)
        return space


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    made = []

    def make(text):
        made.append(Source(tmp_path, text))
        return made[-1]

    yield make
    for item in made:
        sys.modules.pop(item.name, None)


TEXT = """
def f(_=0): return {0}
class C:
    def g(self): return {0}
    @classmethod
    def h(cls): return {0}
K = {0}
"""
NOTEBOOK = """
def nb(_=0): return m.f()
calls = {
    "by name": lambda: m.f,
    "a notebook function": lambda: nb,
    "a lambda": lambda: lambda: m.K,
    "a partial": lambda: functools.partial(m.f, 1),
    "a bound method": lambda: m.C().g,
    "a classmethod": lambda: m.C.h,
}
"""
CALLS = ("by name", "a notebook function", "a lambda", "a partial", "a bound method", "a classmethod")


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("background", [False, True])
async def test_the_call_that_follows_a_reload_runs_the_new_code(source, what, background):
    mod = source(TEXT.format(1))
    space = mod.notebook(NOTEBOOK)
    async with ProcessPool(ONE, background=background) as pool:
        assert await pool.run(space["calls"][what]()) == 1
        mod.write(TEXT.format(22222))
        assert await pool.run(space["calls"][what]()) == 1  # edited, but not loaded again: as here
        importlib.reload(mod.module)
        assert await pool.run(space["calls"][what]()) == 22222
        assert [y async for y in pool.map(space["nb"], range(3))] == [22222] * 3


@pytest.mark.parametrize("what", CALLS)
async def test_a_module_that_is_patched_in_place_is_noticed(source, what):
    """As %autoreload 2 does it: no new module, no new __spec__."""
    mod = source(TEXT.format(1))
    space = mod.notebook(NOTEBOOK)
    async with ProcessPool(ONE) as pool:
        assert await pool.run(space["calls"][what]()) == 1
        mod.write(TEXT.format(22222))
        new = {}
        exec(compile(mod.file.read_text(), str(mod.file), "exec"), new)
        mod.module.f.__code__ = new["f"].__code__
        mod.module.C.g.__code__ = new["C"].g.__code__
        mod.module.C.h.__func__.__code__ = new["C"].h.__func__.__code__
        mod.module.K = 22222
        pool._codec._fresh._files_at = 0.0  # as if a millisecond had passed
        assert await pool.run(space["calls"][what]()) == 22222


async def test_a_map_sees_a_reload_of_what_its_function_uses(source):
    mod = source(TEXT.format(1))
    space = mod.notebook(NOTEBOOK)
    async with ProcessPool(ONE) as pool:
        await pool.run(space["nb"])
        mod.write(TEXT.format(22222))
        importlib.reload(mod.module)
        assert [y async for y in pool.map(space["nb"], range(3))] == [22222] * 3
        mod.write(TEXT.format(333333))
        importlib.reload(mod.module)
        assert await asyncio.to_thread(lambda: list(pool.executor().map(space["nb"], range(3)))) == [333333] * 3


async def test_a_reload_of_the_same_text_costs_no_worker(source):
    mod = source(TEXT.format(1))
    async with ProcessPool(ONE) as pool:
        pid = await pool.run(os.getpid)
        await pool.run(mod.module.f)
        importlib.reload(mod.module)
        assert await pool.run(mod.module.f) == 1
        assert await pool.run(os.getpid) == pid


async def test_a_function_from_before_a_reload_stays_what_it_is_here(source):
    mod = source("def f(): return 1")
    old = mod.module.f
    async with ProcessPool(ONE) as pool:
        assert await pool.run(old) == 1
        mod.write("def f(): return 22222")
        importlib.reload(mod.module)
        assert (old(), mod.module.f()) == (1, 22222)
        assert await pool.run(old) == 1
        assert await pool.run(mod.module.f) == 22222
        space = {"__name__": "__main__", "old": old}
        exec("def nb(): return old()", space)
        assert await pool.run(space["nb"]) == 1


def test_a_module_that_was_taken_out_and_imported_again(source):
    mod, fresh = source(TEXT.format(1)), Freshness()
    fresh.lost()
    del sys.modules[mod.name]
    assert not _look(fresh)
    importlib.import_module(mod.name)
    assert not _look(fresh)  # the same text
    del sys.modules[mod.name]
    mod.write(TEXT.format(22222))
    importlib.import_module(mod.name)
    assert _look(fresh)
    assert not _look(fresh)


def test_globals_that_change_by_themselves_are_no_reload(source):
    mod, fresh = source(TEXT.format(1)), Freshness()
    fresh.lost()
    mod.module.K = 5
    mod.module.more = [1]
    assert not _look(fresh)
    mod.file.unlink()
    assert not _look(fresh)


def _look(fresh):
    fresh._quick_at = fresh._files_at = fresh._full_at = 0.0
    return fresh.lost()


# -- by name where that works

STATE = """
import threading
lock = threading.Lock()
count = 0
class Model:
    loaded = None
    @classmethod
    def load(cls, value):
        global count
        with lock:
            count += 1
            cls.loaded = value
            return count
    @classmethod
    def answer(cls, x=1): return cls.loaded * x, count
    @staticmethod
    def still(): return Model.loaded
    def __call__(self): return Model.loaded
handlers = {"locked": lambda: (lock.acquire(timeout=1), lock.release(), count)[2]}
"""


async def test_classmethods_and_callables_use_the_workers_own_module(source):
    model = source(STATE).module.Model
    async with ProcessPool(ONE, worker=PythonWorker(initializer=model.load, initargs=(7,))) as pool:
        assert await pool.run(model.answer) == (7, 1)
        assert await pool.run(model.answer, 2) == (14, 1)
        assert await pool.run(functools.partial(model.answer, 3)) == (21, 1)
        assert await pool.run(model.still) == 7
        assert await pool.run(model()) == 7
        assert [await pool.run(model.load, i) for i in (8, 9)] == [2, 3]
        assert [y async for y in pool.map(model.answer, [1, 2])] == [(9, 3), (18, 3)]
        space = {"__name__": "__main__", "answer": model.answer}
        exec("def nb(x): return answer(x)", space)  # by value itself, but what it uses goes by name
        assert await pool.run(space["nb"], 1) == (9, 3)


async def test_a_lambda_of_a_module_with_a_lock(source):
    mod = source(STATE).module
    async with ProcessPool(ONE) as pool:
        assert await pool.run(mod.Model.load, 1) == 1
        assert await pool.run(mod.handlers["locked"]) == 1


async def test_a_cached_function_of_the_notebook():
    space = {"__name__": "__main__", "functools": functools}
    exec("@functools.lru_cache(maxsize=3)\ndef f(x): return x + 1\n@functools.lru_cache\ndef g(x): return f(x)", space)
    async with ProcessPool(ONE) as pool:
        assert await pool.run(space["f"], 1) == 2
        assert await pool.run(space["g"], 1) == 2


async def test_a_lock_is_still_refused():
    lock = threading.Lock()
    async with ProcessPool(ONE) as pool:
        with pytest.raises(CommunicationError, match="lock"):
            await pool.run(lambda: lock)


@pytest.fixture
def server():
    """A manager of multiprocessing; what it started is gone afterwards, also when the test fails."""
    tracker = resource_tracker._resource_tracker
    running = tracker._fd is not None  # somebody else's then
    manager = multiprocessing.get_context("spawn").Manager()
    try:
        yield manager
    finally:
        manager.shutdown()
        if not running:
            tracker._stop()


@pytest.mark.parametrize("late", [False, True])
async def test_proxies_of_a_multiprocessing_manager(server, late):
    async with ProcessPool(ONE) as pool:
        if late:
            await pool.run(int)
        shared = server.dict()
        await pool.run(shared.update, {"a": 1})
        await pool.run(lambda: shared.update(b=2))
        assert dict(shared) == {"a": 1, "b": 2}
        assert dict(await pool.run(lambda: shared)) == {"a": 1, "b": 2}
