"""The manager against asyncio's own subprocesses, threads, xargs and a plain pipe."""

import asyncio
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nbprocs import ProcessManager
from tests.benchmarks.harness import sized

ROOT = Path(__file__).parents[2]
RUNS, WIDTH = sized(1000, quick=200), 4
MIB = 1 << 20
LINE = "x" * 79
MUCH = sized(1024, quick=128)  # MiB


# --- many short commands --------------------------------------------------------------------------------------------------


async def _workers(one):
    """1000 calls, 4 at a time."""
    left = iter(range(RUNS))

    async def work():
        for _ in left:
            await one()

    await asyncio.gather(*(work() for _ in range(WIDTH)))


async def through_the_manager():
    async with ProcessManager(max_concurrent=WIDTH) as pm:
        await _workers(lambda: pm.run("true"))


async def through_asyncio():
    async def one():
        process = await asyncio.create_subprocess_exec("true", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        await process.communicate()

    await _workers(one)


def through_threads():
    with ThreadPoolExecutor(WIDTH) as pool:
        list(pool.map(lambda _: subprocess.run(["true"], capture_output=True, check=True), range(RUNS)))


def through_xargs():
    numbers = "\n".join(map(str, range(RUNS))).encode()
    subprocess.run(["xargs", "-P", str(WIDTH), "-n", "1", "true"], input=numbers, capture_output=True, check=True)


def bare_spawns():
    """What the system could do at best: vfork, exec and reap, one after another on as many threads, nothing captured."""
    with ThreadPoolExecutor(WIDTH) as pool:
        list(pool.map(lambda _: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0), range(RUNS)))


def test_short_commands(bench):
    bench.row(
        "1000 × true, captured, 4 at a time",
        ours=through_the_manager,
        peers={"asyncio": through_asyncio, "xargs -P 4": through_xargs, "4 threads of subprocess.run": through_threads},
        limit=bare_spawns,
        at_least={"asyncio": 1.4, "xargs -P 4": 0.95},
        work=RUNS,
        unit="runs/s",
        rounds=5,
    )


# --- the shim -------------------------------------------------------------------------------------------------------------

MANY_CORES = 8


