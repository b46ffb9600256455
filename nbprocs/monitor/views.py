"""What a monitor shows of its samples: tables and values. Pure functions of what was measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nbprocs.display import Html, joined, table, text
from nbprocs.monitor.history import HistorySnapshot, Series
from nbprocs.monitor.metrics import METRICS, ProcessMetrics, Scope, State
from nbprocs.monitor.model import Alert

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["alert_frame", "latest_frame", "metrics_of", "summary_frame", "table_html", "wide_frame"]

_KEPT_AT_END = ("restarts", "error_count", "success_count")


def metrics_of(
    series: Series, row: Mapping[str, Any], *, exact: tuple[float, float] | None, ports: tuple[int, ...], response: float
) -> ProcessMetrics:
    """One sample as a value."""
    values: dict[str, Any] = {name: row[name] if metric.known(row[name]) else None for name, metric in METRICS.items()}
    values["response_time"] = values["response_time"] if values["response_time"] is not None else None if math.isnan(response) else response
    state = State(row["state"])
    if state.ended:
        exact, ports = None, ()
    if exact is not None:
        values["pss_mb"], values["uss_mb"] = (None if math.isnan(value) else value for value in exact)
    for name in _KEPT_AT_END:
        values[name] = values[name] or 0
    return ProcessMetrics(
        process_id=series.process_id,
        name=series.name,
        pid=series.pid or None,
        timestamp=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row["time"]),
        state=state,
        ports=ports,
        **values,
    )


def latest_frame(metrics: Sequence[ProcessMetrics], notes: Mapping[str, str]) -> "pd.DataFrame":
    """A row a process, indexed by name."""
    import pandas as pd  # noqa: PLC0415 - keeps `import nbprocs` light

    rows = [{f.name: getattr(m, f.name) for f in fields(m)} for m in metrics]
    frame = pd.DataFrame(rows, columns=[f.name for f in fields(ProcessMetrics)]).set_index("name")
    kinds = {"pid": "Int64"} | {name: "Int64" if metric.counts else "float64" for name, metric in METRICS.items()}
    return frame.astype(kinds).assign(state=[str(m["state"]) for m in rows], note=[notes.get(str(name), "") for name in frame.index])


def wide_frame(snapshot: HistorySnapshot, metric: str, *, names: Iterable[str] | None, since: int | None) -> "pd.DataFrame":
    """A column a process, a row a moment."""
    if metric not in METRICS:
        msg = f"no metric {metric!r}; there are: {', '.join(METRICS)}"
        raise ValueError(msg)
    frame = snapshot.frame(scope=Scope.TREE, names=names, since=since)
    frame = frame[frame[metric].notna()]
    return frame.pivot_table(index="timestamp", columns="name", values=metric, observed=True).rename_axis(columns=None)


def summary_frame(frame: "pd.DataFrame", alerts: Sequence[Alert]) -> "pd.DataFrame":
    """A row a process: how long, how much, how often."""
    grouped = frame.groupby("name", observed=True, sort=False)
    columns = {column: (name, how) for name, metric in METRICS.items() for column, how in metric.summary}
    fixed = {"samples": ("timestamp", "size"), "first": ("timestamp", "min"), "last": ("timestamp", "max"), "state": ("state", "last")}
    table = grouped.agg(**fixed, **columns)
    counts: dict[str, int] = {}
    for alert in alerts:
        counts[alert.name] = counts.get(alert.name, 0) + 1
    table["alerts"] = [counts.get(str(name), 0) for name in table.index]
    table.index = table.index.astype("str")
    return table


def alert_frame(alerts: Sequence[Alert]) -> "pd.DataFrame":
    """A row an alert."""
    import pandas as pd  # noqa: PLC0415 - keeps `import nbprocs` light

    columns = ("timestamp", "resolved_at", "name", "type", "severity", "value", "peak", "limit", "message", "process_id", "id")
    frame = pd.DataFrame({column: [_plain(getattr(alert, column)) for alert in alerts] for column in columns})
    return frame.astype({"timestamp": "datetime64[us, UTC]", "resolved_at": "datetime64[us, UTC]"})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else value


def table_html(found: Sequence[ProcessMetrics], alerts: Sequence[Alert], *, heading: str) -> Html:
    """Static HTML: the latest samples and the open alerts."""
    shown = {name: metric for name, metric in METRICS.items() if metric.head}
    numbers = ([_number(getattr(m, name), metric.digits) for name, metric in shown.items()] for m in found)
    rows = ((text(m.name, limit=60), str(m.state), *cells) for m, cells in zip(found, numbers, strict=True))
    head = ("name", "state", *(metric.head for metric in shown.values()))
    lines = joined(Html("<div>{}: {}</div>").format(alert.severity, text(alert.message, limit=200)) for alert in alerts)
    return Html("<div>{}{}{}</div>").format(text(heading), lines, table(head, rows))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
