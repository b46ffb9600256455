"""The manager's everyday on every kind of loop: plain, in debug mode, with eager tasks (3.12+), and from loops of other threads."""

import asyncio
import threading

import pytest

from nbprocs import LogLine, ProcessFailed, ProcessManager, ProcessStatus
from tests.children import ECHO, SLEEPER, python_child, until_line

pytestmark = pytest.mark.loop_modes


@pytest.fixture(params=["posix", "portable"])
async def pm(request):
    async with ProcessManager(max_concurrent=4, engine=request.param) as manager:
        yield manager


async def test_run(pm):
    assert (await pm.run("sort", "-n", input=b"3\n1\n")).stdout == b"1\n3\n"
    with pytest.raises(ProcessFailed):
        await pm.run("false")


async def test_talk_and_stop(pm):
    proc = await pm.spawn(*ECHO, stdin=True, ready=LogLine("ready"))
    await until_line(proc)
    for word in ("one", "two"):
        await proc.send_line(word)
    assert await proc.receive_output() == "ready"
    assert [await proc.receive_output() for _ in range(2)] == ["one", "two"]
    proc.pause()
    proc.resume()
    await proc.close_stdin()
    assert (await proc.wait()).ok


async def test_many_at_once_and_a_queue_for_slots(pm):
    async def one(number):
        result = await pm.run(*python_child(f"print({number})"))
        return int(result.stdout)

    assert await asyncio.gather(*(one(number) for number in range(20))) == list(range(20))


async def test_timeout_and_restart(pm):
    proc = await pm.spawn(*SLEEPER, name="web", timeout=30, ready=LogLine("ready"))
    again = await pm.restart("web")
    assert again.predecessor is proc
    assert (await pm.run(*SLEEPER, timeout=0.1, check=False)).reason == "timeout"


async def test_a_done_callback_and_the_event_stream(pm):
    kinds, done = [], asyncio.Event()
    unsubscribe = pm.subscribe(lambda event: kinds.append(event.kind))
    proc = await pm.spawn("true")
    proc.add_done_callback(lambda _: done.set())
    await done.wait()
    await proc.wait()
    unsubscribe()
    assert kinds == ["started", "ready", "exited"]


async def test_from_loops_of_other_threads(pm):
    """Each thread has a loop of its own; all use one manager."""
    proc = await pm.spawn(*python_child("for i in range(100): print(i)"))
    found = []

    async def use(number):
        result = await pm.run("echo", str(number))
        lines = [line async for line in proc.lines()]
        found.append((int(result.stdout), len(lines)))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(use(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
    assert sorted(found) == [(n, 100) for n in range(4)]


async def test_a_closed_manager_says_so(pm):
    proc = await pm.spawn(*SLEEPER)
    await pm.aclose()
    assert proc.status is ProcessStatus.TERMINATED
    with pytest.raises(Exception, match="closed"):
        await pm.run("true")
