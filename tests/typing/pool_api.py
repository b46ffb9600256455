"""What type checkers make of the pool: read by mypy and pyright in strict mode, never run."""

from collections.abc import AsyncGenerator
from typing import assert_type

from nbprocs import CommandWorker, PoolConfig, ProcessPool, RetryPolicy, TaskPriority


def add(a: int, b: int = 0) -> int:
    return a + b


def name(number: int, *, upper: bool = False) -> str:
    return str(number).upper() if upper else str(number)


async def calls(pool: ProcessPool) -> None:
    assert_type(await pool.run(add, 1, 2), int)
    assert_type(await pool.run(name, 1, upper=True), str)
    assert_type(await pool.submit(add, 1), int)
    assert_type(await pool.run(add, 1, timeout=5), int)
    assert_type(await pool.run(name, 1, upper=True, retries=2), str)
    assert_type(await pool.submit(add, 1, retries=RetryPolicy(max_retries=2), timeout=1.5), int)
    assert_type(await pool.submit(add, 1, priority=TaskPriority.HIGH), int)
    pool.submit(add, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    pool.submit(add, "x", bogus=3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    pool.submit(add, 1, bogus=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await pool.run(add)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def maps(pool: ProcessPool) -> None:
    assert_type(pool.map(name, range(3)), AsyncGenerator[str, None])
    async for text in pool.map(name, [1, 2], ordered=False, chunksize=2, progress=True):
        assert_type(text, str)
    async for number in pool.map(add, [1, 2], [3, 4]):
        assert_type(number, int)
    pool.map(name, ["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def programs() -> None:
    async with ProcessPool(PoolConfig(max_processes=2), worker=CommandWorker("bc", "-lq")) as pool:
        assert_type(pool, ProcessPool)
        assert_type(await pool.run("2 + 2", timeout=5), str)
        async for answer in pool.map(["1 + 1", "2 + 2"]):
            assert_type(answer, str)
