"""One child of the operating system behind one small interface, and the choice between its two makes.

::

      Spec ──start()──►  Child  ──►  Listener.output(stream, data)     what it wrote, in chunks
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import psutil

from nbprocs.engine.table import Identity
from nbprocs.model import Stream

__all__ = [
    "DRAIN",
    "TOKEN",
    "Child",
    "Engine",
    "Exit",
    "Label",
    "Listener",
    "Spec",
    "child_environment",
    "engine_for",
    "pause_group",
    "resume_group",
    "signal_group",
    "start",
]

DRAIN = 0.1  # seconds that a pipe may stay open after the process has gone
TOKEN = "NBPROCS_TOKEN"  # noqa: S105 - not a secret: the mark by which the leash and stop() know our descendants

Engine = Literal["posix", "portable"]


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
    grace: float = 0.5  # seconds between stop_signal and SIGKILL when its time is up
    label: Label = field(default_factory=Label)

    @property
    def path(self) -> str | None:
        """The child's PATH."""
        env: Mapping[Any, str | bytes] = self.env
        found = env.get(b"PATH", env.get("PATH"))
        return None if found is None else os.fsdecode(found)

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

    @classmethod
    def from_code(cls, code: int, *, at: float, peak_rss: int | None = None, cpu_time: float | None = None) -> Exit:
        """From the convention of subprocess: a negative code is a signal."""
        return cls(exit_code=None if code < 0 else code, signal=-code if code < 0 else None, at=at, peak_rss=peak_rss, cpu_time=cpu_time)


class Listener(Protocol):
    """Who is told. All calls come on the home loop."""

    def output(self, stream: Stream, data: bytes) -> None:
        """The child wrote."""

    def exited(self, how: Exit) -> None:
        """The process is gone and reaped."""

    def drained(self) -> None:
        """The pipes are closed; the last call."""


class Child(Protocol):
    """A started process."""

    pid: int
    exit: Exit | None

    @property
    def identity(self) -> Identity:
        """(pid, start)."""

    @property
    def about(self) -> Identity:
        """The same with a start that may be a little early; costs nothing."""

    async def write(self, data: bytes) -> None:
        """Hand all of the data to the system. Raises BrokenPipeError when the child closed its end or is gone."""

    async def close_stdin(self) -> None:
        """End of input for the child. Idempotent."""

    def send_signal(self, number: int) -> None:
        """To the process itself, while its identity holds; ProcessLookupError after."""

    def resize(self, rows: int, columns: int) -> None:
        """Tell a pseudo-terminal its size; nothing without one."""


def child_environment(changes: Mapping[str, str | None], *, token: str) -> dict[str, str] | dict[bytes, bytes]:
    """The kernel's environment with the changes, unbuffered Python by default, and our token behind those of outer kernels."""
    outer = os.environ.get(TOKEN)
    wanted = {TOKEN: f"{outer}:{token}" if outer else token, **changes}
    if "PYTHONUNBUFFERED" not in os.environ:
        wanted = {"PYTHONUNBUFFERED": "1", **wanted}
    if not os.supports_bytes_environ:
        return {name: value for name, value in {**os.environ, **wanted}.items() if value is not None}
    # The mapping below os.environ holds bytes already: decoding and encoding every variable again would take a fifth of a start.
    env: dict[bytes, bytes] = dict(getattr(os.environ, "_data", os.environb))
    for name, value in wanted.items():
        if value is None:
            env.pop(os.fsencode(name), None)
        else:
            env[os.fsencode(name)] = os.fsencode(value)
    return env


def shell_argv(line: str) -> tuple[str, ...]:
    """What runs a shell line on this system."""
    return ("/bin/sh", "-c", line) if os.name == "posix" else ("cmd", "/c", line)


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


async def start(spec: Spec, *, engine: Engine, listener: Listener) -> Child:
    """Start a process on the running loop. Raises OSError as the system said it, or ValueError for what no system can run."""
    if engine == "posix":
        from nbprocs.engine.posix import PosixChild  # noqa: PLC0415 - not importable on Windows

        return PosixChild(spec, listener=listener)
    from nbprocs.engine.portable import start_portable  # noqa: PLC0415 - the other make is loaded only where it is used

    return await start_portable(spec, listener=listener)


def group_exists(leader: int) -> bool:
    """Whether anybody is in the process group that a child led."""
    if not hasattr(os, "killpg"):
        return False
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def signal_group(child: Child, number: int) -> None:
    """To everybody in the child's process group, as a terminal's Ctrl-C would. ProcessLookupError once the child is reaped."""
    if child.exit is not None:
        raise ProcessLookupError(f"process {child.pid} has ended")
    if hasattr(os, "killpg"):
        os.killpg(child.pid, number)  # until we reap the leader, the group's number can't be reused
    else:
        child.send_signal(number)


def pause_group(child: Child) -> None:
    """Stop the group where it stands."""
    if hasattr(signal, "SIGSTOP"):
        signal_group(child, signal.SIGSTOP)
    else:
        psutil.Process(child.pid).suspend()


def resume_group(child: Child) -> None:
    """Let a stopped group go on."""
    if hasattr(signal, "SIGCONT"):
        signal_group(child, signal.SIGCONT)
    else:
        psutil.Process(child.pid).resume()
