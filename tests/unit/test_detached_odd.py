"""Detached processes in trouble: a shim that somebody stopped, records that nobody wrote so, odd folders, readers that have had enough."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nbprocs
from nbprocs import ProcessStatus, StartupFailed, cli
from nbprocs.engine import records
from nbprocs.processes import detached
from nbprocs.processes.manager import manager_core
from tests.unit.test_detached import alive, command, home, other, pm, until  # noqa: F401 - fixtures

ROOT = Path(nbprocs.__file__).parents[1]
NBPROCS = f"{sys.executable} -m nbprocs"


def stop_shim():
    """Stop the shim of the only one, and wait until it stands."""
    [record] = records.records()
    os.kill(record.shim_pid, signal.SIGSTOP)
    stat = Path(f"/proc/{record.shim_pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        pass


# --- its shim


async def test_a_shim_that_somebody_stopped_is_continued_when_it_is_asked(pm, other):  # noqa: F811
    job = await pm.spawn("sleep", "1000", name="job", detach=True)
    stop_shim()
    adopted = await other.adopt("job")
    assert adopted.status is ProcessStatus.RUNNING
    stop_shim()
    job.pause()
    job.resume()
    stop_shim()
    assert (await job.stop()).status is ProcessStatus.TERMINATED
    assert not alive(job.pid)


async def test_a_shim_that_somebody_stops_is_continued_by_who_follows_it(pm, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr("nbprocs.engine.detaching._LOOK", 0.05)
    job = await pm.spawn("sleep", "1000", name="job", detach=True)
    waiting = asyncio.ensure_future(job.wait())
    stop_shim()
    os.kill(job.pid, signal.SIGKILL)  # nobody else asks its shim anything
    async with asyncio.timeout(30):
        assert (await waiting).signal == signal.SIGKILL
    assert any("the shim of job was stopped by somebody" in message for message in caplog.messages)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGSTOP, marks=pytest.mark.slow), signal.SIGKILL])
async def test_the_command_line_stops_one_whose_shim_was_stopped_or_killed(home, number):  # noqa: F811
    async with nbprocs.ProcessManager() as manager:
        job = await manager.spawn("sleep", "1000", name="job", detach=True)
    [record] = records.records()
    os.kill(record.shim_pid, number)
    await until(lambda: number == signal.SIGSTOP or records.records()[0].state == "unguarded")
    code, out, _ = command("stop", "job")
    assert (code, out) == (0, "stopped job\n")
    assert not alive(job.pid)


# --- its record

DAMAGED = [
    "[" * 100_000,
    "null",
    *[
        {name: value}
        for name in (
            "id",
            "name",
            "command",
            "state",
            "pid",
            "created",
            "ended",
            "status",
            "shim",
            "socket",
            "config",
            "restart",
            "dropped",
        )
        for value in ([], "x", -1, float("inf"))
    ],
    {"config": {"timeout": -1}},
    {"config": {"no_such_option": 1}},
]


async def test_a_damaged_record_harms_nobody_who_looks_and_can_be_forgotten(pm, home):  # noqa: F811
    await (await pm.spawn("true", name="job", detach=True)).wait()
    [record] = records.records()
    path = record.folder / "record.json"
    whole = path.read_text()
    for damage in DAMAGED:
        path.write_text(damage if isinstance(damage, str) else json.dumps({**json.loads(whole), **damage}))
        assert len(nbprocs.detached()) == 1, damage
        assert cli.main(["ps"]) == 0, damage
        async with nbprocs.ProcessManager() as reader:
            try:
                await (await reader.adopt(records.records()[0].id)).wait(60)
            except StartupFailed as error:
                assert "can't be read" in str(error), damage
    path.write_text("null")
    assert nbprocs.forget() == 1


NO_POLICIES = [
    {"max_restarts": "x"},
    {"no_such_field": 1},
    {"initial_delay": -1},
    {"window": float("nan")},
    {"window": 10**400},
    {"jitter": [[]]},
    {"exit_codes": [[1]]},
    {"breaker": True},
    {"rng": {}},
    {"": None},
    [1],
    "x",
    7,
    True,
]


async def test_a_restart_policy_that_can_not_be_read_is_said_once_and_not_used(pm, caplog):  # noqa: F811
    await pm.spawn("sleep", "1000", name="job", detach=True, restart=True)
    [record] = records.records()
    path = record.folder / "record.json"
    whole = json.loads(path.read_text())
    for damage in NO_POLICIES:
        restart = {**whole["restart"], **damage} if isinstance(damage, dict) else damage
        path.write_text(json.dumps({**whole, "restart": restart}))
        detached._SAID.clear()
        caplog.clear()
        async with nbprocs.ProcessManager() as kernel:
            job = await kernel.adopt("job")
            assert await kernel.adopt(job.id) is job, damage
            supervises = manager_core(kernel).supervisor.supervises
            assert (job.status, supervises(job.id)) == (ProcessStatus.RUNNING, False), damage
            [said] = caplog.messages
            assert "restart policy in the record of job can't be read" in said, damage
            assert "adopt('job', restart=…)" in said, damage
            await kernel.adopt("job", restart=True)
            assert supervises(job.id), damage
    path.write_text(json.dumps(whole))


# --- its folders


async def test_a_relative_state_folder_is_that_of_the_kernel(pm, home, monkeypatch):  # noqa: F811
    monkeypatch.chdir(home)
    monkeypatch.setenv("NBPROCS_STATE_DIR", "near")
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", "run")
    job = await pm.spawn("echo", "here", name="job", detach=True)
    assert (await job.wait()).text == "here\n"
    assert records.records()[0].folder.parent == home / "near" / "detached"


@pytest.mark.parametrize("variable", ["NBPROCS_STATE_DIR", "NBPROCS_RUNTIME_DIR"])
async def test_a_folder_that_can_be_none_is_named(pm, monkeypatch, variable):  # noqa: F811
    monkeypatch.setenv(variable, os.devnull)
    with pytest.raises(StartupFailed, match=f"can't be .*{os.devnull}.*{variable} names another folder") as caught:
        await pm.spawn("true", detach=True)
    assert not caught.value.hint


async def test_a_key_that_is_no_text_is_refused(pm):  # noqa: F811
    with pytest.raises(TypeError, match="key must be a name or an id, not 5"):
        await pm.adopt(5)


# --- whoever reads the command line


def test_a_reader_that_has_enough_ends_the_command_without_a_word(home):  # noqa: F811
    done = subprocess.run(
        ["bash", "-c", f"{NBPROCS} run -- yes | head -n 1; echo ${{PIPESTATUS[0]}}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"y\n{128 + signal.SIGPIPE}\n", "")


@pytest.mark.parametrize("words", ["ps", "logs job", "run -- echo x"])
def test_a_closed_standard_output_is_no_failure(home, words):  # noqa: F811
    command("run", "--detach", "--name", "job", "--", "echo", "x")
    command("wait", "job")
    done = subprocess.run(
        ["bash", "-c", f"{NBPROCS} {words} >&-"], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words", [("logs", "-n", "-1", "job"), ("stop", "--grace", "nan", "job"), ("run", "--timeout", "-1", "--", "true")]
)
def test_figures_that_are_none_are_refused(words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


async def test_the_time_that_it_took_is_not_that_of_a_clock_that_was_set(pm, other, monkeypatch):  # noqa: F811
    job = await pm.spawn("cat", name="job", detach=True, stdin=True)
    usual = time.time
    monkeypatch.setattr(time, "time", lambda: usual() + 1e6)
    adopted = await other.adopt("job")
    await job.close_stdin()
    assert (await job.wait()).execution_time < 60
    assert (await adopted.wait()).execution_time < 60
