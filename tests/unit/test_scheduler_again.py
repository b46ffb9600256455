"""Doing it again: keys that keep a cell from doubling its work, reruns with what was skipped behind them, schedulers that nobody has any more."""

import asyncio
import contextlib
import gc
import threading
import weakref
from pathlib import Path

import pytest

from nbprocs.errors import NameInUse, ProcessFailed, UnknownProcess
from nbprocs.scheduler import DependencyFailed, SchedulerConfig, StoreInUse, TaskCancelled, TaskScheduler, TaskState
from nbprocs.testing.conformance import FakeBackend
from tests.unit.test_scheduler import FAILED, World
from tests.unit.test_scheduler_store import crash


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


# --- keys ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
async def test_a_key_keeps_a_cell_that_is_run_again_from_doubling(path: Path, stored: bool) -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1), store=path if stored else None) as w:

        def cell() -> list[str]:
            first = w.sch.schedule("x", name="first", key="first")
            series = w.sch.schedule("x", name="series", cron="@daily", key="series")
            many = w.sch.schedule_many(
                [{"command": "x", "name": "a", "key": "a"}, {"command": "x", "name": "b", "key": "b", "after": [first]}, "x"]
            )
            return [h.id for h in (first, series, *many)]

        once = cell()
        await w.settle()
        await w.finish("first")
        again = cell()
        assert again[:-1] == once[:-1], "queued, running, ended or a series: it is the same task"
        assert again[-1] != once[-1]
        assert len(w.sch.handles()) == 5
        assert w.sch.get(once[0]).task.key == "first"
        if stored:
            w.sch._core.runner.finished.clear()
            w.sch._core.runner.keys.clear()
            assert cell()[:-1] == once[:-1], "also when only the store knows it"


async def test_a_key_holds_over_kernels(path: Path) -> None:
    w = World(store=path)
    once = [w.sch.schedule("x", name=n, key=f"é\udcff{n}").id for n in "ab"]
    await w.settle()
    await w.finish("a")
    crash(w.sch)
    async with World(store=path) as v:
        assert [v.sch.schedule("x", name=n, key=f"é\udcff{n}").id for n in "ab"] == once
        assert v.sch.schedule("x", key="c").id not in once
        await v.settle()
        assert "a" not in v.started


@pytest.mark.parametrize("way", ["one", "many"])
async def test_replace_ends_the_old_one_before_the_new_one_starts(way: str) -> None:
    async with World() as w:

        def put(name: str):
            task = {"name": name, "key": "k", "if_exists": "replace"}
            return w.sch.schedule("x", **task) if way == "one" else w.sch.schedule_many([{"command": "x", **task}])[0]

        old = put("old")
        await w.settle()
        assert w.started == ["old"]
        w.backend.cancel = lambda job_id, *, grace: None  # type: ignore[method-assign] - it takes its time to end
        new = put("new")
        await w.settle()
        assert w.started == ["old"], "never two at once"
        assert new.state is TaskState.BLOCKED
        job_id = next(iter(w.backend.running))
        FakeBackend.cancel(w.backend, job_id, grace=1)
        await w.settle()
        assert old.state is TaskState.CANCELLED
        assert w.started == ["old", "new"]
        await w.finish("new")
        third = put("third")
        await w.settle()
        assert w.started == ["old", "new", "third"], "what has ended needs no end"
        assert third.id != new.id


async def test_error_says_which_task_has_the_key() -> None:
    async with World() as w:
        first = w.sch.schedule("x", key="k")
        with pytest.raises(NameInUse, match=first.id):
            w.sch.schedule("x", key="k", if_exists="error")
        with pytest.raises(NameInUse):
            w.sch.schedule_many(["x", {"command": "x", "key": "k", "if_exists": "error"}])
        assert len(w.sch.handles()) == 1
        with pytest.raises(ValueError, match="give key="):
            w.sch.schedule("x", if_exists="keep")
        with pytest.raises(ValueError, match="one of 'keep'"):
            w.sch.schedule("x", key="k", if_exists="perhaps")
        with pytest.raises(ValueError, match="a key is for one task"):
            w.sch.schedule_many(["x", "y"], key="k")


async def test_two_threads_with_one_key_make_one_task(path: Path) -> None:
    async with World(store=path) as w:
        await w.settle()
        core, both = w.sch._core, threading.Barrier(2)
        look = core.find_key

        def slow(key: str):
            found = look(key)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.05)  # two that look at once would meet here
            return found

        core.find_key = slow  # type: ignore[method-assign]
        ids = await asyncio.gather(*(asyncio.to_thread(lambda: w.sch.schedule("x", key="k").id) for _ in range(2)))
        assert len(set(ids)) == 1
        await w.settle()
        assert len(w.sch.handles()) == 1


