"""The durable queue under kill -9: fifty deaths at random moments, and after each the file is looked at with plain SQLite.

What must hold: a task whose ``schedule`` returned is in the file; one that is recorded as finished never runs again; in the end all have
succeeded. Each task appends its number to a log, one atomic write, so that every run of it is known, whatever the queue says.
"""

import asyncio
import contextlib
import random
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

TASKS = 1000
DEATHS = 50

KERNEL = """
import asyncio, os, sys
from nbprocs.scheduler import SchedulerConfig, TaskScheduler

folder, total = sys.argv[1], int(sys.argv[2])

def say(text):
    os.write(1, (text + "\\n").encode())

async def main():
    returned = os.open(f"{folder}/returned", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sch = TaskScheduler(SchedulerConfig(max_concurrent_tasks=4, max_interruptions=100), store=f"{folder}/queue.db")
    say("open")
    known = sch._core.store.last_key()
    for n in range(known + 1, total + 1):
        handle = sch.schedule("/bin/sh", "-c", f"echo {n} >> {folder}/log; sleep 0.0{2 + n % 7}", name=f"t{n}")
        os.write(returned, f"{handle.id} {n}\\n".encode())
        if n % 20 == 0:
            await asyncio.sleep(0)
    await sch.join()
    say("joined")
    await sch.aclose()

asyncio.run(main())
"""


class Life:
    """One kernel, from its start to its death."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        self.deaths = 0

    async def run(self, *, to_the_end: bool) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KERNEL, str(self.folder), str(TASKS), stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        if to_the_end:
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert out.decode().split() == ["open", "joined"]
            return
        if self.chance.random() < 0.9:  # else it dies while it starts, opens and resumes
            assert await process.stdout.readline() == b"open\n"
        try:
            async with asyncio.timeout(self.chance.uniform(0.0, 0.25)):
                await process.wait()
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
        await process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        self.deaths += process.returncode == -signal.SIGKILL


def runs(folder: Path) -> Counter[int]:
    log = folder / "log"
    return Counter(int(line) for line in log.read_text().split()) if log.exists() else Counter()


def finished(folder: Path) -> dict[int, str]:
    """Every task that the file says has ended, as any reader of the file would see it."""
    if not (folder / "queue.db").exists():
        return {}
    with closing(sqlite3.connect(folder / "queue.db")) as db:
        found = dict(db.execute("SELECT name, state FROM tasks WHERE state NOT IN ('queued', 'held', 'running')").fetchall())
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
    return {int(name[1:]): state for name, state in found.items()}


def returned(folder: Path) -> set[int]:
    path = folder / "returned"
    return {int(line.split()[1]) for line in path.read_text().splitlines() if len(line.split()) == 2} if path.exists() else set()


def stored(folder: Path) -> set[int]:
    if not (folder / "queue.db").exists():
        return set()
    with closing(sqlite3.connect(folder / "queue.db")) as db:
        return {int(name[1:]) for (name,) in db.execute("SELECT name FROM tasks")}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_fifty_deaths_lose_nothing_and_repeat_nothing_finished(tmp_path: Path) -> None:
    chance = random.Random(20261124)
    life = Life(tmp_path, chance)
    settled: dict[int, int] = {}  # task -> how often it had run when it was first seen as finished
    for _ in range(DEATHS):
        await life.run(to_the_end=False)
        assert returned(tmp_path) <= stored(tmp_path), "what schedule() returned is on disk"
        ran, ended = runs(tmp_path), finished(tmp_path)
        assert set(ended.values()) <= {"succeeded"}
        assert settled.keys() <= ended.keys(), "what has finished stays finished"
        for task, before in settled.items():
            assert ran[task] == before, f"task {task} ran again after it was recorded as finished"
        for task in ended.keys() - settled.keys():
            assert ran[task] >= 1, f"task {task} is recorded as finished and never ran"
            settled[task] = ran[task]
    assert life.deaths == DEATHS, "there was work left at every death"
    await life.run(to_the_end=True)
    ran, ended = runs(tmp_path), finished(tmp_path)
    assert ended == dict.fromkeys(range(1, TASKS + 1), "succeeded"), "every task, once, with its end"
    assert ran.keys() == ended.keys()
    for task, before in settled.items():
        assert ran[task] == before
    with closing(sqlite3.connect(tmp_path / "queue.db")) as db:
        [(succeeded, interrupted)] = db.execute("SELECT sum(outcome = 'succeeded'), sum(outcome = 'interrupted') FROM attempts")
    assert interrupted >= DEATHS / 2, "tasks ran when their kernel died"
    assert succeeded == TASKS, "one success on record for each"
    assert sum(ran.values()) <= TASKS + interrupted, "no run but those on record"


KERNEL_CELL = """
import sys
from nbprocs.scheduler import SchedulerConfig, TaskScheduler
sch = TaskScheduler(SchedulerConfig(max_concurrent_tasks=1), store={store!r})
first = sch.schedule("echo", "first", name="first")
await first
sch.schedule(sys.executable, "-c", {code!r}, name="second")
sch.schedule("echo", "third", name="third")
"""


async def test_the_next_kernel_goes_on_where_a_killed_one_ended(start_kernel, tmp_path: Path) -> None:
    store, ready = tmp_path / "queue.db", tmp_path / "ready"
    code = f"import pathlib, time\nif not pathlib.Path({str(ready)!r}).exists():\n    pathlib.Path({str(ready)!r}).touch()\n    time.sleep(1e6)\nprint('second')"
    kernel = await start_kernel()
    await kernel.run(KERNEL_CELL.format(store=str(store), code=code))
    await kernel.run("import asyncio, pathlib\nwhile not pathlib.Path(" + repr(str(ready)) + ").exists(): await asyncio.sleep(0.01)")
    kernel.kill()
    await kernel.gone()
    other = await start_kernel()
    text = await other.run(
        f"from nbprocs.scheduler import TaskScheduler\nsch = TaskScheduler(store={str(store)!r})\nawait sch.join()\n"
        "print([(t, (await sch.get(t)).text.strip(), [a.outcome for a in sch.get(t).attempts]) for t in ('first', 'second', 'third')])\n"
        "await sch.aclose()"
    )
    assert text.strip() == str(
        [("first", "first", ["succeeded"]), ("second", "second", ["interrupted", "succeeded"]), ("third", "third", ["succeeded"])]
    )


OUTLIVING = """
import asyncio, os, sys
from nbprocs.scheduler import SchedulerConfig, TaskScheduler

