"""One child of the operating system behind one small interface, and the choice between its two makes.

::

      Spec ──Launcher──►  Child  ──►  Listener.output(stream, data)     what it wrote, in chunks
                           │    ──►  Listener.exited(Exit)             the process is gone; pipes may still be open
                           │    ──►  Listener.drained()                nothing more will come; always after exited, bounded
                           ◄── write / close_stdin / send_signal

Exit is a fact about the process, not about its pipes: a grandchild may hold them for hours.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nbprocs.engine.shimlib.wire import Exited, Survivor
from nbprocs.engine.table import Identity
from nbprocs.model import Stream

if TYPE_CHECKING:
    from nbprocs.engine.tree import Root

__all__ = [
    "DRAIN",
    "ENGINES",
    "TIMEOUT_GRACE",
    "TOKEN",
    "Child",
    "Engine",
    "Exit",
    "Label",
    "Listener",
    "Spec",
    "Survivor",
    "child_environment",
    "engine_for",
    "new_id",
    "shell_argv",
]

TIMEOUT_GRACE = 0.5  # seconds between the stop signal and SIGKILL for a process that ran out of time
DRAIN = 0.1  # seconds that a pipe may stay open after the process has gone
TOKEN = "NBPROCS_TOKEN"  # noqa: S105 - not a secret: a hint at whose a descendant is, beside its inherited tag

Engine = Literal["posix", "portable"]
ENGINES = ("auto", "posix", "portable")  # what may be asked for


def new_id() -> str:
    """A random uuid (RFC 9562, version 4) as text: what ``str(uuid.uuid4())`` gives, for a third of its time and without that module."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What the shim says about a process in its status answer: it must be able to answer while the kernel is blocked."""

    id: str = ""
    name: str = ""
    command: str | None = None  # masked; None: the shim masks the argument vector itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to start, complete: the environment is the child's whole environment.

    A field that an engine can't honour makes ``start`` raise ValueError: nothing is ignored.
    """

    argv: tuple[str | bytes, ...]
    executable: str | bytes | None = None  # what is really run, where that is not argv[0]; searched along PATH like it
    env: Mapping[str, str] | Mapping[bytes, bytes]
    cwd: str | bytes | None = None
    stdin: bool | int = False  # False: /dev/null; True: a pipe for write(); a number: that descriptor
    stdout: int | None = None  # None: captured; a number: written to that descriptor
    stderr: int | None = None
    merge_stderr: bool = False  # stderr goes where stdout goes
    pty: bool = False
    inherit: tuple[int, ...] = ()
    umask: int | None = None
    nice: int | None = None  # added to the kernel's own niceness
    rlimits: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # resource.RLIMIT_… -> (soft, hard)
    user: str | int | None = None
    group: str | int | None = None
    extra_groups: tuple[str | int, ...] | None = None
    stop_signal: int = signal.SIGTERM
    stop_scope: Literal["tree", "leader"] = "tree"  # "leader": the rest of the tree is asked only after the grace
    timeout: float | None = None  # seconds; then the whole tree is ended
    grace: float = TIMEOUT_GRACE  # seconds between stop_signal and SIGKILL when its time is up
    token: str = ""  # what its descendants carry in their environment: kernel, manager and process, joined by dots
    label: Label = field(default_factory=Label)

    @property
    def path(self) -> str | None:
        """The child's PATH."""
        env: Mapping[Any, str | bytes] = self.env
        found = env.get(b"PATH", env.get("PATH"))
        return None if found is None else os.fsdecode(found)

    @property
    def whole_token(self) -> str:
        """The token behind those of outer kernels."""
        outer = os.environ.get(TOKEN)
        return f"{outer}:{self.token}" if outer and self.token else self.token

    @property
    def pipes_stdin(self) -> bool:
        """Whether its stdin is a pipe of ours."""
        return self.stdin is True

    def refuse(self, *names: str, why: str) -> None:
        """Raise ValueError if one of these fields says something else than its default."""
        for name in names:
            default = Spec.__dataclass_fields__[name].default
            value = getattr(self, name)
            if value != default and value not in ((), {}):
                msg = f"{name}={value!r}: {why}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. Both numbers are None when somebody else reaped it."""

    exit_code: int | None
    signal: int | None
    at: float  # time.monotonic()
    peak_rss: int | None = None  # bytes
    cpu_time: float | None = None  # seconds
    read_bytes: int | None = None  # from disk; what was in the cache was not read
    written_bytes: int | None = None

    @classmethod
    def from_report(cls, report: Exited) -> Exit:
        """From what a shim reported."""
        if report.status is None:
            return cls(exit_code=None, signal=None, at=report.at)
        return cls.from_code(
            os.waitstatus_to_exitcode(report.status),
            at=report.at,
            peak_rss=report.peak,
            cpu_time=report.cpu,
            read_bytes=report.read,
            written_bytes=report.written,
        )

    @classmethod
    def from_code(cls, code: int, *, at: float, **usage: Any) -> Exit:
        """From the convention of subprocess: a negative code is a signal. ``usage`` are the fields that it does not tell."""
        return cls(exit_code=None if code < 0 else code, signal=-code if code < 0 else None, at=at, **usage)


