"""Processes that outlive their kernel: started detached, adopted by another, with all that they wrote and how they ended."""

import asyncio
import base64
import errno
import fcntl
import json
import math
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbprocs
from nbprocs import CircuitBreaker, EventKind, NameInUse, ProcessManager, ProcessStatus, RestartPolicy, StartupFailed, UnknownProcess, cli
from nbprocs.engine import asking, both, detaching, recorded, records, shim
from nbprocs.engine.shimlib import keeper, order, segments
from nbprocs.processes.manager import manager_core
from tests.waiting import until

ROOT = Path(nbprocs.__file__).parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Folders of the test's own; at its end nothing lives that it detached, no shim either."""
    monkeypatch.setenv("NBPROCS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", str(tmp_path / "run"))
    yield tmp_path
    shims = []
    for record in records.records():
        if record.live and record.pid:
            os.kill(record.pid, signal.SIGKILL)
        if record.shim_pid and record.shim_pid != os.getpid():
            shims.append(record.shim_pid)
    deadline = time.monotonic() + 10
    while (left := [pid for pid in shims if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "shims of detached processes that do not leave"
    troubles = [path.read_text() for path in (tmp_path / "state").glob("*/*/record.json") if '"trouble"' in path.read_text()]
    assert not troubles, "a shim failed at something"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
async def pm(home):
    async with ProcessManager() as manager:
        yield manager


@pytest.fixture
async def other(home):
    """The manager of another kernel, as far as a detached process can tell."""
    async with ProcessManager() as manager:
        yield manager


# --- the life of one ------------------------------------------------------------------------------------------------------------


async def test_it_outlives_its_manager_and_is_adopted_whole(home, other):
    async with ProcessManager() as pm:
        first = await pm.spawn("sh", "-c", "echo one; echo err >&2; read line; echo $line; exit 7", name="job", detach=True, stdin=True)
        assert await first.receive_output() == "one"
    assert alive(first.pid)
    kinds = []
    other.subscribe(lambda event: kinds.append(event.kind))
    job = await other.adopt("job")
    assert (job.id, job.pid, job.status, job.identity) == (first.id, first.pid, ProcessStatus.RUNNING, first.identity)
    assert kinds == [EventKind.ADOPTED]
    await job.send_line("two")
    result = await job.wait()
    assert (result.exit_code, result.status, result.stdout, result.stderr) == (7, ProcessStatus.FAILED, b"one\ntwo\n", b"err\n")
    assert [line async for line in job.lines()] == ["one", "two"]


async def test_who_waits_when_the_manager_closes_is_told_how_to_go_on(home):
    async with ProcessManager() as pm:
        job = await pm.spawn("sleep", "1000", name="job", detach=True)
        waiting = asyncio.ensure_future(job.wait())
        await asyncio.sleep(0)
    with pytest.raises(nbprocs.ProcessError, match="goes on without this manager"):
        await waiting
    assert alive(job.pid)
    async with ProcessManager() as pm:
        assert (await (await pm.adopt("job")).stop()).status is ProcessStatus.TERMINATED
    assert not alive(job.pid)


async def test_its_end_is_known_though_nobody_was_there(home, other):
    async with ProcessManager() as pm:
        job = await pm.spawn("sh", "-c", "echo done; exit 3", name="job", detach=True)
    await until(lambda: records.records()[0].state == "ended")
    found = await other.adopt(job.id)
    assert (found.status, found.result.exit_code, found.result.text) == (ProcessStatus.FAILED, 3, "done\n")
    assert found.result.execution_time < 20
    assert (await found.wait()) is found.result


async def test_a_signal_that_ended_it_is_known(home, pm, other):
    job = await pm.spawn("sleep", "1000", name="job", detach=True)
    os.kill(job.pid, signal.SIGKILL)
    assert (await job.wait()).signal == signal.SIGKILL
    assert (await other.adopt("job")).result.signal == signal.SIGKILL


async def test_two_kernels_look_at_once_and_both_hear_the_end(pm, other):
    first = await pm.spawn("sh", "-c", "trap '' TERM; sleep 1000 & setsid sleep 1001 & wait", name="job", detach=True)
    second = await other.adopt("job")
    results = await asyncio.gather(first.stop(grace=0.2), second.stop(grace=0.3))
    assert {result.status for result in results} == {ProcessStatus.TERMINATED}
    assert not alive(first.pid)


async def test_stop_of_one_that_was_adopted_ends_its_whole_tree_verified(home, pm, other):
    pids = home / "pids"
    await pm.spawn("sh", "-c", f"setsid sleep 1000 & echo $! > {pids}; sleep 1001 & echo $! >> {pids}; wait", name="job", detach=True)
    await until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    job = await other.adopt("job")
    await job.stop(grace=1)
    assert not [pid for pid in map(int, pids.read_text().split()) if alive(pid)]


@pytest.mark.parametrize(("options", "said"), [({}, "TERM"), ({"stop_signal": "SIGINT"}, "INT"), ({"stop_scope": "leader"}, "TERM")])
async def test_stop_asks_with_the_signal_that_it_was_started_with(pm, other, options, said):
    code = 'for s in TERM INT; do trap "echo $s; exit 5" $s; done; echo up; while :; do sleep 0.01; done'
    job = await pm.spawn("sh", "-c", code, name="job", detach=True, **options)
    await job.receive_output()
    result = await (await other.adopt("job")).stop(grace=60)
    assert (result.exit_code, result.text) == (5, f"up\n{said}\n")


async def test_pause_resume_and_interrupt_reach_it_from_another_kernel(pm, other):
    first = await pm.spawn("sleep", "1000", name="job", detach=True)
    job = await other.adopt("job")
    job.pause()
    await until(lambda: Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    await until(lambda: first.paused)
    job.resume()
    await until(lambda: not first.paused)
    job.interrupt()
    assert (await job.wait()).signal == signal.SIGINT


async def test_its_timeout_is_its_shims(home):
    async with ProcessManager() as pm:
        job = await pm.spawn("sleep", "1000", name="job", detach=True, timeout=0.3)
    await until(lambda: records.records()[0].state == "ended")
    assert not alive(job.pid)
    async with ProcessManager() as pm:
        found = await pm.adopt("job")
        assert str(found.result.reason) == "timeout"


async def test_a_terminal_stays_open_and_is_resized(pm, other):
    await pm.spawn("sh", "-c", "read a; stty size; read b", name="job", detach=True, pty=True, stdin=True)
    job = await other.adopt("job")
    job.resize(33, 101)
    await job.send_line("")
    await job.expect("33 101", timeout=20)
    await job.close_stdin()
    assert (await job.wait()).exit_code is not None


async def test_end_of_input_reaches_it(pm, other):
    await pm.spawn("cat", name="job", detach=True, stdin=True)
    job = await other.adopt("job")
    await job.send(b"x" * 300_000)
    await job.close_stdin()
    result = await job.wait()
    assert (result.exit_code, len(result.stdout)) == (0, 300_000)


async def test_adopting_twice_gives_the_same_process(pm):
    job = await pm.spawn("sleep", "1000", name="job", detach=True)
    assert await pm.adopt("job") is job
    await job.stop()


async def test_supervision_goes_on_after_adoption(home, other):
    policy = RestartPolicy(initial_delay=0.01, max_delay=0.02, max_restarts=3)
    async with ProcessManager() as pm:
        first = await pm.spawn("sh", "-c", "sleep 1000", name="job", detach=True, restart=policy)
    await other.adopt("job")
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: other.get("job").pid not in {None, first.pid} and other.get("job").status is ProcessStatus.RUNNING)
    assert other.get("job").restarts == 1
    await other.get("job").stop()


async def test_the_record_of_each_life_keeps_the_policy_for_the_next_kernel(home, other):
    policy = RestartPolicy(initial_delay=0.01, max_delay=0.02, max_restarts=7)
    async with ProcessManager() as pm:
        first = await pm.spawn("sleep", "1000", name="job", detach=True, restart=policy)
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: pm.get("job").pid not in {None, first.pid} and pm.get("job").status is ProcessStatus.RUNNING)
        await pm.restart("job")
    again = await other.adopt("job")
    os.kill(again.pid, signal.SIGKILL)
    await until(lambda: other.get("job").pid not in {None, again.pid} and other.get("job").status is ProcessStatus.RUNNING)
    await other.get("job").stop()
    await (await other.restart("job")).stop()  # by its owner: nobody supervises it any more, and no record says so
    assert [record.restart and record.restart["max_restarts"] for record in sorted(records.records(), key=lambda r: r.created)] == [
        7,
        7,
        7,
        7,
        None,
    ]


@pytest.mark.parametrize(
    "policy",
    [
        RestartPolicy(exit_codes={75, 3}, on="always", max_restarts=None, jitter="proportional"),
        RestartPolicy(breaker=CircuitBreaker(failures=2, window=7, open_for=np.float32(1.5))),
        RestartPolicy(rng=random.Random(3), healthy_after=math.inf, window=np.float32(5), max_restarts=np.int64(3)),
    ],
    ids=["exit codes", "a breaker", "numbers"],
)
async def test_every_policy_goes_on_after_adoption(home, other, policy):
    async with ProcessManager() as pm:
        await pm.spawn("sleep", "1000", name="job", detach=True, restart=policy)
    job = await other.adopt("job")
    assert manager_core(other).supervisor.policy(job.id) == policy
    await job.stop()


@pytest.mark.parametrize("command", ["exec sleep 1000", "sleep 1000 & exec sleep 1000"], ids=["alone", "with a leftover"])
async def test_a_restart_on_purpose_is_not_taken_for_somebody_elses_stop(home, pm, command):
    policy = RestartPolicy(initial_delay=0.01, max_delay=0.02, max_restarts=50)
    job = await pm.spawn("sh", "-c", command, name="job", detach=True, restart=policy)
    for _ in range(3):  # its shim tells all who follow it that it ends
        job = await pm.restart("job")
        assert (job.status, pm.get("job")) == (ProcessStatus.RUNNING, job)
        os.kill(job.pid, signal.SIGKILL)  # and it is still supervised
        await until(lambda old=job.pid: pm.get("job").pid not in {None, old} and pm.get("job").status is ProcessStatus.RUNNING)
    assert [record.name for record in records.records() if record.live] == ["job"]
    await pm.get("job").stop()


async def test_who_supervises_it_elsewhere_does_not_restart_what_was_stopped_or_restarted_here(home, pm, other):
    policy = RestartPolicy(initial_delay=0.01, max_delay=0.02)
    await pm.spawn("sleep", "1000", name="job", detach=True, restart=policy)
    seen = await other.adopt("job")
    new = await pm.restart("job")
    assert (await seen.wait()).status is ProcessStatus.TERMINATED
    assert not manager_core(other).supervisor.supervises(seen.id)
    assert (new.status, [record.pid for record in records.records() if record.live]) == (ProcessStatus.RUNNING, [new.pid])
    await new.stop()


async def test_the_kernel_that_has_its_secret_restarts_and_replaces_it(home, pm, tmp_path):
    policy = RestartPolicy(initial_delay=0.01, max_delay=0.02)
    script = 'echo "$API_KEY" >> keys; exec sleep 1000'
    job = await pm.spawn("sh", "-c", script, name="job", detach=True, restart=policy, env_vars={"API_KEY": "hush"}, working_dir=tmp_path)

    async def told(count):  # each has written before the next step ends it
        await until(lambda: (tmp_path / "keys").exists() and (tmp_path / "keys").read_text() == "hush\n" * count)

    await told(1)
    os.kill(job.pid, signal.SIGKILL)
    await told(2)
    await until(lambda: pm.get("job").pid not in {None, job.pid} and pm.get("job").status is ProcessStatus.RUNNING)
    await pm.restart("job")
    await told(3)
    new = await pm.replace("job")
    await told(4)
    await new.stop()


async def test_a_kernel_that_has_not_its_secret_starts_nothing_without_it(home, other, caplog):
    policy = RestartPolicy(initial_delay=0.01, max_delay=0.02)
    async with ProcessManager() as pm:
        await pm.spawn("sleep", "1000", name="job", detach=True, restart=policy, env_vars={"API_KEY": "hush"})
    job = await other.adopt("job")
    assert any("job is not supervised" in m and "env_vars['API_KEY'] held a secret" in m for m in caplog.messages)
    for again in (other.restart, other.replace):
        with pytest.raises(StartupFailed, match=r"env_vars\['API_KEY'\] held a secret"):
            await again("job")
        assert job.status is ProcessStatus.RUNNING
    assert (await other.replace("job", config=job.config.replace(env_vars={"API_KEY": "hush"}))).status is ProcessStatus.RUNNING
    await other.get("job").stop()


# --- starts -------------------------------------------------------------------------------------------------------------------------


async def test_a_start_that_fails_leaves_no_record(home, pm):
    with pytest.raises(StartupFailed, match="no such program"):
        await pm.spawn("no-such-program-here", detach=True)
    with pytest.raises(StartupFailed, match="working directory"):
        await pm.spawn("true", working_dir="/no/such/folder", detach=True)
    assert records.records() == []
    assert list((home / "state" / "detached").iterdir()) == []


async def test_a_live_name_is_taken_for_every_kernel(pm, other):
    job = await pm.spawn("sleep", "1000", name="job", detach=True)
    with pytest.raises(NameInUse, match="adopt"):
        await other.spawn("sleep", "1001", name="job", detach=True)
    await job.stop()
    again = await other.spawn("sleep", "1001", name="job", detach=True)
    await again.stop()


async def test_a_state_folder_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NBPROCS_STATE_DIR", str(tmp_path / "file" / "state"))
    async with ProcessManager() as pm:
        with pytest.raises(StartupFailed, match="NBPROCS_STATE_DIR"):
            await pm.spawn("true", detach=True)


async def test_a_cancelled_start_is_undone(home, pm):
    for delay in (0.0, 0.002, 0.01, 0.03):
        start = asyncio.ensure_future(pm.spawn("sleep", "1000", detach=True))
        await asyncio.sleep(delay)
        start.cancel()
        await asyncio.wait({start})
        if not start.cancelled():
            await start.result().stop()
    await until(lambda: not [record for record in records.records() if record.live])


@pytest.mark.parametrize("option", [{"inherit": [3]}, {"stdout": "log"}, {"stdin": open}])
async def test_what_a_detached_process_cannot_have_is_refused(home, pm, option):
    if option.get("stdin") is open:
        with open(os.devnull) as file, pytest.raises(StartupFailed, match="files"):
            await pm.spawn("true", detach=True, stdin=file)
    else:
        with pytest.raises(StartupFailed, match="detached"):
            await pm.spawn("true", detach=True, **option)


async def test_its_config_is_adopted_with_it(home, other):
    def told(_notice):
        pass

    options = {
        "env_vars": {"A": "1", "B": None},
        "working_dir": str(home),
        "stop_signal": "SIGINT",
        "stop_scope": "leader",
        "success_codes": [0, 3],
        "rlimits": {"NOFILE": (256, 512)},
        "nice": 1,
        "umask": 0o77,
        "encoding": "latin-1",
        "timeout": 60.0,
        "title": "a title",
        "merge_stderr": True,
    }
    async with ProcessManager() as pm:
        notify = nbprocs.Notify(to=[told, "https://example.org/planted"], failures_only=True)
        job = await pm.spawn("sh", "-c", "exit 3", name="job", detach=True, notify=notify, **options)
    found = await other.adopt("job")
    assert found.config.replace(notify=None) == job.config.replace(notify=None)
    assert found.config.notify == nbprocs.Notify(failures_only=True), (
        "the notebook is told; a callable was the kernel's, and a hook's address is a secret"
    )
    assert (await found.wait()).status is ProcessStatus.COMPLETED
    assert b"planted" not in b"".join(path.read_bytes() for path in (home / "state").rglob("*") if path.is_file())


async def test_secrets_are_nowhere_on_disk(home, pm, other):
    job = await pm.spawn(
        "sh", "-c", "exit 0", "--password=planted-one", detach=True, env_vars={"API_TOKEN": "planted-two", "PLAIN": "kept"}, name="job"
    )
    await job.wait()
    await (await pm.restart("job")).wait()
    written = b"".join(path.read_bytes() for path in (home / "state").rglob("*") if path.is_file())
    assert b"planted" not in written
    assert b"kept" in written
    await other.adopt("job")
    with pytest.raises(StartupFailed, match=r"can't be started again from its record: command, env_vars\['API_TOKEN'\] held a secret"):
        await other.restart("job")


async def test_records_and_sockets_are_for_their_owner_only(home, pm):
    job = await pm.spawn("sleep", "1000", detach=True)
    [folder] = (home / "state" / "detached").iterdir()
    [sock] = [path for path in (home / "run").iterdir() if path.name.startswith("detached")]
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "record.json", sock)] == [0o700, 0o600, 0o600]
    await job.stop()


