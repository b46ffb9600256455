"""In which order the two streams of a detached process came, on disk beside their logs.

::

    <folder>/order        8 bytes for each change from one stream to the other: where the run that ended there ends, and whose it was
             order.old    the ones before, when the file was full; those before them are gone: all of stdout comes first there

What came between two looks of the shim at its pipes comes in the order stdout, stderr: nobody can tell more.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator

__all__ = ["OrderReader", "OrderWriter", "pieces", "read_both"]

NAME, OLD = "order", "order.old"
FULL = 256 << 10  # bytes of one file
_ENTRY = struct.Struct("<Q")  # the end of the run, and in the lowest bit whether it is stderr's
Piece = tuple[int, int, int]  # stream (0 is stdout, 1 is stderr), begin, end


class OrderWriter:
    """Writes it. Where it can't be written any more, the order is not known from there on, and nothing else is lost."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, NAME)
        self._last: int | None = None
        self._file = -1
        self._size = 0
        self._broken = False

    def turn(self, stream: int, end: int) -> None:
        """The next bytes are of that stream; the other one's log ends at ``end``. To be said before they are on disk."""
        before, self._last = self._last, stream
        if before in (None, stream) or self._broken:
            return
        try:
            if self._file >= 0 and self._size >= FULL:
                self.close()
                os.replace(self._path, os.path.join(os.path.dirname(self._path), OLD))
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._size = 0
            self._size += os.write(self._file, _ENTRY.pack(end << 1 | (stream ^ 1)))
        except OSError:
            self.close()
            self._broken = True

    def close(self) -> None:
        """No more will come."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class OrderReader:
    """Reads what was written since it last read; holds no file open in between."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._inode = self._read_up = 0  # the file that was read last, and its inode number when it was read to its end and replaced
        self._offset = 0
        self._ahead: deque[tuple[int, int]] = deque()

    def changes(self, ends: tuple[int, int]) -> list[tuple[int, int]]:
        """(stream, end of its run) for each change that was not given yet, in order, as far as the two streams are known to reach."""
        self._ahead.extend(self._entries())
        found = []
        while self._ahead and self._ahead[0][1] <= ends[self._ahead[0][0]]:
            found.append(self._ahead.popleft())
        if self._ahead:  # the shim has gone on meanwhile: this run is under way
            stream = self._ahead[0][0]
            found.append((stream, ends[stream]))
        return found

    def _entries(self) -> Iterator[tuple[int, int]]:
        for name in (OLD, NAME):
            with contextlib.suppress(OSError), open(os.path.join(self._folder, name), "rb", buffering=0) as file:
                inode = os.fstat(file.fileno()).st_ino
                if name == OLD and inode == self._read_up != self._inode:
                    continue
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                data = os.pread(file.fileno(), 2 * FULL, self._offset)
                whole = len(data) // _ENTRY.size * _ENTRY.size
                self._offset += whole
                if name == OLD:
                    self._read_up = inode
                for (value,) in _ENTRY.iter_unpack(data[:whole]):
                    yield value & 1, value >> 1


def pieces(changes: Iterable[tuple[int, int]], begins: tuple[int, int], ends: tuple[int, int]) -> Iterator[Piece]:
    """What lies between two places of both streams, in the order in which it came.

    >>> list(pieces([(0, 4), (1, 3), (0, 9)], (0, 0), (9, 8)))
    [(0, 0, 4), (1, 0, 3), (0, 4, 9), (1, 3, 8)]
    """
    at = list(begins)
    for stream, run in (*changes, (0, ends[0]), (1, ends[1])):
        end = min(run, ends[stream])
        if end > at[stream]:
            yield stream, at[stream], end
            at[stream] = end


def read_both(
    folder: str, offset: int, size: int, ends: tuple[int, int], read: Callable[[int, int, int], tuple[int, bytes]]
) -> tuple[int, bytes]:
    """Up to ``size`` bytes of both streams in the order of their coming, with the offset that they begin at; it counts both.

    ``read`` is called with (stream, offset, size), and answers with the offset where it found something, past dropped bytes a later one.
    What was dropped ends an answer: the bytes behind it begin the next one.
    """
    begin, found, data = 0, offset, bytearray()
    for stream, first, last in pieces(OrderReader(folder).changes(ends), (0, 0), ends):
        end = begin + last - first
        if offset < end:
            at, part = read(stream, first + offset - begin, min(size - len(data), end - offset))
            part, place = part[: max(0, last - at)], begin + at - first
            if data and (not part or place != offset):
                break
            if part:
                found = found if data else place
                data += part
            offset = place + len(part) if part else end  # else all of it was dropped
            if len(data) == size or (data and offset < end):
                break
        begin = end
    return (found, bytes(data)) if data else (offset, b"")
