"""A table of ratios: ours against each peer and the physical limit, measured in one run.

A figure on its own says more about the machine than about the code, so every row measures all its parties in turn, round by round, on the same
machine in the same minutes, and is judged by the quotient of the medians. A row that misses its target is measured again, twice at most: other
load on the machine only ever makes things worse for one party, a real slowness misses every time.

::

    def test_spawn(bench):
        bench.row(
            "1000 × true, 4 at a time",
            ours=run_ours,                       # a function, or a coroutine function (it gets a loop of its own)
            peers={"asyncio": run_asyncio},
            limit=run_xargs,                     # what the machine could do at best; a callable or a figure
            at_least={"asyncio": 2.0},           # ours / peer >= 2
            work=1000, unit="runs/s",            # the value is work / seconds
        )

With ``--quick`` each party is measured once, a row once, most sizes are smaller (``sized``), and a target that is missed is shown and fails nothing:
one measurement of small work tells the order of magnitude and no more.

A callable that returns None is timed; its value is ``work / seconds`` with ``work``, else the seconds. One that returns a number has measured itself,
for instance to keep its set-up out of the figure. ``at_most`` is for values of which less is better, ``floor`` and ``ceiling`` bound our value itself.
"""

import asyncio
import csv
import gc
import inspect
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Measured = Callable[[], Any]
REPEATS = 3
QUICK = False  # set by conftest.py before the benchmarks are imported
COLUMNS = ("row", "unit", "nbprocs", "peer", "peer_value", "limit", "ratio", "target", "verdict", "runs")


