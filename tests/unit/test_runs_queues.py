"""A scheduler's own store as a run history, and tasks that no manager here runs."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys

import pytest

import nbprocs
from nbprocs.errors import StartupFailed, WorkerLost
from nbprocs.model import ProcessResult, ProcessStatus
from nbprocs.runs import queues
from nbprocs.runs.errors import RunsError
from nbprocs.scheduler.backend import Capacity, Ended, Started
from nbprocs.scheduler.store import Store


@pytest.fixture
def store(tmp_path):
    return tmp_path / "queue.db"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


# --- the store ----------------------------------------------------------------------------------------------------------------


async def test_the_tasks_of_a_queue_are_rows_while_it_is_open_and_after(store, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "planted-secret")
    config = nbprocs.SchedulerConfig(max_retries=1, retry_delay=0)
    async with nbprocs.TaskScheduler(config, store=store, runs=False) as sch:
        good = sch.schedule("echo", "hello", name="greeting", env_vars={"MODE": "fast"})
        await good
        bad = sch.schedule("sh", "-c", "echo $API_TOKEN; exit 3", name="bad")
        with contextlib.suppress(nbprocs.ProcessFailed):
            await bad
        running = sch.schedule("sleep", "100", name="long")
        async with asyncio.timeout(20):
            while running.state != "running" or nbprocs.runs(store)[-1].name != "long":
                await asyncio.sleep(0.01)
        here = nbprocs.runs(store)
        assert [(run.name, run.state, run.exit_code) for run in here] == [
            ("greeting", "completed", 0), ("bad", "failed", 3), ("bad", "failed", 3), ("long", "running", None),
        ]  # fmt: skip
        running.cancel()
        await running.wait()
    after = nbprocs.runs(store)
    assert [(run.name, run.state) for run in after][-1] == ("long", "terminated")
    run = after.get("greeting")
    assert (run.command, run.stdout, run.task, run.env, run.host) == (
        "echo hello",
        "hello\n",
        good.id,
        {"MODE": "fast"},
        socket.gethostname(),
    )
    assert run.folder == os.getcwd()
    assert run.queued <= run.started <= run.ended
    assert run.seconds >= 0
    assert "planted-secret" not in repr([(run, run.stdout) for run in after])
    assert {run.task for run in after.filter(name="bad")} == {bad.id}
    assert list(after.filter(state="failed").frame()["exit_code"]) == [3, 3]
    assert after.regressions() == []
    assert run.to_config(args=("again",)).argv == ("echo", "again")


HOLDER = """
import asyncio, sys, nbprocs
async def main():
    async with nbprocs.TaskScheduler(store=sys.argv[1], runs=False) as sch:
        await sch.schedule("echo", "x", name="done")
        handle = sch.schedule("sleep", "100", name="long")
        while handle.state != "running":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        print("ready", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""


def test_a_queue_that_another_kernel_has_is_read_and_what_it_left_when_it_was_killed(store):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"ready\n"
            assert {run.name: run.state for run in nbprocs.runs(store)}["done"] == "completed"
            assert {run.name: run.state for run in nbprocs.runs(store)}["long"] == "running"
        finally:
            holder.kill()
    found = {run.name: (run.state, run.reason) for run in nbprocs.runs(store)}
    assert found == {"done": ("completed", None), "long": ("lost", "its kernel ended")}


async def test_a_row_that_can_not_be_read_hides_no_other(store):
    async with nbprocs.TaskScheduler(store=store, runs=False) as sch:
        await sch.schedule("echo", "1", name="broken")
        await sch.schedule("echo", "2", name="whole")
    with contextlib.closing(sqlite3.connect(store)) as db, db:
        db.execute("UPDATE tasks SET argv = '{' WHERE name = 'broken'")
    assert [run.name for run in nbprocs.runs(store)] == ["whole"]


async def test_an_attempt_is_made_into_a_row_once_and_a_forgotten_one_goes(store, monkeypatch):
    made = []
    real = queues._run
    monkeypatch.setattr(queues, "_run", lambda words, *rest: made.append(words[1]) or real(words, *rest))
    async with nbprocs.TaskScheduler(store=store, runs=False) as sch:
        for n in range(3):
            await sch.schedule("echo", str(n))
            assert [run.stdout for run in nbprocs.runs(store)] == [f"{n}\n" for n in range(n + 1)]
        assert made == ["0", "1", "2"]
    with contextlib.closing(sqlite3.connect(store)) as db, db:
        db.execute("DELETE FROM attempts WHERE key = 1")
    assert [run.stdout for run in nbprocs.runs(store)] == ["1\n", "2\n"]


async def test_runs_are_not_recorded_into_a_queue(store, caplog):
    async with nbprocs.TaskScheduler(store=store, runs=False) as sch:
        await sch.schedule("true")
    before = store.read_bytes()
    async with nbprocs.ProcessManager(runs=store) as pm:
        await pm.run("true")
    assert store.read_bytes() == before
    assert "queue" in caplog.text
    store.write_bytes(before[:5000])
    with pytest.raises(RunsError, match="can't be read"):
        len(nbprocs.runs(store))


# --- elsewhere ----------------------------------------------------------------------------------------------------------------


class Odd(Exception):
    result = "x"


class Elsewhere:
    """A backend with one machine of its own, which does what a job's first argument says."""

    name = "elsewhere"

    def capacity(self):
        return Capacity(slots=4)

    def bind(self, home, changed):
        self.home = home

    def start(self, job, report):
        what = job.args[0]
        if what != "unstarted":
            report(Started(pid=7, host="far", worker="tcp://far:1"))
        result = ProcessResult(
            process_id="1", name=job.name, command="c", exit_code=0 if what == "good" else 3, stdout_source=b"from far\n", execution_time=2.0,
            status=ProcessStatus.COMPLETED if what == "good" else ProcessStatus.FAILED, peak_rss=1000,
        )  # fmt: skip
        errors = {
            "lost": WorkerLost("the worker is gone"),
            "unstarted": StartupFailed("no such program"),
            "bad": nbprocs.ProcessFailed("exit 3"),
            "odd": Odd("its result is none of ours"),
        }
        self.home.post(report, Ended(result=result if what in ("good", "bad") else None, error=errors.get(what)))

    def cancel(self, job_id, *, grace):
        pass

    async def aclose(self):
        pass


async def test_tasks_of_a_backend_with_machines_of_its_own_are_rows(path):
    async with nbprocs.TaskScheduler(backend=Elsewhere(), runs=path) as sch:
        handles = {what: sch.schedule("job", what, name=what) for what in ("good", "bad", "lost", "unstarted")}
        for handle in handles.values():
            await handle.wait()
    found = {run.name: run for run in nbprocs.runs(path)}
    assert {name: run.state for name, run in found.items()} == {"good": "completed", "bad": "failed", "lost": "lost", "unstarted": "failed"}
    good = found["good"]
    assert (good.host, good.worker, good.pid, good.stdout, good.seconds, good.peak_rss) == (
        "far",
        "tcp://far:1",
        7,
        "from far\n",
        2.0,
        1000,
    )
    assert good.task == handles["good"].id
    assert good.queued <= good.started
    assert found["lost"].error == "the worker is gone"
    assert found["unstarted"].error == "no such program"
    frame = nbprocs.runs(path).frame()
    assert (frame.loc["good", "host"], frame.loc["good", "worker"]) == ("far", "tcp://far:1")
    assert frame.loc["unstarted", "host"] == socket.gethostname()


async def test_what_a_cluster_ran_teaches_its_durations(path):
    async with nbprocs.TaskScheduler(backend=Elsewhere(), runs=path) as sch:
        await sch.schedule("job", "good")
    async with nbprocs.TaskScheduler(backend=Elsewhere(), runs=path) as sch:
        waiting = sch.schedule("job", "good", hold=True, timeout="p95*3")
        assert waiting.task.estimated_duration == 2.0
        assert sch._core.find(waiting.id).options.timeout == 6.0


async def test_an_error_of_a_backends_own_ends_its_task_and_is_recorded(path):
    async with nbprocs.TaskScheduler(backend=Elsewhere(), runs=path) as sch:
        task = sch.schedule("program", "odd")
        async with asyncio.timeout(20):
            with contextlib.suppress(Exception):
                await task
        assert task.state == "failed"
    assert [run.state for run in nbprocs.runs(path)] == ["failed"]


async def test_what_fails_while_a_run_is_recorded_does_not_keep_its_task_from_ending(path, monkeypatch):
    monkeypatch.setattr("nbprocs.runs.jobs.JobRecorder._note", lambda *_: 1 / 0)
    async with nbprocs.TaskScheduler(backend=Elsewhere(), runs=path) as sch, asyncio.timeout(20):
        assert (await sch.schedule("program", "good")).ok


async def test_a_queue_that_is_looked_at_can_be_opened(store, monkeypatch):
    async with nbprocs.TaskScheduler(store=store, runs=False) as sch:
        await sch.schedule("true")
    usual, opened_meanwhile = queues._notes, []

    def notes(rows, prefix):
        if not opened_meanwhile:
            Store(store, prefix="x-").close()
            opened_meanwhile.append(True)
        return usual(rows, prefix)

    monkeypatch.setattr(queues, "_notes", notes)
    assert len(nbprocs.runs(store)) == 1
    assert opened_meanwhile


async def test_a_queue_that_another_host_has_is_running_there(store, tmp_path):
    async with nbprocs.TaskScheduler(store=store, runs=False) as sch:
        running = sch.schedule("sleep", "100", name="long")
        while running.state != "running":
            await asyncio.sleep(0.01)
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{store}{suffix}", f"{tmp_path / 'copy'}{suffix}")
        (tmp_path / "copy-owner").write_text(json.dumps({"pid": 1 << 22, "start": 1.0, "host": "another", "since": 1.0}))
        assert [(run.state, run.host) for run in nbprocs.runs(tmp_path / "copy")] == [("running", "another")]


async def test_a_copy_of_a_queue_that_changes_all_the_time_is_not_taken_for_whole(store, monkeypatch):
    async with nbprocs.TaskScheduler(store=store, runs=False) as sch:
        await sch.schedule("true")
        usual = shutil.copyfile

        def copyfile(source, to):
            usual(source, to)
            os.utime(store)

        monkeypatch.setattr(shutil, "copyfile", copyfile)
        monkeypatch.setattr(queues.SchedulerCore, "of", lambda _: None)
        with pytest.raises(RunsError, match="all the time"):
            len(nbprocs.runs(store))


async def test_a_look_that_failed_half_way_is_no_beginning_for_the_next(store, monkeypatch):
    async with nbprocs.TaskScheduler(store=store, runs=False) as sch:
        for _ in range(3):
            await sch.schedule("true")
    usual = queues._put
    monkeypatch.setattr(queues, "_put", lambda *given: (usual(*given), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        len(nbprocs.runs(store))
    monkeypatch.setattr(queues, "_put", usual)
    assert len(nbprocs.runs(store)) == 3


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "circle"])
def test_what_can_be_no_path_of_a_history_is_told_in_one_line(tmp_path, name):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(RunsError, match=r"can't be opened|there is no run history"):
        len(nbprocs.runs(tmp_path / name))
    with pytest.raises(RunsError):
        nbprocs.ProcessManager(runs=tmp_path / name)
