"""The Interrupt button ends the cell within half a second, kills no child, and leaves process and manager sound."""

import textwrap
import time

import pytest

from tests.kernel.conftest import alive
from tests.waiting import until

SETUP = """
import asyncio, signal, sys, time, nbprocs
pm = nbprocs.ProcessManager(background=BACKGROUND)
def child(code):
    return [sys.executable, "-I", "-S", "-c", "import signal, sys, time\\n" + code]
silent = await pm.spawn(*child("print('ready', flush=True)\\nwhile True: signal.pause()"), name="silent", ready=nbprocs.LogLine("ready"))
print(silent.pid)
"""
UNHARMED = """
assert silent.status is nbprocs.ProcessStatus.RUNNING, silent
result = await pm.run("echo", "sound")
assert result.stdout == b"sound\\n", result
async with asyncio.timeout(5):  # what the interrupted await had started is being stopped: nobody waits for that
    while [p.name for p in pm.list() if p.status.live] != ["silent"]:
        await asyncio.sleep(0.01)
print("unharmed")
"""
STOPPED = """
ended = await silent.stop(grace=2)
assert ended.status is nbprocs.ProcessStatus.TERMINATED, ended
print("stopped")
"""

AWAITS = {
    "wait": "await silent.wait()",
    "manager's wait": "await pm.wait('silent')",
    "lines": "async for line in silent.lines(): print(line)",
    "receive": "while True: await silent.receive_output()",
    "run": "await pm.run('sleep', '1000')",
    "ready": "await pm.spawn('sleep', '1000', ready=nbprocs.LogLine('never'), ready_timeout=100)",
    "events": "async for event in pm.events(): pass",
}


@pytest.fixture(params=[False, True], ids=["kernel-loop", "background"])
async def ready(kernel, request):
    """A kernel with a manager ``pm`` and a silent process, and that process's pid."""
    pid = int(await kernel.run(SETUP.replace("BACKGROUND", str(request.param))))
    return kernel, pid


async def unharmed(kernel, pid):
    """Process and manager are what they were before the interrupt."""
    assert alive([pid])
    assert "unharmed" in await kernel.run(UNHARMED)


async def sound(kernel, pid):
    """So they are, and they end as ever."""
    await unharmed(kernel, pid)
    assert "stopped" in await kernel.run(STOPPED)
    await until(lambda: not kernel.descendants(), within=2, what="nothing left behind")


async def test_interrupt_of_an_idle_kernel(ready):
    kernel, pid = ready
    await kernel.interrupt()
    await sound(kernel, pid)


async def test_interrupt_of_a_sync_cell(ready):
    kernel, pid = ready
    cell = await kernel.start("print('go'); time.sleep(60)")
    await cell.says("go")
    await kernel.interrupt()
    assert (await cell.done(timeout=5)).error == "KeyboardInterrupt"
    await sound(kernel, pid)


WATCHED = """
print("go")
try:
{code}
finally:
    print("ended", time.time())
"""


async def test_interrupt_of_an_awaiting_cell_ends_it_at_once(ready):
    """The await is measured, in the cell: what IPython then needs to show the error is its own affair. One kernel takes them all."""
    kernel, pid = ready
    for what, code in AWAITS.items():
        cell = await kernel.start(WATCHED.format(code=textwrap.indent(code, "    ")))
        await cell.says("go")
        began = time.time()
        await kernel.interrupt()
        await cell.done(timeout=5)
        assert cell.error in ("CancelledError", "KeyboardInterrupt"), (what, cell.traceback)
        ended = float(cell.text.split("ended")[1].split()[0])
        assert ended - began < 0.5, what
        await unharmed(kernel, pid)
    await sound(kernel, pid)


async def test_many_interrupts_in_a_row(ready):
    kernel, pid = ready
    for _ in range(5):
        cell = await kernel.start("print('go'); await silent.wait()")
        await cell.says("go")
        await kernel.interrupt()
        await cell.done(timeout=5)
        assert cell.error in ("CancelledError", "KeyboardInterrupt")
    await sound(kernel, pid)


async def test_children_of_background_tasks_can_be_interrupted(ready):
    """An idle kernel ignores SIGINT, and a child would inherit that."""
    kernel, _ = ready
    await kernel.run(
        textwrap.dedent(
            """
            async def later():
                global late
                while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # until the cell is over and the kernel idle
                    await asyncio.sleep(0.01)
                late = await pm.spawn("sleep", "1000", name="late")
            task = asyncio.get_running_loop().create_task(later())
            """
        )
    )
    await until(lambda: len(kernel.descendants()) == 2, within=10, what="the late child")
    code = """
    await task
    mask = next(int(line.split()[1], 16) for line in open(f"/proc/{late.pid}/status") if line.startswith("SigIgn"))
    print(mask & 0x7FFFFFFF)  # 32 and 33 are the C library's own
    late.send_signal(signal.SIGINT)
    result = await late.wait(timeout=5)
    print(result.signal)
    await silent.stop()
    """
    assert (await kernel.run(textwrap.dedent(code))).split() == ["0", "2"]
