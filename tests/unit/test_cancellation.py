"""Cancellation at every await: of spawn, run, wait, stop, lines and the others, in both moments where it can strike.

``early``: the task is cancelled while it waits. ``late``: what it waits for has just come, and it is cancelled before it wakes; whatever was about to be
delivered must not be lost. Each scenario runs once for each of its awaits, on the loop itself and with a background manager.
"""

import asyncio
import types
from contextlib import aclosing

import pytest

from nbprocs import LogLine, ProcessManager, ProcessStatus
from nbprocs.processes.manager import manager_core
from tests.children import ECHO, SLEEPER, STUBBORN, python_child, until_line

MOMENTS = ("early", "late")
MODES = pytest.mark.parametrize("background", [False, True], ids=["loop", "background"])
MANY = 100  # awaits of one call: more means that something spins


@types.coroutine
def _cancelled_at(coroutine, number, moment):
    """Run a coroutine and have its task cancelled at its n-th suspension."""
    raised, count = None, 0
    while True:
        try:
            waited = coroutine.send(None) if raised is None else coroutine.throw(raised)
        except StopIteration as end:
            return end.value
        count += 1
        if count == number:
            task = asyncio.current_task()
            if moment == "late" and waited is not None:
                waited.add_done_callback(lambda _, task=task: task.cancel())
            else:
                task.cancel()
        try:
            yield waited
            raised = None
        except BaseException as error:  # noqa: BLE001 - it goes on into the coroutine
            raised = error


async def cancelled_everywhere(scenario, *, moment):
    """Call ``scenario(run)`` again and again; its ``await run(coroutine)`` is cancelled at the first await, the second, …, until none is left.

    Returns at how many awaits it was.
    """
    for number in range(1, MANY):
        struck = False

        async def run(coroutine, number=number):
            nonlocal struck

            async def stepping():
                return await _cancelled_at(coroutine, number, moment)

            task = asyncio.get_running_loop().create_task(stepping())
            await asyncio.wait({task})
            if task.cancelled():
                struck = True
                return None
            return task.result()

        async with asyncio.timeout(60):
            await scenario(run)
        if not struck:
            return number - 1
    pytest.fail(f"more than {MANY} awaits in one call")


async def all_ended(pm, *, within=10):
    """Wait until the manager has no live process, and what was under way on its loop is over."""
    async with asyncio.timeout(within):
        while pm.live or len(manager_core(pm).tasks):
            await asyncio.sleep(0.005)
        for _ in range(3):  # a cancelled call may still be arriving at the manager's loop: three trips behind it
            await manager_core(pm).home.hop(asyncio.sleep(0))
        while pm.live or len(manager_core(pm).tasks):
            await asyncio.sleep(0.005)


async def sound(pm, *, slots):
    """The manager counts right: exactly as many processes as it has slots can start."""
    procs = [await pm.spawn(*SLEEPER) for _ in range(slots)]
    assert pm.live == slots
    await asyncio.gather(*(p.stop() for p in procs))
    assert pm.live == 0
    assert (await pm.run("echo", "sound")).stdout == b"sound\n"


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_spawn(background, moment):
    async def scenario(run):
        async with ProcessManager(background=background, max_concurrent=2, grace=1) as pm:
            proc = await run(pm.spawn(*SLEEPER, name="one"))
            if proc is not None:
                await proc.stop()
            await all_ended(pm)  # a process that nobody was given is stopped
            await sound(pm, slots=2)

    assert await cancelled_everywhere(scenario, moment=moment) >= (1 if background else 0)


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_spawn_that_waits_until_ready(background, moment):
    async def scenario(run):
        async with ProcessManager(background=background, max_concurrent=2, grace=1) as pm:
            proc = await run(pm.spawn(*SLEEPER, name="one", ready=LogLine("ready")))
            if proc is not None:
                assert proc.ready
                await proc.stop()
            await all_ended(pm)
            await sound(pm, slots=2)

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_spawn_that_waits_for_a_slot(background, moment):
    async def scenario(run):
        async with ProcessManager(background=background, max_concurrent=1, grace=1) as pm:
            first = await pm.spawn(*SLEEPER)
            stopping = asyncio.get_running_loop().create_task(_stop_when(first, lambda: pm.waiting))
            proc = await run(pm.spawn(*SLEEPER, name="second", wait=True))
            await first.stop()
            await asyncio.wait({stopping})
            if proc is not None:
                await proc.stop()
            await all_ended(pm)
            await sound(pm, slots=1)

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


