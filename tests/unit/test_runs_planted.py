"""A history whose every figure is known: what a scheduler makes of it, and what two runs differ in."""

import asyncio
import contextlib
import logging
import math
import os
import time

import pytest

import nbprocs
from nbprocs.display import duration
from nbprocs.runs.record import RunRecord
from nbprocs.runs.rows import fingerprint
from nbprocs.runs.schema import connect
from nbprocs.widgets.queue_view import COLUMNS, QueuePart

MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def plant(path, words, *, seconds, peak=100 * MIB, state="completed"):
    """Runs of a command, oldest first, that ended a minute ago."""
    key = fingerprint(words)
    with contextlib.closing(connect(path)) as db:
        db.execute("INSERT OR IGNORE INTO sessions (key, host, pid, start, began) VALUES (1, 'here', 1, 1.0, 1.0)")
        about = (key, " ".join(words), f'{{"words": {list(words)!r}}}'.replace("'", '"'), key, fingerprint(words[:2]))
        db.execute("INSERT OR IGNORE INTO commands VALUES (?, ?, ?, ?, ?)", about)
        (last,) = db.execute("SELECT coalesce(max(key), 1 << 32) FROM runs").fetchone()
        db.executemany(
            "INSERT INTO runs (key, id, session, name, command, started, ended, state, seconds, peak_rss) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?)",
            [
                (last + n + 1, f"planted-{last + n}", words[0], key, time.time() - 60 + n / 1000, time.time(), state, spent, peak)
                for n, spent in enumerate(seconds)
            ],
        )


# --- estimates -----------------------------------------------------------------------------------------------------------------


async def test_a_timeout_is_three_times_what_was_rarely_exceeded_and_ends_the_run(path):
    plant(path, ("sleep", "1000"), seconds=[0.01 * n for n in range(1, 21)])  # the 95th of a hundred of them: 0.19
    plant(path, ("sleep", "1000"), seconds=[50.0] * 5, state="failed")
    async with nbprocs.TaskScheduler(runs=path) as sch:
        handle = sch.schedule("sleep", "1000", timeout="p95*3")
        assert sch._core.find(handle.id).options.timeout == pytest.approx(0.57)
        with pytest.raises(nbprocs.ExecutionTimeout):
            await handle


async def test_a_memory_gate_is_what_the_command_used_and_holds_it_back(path, monkeypatch):
    plant(path, ("echo", "x"), seconds=[0.01] * 20, peak=700 * MIB)
    free = [600 * MIB]
    monkeypatch.setattr("nbprocs.scheduler.local.available_memory", lambda: free[0])
    async with nbprocs.TaskScheduler(runs=path) as sch:
        gated, learned = sch.schedule("echo", "x", memory_gate="p95"), sch.schedule("echo", "x", resources="learned")
        for handle in (gated, learned):
            assert sch._core.find(handle.id).options.memory_gate == 700 * MIB
        assert learned.task.estimated_duration == pytest.approx(0.01)
        assert (await sch.schedule("echo", "free")).text == "free\n"
        assert (gated.state, learned.state) == ("queued", "queued")
        free[0] = 800 * MIB
        assert ((await gated).text, (await learned).text) == ("x\n", "x\n")


async def test_an_eta_is_known_with_an_interval_before_anything_ran(path):
    plant(path, ("make", "all"), seconds=[8.0, 10.0, 12.0])
    async with nbprocs.TaskScheduler(nbprocs.SchedulerConfig(max_concurrent_tasks=2), runs=path) as sch:
        sch.pause()
        sch.schedule_many([("make", "all")] * 20)
        eta = sch.status().eta
        assert eta.middle == pytest.approx(100, rel=0.06)  # 20 of 10 s, two at a time
        assert 0 < eta.middle - eta.low == pytest.approx(1.96 * math.sqrt(20 * 4) / 2, rel=0.01)
        assert eta.high - eta.middle == pytest.approx(eta.middle - eta.low)
        assert "expected" in str(sch.tasks()[0]) or sch.tasks()[0].estimated_duration == pytest.approx(10)
        sch.cancel()


# --- two runs ------------------------------------------------------------------------------------------------------------------


