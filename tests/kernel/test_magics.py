"""The magics in a real kernel: cells that go on in the background."""

import os

import pytest

from tests.kernel.conftest import alive
from tests.waiting import until

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
async def loaded(kernel):
    await kernel.run("%load_ext nbprocs")
    await kernel.run("%load_ext nbprocs\n%reload_ext nbprocs")  # again changes nothing
    return kernel


async def test_a_cell_goes_on_while_others_block_and_are_interrupted(loaded):
    cell = await (await loaded.start("%%proc --name counter --out counter\nfor i in 1 2 3; do echo $i; sleep 0.2; done; sleep 1000")).done()
    assert not cell.error, cell.traceback
    pid = int(await loaded.run("print(counter.process.pid)"))
    blocked = await loaded.start("import time; print('go'); time.sleep(2); print(counter.process.stdout.getvalue())")
    await blocked.done()
    assert r"b'1\n2\n3\n'" in blocked.text
    waiting = await loaded.start("print('go'); await counter")
    await waiting.says("go")
    await loaded.interrupt()
    await waiting.done(timeout=5)
    assert waiting.error
    assert alive([pid])
    assert "terminated" in await loaded.run("%stop counter")
    assert not alive([pid])
    assert "'terminated'" in await loaded.run("print(repr((await counter).status))")


async def test_a_cell_shows_a_live_pane_with_a_static_record(loaded):
    cell = await (await loaded.start("%%proc --name shown\necho hello; sleep 1000")).done()
    bundle = cell.results[-1]
    assert WIDGET not in bundle, "a new kernel would not know it"
    assert "nb-hole-" in bundle["text/html"]
    assert "shown" in bundle["text/plain"]
    assert "<script" not in bundle["text/html"]
    table = (await (await loaded.start("%procs")).done()).results[-1]
    assert "nb-hole-" in table["text/html"]
    assert "shown" in table["text/html"]


async def test_a_python_cell_gets_what_the_notebook_defined(loaded):
    await loaded.run("class Point:\n    def __init__(self, x): self.x = x\npoint = Point(7)\ndef show(p): return p.x * 6")
    cell = await (await loaded.start("%%proc python --send point,show --wait\nprint(show(point))")).done()
    assert not cell.error, cell.traceback
    assert "42" in await loaded.run("%output cell-1 --lines 1")


async def test_wait_can_be_interrupted_and_the_process_lives(loaded):
    cell = await loaded.start("%%proc --name long --wait\necho started; sleep 1000")
    # In the instant between fork and setsid it is still in the kernel's group, and the interrupt would be meant for it too.
    await until(lambda: [p for p in loaded.descendants() if os.getsid(p) == p], within=10, what="the process")
    await loaded.interrupt()
    await cell.done(timeout=5)
    assert cell.error == "KeyboardInterrupt"
    assert "running" in await loaded.run("from nbprocs.magics import manager; print(manager().status('long'))")


async def test_cells_end_with_the_kernel(loaded):
    await (await loaded.start("%%proc\nsleep 1000 & setsid sleep 1000 & sleep 1000")).done()
    await until(lambda: len(loaded.descendants()) >= 3, within=10, what="three sleepers")
    loaded.kill()
    await loaded.gone()
    await until(lambda: not loaded.descendants(), within=2, what="nobody left")
