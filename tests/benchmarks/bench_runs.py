"""What recording costs, and how fast a history of a million runs answers."""

import asyncio
import itertools
import resource
import sqlite3
import statistics
import time
from contextlib import closing

import pytest

import nbprocs
from nbprocs.processes.manager import manager_core
from nbprocs.runs.schema import connect
from nbprocs.runs.writer import writing
from tests.benchmarks.harness import sized

RUNS = 200  # a block
BLOCKS = sized(12, quick=3)
MILLION = sized(1_000_000, quick=100_000)


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """A history of a million runs of a thousand commands, one in a hundred failed."""
    path = tmp_path_factory.mktemp("runs") / "million.db"
    with closing(connect(path)) as db:
        db.execute("BEGIN")
        db.execute("INSERT INTO sessions (host, pid, start, began) VALUES ('elsewhere', 1, 1.0, 1.0)")
        commands = ((n, f"python train.py --seed {n}", f'{{"words": ["python", "train.py", "--seed", "{n}"]}}', n, 7) for n in range(1000))
        db.executemany("INSERT INTO commands VALUES (?, ?, ?, ?, ?)", commands)
        db.execute("""INSERT INTO contexts VALUES (1, '{"folder": "/data", "git": {"revision": "abc", "dirty": false}}')""")
        db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ? - 1)"
            " INSERT INTO runs (key, id, session, name, command, context, started, ended, state, exit_code, seconds, cpu, peak_rss, stdout)"
            " SELECT (1 << 32) | i, printf('%08x-0000-4000-8000-000000000000', i), 1, 'train-' || (i % 1000), i % 1000, 1, 1.7e9 + i,"
            " 1.7e9 + i + 5, CASE WHEN i % 100 = 3 THEN 'failed' ELSE 'completed' END, i % 100 = 3, 5.0 + i % 7, 4.0, 50000000, 'loss 0.1'"
            " FROM n",
            (MILLION,),
        )
        db.execute("COMMIT")
    return path


def spent():
    """Seconds of a processor that this interpreter has used, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def blocks(path):
    """(wall, CPU) seconds of block after block of the same runs, by turns recorded and not: the machine drifts by more than what it costs."""
    found = {True: [], False: []}
    async with (
        nbprocs.ProcessManager(max_concurrent=4, runs=path) as recorded,
        nbprocs.ProcessManager(max_concurrent=4, runs=False) as plain,
    ):
        for n in range(BLOCKS + 1):
            for on in (True, False) if n % 2 else (False, True):
                began, before = time.perf_counter(), spent()
                await asyncio.gather(*((recorded if on else plain).run("true") for _ in range(RUNS)))
                wall = time.perf_counter() - began
                await asyncio.to_thread(writing(path).flush)  # what is still to be written is this block's
                found[on].append((wall, spent() - before))
    return {on: found[on][1:] for on in found}  # the first of each warms up


def test_recording_costs_at_most_a_twentieth(bench, tmp_path):
    names, taken = itertools.count(), {}

    def rate():
        found = asyncio.run(blocks(tmp_path / f"{next(names)}.db"))
        wall, cpu = ({on: statistics.median(pair[at] for pair in found[on]) for on in found} for at in (0, 1))
        taken["cpu"] = 1e6 * (cpu[True] - cpu[False]) / RUNS
        taken["share"] = cpu[True] / cpu[False]
        return wall[False] / wall[True]

    bench.row("rate of true with recording / without", ours=rate, floor=0.95, unit="ratio", rounds=1)
    bench.row("CPU of the kernel's process that recording a run takes", ours=lambda: taken["cpu"], unit="µs", rounds=1)
    bench.row("CPU of the kernel's process with recording / without", ours=lambda: taken["share"], unit="ratio", rounds=1)


def test_nothing_on_the_loop_above_a_fifth_of_a_millisecond(bench, tmp_path):
    """The time of each call that a manager makes to its recorder; a percentile, since a busy machine stops anybody for a while."""
    taken = []

    async def main():
        async with nbprocs.ProcessManager(max_concurrent=4, runs=tmp_path / "loop.db") as pm:
            heard = manager_core(pm).recorder.heard

            def timed(*args):
                began = time.thread_time()
                heard(*args)
                taken.append(time.thread_time() - began)

            manager_core(pm).recorder.heard = timed
            await asyncio.gather(*(pm.run("echo", "x") for _ in range(2 * RUNS)))

    asyncio.run(main())
    taken.sort()
    bench.row("a note on the loop, median", ours=lambda: 1e6 * statistics.median(taken), unit="µs", rounds=1)
    bench.row("a note on the loop, longest", ours=lambda: 1e6 * taken[-1], ceiling=200, unit="µs", rounds=1)


@pytest.mark.parametrize(
    "wanted",
    [
        {"command": "--seed 77"},
        {"command": "train.py"},
        {"name": "train-500"},
        {"name": "train-5*"},
        {"state": "failed"},
        {"since": 1.7e9 + 500_000, "until": 1.7e9 + 501_000},
        {"command": "--seed 3", "state": "failed", "since": 1.7e9 + 900_000},
    ],
    ids=str,
)
def test_a_filtered_query(bench, million, wanted):
    def youngest():
        assert nbprocs.runs(million).filter(**wanted)[-20:]

    row(bench, f"the youngest 20 of a million with {wanted}", youngest, factor=1e3, ceiling=50, unit="ms")


def row(bench, name, function, *, factor, ceiling, unit):
    """What it takes of a processor is promised, and how long it took on this machine, whatever else it does, is told."""
    walls = []

    def used():
        began, before = time.perf_counter(), time.process_time()
        function()
        walls.append(factor * (time.perf_counter() - began))
        return factor * (time.process_time() - before)

    bench.row(f"{name}: CPU", ours=used, ceiling=ceiling, unit=unit)
    bench.row(f"{name}: wall", ours=lambda: statistics.median(walls), unit=unit, rounds=1)


def test_a_frame_of_a_hundred_thousand(bench, million):
    def youngest():
        assert len(nbprocs.runs(million).frame(limit=100_000)) == 100_000

    def by_time():
        assert len(nbprocs.runs(million).filter(since=1.7e9 + 400_000, until=1.7e9 + 500_000).frame()) == 100_000

    row(bench, "a frame of the youngest 100,000 of a million", youngest, factor=1, ceiling=1.0, unit="s")
    row(bench, "a frame of 100,000 by time", by_time, factor=1, ceiling=1.0, unit="s")


def test_it_is_a_sound_file(million):
    with closing(sqlite3.connect(million)) as db:
        assert db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
