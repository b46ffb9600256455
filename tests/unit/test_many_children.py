"""Ten thousand children in one run leave no descriptor, zombie, task or thread more than there was."""

import asyncio
import gc

import psutil
import pytest

from nbprocs import ProcessManager
from nbprocs.processes.manager import manager_core
from nbprocs.testing import Snapshot

MANY, WIDTH = 10_000, 8


async def run_many(pm, count):
    left = iter(range(count))

    async def work():
        for _ in left:
            result = await pm.run("true")
            assert result.ok

    await asyncio.gather(*(work() for _ in range(WIDTH)))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("background", [False, True], ids=["loop", "background"])
async def test_ten_thousand_children(background):
    count = MANY if not background else MANY // 5
    async with ProcessManager(background=background, history=100) as pm:
        await run_many(pm, 200)
        tasks, before = len(asyncio.all_tasks()), Snapshot.take()
        gc.collect()
        resident = psutil.Process().memory_info().rss
        await run_many(pm, count)
        assert Snapshot.take().since(before) == []
        assert len(asyncio.all_tasks()) == tasks
        assert len(manager_core(pm).tasks) == 0
        assert len(pm.list()) == 100
        assert pm.live == 0
        gc.collect()
        assert psutil.Process().memory_info().rss - resident < 20 << 20


@pytest.mark.slow
async def test_many_at_once():
    """As many at a time as the descriptors allow; three pipes and a pidfd each."""
    async with ProcessManager() as pm:
        procs = await asyncio.gather(*(pm.spawn("sleep", "1000", stdin=True) for _ in range(200)))
        assert pm.live == 200
        assert len({p.name for p in procs}) == 200
    assert all(p.result is not None for p in procs)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["posix", "portable"])
async def test_short_lived_children_with_output(engine):
    async with ProcessManager(max_concurrent=16, engine=engine) as pm:

        async def one(number):
            result = await pm.run("echo", str(number))
            assert result.stdout == b"%d\n" % number

        await asyncio.gather(*(one(number) for number in range(500)))
