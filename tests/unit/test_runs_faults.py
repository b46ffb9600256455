"""A run history when things go wrong: kernels that are killed, disks that are full, files that others write or that are too new."""

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import nbprocs
from nbprocs.runs.errors import RunsTooNew
from nbprocs.runs.schema import MIGRATIONS, VERSION, check, connect
from nbprocs.runs.writer import writing

ROOT = str(Path(nbprocs.__file__).parents[1])
ENV = {**os.environ, "PYTHONPATH": ROOT}

KERNEL = """
import asyncio, sys, nbprocs
async def main():
    pm = nbprocs.ProcessManager(runs=sys.argv[1])
    sleeper = await pm.spawn("sleep", "1000", name="sleeper")
    len(nbprocs.runs(sys.argv[1]))
    for n in range(int(sys.argv[2])):
        await pm.run("true", name=f"{sys.argv[3]} {n}")
        if n == 20:
            len(nbprocs.runs(sys.argv[1]))
            print("ready", flush=True)
    await pm.aclose()
asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def kernel(path, count, name="k"):
    return subprocess.Popen([sys.executable, "-c", KERNEL, path, str(count), name], env=ENV, stdout=subprocess.PIPE, text=True)


def test_kill_9_during_writes_leaves_a_sound_file_and_lost_runs(path):
    with kernel(path, 1_000_000) as process:
        assert process.stdout.readline() == "ready\n"
        running = nbprocs.runs(path).filter(name="sleeper")[0]
        assert (running.state, len(nbprocs.runs(path).filter(state="lost"))) == ("running", 0)
        os.kill(process.pid, signal.SIGKILL)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    runs = nbprocs.runs(path)
    assert runs["sleeper"].state == "lost"  # a reader knows it by itself
    assert runs["sleeper"].id in {run.id for run in runs.filter(state="lost")}
    assert len(runs.filter(state="running")) == 0
    assert (runs.frame().loc["sleeper", "state"]) == "lost"
    names = [run.name for run in runs.filter(name="k *", state="completed")]
    assert names == [f"k {n}" for n in range(len(names))]
    assert len(names) >= 21


async def test_the_next_writer_marks_what_was_lost(path):
    with kernel(path, 1_000_000) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGKILL)
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT state, reason FROM runs WHERE name = 'sleeper'").fetchone() == ("lost", "its kernel ended")


def test_two_kernels_write_one_file_at_once(path):
    with kernel(path, 60, "a") as a, kernel(path, 60, "b") as b:
        assert (a.wait(60), b.wait(60)) == (0, 0)
    runs = nbprocs.runs(path)
    assert len(runs) == 122
    for name in "ab":
        assert [run.name for run in runs.filter(name=f"{name} *", state="completed")] == [f"{name} {n}" for n in range(60)]


async def test_a_full_disk_keeps_the_runs_until_it_takes_them(path, caplog, monkeypatch):
    monkeypatch.setattr("nbprocs.runs.writer.RETRY", 0.05)
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true", name="before")
        writer = writing(path)
        assert writer.flush()
        writer._db.execute("PRAGMA max_page_count = 1")  # the smallest that it has already: not one page more
        for n in range(300):
            await pm.run("echo", "x" * 400, name=f"r{n}")
        assert not writer.flush()
        assert "full" in writer.error
        assert (await pm.run("true", name="during")).ok
        writer._db.execute("PRAGMA max_page_count = 1000000")
        assert await _in_time(writer.flush)
    assert [run.name for run in nbprocs.runs(path)] == ["before", *(f"r{n}" for n in range(300)), "during"]
    told = [record.message for record in caplog.records if record.name == "nbprocs"]
    assert sum("not recorded at the moment" in line for line in told) == 1
    assert sum("can be written again" in line for line in told) == 1


async def _in_time(what):
    for _ in range(200):
        if await asyncio.get_running_loop().run_in_executor(None, what):
            return True
    return False


async def test_a_disk_that_stays_full_holds_the_end_for_a_moment_only(path, caplog, monkeypatch):
    monkeypatch.setattr("nbprocs.runs.writer.LAST_TRY", 0.1)
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true", name="before")
        writer = writing(path)
        assert writer.flush()
        writer._db.execute("PRAGMA max_page_count = 1")
        for n in range(100):
            await pm.run("echo", "x" * 900, name=f"r{n}")
    assert writer.lost >= 1
    assert "could not be written" in caplog.text
    assert nbprocs.runs(path)[0].name == "before"


async def test_a_place_that_can_not_be_written_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(nbprocs.RunsError, match="not there"):
        nbprocs.ProcessManager(runs=tmp_path / "no" / "runs.db")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(nbprocs.RunsError, match="can't be written"):
        nbprocs.ProcessManager(runs=tmp_path / "runs.db")
    with pytest.raises(TypeError, match="path or a RunsConfig"):
        nbprocs.ProcessManager(runs=7)


async def test_a_file_that_is_no_history_is_left_alone_and_harms_no_run(path, caplog):
    path.write_bytes(b"a text, and not a database of any kind" * 100)
    before = path.read_bytes()
    async with nbprocs.ProcessManager(runs=path) as pm:
        assert (await pm.run("true")).ok
    assert path.read_bytes() == before
    assert "not recorded" in caplog.text


async def test_a_newer_format_is_left_alone(path, caplog):
    with closing(connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    before = path.read_bytes()
    with pytest.raises(RunsTooNew, match="reads up to"):
        len(nbprocs.runs(path))
    async with nbprocs.ProcessManager(runs=path) as pm:
        assert (await pm.run("true")).ok
    assert "reads up to" in caplog.text
    assert path.read_bytes() == before


async def test_an_older_format_is_brought_up_to_date(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true", name="old")
    newer = {**MIGRATIONS, VERSION + 1: "ALTER TABLE runs ADD COLUMN mood TEXT DEFAULT 'calm';\nCREATE TABLE extra (a);"}
    with closing(connect(path, migrations=newer)) as db:
        assert check(db, path, newest=VERSION + 1) == VERSION + 1
        assert db.execute("SELECT name, mood FROM runs").fetchall() == [("old", "calm")]


def test_a_step_that_fails_changes_nothing(path):
    connect(path).close()
    broken = {**MIGRATIONS, VERSION + 1: "CREATE TABLE extra (a);\nCREATE TABLE runs (a);"}
    with pytest.raises(nbprocs.RunsError):
        connect(path, migrations=broken)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert "extra" not in {name for (name,) in db.execute("SELECT name FROM sqlite_master")}


async def test_a_fork_does_not_write_for_its_parent(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true")
        writer = writing(path)
        assert writer.flush()
        child = os.fork()
        if not child:
            os._exit(0 if writing(path) is None else 1)
        loop = asyncio.get_running_loop()
        _, status = await loop.run_in_executor(None, os.waitpid, child, 0)
        assert status == 0
        await pm.run("true")
    assert len(nbprocs.runs(path)) == 2


async def test_memory_is_bounded_while_nothing_can_be_written(path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "nbprocs")
    monkeypatch.setattr("nbprocs.runs.writer.WAITING", 10)
    async with nbprocs.ProcessManager(runs=path) as pm:
        writer = writing(path)
        with writer._lock:  # the writer stands still
            writer._at_once.set()
            writer._wanted.set()
            await asyncio.gather(*(pm.run("true") for _ in range(30)))
            assert len(writer._notes) <= 10
            assert writer.lost


@pytest.mark.parametrize("how", ["removed", "removed with its companions", "another one", "a folder"])
async def test_a_file_that_is_removed_or_replaced_does_not_swallow_the_runs_to_come(path, caplog, monkeypatch, how):
    monkeypatch.setattr("nbprocs.runs.writer.RETRY", 0.05)
    if how == "another one":
        async with nbprocs.ProcessManager(runs=path.with_name("kept.db")) as pm:
            await pm.run("true", name="kept")
    async with nbprocs.ProcessManager(runs=path) as pm:
        sleeper = await pm.spawn("sleep", "1000", name="sleeper")
        await pm.run("echo", "a", name="before")
        assert writing(path).flush()
        for file in path.parent.glob("runs.db" if how == "removed" else "runs.db*"):
            file.unlink()
        if how == "another one":
            path.with_name("kept.db").rename(path)
        if how == "a folder":
            path.mkdir()
        await pm.run("echo", "a", name="after")  # of the same command
        if how == "a folder":
            assert not writing(path).flush()
            path.rmdir()
            assert await _in_time(writing(path).flush)
        await sleeper.stop()
    runs = nbprocs.runs(path)
    assert sorted(run.name for run in runs) == sorted([*(["kept"] if how == "another one" else []), "after", "sleeper"])
    assert (runs["after"].command, runs["after"].folder) == ("echo a", os.getcwd())
    assert set(runs.frame()["command"]) >= {"echo a", "sleep 1000"}
    assert sum("was removed or replaced while it was in use" in message for message in caplog.messages) == 1
