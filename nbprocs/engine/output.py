"""OutputLog: everything that one stream wrote, by absolute byte offset, in bounded memory.

::

      0            spilled         first                       end
      ├── spill file ──┤── dropped ──┤──── chunks in memory ────┤   ◄── feed()
      the head, on disk   counted      the tail, `memory_limit`

What memory can't hold goes to an unlinked temporary file; what neither can hold (spill limit, full disk) is dropped and counted, and
every reader is told. Nothing here splits lines until somebody asks: chunks are kept as they were read.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from nbprocs.engine.home import log
from nbprocs.engine.waiting import Waiters
from nbprocs.terminal import shown

__all__ = ["DEFAULT_MEMORY", "DEFAULT_SPILL", "LONGEST_LINE", "LineReader", "OutputLog", "wake"]

DEFAULT_MEMORY = 8 << 20  # bytes a stream
DEFAULT_SPILL = 2 << 30
LONGEST_LINE = 1 << 30  # bytes; what is longer comes in pieces, so that a line without end does not fill the memory
_LEAST = 8  # bytes of a piece of a line: some more than the longest character has
_BLOCK = 64 << 10  # small writes are gathered into blocks of this size: a bytes object costs 33 bytes by itself


def wake(waiters: list[asyncio.Future[None]]) -> None:
    """Let everybody go on who waits, and forget them."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


