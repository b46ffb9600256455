"""Metrics of whole process trees as DataFrames, with alerts that can be replayed.

::

      monitor, record            act: ticks, callbacks, one worker thread
      roster, sampler, probes    see: who, how much, how fast
      book: history + alerts     remember and decide (pure)
      views, plots, prometheus   show (pure)
      metrics, model             the one table of what is measured; values
"""

from nbprocs.engine.container import Limits, read_limits
from nbprocs.monitor.alerts import replay
from nbprocs.monitor.metrics import AlertType, ProcessMetrics, Scope, State
from nbprocs.monitor.model import Alert, AlertSeverity, AlertThresholds, Rule
from nbprocs.monitor.monitor import ProcessMonitor
from nbprocs.monitor.record import Recording, record

__all__ = [
    "Alert",
    "AlertSeverity",
    "AlertThresholds",
    "AlertType",
    "Limits",
    "ProcessMetrics",
    "ProcessMonitor",
    "Recording",
    "Rule",
    "Scope",
    "State",
    "read_limits",
    "record",
    "replay",
]