# --- faults -------------------------------------------------------------------------------------------------------------------------


async def test_a_killed_shim_leaves_a_process_that_can_still_be_stopped(pm, other):
    job = await pm.spawn("sh", "-c", "echo before; sleep 1000", name="job", detach=True)
    assert await job.receive_output() == "before"
    os.kill(records.records()[0].shim_pid, signal.SIGKILL)
    await until(lambda: records.records()[0].state == "unguarded")
    found = await other.adopt("job")
    assert found.status is ProcessStatus.RUNNING
    result = await found.stop(grace=1)
    assert (result.exit_code, result.signal, result.stdout) == (None, None, b"before\n")
    assert not alive(job.pid)
    assert (await job.wait()).stdout == b"before\n"
    assert records.records()[0].state == "lost"


def rewritten(home, **changes):
    [path] = (home / "state" / "detached").glob("*/record.json")
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, **changes}))


async def test_after_a_reboot_the_record_says_so(home, other):
    async with ProcessManager() as pm:
        job = await pm.spawn("true", name="job", detach=True)
    await until(lambda: records.records()[0].state == "ended")
    # The pid is somebody's, and its start fits: the boot's id alone tells that it can't be the same process.
    me = os.getpid()
    start = int(Path(f"/proc/{me}/stat").read_text().rpartition(")")[2].split()[19])
    rewritten(home, state="running", pid=me, start=start, shim={"pid": me, "start": start}, boot="another", status=None)
    [record] = records.records()
    assert (record.state, record.rebooted) == ("lost", True)
    found = await other.adopt("job")
    assert (found.id, found.status, found.result.exit_code) == (job.id, ProcessStatus.FAILED, None)
    assert bool(nbprocs.detached().loc[0, "rebooted"])