folder, total = sys.argv[1], int(sys.argv[2])

async def main():
    sch = TaskScheduler(SchedulerConfig(max_concurrent_tasks=3, max_interruptions=1000), store=folder + "/queue.db")
    os.write(1, b"open\\n")
    for n in range(1, total + 1):
        sch.schedule("/bin/sh", "-c", f"echo {n} >> {folder}/log; sleep 0.{2 + n % 4}; echo done {n}", name=f"t{n}", key=f"t{n}", detach=True)
    await sch.join()
    await sch.aclose()
    os.write(1, b"joined\\n")

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_outlives_its_kernel_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBPROCS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", str(tmp_path / "run"))
    chance, total = random.Random(20261127), 12
    for death in range(9):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OUTLIVING, str(tmp_path), str(total), stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        if death < 8:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.05, 1.0)):
                    await process.wait()
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        await process.communicate()
    assert process.returncode == 0
    ran, ended = runs(tmp_path), finished(tmp_path)
    assert ended == dict.fromkeys(range(1, total + 1), "succeeded")
    with closing(sqlite3.connect(tmp_path / "queue.db")) as db:
        attempts = Counter(dict(db.execute("SELECT substr(name, 2) + 0, count(*) FROM attempts JOIN tasks USING (key) GROUP BY key")))
        outputs = {
            int(name[1:]): out
            for name, out in db.execute("SELECT name, stdout FROM attempts JOIN tasks USING (key) WHERE outcome = 'succeeded'")
        }
    assert outputs == {n: f"done {n}\n".encode() for n in range(1, total + 1)}, "the result of each, whoever was there at its end"
    assert ran == Counter(range(1, total + 1)), f"each ran once, though attempts were noted as {attempts}"