async def _stop_when(process, condition):
    async with asyncio.timeout(50):
        while not condition() and process.status.live:
            await asyncio.sleep(0.001)
    await process.stop()


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_run(background, moment):
    async def scenario(run):
        async with ProcessManager(background=background, max_concurrent=2, grace=1) as pm:
            result = await run(pm.run("cat", input=b"x" * 300_000))
            if result is not None:
                assert len(result.stdout) == 300_000
            await all_ended(pm)
            await sound(pm, slots=2)

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_wait(background, moment):
    async def scenario(run):
        async with ProcessManager(background=background, grace=1) as pm:
            proc = await pm.spawn(*ECHO, stdin=True)
            ending = asyncio.get_running_loop().create_task(_close_later(proc))
            result = await run(proc.wait(timeout=30))
            await ending
            again = await proc.wait()
            assert again.exit_code == 0, "cancelling a wait leaves the process alone"
            assert result in (None, again)

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


async def _close_later(process):
    await until_line(process)
    await process.close_stdin()


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("child", [SLEEPER, STUBBORN], ids=["willing", "deaf"])
async def test_stop(background, moment, child):
    async def scenario(run):
        async with ProcessManager(background=background, grace=1) as pm:
            proc = await pm.spawn(*child, ready=LogLine("ready"))
            result = await run(proc.stop(grace=0.05))
            assert result is None or result.status is ProcessStatus.TERMINATED
            await all_ended(pm)  # once begun, a stop is not called off
            assert proc.result.status is ProcessStatus.TERMINATED

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_lines(background, moment):
    code = "for i in range(200): print(i, flush=True)"

    async def scenario(run):
        async with ProcessManager(background=background, grace=1) as pm:
            proc = await pm.spawn(*python_child(code))
            expected = [str(i) for i in range(200)]

            async def read():
                async with aclosing(proc.lines()) as lines:
                    return [line async for line in lines]

            other = asyncio.get_running_loop().create_task(read())
            assert await run(read()) in (None, expected)
            assert await other == expected
            assert await read() == expected

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_receive_output_loses_no_line(background, moment):
    code = "for i in range(10):\n    print(i, flush=True)\n    time.sleep(0.002)"

    async def scenario(run):
        async with ProcessManager(background=background, grace=1) as pm:
            proc = await pm.spawn(*python_child(code))
            found = []

            async def read():
                while (line := await proc.receive_output()) is not None:
                    found.append(line)

            await run(read())
            await read()
            assert found == [str(i) for i in range(10)]

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_send(background, moment):
    """Cancelled in the middle: what was written is a beginning of what was to be written, and others can go on writing."""
    data = b"".join(b"%09d\n" % i for i in range(60_000))  # more than the pipe holds

    async def scenario(run):
        async with ProcessManager(background=background, grace=1) as pm:
            proc = await pm.spawn(*python_child("time.sleep(0.02); sys.stdout.buffer.write(sys.stdin.buffer.read())"), stdin=True)
            await run(proc.send(data))
            await proc.send(b"|end")
            await proc.close_stdin()
            head, _, tail = (await proc.wait()).stdout.partition(b"|")
            assert tail == b"end"
            assert data.startswith(head)

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
async def test_aclose(background, moment):
    async def scenario(run):
        pm = ProcessManager(background=background, grace=0.05)
        procs = [await pm.spawn(*child, ready=LogLine("ready")) for child in (SLEEPER, STUBBORN)]
        await run(pm.aclose())
        await pm.aclose()
        assert [p.result.status for p in procs] == [ProcessStatus.TERMINATED] * 2

    assert await cancelled_everywhere(scenario, moment=moment) >= 1


@MODES
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", ["restart", "replace"])
async def test_restart_and_replace(background, moment, how):
    async def scenario(run):
        async with ProcessManager(background=background, max_concurrent=3, grace=1) as pm:
            await pm.spawn(*SLEEPER, name="web", ready=LogLine("ready"))
            new = await run(getattr(pm, how)("web"))
            assert new is None or (new.name, new.ready) == ("web", True)
            async with asyncio.timeout(10):
                while pm.live > 1:
                    await asyncio.sleep(0.005)
            for info in pm.list():
                if info.status.live:
                    await pm.terminate(info.id)
            await all_ended(pm)
            await sound(pm, slots=3)

    assert await cancelled_everywhere(scenario, moment=moment) >= 1