async def test_a_pid_that_is_somebody_elses_by_now_is_not_taken_for_it(home):
    async with ProcessManager() as pm:
        await pm.spawn("true", name="job", detach=True)
    await until(lambda: records.records()[0].state == "ended")
    rewritten(home, state="running", pid=os.getpid(), start=1.0, shim={"pid": os.getpid(), "start": 1.0})
    assert records.records()[0].state == "lost"


async def test_an_end_that_is_written_while_the_record_is_read_is_not_taken_for_a_loss(home, monkeypatch):
    async with ProcessManager() as pm:
        await pm.spawn("true", name="job", detach=True)
    await until(lambda: records.records()[0].state == "ended")
    rewritten(home, state="running")

    def ends_now(_pid, _start):
        rewritten(home, state="ended")
        return False

    monkeypatch.setattr(records, "_is_there", ends_now)
    assert records.records()[0].state == "ended"


async def test_records_of_a_newer_version_and_broken_ones_are_shown_and_left_alone(home, other):
    async with ProcessManager() as pm:
        await pm.spawn("true", name="job", detach=True)
    await until(lambda: records.records()[0].state == "ended")
    rewritten(home, v=99)
    assert nbprocs.detached().loc[0, "state"] == "newer"
    assert nbprocs.detached(stale=True).empty, "its folder was written to a moment ago"
    with pytest.raises(StartupFailed, match="later version"):
        await other.adopt("job")
    assert nbprocs.forget() == 0
    [path] = (home / "state" / "detached").glob("*/record.json")
    path.write_text("{ half")
    assert nbprocs.detached().loc[0, "state"] == "broken"
    assert nbprocs.forget() == 1


