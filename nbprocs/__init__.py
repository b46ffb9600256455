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

import importlib
import sys
from typing import Any

from nbprocs.display import set_view_factory
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

# Loaded when they are first asked for: a widget library takes longer to import than all the rest.
_LAZY = dict.fromkeys(("Dashboard", "OutputPane", "ProcessTable", "SpawnForm"), "nbprocs.widgets")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module 'nbprocs' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_LAZY[name]), name)


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext nbprocs``: the magics. Idempotent."""
    importlib.import_module("nbprocs.magics").load_ipython_extension(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext nbprocs``: the magics go."""
    importlib.import_module("nbprocs.magics").unload_ipython_extension(shell)


def _show_live(model: object) -> None:
    """The first display of one of our objects in a kernel: the views are loaded and take over."""
    live = importlib.import_module("nbprocs.widgets.live")
    live.install()
    live.publish(model)


_shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
if getattr(_shell, "kernel", None) is not None:
    set_view_factory(None, publish=_show_live)

__all__ = [
    "CircuitBreaker",
    "Closed",
    "CommunicationError",
    "Dashboard",
    "EventKind",
    "ExecutionTimeout",
    "LogLine",
    "ManagedProcess",
    "NameInUse",
    "NotReady",
    "OutOfMemory",
    "OutputPane",
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
    "ProcessTable",
    "ResourceExhausted",
    "RestartPolicy",
    "RestartsExhausted",
    "RetryPolicy",
    "SpawnForm",
    "StartupFailed",
    "StopFailed",
    "Stream",
    "TaskPriority",
    "UnknownProcess",
    "Url",
]
