"""Which cell of which notebook starts a process, where a kernel can tell."""

import os
import sys
from typing import Any

__all__ = ["Cells", "notebook_name"]


class Cells:
    """Follows which cell runs, for one recorder. Reading ``now`` costs under a microsecond."""

    def __init__(self) -> None:
        ipython = sys.modules.get("IPython")
        shell: Any = None if ipython is None else ipython.get_ipython()
        self._shell = shell if getattr(shell, "kernel", None) is not None else None
        self._running, self._name = True, ""  # made in a cell, whose beginning was not heard
        if self._shell is not None:
            self._shell.events.register("pre_run_cell", self._begins)
            self._shell.events.register("post_run_cell", self._ends)

    @property
    def now(self) -> str | None:
        """Number and id of the cell that runs; None between cells, where only background tasks start anything, and outside of kernels."""
        if self._shell is None or not self._running:
            return None
        # Not execution_count: some versions of IPython raise it before the cell runs, some after.
        return f"[{len(self._shell.history_manager.input_hist_parsed) - 1}]{self._name}"

    def _begins(self, info: Any = None) -> None:
        name = getattr(info, "cell_id", None)
        self._running, self._name = True, f" {name}" if name else ""

    def _ends(self, _result: Any = None) -> None:
        self._running = False

    def stop(self) -> None:
        """Follow no more."""
        if self._shell is not None:
            self._shell.events.unregister("pre_run_cell", self._begins)
            self._shell.events.unregister("post_run_cell", self._ends)
            self._shell = None


def notebook_name() -> str | None:
    """The notebook's path as the server or VS Code tells its kernels; None where nobody does."""
    told = os.environ.get("JPY_SESSION_NAME")
    if told:
        return told
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    space = getattr(shell, "user_ns", None) or {}
    name = space.get("__vsc_ipynb_file__")
    return name if isinstance(name, str) else None
