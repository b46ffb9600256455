"""The pool in a real kernel: an interrupted cell ends its task, not the pool; a killed kernel leaves no worker."""

import time

import pytest

from tests.kernel.conftest import alive
from tests.waiting import until

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
print("sound")
"""


@pytest.fixture(params=[False, True], ids=["kernel-loop", "background"])
async def ready(kernel, request, tmp_path):
    mark = tmp_path / "mark"
    text = await kernel.run(SETUP.replace("BACKGROUND", str(request.param)).replace("MARK", repr(str(mark))))
    return kernel, [int(pid) for pid in text.split()], mark


async def test_interrupt_ends_the_cell_and_its_task_only(ready):
    kernel, _, mark = ready
    for what, code in AWAITS.items():
        mark.unlink(missing_ok=True)
        cell = await kernel.start(code)
        await until(mark.exists, within=20, what="the task to start")
        began = time.monotonic()
        await kernel.interrupt()
        await cell.done(timeout=20)
        assert cell.error in ("CancelledError", "KeyboardInterrupt"), (what, cell.traceback)
        assert cell.finished_at - began < 2, what
        assert "sound" in await kernel.run(SOUND), what
    await kernel.run("await pool.aclose()")


async def test_a_killed_kernel_leaves_no_worker(ready):
    kernel, pids, mark = ready
    await kernel.start("await pool.run(hang)")
    await until(mark.exists, within=20, what="the task to start")
    kernel.kill()
    await until(lambda: not alive(pids), within=20, what="the workers to end")


EDITED = """
import functools, m, nbprocs
pool = nbprocs.ProcessPool(nbprocs.PoolConfig(max_processes=1))
def nb(_=0): return m.f()
async def all_ways():
    found = [await pool.run(call) for call in (m.f, nb, functools.partial(m.f), m.C().g, m.C.h, lambda: m.f())]
    return [*found, *[y async for y in pool.map(nb, range(1))]]
print(*await all_ways())
"""


@pytest.mark.parametrize("mode", ["2", "3"])
async def test_autoreload_gives_workers_the_edited_code(kernel, tmp_path, mode):
    text = "def f(): return {0}\nclass C:\n    def g(self): return {0}\n    @classmethod\n    def h(cls): return {0}\n"
    (tmp_path / "m.py").write_text(text.format(1))
    await kernel.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.dont_write_bytecode = True")
    await kernel.run(f"%load_ext autoreload\n%autoreload {mode}")
    assert await kernel.run(EDITED) == " ".join(["1"] * 7) + "\n"
    for value in (22222, 3):
        (tmp_path / "m.py").write_text(text.format(value))
        assert await kernel.run("print(*await all_ways())") == " ".join([str(value)] * 7) + "\n"
    await kernel.run("await pool.aclose()")
