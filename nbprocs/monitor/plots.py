"""Memory, CPU and events over time, by matplotlib's object interface: no global state, no window; the figure shows itself in a notebook.

Colours are those of Okabe and Ito, told apart by the colour-blind. Up to seven processes are named, each with its colour, at the end of
its line. Of more the five highest are named; the others are thin grey lines, so that fifty stay readable: one sees the crowd and
who leaves it.
"""

import functools
import importlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbprocs.display import BLACK, GREEN, GREY, ORANGE, PALETTE, SKY, VERMILLION
from nbprocs.monitor.metrics import METRICS, AlertType
from nbprocs.monitor.model import Alert, AlertSeverity, AlertThresholds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PANELS", "plot"]

PANELS = ("memory_usage_mb", "cpu_percent")

NAMED = 7  # so many have a colour each
TOP = 5  # of more than those so many
LANES = 8
_SEVERITY = {
    AlertSeverity.INFO: SKY,
    AlertSeverity.WARNING: ORANGE,
    AlertSeverity.CRITICAL: VERMILLION,
    AlertSeverity.EMERGENCY: BLACK,
}
_ENDS = {
    "completed": ("o", GREEN),
    "terminated": ("s", GREY),
    "failed": ("X", VERMILLION),
    "gone": ("X", GREY),
    "fatal": ("X", BLACK),
}


@functools.cache
def _figure_class() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - keeps `import nbprocs` light
    from matplotlib.figure import Figure  # noqa: PLC0415

    class MonitorFigure(Figure):  # type: ignore[misc,unused-ignore]
        """A figure that shows itself in a notebook without pyplot and its state."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            FigureCanvasAgg(self)

        def _repr_png_(self) -> bytes:
            data = io.BytesIO()
            self.savefig(data, format="png", dpi=110)
            return data.getvalue()

    return MonitorFigure


def plot(
    frame: "pd.DataFrame",
    alerts: Sequence[Alert] = (),
    *,
    thresholds: AlertThresholds | None = None,
    title: str | None = None,
    metrics: Sequence[str] = PANELS,
) -> "Figure":
    """Draw a frame of the monitor and the alerts of its time; returns a matplotlib Figure (``figure.savefig("talk.png")``).

    Takes about half a second for 100,000 samples: lines are thinned to what a screen can show, keeping every peak.
    """
    frame = frame[frame["scope"] != "group"] if "scope" in frame and (frame["scope"] == "tree").any() else frame
    colours = _colours(frame, metrics[0])
    lanes = _lanes(frame, alerts, colours)
    heights = [3.0] * len(metrics) + ([0.45 + 0.3 * len(lanes)] if lanes else [])
    figure: Figure = _figure_class()(figsize=(10, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    asked = thresholds or AlertThresholds()
    for panel, metric in zip(axes, metrics, strict=False):
        ends = _lines(panel, frame, metric, colours)
        _limit(panel, asked.limit(metric))
        _name_ends(panel, ends, colours, total=frame["name"].nunique())  # last: where there is room depends on the scale
    if lanes:
        _events(axes[-1], frame, alerts, lanes, colours)
    _time_axis(axes[-1], frame, alerts)
    figure.align_ylabels(axes[: len(metrics)])
    if title is None:
        count = frame["name"].nunique()
        title = str(frame["name"].iloc[0]) if count == 1 else f"{count} processes"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _colours(frame: "pd.DataFrame", metric: str) -> dict[str, str]:
    """The named processes, highest first, each with its colour."""
    if frame.empty:
        return {}
    peaks = frame.groupby("name", observed=True)[metric].max().fillna(0.0).sort_values(ascending=False, kind="stable")
    chosen = peaks.index[: NAMED if len(peaks) <= NAMED else TOP]
    return {str(name): PALETTE[place] for place, name in enumerate(chosen)}


def _lines(panel: Any, frame: "pd.DataFrame", metric: str, colours: dict[str, str]) -> list[tuple[float, Any, str]]:
    ends: list[tuple[float, Any, str]] = []
    for name, part in frame.groupby("name", observed=True, sort=False):
        good = part[metric].notna().to_numpy()
        if metric == "memory_usage_mb":  # caught while it exits: its memory is gone, its end has not come yet
            good = good & (part[metric].to_numpy() > 0)
        times = part["timestamp"].to_numpy()[good]
        values = part[metric].to_numpy(dtype="float64", na_value=float("nan"))[good]
        if not len(values):
            continue
        times, values = _thin(times, values)
        colour = colours.get(str(name))
        if colour is None:
            panel.plot(times, values, color=GREY, linewidth=0.7, alpha=0.6, zorder=1)
            continue
        panel.plot(times, values, color=colour, linewidth=1.8, zorder=3, marker="o" if len(values) == 1 else None, markersize=4)
        ends.append((float(values[-1]), times[-1], str(name)))
    panel.set_ylabel(METRICS[metric].title if metric in METRICS else metric.replace("_", " "))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(x=0.01)
    low, high = panel.get_ylim()
    high = high if high > 0 else 1.0
    panel.set_ylim(-0.02 * high if low < high * 0.5 else low, high)
    return ends


def _thin(times: Any, values: Any, most: int = 2000) -> tuple[Any, Any]:
    """At most about ``most`` points: of each stretch its lowest and its highest."""
    import numpy as np  # noqa: PLC0415

    if len(values) <= most:
        return times, values
    stretch = -(-len(values) // (most // 2))
    edges = range(0, len(values), stretch)
    keep = np.unique([i + f(values[i : i + stretch]) for i in edges for f in (np.argmin, np.argmax)])
    return times[keep], values[keep]


def _name_ends(panel: Any, ends: list[tuple[float, Any, str]], colours: dict[str, str], *, total: int) -> None:
    """Names beside the ends of the lines, moved apart where they would overlap."""
    low, high = panel.get_ylim()
    gap = (high - low) * 0.085
    placed: list[float] = [low + gap * 0.3] if total > len(colours) else []  # the lowest place is for "45 more"
    for value, _, name in sorted(ends):
        at = max(value, placed[-1] + gap) if placed else max(value, low)
        placed.append(at)
        panel.annotate(
            name if len(name) <= 22 else name[:21] + "…",  # noqa: PLR2004 - what fits beside the panel
            xy=(1.005, at),
            xycoords=("axes fraction", "data"),
            color=colours[name],
            fontsize=9,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
    if total > len(colours) and ends:
        panel.annotate(
            f"{total - len(colours)} more", xy=(1.005, 0.0), xycoords="axes fraction", color=GREY, fontsize=9, va="bottom"
        )  # fmt: skip


def _limit(panel: Any, limit: float | None) -> None:
    if limit is None:
        return
    panel.axhline(limit, color="#555555", linewidth=1.0, linestyle=(0, (5, 3)), zorder=2)
    panel.annotate(
        f"limit {limit:g}", xy=(0.005, limit), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        fontsize=8, color="#555555",
    )  # fmt: skip
    if panel.get_ylim()[1] < limit * 1.08:
        panel.set_ylim(top=limit * 1.08)


def _lanes(frame: "pd.DataFrame", alerts: Sequence[Alert], colours: dict[str, str]) -> list[str]:
    """Who gets a line in the events panel: whoever had an alert or an end, coloured ones first."""
    names = dict.fromkeys(alert.name for alert in alerts)
    if not frame.empty and "state" in frame:
        ended = _ends_of(frame)
        names |= dict.fromkeys(str(name) for name in ended["name"].tolist())
    return sorted(names, key=lambda name: name not in colours)[:LANES]


def _ends_of(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The samples that tell an end: of a crowd only those that somebody should look at."""
    few = frame["name"].nunique() <= NAMED
    return frame[frame["state"].isin([state for state in _ENDS if few or state in ("failed", "fatal", "gone")])]


