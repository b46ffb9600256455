"""The warm process pool: start with pool.py, and with dispatch.py for the rules."""

from nbprocs.pool.command import CommandWorker
from nbprocs.pool.executor import PoolExecutor
from nbprocs.pool.model import (
    PoolConfig,
    PoolMetrics,
    PythonWorker,
    RemoteError,
    RemoteTraceback,
    TaskState,
    WorkerInfo,
    WorkerOutput,
    WorkerState,
)
from nbprocs.pool.pool import ProcessPool
from nbprocs.pool.task import TaskHandle

__all__ = [
    "CommandWorker",
    "PoolConfig",
    "PoolExecutor",
    "PoolMetrics",
    "ProcessPool",
    "PythonWorker",
    "RemoteError",
    "RemoteTraceback",
    "TaskHandle",
    "TaskState",
    "WorkerInfo",
    "WorkerOutput",
    "WorkerState",
]
