"""The doctor: each trouble that it knows is planted, and found with its cure; it never takes two seconds."""

import asyncio
import importlib.metadata
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import psutil
import pytest

import nbprocs
from nbprocs.engine.child import TOKEN
from nbprocs.runs.doctor import PROBES, Finding, Verdict, doctor
from nbprocs.runs.writer import writing


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("NBPROCS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look(*names):
    return doctor(probes={name: PROBES[name] for name in names})


def test_all_of_it_takes_less_than_two_seconds_and_is_shown_in_every_form():
    began = time.monotonic()
    found = nbprocs.doctor()
    assert time.monotonic() - began < 2
    wanted = {
        "python",
        "event loop",
        "ipykernel",
        "front end",
        "guard",
        "orphans",
        "zombies",
        "managers",
        "open files",
        "processes",
        "memory",
    }
    wanted |= {"processors", "temporary folder", "state folder", "runtime folder", "working folder", "GPU", "widgets", "JupyterLab", "Dask"}
    wanted |= {"stale sockets", "detached", "run history", "git"} | (
        {"pidfd", "subreaper", "shared memory"} if sys.platform == "linux" else set()
    )
    assert wanted <= {finding.what for finding in found}
    told = json.loads(found.json())
    assert told["ok"] == found.ok
    assert len(told["findings"]) == len(found) == len(found.frame())
    assert {finding["state"] for finding in told["findings"]} <= {"ok", "warn", "bad"}
    page = found._repr_mimebundle_()["text/html"]
    assert "<script" not in page
    assert "python" in page
    assert "python" in repr(found)
    assert not [finding for finding in found if finding.state is not Verdict.OK and not finding.cure]


def test_the_worst_comes_first_with_its_cure():
    probes = {
        "a": lambda: [Finding(area="x", what="fine", state=Verdict.OK, said="good", cure="nothing to cure")],
        "b": lambda: [Finding(area="x", what="<b>broken</b>", state=Verdict.BAD, said="bad", cure="mend <it>")],
    }
    found = doctor(probes=probes)
    assert not found.ok
    lines = repr(found).splitlines()
    assert "broken" in lines[1]
    assert "mend" in lines[2]
    assert "nothing to cure" not in repr(found)
    page = found._repr_mimebundle_()["text/html"]
    assert "mend &lt;it&gt;" in page
    assert "<b>broken" not in page


def test_a_probe_that_hangs_or_fails_is_a_finding():
    release = threading.Event()

    def hangs():
        release.wait()
        return []

    def fails():
        raise OSError("no such thing")

    try:
        began = time.monotonic()
        found = doctor(probes={"hung": hangs, "broken": fails}, deadline=0.2)
        assert time.monotonic() - began < 1.5
        assert found["hung"].state is Verdict.WARN
        assert "no answer" in found["hung"].said
        assert "no such thing" in found["broken"].said
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == "nbprocs-doctor hung":
                thread.join(5)


# --- processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads environments in /proc")
def test_an_orphan_of_an_earlier_kernel_is_named():
    orphan = subprocess.Popen(["sleep", "1000"], env={**os.environ, TOKEN: "0123456789abcdef0123456789abcdef.1.x"}, start_new_session=True)
    try:
        finding = look("orphans")["orphans"]
        assert finding.state is Verdict.BAD
        assert f"{orphan.pid} sleep 1000" in finding.said
        assert str(orphan.pid) in finding.cure
    finally:
        orphan.kill()
        orphan.wait()
    assert str(orphan.pid) not in look("orphans")["orphans"].said


@pytest.mark.skipif(sys.platform != "linux", reason="reads environments in /proc")
def test_what_a_living_helper_holds_is_no_orphan_though_it_does_not_name_its_token(folders):
    """As of a detached process."""
    helper = folders / "nbprocs" / "engine" / "shim_main.py"
    helper.parent.mkdir(parents=True)
    helper.write_text(
        "import subprocess, sys; p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True); sys.stdin.read(); p.kill(); p.wait()"
    )
    env = {**os.environ, TOKEN: "fedcba9876543210.x"}
    with subprocess.Popen([sys.executable, str(helper)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = process.stdout.readline().strip()
        assert f"{child} sleep" not in look("orphans")["orphans"].said
        process.stdin.close()


async def test_what_runs_under_a_living_kernel_is_no_orphan():
    async with nbprocs.ProcessManager() as pm:
        process = await pm.spawn("sleep", "1000")
        daemon = await pm.run("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!")
        said = look("orphans")["orphans"].said
        assert str(process.pid) not in said
        assert daemon.text.strip() not in said
        assert look("guard")["guard"].state is Verdict.OK
        assert "pid" in look("guard")["guard"].said


def test_zombies():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    finding = look("zombies")["zombies"]
    assert finding.state is Verdict.WARN
    assert str(child.pid) in finding.said
    child.wait()
    assert look("zombies")["zombies"].state is Verdict.OK


def test_stale_sockets(folders):
    (folders / "runtime").mkdir()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(folders / "runtime" / "shim-1.sock"))
    finding = look("sockets")["stale sockets"]
    assert finding.state is Verdict.WARN
    assert "shim-1.sock" in finding.said
    assert "rm " in finding.cure


def planted(folders, name, **fields):
    """A record of a detached process, started when time began."""
    folder = folders / "state" / "detached" / name
    folder.mkdir(parents=True)
    about = {"v": 1, "id": f"id-{name}", "name": name, "command": "c", "state": "ended", "created": 1.0}
    (folder / "record.json").write_text(json.dumps(about | fields))
    return folder


def test_what_was_detached_and_forgotten(folders):
    assert look("records")["detached"].said == "none"
    (planted(folders, "looked-at") / "seen").touch()
    planted(folders, "recent", created=time.time())
    assert look("records")["detached"].said == "0 live, 2 ended", "a result that waits for its reader is no trouble"
    me = psutil.Process()
    start = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    planted(folders, "old")
    planted(folders, "lives", state="running", pid=me.pid, start=start, shim={"pid": me.pid, "start": start})
    planted(folders, "unguarded", state="running", pid=me.pid, start=start, created=time.time())
    (planted(folders, "broken") / "record.json").write_text("{")
    found = {finding.said: finding.cure for finding in doctor(probes={"records": PROBES["records"]})}
    assert found == {
        "1 live, and nobody has looked at them for a week: lives": "nbprocs stop id-lives",
        "1 have ended, and nobody has looked at them for a week: old": "nbprocs forget id-old",
        "1 live without their helper, which was killed: unguarded": "nbprocs stop id-unguarded",
        "1 can't be read: broken": f"rm -r {folders / 'state' / 'detached' / 'broken'}",
    }


def test_a_helper_that_does_not_answer(folders):
    (folders / "runtime").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folders / "runtime" / "shim-2.sock"))
        server.listen()
        finding = look("shims")["helpers"]
    assert finding.state is Verdict.WARN
    assert "shim-2.sock" in finding.said


