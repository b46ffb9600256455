"""What type checkers make of processes, the monitor, runs and policies: read by mypy and pyright in strict mode, never run.

Each line with an ``ignore`` is an error that a user must be shown: an ignore without its error is an error, too.
"""

from collections.abc import AsyncIterator, Callable
from typing import assert_type

import pandas as pd
from matplotlib.figure import Figure

import nbprocs
from nbprocs import (
    Alert,
    AlertThresholds,
    EndReason,
    ManagedProcess,
    Port,
    ProcessConfig,
    ProcessEvent,
    ProcessFailed,
    ProcessInfo,
    ProcessManager,
    ProcessMonitor,
    ProcessResult,
    ProcessStatus,
    RestartPolicy,
    RetryPolicy,
    RunHistory,
    RunRecord,
)


async def kernel() -> None:
    assert_type(await nbprocs.run("ls", "-la", timeout=5), ProcessResult)
    assert_type(nbprocs.run_sync("ls"), ProcessResult)
    assert_type(await nbprocs.spawn("sleep", "9", name="nap", detach=True), ManagedProcess)
    assert_type(await nbprocs.adopt("nap"), ManagedProcess)
    nbprocs.run_sync("ls", timeuot=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nbprocs.run_sync("ls", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def manager() -> None:
    async with ProcessManager(max_concurrent=8) as pm:
        assert_type(pm, ProcessManager)
        result = await pm.run("sort", "-n", input=b"3\n1\n", timeout=10, retry=RetryPolicy(max_retries=2))
        assert_type(result.text, str)
        assert_type(result.stdout, bytes)
        assert_type(result.exit_code, int | None)
        assert_type(result.reason, EndReason | None)
        web = await pm.spawn(ProcessConfig(command="web"), ready=Port(8000), restart=RestartPolicy())
        assert_type(pm["web"], ManagedProcess)
        assert_type(web.status, ProcessStatus)
        assert_type(web.lines(), AsyncIterator[str])
        async for block in web.blocks():
            assert_type(block, list[str])
        assert_type(await web.receive_output(), str | None)
        assert_type(await web.stop(grace=5), ProcessResult)
        assert_type(pm.list(), tuple[ProcessInfo, ...])
        assert_type(pm.frame(), pd.DataFrame)
        assert_type(pm.events(), AsyncIterator[ProcessEvent])
        assert_type(pm.subscribe(print), Callable[[], None])
        await pm.spawn("web", ready="8000")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await pm.run("web", nice="low")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await pm.run()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await web.stop(10, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        web.pid = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def errors(error: ProcessFailed) -> None:
    assert_type(error.exit_code, int | None)
    assert_type(error.stdout, bytes)
    assert_type(error.result, ProcessResult | None)
    assert_type(error.reason, EndReason | None)


async def monitor(pm: ProcessManager) -> None:
    mon = ProcessMonitor(interval=1, thresholds=AlertThresholds(max_memory_mb=500))
    mon.watch(pm)
    assert_type(mon.plot(), Figure)
    assert_type(mon.frame(), pd.DataFrame)
    assert_type(mon.alerts(), tuple[Alert, ...])
    ProcessMonitor(interval="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AlertThresholds(max_memory=500)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def history(runs: RunHistory) -> None:
    assert_type(nbprocs.runs("runs.db"), RunHistory)
    assert_type(runs.get("build"), RunRecord)
    assert_type(runs[-1], RunRecord)
    assert_type(runs[:3], list[RunRecord])
    assert_type(runs.frame(), pd.DataFrame)
    runs.filter(nmae="build")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
