"""RecordedLog: an output that lies in files, written by the shim of a detached process; read in place, nothing is copied."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nbprocs.engine.output import DEFAULT_SPILL, OutputLog
from nbprocs.engine.shimlib.segments import read_segment, segments_of, size_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RecordedLog", "logs_of"]


class RecordedLog(OutputLog):
    """The log of one stream of a detached process; see OutputLog. It grows when its shim says so, with ``grown``."""

    def __init__(self, stream: str) -> None:
        from pathlib import Path  # noqa: PLC0415 - `import nbprocs` stays light

        super().__init__()
        self._folder = Path()
        self.stream = stream
        self._open: tuple[tuple[int, str], int] | None = None  # a segment, and its descriptor

    def lie_in(self, folder: Path) -> None:
        """Say where the files are."""
        self._folder = folder

    def grown(self, end: int) -> None:
        """Its shim has written up to there."""
        size = end - self.end
        if size > 0:
            self.end = end
            self._waiters.wake(None)
            if self.on_feed is not None:
                self.on_feed(size)

    # -- reading

    @property
    def dropped(self) -> int:
        """Bytes that are not in the files any more, or never were."""
        return self.end - sum(size for _, size in self._pieces())

    @property
    def start(self) -> int:
        """The offset of the first byte that can still be read."""
        return next((begin for begin, _ in self._pieces()), self.end)

    @property
    def in_memory(self) -> int:
        """Nothing is held in memory."""
        return 0

    @property
    def spilled(self) -> int:
        """Bytes on disk."""
        return sum(size for _, size in self._pieces())

    def _pieces(self) -> list[tuple[int, int]]:
        found = []
        for segment in self._segments():
            try:
                found.append((segment[0], min(size_of(self._folder, segment), max(0, self.end - segment[0]))))
            except OSError:  # it was the oldest, and went just now
                continue
        return found

    def _segments(self) -> list[tuple[int, str]]:
        try:
            return segments_of(self._folder, self.stream)
        except OSError:  # somebody forgot the record
            return []

    def read(self, position: int, size: int = 256 << 10) -> tuple[int, bytes]:
        """Up to ``size`` bytes from an offset, with the offset that they really start at. ``b""`` when there is nothing there (yet)."""
        size = min(size, self.end - position)
        if size <= 0:
            return max(position, 0), b""
        with self._lock:
            if self._open is not None and self._open[0][0] <= position:
                data = read_segment(self._open[1], self._open[0], position, size)
                if data:
                    return position, data
            return self._read_elsewhere(position, size)

    def _read_elsewhere(self, position: int, size: int) -> tuple[int, bytes]:
        """From another segment than the open one: the one that holds the place, or the next behind a gap."""
        segments = self._segments()
        fitting = [found for found in segments if found[0] <= position][-1:] + [found for found in segments if found[0] > position]
        for segment in fitting:
            at = max(position, segment[0])
            if at >= self.end:
                break
            try:
                fd = os.open(self._folder / segment[1], os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            self._let_go()
            self._open = (segment, fd)
            data = read_segment(fd, segment, at, min(size, self.end - at))
            if data:
                return at, data
        return self.end, b""  # nothing is left of it: dropped, or somebody forgot the record

    def tail(self, size: int) -> bytes:
        """The last bytes, at most ``size`` of them."""
        position, parts = max(self.end - size, 0), []
        while position < self.end:
            position, data = self.read(position, size)
            if not data:
                break
            parts.append(data)
            position += len(data)
        return b"".join(parts)[-size:]

    def getvalue(self) -> bytes:
        """All that is kept."""
        return self.tail(self.end)

    __bytes__ = getvalue

    def settled(self) -> bytes | OutputLog:
        """For a result: this log, which holds it."""
        return self

    def _let_go(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def __del__(self) -> None:
        self._let_go()


def logs_of(*, on_disk: bool, memory_limit: int) -> tuple[OutputLog, OutputLog]:
    """The two logs of a process: where its shim writes them, or in memory."""
    if on_disk:
        return RecordedLog("stdout"), RecordedLog("stderr")
    made = [OutputLog(memory_limit=memory_limit, spill_limit=DEFAULT_SPILL) for _ in range(2)]
    return made[0], made[1]
