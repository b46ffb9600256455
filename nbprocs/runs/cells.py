"""Which cell of which notebook starts a process, where a kernel can tell."""

import os
import sys
from typing import Any

__all__ = ["Cells", "notebook_name"]


class Cells:
    """Follows which cell runs; made by a recorder, one for the kernel. Reading ``now`` costs nothing."""

    def __init__(self) -> None:
        self.now: str | None = None
        ipython = sys.modules.get("IPython")
        shell: Any = None if ipython is None else ipython.get_ipython()
        self._shell = shell
        events = getattr(self._shell, "events", None)
        if events is not None and getattr(self._shell, "kernel", None) is not None:
            self.now = f"[{shell.execution_count}]"  # made in a cell, whose beginning was not heard
            events.register("pre_run_cell", self._begins)
            events.register("post_run_cell", self._ends)

    def _begins(self, info: Any = None) -> None:
        number, name = getattr(self._shell, "execution_count", "?"), getattr(info, "cell_id", None)
        self.now = f"[{number}] {name}" if name else f"[{number}]"

    def _ends(self, _result: Any = None) -> None:
        self.now = None  # what starts from here on is a background task's

    def stop(self) -> None:
        """Follow no more."""
        events = getattr(self._shell, "events", None)
        if events is not None and getattr(self._shell, "kernel", None) is not None:
            events.unregister("pre_run_cell", self._begins)
            events.unregister("post_run_cell", self._ends)


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