async def test_what_is_not_there_is_named_with_close_matches(home, pm):
    job = await pm.spawn("sleep", "1000", name="training", detach=True)
    with pytest.raises(UnknownProcess, match="training"):
        await pm.adopt("trainnig")
    with pytest.raises(ValueError, match="lives"):
        nbprocs.forget("training")
    await job.stop()
    await until(lambda: records.records()[0].state == "ended")
    assert nbprocs.forget("training") == 1
    assert nbprocs.detached().empty


def long_ago(record):
    """Let the last look at it be more than a week ago."""
    path = record.folder / "seen"
    path.touch()
    os.utime(path, (time.time() - 8 * 86400,) * 2)


async def test_stale_ones_are_those_that_nobody_looked_at(home, pm):
    for name, code in (("lives", "exec sleep 1000"), ("ended", "true")):
        await pm.spawn("sh", "-c", code, name=name, detach=True)
    await pm.get("ended").wait()
    for record in records.records():
        long_ago(record)
    assert list(nbprocs.detached(stale=True)["name"]) == ["lives", "ended"]
    async with ProcessManager() as other:
        await other.adopt("lives")
        assert list(nbprocs.detached(stale=True)["name"]) == ["ended"]
        await other.adopt("ended")
        assert nbprocs.detached(stale=True).empty


