"""The timeline (Gantt) and the dependency graph, by matplotlib, which is imported only here and only inside the functions."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from nbprocs.display import GREEN, GREY, ORANGE, PALETTE, PURPLE, SKY, VERMILLION, YELLOW, plain
from nbprocs.scheduler.model import Attempt, priority_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["graph", "layers", "timeline"]

_FIXED = {
    "LOW": GREY,
    "NORMAL": SKY,
    "HIGH": ORANGE,
    "CRITICAL": VERMILLION,
    "succeeded": GREEN,
    "failed": VERMILLION,
    "timeout": PURPLE,
    "cancelled": GREY,
    "skipped": "#bbbbbb",
    "interrupted": YELLOW,
    "running": SKY,
}
_LABELLED = 60  # attempts that still get their names written into their bars


def _axes(ax: "Axes | None", height: float) -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # noqa: PLC0415 - drawing only

    axes: Axes = plt.subplots(figsize=(9, height), layout="constrained")[1]  # type: ignore[no-untyped-call, unused-ignore]
    return axes


def _colours(labels: Sequence[str]) -> dict[str, str]:
    unknown = [label for label in dict.fromkeys(labels) if label not in _FIXED]
    return _FIXED | {label: PALETTE[n % len(PALETTE)] for n, label in enumerate(unknown)}


def timeline(attempts: Sequence[Attempt], *, ax: "Axes | None" = None, color: str = "priority") -> "Axes":
    """A bar for each attempt that started, in the row of its slot; seconds from the first start. Failed ones are hatched."""
    kinds: dict[str, Callable[[Attempt], str]] = {
        "priority": lambda a: priority_name(a.priority),
        "outcome": lambda a: a.outcome,
        "group": lambda a: a.group or "no group",
    }
    if color not in kinds:
        raise ValueError(f"color must be one of {', '.join(kinds)}, not {color!r}")
    shown = [a for a in attempts if a.started is not None]
    start = min((a.started for a in shown if a.started is not None), default=0.0)
    slots = sorted({a.slot or 0 for a in shown})
    axes = _axes(ax, 1.2 + 0.5 * max(1, len(slots)))
    labels = [kinds[color](a) for a in shown]
    colours = _colours(labels)
    named: set[str] = set()
    for attempt, label in zip(shown, labels, strict=True):
        began = (attempt.started or start) - start
        ended = (attempt.ended if attempt.ended is not None else max(time.time(), attempt.started or 0.0)) - start
        bad = attempt.outcome in ("failed", "timeout", "interrupted", "cancelled")
        axes.barh(
            attempt.slot or 0,
            max(ended - began, 1e-3),
            left=began,
            height=0.8,
            color=colours[label],
            edgecolor="white",
            hatch="//" if bad else None,
            label=label if label not in named else None,
        )
        named.add(label)
        if len(shown) <= _LABELLED:
            axes.text(
                (began + ended) / 2, attempt.slot or 0, plain(attempt.name, limit=14), ha="center", va="center", fontsize=7, clip_on=True
            )
    axes.set_yticks(slots, [f"slot {slot}" for slot in slots])
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the first start")
    if named:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return axes


def layers(nodes: Sequence[Hashable], edges: Sequence[tuple[Hashable, Hashable]]) -> dict[Hashable, int]:
    """How far to the right each node belongs: one more than the furthest of those it waits for.

    >>> layers("abcd", [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    {'a': 0, 'b': 1, 'c': 1, 'd': 2}
    """
    known = set(nodes)
    before: dict[Hashable, list[Hashable]] = {node: [] for node in nodes}
    following: dict[Hashable, list[Hashable]] = {node: [] for node in nodes}
    for first, then in edges:
        if first in known and then in known:
            before[then].append(first)
            following[first].append(then)
    missing = {node: len(before[node]) for node in nodes}
    level = dict.fromkeys(nodes, 0)
    todo = [node for node in nodes if not missing[node]]
    for node in todo:  # grows while it is walked
        for other in following[node]:
            level[other] = max(level[other], level[node] + 1)
            missing[other] -= 1
            if not missing[other]:
                todo.append(other)
    return level


def graph(
    nodes: Sequence[tuple[Hashable, str, str]], edges: Mapping[tuple[Hashable, Hashable], str], *, ax: "Axes | None" = None
) -> "Axes":
    """Tasks (key, label, state) as boxes in columns, arrows from what must end to what waits; dashed where it need not succeed.

    Tasks without any dependency are left out if there are others.
    """
    linked = {key for pair in edges for key in pair}
    shown = [node for node in nodes if node[0] in linked] or list(nodes)
    keys = [key for key, _, _ in shown]
    present = [pair for pair in edges if pair[0] in set(keys) and pair[1] in set(keys)]
    level = layers(keys, present)
    rows: dict[int, int] = {}
    places: dict[Hashable, tuple[float, float]] = {}
    width = {column: sum(1 for key in keys if level[key] == column) for column in level.values()}
    for key in keys:
        row = rows.get(level[key], 0)
        rows[level[key]] = row + 1
        places[key] = (float(level[key]), -(row - (width[level[key]] - 1) / 2))
    axes = _axes(ax, 1.0 + 0.6 * max(width.values(), default=1))
    for first, then in present:
        style = "-" if edges[first, then] == "success" else "--"
        arrow = {"arrowstyle": "-|>", "linestyle": style, "color": "#555555", "shrinkA": 28, "shrinkB": 28}
        axes.annotate("", xy=places[then], xytext=places[first], arrowprops=arrow)
    for key, label, state in shown:
        box = {"boxstyle": "round", "facecolor": _FIXED.get(state, "#ffffff"), "edgecolor": "#555555"}
        axes.text(*places[key], f"{plain(label, limit=18)}\n{state}", ha="center", va="center", fontsize=8, bbox=box)
    axes.set_xlim(-0.6, max(level.values(), default=0) + 0.6)
    axes.set_ylim(-(max(width.values(), default=1) / 2) - 0.3, max(width.values(), default=1) / 2 + 0.3)
    axes.axis("off")
    return axes
