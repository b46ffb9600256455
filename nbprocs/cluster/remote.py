"""A process on another machine, as a task's handle and the views see it. Its output has come here, or is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from nbprocs.engine.home import Home, hops
from nbprocs.engine.output import LineReader, OutputLog
from nbprocs.errors import CommunicationError
from nbprocs.model import Stream

__all__ = ["RemoteProcess"]

_CHUNK_OF_LINES = 1 << 20  # bytes that lines() hands out before it lets the loop breathe


class RemoteProcess:
    """What runs a job on a worker. Made by the backend; a scheduler.backend.JobProcess.

    Its signals are sent and not awaited: one that comes too late, because it has ended there, does nothing.
    """

    def __init__(self, *, name: str, home: Home, host: str, worker: str, signal: Callable[[str], object]) -> None:
        self.name = name
        self.home = home
        self.host = host
        self.worker = worker
        self.pid: int | None = None
        self.created_at: datetime = datetime.now(UTC)
        self.stdout: OutputLog = OutputLog()
        self.stderr: OutputLog = OutputLog()
        self.paused: bool = False
        self.row: dict[str, float] = {}  # what its tree took at the last look, by the names of the monitor's metrics
        self.dropped: int = 0  # bytes of output that its worker could not keep
        self._expected = {"stdout": 0, "stderr": 0}
        self._signal = signal

    # -- from the worker

    def started(self, pid: int | None, created: float | None) -> None:
        """It runs there."""
        self.pid = pid
        if created is not None:
            self.created_at = datetime.fromtimestamp(created, UTC)

    def feed(self, stream: str, offset: int, data: bytes) -> None:
        """Take output; what has come before is left out, what is missing was dropped there, and is counted."""
        expected = self._expected[stream]
        if offset > expected:
            self.dropped += offset - expected
        fresh = data[expected - offset :] if offset < expected else data
        if fresh:
            self._expected[stream] = max(offset, expected) + len(fresh)
            (self.stdout if stream == "stdout" else self.stderr).feed(bytes(fresh))

    def close(self) -> None:
        """It has ended, and all its output is here."""
        self.stdout.close()
        self.stderr.close()

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.stdout.closed

    # -- for handles and views

    async def lines(self, stream: Stream | str = Stream.STDOUT) -> AsyncIterator[str]:
        """Its lines from the first one, as they come; several readers see all of them."""
        reader = LineReader(self.stdout if Stream(stream) is Stream.STDOUT else self.stderr)
        breath = 0
        while (block := await self._next(reader, breathe=reader.position - breath > _CHUNK_OF_LINES)) is not None:
            breath = reader.position if reader.position - breath > _CHUNK_OF_LINES else breath
            for line in block:
                yield line

    @hops
    async def _next(self, reader: LineReader, *, breathe: bool) -> list[str] | None:
        if breathe:
            await asyncio.sleep(0)
        while True:
            block = reader.take()
            if block is None or block:
                return block
            if reader.position >= reader.source.end:
                await reader.source.wait(reader.position)

    def pause(self) -> None:
        """SIGSTOP to its process group there. Raises CommunicationError when it has ended."""
        self._send("pause")
        self.paused = True

    def resume(self) -> None:
        """SIGCONT to its process group there. Raises CommunicationError when it has ended."""
        self._send("resume")
        self.paused = False

    def interrupt(self) -> None:
        """SIGINT to its process group there. Raises CommunicationError when it has ended."""
        self._send("interrupt")

    def _send(self, what: str) -> None:
        if self.ended:
            raise CommunicationError(f"{self.name} has ended; there is nobody to signal", name=self.name)
        self.home.post(self._signal, what)

    def __repr__(self) -> str:
        state = "ended" if self.ended else "paused" if self.paused else "running"
        return f"<RemoteProcess {self.name}: {state}, pid {self.pid} on {self.host} ({self.worker})>"
