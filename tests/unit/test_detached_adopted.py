"""An adopted process is one like any other: for the monitor, for recovery, for the views; and what is left when more than one thing dies."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

import nbprocs
from nbprocs import ProcessManager, ProcessMonitor, ProcessStatus, RecoveryStrategy
from nbprocs.engine import records
from nbprocs.monitor.gpu import Gpu
from nbprocs.recovery import ErrorHandler
from nbprocs.widgets import OutputPane
from tests.children import python_child
from tests.unit.test_detached import ROOT, TALKS, alive, home, until  # noqa: F401 - home is a fixture
from tests.unit.widgets_kit import shown

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
async def adopt():
    """Start one, detached, by a manager that is closed then; returned is what the next one adopts."""
    async with ProcessManager() as pm:

        async def start(*command, **options):
            async with ProcessManager() as first:
                await first.spawn(*command, name="job", detach=True, **options)
            return pm, await pm.adopt("job")

        yield start


async def test_the_monitor_sees_an_adopted_process(adopt):
    pm, job = await adopt(*python_child("ready(); input()"), stdin=True)
    async with ProcessMonitor(interval=None, gpu=Gpu(library=None)) as monitor:
        monitor.watch(pm)
        assert await job.receive_output() == "ready"
        await monitor.sample()
        [row] = monitor.frame().to_dict("records")
        assert (row["name"], row["pid"], row["process_id"]) == ("job", job.pid, job.id)
        assert row["memory_usage_mb"] > 1
        await job.send_line("end")
        await job.wait()
        await monitor.sample()
        assert monitor.current()["manager"].success_count == 1


@pytest.mark.parametrize("when", ["while it is followed", "while no kernel was there", "as lost", "in another file"])
async def test_its_run_ends_in_the_row_that_the_first_kernel_began(tmp_path, when):
    runs, go_on = tmp_path / "runs.db", tmp_path / "go on"
    script = f"until [ -e '{go_on}' ]; do sleep 0.01; done; echo done; exit 3"
    async with ProcessManager(runs=tmp_path / "first.db" if when == "in another file" else runs) as pm:
        job = await pm.spawn("sh", "-c", script, name="job", detach=True)
    if when == "while no kernel was there":
        go_on.touch()
        await until(lambda: not records.records()[0].live)
    if when == "as lost":  # so it stands after the first kernel's end
        with closing(sqlite3.connect(runs)) as db, db:
            db.execute("UPDATE runs SET state = 'lost', reason = 'its kernel ended'")
    for _ in range(2):  # the second one sees what is known already
        async with ProcessManager(runs=runs) as pm:
            again = await pm.adopt("job")
            go_on.touch()
            await again.wait()
    [run] = nbprocs.runs(runs)
    assert (run.id, run.name, run.state, run.exit_code, run.stdout, run.reason) == (job.id, "job", "failed", 3, "done\n", None)
    assert abs(run.started - job.created_at.timestamp()) < 1
    assert abs(run.ended - run.started - run.seconds) < 1


async def test_recovery_restarts_an_adopted_process(adopt):
    pm, job = await adopt("sleep", "1000")
    async with ErrorHandler(pm, settle=0.05) as handler:
        handler.set_recovery_strategy("job", RecoveryStrategy.RESTART_PROCESS)
        os.kill(job.pid, signal.SIGKILL)
        await until(lambda: pm.get("job").pid not in {None, job.pid} and pm.get("job").status is ProcessStatus.RUNNING, within=60)
        again = pm.get("job")
        assert again.config.detach, "the new one outlives the kernel, too"
        assert {record.id for record in records.records() if record.live} == {again.id}
        await again.stop()


async def test_a_pane_shows_an_adopted_process_from_its_first_byte_in_order_and_sends(adopt):
    _, job = await adopt("sh", "-c", TALKS, stdin=True)
    for stream in ("out", "err"):
        await until(lambda stream=stream: f"{stream} 1" in job.tail(100), within=60)
        await job.send_line("")
    await until(lambda: "out 2" in job.tail(100), within=60)
    async with ProcessManager() as other:
        same = await other.adopt("job")
        with shown(OutputPane(same)) as tab:
            head = (await tab.hello())["pane"]["head"]
            assert (head["status"], head["stdin"]) == ("running", True)
            assert tab.output() == b"out 1\nerr 1\nout 2\n"
            assert (await tab.call("pane", "send", text=""))["ok"]
            await tab.delta("pane", lambda d: d.get("out"))
            assert tab.output() == b"out 1\nerr 1\nout 2\nerr 2\n"
            assert same.tail(100) == "out 1\nerr 1\nout 2\nerr 2"
    await job.stop()


# --- more than one thing dies -----------------------------------------------------------------------------------------------------

KERNEL = """
import asyncio, sys, nbprocs
async def main():
    pm = nbprocs.ProcessManager()
    job = await pm.spawn("sh", "-c", "echo one; exec sleep 1000", name="job", detach=True)
    await job.receive_output()
    print("up", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("first", ["kernel", "shim"])
async def test_kernel_and_shim_killed_at_once(first):
    """The process lives on without a guard: it can be found, stopped, and what it had written is there."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", KERNEL], env=env, stdout=subprocess.PIPE) as kernel:
        assert await asyncio.to_thread(kernel.stdout.readline) == b"up\n"
        [record] = records.records()
        pids = [kernel.pid, record.shim_pid]
        for pid in pids if first == "kernel" else reversed(pids):
            os.kill(pid, signal.SIGKILL)
    await until(lambda: records.records()[0].state == "unguarded", within=60)
    async with ProcessManager() as pm:
        job = await pm.adopt("job")
        assert job.status is ProcessStatus.RUNNING
        result = await job.stop(grace=10)
        assert (result.stdout, result.exit_code, result.signal) == (b"one\n", None, None), "nobody saw how it ended"
    assert not alive(record.pid)
    assert records.records()[0].state == "lost"


async def test_all_three_killed_at_once():
    async with ProcessManager() as pm:
        job = await pm.spawn("sh", "-c", "echo one; exec sleep 1000", name="job", detach=True)
        await job.receive_output()
        [record] = records.records()
        os.kill(record.shim_pid, signal.SIGKILL)
        os.kill(record.pid, signal.SIGKILL)
        result = await job.wait()
        assert (result.status, result.stdout, result.exit_code, result.signal) == (ProcessStatus.FAILED, b"one\n", None, None)
    await until(lambda: nbprocs.detached().loc[0, "state"] == "lost", within=60)  # what was killed is gone a little later


async def test_a_state_folder_that_is_removed_takes_the_log_and_not_the_process():
    """Its output is lost and said to be dropped; it runs on, can be stopped, and its end is told to who listens."""
    async with ProcessManager() as pm:
        job = await pm.spawn("sh", "-c", "echo one; read x; echo two; exit 3", name="job", detach=True, stdin=True)
        await job.receive_output()
        shutil.rmtree(records.records()[0].folder.rename(records.detached_folder() / "away"))
        assert nbprocs.detached().empty
        await job.send_line("")
        result = await job.wait(60)
        assert (result.exit_code, job.stdout.end) == (3, 8)
        with pytest.raises(nbprocs.UnknownProcess):
            await pm.adopt("another")


async def test_a_state_folder_that_cannot_be_written_refuses_the_start(monkeypatch, tmp_path):
    """A folder where nobody may write, root neither: one of the system's own."""
    monkeypatch.setenv("NBPROCS_STATE_DIR", "/proc/self/nbprocs")
    async with ProcessManager() as pm:
        with pytest.raises(nbprocs.StartupFailed, match="NBPROCS_STATE_DIR"):
            await pm.spawn("true", detach=True)
    assert nbprocs.detached().empty
