"""What a durable queue keeps besides its tasks, and what it refuses to do to files, rows and folders."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.errors import StartupFailed
from nbprocs.scheduler import (
    Halt,
    Halted,
    SchedulerConfig,
    StoreCorrupt,
    StoreError,
    TaskCancelled,
    TaskScheduler,
    TaskState,
)
from nbprocs.testing.conformance import FakeBackend
from tests.unit.test_scheduler import FAILED, World
from tests.unit.test_scheduler_store import crash, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


# --- folders ------------------------------------------------------------------------------------------------------------------


async def test_a_task_runs_where_it_was_scheduled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        (folder / "data").write_text(folder.name)
    monkeypatch.chdir(a)
    async with TaskScheduler() as sch:
        kept = sch.schedule("cat", "data", hold=True)
        many = sch.schedule_many([("cat", "data")], hold=True)
        elsewhere = sch.schedule("cat", "data", hold=True, working_dir="../b")
        monkeypatch.chdir(b)
        for handle in (kept, *many, elsewhere):
            handle.release()
        assert [(await h).text for h in (kept, *many, elsewhere)] == ["a", "a", "b"]


async def test_also_in_the_next_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff")
    odd.mkdir()
    monkeypatch.chdir(odd)
    w = World(store="../queue.db")
    w.sch.pause()
    w.sch.schedule("x", name="plain")
    w.sch.schedule("x", name="asked", working_dir="sub")
    crash(w.sch)
    monkeypatch.chdir("/")
    async with World(store=path) as v:
        v.sch.resume()
        await v.settle()
        plain, asked = v.backend.started
        assert plain.folder == str(odd)
        assert plain.working_dir is None
        assert asked.working_dir == str(odd / "sub")
    assert not list(tmp_path.glob("*owner*")), "a store's path is made absolute when it is given"


async def test_a_folder_that_has_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    async with TaskScheduler() as sch:
        handle = sch.schedule("true", hold=True)
        monkeypatch.chdir(tmp_path)
        gone.rmdir()
        handle.release()
        with pytest.raises(StartupFailed, match="gone"):
            await handle


# --- what was said of the queue itself -----------------------------------------------------------------------------------------


async def test_what_was_paused_stays_paused(path: Path) -> None:
    w = World(store=path)
    w.sch.pause()
    w.sch.pause(group="gé\udcff")
    for name, group in (("a", None), ("b", "gé\udcff"), ("c", None)):
        w.sch.schedule("x", name=name, group=group)
    crash(w.sch)
    w = World(store=path)
    await w.settle()
    assert w.started == []
    assert w.sch.status().paused
    w.sch.resume()
    await w.settle()
    assert w.started == ["a", "c"]
    crash(w.sch)
    w = World(store=path)
    await w.settle()
    assert w.started == ["a", "c"], "resumed is resumed; the group is paused as before"
    w.sch.resume(group="gé\udcff")
    crash(w.sch)
    async with World(store=path) as v:
        await v.settle()
        assert v.started == ["a", "b", "c"]


async def test_limits_that_were_changed_are_kept_until_the_config_says_another(path: Path) -> None:
    config = SchedulerConfig(max_concurrent_tasks=3, groups={"g": 1}, resources={"disk": 1})
    w = World(config, store=path)
    w.sch.set_limit(2)
    w.sch.set_group_limit("g", None)
    w.sch.set_group_limit("new", 1)
    w.sch.set_resource("disk", 5)
    crash(w.sch)
    w = World(config, store=path)
    status = w.sch.status()
    assert status.max_concurrent == 2
    assert {g.name: g.limit for g in status.groups} == {"g": None, "new": 1}
    assert status.resources[0].capacity == 5
    crash(w.sch)
    async with World(SchedulerConfig(max_concurrent_tasks=4, groups={"g": 7}), store=path) as v:
        status = v.sch.status()
        assert status.max_concurrent == 4
        assert {g.name: g.limit for g in status.groups} == {"g": 7, "new": 1}


async def test_a_halted_queue_stays_halted(path: Path) -> None:
    config = SchedulerConfig(max_concurrent_tasks=1, halt=Halt(failures=1))
    w = World(config, store=path)
    w.sch.schedule("x", name="a")
    w.sch.schedule("x", name="b")
    await w.settle()
    await w.finish("a", FAILED)
    crash(w.sch)
    async with World(config, store=path) as v:
        await v.settle()
        assert v.started == []
        with pytest.raises(Halted, match="1 of 1"):
            await v.sch.join()
        v.sch.resume()
        await v.settle()
        assert v.started == ["b"]


@pytest.mark.parametrize("how", ["one", "all", "halt"])
async def test_what_was_cancelled_stays_cancelled_though_the_kernel_dies_in_its_grace(path: Path, how: str) -> None:
    config = SchedulerConfig(max_concurrent_tasks=2, halt=Halt(failures=1, now=True) if how == "halt" else None)
    w = World(config, store=path)
    handle = w.sch.schedule("x", name="t")
    behind = w.sch.schedule("x", name="behind", after=[handle])
    other = w.sch.schedule("x", name="other")
    await w.settle()
    w.backend.cancel = lambda job_id, *, grace: None  # type: ignore[method-assign] - its tree takes its time
    if how == "one":
        handle.cancel()
    elif how == "all":
        w.sch.cancel()
    else:
        await w.finish("other", FAILED)
    await w.settle()
    assert handle.state is TaskState.RUNNING
    assert behind.state is (TaskState.CANCELLED if how == "all" else TaskState.BLOCKED)
    crash(w.sch)
    async with World(config, store=path) as v:
        v.sch.resume()
        await v.settle()
        assert "t" not in v.started
        with pytest.raises(TaskCancelled):
            await v.sch.get("t")
        assert [a.outcome for a in v.sch.get("t").attempts] == ["cancelled"]
        assert v.sch.get("behind").state is (TaskState.CANCELLED if how == "all" else TaskState.SKIPPED)
        assert other.id
    async with World(config, store=path) as u:
        assert len(u.sch.get("t").attempts) == 1, "noted once"


# --- rows that can't be read ----------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as db:
        yield db
        db.commit()


BAD = {
    "argv": ["", "{}", "[]", "[1]", "[" * 100_000, "5", b"\xff\xfe", '[""]', "null"],
    "options": [
        "{",
        "[1]",
        '{"timeout": [1]}',
        '{"nonsense": 1}',
        '{"recurrence": {"every": -1}}',
        '{"resources": 3}',
        b"\xff",
        "[" * 9999,
    ],
    "priority": ["high", 1.5, b"x"],
    "time": ["soon", float("inf"), 1e300],
    "clock": [7, "x"],
    "after": ["x", "[1]", '[["a", "success"]]', '[[1, "perhaps"]]', b"\xff"],
    "retries": ["x", -1],
    "interruptions": [b"1"],
}


@pytest.mark.parametrize("column", BAD)
async def test_one_bad_row_is_set_aside_and_all_others_run(path: Path, column: str, caplog: pytest.LogCaptureFixture) -> None:
    for value in BAD[column]:
        path.unlink(missing_ok=True)
        caplog.clear()
        w = World(store=path)
        w.sch.pause()
        for name in "abc":
            w.sch.schedule("x", name=name)
        w.sch.schedule("x", name="behind", after=["b"])
        w.sch.resume()
        crash(w.sch)
        with opened(path) as db:
            db.execute(f"UPDATE tasks SET {column} = ? WHERE key = 2", (value,))  # noqa: S608
        for _ in range(2):
            async with World(store=path) as v:
                await v.settle()
                assert v.started == ["a", "c"], value
                with pytest.raises(StoreCorrupt, match="set aside"):
                    v.sch.get("b")
                assert v.sch.get("behind").state is TaskState.SKIPPED
                v.sch.frame()
        assert caplog.text.count("set aside") == 1, "said once"
        assert "1 tasks" in caplog.text
        with opened(path) as db:
            kept, state = db.execute(f"SELECT {column}, state FROM tasks WHERE key = 2").fetchone()  # noqa: S608
            assert (str(kept), state) == (str(value), "aside")


async def test_bad_attempts_and_settings_are_passed_over(path: Path) -> None:
    async with World(store=path, gated=False) as w:
        w.sch.pause(group="g")
        for name in "ab":
            await w.sch.schedule("x", name=name)
        failed = w.sch.schedule("fails", name="f")
        await failed.wait()
    with opened(path) as db:
        db.execute("UPDATE attempts SET started = 'yesterday' WHERE key = 1")
        db.execute("UPDATE attempts SET error = '[[' WHERE key = 3")
        db.execute("INSERT INTO meta VALUES ('x', 'y')")
        db.execute('INSERT INTO meta VALUES (\'["limit", ""]\', \'{"value": [-3], "config": null}\')')
        db.execute("INSERT INTO meta VALUES ('[\"paused\"]', '[[[[')")
    async with World(store=path) as w:
        assert len(w.sch.frame()) == 2
        assert w.sch.get("a").attempts == ()
        assert w.sch.get("f").error is not None
        assert w.sch.status().groups[0].paused


@given(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip))
async def test_any_name_can_be_stored_and_found(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("q") / "q.db"
    w = World(store=path)
    w.sch.pause()
    w.sch.schedule("x", name=name, group=name)
    crash(w.sch)
    async with World(store=path) as v:
        assert v.sch.get(name).task.name == name
        v.sch.get(name).cancel()
        v.sch._core.runner.finished.clear()
        v.sch._core.runner.names.clear()
        assert v.sch.get(name).state is TaskState.CANCELLED
        v.sch.tasks_frame()


# --- files ---------------------------------------------------------------------------------------------------------------------


async def test_a_queues_files_are_its_owners_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        async with World(store=path) as w:
            w.sch.schedule("x", "--password=hunter2")
            await w.settle()
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
            assert set(modes) >= {"queue.db", "queue.db-wal", "queue.db-owner"}
            assert set(modes.values()) == {0o600}, modes
    finally:
        os.umask(old)


def test_what_is_no_regular_file_is_neither_opened_nor_changed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to(fifo)
    null = tmp_path / "null"
    null.symlink_to(os.devnull)
    (tmp_path / "folder").mkdir()
    for wrong in (fifo, link, null, tmp_path / "folder"):
        with pytest.raises(StoreCorrupt, match="not a regular file"):
            TaskScheduler(store=wrong, backend=FakeBackend())
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "folder", "link", "null"]


def test_a_link_to_nothing_makes_the_queue_where_it_points(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "real.db")
    crash(TaskScheduler(store=link, backend=FakeBackend()))
    assert link.is_symlink()
    assert (tmp_path / "real.db").stat().st_size > 0


@pytest.mark.parametrize("where", ["none/q.db", "file/q.db", "loop", "dangling", "x" * 300, "a\0b"])
def test_a_place_that_can_not_be_is_told_and_nothing_is_left(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "q.db")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="queue"):
        TaskScheduler(store=tmp_path / where, backend=FakeBackend())
    assert sorted(tmp_path.iterdir()) == before


def test_a_path_that_is_none(tmp_path: Path) -> None:
    for wrong, error in ((5, TypeError), ("", ValueError), (b"\0", (ValueError, StoreError))):
        with pytest.raises(error):
            TaskScheduler(store=wrong, backend=FakeBackend())


async def test_ended_tasks_are_masked_where_they_are_shown(path: Path) -> None:
    async with World(store=path) as w:
        handle = w.sch.schedule("curl", "--password=hunter2", "https://u:hunter2@host/", hold=True)
        assert "hunter2" not in repr(handle.task) + repr(handle) + repr(w.sch)
        assert "curl" in repr(handle.task)
        assert handle.task.args[0] == "--password=hunter2"
    assert rows(path, "SELECT count(*) FROM tasks") == [(1,)]
    await asyncio.sleep(0)
