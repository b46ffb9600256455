r"""Run, watch, pool, schedule and repair real processes from a notebook.

>>> async with ProcessManager() as pm:
...     result = await pm.run("echo", "hello")
>>> result.text
'hello\n'
"""

# Which layer may import which (import-linter holds this in CI; each only from those below it):
#
#     magics   server
#     widgets
#     recovery  runs
#     cluster
#     monitor   scheduler
#     pool
#     processes
#     engine
#     policy
#     errors
#     model
#     config
#     notify
#     checks   display   terminal
#     redact
#     guard      seams

from __future__ import annotations

import importlib
import sys

from nbprocs.seams import installed

TYPE_CHECKING = False  # what type checkers take for typing's, which costs more to load than all of this

__version__ = "0.2.0"

# Loaded when they are first asked for: a notebook that starts one process needs neither a scheduler nor a widget library, and a cell
# that only imports needs none of it.
_LAZY = {
    "nbprocs.errors": (
        "Closed",
        "CommunicationError",
        "ExecutionTimeout",
        "ExpectTimeout",
        "NameInUse",
        "NotReady",
        "OutOfMemory",
        "PermissionDenied",
        "ProcessCrashed",
        "ProcessError",
        "ProcessFailed",
        "ResourceExhausted",
        "RestartsExhausted",
        "StartupFailed",
        "StopFailed",
        "Unhealthy",
        "UnknownProcess",
        "WorkerLost",
    ),
    "nbprocs.model": (
        "EndReason",
        "EventKind",
        "ProcessConfig",
        "ProcessEvent",
        "ProcessInfo",
        "ProcessResult",
        "ProcessStatus",
        "Stream",
        "TaskPriority",
    ),
    "nbprocs.notify": ("Notice", "Notify"),
    "nbprocs.processes": ("ManagedProcess", "ProcessManager"),
    "nbprocs.engine.owners": ("managers",),
    "nbprocs.processes.detached": ("detached", "forget"),
    "nbprocs.processes.default": ("adopt", "run", "run_sync", "spawn"),
    "nbprocs.processes.readiness": ("LogLine", "Port", "Url"),
    "nbprocs.policy": ("CircuitBreaker", "RestartPolicy", "RetryPolicy"),
    "nbprocs.pool": (
        "CommandWorker",
        "PoolConfig",
        "PoolExecutor",
        "PoolMetrics",
        "ProcessPool",
        "PythonWorker",
        "RemoteError",
        "WorkerInfo",
        "WorkerOutput",
        "WorkerState",
    ),
    "nbprocs.scheduler": (
        "After",
        "Condition",
        "DependencyFailed",
        "Halt",
        "Halted",
        "LocalBackend",
        "Misfire",
        "PoolBackend",
        "ScheduledTask",
        "SchedulerConfig",
        "SchedulerStatus",
        "StoreCorrupt",
        "StoreError",
        "StoreInUse",
        "StoreTooNew",
        "TaskCancelled",
        "TaskInterrupted",
        "TaskScheduler",
    ),
    "nbprocs.cluster": ("DaskBackend",),
    "nbprocs.monitor": (
        "Alert",
        "AlertSeverity",
        "AlertThresholds",
        "AlertType",
        "ProcessMetrics",
        "ProcessMonitor",
        "Recording",
        "Rule",
        "record",
        "replay",
    ),
    "nbprocs.recovery": (
        "DoNothing",
        "ErrorHandler",
        "FirstOf",
        "Incident",
        "NotifyAdmin",
        "Outcome",
        "RecoveryReport",
        "RecoveryStrategy",
        "ReplaceProcess",
        "RestartProcess",
        "ScaleDown",
        "ScaleUp",
        "Sequence",
    ),
    "nbprocs.runs.doctor": ("Diagnosis", "Finding", "doctor"),
    "nbprocs.runs": (
        "NotRerunnable",
        "RunDiff",
        "RunHistory",
        "RunRecord",
        "RunsConfig",
        "RunsError",
        "RunsTooNew",
        "runs",
        "set_runs",
    ),
    "nbprocs.widgets": ("Charts", "Dashboard", "OutputPane", "PoolView", "ProcessTable", "QueueView", "SpawnForm", "WorkersView"),
}
_HOME_OF = {name: module for module, names in _LAZY.items() for name in names}

