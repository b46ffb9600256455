"""The durable queue: what is on disk, what the next scheduler makes of it, which files are refused and left alone."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nbprocs.errors import Closed, ProcessFailed, StartupFailed, UnknownProcess
from nbprocs.scheduler import (
    DependencyFailed,
    Halt,
    Interrupted,
    SchedulerConfig,
    StoreCorrupt,
    StoreError,
    StoreInUse,
    StoreTooNew,
    TaskCancelled,
    TaskInterrupted,
    TaskScheduler,
    TaskState,
)
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.writer import read_result
from nbprocs.testing.conformance import FakeBackend
from tests.unit.test_scheduler import FAILED, Clock, World


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def crash(sch: TaskScheduler) -> None:
    """Let go of the store as the death of the kernel does: nothing more is written."""
    sch._core.runner.closed = True
    sch._core.runner._alarm.off()
    assert sch._core.store is not None
    sch._core.store.close()


def rows(path: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


async def test_attempts_of_a_former_kernel_know_their_task(path: Path) -> None:
    w = World(store=path)
    known = w.sch.schedule("x", name="a").id
    await w.settle()
    await w.finish("a")
    crash(w.sch)
    async with World(store=path) as v:
        [attempt] = v.sch.get("a").attempts
        assert (attempt.task_id, attempt.name, attempt.outcome) == (known, "a", "succeeded")


@pytest.mark.parametrize(
    ("outcome", "reason", "status"),
    [
        ("succeeded", None, "completed"),
        ("failed", None, "failed"),
        ("timeout", "timeout", "terminated"),
        ("cancelled", "odd", "terminated"),
    ],
)
def test_a_stored_result_says_how_it_ended(outcome: str, reason: str | None, status: str) -> None:
    known = {"name": "a", "command": "x", "exit_code": None, "signal": None, "peak_rss": 5, "cpu_time": 0.5, "execution_time": None}
    attempt: Any = SimpleNamespace(task_id="q.1", outcome=outcome, reason=reason, **known)
    result = read_result(attempt, b"out", None, None)
    assert (result.status.value, result.reason, result.process_id) == (status, "timeout" if reason == "timeout" else None, "q.1")
    assert (result.stdout, result.stderr, result.dropped_bytes, result.execution_time, result.peak_rss) == (b"out", b"", 0, 0.0, 5)


async def test_what_schedule_returned_is_on_disk(path: Path, tmp_path: Path) -> None:
    async with World(store=path) as w:
        w.sch.pause()
        w.sch.schedule("x", "1", priority=3)
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{tmp_path}/copy.db{suffix}")
        assert rows(tmp_path / "copy.db", "SELECT argv, priority, state FROM tasks") == [('["x","1"]', 3, "queued")]


async def test_everything_is_seen_again_exactly_once(path: Path) -> None:
    w = World(SchedulerConfig(max_concurrent_tasks=1), store=path)
    done = w.sch.schedule("x", name="done")
    failed = w.sch.schedule("x", name="failed")
    skipped = w.sch.schedule("x", name="skipped", after=[failed])
    running = w.sch.schedule("x", name="running", group="g")
    queued = w.sch.schedule("x", "é\udcff", name="queued", priority=0, max_retries=2, working_dir="/tmp", env_vars={"A": "1"})
    held = w.sch.schedule("x", name="held", hold=True)
    blocked = w.sch.schedule("x", name="blocked", after=[running, queued])
    delayed = w.sch.schedule("x", name="delayed", delay=100)
    cancelled = w.sch.schedule("x", name="cancelled")
    cancelled.cancel()
    await w.settle()
    await w.finish("done")
    await w.finish("failed", FAILED)
    ids = {h.name: h.id for h in (done, failed, skipped, running, queued, held, blocked, delayed, cancelled)}
    assert running.state is TaskState.RUNNING
    crash(w.sch)

    async with World(SchedulerConfig(max_concurrent_tasks=1), store=path) as v:
        v.clock.wall = w.clock.wall + 40
        assert {h.name: h.id for h in v.sch.handles()} == {n: ids[n] for n in ("running", "queued", "held", "blocked", "delayed")}
        assert await v.sch.get(ids["done"]) is not None
        for name, error in (("failed", ProcessFailed), ("skipped", DependencyFailed), ("cancelled", TaskCancelled)):
            with pytest.raises(error):
                await v.sch.get(name)
        await v.settle()
        assert v.started == ["running"], "it was interrupted, and is run again"
        assert v.sch.get("queued").task.args == ("é\udcff",)
        assert v.sch.get("queued").task.max_retries == 2
        assert v.sch.get("held").state is TaskState.HELD
        assert v.sch.get("blocked").state is TaskState.BLOCKED
        assert v.sch.get("delayed").state is TaskState.SCHEDULED
        await v.finish("running")
        assert [a.outcome for a in v.sch.get("running").attempts] == ["interrupted", "succeeded"]
        await v.finish("queued")
        await v.finish("blocked")
        await v.advance(101)
        await v.finish("delayed")
        new = v.sch.schedule("x", name="new")
        assert int(new.id.split("-")[1]) == 10
        frame = v.sch.frame()
        assert sorted(frame["name"]) == sorted(["done", "failed", "running", "running", "queued", "blocked", "delayed"])


async def test_interrupted_tasks_can_be_marked(path: Path) -> None:
    w = World(SchedulerConfig(on_interrupted=Interrupted.MARK), store=path)
    marked = w.sch.schedule("x", name="marked")
    after_any = w.sch.schedule("x", name="cleanup", after=[(marked, "failure")])
    again = w.sch.schedule("x", name="again", on_interrupted="retry")
    await w.settle()
    assert after_any.state is TaskState.BLOCKED
    assert again.state is TaskState.RUNNING
    crash(w.sch)
    async with World(SchedulerConfig(on_interrupted=Interrupted.MARK), store=path) as v:
        await v.settle()
        assert v.started == ["cleanup", "again"]
        with pytest.raises(TaskInterrupted):
            await v.sch.get("marked")
        assert v.sch.status().interrupted == 1


async def test_a_task_that_takes_the_kernel_with_it_is_given_up(path: Path) -> None:
    for times in range(3):
        w = World(store=path)
        if not times:
            w.sch.schedule("x", name="bomb")
        await w.settle()
        assert w.started == ["bomb"]
        crash(w.sch)
    async with World(store=path) as v:
        await v.settle()
        assert v.started == []
        assert v.sch.get("bomb").state is TaskState.INTERRUPTED
        assert [a.outcome for a in v.sch.get("bomb").attempts] == ["interrupted"] * 3


async def test_retries_and_their_delay_are_kept(path: Path) -> None:
    w = World(SchedulerConfig(retry_delay=50), store=path)
    w.sch.schedule("x", name="t", max_retries=1)
    await w.settle()
    await w.finish("t", FAILED)
    crash(w.sch)
    async with World(SchedulerConfig(retry_delay=50), store=path) as v:
        await v.settle()
        assert v.started == []
        await v.advance(51)
        assert v.started == ["t"]
        await v.finish("t", FAILED)
        with pytest.raises(ProcessFailed):
            await v.sch.get("t")
        assert [a.attempt for a in v.sch.get("t").attempts] == [1, 2]


@pytest.mark.parametrize(("misfire", "expected"), [("once", 1), ("skip", 0), ("all", 3)])
async def test_series_go_on_by_their_misfire_rule(path: Path, misfire: str, expected: int) -> None:
    w = World(store=path)
    w.sch.schedule("x", name="s", cron="0 * * * *", timezone="UTC", misfire=misfire)
    await w.settle()
    crash(w.sch)
    clock = Clock()
    clock.wall += 3 * 3600
    backend = FakeBackend()
    async with TaskScheduler(store=path, backend=backend, clock=clock) as v:
        v._core.runner.want()
        for _ in range(30):
            await w.settle()
        assert len(backend.started) == expected
        assert v.get("s").state is TaskState.SCHEDULED


async def test_changes_are_kept(path: Path) -> None:
    w = World(store=path)
    w.sch.pause()
    a, b, c = (w.sch.schedule("x", name=n) for n in "abc")
    a.hold()
    b.reprioritise(7)
    c.depend(b)
    a.hold()
    a.release()
    await w.settle()
    crash(w.sch)
    async with World(SchedulerConfig(max_concurrent_tasks=1), store=path) as v:
        assert v.sch.get("b").task.priority == 7
        assert v.sch.get("c").state is TaskState.BLOCKED
        v.sch.resume()
        await v.settle()
        assert v.started == ["b"]


async def test_secrets_are_not_written_and_are_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    w = World(store=path)
    w.sch.pause()
    w.sch.schedule("x", name="t", env_vars={"API_TOKEN": "hunter2-secret", "MODE": "fast"})
    await w.settle()
    crash(w.sch)
    assert b"hunter2-secret" not in path.read_bytes()
    w = World(store=path)
    w.sch.resume()
    handle = w.sch.get("t")
    await w.settle()
    assert handle.state is TaskState.HELD
    assert "API_TOKEN" in handle.why()
    assert "API_TOKEN" in caplog.text
    with pytest.raises(ValueError, match="API_TOKEN"):
        handle.release()
    monkeypatch.setenv("API_TOKEN", "new")
    handle.release()
    await w.settle()
    assert w.backend.started[0].env_vars["API_TOKEN"] == "new"
    crash(w.sch)
    async with World(store=path) as v:
        await v.settle()
        assert v.backend.started[0].env_vars["API_TOKEN"] == "new"
        assert v.backend.started[0].env_vars["MODE"] == "fast"
    assert b"hunter2-secret" not in b"".join(p.read_bytes() for p in path.parent.iterdir())


async def test_closing_keeps_what_ran(path: Path) -> None:
    w = World(store=path)
    handle = w.sch.schedule("x", name="t")
    await w.settle()
    await w.sch.aclose()
    with pytest.raises(Closed, match="open its store again"):
        await handle
    async with World(store=path) as v:
        await v.settle()
        assert v.started == ["t"]
        await v.finish("t")
        assert [a.outcome for a in v.sch.get("t").attempts] == ["interrupted", "succeeded"]
        assert v.sch.get("t").state is TaskState.SUCCEEDED


async def test_results_of_former_kernels(path: Path) -> None:
    config = SchedulerConfig(store_output=10)
    code = "import sys; print('x' * 100 + 'the end'); print('oops', file=sys.stderr); sys.exit(3)"
    async with TaskScheduler(config, store=path) as sch:
        await sch.schedule(sys.executable, "-I", "-c", code, name="t").wait()
        await sch.schedule("/no/such/program", name="missing").wait()
    async with TaskScheduler(config, store=path) as sch:
        handle = sch.get("t")
        assert handle.result.stdout == b"x" * 2 + b"the end\n"
        assert handle.result.dropped_bytes == 98
        assert handle.result.exit_code == 3
        assert "oops" in handle.tail()
        with pytest.raises(ProcessFailed, match="exit status 3") as caught:
            await handle
        assert "oops" in str(caught.value)
        with pytest.raises(StartupFailed, match="/no/such/program"):
            await sch.get("missing")
        with pytest.raises(UnknownProcess):
            sch.get(handle.id + "99")


async def test_a_store_in_use_is_refused(path: Path) -> None:
    async with World(store=path) as w:
        w.sch.schedule("x", delay=9)
        with pytest.raises(StoreInUse, match="already open in this kernel"):
            TaskScheduler(store=path)
        link = path.with_name("link.db")
        link.symlink_to(path)
        with pytest.raises(StoreInUse):
            TaskScheduler(store=link)
        code = f"import nbprocs.scheduler as s\ntry: s.TaskScheduler(store={str(path)!r})\nexcept s.StoreInUse as e: print(e)"
        import asyncio

        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        assert f"in use by process {os.getpid()}" in out.decode()
        assert w.sch.schedule("x", delay=9).state is TaskState.SCHEDULED, "the lock is still ours"
    async with World(store=path) as w:
        assert len(w.sch.handles()) == 2
    assert not Path(f"{path}-owner").exists()


def _unlike(path: Path, kind: str) -> None:
    async def fill() -> None:
        async with World(store=path) as w:
            w.sch.schedule_many([("x" * 50, str(n)) for n in range(2000)], delay=9)

    import asyncio

    if kind == "text":
        path.write_text("this is not a database, but a letter\n" * 50)
    elif kind == "other database":
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE tasks (a)")
            db.commit()
    else:
        asyncio.run(fill())
        data = bytearray(path.read_bytes())
        if kind == "truncated":
            del data[len(data) // 2 :]
        elif kind == "damaged":
            data[8192:16384] = os.urandom(8192)
        elif kind == "newer":
            data[60:64] = (99).to_bytes(4, "big")
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["text", "other database", "truncated", "damaged", "newer"])
def test_a_corrupt_or_newer_store_is_refused_and_left_alone(path: Path, kind: str) -> None:
    _unlike(path, kind)
    before = path.read_bytes()
    with pytest.raises(StoreTooNew if kind == "newer" else StoreCorrupt) as caught:
        TaskScheduler(store=path)
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)
    with pytest.raises(StoreError):
        TaskScheduler(store=path)
    assert path.read_bytes() == before


def test_an_empty_file_is_a_new_queue(path: Path) -> None:
    path.touch()
    sch = TaskScheduler(store=path, backend=FakeBackend())
    crash(sch)
    assert path.stat().st_size > 0
    assert not [p for p in path.parent.iterdir() if p.name.endswith(".new")]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="could not create"):
        TaskScheduler(store=tmp_path / "no" / "queue.db")


async def test_a_function_can_not_be_stored(path: Path) -> None:
    async with World(store=path) as w:
        with pytest.raises(TypeError, match="can't be stored"):
            w.sch.schedule(print)


async def test_forget(path: Path) -> None:
    async with World(store=path, gated=False) as w:
        handles = [w.sch.schedule("x") for _ in range(5)]
        await w.sch.join()
        w.sch._core.runner.finished.clear()
        assert w.sch.forget(older_than=-2e9) == 4, "the last one tells which number comes next"
        with pytest.raises(UnknownProcess):
            w.sch.get(handles[0].id)
        assert (await w.sch.get(handles[4].id)) is not None


async def test_a_dependency_ended_in_a_former_kernel(path: Path) -> None:
    async with World(store=path) as w:
        bad = w.sch.schedule("x", name="bad")
        await w.settle()
        await w.finish("bad", FAILED)
        bad_id = bad.id
    w = World(store=path)
    w.sch.pause()
    assert w.sch.schedule("x", name="skip", after=[bad_id]).state is TaskState.SKIPPED
    crash(w.sch)  # before the pump has written that it was skipped
    async with World(store=path) as v:
        await v.settle()
        assert v.started == []
        with pytest.raises(DependencyFailed):
            await v.sch.get("skip")


async def test_many_durable_in_one_transaction(path: Path) -> None:
    async with World(store=path, gated=False) as w:
        with pytest.raises(ValueError, match="empty"):
            w.sch.schedule_many([("x", "1"), ("", "2")])
        assert w.sch._core.store is not None
        assert w.sch._core.store.rows("SELECT count(*) FROM tasks") == [(0,)]
        handles = w.sch.schedule_many([("x", str(n)) for n in range(100)])
        assert w.sch._core.store.rows("SELECT count(*) FROM tasks") == [(100,)]
        assert [await h for h in handles] == [(str(n),) for n in range(100)]


async def test_a_full_disk_does_not_lift_a_halt(path: Path) -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=1, halt=Halt(failures=1)), store=path) as w:
        w.sch.schedule("x", name="a")
        w.sch.schedule("x", name="b")
        await w.settle()
        await w.finish("a", FAILED)
        w.sch._core.runner._store_error = "the disk is full"
        assert w.sch.status().halted == "the disk is full"
        await w.advance(3)
        assert w.started == ["a"]
        assert "1 of 1" in (w.sch.status().halted or "")


async def test_a_close_that_was_interrupted_goes_on_and_lets_go_of_the_queue(path: Path) -> None:
    """An interrupted cell: whoever closes it again waits for the same end, and the next scheduler gets the file."""
    sch = TaskScheduler(store=path)
    task = sch.schedule("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
    assert await anext(aiter(task.lines())) == "up"
    closing = asyncio.ensure_future(sch.aclose())
    while not sch.closed:
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    await sch.aclose()
    async with TaskScheduler(store=path) as again:
        assert len(again.tasks()) + len(again.ended()) == 1


def test_what_a_full_disk_said_is_what_is_raised(path: Path) -> None:
    """SQLite has rolled back by itself then, and a second time is an error of its own."""
    store = Store(path, prefix="p-")
    try:
        store._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StoreError, match="full"), store._transaction() as db:
            for number in range(200):
                db.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (f"name-{number}", "x" * 5000))
    finally:
        store.close()


@pytest.mark.parametrize("whole", [True, False], ids=["with its companions", "alone"])
async def test_a_queue_whose_file_is_removed_is_written_again(path: Path, caplog: Any, monkeypatch: Any, *, whole: bool) -> None:
    monkeypatch.setattr("nbprocs.scheduler.store._LOOK", 0.0)
    async with TaskScheduler(store=path) as sch:
        done = sch.schedule("echo", "one", name="done")
        await done
        waits = sch.schedule("true", name="waits", delay=1000)
        for file in path.parent.glob("queue.db*" if whole else "queue.db"):
            file.unlink()
        added = sch.schedule("true", name="added", delay=1000)  # what this returns is on disk
        assert [m for m in caplog.messages if "was removed while it was in use: it is written again" in m] == caplog.messages
        with pytest.raises(StoreInUse):
            TaskScheduler(store=path)
        shutil.copy(path, path.with_name("copy.db"))
        shutil.copy(f"{path}-wal", path.with_name("copy.db-wal"))
        assert await sch.schedule("echo", "two", name="later")
    async with TaskScheduler(store=path.with_name("copy.db")) as copy:
        assert {task.name for task in copy.tasks()} == {"waits", "added"}
    async with TaskScheduler(store=path) as again:
        assert {task.id for task in again.tasks()} == {waits.id, added.id}
        assert again.get("done").result.stdout == b"one\n"
    ended = rows(path, "SELECT name, state FROM tasks WHERE state != 'queued' ORDER BY key")
    assert ended == [("done", "succeeded"), ("later", "succeeded")]
    assert sorted(file.name for file in path.parent.iterdir() if file.name[0] == ".") == []


async def test_a_queue_whose_file_was_replaced_or_whose_folder_has_gone_says_so(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("nbprocs.scheduler.store._LOOK", 0.0)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "queue.db"
    async with TaskScheduler(store=path) as sch:
        path.rename(folder / "old.db")
        path.write_text("another one")
        with pytest.raises(StoreError, match="was replaced by another one while it was in use"):
            sch.schedule("true")
        assert path.read_text() == "another one"
        shutil.rmtree(folder)
        with pytest.raises(StoreError, match="was removed while it was in use, and can't be written again"):
            sch.schedule("true")
        folder.mkdir()
        task = sch.schedule("true", delay=1000)
    async with TaskScheduler(store=path) as again:
        assert [one.id for one in again.tasks()] == [task.id]
