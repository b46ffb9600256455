"""A run history: what is recorded of a run, and how it is found again."""

import asyncio
import gc
import json
import os
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

import nbprocs
from nbprocs.processes.recording import kernel_runs
from nbprocs.runs import rows
from nbprocs.runs.history import RunHistory
from nbprocs.runs.secrets import Scrubber

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


async def some_runs(path, count=3):
    async with nbprocs.ProcessManager(runs=path) as pm:
        for n in range(count):
            await pm.run("echo", str(n), name=f"echo {n}")


async def test_a_run_is_a_row_with_all_that_is_known_of_it(path, tmp_path):
    script = tmp_path / "job.py"
    script.write_text("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    before = datetime.now(UTC).timestamp()
    async with nbprocs.ProcessManager(runs=path) as pm:
        result = await pm.run(sys.executable, str(script), name="job", working_dir=tmp_path, env_vars={"MODE": "fast"}, check=False)
    run = nbprocs.runs(path)[-1]
    assert (run.id, run.name, run.state, run.exit_code, run.signal) == (result.process_id, "job", "failed", 3, None)
    assert run.command == result.command
    assert (run.stdout, run.stderr, run.stdout_bytes) == ("out\n", "err\n", 4)
    assert run.folder == str(tmp_path)
    assert run.env == {"MODE": "fast"}
    assert run.seconds == pytest.approx(result.execution_time)
    assert run.cpu == result.cpu_time
    assert run.peak_rss == result.peak_rss
    assert before <= run.started <= run.ended <= datetime.now(UTC).timestamp()
    assert set(run.inputs) == {str(script), sys.executable}
    assert run.inputs[str(script)]["size"] == len(script.read_text())
    assert run.host
    assert run.git is None


async def test_what_a_run_wrote_to_disk_and_its_peak_memory(path, tmp_path):
    code = "import os, sys; data = b'x' * 50_000_000; f = open('out', 'wb'); f.write(data); f.flush(); os.fsync(f.fileno())"
    async with nbprocs.ProcessManager(runs=path) as pm:
        result = await pm.run(sys.executable, "-c", code, working_dir=tmp_path)
    run = nbprocs.runs(path)[-1]
    assert (run.written_bytes, run.read_bytes) == (result.written_bytes, result.read_bytes)
    assert run.written_bytes >= 50_000_000 or run.written_bytes == 0  # a file system in memory is no disk
    assert run.peak_rss == result.peak_rss
    assert run.peak_rss >= 50_000_000


async def test_git_revision_with_dirty_mark_and_hash_of_the_difference(path, tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "a.txt").write_text("1\n")
    for command in ("init -q", "add .", "commit -qm first"):
        subprocess.run([*GIT, *command.split()], cwd=repo, check=True)
    head = subprocess.run([*GIT, "rev-parse", "HEAD"], cwd=repo, check=True, capture_output=True, text=True).stdout.strip()
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("cat", "a.txt", working_dir=repo)
        nbprocs.runs(path)[-1]  # what was gathered is written by now: the repository was looked at
        (repo / "a.txt").write_text("2\n")
        await pm.run("cat", "a.txt", working_dir=repo)
    clean, dirty = nbprocs.runs(path)
    assert (clean.git["revision"], clean.git["dirty"], clean.git["diff"]) == (head, False, None)
    assert (dirty.git["revision"], dirty.git["dirty"]) == (head, True)
    assert dirty.git["diff"]
    assert dirty.revision.startswith(head[:10] + "+")
    changes = clean.diff(dirty)
    assert {"revision", "input a.txt"} <= {row[0] for row in changes}
    with pytest.raises(TypeError, match="other must be a RunRecord"):
        clean.diff(5)


async def test_failed_starts_signals_and_stops(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        with pytest.raises(nbprocs.StartupFailed):
            await pm.run("no-such-program-here", name="missing")
        await pm.run("sh", "-c", "kill -9 $$", name="killed", check=False)
        sleeper = await pm.spawn("sleep", "100", name="sleeper")
        await sleeper.stop()
        await pm.spawn("sleep", "100", name="left")
    missing, killed, sleeper, left = nbprocs.runs(path)
    assert (missing.state, missing.pid) == ("failed", None)
    assert "No such file" in missing.error
    assert (killed.state, killed.signal) == ("failed", 9)
    assert (sleeper.state, sleeper.reason) == ("terminated", "stopped")
    assert (left.state, left.reason) == ("terminated", "stopped: manager closed")


async def test_filters_indexing_and_iteration(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        for n in range(4):
            await pm.run("echo", str(n), name=f"echo {n}")
        await pm.run("false", name="wrong", check=False)
    runs = nbprocs.runs(path)
    assert [run.name for run in runs] == ["echo 0", "echo 1", "echo 2", "echo 3", "wrong"]
    assert (runs[0].name, runs[-1].name, runs[-2].name) == ("echo 0", "wrong", "echo 3")
    assert [run.name for run in runs[1:3]] == ["echo 1", "echo 2"]
    assert [run.name for run in runs[-2:]] == ["echo 3", "wrong"]
    assert [run.name for run in runs[::2]] == ["echo 0", "echo 2", "wrong"]
    assert runs["echo 1"].stdout == "1\n"
    assert runs[runs[2].id].name == runs[runs[2].id[:8]].name == "echo 2"
    assert len(runs.filter(command="echo")) == 4
    assert [run.name for run in runs.filter(command="echo [12]")] == ["echo 1", "echo 2"]
    assert len(runs.filter(name="echo*")) == 4
    assert runs.filter(state="failed")[0].name == "wrong"
    assert len(runs.filter(state=("failed", "completed"))) == 5
    assert len(runs.filter(since=runs[2].started)) == 3
    assert len(runs.filter(until=runs[2].started, name="echo*")) == 2
    assert len(runs.filter(since=timedelta(hours=1))) == 5
    assert len(runs.filter(until=datetime.now(UTC) - timedelta(hours=1))) == 0
    assert len(runs.filter(since="2001-01-01")) == 5
    with pytest.raises(IndexError):
        runs[5]
    with pytest.raises(nbprocs.UnknownProcess):
        runs["nobody"]


async def test_a_frame(path):
    await some_runs(path)
    frame = nbprocs.runs(path).frame()
    assert list(frame.index) == ["echo 0", "echo 1", "echo 2"]
    assert list(frame["command"]) == ["echo 0", "echo 1", "echo 2"]
    assert set(frame["state"]) == {"completed"}
    assert str(frame["started"].dtype).startswith("datetime64")
    assert (frame["ended"] >= frame["started"]).all()
    assert list(nbprocs.runs(path).frame(limit=1).index) == ["echo 2"]
    assert gc.isenabled()
    assert len(nbprocs.runs(path).filter(name="none").frame()) == 0


async def test_what_is_running_is_seen_at_once(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        process = await pm.spawn("sleep", "100", name="sleeper")
        run = nbprocs.runs(path)[-1]
        assert (run.state, run.ended, run.pid) == ("running", None, process.pid)
        assert len(nbprocs.runs(path).filter(state="running")) == 1


async def test_the_kernels_history(path):
    nbprocs.set_runs(path)
    try:
        async with nbprocs.ProcessManager() as pm:
            await pm.run("true", name="one")
        async with nbprocs.ProcessManager(runs=False) as pm:
            await pm.run("true", name="unseen")
        async with nbprocs.ProcessManager(background=True) as pm:
            await pm.run("true", name="two")
        assert [run.name for run in nbprocs.runs()] == ["one", "two"]
    finally:
        nbprocs.set_runs(None)
    assert kernel_runs() is None
    with pytest.raises(nbprocs.RunsError, match="none"):
        nbprocs.runs()


async def test_the_whole_output_is_kept_on_request(path):
    async with nbprocs.ProcessManager(runs=nbprocs.RunsConfig(path=path, output=True, tail=100)) as pm:
        await pm.run("seq", "5000")
    run = nbprocs.runs(path)[-1]
    assert len(run.stdout) == 100
    assert run.output().splitlines() == [str(n) for n in range(1, 5001)]
    assert run.output("stderr") == ""


async def test_the_kernels_own_environment_is_kept_as_a_difference(path, monkeypatch):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true")
        monkeypatch.setenv("NBPROCS_TEST_MODE", "slow")
        await pm.run("true")
    first, second = nbprocs.runs(path)
    assert (first.kernel, second.kernel) == ({}, {"NBPROCS_TEST_MODE": "slow"})
    assert first.diff(second)["env NBPROCS_TEST_MODE"] == ("-", "slow")


# --- secrets ---------------------------------------------------------------------------------------------------------------


async def test_no_secret_is_in_any_file(path, tmp_path, monkeypatch):
    planted = {name: f"planted-{name}-x7Qz" for name in ("kernel", "env", "word", "assigned", "url", "line", "name", "error", "stdin")}
    monkeypatch.setenv("DB_PASSWORD", planted["kernel"])
    async with nbprocs.ProcessManager(runs=nbprocs.RunsConfig(path=path, output=True)) as pm:
        env = {"API_TOKEN": planted["env"], "URL": f"postgres://me:{planted['url']}@db/x", "PLAIN": f"also {planted['env']}"}
        await pm.run("sh", "-c", 'echo "$API_TOKEN $DB_PASSWORD $URL"; env >&2', env_vars=env)
        await pm.run("echo", "--password", planted["word"], f"--token={planted['assigned']}", "ok")
        await pm.run(f"echo --secret {planted['line']}; echo token={planted['line']}", shell=True)
        await pm.run("echo", "x", name=f"job token={planted['name']}")
        await pm.run("cat", input=planted["stdin"].encode(), env_vars={"SECRET": planted["stdin"]})
        with pytest.raises(nbprocs.StartupFailed):
            await pm.run(f"/no/{planted['error']}", env_vars={"MY_SECRET": planted["error"]})
        kernel = await pm.spawn("sleep", "100", env_vars={"KEY_TOKEN": planted["env"]})
        assert nbprocs.runs(path)[-1].id == kernel.id  # the -wal and -shm files are there now
        files = [file for file in tmp_path.iterdir() if file.is_file()]
        assert {file.name for file in files} == {"runs.db", "runs.db-wal", "runs.db-shm"}
        found = [(name, file.name) for name, value in planted.items() for file in files if value.encode() in file.read_bytes()]
        shown = "".join(run._repr_mimebundle_()["text/html"] + repr(run) for run in nbprocs.runs(path))
    assert not found
    assert not [value for value in planted.values() if value in shown or any(value.encode() in f.read_bytes() for f in tmp_path.iterdir())]
    assert nbprocs.runs(path)[0].env["API_TOKEN"] == "•••"


def test_known_values_are_masked_the_longest_first():
    assert Scrubber(["abcd", "abcdef", "1"]).clean("abcdef abcd 1") == "••• ••• 1"


async def test_the_files_are_the_users_alone(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true")
        len(nbprocs.runs(path))
        for suffix in ("", "-wal", "-shm"):
            assert stat.S_IMODE(os.stat(f"{path}{suffix}").st_mode) == 0o600


async def test_an_environment_of_ten_megabytes(path, monkeypatch):
    monkeypatch.setenv("NBPROCS_TEST_HUGE", "h" * 100_000)
    env = {f"VAR_{n}": "x" * 100_000 for n in range(100)}
    async with nbprocs.ProcessManager(runs=path) as pm:
        with pytest.raises(nbprocs.StartupFailed):  # more than the system takes
            await pm.run("true", env_vars=env)
        await pm.run("true", env_vars={f"V{n}": "y" * 10_000 for n in range(90)})
    refused, taken = nbprocs.runs(path)
    assert refused.state == "failed"
    assert any("more variables" in str(value) for value in refused.env.values())
    assert sum(len(value) for value in taken.env.values()) < 60_000
    assert os.stat(path).st_size < 1_000_000


# --- provenance --------------------------------------------------------------------------------------------------------------


async def test_rerun_with_changes(path, monkeypatch):
    monkeypatch.setenv("RUN_TOKEN", "s3cr3t-of-the-kernel")
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("sh", "-c", "echo $A $RUN_TOKEN $0", "x", env_vars={"A": "1", "RUN_TOKEN": "s3cr3t-of-the-kernel"}, timeout=50)
    run = nbprocs.runs(path)[-1]
    assert (await run.rerun()).text == "1 s3cr3t-of-the-kernel x\n"
    assert (await run.rerun(env_vars={"A": "2"}, args=("-c", "echo $A"))).text == "2\n"
    again = nbprocs.runs(path)[1:]
    assert [r.parent for r in again] == [run.id, run.id]
    assert run.to_config().timeout == 50
    with pytest.raises(nbprocs.ProcessFailed):
        await run.rerun(args=("-c", "exit 2"))
    monkeypatch.delenv("RUN_TOKEN")
    with pytest.raises(nbprocs.NotRerunnable, match="RUN_TOKEN"):
        await run.rerun()


async def test_a_masked_command_asks_for_its_arguments(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("echo", "--password", "hunter22")
        await pm.run("true", *["word" * 100] * 300)
    masked, long = nbprocs.runs(path)
    with pytest.raises(nbprocs.NotRerunnable, match="secret"):
        await masked.rerun()
    assert (await masked.rerun(args=("--password", "other333"))).text == "--password other333\n"
    with pytest.raises(nbprocs.NotRerunnable, match="too long"):
        await long.rerun()


async def test_show_tells_which_inputs_have_changed(path, tmp_path):
    script = tmp_path / "s.sh"
    script.write_text("echo 1")
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("sh", str(script))
    run = nbprocs.runs(path)[-1]
    assert run.changed_since() == ()
    script.write_text("echo 2")
    assert run.changed_since() == (str(script),)
    page = run.show()._repr_mimebundle_()["text/html"]
    assert "s.sh" in page
    assert "<script" not in page


async def test_a_command_with_markup_is_shown_as_text(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("echo", "<script>alert(1)</script>")
    runs = nbprocs.runs(path)
    for thing in (runs, runs[-1], runs[-1].diff(runs[-1])):
        assert "<script" not in thing._repr_mimebundle_()["text/html"]


async def test_diff_of_two_runs(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("sh", "-c", "echo same; echo 1", env_vars={"A": "1"})
        await pm.run("sh", "-c", "echo same; echo 2; exit 3", env_vars={"A": "2"}, check=False)
    first, second = nbprocs.runs(path)
    found = first.diff(second)
    assert found["env A"] == ("1", "2")
    assert found["state"] == ("completed", "failed exit 3")
    assert dict(found.output)["stdout"] == (" same", "-1", "+2")
    assert list(found.frame().loc["env A"]) == ["1", "2", ""]
    assert not {"started", "folder"} & {row[0] for row in found}


async def test_export_is_prov_json(path, tmp_path):
    (tmp_path / "in.txt").write_text("x")
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("cat", "in.txt", working_dir=tmp_path)
    await nbprocs.runs(path)[-1].rerun()
    document = json.loads(json.dumps(nbprocs.runs(path).export()))
    first, second = (f"run:{run.id}" for run in nbprocs.runs(path))
    assert set(document["activity"]) == {first, second}
    assert document["activity"][first]["prov:startTime"] <= document["activity"][first]["prov:endTime"]
    used = [use["prov:entity"] for use in document["used"].values() if use["prov:activity"] == first]
    assert document["entity"][used[0]]["prov:label"] == "in.txt"
    assert next(iter(document["wasInformedBy"].values())) == {"prov:informed": second, "prov:informant": first}
    for kind in ("wasAssociatedWith", "wasGeneratedBy", "agent"):
        assert document[kind]
    known = set(document["entity"]) | set(document["activity"]) | set(document["agent"])
    for relation in ("used", "wasGeneratedBy", "wasAssociatedWith"):
        for each in document[relation].values():
            assert set(each.values()) - {"input", "code"} <= known


async def test_a_command_is_looked_at_once(path, monkeypatch):
    """Masking and writing down a config takes longer than all else that a row costs."""
    asked = []
    real = rows.config_json
    monkeypatch.setattr(rows, "config_json", lambda config: asked.append(config) or real(config))
    async with nbprocs.ProcessManager(runs=path) as pm:
        for _ in range(5):
            await pm.run("true")
    assert len(asked) == 1


# --- many ------------------------------------------------------------------------------------------------------------------


async def test_two_managers_and_many_runs_at_once_in_one_file(path):
    async with nbprocs.ProcessManager(runs=path) as one, nbprocs.ProcessManager(runs=path, background=True) as two:
        await asyncio.gather(*(pm.run("true", name=f"{k} {n}") for k, pm in enumerate((one, two)) for n in range(40)))
    runs = nbprocs.runs(path)
    assert sorted(run.name for run in runs) == sorted(f"{k} {n}" for k in range(2) for n in range(40))
    assert {run.state for run in runs} == {"completed"}


def test_the_package_is_what_reads_a_history():
    import nbprocs.runs.history

    assert nbprocs.runs.history.RunHistory is RunHistory
    assert nbprocs.runs is sys.modules["nbprocs.runs"]


def test_a_file_that_is_not_there_and_one_that_is_something_else(path):
    with pytest.raises(nbprocs.RunsError, match="there is no"):
        len(nbprocs.runs(path))
    assert "there is no" in repr(nbprocs.runs(path))
    path.write_text("no database at all, but a text of some length")
    with pytest.raises(nbprocs.RunsError):
        len(nbprocs.runs(path))
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (a)")
    db.close()
    with pytest.raises(nbprocs.RunsError, match="no run history"):
        nbprocs.runs(path).frame()
