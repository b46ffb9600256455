"""The harness itself: what the other tests here rely on."""

import time


async def test_cells_run_and_fail(kernel):
    assert await kernel.run("print(6 * 7)") == "42\n"
    cell = await (await kernel.start("1 / 0")).done()
    assert cell.error == "ZeroDivisionError"


async def test_interrupt_reaches_a_sync_cell(kernel):
    cell = await kernel.start("import time; print('go'); time.sleep(60)")
    await cell.says("go")
    await kernel.interrupt()
    assert (await cell.done(timeout=5)).error == "KeyboardInterrupt"


async def test_restart_forgets(kernel):
    await kernel.run("x = 1")
    await kernel.restart()
    cell = await (await kernel.start("x")).done()
    assert cell.error == "NameError"


async def test_descendants_are_found_wherever_they_are(kernel):
    before = kernel.descendants()
    code = "import subprocess; p = subprocess.Popen(['sleep', '1000'], start_new_session=True); print(p.pid)"
    pid = int(await kernel.run(code))
    assert kernel.descendants() - before == {pid}
    kernel.kill()
    began = time.monotonic()
    await kernel.gone()
    assert time.monotonic() - began < 5
    assert pid in kernel.descendants()  # an orphan: that is what plain subprocess leaves
