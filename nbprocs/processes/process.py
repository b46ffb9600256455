"""ManagedProcess: what a user holds of a process, and only that. The machinery is its core."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from nbprocs.checks import function, seconds, whole
from nbprocs.checks import grace as grace_of
from nbprocs.config import Data, signal_number
from nbprocs.display import Displayable, Html, text
from nbprocs.engine.output import LONGEST_LINE, OutputLog
from nbprocs.engine.table import Identity
from nbprocs.model import ProcessConfig, ProcessInfo, ProcessResult, ProcessStatus, Stream, signal_name
from nbprocs.processes.core import ProcessCore
from nbprocs.processes.talk import Talk
from nbprocs.redact import one_line, readable

__all__ = ["ManagedProcess", "face_of", "process_core"]

_LARGEST = 65_535  # rows or columns that a pseudo-terminal can have


class ManagedProcess(Displayable):
    """A process that the manager started. Made by ``ProcessManager.spawn``; its async methods may be awaited on any loop.

    >>> pm = ProcessManager()
    >>> proc = await pm.spawn("cat", stdin=True)
    >>> await proc.send_line("hello")
    >>> await proc.receive_output()
    'hello'
    >>> (await proc.stop()).status
    <ProcessStatus.TERMINATED: 'terminated'>
    >>> await pm.aclose()
    """

    def __init__(self, core: ProcessCore) -> None:
        self._core = core
        self._talk = Talk(core)

    # -- what it is

    @property
    def id(self) -> str:
        """A uuid."""
        return self._core.id

    @property
    def name(self) -> str:
        """Unique among live processes."""
        return self._core.name

    @property
    def config(self) -> ProcessConfig:
        """What it runs."""
        return self._core.config

    @property
    def pid(self) -> int | None:
        """Its process id; None while it has none. After its end the number may be somebody else's."""
        return self._core.pid

    @property
    def identity(self) -> Identity:
        """(pid, start time). Raises CommunicationError before the start."""
        return self._core.identity

    @property
    def host(self) -> str:
        """The name of the machine that it runs on."""
        return self._core.host

    @property
    def created_at(self) -> datetime:
        """When it was made; with a time zone."""
        return self._core.created_at

    @property
    def ended_at(self) -> datetime | None:
        """When it ended; None while it lives."""
        return self._core.ended_at

    @property
    def execution_time(self) -> float:
        """Seconds since its start, or from start to end."""
        return self._core.execution_time

    @property
    def status(self) -> ProcessStatus:
        """Where in its life it is."""
        return self._core.status

    @property
    def ready(self) -> bool:
        """Whether its readiness probe has passed; True at once without one."""
        return self._core.ready

    @property
    def paused(self) -> bool:
        """Whether it was paused."""
        return self._core.paused

    @property
    def restarts(self) -> int:
        """How many predecessors of the same lineage there were."""
        return self._core.restarts

    @property
    def predecessor(self) -> ManagedProcess | None:
        """The process that it followed, by a restart say; None once that has left the history."""
        before = self._core.predecessor
        return None if before is None else face_of(before)

    @property
    def result(self) -> ProcessResult | None:
        """How it ended; None while it lives."""
        return self._core.result

    @property
    def info(self) -> ProcessInfo:
        """A snapshot."""
        return self._core.info

    # -- its end

    async def wait(self, timeout: float | None = None) -> ProcessResult:
        """Wait for the end of the process (not of its pipes) and return its result; never raises for how it ended.

        With ``timeout`` seconds raises TimeoutError after that time and leaves the process alone. Takes as long as the process and at most
        0.1 s more, if a grandchild still holds its output open; when it is being stopped, until its whole tree has ended.
        """
        return await self._core.wait(seconds("timeout", timeout, zero=True))

    def add_done_callback(self, callback: Callable[[ManagedProcess], object]) -> None:
        """Call it with the process, on the home loop, once the status is final; soon, if it already is."""
        function("callback", callback)
        self._core.add_done_callback(lambda core: callback(face_of(core)))

    async def stop(self, grace: float = 5.0) -> ProcessResult:
        """Its stop signal (SIGTERM) to the whole tree, SIGKILL to who is left after ``grace`` seconds; also of a paused process.

        On return nobody of the tree is alive, also where the process had ended by itself. Takes at most ``grace`` + 5.1 seconds;
        raises StopFailed with the survivors after that. Cancelling the wait does not call the stop off.
        """
        return await self._core.stop(grace_of("grace", grace))

    async def kill(self) -> ProcessResult:
        """SIGKILL to the whole tree at once; otherwise as stop."""
        return await self._core.kill()

    # -- signals

    def pause(self) -> None:
        """SIGSTOP to its whole tree; nothing if it is paused. Raises CommunicationError when it has ended."""
        self._core.pause()

    def resume(self) -> None:
        """SIGCONT to its whole tree. Raises CommunicationError when it has ended."""
        self._core.resume()

    def send_signal(self, number: int | str) -> None:
        """A signal, by number or name, to the process itself. Raises CommunicationError when it has ended."""
        self._core.send_signal(signal_number("number", number))

    def interrupt(self) -> None:
        """SIGINT like Ctrl-C: to the foreground group of its terminal, or, without one, to its whole tree.

        Raises CommunicationError when it has ended.
        """
        self._core.interrupt()

    def resize(self, rows: int, columns: int) -> None:
        """The window size of its pseudo-terminal; nothing without one."""
        self._core.resize(whole("rows", rows, least=1, most=_LARGEST), whole("columns", columns, least=1, most=_LARGEST))

    # -- talking

    async def send(self, data: Data) -> None:
        """Write to its stdin; text in its encoding. Returns when the system has it all: a child that doesn't read holds it back.

        Raises CommunicationError if it was started without ``stdin=True``, closed its stdin, or has ended. When cancelled a part may
        have been written.
        """
        await self._talk.send(data)

    async def send_line(self, line: str) -> None:
        """send() with a newline behind it."""
        await self._talk.send_line(line)

    async def close_stdin(self) -> None:
        """End of input: what was sent is still delivered. Idempotent."""
        await self._talk.close_stdin()

    @property
    def stdout(self) -> OutputLog:
        """What it wrote to its standard output, by offset; with ``pty=True`` all that it wrote."""
        return self._core.stdout

    @property
    def stderr(self) -> OutputLog:
        """The same of its standard error."""
        return self._core.stderr

    def lines(self, stream: Stream | str = Stream.STDOUT, *, position: int = 0, longest: int = LONGEST_LINE) -> AsyncIterator[str]:
        """Every line of a stream, from the beginning (or a byte position), until its end. Several readers at once each see them all.

        Lines come whole, without their newline, in pieces if they are longer than ``longest`` bytes; what can't be decoded becomes U+FFFD,
        or what ``errors`` says. Of a line that only grows by carriage returns (a progress bar) each part comes as a line, 0.2 seconds late
        at most. Dropped output leaves a line saying so.
        """
        return self._talk.lines(stream, position=position, longest=longest)

    def blocks(self, stream: Stream | str = Stream.STDOUT, *, position: int = 0, longest: int = LONGEST_LINE) -> AsyncIterator[list[str]]:
        """The same lines, a list of those that have come at a time: several times as fast for a program that writes much."""
        return self._talk.blocks(stream, position=position, longest=longest)

    async def expect(
        self, pattern: str | re.Pattern[str], *, timeout: float | None = 30.0, stream: Stream | str | None = None
    ) -> re.Match[str]:
        r"""Wait until what it wrote matches a regular expression (``re.search``), and return the match.

        The text is taken as it comes, a prompt without a newline too, from where the match before has ended; ``stream=None`` looks at both
        streams, each by itself. A match can't be longer than 64 KiB. Raises ExpectTimeout after ``timeout`` seconds, and CommunicationError
        when the output ends without a match; both show the last lines. What was written stays to be read otherwise.
        """
        return await self._talk.expect(pattern, timeout=timeout, stream=stream)

    async def receive_output(self) -> str | None:
        """The next line of stdout that no earlier call has given; None at the end. Waits for it."""
        return await self._talk.receive(Stream.STDOUT)

    async def receive_error(self) -> str | None:
        """The same for stderr."""
        return await self._talk.receive(Stream.STDERR)

    def tail(self, lines: int = 10) -> str:
        """The last lines that it wrote, both streams in their order, as a terminal shows them."""
        return self._core.tail(lines)

    def __repr__(self) -> str:
        end = ""
        if self._core.result is not None:
            code = self._core.result.exit_code
            end = f" exit {code}" if self._core.result.signal is None else f" {signal_name(self._core.result.signal)}"
        paused, what = " paused" if self.paused else "", one_line(self.config.display)
        return f"<ManagedProcess {readable(self.name)}: {self.status}{end}{paused}, pid {self.pid}, {self.execution_time:.1f} s: {what}>"

    def _html_(self) -> Html:
        return Html("<div><code>{}</code><pre>{}</pre></div>").format(text(repr(self)), text(self.tail(), limit=4000))


def process_core(process: ManagedProcess) -> ProcessCore:
    """The machinery behind a process, for other rooms of nbprocs; a stand-in, for a process of another host say, is its own."""
    core: Any = process
    found: ProcessCore = getattr(core, "_core", core)
    return found


def face_of(core: ProcessCore) -> ManagedProcess:
    """What a user holds of it."""
    return core.face(ManagedProcess)
