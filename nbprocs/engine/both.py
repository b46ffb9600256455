"""Both streams of a detached process in the order in which they came, for who reads its log as one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nbprocs.engine.recorded import RecordedLog
from nbprocs.engine.shimlib.order import OrderReader, Piece, pieces

__all__ = ["BothStreams"]

_BLOCK = 64 << 10


class BothStreams:
    """The two logs, ``stdout`` and ``stderr``, and a place in each up to which they were taken."""

    def __init__(self, folder: Path) -> None:
        self.logs: tuple[RecordedLog, RecordedLog] = (RecordedLog("stdout"), RecordedLog("stderr"))
        self._order = OrderReader(os.fspath(folder))
        self._at = (0, 0)
        for log in self.logs:
            log.lie_in(folder)

    def grown(self, ends: dict[str, int]) -> None:
        """Its shim has written up to there."""
        for log in self.logs:
            log.grown(ends.get(log.stream, 0))

    def take(self) -> Iterator[tuple[int, bytes]]:
        """(0 for stdout or 1 for stderr, some bytes) until all was given that came since the last time."""
        for piece in self._new():
            yield from self._data(piece)

    def take_lines(self, count: int | None, *, most: int | None = None) -> Iterator[tuple[int, bytes]]:
        """The same, but only the last lines of it, and of these the last ``most`` bytes."""
        found = self._new()
        for piece in _last_bytes(most, found if count is None else self._last(count, found)):
            yield from self._data(piece)

    def _new(self) -> list[Piece]:
        ends = (self.logs[0].end, self.logs[1].end)
        found = list(pieces(self._order.changes(ends), self._at, ends))
        self._at = ends
        return found

    def _data(self, piece: Piece) -> Iterator[tuple[int, bytes]]:
        stream, position, end = piece
        while position < end:
            position, data = self.logs[stream].read(position, min(1 << 20, end - position))
            data = data[: max(0, end - position)]
            if not data:
                return
            yield stream, data
            position += len(data)

    def _last(self, count: int, found: list[Piece]) -> list[Piece]:
        kept: list[Piece] = []
        newlines = -1  # the one at the very end ends a line, and begins none
        for stream, begin, end in reversed(found if count > 0 else []):
            at = end
            while at > begin:
                first = max(begin, at - _BLOCK)
                data = b"".join(part for _, part in self._data((stream, first, at)))
                newlines += newlines < 0 and not data.endswith(b"\n")
                place = len(data)
                while (place := data.rfind(b"\n", 0, place)) >= 0:
                    newlines += 1
                    if newlines == count:
                        return [(stream, at - len(data) + place + 1, end), *kept]
                at = first
            kept.insert(0, (stream, begin, end))
        return kept


def _last_bytes(most: int | None, found: list[Piece]) -> list[Piece]:
    if most is None:
        return found
    kept: list[Piece] = []
    for stream, begin, end in reversed(found):
        if most <= 0:
            break
        kept.insert(0, (stream, max(begin, end - most), end))
        most -= end - begin
    return kept
