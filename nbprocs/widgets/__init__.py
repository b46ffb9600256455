"""Live views of processes in a notebook. Models know nothing of them; see base.py for how they are made."""

from nbprocs.widgets.live import install
from nbprocs.widgets.output_pane import OutputPane
from nbprocs.widgets.process_table import ProcessTable

__all__ = ["OutputPane", "ProcessTable", "install"]
