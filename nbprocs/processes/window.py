"""The text that expect() looks at: what a stream wrote since the last match, decoded as it comes."""

from __future__ import annotations

import codecs
import re

from nbprocs.config import ProcessConfig
from nbprocs.engine.output import OutputLog

__all__ = ["TextWindow"]

_KEPT = 64 << 10  # characters of what did not match that are looked at again with what follows


class TextWindow:
    """One look at one stream, from a byte position on. Reads no more than it must: each call of search() what is new."""

    def __init__(self, source: OutputLog, position: int, config: ProcessConfig) -> None:
        self._source = source
        self._encoding, self._errors = config.encoding, config.errors
        self._decoder = codecs.getincrementaldecoder(self._encoding)(self._errors)
        self._pieces: list[tuple[int, str, bytes]] = []  # offset, text and bytes of what is in the window: whole characters
        self._rest = b""  # the beginning of a character
        self._read = position
        self._text = ""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._source.closed and self._read >= self._source.end

    def search(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The first match in the window, with all that has come."""
        while True:
            fresh = self._take()
            found = pattern.search(self._text)
            if found is not None or not fresh:
                return found
            while len(self._pieces) > 1 and len(self._text) - len(self._pieces[0][1]) >= _KEPT:
                self._text = self._text[len(self._pieces.pop(0)[1]) :]

    def _take(self) -> bool:
        position, data = self._source.read(self._read, _KEPT)
        if not data:
            return False
        self._read = position + len(data)
        data = self._rest + data
        piece = self._decoder.decode(data[len(self._rest) :])
        self._rest = self._decoder.getstate()[0]
        self._pieces.append((self._read - len(data), piece, data[: len(data) - len(self._rest)]))
        self._text += piece
        return True

    def behind(self, found: re.Match[str]) -> int:
        """The byte position behind a match in this window."""
        left = found.end()
        for position, piece, data in self._pieces:
            if left <= len(piece):
                return position + self._bytes_of(data, left, whole=left == len(piece))
            left -= len(piece)
        return self._read

    def _bytes_of(self, data: bytes, characters: int, *, whole: bool) -> int:
        """How many bytes of a piece make so many characters of it: counted by decoding, since errors change lengths."""
        if whole:
            return len(data)
        low, high = 0, len(data)
        while low < high:
            middle = (low + high) // 2
            if len(codecs.getincrementaldecoder(self._encoding)(self._errors).decode(data[:middle])) < characters:
                low = middle + 1
            else:
                high = middle
        return low
