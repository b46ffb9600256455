"""The parent's end of the wire: bytes in, messages out. Pure: no socket, no loop.

A frame is ``header | lengths of the buffers | body | buffers``; the body is a marshalled message (see nbprocs.pool.worker_main, which owns
the format because the child loads that file alone). Large buffers are received straight into their final place.
"""

import marshal
from typing import Any

from nbprocs.errors import CommunicationError
from nbprocs.pool.worker_main import HEADER, LENGTH, frame

__all__ = ["Decoder", "frame"]

_SMALL = 256 << 10  # bytes: what one read takes at most, and the largest frame that is parsed in place


class Decoder:
    """Incremental, and its own receive buffer, like asyncio's BufferedProtocol: fill ``get_buffer()``, then call ``received(n)``.

    A frame with buffers gives its message with the list of buffers as one more item.

    >>> decoder, data = Decoder(), bytes(frame((1, "a"))[0])
    >>> decoder.get_buffer()[: len(data)] = data
    >>> decoder.received(len(data))
    [(1, 'a')]
    """

    __slots__ = ("_at", "_buffer", "_end", "_filled", "_parts", "_view")

    def __init__(self, size: int = _SMALL) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._at = 0  # parsed up to here
        self._end = 0  # received up to here
        self._parts: list[bytearray] = []  # of a large frame: the body, then its buffers
        self._filled = 0  # bytes of them that have come

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if not self._parts:
            return self._view[self._end :]
        skip = self._filled
        for part in self._parts:
            if skip < len(part):
                return memoryview(part)[skip:]
            skip -= len(part)
        raise AssertionError("a complete frame was not delivered")  # pragma: no cover - received() delivers it

    def received(self, count: int) -> list[Any]:
        """The messages that are complete now. Raises CommunicationError for what is no frame; the stream is useless then."""
        try:
            if self._parts:
                self._filled += count
                return self._large()
            self._end += count
            return self._small()
        except (ValueError, EOFError, TypeError, MemoryError, OverflowError) as error:
            raise CommunicationError(f"a worker sent what is no frame: {error}") from error

    def _small(self) -> list[Any]:
        found: list[Any] = []
        view, at, end = self._view, self._at, self._end
        while end - at >= HEADER.size:
            size, count = HEADER.unpack_from(view, at)
            start = at + HEADER.size + LENGTH.size * count
            if not count and start + size <= end:
                found.append(marshal.loads(view[start : start + size]))  # noqa: S302 - from our own child
                at = start + size
            elif start <= end and (count or start + size - at > len(view)):
                at, done = self._begin_large(size, count, at, start)
                found += done
            else:
                break
        if at == end:
            self._at = self._end = 0
        elif at:  # the beginning of a frame: move it to the front, so that the rest has room
            rest = bytes(view[at:end])
            view[: len(rest)] = rest
            self._at, self._end = 0, len(rest)
        else:
            self._at = 0
        return found

    def _begin_large(self, size: int, count: int, at: int, start: int) -> tuple[int, list[Any]]:
        """Make room for a large frame and move there what has come of it."""
        lengths = [size, *(LENGTH.unpack_from(self._view, at + HEADER.size + LENGTH.size * i)[0] for i in range(count))]
        self._parts = [bytearray(length) for length in lengths]
        self._filled = 0
        for part in self._parts:
            have = min(len(part), self._end - start)
            part[:have] = self._view[start : start + have]
            self._filled += have
            start += have
        return start, self._large()

    def _large(self) -> list[Any]:
        if self._filled < sum(map(len, self._parts)):
            return []
        body, *buffers = self._parts
        self._parts = []
        message = marshal.loads(body)  # noqa: S302 - from our own child
        return [(*message, buffers) if buffers else message]
