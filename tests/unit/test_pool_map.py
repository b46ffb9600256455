# ruff: noqa: S102
"""pool.map: order, chunks, back-pressure, errors in their turn."""

import asyncio
import itertools
import os
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.errors import CommunicationError, ExecutionTimeout, ProcessFailed
from nbprocs.pool import PoolConfig, ProcessPool
from nbprocs.pool.mapping import Sizer, chunks_of, length_of


@pytest.fixture
async def pool():
    async with ProcessPool(PoolConfig(min_processes=2, max_processes=2)) as made:
        yield made


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [None, 1, 7, 10_000])
async def test_every_item_once(pool, ordered, chunksize):
    found = [y async for y in pool.map(abs, range(-2000, 0), ordered=ordered, chunksize=chunksize)]
    wanted = list(range(2000, 0, -1))
    assert found == wanted if ordered else sorted(found, reverse=True) == wanted


async def test_several_iterables_until_the_shortest_ends(pool):
    assert [y async for y in pool.map(pow, [2, 3, 4], itertools.count(1))] == [2, 9, 64]


async def test_nothing(pool):
    assert [y async for y in pool.map(abs, [])] == []


async def test_an_endless_iterable_is_taken_only_as_far_as_needed(pool):
    taken = 0

    def endless():
        nonlocal taken
        for i in itertools.count():
            taken += 1
            yield i

    async with aclosing(pool.map(abs, endless(), chunksize=10)) as results:
        async for y in results:
            if y == 100:
                break
    assert taken <= 100 + 10 * 8
    assert await pool.run(int) == 0


async def test_an_error_comes_when_its_turn_comes(pool):
    found = []
    with pytest.raises(ZeroDivisionError):
        async for y in pool.map(lambda x: 10 // x, [5, 2, 1, 0, 1], chunksize=5):
            found.append(y)
    assert found == [2, 5, 10]


async def test_a_crash_fails_its_chunk_and_names_it(pool):
    with pytest.raises(ProcessFailed, match=r"\[0:3\]"):
        async for _ in pool.map(lambda x: os._exit(1), range(3), chunksize=3):
            pass


async def test_a_hanging_item_runs_out_of_time(pool):
    with pytest.raises(ExecutionTimeout):
        async for _ in pool.map(lambda x: __import__("time").sleep(x), [0, 60], timeout=0.3):
            pass


async def test_items_are_tried_again(pool, tmp_path):
    def once_more(i):
        mark = tmp_path / str(i)
        if i % 2 and not mark.exists():
            mark.touch()
            raise OSError(i)
        return i

    assert [y async for y in pool.map(once_more, range(6), retries=2)] == list(range(6))


async def test_items_that_do_not_pickle(pool):
    import threading

    with pytest.raises(CommunicationError, match="can't be sent"):
        async for _ in pool.map(id, [threading.Lock()]):
            pass


async def test_a_broken_iterable_raises_its_own_error(pool):
    def broken():
        yield 1
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        async for _ in pool.map(abs, broken()):
            pass


async def test_leaving_early_cancels_what_is_under_way(pool):
    async with aclosing(pool.map(lambda x: __import__("time").sleep(x) or x, [0, 600, 600, 600], chunksize=1)) as results:
        async for y in results:
            assert y == 0
            break
    assert await asyncio.gather(*(pool.submit(int) for _ in range(4))) == [0] * 4


async def test_the_function_is_taken_as_it_is_at_the_start(pool):
    space = {"__name__": "__main__", "K": 1}
    exec("def f(x): return K", space)
    found = []
    async for y in pool.map(space["f"], range(100), chunksize=1):
        space["K"] = 2
        found.append(y)
    assert found == [1] * 100


@pytest.mark.parametrize("progress", [True, "squares"])
async def test_a_progress_bar_counts_to_the_end(pool, progress, capsys, monkeypatch):
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # else tqdm keeps a thread of its own for good
    assert len([y async for y in pool.map(abs, range(50), progress=progress)]) == 50
    shown = capsys.readouterr().err
    assert "50/50" in shown
    assert ("squares" if progress == "squares" else "abs") in shown


async def test_map_wants_a_function_and_items(pool):
    with pytest.raises(TypeError):
        pool.map([1, 2])
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(abs, [1], chunksize=-1)


async def test_two_maps_and_tasks_at_once(pool):
    async def collect(sign):
        return [y async for y in pool.map(lambda x: x * sign, range(3000))]

    up, down, single = await asyncio.gather(collect(1), collect(-1), pool.run(abs, -5))
    assert up == list(range(3000))
    assert down == [-i for i in range(3000)]
    assert single == 5


# -- pure


@given(st.lists(st.integers(), max_size=300), st.lists(st.integers(1, 50), min_size=1))
def test_chunks_keep_all_items_in_order(items, sizes):
    class Fixed:
        turn = 0

        @property
        def size(self):
            self.turn += 1
            return sizes[self.turn % len(sizes)]

    chunks = list(chunks_of(iter(items), Fixed()))
    assert [item for _, chunk in chunks for item in chunk] == items
    assert [start for start, _ in chunks] == [sum(len(c) for _, c in chunks[:i]) for i in range(len(chunks))]


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 10)), max_size=50), st.none() | st.integers(0, 10**7), st.integers(1, 64))
def test_sizes_stay_in_bounds(notes, total, workers):
    sizer = Sizer(None, total=total, workers=workers)
    for items, seconds in notes:
        before = sizer.size
        sizer.note(items, seconds)
        assert 1 <= sizer.size <= max(1, before * 8)
        assert total is None or sizer.size <= max(1, -(-total // (4 * workers)))


def test_long_items_travel_alone():
    sizer = Sizer(None, total=None, workers=2)
    sizer.note(1, 1.0)
    assert sizer.size == 1


@pytest.mark.parametrize(
    ("items", "length"),
    [(([1, 2], [1]), 1), ((range(5),), 5), ((iter([1, 2]),), 2), ((itertools.count(),), None), (((i for i in []),), None)],
)
def test_lengths_that_are_known(items, length):
    assert length_of(items) == length
