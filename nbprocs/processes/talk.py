"""Talking: what is written to a process and read from it.

State stays where it is made: the logs are fed by the process, its child writes; here are only the ways to use them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from nbprocs.checks import data as bytes_of
from nbprocs.checks import member, refuse, seconds, text, whole
from nbprocs.config import Data
from nbprocs.engine.home import Home, hops
from nbprocs.engine.output import LONGEST_LINE, LineReader, OutputLog
from nbprocs.errors import ExpectTimeout
from nbprocs.model import Stream
from nbprocs.processes.window import TextWindow

if TYPE_CHECKING:
    from nbprocs.processes.core import ProcessCore

__all__ = ["Talk"]

_CHUNK_OF_LINES = 1 << 20  # bytes that lines() hands out before it lets the loop breathe
_PATIENCE = 0.2  # seconds that a line which grows by carriage returns may stay without an end


class Talk:
    """What is written to a process and read from it. Each of its methods may be awaited on any loop."""

    def __init__(self, core: ProcessCore) -> None:
        self._core = core
        self.home: Home = core.home

    @hops
    async def send(self, data: Data) -> None:
        """Write to its stdin; text in its encoding. Returns when the system has it all: a child that doesn't read holds it back.

        Raises CommunicationError if it was started without ``stdin=True``, closed its stdin, or has ended. When cancelled a part may
        have been written.
        """
        if not self._core.config.takes_input:
            raise self._core.broken("has no stdin; start it with stdin=True")
        await self.write_input(bytes_of("data", data, encoding=self._core.config.encoding, errors=self._core.config.errors))

    async def write_input(self, data: bytes) -> None:
        """Write to its stdin, whoever is to write there. For code on the home loop."""
        if self._core.child is None:
            raise self._core.broken("has not started")
        try:
            await self._core.child.write(data)
        except (BrokenPipeError, ConnectionResetError):
            raise self._core.broken("no longer reads its stdin") from None

    async def send_line(self, line: str) -> None:
        """send() with a newline behind it."""
        if not isinstance(line, str):
            refuse(TypeError, "line", "text", line)
        await self.send(line + "\n")

    @hops
    async def close_stdin(self) -> None:
        """End of input: what was sent is still delivered. Idempotent."""
        if self._core.child is not None and self._core.config.stdin is not False:
            await self._core.child.close_stdin()

    # -- reading

    async def lines(self, stream: Stream | str = Stream.STDOUT, *, position: int = 0, longest: int = LONGEST_LINE) -> AsyncIterator[str]:
        """Every line of a stream, from the beginning (or a byte position), until its end. Several readers at once each see them all.

        Lines come whole, without their newline, in pieces if they are longer than ``longest`` bytes; what can't be decoded becomes U+FFFD,
        or what ``errors`` says. Of a line that only grows by carriage returns (a progress bar) each part comes as a line, 0.2 seconds late
        at most. Dropped output leaves a line saying so.
        """
        async for block in self.blocks(stream, position=position, longest=longest):
            for line in block:
                yield line

    async def blocks(
        self, stream: Stream | str = Stream.STDOUT, *, position: int = 0, longest: int = LONGEST_LINE
    ) -> AsyncIterator[list[str]]:
        """The same lines, a list of those that have come at a time: several times as fast for a program that writes much."""
        whole("longest", longest, least=1)
        reader = self._reader(self._log(stream), whole("position", position, least=0), limit=longest)
        breath = position
        while (block := await self._next_lines(reader)) is not None:
            yield block
            if reader.position - breath > _CHUNK_OF_LINES:
                breath = reader.position
                await asyncio.sleep(0)

    def _reader(self, source: OutputLog, position: int = 0, *, limit: int = LONGEST_LINE) -> LineReader:
        return LineReader(source, position, encoding=self._core.config.encoding, errors=self._core.config.errors, limit=limit)

    @hops
    async def _next_lines(self, reader: LineReader) -> list[str] | None:
        while True:
            block = reader.take()
            if block is None or block:
                return block
            if reader.position >= reader.source.end:
                try:
                    async with asyncio.timeout(_PATIENCE if reader.unfinished_frames else None):
                        await reader.source.wait(reader.position)
                except TimeoutError:
                    if frames := reader.frames():
                        return frames

    async def expect(
        self, pattern: str | re.Pattern[str], *, timeout: float | None = 30.0, stream: Stream | str | None = None
    ) -> re.Match[str]:
        r"""Wait until what it wrote matches a regular expression (``re.search``), and return the match.

        The text is taken as it comes, a prompt without a newline too, from where the match before has ended; ``stream=None`` looks at both
        streams, each by itself. A match can't be longer than 64 KiB. Raises ExpectTimeout after ``timeout`` seconds, and CommunicationError
        when the output ends without a match; both show the last lines. What was written stays to be read otherwise.

        >>> async with ProcessManager() as pm:
        ...     proc = await pm.spawn("sh", "-c", "printf 'name? '; read name; echo \"hello $name\"", stdin=True)
        ...     _ = await proc.expect(r"name\? ")
        ...     await proc.send_line("world")
        ...     (await proc.expect(r"hello (\w+)"))[1]
        'world'
        """
        compiled = _compiled(pattern)
        limit = seconds("timeout", timeout, zero=True)
        streams = tuple(Stream) if stream is None else (member("stream", stream, Stream),)
        found, stream, position = await self._expect(compiled, limit, streams)
        self._core.expected[stream] = position  # on the caller's side of the hop: a cancelled wait must lose nothing
        return found

    @hops
    async def _expect(
        self, pattern: re.Pattern[str], limit: float | None, streams: tuple[Stream, ...]
    ) -> tuple[re.Match[str], Stream, int]:
        windows = {name: TextWindow(self._log(name), self._core.expected.get(name, 0), self._core.config) for name in streams}
        try:
            async with asyncio.timeout(limit):
                while True:
                    seen = self._core.stdout.end + self._core.stderr.end
                    for name, window in windows.items():
                        found = window.search(pattern)
                        if found is not None:
                            return found, name, window.behind(found)
                    if all(window.over for window in windows.values()):
                        raise self._core.broken(f"ended without output that matches {pattern.pattern!r}")
                    await self._core.more_output(seen)
        except TimeoutError:
            raise self._core.broken(f"wrote nothing that matches {pattern.pattern!r} within {limit:g} s", ExpectTimeout) from None

    async def receive(self, stream: Stream) -> str | None:
        """The next line of a stream that no earlier call has given; None at the end. Waits for it."""
        # Taken on the caller's side of a hop, in one step: a line must not be lost when the wait is cancelled while it arrives.
        _, pending = self._core.readers.setdefault(stream, (self._reader(self._log(stream)), deque()))
        while True:
            with contextlib.suppress(IndexError):
                return pending.popleft()
            if not await self._fill(stream):
                return None

    @hops
    async def _fill(self, stream: Stream) -> bool:
        reader, pending = self._core.readers[stream]
        while not pending:
            block = reader.take()
            if block is None:
                return False
            pending.extend(block)
            if not block and reader.position >= reader.source.end:
                await reader.source.wait(reader.position)
        return True

    def _log(self, stream: Stream | str) -> OutputLog:
        return self._core.stdout if member("stream", stream, Stream) is Stream.STDOUT else self._core.stderr


def _compiled(pattern: object) -> re.Pattern[str]:
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        return pattern
    try:
        return re.compile(text("pattern", pattern))
    except re.error as error:
        refuse(ValueError, "pattern", f"a regular expression ({error})", pattern)
