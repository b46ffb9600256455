"""However a kernel ends, no descendant of any child is alive two seconds later."""

import signal
import textwrap

import pytest

from tests.kernel.conftest import alive
from tests.waiting import until

# Five kinds of child, each of which has fled in its own way. They print their pids, the family's head last.
FAMILY = textwrap.dedent(
    """
    import os, signal, sys, time
    def forever():
        while True: signal.pause()
    def say(name):
        sys.stdout.write(f"{name} {os.getpid()}\\n"); sys.stdout.flush()
    if os.fork() == 0:                       # a grandchild in a session of its own
        os.setsid(); say("setsid"); forever()
    if (middle := os.fork()) == 0:           # a daemon: forked twice, its parent gone, its session its own
        os.setsid()
        if os.fork() == 0:
            say("daemon"); forever()
        os._exit(0)
    os.waitpid(middle, 0)
    if os.fork() == 0:                       # deaf to SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN); say("deaf"); forever()
    if (stopped := os.fork()) == 0:          # stopped: SIGTERM stays pending
        say("stopped"); os.kill(os.getpid(), signal.SIGSTOP); forever()
    os.waitpid(stopped, os.WUNTRACED)
    say("head"); forever()
    """
)
SPAWN = f"""
import asyncio, sys, nbprocs
pm = nbprocs.ProcessManager(background=BACKGROUND)
family = {FAMILY!r}
for number in range(2):
    proc = await pm.spawn(sys.executable, "-I", "-S", "-c", family, name=f"family-{{number}}")
    names = set()
    async for line in proc.lines():
        print(line)
        names.add(line.split()[0])
        if len(names) == 5:
            break
"""


async def spawn_family(kernel, *, background=False):
    """Ten processes below two children; returns their pids."""
    printed = await kernel.run(SPAWN.replace("BACKGROUND", str(background)))
    pids = {int(line.split()[1]) for line in printed.splitlines()}
    assert len(pids) == 10
    assert len(alive(pids)) == 10
    assert pids <= kernel.descendants()
    return pids


async def by_sigkill(kernel):
    kernel.kill()


async def by_sigterm(kernel):
    kernel.kill(signal.SIGTERM)


async def by_abort(kernel):
    await kernel.start("import os; os.abort()")


async def by_segfault(kernel):
    await kernel.start("import ctypes; ctypes.string_at(0)")


async def by_exit(kernel):
    await kernel.start("exit()")


async def by_os_exit(kernel):
    await kernel.start("import os; os._exit(0)")


async def by_shutdown(kernel):
    await kernel.shutdown()


ENDS = [by_sigkill, by_sigterm, by_abort, by_segfault, by_exit, by_os_exit, by_shutdown]


async def none_left(kernel, pids):
    await until(lambda: not alive(pids), within=2, what="the whole family gone")
    await until(lambda: not kernel.descendants(), within=2, what=f"no descendant at all: {alive(kernel.descendants())}")


@pytest.mark.parametrize("end", ENDS)
async def test_nobody_survives_the_kernel(kernel, end):
    pids = await spawn_family(kernel)
    await end(kernel)
    await kernel.gone()
    await none_left(kernel, pids)


async def test_nobody_survives_a_restart(kernel):
    pids = await spawn_family(kernel)
    old = kernel.pid
    await kernel.restart()
    assert kernel.pid != old
    await none_left(kernel, pids)
    assert await spawn_family(kernel)  # the new kernel has a shim of its own


async def test_nobody_survives_a_killed_kernel_with_a_background_manager(kernel):
    pids = await spawn_family(kernel, background=True)
    kernel.kill()
    await kernel.gone()
    await none_left(kernel, pids)


async def test_nobody_survives_a_kernel_killed_in_the_middle_of_starting_children(kernel):
    code = """
    import sys, nbprocs
    pm = nbprocs.ProcessManager()
    print("go")
    while True:
        await pm.spawn("sleep", "1000")
    """
    cell = await kernel.start(textwrap.dedent(code))
    await cell.says("go")
    await until(lambda: len(kernel.descendants()) > 10, within=20, what="ten children")
    kernel.kill()
    await kernel.gone()
    await until(lambda: not kernel.descendants(), within=2, what="no descendant")


async def test_a_killed_shim_is_replaced(kernel):
    code = """
    import asyncio, os, signal
    from nbprocs.engine.shim import shims
    (first,) = shims.pids
    os.kill(first, signal.SIGKILL)
    while first in shims.pids:
        await asyncio.sleep(0.01)
    """
    pids = await spawn_family(kernel)
    await kernel.run(textwrap.dedent(code))
    await kernel.run("await pm.spawn('sleep', '1000')")
    assert len(alive(pids)) == 10
    kernel.kill()
    await kernel.gone()
    await none_left(kernel, pids)


async def test_a_child_of_multiprocessing_does_not_hold_the_shim_open(kernel):
    pids = await spawn_family(kernel)
    code = """
    import multiprocessing, time
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    worker.start()
    print(worker.pid)
    """
    worker = int(await kernel.run(textwrap.dedent(code)))
    kernel.kill()
    await kernel.gone()
    await until(lambda: not alive(pids), within=2, what="the whole family gone")
    assert alive([worker]), "not ours: the shim must leave it alone"