class OutputLog:
    """The bytes of one stream. Fed on one loop; read from any thread.

    ``start`` and ``end`` are absolute offsets: of the first byte kept (0 unless the head could not be spilled) and behind the last
    one. ``dropped`` counts bytes that were lost between the spill file and memory; ``closed`` is True once no more will come.
    """

    def __init__(
        self, *, memory_limit: int = DEFAULT_MEMORY, spill_limit: int = DEFAULT_SPILL, on_feed: Callable[[int], object] | None = None
    ) -> None:
        self.memory_limit = memory_limit
        self.spill_limit = spill_limit
        self.on_feed = on_feed
        self.end: int = 0
        self.closed: bool = False
        self.spill_error: OSError | None = None
        self._chunks: deque[bytes] = deque()
        self._pending = bytearray()  # the youngest bytes, not yet a chunk
        self._first = 0  # offset of the first byte in memory
        self._spill: BinaryIO | None = None
        self._spilled = 0
        self._lock = threading.Lock()
        self._waiters: Waiters[None] = Waiters()

    # -- writing

    def feed(self, data: bytes) -> None:
        """Append what was read. Costs no copy for big chunks."""
        size = len(data)
        with self._lock:
            if self._pending or size < _BLOCK // 2:
                self._pending += data
                if len(self._pending) >= _BLOCK:
                    self._chunks.append(bytes(self._pending))
                    self._pending.clear()
            else:
                self._chunks.append(data)
            self.end += size
            while self.end - self._first > self.memory_limit and self._chunks:
                self._evict(self._chunks.popleft())
        if self._waiters:
            self._waiters.wake(None)
        if self.on_feed is not None:
            self.on_feed(size)

    def close(self) -> None:
        """No more will come: every waiting reader goes on. Idempotent."""
        self.closed = True
        self._waiters.wake(None)

    def _evict(self, chunk: bytes) -> None:
        if self._first == self._spilled and self.spill_error is None:
            self._spill_chunk(chunk)
        self._first += len(chunk)

    def _spill_chunk(self, chunk: bytes) -> None:
        import tempfile  # noqa: PLC0415 - with shutil and random behind it, for an output that most processes don't have

        room = self.spill_limit - self._spilled
        try:
            if self._spill is None and room > 0:
                self._spill = tempfile.TemporaryFile(buffering=0, prefix="nbprocs-")  # noqa: SIM115 - lives as long as the log
                weakref.finalize(self, self._spill.close)
            if self._spill is not None:
                view = memoryview(chunk)[: max(room, 0)]
                while view:
                    written = self._spill.write(view)
                    self._spilled += written
                    view = view[written:]
        except OSError as error:  # a full disk, a file size limit: from here on the middle is dropped, the tail kept
            self.spill_error = error.with_traceback(None)  # its frames would keep this log, and its file, alive
            log.warning("output can't be spilled to disk any more (%s); the oldest bytes in memory are dropped and counted", error)

    # -- reading

    @property
    def dropped(self) -> int:
        """Bytes lost for good so far."""
        return self._first - self._spilled

    @property
    def start(self) -> int:
        """The offset of the first byte that can still be read."""
        return 0 if self._spilled else self._first

    @property
    def in_memory(self) -> int:
        """Bytes held in memory."""
        return self.end - self._first

    @property
    def spilled(self) -> int:
        """Bytes in the spill file."""
        return self._spilled

    def read(self, position: int, size: int = 256 << 10) -> tuple[int, bytes]:
        """Up to ``size`` bytes from an offset, with the offset that they really start at: past a dropped part it is a later one.

        ``b""`` when there is nothing there (yet). Never waits.
        """
        with self._lock:
            if position < self._spilled:
                return position, self._read_spilled(min(size, self._spilled - position), position)
            position = max(position, self._first)
            offset = self.end - len(self._pending)
            if position >= offset:
                return position, bytes(self._pending[position - offset : position - offset + size])
            for chunk in reversed(self._chunks):
                offset -= len(chunk)
                if offset <= position:
                    skip = position - offset
                    return position, chunk if not skip and len(chunk) <= size else chunk[skip : skip + size]
        return position, b""

    def tail(self, size: int) -> bytes:
        """The last bytes, at most ``size`` of them."""
        position = max(self.end - size, self._first if self.dropped else 0)
        parts: list[bytes] = []
        while True:
            position, data = self.read(position)
            if not data:
                return b"".join(parts)[-size:]
            parts.append(data)
            position += len(data)

    def getvalue(self) -> bytes:
        """All that is kept: the head from the spill file and the tail from memory, in one bytes object."""
        with self._lock:
            if not self._spilled:
                return b"".join((*self._chunks, self._pending))
            head = self._read_spilled(self._spilled, 0)
            while len(head) < self._spilled:  # Linux reads at most 2 GiB at once
                head += self._read_spilled(self._spilled - len(head), len(head))
            return b"".join((head, *self._chunks, self._pending))

    def _read_spilled(self, size: int, position: int) -> bytes:
        """From the spill file; with the lock held."""
        assert self._spill is not None  # noqa: S101 - something has been spilled
        if hasattr(os, "pread"):
            return os.pread(self._spill.fileno(), size, position)
        self._spill.seek(position)  # Windows has one place for reading and writing
        try:
            return self._spill.read(size)
        finally:
            self._spill.seek(0, os.SEEK_END)

    __bytes__ = getvalue

    def settled(self) -> bytes | OutputLog:
        """For a result: the output itself when it is small, else this log, which holds it."""
        return self if self._spilled or self.end > _BLOCK else self.getvalue()

    def last_line(self) -> str:
        """The last line that is not empty, at most 200 characters of it; after carriage returns, what a terminal would show."""
        rows = shown(self.tail(1024).decode("utf-8", "replace"))
        return next((row[-200:] for row in reversed(rows) if row.strip()), "")

    async def wait(self, position: int) -> None:
        """Until there is a byte behind ``position``, or the log is closed. Only on the loop that feeds it."""
        while self.end <= position and not self.closed:
            await self._waiters.wait()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<OutputLog {state}: {self.end:,} B, {self._spilled:,} spilled, {self.dropped:,} dropped>"


