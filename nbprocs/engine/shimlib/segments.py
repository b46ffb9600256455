"""The output of a detached process on disk: its head is kept, and of its tail the youngest part.

::

    <folder>/stdout.0000000000000000   the head: never removed
             stdout.0000000002000000   ┐
             stdout.0000000004000000   ┘ the tail: the oldest goes when all together are over the limit

A segment is named by the absolute offset of its first byte, in hexadecimal, so that a reader needs nothing but the folder: what lies
between the end of one and the beginning of the next was dropped. The bytes go from the pipe to the page cache by splice(2) where the
system has it: the shim never sees them.
"""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["SEGMENT", "Segments", "segments_of"]

SEGMENT = 32 << 20  # bytes of one file
_SPLICE = 1 << 20  # bytes at once
_READ = 64 << 10
_AGAIN = 1 << 20  # bytes that are dropped before a full disk is tried again
_HAS_SPLICE = hasattr(os, "splice")


def segments_of(folder: str | bytes | os.PathLike[str], stream: str) -> list[tuple[int, str]]:
    """(offset, name) of each segment of a stream, in order."""
    found = []
    for name in os.listdir(os.fsdecode(folder)):
        head, _, offset = name.rpartition(".")
        if head == stream:
            with contextlib.suppress(ValueError):
                found.append((int(offset, 16), name))
    return sorted(found)


class Segments:
    """Writes one stream. ``end`` is what came so far, ``dropped`` what is not on disk any more, or never was."""

    def __init__(self, folder: str, stream: str, *, limit: int) -> None:
        self.end: int = 0
        self.dropped: int = 0
        self.error: OSError | None = None
        self._folder = folder
        self._stream = stream
        self._most = max(2, limit // SEGMENT)  # files: the head and at least one of the tail
        self._sizes: list[tuple[str, int]] = []  # of the tail's segments that are full
        self._file = -1
        self._room = 0
        self._begin = 0
        self._lost = 0  # bytes since the disk was found full
        self._pipes = _HAS_SPLICE

    def take(self, fd: int) -> int:
        """Move what a pipe or terminal holds, a MiB at most; returns how much that was, 0 at its end. Raises BlockingIOError."""
        if self._room <= 0:
            return self._take_first(fd)
        try:
            moved = os.splice(fd, self._file, min(_SPLICE, self._room)) if self._pipes else self._copy(fd)
        except BlockingIOError:
            raise
        except OSError as error:
            if self._pipes and error.errno == 22:  # noqa: PLR2004 - EINVAL: no pipe, or a file system that can't
                self._pipes = False
                return self.take(fd)
            self._full(error)
            return self._take_first(fd)
        self.end += moved
        self._room -= moved
        return moved

    def _take_first(self, fd: int) -> int:
        """The first bytes of a new segment: it is made, and an old one given up for it, only when there are some."""
        data = _read(fd)
        if data and not self._lost:
            self._next_segment()
        if self._file >= 0:
            self._room -= self._write(data)
        else:
            self.dropped += len(data)
            self._lost = 0 if self._lost > _AGAIN else self._lost + len(data)
        self.end += len(data)
        return len(data)

    def _copy(self, fd: int) -> int:
        return self._write(_read(fd, self._room))

    def _write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._file, view) :]
            except OSError as error:
                self._full(error)
                self.dropped += len(view)
                break
        return len(data)

    def _full(self, error: OSError) -> None:
        """Nothing can be written at the moment; what comes is counted."""
        self.error = error
        self._close_segment()
        self._lost = 1
        self._room = 0

    def _next_segment(self) -> None:
        self._close_segment()
        name = f"{self._stream}.{self.end:016x}"
        try:
            while len(self._sizes) >= self._most - 1:
                oldest, size = self._sizes[0]
                os.unlink(os.path.join(self._folder, oldest))
                del self._sizes[0]
                self.dropped += size
            self._file = os.open(os.path.join(self._folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._full(error)
            return
        self.error = None
        self._begin = self.end
        self._room = SEGMENT
        if self._begin:  # most logs are small, and have no second one
            _reserve(self._file, SEGMENT)

    def _close_segment(self) -> None:
        if self._file < 0:
            return
        size = os.fstat(self._file).st_size
        if size < SEGMENT and self._begin:
            os.ftruncate(self._file, size)  # gives back what was reserved beyond
        os.close(self._file)
        self._file = -1
        if self._begin:  # the head is kept
            self._sizes.append((f"{self._stream}.{self._begin:016x}", size))

    def close(self) -> None:
        """No more will come."""
        self._close_segment()


def _reserve(fd: int, size: int) -> None:
    """Let the file system find room for all of it at once, if it can; the file's size stays. Halves what writing it costs (ext4)."""
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415 - the shim has it; readers of segments need it not

    ctypes.CDLL(None).fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(size))  # FALLOC_FL_KEEP_SIZE; what it says does not matter


def _read(fd: int, most: int = _READ) -> bytes:
    """What is there, a block at most; nothing at the end. Raises BlockingIOError."""
    try:
        return os.read(fd, min(_READ, most))
    except BlockingIOError:
        raise
    except OSError:  # EIO: the last holder of a terminal has gone
        return b""
