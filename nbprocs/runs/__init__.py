"""A memory of every run: history, provenance, rerun, estimates from the past, and a doctor. Call it to read a history.

::

    recorder ─► rows ─► writer (a thread) ─► SQLite      what a manager starts and ends
    history ─► record ─► diff, plots, prov, learned      what can be asked of it
    doctor ─► probes                                     what is wrong with this kernel

>>> async with nbprocs.ProcessManager(runs="runs.db") as pm:
...     _ = await pm.run("echo", "hello", name="greeting")
>>> nbprocs.runs("runs.db")[-1]
<RunRecord greeting: completed in ... s, ...: echo hello>
"""

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from nbprocs.processes.recording import kernel_runs, set_kernel_runs
from nbprocs.runs.diff import RunDiff
from nbprocs.runs.errors import NotRerunnable, RunsError, RunsTooNew
from nbprocs.runs.history import RunHistory
from nbprocs.runs.record import RunRecord
from nbprocs.runs.recorder import RunsConfig

__all__ = ["NotRerunnable", "RunDiff", "RunHistory", "RunRecord", "RunsConfig", "RunsError", "RunsTooNew", "runs", "set_runs"]


def set_runs(runs: "RunsConfig | str | os.PathLike[str] | None") -> None:
    """Record the runs of every manager of this kernel that is made from now on and doesn't say otherwise; None: no more.

    >>> set_runs("kernel-runs.db")
    >>> async with nbprocs.ProcessManager() as pm:
    ...     _ = await pm.run("true")
    >>> set_runs(None)
    >>> len(nbprocs.runs("kernel-runs.db"))
    1
    """
    set_kernel_runs(None if runs is None else RunsConfig.of(runs))


class _Callable(ModuleType):
    """The package itself is what reads a history: ``nbprocs.runs("runs.db")``, and its modules are still found below it."""

    def __call__(self, path: "str | os.PathLike[str] | None" = None) -> RunHistory:
        if path is None:
            kernel = kernel_runs()
            if kernel is None:
                raise RunsError(
                    "no history was named, and the kernel has none", hint="nbprocs.runs('runs.db'), or nbprocs.set_runs('runs.db')"
                )
            path = kernel.path
        return RunHistory(path)


sys.modules[__name__].__class__ = _Callable
if TYPE_CHECKING:

    def runs(path: "str | os.PathLike[str] | None" = None) -> RunHistory:
        """The runs recorded in a file; without one, those of the kernel's history. Raises RunsError for what can't be read."""
        raise AssertionError(path)
else:
    runs = sys.modules[__name__]