class LineReader:
    """Splits a log into lines, a block at a time; each reader has its own place.

    Lines are text, without their newline or carriage return + newline. A carriage return inside a line stays: what it means is the view's
    affair; ``frames`` gives the parts of a line that has no end yet. Where bytes were dropped, a line says how many. A line longer than
    ``limit`` bytes comes in pieces.
    """

    def __init__(
        self, source: OutputLog, position: int = 0, *, encoding: str = "utf-8", errors: str = "replace", limit: int = LONGEST_LINE
    ) -> None:
        self.source = source
        self.position: int = position
        self.limit: int = max(limit, _LEAST)
        self._carry: list[bytes] = []  # the beginning of a line whose end has not come
        self._carried = 0  # bytes
        self._framed = False  # a part of that line was given out already
        self._encoding, self._errors = encoding, errors
        self._wide: codecs.IncrementalDecoder | None = None
        if "\n".encode(encoding) != b"\n":  # UTF-16 and its like: newlines are found in the text, which goes on as UTF-8
            self._wide = codecs.getincrementaldecoder(encoding)(errors)
            self._encoding, self._errors = "utf-8", "surrogatepass"

    @property
    def unfinished(self) -> str:
        """The line that has no end yet; empty if there is none."""
        return self._decode(b"".join(self._carry)) if self._carry else ""

    @property
    def unfinished_frames(self) -> bool:
        """Whether the unfinished line has parts that carriage returns have closed."""
        return any(b"\r" in piece for piece in self._carry)

    def take(self, size: int = 256 << 10) -> list[str] | None:
        """The complete lines among the next bytes: an empty list if there are none yet, None at the end."""
        position, data = self.source.read(self.position, min(size, max(1, self.limit - self._carried)))  # so no line is longer
        lost = position - self.position
        self.position = position + len(data)
        if lost:
            rest = self._flush()
            mark = f"[nbprocs: {lost:,} bytes of output dropped here]"
            return [*rest, mark, *self._split(data)]
        if data:
            return self._split(data)
        if self.source.closed and self.position >= self.source.end:
            return self._flush() or None
        return []

    def frames(self) -> list[str]:
        """The parts of the unfinished line that carriage returns have closed, such as the steps of a progress bar; they come once."""
        data = b"".join(self._carry)
        cut = data.rfind(b"\r")
        if cut < 0:
            return []
        self._keep(data[cut + 1 :])
        found = [frame for frame in self._decode(data[:cut]).split("\r") if frame]
        self._framed = self._framed or bool(found)
        return found

    def _keep(self, rest: bytes) -> None:
        self._carry = [rest] if rest else []
        self._carried = len(rest)

    def _decode(self, data: bytes) -> str:
        return data.decode(self._encoding, self._errors)

    def _split(self, data: bytes) -> list[str]:
        if self._wide is not None:
            data = self._wide.decode(data).encode("utf-8", "surrogatepass")
        cut = data.rfind(b"\n")
        if cut < 0:
            self._carry.append(data)
            self._carried += len(data)
            return self._flush() if self._carried >= self.limit else []
        block = b"".join((*self._carry, data[:cut])) if self._carry else data[:cut]
        # Decoding whole lines at once can't split a character, and is many times faster than line by line.
        lines = self._decode(block).split("\n")
        if b"\r" in block:
            lines = [line.removesuffix("\r") for line in lines]
        if self._framed and not lines[0]:  # the newline behind a last frame is no line of its own
            del lines[0]
        self._framed = False
        self._keep(data[cut + 1 :])
        return lines

    def _flush(self) -> list[str]:
        over = self.source.closed and self.position >= self.source.end  # closed alone is not the end of what is to be read
        if self._wide is not None and over and (rest := self._wide.decode(b"", final=True)):
            self._carry.append(rest.encode("utf-8", "surrogatepass"))
        if not self._carry:
            return []
        data = b"".join(self._carry)
        keep = 0 if over else _cut_character(data)
        self._keep(data[len(data) - keep :])
        return [self._decode(data[: len(data) - keep]).removesuffix("\r")]


def _cut_character(data: bytes) -> int:
    """How many of the last bytes are the beginning of a character of UTF-8 whose rest is to come."""
    for size in range(1, min(4, len(data) + 1)):
        byte = data[-size]
        if byte >= 0xC0:  # noqa: PLR2004 - a leading byte
            return size if size < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0  # noqa: PLR2004 - lengths of UTF-8
        if byte < 0x80:  # noqa: PLR2004 - ASCII
            return 0
    return 0
