"""The latest samples in Prometheus's text format, version 0.0.4. Pure text."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nbprocs.monitor.history import COUNTS, Series
from nbprocs.monitor.model import Alert, Scope, State

__all__ = ["exposition"]


class _Metric(NamedTuple):
    name: str
    kind: str
    column: str
    factor: float
    help: str


_MIB = float(1 << 20)
_METRICS = (
    _Metric("nbprocs_memory_resident_bytes", "gauge", "memory_usage_mb", _MIB, "Resident memory of the process tree."),
    _Metric("nbprocs_memory_percent", "gauge", "memory_percent", 1, "Resident memory in percent of the container's limit."),
    _Metric("nbprocs_memory_proportional_bytes", "gauge", "pss_mb", _MIB, "Proportional set size of the process tree."),
    _Metric("nbprocs_cpu_percent", "gauge", "cpu_percent", 1, "CPU use of the process tree; 100 is one core."),
    _Metric("nbprocs_threads", "gauge", "threads", 1, "Threads of the process tree."),
    _Metric("nbprocs_open_fds", "gauge", "file_descriptors", 1, "Open file descriptors of the process tree."),
    _Metric("nbprocs_processes", "gauge", "processes", 1, "Processes in the tree."),
    _Metric("nbprocs_restarts_total", "counter", "restarts", 1, "Restarts so far."),
    _Metric("nbprocs_errors_total", "counter", "error_count", 1, "Exits and tasks that failed."),
    _Metric("nbprocs_successes_total", "counter", "success_count", 1, "Exits and tasks that succeeded."),
    _Metric("nbprocs_read_bytes_total", "counter", "read_bytes", 1, "Bytes read by system calls."),
    _Metric("nbprocs_written_bytes_total", "counter", "write_bytes", 1, "Bytes written by system calls."),
    _Metric("nbprocs_age_seconds", "gauge", "age_seconds", 1, "Seconds since the process started."),
    _Metric("nbprocs_response_seconds", "gauge", "response_time", 1, "Latest answer of its probe; +Inf: none."),
    _Metric("nbprocs_error_rate", "gauge", "error_rate", 1, "Failures among the outcomes of the last minute."),
    _Metric("nbprocs_throughput_per_second", "gauge", "throughput", 1, "Lines of output, or tasks, a second."),
    _Metric("nbprocs_output_bytes_per_second", "gauge", "output_bytes_per_second", 1, "Output in bytes a second."),
    _Metric("nbprocs_idle_seconds", "gauge", "idle_seconds", 1, "Seconds without CPU use, I/O and output."),
    _Metric("nbprocs_gpu_memory_bytes", "gauge", "gpu_memory_mb", _MIB, "GPU memory of the process tree."),
    _Metric("nbprocs_gpu_percent", "gauge", "gpu_percent", 1, "GPU load of the process tree."),
)


def _label(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def exposition(latest: Iterable[tuple[Series, Mapping[str, Any]]], alerts: Iterable[Alert] = ()) -> str:
    """The text for a scrape. What was not measured is left out; of one name (a restarted process) only the newest is told."""
    newest: dict[tuple[str, int], tuple[Series, Mapping[str, Any]]] = {}
    for series, row in latest:
        if row["scope"] != Scope.PROCESS:
            newest[series.name, row["scope"]] = series, row
    lines: list[str] = []
    labelled = [(_labels(series, row), row) for series, row in newest.values()]
    _family(lines, "nbprocs_up", "gauge", "1 while the process runs.", [
        (labels, 0.0 if State(row["state"]).ended else 1.0) for labels, row in labelled
    ])  # fmt: skip
    for metric in _METRICS:
        values = [
            (labels, row[metric.column] * metric.factor)
            for labels, row in labelled
            if not (row[metric.column] < 0 if metric.column in COUNTS else math.isnan(row[metric.column]))
        ]
        _family(lines, metric.name, metric.kind, metric.help, values)
    open_ones = [(f'name="{_label(a.name)}",type="{a.type}",severity="{a.severity}"', 1.0) for a in alerts if not a.resolved]
    _family(lines, "nbprocs_alert_open", "gauge", "1 for each open alert.", open_ones)
    return "\n".join(lines) + "\n" if lines else ""


def _labels(series: Series, row: Mapping[str, Any]) -> str:
    scope = "group" if row["scope"] == Scope.GROUP else "tree"
    return f'name="{_label(series.name)}",pid="{series.pid or ""}",scope="{scope}"'


def _family(lines: list[str], name: str, kind: str, text: str, values: list[tuple[str, float]]) -> None:
    if not values:
        return
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{name}{{{labels}}} {_number(value)}" for labels, value in values)
