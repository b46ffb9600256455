"""The latest samples in Prometheus's text format, version 0.0.4. Pure text."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nbprocs.monitor.history import Series
from nbprocs.monitor.metrics import METRICS, Scope, State
from nbprocs.monitor.model import Alert

__all__ = ["exposition"]


def _label(value: object) -> str:
    """As it may stand in quotes; what is no text, such as a file's name in another encoding, becomes question marks."""
    return str(value).encode("utf-8", "replace").decode().replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


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
    for name, metric in METRICS.items():
        if (told := metric.prometheus) is not None:
            values = [(labels, row[name] * told.factor) for labels, row in labelled if metric.known(row[name])]
            _family(lines, f"nbprocs_{told.name}", told.kind, told.help, values)
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