class Listener(Protocol):
    """Who is told. All calls come on the home loop."""

    def output(self, stream: Stream, data: bytes) -> None:
        """The child wrote."""

    def exited(self, how: Exit) -> None:
        """The process is gone and reaped."""

    def drained(self) -> None:
        """The pipes are closed; the last call."""

    def ending(self, reason: str) -> None:
        """Its tree is being ended, though nobody here asked for it: its time is up ("timeout"), or somebody asked the shim ("stopped")."""

    def tree_ended(self, survivors: Sequence[Survivor]) -> None:
        """What ``ending`` told of is over; who survived SIGKILL."""

    def changed(self, *, paused: bool) -> None:
        """Somebody asked the shim to pause or resume it."""


class Child(Protocol):
    """A started process."""

    pid: int
    exit: Exit | None
    keeps_time: bool  # whether its timeout is carried out without our doing

    @property
    def identity(self) -> Identity:
        """(pid, start)."""

    @property
    def root(self) -> Root:
        """Its tree as the process table shows it."""

    def begin(self) -> None:
        """Its starter has taken it in: from here on its output and its exit are told. The launcher does it soon by itself; idempotent."""

    async def write(self, data: bytes) -> None:
        """Hand all of the data to the system. Raises BrokenPipeError when the child closed its end or is gone."""

    async def close_stdin(self) -> None:
        """End of input for the child. Idempotent."""

    def send_signal(self, number: int) -> None:
        """To the process itself; ProcessLookupError once its end is known."""

    def interrupt(self) -> None:
        """SIGINT as a terminal's Ctrl-C gives it; ProcessLookupError as above."""

    def pause(self) -> None:
        """Stop the tree where it stands; ProcessLookupError as above."""

    def resume(self) -> None:
        """Let it go on; ProcessLookupError as above."""

    def rename(self, name: str) -> None:
        """What it is called from now on, for all who ask its shim; ProcessLookupError as above."""

    async def end_tree(self, *, grace: float) -> Sequence[Survivor]:
        """The stop signal to its whole tree, SIGKILL to who is left after ``grace`` seconds; returns who survived that for 5 seconds."""

    def resize(self, rows: int, columns: int) -> None:
        """Tell a pseudo-terminal its size; nothing without one."""


class _Environments:
    """The last environment that was made: while nobody changes os.environ, a thousand starts share it."""

    def __init__(self) -> None:
        self._source: dict[Any, Any] = {}
        self._made: Mapping[Any, Any] | None = None

    def plain(self) -> Mapping[Any, Any]:
        # The mapping below os.environ holds bytes already: decoding and encoding every variable again would take a fifth of a start.
        source: dict[Any, Any] = getattr(os.environ, "_data", None) or dict(os.environ)
        if self._made is None or source != self._source:
            self._source = dict(source)
            unbuffered = "PYTHONUNBUFFERED" in os.environ
            self._made = self._source if unbuffered else {**self._source, **_encoded({"PYTHONUNBUFFERED": "1"})}
        return self._made


_environments = _Environments()


def _encoded(changes: Mapping[str, str]) -> dict[Any, Any]:
    return {os.fsencode(k): os.fsencode(v) for k, v in changes.items()} if os.supports_bytes_environ else dict(changes)


def child_environment(changes: Mapping[str, str | None]) -> Mapping[str, str] | Mapping[bytes, bytes]:
    """The kernel's environment with the changes, and unbuffered Python by default. Not to be changed: it may be shared."""
    plain = _environments.plain()
    if not changes:
        return plain
    env = dict(plain)
    encode: Any = os.fsencode if os.supports_bytes_environ else str
    for name, value in changes.items():
        if value is None:
            env.pop(encode(name), None)
        else:
            env[encode(name)] = encode(value)
    return env


def shell_argv(line: str, executable: str | None = None) -> tuple[str, ...]:
    """What runs a shell line on this system. Another shell goes by its own name: bash that is called sh keeps to POSIX, zsh acts as sh."""
    return (executable or "/bin/sh", "-c", line) if os.name == "posix" else ("cmd", "/c", line)


def engine_for(loop: asyncio.AbstractEventLoop) -> Engine | None:
    """Which make of child this loop can have; None if it can have none (a Windows selector loop), so that a host loop is needed."""
    if sys.platform != "win32" and isinstance(loop, asyncio.SelectorEventLoop):
        return "posix"
    base = asyncio.BaseEventLoop
    if isinstance(loop, base) and type(loop)._make_subprocess_transport is base._make_subprocess_transport:  # type: ignore[attr-defined]  # noqa: SLF001
        return None
    if type(loop).subprocess_exec is asyncio.AbstractEventLoop.subprocess_exec:
        return None
    return "portable"