def record(path, **fields):
    return RunRecord(
        **{
            "path": path, "key": 1, "id": "11111111", "name": "fit", "command": "fit --rate 1", "config": {"words": ["fit", "--rate", "1"]},
            "state": "completed", "started": 1.7e9, "seconds": 10.0, "cpu": 9.0, "peak_rss": 100 * MIB, "stdout": "loss 1\nend\n",
            "git": {"revision": "a" * 40, "dirty": False}, "inputs": {"data.csv": {"size": 3, "hash": "1" * 64}}, "folder": "/a", "host": "one",
            "env": {"SEED": "1", "LOGIN_TOKEN": "•••"}, **fields,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("what", "change", "shown"),
    [
        ("command", {"command": "fit --rate 2"}, ("fit --rate 1", "fit --rate 2")),
        ("env SEED", {"env": {"SEED": "2", "LOGIN_TOKEN": "•••"}}, ("1", "2")),
        ("env LOGIN_TOKEN", {"env": {"SEED": "1"}}, ("•••", "-")),
        ("revision", {"git": {"revision": "b" * 40, "dirty": False}}, ("a" * 10, "b" * 10)),
        ("revision", {"git": {"revision": "a" * 40, "dirty": True, "diff": "123456789"}}, ("a" * 10, "a" * 10 + "+123456")),
        ("input data.csv", {"inputs": {"data.csv": {"size": 3, "hash": "2" * 64}}}, ("3 B 111111111111", "3 B 222222222222")),
        ("duration", {"seconds": 24.0}, ("10 s", "24 s")),
        ("CPU", {"cpu": 18.0}, ("9 s", "18 s")),
        ("peak memory", {"peak_rss": 250 * MIB}, ("100.0 MiB", "250.0 MiB")),
        ("state", {"state": "failed", "exit_code": 3}, ("completed", "failed exit 3")),
        ("folder", {"folder": "/b"}, ("/a", "/b")),
        ("host", {"host": "two"}, ("one", "two")),
    ],
    ids=repr,
)
def test_a_difference_of_each_kind_is_told_and_nothing_else(path, what, change, shown):
    found = record(path).diff(record(path, **change))
    assert found[what] == shown
    assert [row[0] for row in found] == [what]
    assert not found.output


def test_a_difference_of_output_and_none(path):
    assert dict(record(path).diff(record(path, stdout="loss 2\nend\n")).output) == {"stdout": ("-loss 1", "+loss 2", " end")}
    same = record(path).diff(record(path, seconds=10.3, started=1.8e9))
    assert not same
    assert str(same) == "no difference"
    assert "2.40 x" in str(record(path).diff(record(path, seconds=24.0)))


# --- input files ---------------------------------------------------------------------------------------------------------------


async def test_what_is_read_of_input_files_is_bounded(path, tmp_path):
    """Sixteen files, none of them above 64 MiB, and nothing that is no file: a FIFO would never end."""
    names = [f"f{n:02}" for n in range(20)]
    for name in names:
        (tmp_path / name).write_text(name)
    os.truncate(tmp_path / names[0], 65 * MIB)
    os.mkfifo(tmp_path / "fifo")
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("true", "fifo", str(tmp_path), *names, working_dir=tmp_path)
    inputs = nbprocs.runs(path)[-1].inputs
    assert list(inputs) == names[:16]
    assert (inputs["f00"]["size"], "hash" in inputs["f00"]) == (65 * MIB, False)
    assert all(len(inputs[name]["hash"]) == 64 for name in names[1:16])


# --- secrets in logs -----------------------------------------------------------------------------------------------------------


async def test_what_is_logged_of_a_changed_script_holds_no_secret(path, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG, "nbprocs")
    monkeypatch.setenv("API_TOKEN", "planted-x7Qz")
    script = tmp_path / "job-planted-x7Qz.sh"
    script.write_text("true")
    async with nbprocs.TaskScheduler(runs=path) as sch:
        handle = sch.schedule("sh", str(script), "--token", "planted-word", hold=True)
        assert sch._recorded.flush()
        script.write_text("echo new")
        handle.release()
        await handle
    async with asyncio.timeout(20):
        while "changed between" not in caplog.text:
            await asyncio.sleep(0.01)
    assert "planted" not in caplog.text
    assert not [file for file in tmp_path.glob("runs.db*") if b"planted-x7Qz" in file.read_bytes() or b"planted-word" in file.read_bytes()]


# --- the queue's view ------------------------------------------------------------------------------------------------------------


async def test_the_queue_view_gets_what_is_expected_before_it_runs_and_what_it_was(path):
    plant(path, ("sleep", "0"), seconds=[20.0] * 5)
    async with nbprocs.TaskScheduler(runs=path) as sch:
        part = QueuePart(sch)
        waiting = sch.schedule("sleep", "0", hold=True)

        def row(handle):
            return dict(zip(COLUMNS, part._put(handle.task), strict=True))

        assert row(waiting)["expected"] == 20.0
        assert row(waiting)["why"].endswith(f"then about {duration(20)}")
        unknown = sch.schedule("never", "seen", hold=True)
        assert row(unknown)["expected"] is None
        assert "about" not in row(unknown)["why"]
        waiting.release()
        await waiting
        assert row(waiting)["why"] == ""
        assert waiting.task.execution_time < 20.0
        sch.cancel()
