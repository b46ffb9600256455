"""Own processes: the manager, one process and its talk, starting, names, readiness, events, supervision, frames.

Public is what is named here; the modules are the package's own.
"""

from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess

__all__ = ["ManagedProcess", "ProcessManager"]