if TYPE_CHECKING:
    from typing import Any

    from nbprocs.cluster import DaskBackend
    from nbprocs.engine.owners import managers
    from nbprocs.errors import (
        Closed,
        CommunicationError,
        ExecutionTimeout,
        ExpectTimeout,
        NameInUse,
        NotReady,
        OutOfMemory,
        PermissionDenied,
        ProcessCrashed,
        ProcessError,
        ProcessFailed,
        ResourceExhausted,
        RestartsExhausted,
        StartupFailed,
        StopFailed,
        Unhealthy,
        UnknownProcess,
        WorkerLost,
    )
    from nbprocs.model import (
        EndReason,
        EventKind,
        ProcessConfig,
        ProcessEvent,
        ProcessInfo,
        ProcessResult,
        ProcessStatus,
        Stream,
        TaskPriority,
    )
    from nbprocs.monitor import (
        Alert,
        AlertSeverity,
        AlertThresholds,
        AlertType,
        ProcessMetrics,
        ProcessMonitor,
        Recording,
        Rule,
        record,
        replay,
    )
    from nbprocs.notify import Notice, Notify
    from nbprocs.policy import CircuitBreaker, RestartPolicy, RetryPolicy
    from nbprocs.pool import (
        CommandWorker,
        PoolConfig,
        PoolExecutor,
        PoolMetrics,
        ProcessPool,
        PythonWorker,
        RemoteError,
        WorkerInfo,
        WorkerOutput,
        WorkerState,
    )
    from nbprocs.processes import ManagedProcess, ProcessManager
    from nbprocs.processes.default import adopt, run, run_sync, spawn
    from nbprocs.processes.detached import detached, forget
    from nbprocs.processes.readiness import LogLine, Port, Url
    from nbprocs.recovery import (
        DoNothing,
        ErrorHandler,
        FirstOf,
        Incident,
        NotifyAdmin,
        Outcome,
        RecoveryReport,
        RecoveryStrategy,
        ReplaceProcess,
        RestartProcess,
        ScaleDown,
        ScaleUp,
        Sequence,
    )
    from nbprocs.runs import NotRerunnable, RunDiff, RunHistory, RunRecord, RunsConfig, RunsError, RunsTooNew, runs, set_runs
    from nbprocs.runs.doctor import Diagnosis, Finding, doctor
    from nbprocs.scheduler import (
        After,
        Condition,
        DependencyFailed,
        Halt,
        Halted,
        LocalBackend,
        Misfire,
        PoolBackend,
        ScheduledTask,
        SchedulerConfig,
        SchedulerStatus,
        StoreCorrupt,
        StoreError,
        StoreInUse,
        StoreTooNew,
        TaskCancelled,
        TaskInterrupted,
        TaskScheduler,
    )
    from nbprocs.widgets import Charts, Dashboard, OutputPane, PoolView, ProcessTable, QueueView, SpawnForm, WorkersView


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        try:
            return importlib.import_module(f"nbprocs.{name}")  # a room: nbprocs.errors
        except ModuleNotFoundError as error:
            if error.name != f"nbprocs.{name}":
                raise
        msg = f"module 'nbprocs' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext nbprocs``: the magics. Idempotent."""
    importlib.import_module("nbprocs.magics").load_ipython_extension(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext nbprocs``: the magics go."""
    importlib.import_module("nbprocs.magics").unload_ipython_extension(shell)


installed["historian"] = lambda: importlib.import_module("nbprocs.runs.recorder")  # loaded by the first ``runs=``


def _show_live(model: object) -> None:
    """The first display of one of our objects in a kernel: the views are loaded and take over."""
    live = importlib.import_module("nbprocs.widgets.live")
    live.install()
    live.publish(model)


_kernel = getattr(sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None, "kernel", None)
if _kernel is not None:
    importlib.import_module("nbprocs.display").set_view_factory(None, publish=_show_live)
    _kernel.comm_manager.register_target(
        "nbprocs.notify", lambda comm, _opened: importlib.import_module("nbprocs.widgets.notices").opened(comm)
    )
    _kernel.comm_manager.register_target(
        "nbprocs.panel", lambda comm, opened: importlib.import_module("nbprocs.widgets.panel").asked(comm, opened)
    )

__all__ = [
    "After",
    "Alert",
    "AlertSeverity",
    "AlertThresholds",
    "AlertType",
    "Charts",
    "CircuitBreaker",
    "Closed",
    "CommandWorker",
    "CommunicationError",
    "Condition",
    "Dashboard",
    "DaskBackend",
    "DependencyFailed",
    "Diagnosis",
    "DoNothing",
    "EndReason",
    "ErrorHandler",
    "EventKind",
    "ExecutionTimeout",
    "ExpectTimeout",
    "Finding",
    "FirstOf",
    "Halt",
    "Halted",
    "Incident",
    "LocalBackend",
    "LogLine",
    "ManagedProcess",
    "Misfire",
    "NameInUse",
    "NotReady",
    "NotRerunnable",
    "Notice",
    "Notify",
    "NotifyAdmin",
    "OutOfMemory",
    "Outcome",
    "OutputPane",
    "PermissionDenied",
    "PoolBackend",
    "PoolConfig",
    "PoolExecutor",
    "PoolMetrics",
    "PoolView",
    "Port",
    "ProcessConfig",
    "ProcessCrashed",
    "ProcessError",
    "ProcessEvent",
    "ProcessFailed",
    "ProcessInfo",
    "ProcessManager",
    "ProcessMetrics",
    "ProcessMonitor",
    "ProcessPool",
    "ProcessResult",
    "ProcessStatus",
    "ProcessTable",
    "PythonWorker",
    "QueueView",
    "Recording",
    "RecoveryReport",
    "RecoveryStrategy",
    "RemoteError",
    "ReplaceProcess",
    "ResourceExhausted",
    "RestartPolicy",
    "RestartProcess",
    "RestartsExhausted",
    "RetryPolicy",
    "Rule",
    "RunDiff",
    "RunHistory",
    "RunRecord",
    "RunsConfig",
    "RunsError",
    "RunsTooNew",
    "ScaleDown",
    "ScaleUp",
    "ScheduledTask",
    "SchedulerConfig",
    "SchedulerStatus",
    "Sequence",
    "SpawnForm",
    "StartupFailed",
    "StopFailed",
    "StoreCorrupt",
    "StoreError",
    "StoreInUse",
    "StoreTooNew",
    "Stream",
    "TaskCancelled",
    "TaskInterrupted",
    "TaskPriority",
    "TaskScheduler",
    "Unhealthy",
    "UnknownProcess",
    "Url",
    "WorkerInfo",
    "WorkerLost",
    "WorkerOutput",
    "WorkerState",
    "WorkersView",
    "adopt",
    "detached",
    "doctor",
    "forget",
    "managers",
    "record",
    "replay",
    "run",
    "run_sync",
    "runs",
    "set_runs",
    "spawn",
]