def _events(panel: Any, frame: "pd.DataFrame", alerts: Sequence[Alert], lanes: list[str], colours: dict[str, str]) -> None:
    date2num: Any = importlib.import_module("matplotlib.dates").date2num

    place = {name: len(lanes) - 1 - number for number, name in enumerate(lanes)}
    last = frame["timestamp"].max() if not frame.empty else max(alert.timestamp for alert in alerts)
    for alert in alerts:
        if alert.name not in place:
            continue
        start, end = date2num(alert.timestamp), date2num(alert.resolved_at or max(last, alert.timestamp))
        panel.barh(place[alert.name], max(end - start, 1e-9), left=start, height=0.5, color=_SEVERITY[alert.severity], alpha=0.85, zorder=2)
        panel.plot([start], [place[alert.name]], marker="|", markersize=12, color=_SEVERITY[alert.severity], zorder=3)
        panel.annotate(
            str(alert.type).replace("_", " "), xy=(start, place[alert.name]), xytext=(4, 0), textcoords="offset points",
            fontsize=8, va="center", color="white" if alert.severity >= AlertSeverity.CRITICAL else "black", zorder=4,
        )  # fmt: skip
    ended = _ends_of(frame) if not frame.empty else frame
    down = {alert.name for alert in alerts if alert.type is AlertType.PROCESS_DOWN}  # their bar says it
    for name, state, when in zip(ended["name"].tolist(), ended["state"].tolist(), ended["timestamp"].tolist(), strict=True):
        if str(name) in place:
            marker, colour = _ENDS[str(state)]
            panel.plot([date2num(when)], [place[str(name)]], marker=marker, color=colour, markersize=8, markeredgecolor="white", zorder=5)
            if str(name) not in down:
                at = date2num(when), place[str(name)]
                panel.annotate(str(state), xy=at, xytext=(7, 0), textcoords="offset points", fontsize=8, va="center", color=colour)
    panel.set_yticks(list(place.values()), [name if len(name) <= 22 else name[:21] + "…" for name in place])  # noqa: PLR2004
    for tick in panel.get_yticklabels():
        tick.set_color(colours.get(tick.get_text(), "#333333"))
    panel.set_ylim(-0.6, len(lanes) - 0.4)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_title("alerts and ends", loc="left", fontsize=9, color="#555555")


def _time_axis(panel: Any, frame: "pd.DataFrame", alerts: Sequence[Alert]) -> None:
    if frame.empty and not alerts:
        panel.annotate("no samples yet", xy=(0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
        return
    dates: Any = importlib.import_module("matplotlib.dates")
    locator = dates.AutoDateLocator(minticks=3, maxticks=9)
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    panel.set_xlabel("time (UTC)", fontsize=9, color="#555555")
