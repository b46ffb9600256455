"""The output of a detached process on disk: its head is kept, and of its tail the youngest part.

::

    <folder>/stdout.0000000000000000   the head: never removed
             stdout.0000000002000000   ┐
             stdout.0000000004000000   ┘ the tail: the oldest goes when all together are over the limit

             stdout.0000000006000000~BOOT   a tail that is written flat out

A segment is named by the absolute offset of its first byte, in hexadecimal, so that a reader needs nothing but the folder: what lies
between the end of one and the beginning of the next was dropped. The bytes go from the pipe to the page cache by splice(2) where the
system has it: the shim never sees them.

Half of what writing flat out costs is making the pages of new files and freeing those of old ones. So a segment that begins while bytes
come fast is made to be used again: when it is the oldest, it gets a new name and is written over. Behind its SEGMENT bytes stands the
offset up to which they are valid; it is set to 0 before a byte is written over, and to the end after each that was written, so a reader
that looks at it before and after knows what it has read, though the file may be another by now, or its shim be killed. In which
order name, offset and bytes reach the disk itself nobody knows: the name tells the boot in which it was made, and in a later one it
counts as dropped. What comes slowly never lies in such a segment.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time

from nbprocs.engine.shimlib.record import boot_id

__all__ = ["READ", "SEGMENT", "Segments", "read_segment", "segments_of", "size_of"]

SEGMENT = 32 << 20  # bytes of one file
_SPLICE = 1 << 20  # bytes at once
READ = 64 << 10  # bytes
_AGAIN = 1 << 20  # bytes that are dropped before a full disk is tried again
_FAST = 0.2  # seconds in which a segment is filled by who writes flat out
_HAS_SPLICE = hasattr(os, "splice")
_this_boot = functools.cache(boot_id)


def segments_of(folder: str | bytes | os.PathLike[str], stream: str) -> list[tuple[int, str]]:
    """(offset, name) of each segment of a stream, in order."""
    found = []
    for name in os.listdir(os.fsdecode(folder)):
        head, _, offset = name.rpartition(".")
        if head == stream:
            with contextlib.suppress(ValueError):
                found.append((int(offset.partition("~")[0], 16), name))
    return sorted(found)


def read_segment(fd: int, segment: tuple[int, str], offset: int, size: int) -> bytes:
    """Up to ``size`` bytes from an offset of the stream on, of an open segment; ``b""`` where it has none, or holds others by now."""
    begin, name = segment
    if "~" not in name:
        return os.pread(fd, size, offset - begin)
    data = os.pread(fd, max(0, min(size, _end_of(fd, segment) - offset)), offset - begin)
    return data if offset < _end_of(fd, segment) else b""


def size_of(folder: str | os.PathLike[str], segment: tuple[int, str]) -> int:
    """How many valid bytes are in it. Raises OSError where it is not there any more."""
    path = os.path.join(folder, segment[1])
    if "~" not in path:
        return os.stat(path).st_size
    with open(path, "rb", buffering=0) as file:
        return _end_of(file.fileno(), segment) - segment[0]


def _end_of(fd: int, segment: tuple[int, str]) -> int:
    """Up to which offset a segment that is used again is valid; its begin where nothing of it is."""
    begin, name = segment
    end = int.from_bytes(os.pread(fd, 8, SEGMENT), "little")
    return end if begin < end <= begin + SEGMENT and name.partition("~")[2] == _this_boot() else begin


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
        self._name = ""
        self._lost = 0  # bytes since the disk was found full
        self._pipes = _HAS_SPLICE
        self._fast = False  # the segment is one that is used again
        self._since = 0.0  # when it was begun

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
        self._took(moved)
        return moved

    def _take_first(self, fd: int) -> int:
        """The first bytes of a new segment: it is made, and an old one given up for it, only when there are some."""
        data = _read(fd)
        if data and not self._lost:
            self._next_segment()
        if self._file >= 0:
            self._write(data)
        else:
            self.dropped += len(data)
            self._lost = 0 if self._lost > _AGAIN else self._lost + len(data)
        self._took(len(data))
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
                self.dropped += len(data) if self._fast else len(view)
                break
        return len(data)

    def _took(self, size: int) -> None:
        """Bytes came, and were written if they could be: a segment that is used again must say that it is valid up to here."""
        self.end += size
        if self._file < 0:
            return
        try:
            if self._fast:
                os.pwrite(self._file, self.end.to_bytes(8, "little"), SEGMENT)
        except OSError as error:
            self.dropped += size
            self._full(error)
        else:
            self._room -= size

    def _full(self, error: OSError) -> None:
        """Nothing can be written at the moment; what comes is counted."""
        self.error = error
        self._close_segment()
        self._lost = 1
        self._room = 0

    def _next_segment(self) -> None:
        self._close_segment()
        now = time.monotonic()
        self._fast = bool(self.end) and now - self._since < _FAST and bool(_this_boot())
        self._since = now
        path = os.path.join(self._folder, f"{self._stream}.{self.end:016x}" + (f"~{_this_boot()}" if self._fast else ""))
        self._name, self._begin, self._room = os.path.basename(path), self.end, SEGMENT
        try:
            self._file = self._used_again(path)
            if self._file < 0:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                if self.end:  # most logs are small, and have no second one
                    _reserve(self._file, SEGMENT)
                if self._fast:
                    os.pwrite(self._file, bytes(8), SEGMENT)
        except OSError as error:
            self._full(error)
            return
        self.error = None

    def _used_again(self, path: str) -> int:
        """Give up the oldest ones if there are too many; the descriptor of one of them, under its new name, or -1. Raises OSError."""
        while len(self._sizes) >= self._most - 1:
            name, size = self._sizes[0]
            oldest = os.path.join(self._folder, name)
            file = -1
            if self._fast and "~" in name:
                file = os.open(oldest, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.pwrite(file, bytes(8), SEGMENT)  # who reads it knows from now on that it is given up
                    os.rename(oldest, path)
                except OSError:
                    os.close(file)
                    raise
            else:
                os.unlink(oldest)
            del self._sizes[0]
            self.dropped += size
            if file >= 0:
                return file
        return -1

    def _close_segment(self) -> None:
        if self._file < 0:
            return
        size = SEGMENT - self._room if self._fast else os.fstat(self._file).st_size
        if size < SEGMENT and self._begin and not self._fast:
            os.ftruncate(self._file, size)  # gives back what was reserved beyond
        os.close(self._file)
        self._file = -1
        if self._begin:  # the head is kept
            self._sizes.append((self._name, size))

    def close(self) -> None:
        """No more will come."""
        self._close_segment()


def _reserve(fd: int, size: int) -> None:
    """Let the file system find room for all of it at once, if it can; the file's size stays. Halves what writing it costs (ext4)."""
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415 - the shim has it; readers of segments need it not

    ctypes.CDLL(None).fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(size))  # FALLOC_FL_KEEP_SIZE; what it says does not matter


def _read(fd: int, most: int = READ) -> bytes:
    """What is there, a block at most; nothing at the end. Raises BlockingIOError."""
    try:
        return os.read(fd, min(READ, most))
    except BlockingIOError:
        raise
    except OSError:  # EIO: the last holder of a terminal has gone
        return b""