def sized(usual: int, *, quick: int) -> int:
    """How much work: the usual, or less for a first answer."""
    return quick if QUICK else usual


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One comparison: a row of the benchmark against one peer (or against a bound of its own)."""

    row: str
    unit: str
    nbprocs: float
    peer: str = ""
    peer_value: float | None = None
    limit: float | None = None
    ratio: float | None = None
    target: str = ""
    passed: bool | None = None  # None: no target, shown for information
    runs: int = 1

    def cells(self) -> tuple[str, ...]:
        """The line as the table shows it."""
        verdict = {True: "ok", False: "MISSED", None: ""}[self.passed]
        numbers = (figure(self.nbprocs), self.peer, figure(self.peer_value), figure(self.limit), figure(self.ratio))
        return (self.row, self.unit, *numbers, self.target, verdict, str(self.runs))


@dataclass(slots=True, kw_only=True)
class Bench:
    """Collects the lines of a whole session; ``row`` measures and judges one."""

    lines: list[Line] = field(default_factory=list)

    def row(
        self,
        name: str,
        *,
        ours: Measured,
        peers: Mapping[str, Measured] | None = None,
        limit: Measured | float | None = None,
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
        floor: float | None = None,
        ceiling: float | None = None,
        unit: str = "s",
        work: float | None = None,
        rounds: int = 3,
    ) -> dict[str, float]:
        """Measure all parties, add the lines to the table, and fail the test if a target is missed in each of three runs.

        In quick mode: one round, one run, no failure.
        Returns the medians by party: ``nbprocs``, each peer's name, and ``limit``.
        """
        peers = dict(peers or {})
        at_least, at_most = dict(at_least or {}), dict(at_most or {})
        unknown = (at_least.keys() | at_most.keys()) - peers.keys()
        if unknown:
            message = f"targets for peers that are not measured: {sorted(unknown)}"
            raise ValueError(message)
        parties: dict[str, Measured] = {"nbprocs": ours, **peers}
        if callable(limit):
            parties["limit"] = limit
        for run in range(1, 2 if QUICK else REPEATS + 1):
            medians = _medians(parties, rounds=1 if QUICK else rounds, work=work)
            if isinstance(limit, (int, float)):
                medians["limit"] = float(limit)
            lines = _judge(name, medians, peers, at_least=at_least, at_most=at_most, floor=floor, ceiling=ceiling, unit=unit, runs=run)
            missed = [line for line in lines if line.passed is False]
            if not missed:
                break
        self.lines += lines
        if missed and not QUICK:
            raise AssertionError("\n".join(f"{line.row}: {_story(line)}" for line in missed))
        return medians


def _medians(parties: Mapping[str, Measured], *, rounds: int, work: float | None) -> dict[str, float]:
    values: dict[str, list[float]] = {name: [] for name in parties}
    order = list(parties)
    for turn in range(rounds):
        first = turn % len(order)  # whoever starts has the colder machine: take turns
        for name in order[first:] + order[:first]:
            values[name].append(measure(parties[name], work=work))
    return {name: statistics.median(found) for name, found in values.items()}


def measure(party: Measured, *, work: float | None = None) -> float:
    """One measurement: what the callable returns, or else its time in seconds, or ``work`` divided by that."""
    gc.collect()
    began = time.perf_counter()
    returned = party()
    if inspect.iscoroutine(returned):
        returned = asyncio.run(returned)
    took = time.perf_counter() - began
    if returned is not None:
        return float(returned)
    return took if work is None else work / took


def _judge(
    name: str,
    medians: Mapping[str, float],
    peers: Mapping[str, Measured],
    *,
    at_least: Mapping[str, float],
    at_most: Mapping[str, float],
    floor: float | None,
    ceiling: float | None,
    unit: str,
    runs: int,
) -> list[Line]:
    ours = medians["nbprocs"]
    shared: dict[str, Any] = {"row": name, "unit": unit, "nbprocs": ours, "limit": medians.get("limit"), "runs": runs}
    lines = []
    for peer in peers:
        ratio = ours / medians[peer] if medians[peer] else float("inf")
        target, passed = "", None
        if peer in at_least:
            target, passed = f">= {at_least[peer]:g} ×", ratio >= at_least[peer]
        elif peer in at_most:
            target, passed = f"<= {at_most[peer]:g} ×", ratio <= at_most[peer]
        lines.append(Line(**shared, peer=peer, peer_value=medians[peer], ratio=ratio, target=target, passed=passed))
    if floor is not None:
        lines.append(Line(**shared, target=f">= {figure(floor)}", passed=ours >= floor))
    if ceiling is not None:
        lines.append(Line(**shared, target=f"<= {figure(ceiling)}", passed=ours <= ceiling))
    return lines or [Line(**shared)]


def _story(line: Line) -> str:
    if line.ratio is None:
        return f"{figure(line.nbprocs)} {line.unit}, target {line.target}, in {line.runs} runs"
    return f"{line.ratio:.3g} × {line.peer} ({figure(line.nbprocs)} v. {figure(line.peer_value)} {line.unit}), target {line.target}, in {line.runs} runs"


def figure(value: float | None) -> str:
    """Three significant digits, thousands separated: ``12.3``, ``1,230``, ``0.00123``."""
    if value is None:
        return ""
    if value and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(lines: list[Line]) -> list[str]:
    """All lines as aligned text."""
    rows = [COLUMNS, *(line.cells() for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    left = {0, 1, 3, 7, 8}
    text = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def machine() -> str:
    """What a ratio may depend on."""
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {load}"


def write(lines: list[Line], folder: Path) -> list[Path]:
    """Write ``benchmarks.csv`` (read it with ``pandas.read_csv``) and ``benchmarks.png`` into the folder; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sheet = folder / "benchmarks.csv"
    with sheet.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        for line in lines:
            verdict = {True: "ok", False: "missed", None: ""}[line.passed]
            out.writerow(
                [line.row, line.unit, line.nbprocs, line.peer, line.peer_value, line.limit, line.ratio, line.target, verdict, line.runs]
            )
    picture = folder / "benchmarks.png"
    _plot(lines, picture)
    return [sheet, picture]


def _plot(lines: list[Line], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [line for line in lines if line.ratio is not None and 0 < line.ratio < float("inf")]
    drawing = Figure(figsize=(11, 1.2 + 0.32 * max(1, len(shown))), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    colours = {True: "#0072b2", None: "#999999", False: "#d55e00"}  # told apart by the colour-blind, too
    for place, line in enumerate(reversed(shown)):
        axes.barh(place, line.ratio, color=colours[line.passed], height=0.7)
        axes.annotate(f" {line.ratio:.2g} ×", (line.ratio, place), va="center", fontsize=8)
        if line.target:
            axes.plot([float(line.target.split()[1])] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
    axes.set_yticks(range(len(shown)), [f"{line.row} v. {line.peer}"[:90] for line in reversed(shown)], fontsize=8)
    axes.axvline(1, color="#555555", linewidth=0.8, linestyle=":")
    if shown:
        axes.set_xscale("log")
        axes.set_xlim(min(0.5, *(line.ratio or 1 for line in shown)) / 1.5, max(2, *(line.ratio or 1 for line in shown)) * 2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("nbprocs ÷ peer (bar) and its target (black line)")
    axes.set_title(machine(), fontsize=9)
    drawing.savefig(path, dpi=120)