# --- the log ------------------------------------------------------------------------------------------------------------------------


def filled(folder, size, *, limit, stream="stdout"):
    """A log that so many bytes were written to, through a pipe; each 8 bytes say their number."""
    log = segments.Segments(str(folder), stream, limit=limit)
    read, write = os.pipe()
    os.set_blocking(read, False)
    for number in range(0, size, 4096):
        os.write(write, b"".join(b"%08d" % (number + i) for i in range(0, 4096, 8)))
        log.take(read)
    os.close(write)
    assert log.take(read) == 0
    os.close(read)
    log.close()
    return log


def test_what_was_reserved_for_a_log_and_not_written_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 1 << 20)
    monkeypatch.setattr(segments, "_FAST", 0.0)
    filled(tmp_path, (1 << 20) + 4096, limit=1 << 30)
    last = max(tmp_path.iterdir()).stat()
    assert (last.st_size, last.st_blocks * 512 < 1 << 18) == (4096, True)


@pytest.mark.parametrize("spliced", [True, False])
def test_the_head_and_the_youngest_part_of_the_tail_are_kept(tmp_path, monkeypatch, spliced):
    monkeypatch.setattr(segments, "SEGMENT", 8192)
    monkeypatch.setattr(segments, "_HAS_SPLICE", spliced)
    monkeypatch.setattr(segments, "_FAST", 0.0)
    log = filled(tmp_path, 100 * 4096, limit=4 * 8192)
    assert log.end == 100 * 4096
    kept = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert kept == 4 * 8192
    assert log.dropped == log.end - kept
    view = recorded.RecordedLog("stdout")
    view.lie_in(tmp_path)
    view.grown(log.end)
    assert (view.dropped, view.start, view.spilled) == (log.dropped, 0, kept)
    assert view.read(0, 16) == (0, b"0000000000000008")
    position, data = view.read(8192, 8)
    assert position == log.end - (kept - 8192)
    assert data == b"%08d" % position
    assert view.tail(8) == b"%08d" % (log.end - 8)
    assert len(view.getvalue()) == kept


