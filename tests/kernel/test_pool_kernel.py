"""The pool in a real kernel: an interrupted cell ends its task, not the pool; a killed kernel leaves no worker."""

import time

import pytest

from tests.kernel.conftest import alive, eventually

SETUP = """
import asyncio, os, time, nbprocs
pool = nbprocs.ProcessPool(nbprocs.PoolConfig(min_processes=2, max_processes=2), background=BACKGROUND)
await pool.start()
def hang():
    open(MARK, "w").close()
    time.sleep(600)
print(*(p.pid for p in pool.manager.processes()))
"""
AWAITS = {
    "run": "await pool.run(hang)",
    "handle": "await pool.submit(hang)",
    "gather": "await asyncio.gather(pool.submit(hang), pool.submit(time.sleep, 600), pool.submit(int))",
    "map": "print([y async for y in pool.map(lambda x: hang(), range(4))])",
}
SOUND = """
assert await asyncio.gather(*(pool.submit(abs, -i) for i in range(100))) == list(range(100))
await pool.aclose()
print("sound")
"""


@pytest.fixture(params=[False, True], ids=["kernel-loop", "background"])
async def ready(kernel, request, tmp_path):
    mark = tmp_path / "mark"
    text = await kernel.run(SETUP.replace("BACKGROUND", str(request.param)).replace("MARK", repr(str(mark))))
    return kernel, [int(pid) for pid in text.split()], mark


@pytest.mark.parametrize("what", AWAITS)
async def test_interrupt_ends_the_cell_and_its_task_only(ready, what):
    kernel, _, mark = ready
    cell = await kernel.start(AWAITS[what])
    await eventually(mark.exists, within=20, what="the task to start")
    began = time.monotonic()
    await kernel.interrupt()
    await cell.done(timeout=20)
    assert cell.error in ("CancelledError", "KeyboardInterrupt"), cell.traceback
    assert cell.finished_at - began < 2
    assert "sound" in await kernel.run(SOUND)


async def test_a_killed_kernel_leaves_no_worker(ready):
    kernel, pids, mark = ready
    await kernel.start("await pool.run(hang)")
    await eventually(mark.exists, within=20, what="the task to start")
    kernel.kill()
    await eventually(lambda: not alive(pids), within=20, what="the workers to end")
