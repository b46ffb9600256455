"""The registry as other threads see it."""

import asyncio
import sys
import threading

import pytest

from nbprocs import ProcessManager


@pytest.fixture
def hasty():
    """Threads take turns a thousand times as often as they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


async def test_looking_from_another_thread_while_processes_come_and_go(hasty):
    over, looks = threading.Event(), []

    def look(pm):
        while not over.is_set():
            repr(pm)
            looks.append([process.id for process in pm.processes()])
            pm.list()

    async with ProcessManager(background=True, max_concurrent=4, history=20) as pm:
        looking = asyncio.create_task(asyncio.to_thread(look, pm))
        await asyncio.gather(*(pm.run("true") for _ in range(200)))
        over.set()
        await looking
    assert all(len(ids) == len(set(ids)) for ids in looks)
    assert max(map(len, looks)) >= 20
