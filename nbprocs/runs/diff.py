"""What two runs have in common, and what not."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbprocs.display import Displayable, Html, joined, table, text
from nbprocs.runs.record import RunRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunDiff", "compare"]

_TIMES = frozenset({"started", "cell", "waited", "task", "rerun of"})  # different in any two runs: no news
_NUMBERS = {"duration": "seconds", "CPU": "cpu", "peak memory": "peak_rss", "read": "read_bytes", "written": "written_bytes"}
_LINES = 200  # of each output that are compared
_SAME = 0.05  # a duration or a size that differs by less is the same


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDiff(Displayable):
    """The difference of two runs: rows of (what, in the first, in the second, ratio or note). Empty when they are alike.

    >>> async with nbprocs.ProcessManager(runs="example.db") as pm:
    ...     for n in ("1", "2"):
    ...         _ = await pm.run("echo", n)
    >>> first, second = nbprocs.runs("example.db")[-2:]
    >>> first.diff(second)["command"]
    ('echo 1', 'echo 2')
    """

    first: RunRecord
    second: RunRecord
    rows: tuple[tuple[str, str, str, str], ...]
    output: tuple[tuple[str, tuple[str, ...]], ...] = ()  # by stream, lines of a unified difference

    def __bool__(self) -> bool:
        return bool(self.rows or self.output)

    def __iter__(self) -> Iterator[tuple[str, str, str, str]]:
        return iter(self.rows)

    def __getitem__(self, what: str) -> tuple[str, str]:
        """The two values of one thing; KeyError where they are the same."""
        return {row[0]: (row[1], row[2]) for row in self.rows}[what]

    def __contains__(self, what: str) -> bool:
        return any(row[0] == what for row in self.rows)

    def frame(self) -> "pd.DataFrame":
        """The rows as a DataFrame, indexed by what is different."""
        import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

        return pd.DataFrame(list(self.rows), columns=["what", "first", "second", "note"]).set_index("what")

    def __str__(self) -> str:
        lines = [f"{what}: {a} -> {b}{f' ({note})' if note else ''}" for what, a, b, note in self.rows if what not in _NUMBERS or note]
        for stream, changes in self.output:
            lines += [f"{stream}:", *changes]
        return "\n".join(lines) or "no difference"

    def __repr__(self) -> str:
        return f"<RunDiff {self.first.name} / {self.second.name}: {', '.join(row[0] for row in self.rows) or 'no difference'}>"

    def _html_(self) -> Html:
        rows = [(text(what), text(a, limit=1000), text(b, limit=1000), text(note)) for what, a, b, note in self.rows]
        outs = (Html("<div>{}</div><pre>{}</pre>").format(stream, text("\n".join(lines), limit=8000)) for stream, lines in self.output)
        return Html("<div>{}{}</div>").format(table(("", self._title(self.first), self._title(self.second), ""), rows), joined(outs))

    @staticmethod
    def _title(run: RunRecord) -> Html:
        return text(f"{run.name} ({run.id[:8]})")


def compare(first: RunRecord, second: RunRecord) -> RunDiff:
    """What is different; durations and sizes only where they differ by 5 % or more."""
    ours, theirs = first.facts(), second.facts()
    rows = []
    for what in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(what, "-"), theirs.get(what, "-")
        note = _ratio(getattr(first, _NUMBERS[what]), getattr(second, _NUMBERS[what])) if what in _NUMBERS else ""
        if what in _TIMES or a == b or (what in _NUMBERS and note is None):
            continue
        rows.append((what, a, b, note or ""))
    outs = []
    for stream in ("stdout", "stderr"):
        changes = _changes(getattr(first, stream) or "", getattr(second, stream) or "")
        if changes:
            outs.append((stream, changes))
    return RunDiff(first=first, second=second, rows=tuple(rows), output=tuple(outs))


def _ratio(a: float | None, b: float | None) -> str | None:
    """``2.40 x``; None for no difference worth a word; empty where one is not known."""
    if not a or not b:
        return ""
    return None if abs(b - a) <= _SAME * max(a, b) else f"{b / a:.2f} x"


def _changes(a: str, b: str) -> tuple[str, ...]:
    lines = difflib.unified_diff(a.splitlines()[-_LINES:], b.splitlines()[-_LINES:], n=1, lineterm="")
    return tuple(line for line in lines if not line.startswith(("---", "+++", "@@")))