def test_bytes_that_a_full_disk_refused_are_counted_and_the_child_never_waits(home):
    """RLIMIT_FSIZE plays the full disk: the shim inherits it from its kernel."""
    code = (
        "import asyncio, resource, nbprocs\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "async def main():\n"
        "    pm = nbprocs.ProcessManager()\n"
        "    job = await pm.spawn('sh', '-c', 'head -c 5000000 /dev/zero; echo end', name='job', detach=True)\n"
        "    r = await job.wait(30)\n"
        "    print(r.exit_code, job.stdout.end, r.dropped_bytes, len(r.stdout))\n"
        "asyncio.run(main())\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    code, end, dropped, kept = map(int, out.stdout.split())
    assert (code, end) == (0, 5_000_004)
    assert dropped > 0
    assert dropped + kept == end
    (record,) = records.records()  # who comes when its shim has gone is told the same
    assert record.size("stdout") == end


def test_what_a_pipe_holds_is_read_before_it_is_closed_however_late(tmp_path):
    heard, said = os.pipe()
    os.set_blocking(heard, False)
    fcntl.fcntl(heard, fcntl.F_SETPIPE_SZ, keeper._PIPE)
    os.write(said, bytes(keeper._PIPE))
    logs = {stream: segments.Segments(str(tmp_path), stream, limit=1 << 30) for stream in keeper.STREAMS}
    logs["stdout"]._full(OSError(errno.ENOSPC, "full"))  # then it comes in the smallest pieces
    shim = keeper.Keeper.__new__(keeper.Keeper)
    shim.__dict__.update(_readers={heard: "stdout"}, _logs=logs, _sequence=order.OrderWriter(str(tmp_path)))
    shim.__dict__.update(_handlers={}, _followers=(), _telling=None, _exit=None)
    shim._late()
    assert (logs["stdout"].end, shim._readers) == (keeper._PIPE, {})
    os.close(said)


async def test_the_gap_leaves_a_line_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 8192)
    log = filled(tmp_path, 20 * 4096, limit=2 * 8192)
    view = recorded.RecordedLog("stdout")
    view.lie_in(tmp_path)
    view.grown(log.end)
    view.close()
    reader = nbprocs.engine.output.LineReader(view)
    lines = []
    while (block := reader.take()) is not None:
        lines += block
    assert any(f"{log.dropped:,} bytes of output dropped" in line for line in lines)


async def test_a_log_that_somebody_removed_is_said_to_be_dropped(tmp_path):
    log = filled(tmp_path, 8192, limit=1 << 30)
    view = recorded.RecordedLog("stdout")
    view.lie_in(tmp_path / "gone")
    view.grown(log.end)
    view.close()
    reader = nbprocs.engine.output.LineReader(view)
    lines = []
    while (block := reader.take()) is not None:
        lines += block
    assert lines[0] == "[nbprocs: 8,192 bytes of output dropped here]"


async def test_a_gigabyte_of_log_is_adopted_at_once(home, pm, other):
    """To the handle in less than 100 ms: nothing of the log is read. A sparse file plays the gigabyte."""
    job = await pm.spawn("sh", "-c", "echo begin; sleep 1000", name="job", detach=True)
    await job.receive_output()
    await job.stop()
    await until(lambda: records.records()[0].state == "ended")
    [head] = (home / "state" / "detached").glob("*/stdout.*")
    os.truncate(head, 1 << 30)
    began = time.perf_counter()
    found = await other.adopt("job")
    assert time.perf_counter() - began < 0.1 * (1 + os.getloadavg()[0])
    assert found.stdout.end == 1 << 30
    assert found.stdout.read(0, 6) == (0, b"begin\n")


# --- the command line -----------------------------------------------------------------------------------------------------------------


def command(*words, stdin=None):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "nbprocs", *words], env=env, capture_output=True, text=True, input=stdin, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_from_start_to_end(home):
    code, out, _ = command("run", "--detach", "--name", "job", "--stdin", "--", "sh", "-c", "echo one; echo two; read x; exit $x")
    assert code == 0
    assert out.startswith("job  ")
    assert "job" in command("ps")[1]
    [row] = json.loads(command("ps", "--json")[1])
    assert (row["name"], row["status"], row["detached"]) == ("job", "running", True)
    assert command("logs", "-n", "1", "job") == (0, "two\n", "")
    code, out, err = command("attach", "job", stdin="9\n")
    assert (code, out) == (9, "one\ntwo\n"), err
    assert command("wait", "job")[0] == 9
    assert command("logs", "job")[1] == "one\ntwo\n"
    assert "exit 9" in command("ps")[1]
    assert command("forget")[1] == "forgot 1\n"
    assert json.loads(command("ps", "--json")[1]) == []


TALKS = "for i in 1 2 3; do echo out $i; read x; echo err $i >&2; read x; done"


