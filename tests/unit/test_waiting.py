"""A wait that is cancelled or times out leaves nothing behind; 2,000 of each, of whatever can be waited for."""

import asyncio
import contextlib

import pytest

from nbprocs import ProcessManager, ResourceExhausted
from nbprocs.testing import kept_futures
from tests.children import SLEEPER

MANY = 2000


async def give_up(make, *, times=MANY):
    """Wait for it and give up at once, many times; then how many futures are still held."""
    with kept_futures() as kept:
        for _ in range(times):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await make()
        return kept()


WAITS = {
    "wait": lambda pm, p: p.wait,
    "wait of the manager": lambda pm, p: lambda: pm.wait(p.id),
    "receive_output": lambda pm, p: p.receive_output,
    "receive_error": lambda pm, p: p.receive_error,
    "lines": lambda pm, p: lambda: anext(p.lines("stderr")),
    "events": lambda pm, p: lambda: anext(pm.events()),
    "a slot": lambda pm, p: lambda: pm.spawn("true", wait=True),
}


@pytest.mark.parametrize("what", WAITS)
async def test_a_wait_that_was_given_up_is_forgotten(what):
    async with ProcessManager(max_concurrent=1) as pm:
        process = await pm.spawn(*SLEEPER)
        await process.receive_output()
        assert await give_up(WAITS[what](pm, process)) <= 2
        assert pm.waiting == 0


async def test_a_timeout_of_its_own_is_forgotten():
    async with ProcessManager() as pm:
        process = await pm.spawn(*SLEEPER)
        with kept_futures() as kept:
            for _ in range(MANY):
                with contextlib.suppress(TimeoutError):
                    await process.wait(timeout=0)
            assert kept() <= 2


async def test_a_slot_handed_to_somebody_who_gave_up_goes_to_the_next():
    async with ProcessManager(max_concurrent=1) as pm:
        first = await pm.spawn(*SLEEPER)
        assert await give_up(lambda: pm.spawn("true", wait=True), times=5) <= 2
        waiting = asyncio.ensure_future(pm.spawn("true", wait=True))
        with pytest.raises(ResourceExhausted):
            await pm.spawn("true")
        await first.stop()
        await (await waiting).wait()
