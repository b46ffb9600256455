"""Pictures of a history, by matplotlib, which is imported only here and only inside the functions."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nbprocs.display import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot", "timeline"]

# Okabe and Ito's palette: told apart by the colour-blind, too
_COLOURS = {"completed": "#009e73", "failed": "#d55e00", "terminated": "#999999", "lost": "#cc79a7", "running": "#56b4e9"}
_LABELLED = 200  # bars that still get their names written into them
_ROWS = 60


def plot(frame: "pd.DataFrame", *, title: str = "", ax: "Sequence[Axes] | None" = None) -> "Sequence[Axes]":
    """Duration above, peak memory below, by the time of the start; what did not succeed is a cross in the colour of its end."""
    from matplotlib.dates import ConciseDateFormatter  # noqa: PLC0415 - drawing only

    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - drawing only

        ax = plt.subplots(2, 1, sharex=True, figsize=(9, 5), layout="constrained")[1]  # type: ignore[no-untyped-call, unused-ignore]
    for axes, values, label in ((ax[0], frame["seconds"], "seconds"), (ax[1], frame["peak_rss"].astype("float64") / 2**20, "MiB")):
        good = frame["state"] == "completed"
        axes.plot(frame["started"][good], values[good], color=_COLOURS["completed"], marker=".", linewidth=0.8, label="completed")
        for state, colour in _COLOURS.items():
            some = (frame["state"] == state) & ~good
            if some.any():
                axes.scatter(frame["started"][some], values[some].fillna(0), color=colour, marker="x", label=state, zorder=3)
        if not values.notna().any():
            axes.text(0.5, 0.5, "not known of any of them", transform=axes.transAxes, ha="center", va="center", color="#777777")
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.15 * max(values.max(), 0) or None if values.notna().any() else None)
        axes.grid(alpha=0.3)
    ax[0].legend(loc="upper left", fontsize="small")
    ax[0].set_title(plain(title or "runs", limit=100))
    formatter = ConciseDateFormatter(ax[1].xaxis.get_major_locator(), tz="UTC")  # type: ignore[no-untyped-call, unused-ignore]
    ax[1].xaxis.set_major_formatter(formatter)
    return ax


def timeline(frame: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """A bar for each run, in the lowest row that is free at its start, coloured by its end; x is seconds since the first start.

    Below them all, as the base of a flame, the cells that started them, from their first start to their last end.
    """
    import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

    bars = frame.reset_index().sort_values("started")
    began = bars["started"].min()
    now = pd.Timestamp.now(tz="UTC")
    starts = (bars["started"] - began).dt.total_seconds()
    ends = (bars["ended"].fillna(now) - began).dt.total_seconds()
    rows = lanes(list(starts), list(ends))
    height = max(1, min(max(rows, default=0) + 1, _ROWS))
    cells = bars.assign(start=starts, end=ends)[bars["cell"].notna()].groupby("cell").agg({"start": "min", "end": "max"})
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - drawing only

        ax = plt.subplots(figsize=(10, 1.4 + 0.32 * height), layout="constrained")[1]  # type: ignore[no-untyped-call, unused-ignore]
    colours = [_COLOURS.get(state, "#999999") for state in bars["state"]]
    span: Any = max(list(ends), default=1.0) or 1.0
    ax.barh(rows, [max(end - start, span / 1000) for start, end in zip(starts, ends, strict=True)], left=list(starts), height=0.9,
            color=colours, edgecolor="white", linewidth=0.4)  # fmt: skip
    ax.barh(
        [-1] * len(cells), cells["end"] - cells["start"], left=cells["start"], height=0.9, color="#cccccc", edgecolor="white", linewidth=0.4
    )
    if len(bars) <= _LABELLED:
        _write(ax, span, "white", zip(rows, starts, ends, bars["name"], strict=True))
        names = [str(cell).partition(" ")[0] for cell in cells.index]
        _write(ax, span, "black", zip([-1] * len(cells), cells["start"], cells["end"], names, strict=True))
    ax.set_yticks([-1] if len(cells) else [], ["cells"] if len(cells) else [])
    ax.set_ylim(-1.6 if len(cells) else -0.6, height - 0.4)
    ax.set_xlabel(f"seconds since {began:%Y-%m-%d %H:%M:%S} UTC" if len(bars) else "seconds")
    present = [state for state in _COLOURS if (bars["state"] == state).any()]
    ax.legend(
        handles=[_patch(state) for state in present],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        fontsize="small",
        ncols=max(len(present), 1),
        frameon=False,
    )
    return ax


def _write(ax: "Axes", span: float, colour: str, bars: Iterable[tuple[int, float, float, str]]) -> None:
    """The names of bars, as far as they fit into them."""
    for row, start, end, name in bars:
        room = int(125 * (end - start) / span)  # characters that about fit
        if room >= 3:  # noqa: PLR2004 - less says nothing
            ax.text(start + span / 400, row, plain(name, limit=room), va="center", fontsize=7, color=colour, clip_on=True)


def _patch(state: str) -> Any:
    from matplotlib.patches import Patch  # noqa: PLC0415 - drawing only

    return Patch(color=_COLOURS[state], label=state)


def lanes(starts: Sequence[float], ends: Sequence[float]) -> list[int]:
    """The row of each bar, given in order of their starts: the lowest that is free then.

    >>> lanes([0, 1, 2, 5], [4, 3, 6, 7])
    [0, 1, 2, 0]
    """
    free: list[float] = []  # when each row is free again
    found = []
    for start, end in zip(starts, ends, strict=True):
        row = next((at for at, until in enumerate(free) if until <= start), len(free))
        if row == len(free):
            free.append(end)
        else:
            free[row] = end
        found.append(row)
    return found
