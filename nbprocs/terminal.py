"""What a terminal would show of some output: carriage returns overwrite, colours are left out, controls are made readable. Pure text."""

from __future__ import annotations

import re

from nbprocs.redact import readable

__all__ = ["Interleaved", "clipped", "shown", "tail_text"]

# CSI, OSC (ended by BEL or ST), the other strings, and the two-byte escapes; re compiles it at its first use and keeps it.
_ERASE = r"\x1b\[[02]?K"
_ESCAPES = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|[\x07\x0e\x0f]"
_TAIL = 64 << 10  # bytes that are looked at


def shown(text: str) -> list[str]:
    r"""The lines as they stand on the screen in the end.

    >>> shown("10%\r20%\rdone\x1b[K\n\x1b[31mred\x1b[0m")
    ['done', 'red']
    """
    text = text.replace("\r\n", "\n")
    return [_row(row) for row in text.removesuffix("\n").split("\n")] if text else []


def _row(row: str) -> str:
    if "\r" in row or "\b" in row:
        row = _overwritten(row)
    elif "\x1b" not in row and row.isprintable():
        return row
    return readable(re.sub(_ESCAPES, "", row))


def _overwritten(row: str) -> str:
    line = ""
    for part in row.split("\r"):
        part = _stepped_back(part)  # noqa: PLW2901 - the same part, shown
        pieces = [re.sub(_ESCAPES, "", piece) for piece in re.split(_ERASE, part)]
        written = "".join(pieces)
        kept = len(pieces[0]) if len(pieces) > 1 else len(line)  # an erasing cuts what was there before
        line = written + line[:kept][len(written) :]
    return line


def _stepped_back(part: str) -> str:
    while "\b" in part and (stepped := re.sub("[^\b\x1b]\b|^\b", "", part)) != part:
        part = stepped
    return part.replace("\b", "")


def tail_text(data: bytes | str, *, lines: int = 10, width: int = 400) -> str:
    r"""The last lines of some output as a terminal shows them, bounded both ways, for an error message.

    >>> tail_text(b"one\ntwo\nthree\n", lines=2)
    'two\nthree'
    """
    text = data[-_TAIL:] if isinstance(data, str) else data[-_TAIL:].decode("utf-8", "replace")
    rows = shown(text)
    while rows and not rows[-1].strip():
        rows.pop()
    return "\n".join(row if len(row) <= width else f"{row[:width]}…" for row in rows[-lines:])


def clipped(text: str, *, lines: int = 200, characters: int = 20_000) -> str:
    """The beginning and the end of a long text, with what was left out in a line between."""
    rows = text.split("\n")
    if len(rows) > lines:
        half = lines // 2
        rows = [*rows[:half], f"… {len(rows) - 2 * half:,} lines …", *rows[-half:]]
    short = "\n".join(rows)
    if len(short) > characters:
        half = characters // 2
        short = f"{short[:half]}\n… {len(short) - 2 * half:,} characters …\n{short[-half:]}"
    return short


class Interleaved:
    r"""In which order two streams came: runs of bytes of one stream. A bounded number of the last runs is known.

    >>> order = Interleaved()
    >>> order.add(0, 3); order.add(1, 4); order.add(0, 2)
    >>> order.tail(b"ab\nc\n", b"xyz\n")
    b'ab\nxyz\nc\n'
    """

    __slots__ = ("_runs",)
    _MOST = 128

    def __init__(self) -> None:
        self._runs: list[list[int]] = []

    def add(self, stream: int, size: int) -> None:
        """So many bytes more of the stream: 0 is stdout, 1 is stderr."""
        runs = self._runs
        if runs and runs[-1][0] == stream:
            runs[-1][1] += size
        else:
            if len(runs) >= 2 * self._MOST:
                del runs[: self._MOST]
            runs.append([stream, size])

    @property
    def last(self) -> int:
        """The stream that wrote last."""
        return self._runs[-1][0] if self._runs else 0

    def runs(self, ends: tuple[int, int]) -> list[tuple[int, int, int]]:
        """The runs that are known, the oldest first: stream, begin and end in it, where the two streams end at ``ends``.

        >>> order = Interleaved()
        >>> order.add(0, 3); order.add(1, 4); order.add(0, 2)
        >>> order.runs((5, 4))
        [(0, 0, 3), (1, 0, 4), (0, 3, 5)]
        """
        at, found = list(ends), []
        for stream, size in reversed(self._runs):
            found.append((stream, at[stream] - size, at[stream]))
            at[stream] -= size
        return found[::-1]

    def tail(self, stdout: bytes, stderr: bytes) -> bytes:
        """The ends of the two streams in the order of their coming, lines kept whole."""
        left = [stdout, stderr]
        pieces: list[tuple[int, bytes]] = []
        for stream, size in reversed(self._runs):
            data = left[stream]
            if data:
                pieces.append((stream, data[-size:]))
                left[stream] = data[: -size or None] if size < len(data) else b""
        begun = [b"", b""]
        found = []
        for stream, data in reversed(pieces):
            whole, newline, rest = (begun[stream] + data).rpartition(b"\n")
            found.append(whole + newline)
            begun[stream] = rest
        first = self.last ^ 1
        rests = [
            rest + (b"\n" if stream == first and begun[first ^ 1] else b"") for stream in (first, first ^ 1) if (rest := begun[stream])
        ]
        return b"".join((*found, *rests))