async def test_both_streams_are_shown_in_the_order_in_which_they_came(home, pm):
    """Each line waits until the one before is in the log: what comes at once can be told apart by nobody."""
    job = await pm.spawn("sh", "-c", TALKS, name="job", detach=True, stdin=True)
    following = subprocess.Popen(
        [sys.executable, "-m", "nbprocs", "logs", "-f", "job"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines = [f"{stream} {number}" for number in (1, 2, 3) for stream in ("out", "err")]
    for line in lines:
        await until(lambda line=line: line in job.tail(100))
        await job.send_line("")
    await job.wait()
    everything = "".join(f"{line}\n" for line in lines)
    assert (await asyncio.to_thread(following.communicate))[0].decode() == everything
    folder = records.records()[0].folder
    merged = both.BothStreams(folder)
    merged.grown({"stdout": job.stdout.end, "stderr": job.stderr.end})
    assert b"".join(data for _, data in merged.take()).decode() == everything
    assert await asyncio.to_thread(command, "logs", "-n", "2", "job") == (0, "out 3\n", "err 3\n")
    assert await asyncio.to_thread(command, "logs", "--stderr", "job") == (0, "err 1\nerr 2\nerr 3\n", "")


async def test_the_shim_gives_both_streams_as_one(home, pm):
    job = await pm.spawn("sh", "-c", TALKS + "; exec sleep 1000", name="job", detach=True, stdin=True)
    lines = [f"{stream} {number}" for number in (1, 2, 3) for stream in ("out", "err")]
    for line in lines:
        await until(lambda line=line: line in job.tail(100))
        await job.send_line("")
    everything = "".join(f"{line}\n" for line in lines).encode()
    said = b""
    while True:
        reply = await asyncio.to_thread(
            asking.ask, records.records()[0].socket, {"op": "output", "offset": len(said), "size": 9}, timeout=60
        )
        assert reply.answer["offset"] == len(said)
        if not (data := base64.b64decode(reply.answer["data"])):
            break
        said += data
    assert (said, reply.answer["end"]) == (everything, len(everything))
    await job.stop()


@settings(max_examples=50, deadline=None)
@given(
    runs=st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(1, 5)), max_size=60),
    size=st.integers(1, 20),
    full=st.sampled_from([8, 64]),
)
def test_the_order_of_both_streams_is_that_of_their_runs(runs, size, full):
    """Also after the file of the order was changed for a new one, as far as that knows it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "FULL", full)
        writer, ends, came = order.OrderWriter(folder), [0, 0], []
        for stream, length in runs:
            writer.turn(stream, ends[stream ^ 1])
            came += [(stream, ends[stream] + i) for i in range(length)]
            ends[stream] += length
        writer.close()
        reader = order.OrderReader(folder)
        given_back = [
            (stream, at)
            for stream, begin, end in order.pieces(reader.changes(tuple(ends)), (0, 0), tuple(ends))
            for at in range(begin, end)
        ]
        assert sorted(given_back) == sorted(came), "nothing is lost, nothing is there twice"
        tail = sum(length for _, length in runs[-(full // 8) :])  # as many changes as one full file holds
        assert given_back[len(came) - tail :] == came[len(came) - tail :]
        if len(runs) <= full // 8:
            assert given_back == came
        read: list[int] = []
        while data := order.read_both(folder, len(read), size, tuple(ends), lambda which, at, most: (at, bytes([which]) * most))[1]:
            assert len(data) == min(size, len(came) - len(read)), "one answer holds as much as was asked for, of however many runs"
            read += data
        assert read == [stream for stream, _ in given_back]


def test_a_command_of_many_lines_is_one_line_of_the_list(home):
    command("run", "--detach", "--name", "job", "--", "sh", "-c", "echo one\necho two\nsleep 1000")
    assert len(command("ps")[1].splitlines()) == 2
    command("stop", "job")


def test_the_command_line_says_what_is_wrong(home):
    code, _, err = command("stop", "nobody")
    assert (code, "no process 'nobody'" in err) == (1, True)
    assert command("run")[0] == 2
    assert command("run", "--", "sh", "-c", "echo out; exit 4")[:2] == (4, "out\n")
    code, _, err = command("run", "--", "no-such-program-here")
    assert (code, "no such program" in err) == (1, True)


async def answering():
    """The status socket of this interpreter's shim, which began to answer before this test."""
    await until(lambda: shim.shims._shims and shim.shims._shims[0].path)
    return shim.shims._shims[0].path


async def test_the_command_line_sees_and_stops_a_kernels_process(home, pm, monkeypatch):
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", os.path.dirname(await answering()))
    job = await pm.spawn("sleep", "1000", name="kernels")
    code, out, err = await asyncio.to_thread(command, "logs", "kernels")
    assert (code, "belongs to the kernel" in err) == (1, True), (out, err)
    assert (await asyncio.to_thread(command, "stop", "kernels"))[:2] == (0, "stopped kernels\n")
    assert (await job.wait()).status is ProcessStatus.TERMINATED


class Asking:
    """A connection that says when the question is on its way."""

    def __init__(self, path, asked):
        self._sock = asking.connect(path)
        self._asked = asked

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.close()

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def makefile(self):
        self._asked.set()
        return self._sock.makefile()


