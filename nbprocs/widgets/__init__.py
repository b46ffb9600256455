"""Live views of processes in a notebook. Models know nothing of them; see base.py for how they are made."""

from nbprocs.widgets.boards import PoolView
from nbprocs.widgets.charts import Charts
from nbprocs.widgets.dashboard import Dashboard
from nbprocs.widgets.live import install
from nbprocs.widgets.output_pane import OutputPane
from nbprocs.widgets.process_table import ProcessTable
from nbprocs.widgets.queue_view import QueueView
from nbprocs.widgets.spawn_form import SpawnForm

__all__ = ["Charts", "Dashboard", "OutputPane", "PoolView", "ProcessTable", "QueueView", "SpawnForm", "install"]