# --- again -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["the same", "another"])
async def test_what_failed_runs_again_with_what_was_skipped_behind_it(path: Path, kernel: str) -> None:
    w = World(store=path)
    good = w.sch.schedule("x", name="good")
    bad = w.sch.schedule("x", name="bad", after=[good], max_retries=1)
    behind = w.sch.schedule("x", name="behind", after=[bad])
    last = w.sch.schedule("x", name="last", after=[behind, good])
    other_bad = w.sch.schedule("x", name="other bad", group="g")
    both = w.sch.schedule("x", name="both", after=[bad, other_bad])
    cancelled = w.sch.schedule("x", name="cancelled", hold=True)
    cancelled.cancel()
    await w.settle()
    await w.finish("good")
    await w.finish("bad", FAILED)
    await w.advance(2)
    await w.finish("bad", FAILED)
    await w.finish("other bad", FAILED)
    assert [h.state.value for h in (good, bad, behind, last, both)] == ["succeeded", "failed", "skipped", "skipped", "skipped"]
    if kernel == "another":
        crash(w.sch)
        w = World(store=path)
    before = len(w.started)
    handles = w.sch.rerun(failed=True, group=None)
    assert [h.name for h in handles] == ["bad", "behind", "last", "other bad", "both"]
    again = w.sch.get("bad")
    assert again.id == bad.id
    await w.settle()
    assert sorted(w.started[before:]) == ["bad", "other bad"]
    await w.finish("bad", FAILED)
    assert again.state is TaskState.SCHEDULED, "it has its retries anew"
    await w.advance(2)
    await w.finish("bad")
    await w.finish("behind")
    await w.finish("last")
    await w.finish("other bad")
    await w.finish("both")
    assert await w.sch.get("last") == "last"
    assert [a.outcome for a in again.attempts] == ["failed", "failed", "failed", "succeeded"]
    assert [a.attempt for a in again.attempts] == [1, 2, 3, 4]
    assert w.sch.get("cancelled").state is TaskState.CANCELLED
    assert w.sch.status().failed == 0
    assert w.sch.rerun() == []
    [back] = w.sch.rerun(cancelled=True)
    assert back.name == "cancelled"
    crash(w.sch)
    async with World(store=path) as v:
        await v.settle()
        assert v.started == ["cancelled"], "all the others have ended, on disk too"


async def test_one_of_two_that_failed_leaves_skipped_what_needs_both() -> None:
    async with World() as w:
        a, b = (w.sch.schedule("x", name=n) for n in "ab")
        both = w.sch.schedule("x", name="both", after=[a, b])
        mine = w.sch.schedule("x", name="mine", after=[a])
        await w.settle()
        await w.finish("a", FAILED)
        await w.finish("b", FAILED)
        ticket = a._entry.ticket
        assert a.rerun() is a
        assert a._entry.ticket > ticket, "what a heap still holds of its former life is void"
        await w.settle()
        assert both.state is TaskState.SKIPPED
        assert mine.state is TaskState.BLOCKED
        waiting = asyncio.ensure_future(mine.wait())
        with pytest.raises(ValueError, match="has not ended"):
            a.rerun()
        await w.finish("a")
        await w.finish("mine")
        assert await waiting is TaskState.SUCCEEDED
        both.rerun()
        await w.settle()
        assert w.started[-1] == "both", "asked for by itself it no longer waits for what failed"


async def test_a_series_and_a_success_can_run_again() -> None:
    async with World() as w:
        done = w.sch.schedule("x", name="done")
        series = w.sch.schedule("x", name="series", every=10, repeat=2)
        await w.settle()
        await w.finish("done")
        await w.finish("series")
        await w.advance(10)
        await w.finish("series")
        assert series.done
        done.rerun()
        series.rerun()
        joined = asyncio.ensure_future(w.sch.join())
        await w.settle()
        await w.finish("done")
        await joined
        await w.finish("series")
        assert series.state is TaskState.SCHEDULED
        assert series.task.runs == 1


