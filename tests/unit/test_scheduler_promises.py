"""The order is the promise: what is on disk when a process starts, when somebody is told, when a slot frees. Each test fails when its line is gone."""

import asyncio
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from nbprocs.model import ProcessResult
from nbprocs.scheduler import Ended, SchedulerConfig, StoreError, TaskScheduler, TaskState
from nbprocs.testing.conformance import FakeBackend
from tests.unit.test_scheduler import FAILED, World


def on_disk(path: Path) -> dict[str, str]:
    """Name and state of every task, as a reader would find them if the kernel died now."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{folder}/copy.db{suffix}")
        with closing(sqlite3.connect(f"{folder}/copy.db")) as db:
            return dict(db.execute("SELECT name, state FROM tasks"))


class Looks(FakeBackend):
    """Looks at the disk whenever it is to start something."""

    def __init__(self, path: Path) -> None:
        super().__init__(gated=True)
        self.path = path
        self.seen: list[tuple[str, str]] = []

    def start(self, job, report) -> None:
        self.seen.append((job.name, on_disk(self.path)[job.name]))
        super().start(job, report)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def test_no_process_starts_before_it_is_on_disk_that_it_runs(path: Path) -> None:
    backend = Looks(path)
    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=2), store=path, backend=backend) as sch:
        handles = [sch.schedule("x", name=f"t{n}") for n in range(3)]
        handles += sch.schedule_many([{"command": "x", "name": "m"}])
        retried = sch.schedule("x", name="retried", max_retries=1, priority=3)
        for _ in range(6):
            await asyncio.sleep(0)
            for job_id in list(backend.running):
                backend.finish(job_id)
        for handle in (*handles, retried):
            await handle
        assert backend.seen == [(name, "running") for name, _ in backend.seen]
        assert {name for name, _ in backend.seen} == {"t0", "t1", "t2", "m", "retried"}


@pytest.mark.parametrize("end", ["success", "failure", "skipped", "cancelled", "cancelled while it ran"])
async def test_who_awaits_is_told_only_after_the_disk_knows(path: Path, end: str) -> None:
    async with World(store=path) as w:
        first = w.sch.schedule("x", name="first", hold=end == "cancelled")
        awaited = w.sch.schedule("x", name="t", after=[first]) if end == "skipped" else first
        await w.settle()
        states: list[str] = []

        async def waits() -> None:
            await awaited.wait()
            states.append(on_disk(path)[awaited.name])

        events: list[str] = []
        w.sch.subscribe(
            lambda event: (
                events.append(on_disk(path)[awaited.name]) if event.kind.value == "ended" and event.task_id == awaited.id else None
            )
        )
        waiting = asyncio.ensure_future(waits())
        await w.settle()
        if end.startswith("cancelled"):
            first.cancel()
            await w.settle()
        else:
            await w.finish("first", None if end == "success" else FAILED)
        await waiting
        expected = {"success": "succeeded", "failure": "failed", "skipped": "skipped"}.get(end, "cancelled")
        assert states == events == [expected]


async def test_nobody_is_told_while_the_disk_does_not_take_it(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1), store=path) as w:
        store = w.sch._core.store
        assert store is not None
        handle, nxt = w.sch.schedule("x", name="a"), w.sch.schedule("x", name="b")
        waiting = asyncio.ensure_future(handle.wait())
        await w.settle()
        store._db.execute(f"PRAGMA max_page_count = {store.rows('PRAGMA page_count')[0][0]}")
        with pytest.raises(StoreError, match="full"):
            for _ in range(10_000):
                w.sch.schedule("x", "y" * 2000, hold=True)
        count = len(w.sch.handles())
        loud = ProcessResult(process_id="1", name="a", command="a", exit_code=0, stdout_source=b"z" * 200_000)
        w.backend.finish(next(iter(w.backend.running)), Ended(result=loud))
        await w.settle()
        assert "could not be written" in (w.sch.status().halted or "")
        assert w.started == ["a"], "nothing starts that is not on disk"
        late = asyncio.ensure_future(handle.wait())
        await w.settle()
        assert not waiting.done(), "nobody is told what is not on disk"
        assert not late.done(), "nor is who asks only now"
        assert nxt.state is TaskState.QUEUED
        assert caplog.text.count("stands still") == 1
        await w.advance(3)
        assert not waiting.done()
        store._db.execute("PRAGMA max_page_count = 1000000")
        await w.advance(3)
        assert await waiting is await late is TaskState.SUCCEEDED
        assert w.started == ["a", "b"]
        assert w.sch.status().halted is None
        assert len(store.rows("SELECT key FROM tasks")) == count
        assert "goes on" in caplog.text


@pytest.mark.parametrize("freed_by", ["end", "failure", "retry", "cancel"])
async def test_a_full_groups_next_task_is_woken(freed_by: str) -> None:
    config = SchedulerConfig(max_concurrent_tasks=9, groups={"g": 1}, resources={"disk": 1}, retry_delay=100)
    for limits in ({"group": "g"}, {"resources": {"disk": 1}}):
        async with World(config) as w:
            first = w.sch.schedule("x", name="first", max_retries=int(freed_by == "retry"), **limits)
            w.sch.schedule("x", name="second", **limits)
            await w.settle()
            await w.settle()
            assert w.started == ["first"]
            if freed_by == "cancel":
                first.cancel()
                await w.settle()
            else:
                await w.finish("first", None if freed_by == "end" else FAILED)
            assert w.started == ["first", "second"], limits
            await w.finish("second")


async def test_what_is_retried_later_frees_its_slot_on_disk_too(path: Path) -> None:
    async with World(SchedulerConfig(retry_delay=100), store=path) as w:
        w.sch.schedule("x", name="t", max_retries=1)
        await w.settle()
        await w.finish("t", FAILED)
        await w.settle()
        assert on_disk(path) == {"t": "queued"}
