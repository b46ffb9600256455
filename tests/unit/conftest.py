"""What several files of unit tests share."""

import asyncio
from collections.abc import Iterator

import pytest

from nbprocs import PoolConfig, PoolExecutor, ProcessPool


@pytest.fixture
def executor() -> Iterator[PoolExecutor]:
    """The executor of a pool of two workers, on the background loop."""
    pool = ProcessPool(PoolConfig(min_processes=2, max_processes=2), background=True)
    with pool.executor() as made:
        yield made
    asyncio.run(pool.aclose())
