"""What type checkers make of the scheduler: read by mypy and pyright in strict mode, never run."""

from pathlib import Path
from typing import assert_type

from nbprocs import ProcessConfig, ProcessResult, SchedulerConfig, TaskScheduler
from nbprocs.scheduler import SchedulerStatus, TaskHandle


def square(number: int) -> int:
    return number * number


async def fetch(url: str) -> bytes:
    return url.encode()


async def scheduler() -> None:
    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=None)) as sch:
        assert_type(sch, TaskScheduler)
        command = sch.schedule("make", "-j4", Path("x"), b"y", priority=2, timeout="3x", key="make", nice=5, pty=True)
        assert_type(command, TaskHandle[ProcessResult])
        assert_type(await command, ProcessResult)
        assert_type((await sch.schedule(ProcessConfig(command="make"), "all")).text, str)
        assert_type(await sch.schedule(square, 3, after=[command]), int)
        assert_type(await sch.schedule(fetch, "x"), bytes)
        assert_type(await sch.join(timeout=5), SchedulerStatus)
        assert_type(command.rerun(), TaskHandle[ProcessResult])
        sch.schedule("make", timeout=b"x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
        sch.schedule("make", cwd="/")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
        sch.schedule("make", 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
        sch.schedule_many([("make", "all")], priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
