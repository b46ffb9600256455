"""Live views of processes in a notebook. Models know nothing of them; see base.py for how they are made.

Each view is loaded when it is first asked for: a table needs neither the scheduler nor the pool.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbprocs.widgets.boards import PoolView
    from nbprocs.widgets.charts import Charts
    from nbprocs.widgets.dashboard import Dashboard
    from nbprocs.widgets.live import install
    from nbprocs.widgets.output_pane import OutputPane
    from nbprocs.widgets.process_table import ProcessTable
    from nbprocs.widgets.queue_view import QueueView
    from nbprocs.widgets.spawn_form import SpawnForm
    from nbprocs.widgets.workers_view import WorkersView

__all__ = ["Charts", "Dashboard", "OutputPane", "PoolView", "ProcessTable", "QueueView", "SpawnForm", "WorkersView", "install"]

_HOMES = {
    "Charts": "charts",
    "Dashboard": "dashboard",
    "OutputPane": "output_pane",
    "PoolView": "boards",
    "ProcessTable": "process_table",
    "QueueView": "queue_view",
    "SpawnForm": "spawn_form",
    "WorkersView": "workers_view",
    "install": "live",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
