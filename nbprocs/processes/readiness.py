"""When a started process counts as ready: a port, a line of its output, a URL, or a callable of yours.

Each probe is a value with one async ``check``: the manager repeats it until it passes, the monitor measures how long it takes.
"""

import asyncio
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from nbprocs.engine.output import LineReader
from nbprocs.model import Stream
from nbprocs.processes.process import ManagedProcess

__all__ = ["LogLine", "Port", "Probe", "Ready", "Url", "as_probe", "until_ready"]

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25  # seconds between two checks: a port can't tell us when it opens


@runtime_checkable
class Probe(Protocol):
    """What can be asked whether a process is ready."""

    async def check(self, process: ManagedProcess) -> bool:
        """One look: True if it is ready now. May wait for a while, and may be cancelled."""


Ready = Probe | Callable[..., object]  # what ready= takes


@dataclass(frozen=True, slots=True)
class Port:
    """Ready when something listens on a TCP port. It can't know whose port it is: choose a free one.

    >>> Port(8000)
    Port(port=8000, host='127.0.0.1')
    """

    port: int
    host: str = field(default="127.0.0.1", kw_only=True)

    async def check(self, process: ManagedProcess) -> bool:  # noqa: ARG002 - the protocol's signature
        """Connects and hangs up."""
        try:
            _, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            return False
        writer.close()
        return True


@dataclass(frozen=True, slots=True)
class LogLine:
    """Ready when a line of its output matches a regular expression (``re.search``); ``stream=None`` means either stream.

    >>> LogLine("listening on")
    LogLine(pattern='listening on', stream=None)
    """

    pattern: str
    stream: Stream | None = field(default=None, kw_only=True)

    async def check(self, process: ManagedProcess) -> bool:
        """Waits for the line; False when the output ended without it."""
        logs = {Stream.STDOUT: process.stdout, Stream.STDERR: process.stderr}
        readers = [LineReader(source) for stream, source in logs.items() if self.stream in (None, stream)]
        found = re.compile(self.pattern).search
        while True:
            seen = process.stdout.end + process.stderr.end
            blocks = [reader.take() for reader in readers]
            if any(found(line) for block in blocks for line in block or ()):
                return True
            if all(block is None for block in blocks):
                return False
            if not any(blocks):
                await process.more_output(seen)


@dataclass(frozen=True, slots=True)
class Url:
    """Ready when a GET of the URL answers with a status below 400 within two seconds.

    >>> Url("http://127.0.0.1:8000/health").url
    'http://127.0.0.1:8000/health'
    """

    url: str

    async def check(self, process: ManagedProcess) -> bool:  # noqa: ARG002 - the protocol's signature
        """Asks once, in a thread: urllib blocks."""
        return await asyncio.get_running_loop().run_in_executor(None, self.get)

    def get(self) -> bool:
        """One GET, blocking: for a thread. Raises ValueError for another scheme."""
        if not self.url.startswith(("http://", "https://")):
            msg = f"a URL to probe must begin with http:// or https://, not {self.url!r}"
            raise ValueError(msg)
        import urllib.error  # noqa: PLC0415 - the slowest import of all, for one probe
        import urllib.request  # noqa: PLC0415

        try:
            with urllib.request.urlopen(self.url, timeout=2) as answer:  # noqa: S310 - the scheme was checked
                return bool(answer.status < 400)  # noqa: PLR2004 - HTTP's own border
        except (urllib.error.URLError, OSError):
            return False


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[..., object]

    async def check(self, process: ManagedProcess) -> bool:
        answer = self.function(process) if _takes_argument(self.function) else self.function()
        if inspect.isawaitable(answer):
            answer = await answer
        return bool(answer)


def _takes_argument(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def as_probe(ready: object) -> Probe:
    """A probe as it is; a callable (sync or async, called with the process or with nothing) as one. Raises TypeError for others."""
    if isinstance(ready, Probe):
        return ready
    if callable(ready):
        return _Call(ready)
    msg = f"ready= takes Port, LogLine, Url or a callable, not {ready!r}"
    raise TypeError(msg)


async def until_ready(process: ManagedProcess, probe: Probe) -> bool:
    """Ask until the probe passes (True) or the process has ended (False). Cancel it to limit the time."""
    pause = FIRST_PAUSE
    while not process.status.live or not await probe.check(process):
        if not process.status.live:
            return False
        if await process.ended_within(pause):
            return False
        pause = min(pause * 2, LONGEST_PAUSE)
    return True
