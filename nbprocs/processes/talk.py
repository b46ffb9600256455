"""Talking: what is written to a process and read from it. The half of ManagedProcess that deals with bytes and lines.

State stays where it is made: the logs are fed by the process, its child writes; here are only the ways to use them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from nbprocs.checks import data as bytes_of
from nbprocs.config import Data, ProcessConfig
from nbprocs.display import Displayable
from nbprocs.engine.child import Child
from nbprocs.engine.home import Home, hops
from nbprocs.engine.output import LineReader, OutputLog
from nbprocs.errors import CommunicationError, tail_text
from nbprocs.model import ProcessResult, Stream

__all__ = ["Talk"]

_CHUNK_OF_LINES = 1 << 20  # bytes that lines() hands out before it lets the loop breathe


class Talk(Displayable):
    """Send to a process and read its output; the base of ManagedProcess, which makes what is declared here."""

    id: str
    name: str
    config: ProcessConfig
    home: Home
    result: ProcessResult | None
    stdout: OutputLog
    stderr: OutputLog
    _child: Child | None
    _readers: dict[Stream, tuple[LineReader, deque[str]]]

    @hops
    async def send(self, data: Data) -> None:
        """Write to its stdin; text in its encoding. Returns when the system has it all: a child that doesn't read holds it back.

        Raises CommunicationError if it was started without ``stdin=True``, closed its stdin, or has ended. When cancelled a part may
        have been written.
        """
        if not self.config.takes_input:
            raise self._broken("has no stdin; start it with stdin=True")
        await self.write_input(bytes_of("data", data, encoding=self.config.encoding, errors=self.config.errors))

    async def write_input(self, data: bytes) -> None:
        """Write to its stdin, whoever is to write there. For code on the home loop."""
        if self._child is None:
            raise self._broken("has not started")
        try:
            await self._child.write(data)
        except (BrokenPipeError, ConnectionResetError):
            raise self._broken("no longer reads its stdin") from None

    async def send_line(self, line: str) -> None:
        """send() with a newline behind it."""
        await self.send(line + "\n")

    @hops
    async def close_stdin(self) -> None:
        """End of input: what was sent is still delivered. Idempotent."""
        if self._child is not None and self.config.stdin is not False:
            await self._child.close_stdin()

    def _broken(self, what: str) -> CommunicationError:
        result, fields = self.result, {"process_id": self.id, "name": self.name, "command": self.config.display, "last_output": self.tail()}
        how = {} if result is None else {"exit_code": result.exit_code, "signal": result.signal}
        return CommunicationError(f"{self.name} {what}", **fields, **how)  # type: ignore[arg-type]

    # -- reading

    async def lines(self, stream: Stream | str = Stream.STDOUT, *, position: int = 0) -> AsyncIterator[str]:
        """Every line of a stream, from the beginning (or a byte position), until its end. Several readers at once each see them all.

        Lines of any length come whole, without their newline; what is not UTF-8 becomes U+FFFD. Dropped output leaves a line saying so.
        """
        source = self._log(stream)
        reader = LineReader(source, position)
        breath = position
        while (block := await self._next_lines(reader)) is not None:
            for line in block:
                yield line
            if reader.position - breath > _CHUNK_OF_LINES:
                breath = reader.position
                await asyncio.sleep(0)

    @hops
    async def _next_lines(self, reader: LineReader) -> list[str] | None:
        while True:
            block = reader.take()
            if block is None or block:
                return block
            if reader.position >= reader.source.end:
                await reader.source.wait(reader.position)

    async def receive_output(self) -> str | None:
        """The next line of stdout that no earlier call has given; None at the end. Waits for it."""
        return await self._receive(Stream.STDOUT)

    async def receive_error(self) -> str | None:
        """The same for stderr."""
        return await self._receive(Stream.STDERR)

    async def _receive(self, stream: Stream) -> str | None:
        # Taken on the caller's side of a hop, in one step: a line must not be lost when the wait is cancelled while it arrives.
        _, pending = self._readers.setdefault(stream, (LineReader(self._log(stream)), deque()))
        while True:
            with contextlib.suppress(IndexError):
                return pending.popleft()
            if not await self._fill(stream):
                return None

    @hops
    async def _fill(self, stream: Stream) -> bool:
        reader, pending = self._readers[stream]
        while not pending:
            block = reader.take()
            if block is None:
                return False
            pending.extend(block)
            if not block and reader.position >= reader.source.end:
                await reader.source.wait(reader.position)
        return True

    def _log(self, stream: Stream | str) -> OutputLog:
        return self.stdout if Stream(stream) is Stream.STDOUT else self.stderr

    def tail(self, lines: int = 10) -> str:
        """The last lines of its stderr, or of its stdout if that is empty."""
        return tail_text((self.stderr if self.stderr.end else self.stdout).tail(64 << 10), lines=lines)
