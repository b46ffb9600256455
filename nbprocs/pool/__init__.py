"""The warm process pool: start with pool.py, and with dispatch.py for the rules."""

from nbprocs.pool.command import CommandWorker
from nbprocs.pool.executor import PoolExecutor
from nbprocs.pool.model import (
    PoolConfig,
    PoolMetrics,
    PoolTaskState,
    PythonWorker,
    RemoteError,
    RemoteTraceback,
    WorkerInfo,
    WorkerOutput,
    WorkerState,
)
from nbprocs.pool.pool import ProcessPool
from nbprocs.pool.task import PoolTaskHandle

__all__ = [
    "CommandWorker",
    "PoolConfig",
    "PoolExecutor",
    "PoolMetrics",
    "PoolTaskHandle",
    "PoolTaskState",
    "ProcessPool",
    "PythonWorker",
    "RemoteError",
    "RemoteTraceback",
    "WorkerInfo",
    "WorkerOutput",
    "WorkerState",
]
