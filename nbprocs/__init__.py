r"""Run, watch, pool, schedule and repair real processes from a notebook.

>>> async with ProcessManager() as pm:
...     result = await pm.run("echo", "hello")
>>> result.text
'hello\n'
"""

# Which layer may import which (import-linter holds this in CI; each only from those below it):
#
#     magics
#     widgets
#     recovery
#     monitor   scheduler
#     pool
#     manager
#     supervision
#     startup
#     registry  readiness  events  snapshots
#     process
#     engine
#     policy
#     display
#     errors
#     model
#     redact

from nbprocs.errors import (
    Closed,
    CommunicationError,
    ExecutionTimeout,
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
    UnknownProcess,
)
from nbprocs.manager import ProcessManager
from nbprocs.model import (
    EventKind,
    ProcessConfig,
    ProcessEvent,
    ProcessInfo,
    ProcessResult,
    ProcessStatus,
    Stream,
    TaskPriority,
)
from nbprocs.policy import CircuitBreaker, RestartPolicy, RetryPolicy
from nbprocs.process import ManagedProcess
from nbprocs.readiness import LogLine, Port, Url

__version__ = "0.1.0"

__all__ = [
    "CircuitBreaker",
    "Closed",
    "CommunicationError",
    "EventKind",
    "ExecutionTimeout",
    "LogLine",
    "ManagedProcess",
    "NameInUse",
    "NotReady",
    "OutOfMemory",
    "PermissionDenied",
    "Port",
    "ProcessConfig",
    "ProcessCrashed",
    "ProcessError",
    "ProcessEvent",
    "ProcessFailed",
    "ProcessInfo",
    "ProcessManager",
    "ProcessResult",
    "ProcessStatus",
    "ResourceExhausted",
    "RestartPolicy",
    "RestartsExhausted",
    "RetryPolicy",
    "StartupFailed",
    "StopFailed",
    "Stream",
    "TaskPriority",
    "UnknownProcess",
    "Url",
]