# --- who failed first ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["the same", "another"])
async def test_a_skipped_task_names_the_one_that_failed_first(path: Path, kernel: str) -> None:
    w = World(store=path)
    a = w.sch.schedule("x", name="a")
    b = w.sch.schedule("x", name="b", after=[a])
    c = w.sch.schedule("x", name="c", after=[b])
    await w.settle()
    await w.finish("a", FAILED)
    if kernel == "another":
        with pytest.raises(DependencyFailed) as caught:
            await c
        assert caught.value.__cause__ is FAILED
        crash(w.sch)
        w = World(store=path)
        a, b, c = map(w.sch.get, "abc")
    with pytest.raises(DependencyFailed, match="c was skipped: a failed; it waits for b"):
        await c
    with pytest.raises(DependencyFailed, match="b was skipped: a failed\n"):
        await b
    late = w.sch.schedule("x", name="late", after=[c])
    await w.settle()
    with pytest.raises(DependencyFailed, match="late was skipped: "):
        await late
    if kernel == "the same":
        assert "a failed" in str(late.error)
    cancelled = w.sch.schedule("x", name="stopped", hold=True)
    then = w.sch.schedule("x", name="then", after=[cancelled])
    cancelled.cancel()
    with pytest.raises(DependencyFailed, match="stopped was cancelled"):
        await then
    with pytest.raises(TaskCancelled):
        await cancelled
    await w.sch.aclose()


# --- schedulers that nobody has any more ---------------------------------------------------------------------------------------


async def collected(path: Path) -> None:
    """Until the file can be opened; what is closed for lack of a user is closed in a task of its own."""
    gc.collect()
    while TaskScheduler.__dict__ and Path(f"{path}-owner").exists():
        await asyncio.sleep(0)


async def test_a_dropped_scheduler_lets_go_of_its_file(path: Path) -> None:
    sch = TaskScheduler(store=path, backend=FakeBackend())
    handle = sch.schedule("x", "1")
    held = sch.schedule("x", hold=True)
    await handle
    del sch
    await collected(path)
    with pytest.raises(UnknownProcess):
        TaskScheduler.opened(path)
    async with TaskScheduler(store=path, backend=FakeBackend()) as again:
        assert again.get(held.id).state is TaskState.HELD
        assert handle.state is TaskState.SUCCEEDED


async def test_a_dropped_scheduler_ends_its_work_first_and_can_be_had_back(path: Path) -> None:
    backend = FakeBackend(gated=True)
    sch = TaskScheduler(SchedulerConfig(max_concurrent_tasks=1), store=path, backend=backend)
    first, second = sch.schedule("x", name="first"), sch.schedule("x", name="second")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del sch
    gc.collect()
    with pytest.raises(StoreInUse, match=r"TaskScheduler\.opened"):
        TaskScheduler(store=path, backend=FakeBackend())
    again = TaskScheduler.opened(path)
    assert again.status().running_tasks == 1
    del again
    gc.collect()
    for handle in (first, second):
        backend.finish(next(iter(backend.running)))
        await handle
        for _ in range(3):
            await asyncio.sleep(0)
    await collected(path)
    async with TaskScheduler(store=path, backend=FakeBackend()) as again:
        assert again.handles() == []


async def test_an_error_that_was_caught_pins_nothing(path: Path) -> None:
    async def use(store: Path | None) -> weakref.ref:
        sch = TaskScheduler(store=store, backend=FakeBackend())
        with pytest.raises(ProcessFailed):  # its traceback holds this frame, which holds the scheduler
            await sch.schedule("fails")
        await sch.aclose()
        return weakref.ref(sch._core)

    for store in (None, path):
        left = await use(store)
        gc.collect()
        assert left() is None


def test_a_dropped_scheduler_without_a_loop_lets_go_at_once(path: Path) -> None:
    sch = TaskScheduler(store=path, backend=FakeBackend())
    sch.schedule("x")
    del sch
    gc.collect()

    async def work() -> None:
        async with TaskScheduler(store=path, backend=FakeBackend()) as again:
            await again.join()
            assert again.status().succeeded == 1

    asyncio.run(work())

    async def use() -> None:
        sch = await TaskScheduler(store=path, backend=FakeBackend()).start()
        asyncio.get_running_loop().call_soon(sch.status)  # it lives a moment longer than its loop's last turn

    asyncio.run(use())
    gc.collect()
    crash(TaskScheduler(store=path, backend=FakeBackend()))


async def test_what_failed_fails_again_with_its_own_error() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="t")
        await w.settle()
        await w.finish("t", FAILED)
        handle.rerun()
        await w.settle()
        other = ProcessFailed("another way", exit_code=2)
        await w.finish("t", other)
        with pytest.raises(ProcessFailed, match="another way"):
            await handle
