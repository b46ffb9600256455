"""Rings of numpy arrays, DataFrames on demand.

::

      append(rows of one moment)        Block  Block  Block  Block ◄── filled from the left
                                          │                            filled parts never change: a snapshot copies nothing
                                  over the byte budget
                                          ▼
                                    dropped, or spilled to CSV / Parquet

One table for all processes, a column an array, 106 bytes a sample. A series (one process's samples) is a number in it; its name and
pid are kept beside, for as long as it has samples.
"""

import importlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbprocs.monitor.metrics import METRICS, Scope, State

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "History", "HistorySnapshot", "Series", "Spill"]

COLUMNS: Mapping[str, str] = {
    "time": "i8",  # microseconds since the epoch: exact, so that a replay sees what the live rules saw
    "series": "i4",
    "scope": "u1",
    "state": "u1",
    **{name: metric.dtype for name, metric in METRICS.items()},
}
_PANDAS = {"i2": "Int16", "i4": "Int32", "i8": "Int64"}
BLOCK = 4096  # rows
ROW_BYTES = sum(int(kind[1]) for kind in COLUMNS.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Whose samples they are."""

    code: int
    process_id: str
    name: str
    pid: int  # 0: none of its own (a group)


@dataclass(slots=True)
class _Block:
    columns: dict[str, Any]
    used: int = 0


@dataclass(frozen=True, slots=True)
class HistorySnapshot:
    """What the history held at one moment. Immutable; taking one copies nothing."""

    parts: tuple[tuple[dict[str, Any], int], ...]  # columns of a block and how many of its rows count
    series: Mapping[int, Series] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(used for _, used in self.parts)

    def column(self, name: str, mask: Any = None) -> Any:
        """One column of all samples as one new array, or those rows that the mask tells."""
        import numpy as np  # noqa: PLC0415

        if not self.parts:
            return np.empty(0, COLUMNS[name])
        whole = np.concatenate([columns[name][:used] for columns, used in self.parts])
        return whole if mask is None else whole[mask]

    def frame(self, *, scope: Scope | None = Scope.TREE, names: Iterable[str] | None = None, since: int | None = None) -> "pd.DataFrame":
        """Tidy: one row a sample. See ``ProcessMonitor.frame``."""
        import numpy as np  # noqa: PLC0415
        import pandas as pd  # noqa: PLC0415

        mask = self._mask(scope, names, since)
        codes = self.column("series", mask)
        scopes = self.column("scope", mask)
        known = sorted(self.series.values(), key=lambda series: series.code)
        low, high = (known[0].code, known[-1].code) if known else (0, 0)
        place = np.zeros(high - low + 1, "i4")
        for position, series in enumerate(known):
            place[series.code - low] = position
        at = place[codes - low] if len(codes) else codes
        data: dict[str, Any] = {
            "timestamp": pd.DatetimeIndex(self.column("time", mask).view("M8[us]")).tz_localize("UTC"),
            "name": _labels([series.name for series in known], at),
            "process_id": _labels([series.process_id for series in known], at),
            "pid": _whole(np.array([series.pid or -1 for series in known] or [-1], "i4")[at], "Int32"),
            "scope": pd.Categorical.from_codes(scopes.astype("i1"), pd.Index([item.name.lower() for item in Scope], dtype="str")),
            "state": pd.Categorical.from_codes(
                self.column("state", mask).astype("i1"), pd.Index([str(state) for state in State], dtype="str")
            ),
        }
        for name, metric in METRICS.items():
            values = self.column(name, mask)
            data[name] = _whole(values, _PANDAS[metric.dtype]) if metric.counts else values
        return pd.DataFrame(data, copy=False)

    def _mask(self, scope: Scope | None, names: Iterable[str] | None, since: int | None) -> Any:
        import numpy as np  # noqa: PLC0415

        if not self.parts or (scope is None and names is None and since is None):
            return None
        mask = np.ones(len(self), bool)
        if scope is not None:
            scopes = self.column("scope")
            mask = scopes == scope
            if scope is Scope.PROCESS:  # a tree of one process is that process: it isn't stored twice
                mask |= (scopes == Scope.TREE) & (self.column("processes") <= 1)
        if names is not None:
            wanted = set(names)
            codes = np.array([code for code, series in self.series.items() if series.name in wanted], "i4")
            mask &= np.isin(self.column("series"), codes)
        if since is not None:
            mask &= self.column("time") >= since
        return None if mask.all() else mask


def _labels(values: Sequence[str], at: Any) -> Any:
    """A categorical of the values at some places; values may repeat (a restarted process keeps its name)."""
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    distinct = list(dict.fromkeys(values))
    number = {value: position for position, value in enumerate(distinct)}
    codes = np.array([number[value] for value in values] or [0], "i4")[at]
    return pd.Categorical.from_codes(codes, pd.Index(distinct, dtype="str"))


def _whole(values: Any, kind: str) -> Any:
    import pandas as pd  # noqa: PLC0415

    return pd.arrays.IntegerArray(values.astype(kind.lower(), copy=False), values < 0)


class History:
    """All samples of one monitor, within a byte budget. Appended to by one thread; snapshots may be taken by any."""

    def __init__(self, *, max_bytes: int = 64 << 20, on_full: Callable[[HistorySnapshot], object] | None = None) -> None:
        self.max_rows: int = max(max_bytes // ROW_BYTES, 2 * BLOCK)
        self.on_full = on_full  # gets the samples that leave memory
        self.dropped: int = 0  # samples that left memory
        self.total: int = 0  # samples ever
        self.last_time: int = 0
        self._blocks: deque[_Block] = deque()
        self._series: dict[int, Series] = {}
        self._last: dict[int, int] = {}  # series -> number of its latest sample, counted from the very first one
        self._codes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.total - self.dropped

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, used or not yet."""
        return len(self._blocks) * BLOCK * ROW_BYTES

    def series(self, *, process_id: str, name: str, pid: int) -> Series:
        """Register one more series. Thread-safe."""
        with self._lock:
            made = Series(code=self._codes, process_id=process_id, name=name, pid=pid)
            self._codes += 1
            self._series[made.code] = made
            self._last[made.code] = self.total  # keeps it until samples written now are dropped
            return made

    def next_time(self, time: int) -> int:
        """The time for the next batch: what the clock says, but always later than the batch before, whatever the clock does."""
        return max(time, self.last_time + 1)

    def append(self, columns: Mapping[str, Any]) -> None:
        """Take in the rows of one moment (all columns but ``time`` may be of any integer or float kind)."""
        series, times = columns["series"], columns["time"]
        rows = len(series)
        if not rows:
            return
        full: list[_Block] = []
        with self._lock:
            done = 0
            while done < rows:
                block = self._room(full)
                take = min(rows - done, BLOCK - block.used)
                for name in COLUMNS:
                    block.columns[name][block.used : block.used + take] = columns[name][done : done + take]
                block.used += take
                done += take
            self._last.update(zip(series.tolist(), range(self.total, self.total + rows), strict=True))
            self.total += rows
            self.last_time = int(times[-1])
            leaving = [HistorySnapshot(((block.columns, block.used),), dict(self._series)) for block in full if self.on_full is not None]
            if full:
                self.dropped += sum(block.used for block in full)
                self._forget()
        for snapshot in leaving:
            if self.on_full is not None:
                self.on_full(snapshot)

    def _room(self, full: list[_Block]) -> _Block:
        import numpy as np  # noqa: PLC0415

        if not self._blocks or self._blocks[-1].used == BLOCK:
            if (len(self._blocks) + 1) * BLOCK > self.max_rows and len(self._blocks) > 1:
                full.append(self._blocks.popleft())
            self._blocks.append(_Block({name: np.empty(BLOCK, kind) for name, kind in COLUMNS.items()}))
        return self._blocks[-1]

    def _forget(self) -> None:
        for code in [code for code, last in self._last.items() if last < self.dropped]:
            del self._last[code], self._series[code]

    def snapshot(self) -> HistorySnapshot:
        """Everything in memory now. Thread-safe; takes microseconds."""
        with self._lock:
            return HistorySnapshot(tuple((block.columns, block.used) for block in self._blocks), dict(self._series))

    def latest(self) -> list[tuple[Series, dict[str, Any]]]:
        """The latest sample of every series, in order of registration."""
        found = []
        with self._lock:
            for code, number in self._last.items():
                offset = number - self.dropped
                if number < self.total and offset >= 0 and (row := self._at(offset)) is not None and row["series"] == code:
                    found.append((self._series[code], row))
        return found

    def _at(self, offset: int) -> dict[str, Any] | None:
        block = self._blocks[offset // BLOCK]  # all but the last are full
        return {name: values[offset % BLOCK].item() for name, values in block.columns.items()}


class Spill:
    """Where samples go that leave memory: one CSV file, or a folder of Parquet parts (``pandas.read_parquet(folder)`` reads them all).

    Runs on the caller's thread. A full disk is an OSError; the caller reports it, and counts what was lost.
    """

    def __init__(self, path: str) -> None:
        """Raises ValueError for a name that is neither ``….csv`` nor ``….parquet``, ImportError when Parquet can't be written here."""
        self.path = path
        self.rows: int = 0
        self._parts = 0
        if not path.endswith((".csv", ".parquet")):
            msg = f"spill must end with .csv (one file) or .parquet (a folder), not {path!r}"
            raise ValueError(msg)
        if path.endswith(".parquet"):
            try:
                importlib.import_module("pyarrow")
            except ImportError as error:
                msg = "writing Parquet needs pyarrow: `pip install pyarrow`, or spill to a .csv"
                raise ImportError(msg) from error

    def write(self, snapshot: HistorySnapshot) -> None:
        """Append samples. Raises OSError."""
        frame = snapshot.frame(scope=None)
        if frame.empty:
            return
        if self.path.endswith(".csv"):
            file = Path(self.path)
            new = not file.exists() or not file.stat().st_size
            frame.to_csv(file, mode="a", header=new, index=False)
        else:
            folder = Path(self.path)
            folder.mkdir(parents=True, exist_ok=True)
            taken = {part.name for part in folder.glob("*.parquet")}
            while (name := f"part-{self._parts:06d}.parquet") in taken:
                self._parts += 1
            frame.to_parquet(folder / name, index=False)
        self.rows += len(frame)
