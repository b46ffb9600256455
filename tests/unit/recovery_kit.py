"""Waiting for what an ErrorHandler does."""

import asyncio


async def until(handler, condition):
    """Look at each new row of the record."""
    told = asyncio.Event()
    end = handler.journal.listen(lambda _: told.set())
    async with asyncio.timeout(20):
        while not condition():
            await told.wait()
            told.clear()
    end()