def test_queues_that_were_not_closed(folders):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (folders / "jobs.db-owner").write_text(json.dumps({"pid": dead.pid}))
    finding = look("locks")["queues"]
    assert (finding.state, "jobs.db" in finding.said) == (Verdict.WARN, True)
    (folders / "jobs.db-owner").write_text(json.dumps({"pid": os.getpid()}))
    assert len(look("locks")) == 0


async def test_a_manager_that_nobody_holds(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", sys)  # as in a kernel
    managers = [nbprocs.ProcessManager()]
    await managers[0].spawn("sleep", "1000")
    assert look("managers")["managers"].state is Verdict.WARN
    monkeypatch.setattr(sys.modules["__main__"], "pm", managers[0], raising=False)
    assert look("managers")["managers"].state is Verdict.OK
    await managers[0].aclose()


async def test_a_history_that_can_not_be_written(folders, monkeypatch):
    nbprocs.set_runs(folders / "runs.db")
    try:
        async with nbprocs.ProcessManager() as pm:
            await pm.run("true")
            assert look("run_history")["run history"].state is Verdict.OK
            monkeypatch.setattr(writing(folders / "runs.db"), "error", "database or disk is full")
            finding = look("run_history")["run history"]
        assert finding.state is Verdict.BAD
        assert "full" in finding.said
    finally:
        nbprocs.set_runs(None)


# --- kernel ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "state", "word"),
    [("7.0.1", "bad", "LookupError"), ("7.2.0", "warn", "subshell"), ("7.4.0", "ok", "7.4.0"), ("6.30.1", "ok", "6.30.1"), ("6.9.0", "warn", "older"),
     ("8.0.0a1", "ok", "8.0.0a1")],
)  # fmt: skip
def test_known_troubles_of_ipykernel(monkeypatch, version, state, word):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "ipykernel" else real(name))
    finding = look("ipykernel")["ipykernel"]
    assert finding.state == state
    assert word in finding.said
    assert bool(finding.cure) is (state != "ok")


async def test_the_loop_of_who_asks():
    loop = asyncio.get_running_loop()
    assert "Loop" in look("event_loop")["event loop"].said
    loop.set_debug(True)
    assert look("event_loop")["event loop"].state is Verdict.WARN
    loop.set_debug(False)


def test_no_loop():
    assert "none runs" in look("event_loop")["event loop"].said


# --- limits --------------------------------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(("free", "state"), [(10 << 20, "bad"), (500 << 20, "warn"), (50 << 30, "ok")])
def test_disks(monkeypatch, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 << 30, 0, free))
    found = look("disks")
    assert {finding.state for finding in found} == {Verdict(state)}
    assert len(found) == 4


def test_a_folder_that_is_not_there(monkeypatch):
    monkeypatch.setenv("NBPROCS_STATE_DIR", "/proc/no/such")
    assert look("disks")["state folder"].state is Verdict.BAD


@pytest.mark.parametrize(("used", "state"), [(10, "ok"), (85, "warn"), (99, "bad")])
def test_open_files(monkeypatch, used, state):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (10_000, 10_000))
    monkeypatch.setattr(psutil.Process, "num_fds", lambda _: 100 * used)
    assert look("open_files")["open files"].state == state


def test_few_open_files(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    finding = look("open_files")["open files"]
    assert (finding.state, finding.cure.split(",")[0]) == ("warn", "ulimit -n 4096")


def test_a_stopped_helper_costs_no_more_than_the_deadline(folders):
    """Not a mock: a process that is stopped holds the socket."""
    (folders / "runtime").mkdir()
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('ready', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folders / "runtime" / "shim-3.sock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "ready\n"
        holder.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        found = nbprocs.doctor()
        assert time.monotonic() - began < 2
        assert found["helpers"].state is Verdict.WARN
        holder.kill()