@pytest.mark.parametrize(("how", "code"), [("exit 7", 7), ("kill -KILL $$", 128 + signal.SIGKILL)])
async def test_wait_exits_as_a_kernels_process_did(home, pm, monkeypatch, how, code):
    path = Path(await answering())
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", str(path.parent))
    asked = threading.Event()
    monkeypatch.setattr(cli, "connect", lambda path: Asking(path, asked))
    job = await pm.spawn("sh", "-c", f"read go; {how}", name="kernels", stdin=True)
    waiting = asyncio.ensure_future(asyncio.to_thread(cli.main, ["wait", "kernels"]))
    await asyncio.to_thread(asked.wait, 60)
    await asyncio.to_thread(asking.ask, path, {"op": "status"}, timeout=60)  # answered after the other question was heard
    await job.send_line("go")
    assert await waiting == code


def typed(terminal, text):
    """Type something, as a person does."""
    os.write(terminal, text.encode())


def shown(terminal, text):
    """Wait until a terminal shows that; returns all that it showed until then."""
    seen = b""
    while text.encode() not in seen:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, seen
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the last holder of the other side is gone
            raise AssertionError(seen) from None
    return seen


def test_attach_is_a_terminal_that_can_be_left(home):
    command("run", "--detach", "--name", "job", "--pty", "--stdin", "--", "sh", "-c", "stty size; read a; echo got $a; read b; exit $b")
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
    words = [sys.executable, "-m", "nbprocs", "attach", "job"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as first:
        shown(master, "Ctrl-] leaves it running")
        typed(master, "one\r")
        shown(master, "got one")
        typed(master, "\x1d")
        shown(master, "[job goes on]")
        assert first.wait(60) == 0
    with subprocess.Popen(words, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as again:
        assert b"got one" in shown(master, "Ctrl-] leaves it running"), "what was on the screen is shown again"
        typed(master, "7\r")
        assert again.wait(60) == 7
    os.close(slave)
    os.close(master)


async def test_what_ends_other_processes_does_not_end_its_shim(home, pm):
    job = await pm.spawn("sh", "-c", "read x; exit $x", name="job", detach=True, stdin=True)
    shim_pid = records.records()[0].shim_pid
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(shim_pid, number)
    await job.send_line("6")
    assert (await job.wait()).exit_code == 6


def test_what_was_dropped_ends_an_answer(tmp_path):
    """The bytes behind it have another place: they begin the next one."""
    (tmp_path / "order").write_bytes(struct.pack("<3Q", 4 << 1, 3 << 1 | 1, 9 << 1))  # four, three of stderr, five

    def read(which, at, most):
        return (max(at, 2), b"e" * 1) if which else (at, b"o" * most)

    ends = (9, 3)
    assert order.read_both(str(tmp_path), 0, 100, ends, read) == (0, b"oooo")
    assert order.read_both(str(tmp_path), 4, 100, ends, read) == (6, b"eooooo")


def test_who_has_an_answer_of_the_shim_finds_that_it_was_looked_at(tmp_path):
    seen = []
    reply = SimpleNamespace(open=True, say=lambda _: seen.append((tmp_path / "seen").exists()))
    shim = SimpleNamespace(
        _followers=[],
        kids=SimpleNamespace(by_number={}),
        _ends=dict,
        _order_given={"folder": str(tmp_path)},
        _exit=None,
        _over=False,
        _readers={},
    )
    keeper.Keeper._op_follow(shim, {}, reply)
    assert seen == [True]


async def test_a_shim_that_can_not_be_reached_for_a_moment_is_not_taken_for_gone(home, pm, other, monkeypatch):
    """For want of a descriptor, say: the process runs, is adopted, and its end is known."""
    await pm.spawn("sh", "-c", "echo up; read x; exit 5", name="job", detach=True, stdin=True)
    usual, failed = detaching.connect, []

    def connect(path):
        if len(failed) < 2:
            failed.append(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return usual(path)

    monkeypatch.setattr(detaching, "connect", connect)
    monkeypatch.setattr(detaching, "_AGAIN", 0.01)
    job = await other.adopt("job")
    assert job.status is ProcessStatus.RUNNING
    await until(lambda: len(failed) == 2 and job.stdout.end == 3)
    await job.send_line("")
    assert (await job.wait(60)).exit_code == 5


def test_attach_with_a_pipe_as_its_terminal_reads_the_end_once(home, monkeypatch):
    command("run", "--detach", "--name", "job", "--stdin", "--", "sh", "-c", "cat; exit 6")
    reads, usual = [], os.read

    def read(fd, size):
        if fd == keys:
            reads.append(fd)
        return usual(fd, size)

    keys, writer = os.pipe()
    os.write(writer, b"typed\n")
    os.close(writer)
    with open(keys, closefd=True) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(os, "read", read)
        assert cli.main(["attach", "job"]) == 6
    assert len(reads) <= 3


def test_who_attaches_is_not_shown_a_line_of_megabytes_again(tmp_path):
    (tmp_path / "stdout.0000000000000000").write_bytes(b"x" * 100_000)
    shown_again = both.BothStreams(tmp_path)
    shown_again.grown({"stdout": 100_000})
    assert sum(len(data) for _, data in shown_again.take_lines(200, most=1000)) == 1000
