"""What the past says of a command: how long it takes, how much memory, and which runs were slower than they used to be.

A command is known by its fingerprint (all its words); a new one by its family (the program and its first argument). A quantile is the
smallest value that so large a share does not exceed (type 1 of Hyndman and Fan): of few runs the largest, never an invention between two.
"""

import contextlib
import math
import os
import sqlite3
import statistics
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nbprocs import checks
from nbprocs.redact import mask_words
from nbprocs.runs.errors import RunsError
from nbprocs.runs.rows import fingerprint
from nbprocs.runs.schema import readable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Past", "Regression", "Usual", "quantile", "regressions"]

_WINDOW = 50  # runs that an estimate looks at
_CACHED = 2_048  # commands
_GOOD_FOR = 60.0  # seconds
_SHARE = 0.02  # seconds of reading a second


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least so large a share of them does not exceed. Raises ValueError for none.

    >>> quantile([3.0, 1.0, 2.0, 10.0], 0.95), quantile([3.0, 1.0, 2.0, 10.0], 0.5)
    (10.0, 2.0)
    """
    if not values:
        raise ValueError("a quantile needs at least one value")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """The successful runs of one command that an estimate rests on, youngest first; ``exact`` is False where only its family is known.

    >>> Usual(seconds=(2.0, 4.0), peak_rss=(1000,), exact=True).mean
    3.0
    """

    seconds: tuple[float, ...]
    peak_rss: tuple[int, ...]
    exact: bool

    @property
    def mean(self) -> float:
        """Seconds, on average."""
        return statistics.fmean(self.seconds)

    @property
    def variance(self) -> float | None:
        """Of the seconds; None for one run alone."""
        return statistics.variance(self.seconds) if len(self.seconds) > 1 else None


class Past:
    """Asks a history about commands. The first question about a command in a minute reads the file (about 0.2 ms); the answer is kept.

    Answers are None where nothing is known, also where there is no history (yet): an estimate is never a reason to fail.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).expanduser().absolute()
        self._since = self._spent = 0.0  # the second under way, and what reading took of it
        self._known: OrderedDict[tuple[tuple[str, ...], bool], tuple[float, Usual | None]] = OrderedDict()

    def usual(self, argv: Sequence[str], *, shell: bool = False) -> Usual | None:
        """The last 50 successful runs of this command, else of its family."""
        asked = tuple(map(str, argv)), shell
        now = time.monotonic()
        until, usual = self._known.get(asked, (0.0, None))
        if now >= until and self._may_read(now):
            usual = self._read(mask_words(asked[0], shell=shell))
            self._known[asked] = now + _GOOD_FOR, usual
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
            self._spent += time.monotonic() - now
        return usual

    def _may_read(self, now: float) -> bool:
        """No more than a fiftieth of the time is spent reading: it is the loop's, and a queue may hold a thousand commands."""
        if now - self._since > 1.0:
            self._since, self._spent = now, 0.0
        return self._spent < _SHARE

    def seconds(self, argv: Sequence[str], share: float, *, shell: bool = False) -> float | None:
        """A quantile of its durations."""
        usual = self.usual(argv, shell=shell)
        return None if usual is None else quantile(usual.seconds, share)

    def memory(self, argv: Sequence[str], share: float, *, shell: bool = False) -> int | None:
        """A quantile of its peak memory, in bytes."""
        usual = self.usual(argv, shell=shell)
        return None if usual is None or not usual.peak_rss else int(quantile(usual.peak_rss, share))

    def _read(self, words: tuple[str, ...]) -> Usual | None:
        try:
            with contextlib.closing(readable(self._path)) as db:
                for column, key in (("fingerprint", fingerprint(words)), ("family", fingerprint(words[:2]))):
                    rows = db.execute(
                        f"SELECT seconds, peak_rss FROM runs WHERE command IN (SELECT key FROM commands WHERE {column} = ?)"  # noqa: S608
                        " AND state = 'completed' AND seconds IS NOT NULL ORDER BY started DESC LIMIT ?",
                        (key, _WINDOW),
                    ).fetchall()
                    if rows:
                        memory = tuple(peak for _, peak in rows if peak is not None)
                        return Usual(seconds=tuple(row[0] for row in rows), peak_rss=memory, exact=column == "fingerprint")
        except (RunsError, sqlite3.Error):
            return None
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """A run that was slower than it used to be.

    >>> print(Regression(id="1", name="train", command="./train", started=datetime(2026, 1, 1), seconds=2.4, usual=1.0, runs=20))
    train: 2.4 ... slower than its last 20
    """

    id: str
    name: str
    command: str
    started: datetime
    seconds: float
    usual: float  # the median of those before it
    runs: int  # how many those were

    @property
    def ratio(self) -> float:
        """How many times as long as usual it took."""
        return self.seconds / self.usual if self.usual else math.inf

    def __str__(self) -> str:
        return f"{self.name}: {self.ratio:.1f} × slower than its last {self.runs}"  # noqa: RUF001 - a times sign


def regressions(frame: "pd.DataFrame", *, factor: float = 2.0, window: int = 20, minimum: int = 5) -> list[Regression]:
    """Of a history's frame; see ``RunHistory.regressions``. Raises TypeError or ValueError for what are no such numbers."""
    checks.number("factor", factor, above=1)
    checks.whole("window", window, least=1)
    checks.whole("minimum", minimum, least=1)
    seen: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))
    found = []
    done = frame[frame["seconds"].notna() & frame["state"].isin(["completed", "failed", "terminated"])]
    columns = (done.index, done["id"], done["command"], done["started"], done["seconds"], done["state"])
    for name, identity, command, started, seconds, state in zip(*columns, strict=True):
        before = seen[command]
        if len(before) >= minimum and seconds >= factor * statistics.median(before):
            found.append(
                Regression(
                    id=identity, name=name, command=command, started=started.to_pydatetime(warn=False), seconds=seconds,
                    usual=statistics.median(before), runs=len(before),
                )
            )  # fmt: skip
        if state == "completed":
            before.append(seconds)
    return found