async def _cpu_of_the_kernel(run, count=RUNS // 2):
    """Microseconds of this process's own CPU for each child."""
    left = iter(range(count))

    async def work():
        for _ in left:
            await run()

    await work()
    left = iter(range(count))
    began = time.process_time()
    await asyncio.gather(*(work() for _ in range(WIDTH)))
    return (time.process_time() - began) / count * 1e6


async def cpu_of_ours():
    async with ProcessManager() as pm:
        return await _cpu_of_the_kernel(lambda: pm.run("true"))


async def _one_of_asyncio():
    process = await asyncio.create_subprocess_exec("true", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    await process.communicate()


async def cpu_of_asyncio():
    return await _cpu_of_the_kernel(_one_of_asyncio)


def test_cpu_of_the_kernel(bench):
    bench.row("CPU of the kernel a child", ours=cpu_of_ours, peers={"asyncio": cpu_of_asyncio}, at_most={"asyncio": 0.5}, unit="µs")


async def latency_of_ours():
    async with ProcessManager() as pm:
        await pm.run("true")
        began = time.perf_counter()
        for _ in range(200):
            await pm.run("true")
        return (time.perf_counter() - began) / 200 * 1000


async def latency_of_asyncio():
    began = time.perf_counter()
    for _ in range(200):
        await _one_of_asyncio()
    return (time.perf_counter() - began) / 200 * 1000


def test_one_after_the_other(bench):
    bench.row(
        'one run("true") after the other', ours=latency_of_ours, peers={"asyncio": latency_of_asyncio}, at_most={"asyncio": 1.0}, unit="ms"
    )


async def _sixteen(one):
    left = iter(range(RUNS))

    async def work():
        for _ in left:
            await one()

    await asyncio.gather(*(work() for _ in range(16)))


async def sixteen_of_ours():
    async with ProcessManager(max_concurrent=16) as pm:
        await _sixteen(lambda: pm.run("true"))


async def sixteen_of_asyncio():
    await _sixteen(_one_of_asyncio)


def sixteen_of_xargs():
    numbers = "\n".join(map(str, range(RUNS))).encode()
    subprocess.run(["xargs", "-P", "16", "-n", "1", "true"], input=numbers, capture_output=True, check=True)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < MANY_CORES, reason="a row for 8 cores or more")
def test_short_commands_on_many_cores(bench):
    bench.row(
        "1000 × true, captured, 16 at a time",
        ours=sixteen_of_ours,
        peers={"asyncio": sixteen_of_asyncio, "xargs -P 16": sixteen_of_xargs},
        at_least={"asyncio": 2.0, "xargs -P 16": 1.5},
        work=RUNS,
        unit="runs/s",
    )


FIRST = """
import asyncio, time
from nbprocs import ProcessManager
async def main():
    async with ProcessManager() as pm:
        began = time.perf_counter()
        await pm.spawn("sleep", "1000")
        print((time.perf_counter() - began) * 1000)
asyncio.run(main())
"""


def first_spawn(code=FIRST):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return float(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout)


def first_run():
    return first_spawn(FIRST.replace('pm.spawn("sleep", "1000")', 'pm.run("true")'))


def test_first_spawn(bench):
    bench.row("first spawn of a kernel", ours=first_spawn, ceiling=40, unit="ms", rounds=5)
    bench.row("first pm.run of a kernel", ours=first_run, ceiling=80, unit="ms", rounds=5)


async def _held(work):
    """How long the loop was held at most, in milliseconds, while that was awaited; and how long it took, in seconds."""
    loop, late, over = asyncio.get_running_loop(), [], asyncio.Event()

    async def watch():
        while not over.is_set():
            due = loop.time() + 0.002
            await asyncio.sleep(0.002)
            late.append(loop.time() - due)

    watching = loop.create_task(watch())
    await asyncio.sleep(0.02)
    began = time.perf_counter()
    await work()
    took = time.perf_counter() - began
    over.set()
    await watching
    return sorted(late), took


STOPS = {}


async def many_stops():
    async with ProcessManager() as pm:
        procs = []

        async def start():
            for _ in range(125):
                procs.append(await pm.spawn("sleep", "1000"))

        await asyncio.gather(*(start() for _ in range(16)))
        late, took = await _held(lambda: asyncio.gather(*(proc.stop() for proc in procs[:1500])))
        assert pm.live == 500
        STOPS["held"] = late[-1] * 1000
        return took


def test_many_stops(bench):
    bench.row("1,500 × stop() at once among 2,000 children: all gone", ours=many_stops, ceiling=3, unit="s", rounds=1)
    bench.row("… the loop held by them", ours=lambda: STOPS["held"], ceiling=50, unit="ms", rounds=1)


def _p99(late):
    return late[int(len(late) * 0.99)] * 1000


async def held_by_a_spawn():
    async with ProcessManager() as pm:
        await pm.spawn("sleep", "1000")

        async def starts():
            for _ in range(200):
                await pm.spawn("sleep", "1000")

        late, _ = await _held(starts)
        return _p99(late)


async def held_by_a_spawn_of_asyncio():
    started = []

    async def starts():
        for _ in range(200):
            started.append(await asyncio.create_subprocess_exec("sleep", "1000", stdout=subprocess.PIPE, stderr=subprocess.PIPE))

    late, _ = await _held(starts)
    for process in started:
        process.kill()
    await asyncio.gather(*(process.communicate() for process in started))
    return _p99(late)


async def held_by_nobody():
    late, _ = await _held(lambda: asyncio.sleep(0.5))
    return _p99(late)


def test_loop_held_by_a_spawn(bench):
    """The limit is what a timer of two milliseconds is late on a loop that does nothing else."""
    bench.row(
        "the loop held by one spawn, p99",
        ours=held_by_a_spawn,
        peers={"asyncio": held_by_a_spawn_of_asyncio},
        limit=held_by_nobody,
        ceiling=0.5,
        unit="ms",
    )


MEMORY = f"""
import asyncio, psutil
from nbprocs import ProcessManager
from nbprocs.engine.shim import shims
async def main():
    async with ProcessManager() as pm:
        for count in ({RUNS}, {sized(10_000, quick=1_000)}):
            left = iter(range(count))
            async def work():
                for _ in left:
                    await pm.run("true")
            await asyncio.gather(*(work() for _ in range(16)))
            print(max(psutil.Process(pid).memory_info().rss for pid in shims.pids) / {MIB})
asyncio.run(main())
"""
HELD = []  # MiB after the first thousand, and after ten thousand more


def memory_of_a_shim():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", MEMORY], env=env, check=True, capture_output=True, text=True).stdout
    HELD[:] = map(float, said.split())
    return HELD[0]


def test_memory_of_a_shim(bench):
    """Of a kernel that does nothing else."""
    bench.row("memory of a shim after 1000 children", ours=memory_of_a_shim, ceiling=12, unit="MiB", rounds=1)
    bench.row("… growth over 10,000 more", ours=lambda: HELD[1] - HELD[0], ceiling=0.5, unit="MiB", rounds=1)


def test_short_commands_with_a_large_kernel(bench):
    held = []

    def with_a_gibibyte():
        if not held:
            held.append(b"x" * (1024 * MIB))
        return asyncio.run(_rate())

    def without():
        held.clear()
        return asyncio.run(_rate())

    async def _rate():
        began = time.perf_counter()
        await through_the_manager()
        return RUNS / (time.perf_counter() - began)

    bench.row(
        "the same with 1 GiB resident",
        ours=with_a_gibibyte,
        peers={"nbprocs, small kernel": without},
        at_least={"nbprocs, small kernel": 0.9},
        unit="runs/s",
        rounds=5,
    )


# --- much output ----------------------------------------------------------------------------------------------------------


def lines_of(mebibytes):
    """A shell line that writes so much in lines of 80 bytes."""
    return f"yes {LINE} | head -c {mebibytes * MIB}"


async def read_by(counted):
    async with ProcessManager() as pm:
        began = time.perf_counter()
        process = await pm.spawn(lines_of(MUCH), shell=True)
        assert await counted(process) == -(-MUCH * MIB // 80)
        return MUCH / (time.perf_counter() - began)


async def lines_in(process):
    count = 0
    async for _ in process.lines():
        count += 1
    return count


async def read_by_readline():
    size = 128  # MiB: its rate does not depend on how much there is
    began = time.perf_counter()
    process = await asyncio.create_subprocess_shell(lines_of(size), stdout=subprocess.PIPE)
    while await process.stdout.readline():
        pass
    await process.wait()
    return size / (time.perf_counter() - began)


def read_by_a_loop():
    """The plain blocking loop: nothing else runs meanwhile, and nothing is kept."""
    began = time.perf_counter()
    with subprocess.Popen(lines_of(MUCH), shell=True, stdout=subprocess.PIPE, text=True) as process:
        for _ in process.stdout:
            pass
    return MUCH / (time.perf_counter() - began)


async def lines_in_blocks(process):
    count = 0
    async for block in process.blocks():
        for _ in block:
            count += 1
    return count


async def yield_lines():
    """What ``async for`` itself can do at best: the lines are there, nobody reads, splits or decodes anything."""
    block = [LINE] * (64 * MIB // 80)

    async def lines():
        for _ in range(MUCH // 64):
            for line in block:
                yield line

    began = time.perf_counter()
    async for _ in lines():
        pass
    return MUCH / (time.perf_counter() - began)


PLAIN = "for line in Popen(text=True).stdout"


def test_lines(bench):
    bench.row(
        "1 GiB of 80-byte lines, async for",
        ours=lambda: read_by(lines_in),
        peers={"StreamReader.readline": read_by_readline, PLAIN: read_by_a_loop},
        limit=yield_lines,
        at_least={"StreamReader.readline": 5.0, PLAIN: 0.6},
        unit="MiB/s",
    )


def test_blocks(bench):
    bench.row(
        "the same by blocks of lines",
        ours=lambda: read_by(lines_in_blocks),
        peers={PLAIN: read_by_a_loop},
        at_least={PLAIN: 1.0},
        unit="MiB/s",
    )


async def nobody_reads():
    async with ProcessManager() as pm:
        began = time.perf_counter()
        process = await pm.spawn(lines_of(MUCH), shell=True)
        result = await process.wait()
        took = time.perf_counter() - began
        assert process.stdout.end == MUCH * MIB
        assert result.ok
        return MUCH / took


def cat_to_null():
    began = time.perf_counter()
    subprocess.run(f"{lines_of(MUCH)} | cat >/dev/null", shell=True, check=True)
    return MUCH / (time.perf_counter() - began)


def test_output_that_nobody_reads(bench):
    bench.row(
        "1 GiB of output that nobody reads",
        ours=nobody_reads,
        peers={"| cat >/dev/null": cat_to_null},
        at_least={"| cat >/dev/null": 0.9},
        unit="MiB/s",
    )


GROWTH = f"""
import asyncio, resource
from nbprocs import ProcessManager
from nbprocs.engine.output import DEFAULT_MEMORY
async def main():
    async with ProcessManager() as pm:
        await (await pm.spawn("head -c 1000000 /dev/zero", shell=True)).wait()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        process = await pm.spawn({lines_of(MUCH)!r}, shell=True)
        await process.wait()
        assert process.stdout.end == {MUCH * MIB}
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(growth - DEFAULT_MEMORY / {MIB})
asyncio.run(main())
"""


def resident_growth():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return float(subprocess.run([sys.executable, "-c", GROWTH], env=env, check=True, capture_output=True, text=True).stdout)


def test_memory_of_output_that_nobody_reads(bench):
    bench.row("… resident growth beyond the byte budget", ours=resident_growth, ceiling=32, unit="MiB")


# --- the loop under load --------------------------------------------------------------------------------------------------

LOUD, SECONDS = 50, float(sized(5, quick=1))


async def _p99_lag():
    """The 99th percentile of how late a timer fires, in milliseconds."""
    loop, late = asyncio.get_running_loop(), []
    end = loop.time() + SECONDS
    while (due := loop.time() + 0.005) < end:
        await asyncio.sleep(0.005)
        late.append(loop.time() - due)
    late.sort()
    return late[int(len(late) * 0.99)] * 1000


async def lag_of_ours():
    async with ProcessManager() as pm:
        for _ in range(LOUD):
            await pm.spawn("yes", LINE)
        return await _p99_lag()


async def lag_of_asyncio():
    processes, readers = [], []

    async def drain(stream):
        while await stream.readline():
            pass

    for _ in range(LOUD):
        process = await asyncio.create_subprocess_exec("yes", LINE, stdout=subprocess.PIPE)
        processes.append(process)
        readers.append(asyncio.get_running_loop().create_task(drain(process.stdout)))
    lag = await _p99_lag()
    for process in processes:
        process.kill()
    await asyncio.gather(*readers, *(p.wait() for p in processes))
    return lag


def test_loop_lag(bench):
    bench.row(
        "loop lag, 50 children writing flat out, p99",
        ours=lag_of_ours,
        peers={"StreamReader.readline": lag_of_asyncio},
        ceiling=10,
        unit="ms",
    )


# --- import ---------------------------------------------------------------------------------------------------------------


def import_time(what):
    """Seconds, in a fresh interpreter that has its files in the page cache."""
    code = f"import time; began = time.perf_counter()\nimport {what}\nprint(time.perf_counter() - began)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # else ours would be compiled each time, and the peers, being installed, not
    run = [sys.executable, "-c", code]
    times = [float(subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout) for _ in range(7)]
    return min(times) * 1000


def test_import(bench):
    """A name is loaded when it is first asked for: what an import alone costs is not the whole."""
    peer = "import asyncio, subprocess, psutil"
    peers = {peer: lambda: import_time("asyncio, subprocess, psutil")}
    bench.row("import nbprocs", ours=lambda: import_time("nbprocs"), peers=peers, at_most={peer: 0.2}, unit="ms")
    bench.row(
        "import nbprocs; nbprocs.ProcessManager",
        ours=lambda: import_time("nbprocs; nbprocs.ProcessManager"),
        peers=peers,
        at_most={peer: 1.5},
        unit="ms",
    )
