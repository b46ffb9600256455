"""Kills by the system for memory, in a real group with a real limit: whose end is credited to them. Needs the right to make such a group."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nbprocs.engine.container import kill_counter

LIMIT = 192 << 20  # bytes: the interpreter with nbprocs and its children take less than half of it

SCRIPT = """
import asyncio, os, signal, sys
os.environ["PYTHONPATH"] = sys.argv[2]
open(os.path.join(sys.argv[1], "cgroup.procs"), "w").write(str(os.getpid()))
from nbprocs import ProcessManager, ProcessPool, PoolConfig
HOG = "x = []\\nwhile True: x.append(bytearray(16 << 20))"

async def end(process):
    result = await process.wait()
    return result.status.value, result.reason and result.reason.value, result.signal

async def main():
    async with ProcessManager() as pm:
        sleepers = [await pm.spawn("sleep", "1000") for _ in range(3)]
        print(*await end(await pm.spawn(sys.executable, "-S", "-c", HOG)))
        os.kill(sleepers[0].pid, signal.SIGKILL)
        print(*await end(sleepers[0]))
        print(*await end(await pm.spawn("sh", "-c", f"{sys.executable} -S -c '{HOG}'; exit 7")))
        os.kill(sleepers[1].pid, signal.SIGKILL)
        print(*await end(sleepers[1]))
        later = await pm.spawn("sleep", "1000")
        os.kill(later.pid, signal.SIGKILL)
        print(*await end(later))
    async with ProcessPool(PoolConfig(max_processes=1)) as pool:
        try:
            await pool.run(lambda: [bytearray(16 << 20) for _ in range(100)] and None)
        except Exception as error:
            print(type(error).__name__)
        print(await pool.run(abs, -3))
asyncio.run(main())
"""


@pytest.fixture
def group():
    """The folder of a control group with a limit below our own group."""
    counter = kill_counter()
    if counter is None:
        pytest.skip("no control group counts kills for memory here")
    folder = counter.parent / f"nbprocs-test-{os.getpid()}"
    limit = "memory.max" if counter.name == "memory.events" else "memory.limit_in_bytes"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no right to make a control group here: {error}")
    try:
        (folder / limit).write_text(str(LIMIT))
        for swap in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            if (folder / swap).exists():
                (folder / swap).write_text("0" if swap == "memory.swap.max" else str(LIMIT))
        if counter.name == "memory.events":  # version 2: only a group without processes of its own may share memory out
            (folder / "cgroup.procs").open("w").close()
        yield folder
    except OSError as error:
        pytest.skip(f"no right to limit a control group here: {error}")
    finally:
        deadline = time.monotonic() + 30
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:  # a shim is just ending
            time.sleep(0.01)
        folder.rmdir()


@pytest.mark.slow
def test_a_real_kill_for_memory_is_credited_to_whom_it_hit(group):
    """Not to a neighbour that somebody kills afterwards, nor to one that started later; a shell that lost a child has its own exit code."""
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(group), here], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == [
        "failed out of memory 9",
        "failed None 9",
        "failed None None",
        "failed None 9",
        "failed None 9",
        "OutOfMemory",
        "3",
    ], done.stderr
