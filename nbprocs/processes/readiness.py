"""When a started process counts as ready: a port, a line of its output, a URL, or a callable of yours.

Each probe is a value with one async ``check``: the manager repeats it until it passes, the monitor measures how long it takes. A probe may
also have an async ``before``: it is asked before the start, and returns the probe to use for this one. So a port that was open already is
not taken for the new server's.
"""

import asyncio
import contextlib
import inspect
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from nbprocs.checks import member, name, refuse, text, whole
from nbprocs.engine.handles import listening_inodes, listing, open_handle, user_of
from nbprocs.engine.output import LineReader
from nbprocs.errors import CommunicationError
from nbprocs.guard import awaitable, repr_of, text_of
from nbprocs.model import Stream
from nbprocs.processes.core import ProcessCore
from nbprocs.processes.process import ManagedProcess, face_of, process_core

__all__ = ["LogLine", "Port", "Probe", "Ready", "Url", "as_probe", "before_start", "until_ready"]

QUIET = 0.1  # seconds without output after which a line without an end is a prompt
LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25  # seconds between two checks: a port can't tell us when it opens


@runtime_checkable
class Probe(Protocol):
    """What can be asked whether a process is ready."""

    async def check(self, process: ManagedProcess) -> bool:
        """One look: True if it is ready now. May wait for a while, and may be cancelled."""


Ready = Probe | Callable[..., object]  # what ready= takes


@dataclass(frozen=True, slots=True)
class Port:
    """Ready when something listens on a TCP port; if it was open before the start, when a process of its tree listens there.

    >>> Port(8000)
    Port(port=8000, host='127.0.0.1')
    """

    port: int
    host: str = field(default="127.0.0.1", kw_only=True)

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what can't be a port."""
        whole("port", self.port, least=1, most=65_535)
        name("host", self.host)

    async def before(self) -> Probe:
        """Itself, or what demands that the port is the process's own."""
        return await _own(self, self.port, self.host)

    async def check(self, process: ManagedProcess) -> bool:  # noqa: ARG002 - the protocol's signature
        """Connects and hangs up."""
        return await _open(self.host, self.port)


@dataclass(frozen=True, slots=True)
class LogLine:
    """Ready when a line of its output matches a regular expression (``re.search``); ``stream=None`` means either stream.

    A line that has no end yet, such as a prompt, counts once nothing more has come for 0.1 seconds.

    >>> LogLine("listening on")
    LogLine(pattern='listening on', stream=None)
    """

    pattern: str
    stream: Stream | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what is no pattern or no stream."""
        try:
            re.compile(text("pattern", self.pattern))
        except re.error as error:
            refuse(ValueError, "pattern", f"a regular expression ({error})", self.pattern)
        if self.stream is not None:
            object.__setattr__(self, "stream", member("stream", self.stream, Stream))

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
            if any(blocks):
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET if any(reader.unfinished for reader in readers) else None):
                    await process_core(process).more_output(seen)
                    continue
            if any(found(reader.unfinished) for reader in readers):
                return True
            await process_core(process).more_output(seen)


@dataclass(frozen=True, slots=True)
class Url:
    """Ready when a GET of the URL answers with a status below 400 within two seconds. A server that was there before is not it.

    >>> Url("http://127.0.0.1:8000/health").url
    'http://127.0.0.1:8000/health'
    """

    url: str

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what is no address of the web."""
        if not re.match(r"https?://[^/?#\s]", text("url", self.url)):
            refuse(ValueError, "url", "an address that begins with http:// or https://", self.url)

    async def before(self) -> Probe:
        """Itself, or what demands that the port is the process's own."""
        from urllib.parse import urlsplit  # noqa: PLC0415 - only for this probe

        parts = urlsplit(self.url)
        return await _own(self, parts.port or (443 if parts.scheme == "https" else 80), parts.hostname or "")

    async def check(self, process: ManagedProcess) -> bool:  # noqa: ARG002 - the protocol's signature
        """Asks once, in a thread: urllib blocks."""
        return await asyncio.get_running_loop().run_in_executor(None, self.get)

    def get(self) -> bool:
        """One GET, blocking: for a thread."""
        import urllib.error  # noqa: PLC0415 - the slowest import of all, for one probe
        import urllib.request  # noqa: PLC0415
        from http.client import HTTPException  # noqa: PLC0415

        try:
            with urllib.request.urlopen(self.url, timeout=2) as answer:  # noqa: S310 - the scheme was checked
                return bool(answer.status < 400)  # noqa: PLR2004 - HTTP's own border
        except (urllib.error.URLError, OSError, ValueError, HTTPException):  # what listens there needn't be a server of the web
            return False


@dataclass(frozen=True, slots=True)
class _Own:
    """A probe of a port that was open before the start: it passes only when a process of the tree listens there."""

    probe: Probe
    port: int

    async def check(self, process: ManagedProcess) -> bool:
        return self.port in process_core(process).ports() and await self.probe.check(process)

    def why(self) -> str:
        """What to say when it never passed."""
        return f"port {self.port} was open before it started: {_listener(self.port)} listens there; stop that one, or choose another port"


async def _own(probe: Probe, port: int, host: str) -> Probe:
    """What to ask of a port: on this host, who listens, if somebody does already."""
    here = host in LOCAL or host == socket.gethostname()
    return _Own(probe, port) if here and await _open(host, port) else probe


async def _open(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


def _listener(port: int) -> str:
    inodes = listening_inodes()
    for pid in listing():
        handle = open_handle(pid)
        if handle is not None:
            found = handle.ports(lambda: inodes)
            handle.close()
            if found and port in found:
                return f"{user_of(pid)[0] or 'a process'} (pid {pid})"
    return "a program that this user can't see"


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[..., object]

    async def check(self, process: ManagedProcess) -> bool:
        answer = self.function(process) if _takes_argument(self.function) else self.function()
        if awaitable(answer):
            answer = await answer
        return bool(answer)

    def __repr__(self) -> str:
        return repr_of(self.function)


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


async def before_start(probe: Probe) -> Probe:
    """The probe for a start that is about to be made."""
    before = getattr(probe, "before", None)
    found = probe if before is None else await before()
    return found if isinstance(found, Probe) else probe


async def _asked(probe: Probe, process: ProcessCore) -> bool:
    """One check. Whatever the user's code raises is a CommunicationError with that as its cause: sys.exit() must not end the loop."""
    try:
        return bool(await probe.check(face_of(process)))
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        msg = f"its readiness check raised {text_of(error)}"
        raise CommunicationError(msg, process_id=process.id, name=process.name) from error


async def until_ready(process: ProcessCore, probe: Probe) -> bool:
    """Ask until the probe passes (True) or the process has ended (False). Cancel it to limit the time.

    Raises CommunicationError for a probe that raises.
    """
    pause = FIRST_PAUSE
    while not process.status.live or not await _asked(probe, process):
        if not process.status.live:
            return False
        if await process.ended_within(pause):
            return False
        pause = min(pause * 2, LONGEST_PAUSE)
    return True
