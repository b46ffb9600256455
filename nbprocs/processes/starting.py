"""What a start needs besides the process itself: its config from keywords, its input, and the error when the system refuses it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import io
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from nbprocs.checks import number, seconds
from nbprocs.engine.home import Tasks
from nbprocs.errors import (
    CommunicationError,
    NotReady,
    PermissionDenied,
    ProcessError,
    ResourceExhausted,
    StartupFailed,
    error_from_os,
    error_from_result,
)
from nbprocs.model import EndReason, ProcessConfig, ProcessResult
from nbprocs.processes.core import ProcessCore
from nbprocs.processes.talk import Talk
from nbprocs.redact import readable

if TYPE_CHECKING:
    from nbprocs.policy import RetryPolicy
    from nbprocs.processes.readiness import Probe, Ready

__all__ = ["PLAIN", "Launch", "become_ready", "before_start", "feed", "start_error", "tries"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a process was asked for beyond its config: what a restart needs."""

    ready: Ready | None = None
    ready_timeout: float = 30.0  # seconds

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what is no time."""
        number("ready_timeout", self.ready_timeout, above=0, what="a positive number of seconds")

    def probe(self) -> Probe | None:
        """What ``ready`` stands for. Raises TypeError for what can't be one."""
        if self.ready is None:
            return None
        from nbprocs.processes.readiness import as_probe  # noqa: PLC0415 - loaded where it is used: import must stay light

        return as_probe(self.ready)


PLAIN = Launch()


async def feed(process: ProcessCore, data: bytes) -> None:
    """Write its whole input and close it."""
    with contextlib.suppress(CommunicationError):  # it did not want all of it: its exit status says whether that is an error
        await Talk(process).write_input(data)
        await Talk(process).close_stdin()


Told = Callable[[ProcessResult], None] | None


async def tries(
    once: Callable[[], Awaitable[ProcessResult]], *, retry: RetryPolicy | None, check: bool, told: Told = None
) -> ProcessResult:
    """Run once, and again by the policy; the result, or the error of the last try if ``check`` says so; ``told`` of the last one's."""
    began = time.monotonic()
    for attempt in itertools.count(1):
        result = None
        try:
            result = await once()
            error = error_from_result(result)
        except ProcessError as start_error:
            error = start_error
        if error is None:
            break
        error.attempts = attempt
        delay = None if retry is None else retry.decide(error, attempt=attempt, elapsed=time.monotonic() - began)
        delay = seconds("what retry= decides", delay, zero=True)  # asyncio waits for ever for a NaN
        if delay is not None:
            await asyncio.sleep(delay)
            continue
        if told is not None and result is not None:
            told(result)
        if check or result is None:
            raise error
        return result
    assert result is not None  # noqa: S101 - for the type checker
    if told is not None:
        told(result)
    return result


_STEPS = {  # what a start may fail at besides the program itself, and what to do
    "umask": "it is a number from 0 to 0o777",
    "nice": "only root may make a process nicer to itself",
    "rlimits": "a hard limit can't be raised, and a soft one not above the hard one",
    "user": "only root may start a process as another user",
    "group": "only root may start a process as another group",
    "extra_groups": "only root may choose the groups of a process",
}


def start_error(config: ProcessConfig, cause: OSError | ValueError, process: ProcessCore) -> ProcessError:
    """Ours for what the system, or Python in front of it, said of a start."""
    fields: dict[str, Any] = {"process_id": process.id, "name": process.name}
    command = config.display or "''"
    if config.working_dir is not None and not os.path.isdir(config.working_dir):
        where = "is not a directory" if os.path.exists(config.working_dir) else "does not exist"
        return StartupFailed(
            f"could not start {command}: the working directory {config.working_dir} {where}",
            command=command,
            hint="create it first, or give another working_dir",
            **fields,
        )
    if not config.command.strip():
        return StartupFailed("could not start a process: the command is empty", command=command, hint="name a program", **fields)
    step = getattr(cause, "step", "program")
    if step in _STEPS:
        why = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause)
        return StartupFailed(f"could not start {command}: {step}= was refused: {why}", command=command, hint=_STEPS[step], **fields)
    if isinstance(cause, OSError):
        if isinstance(cause, PermissionError) and os.path.isdir(config.command):
            cause = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), config.command)
        error = error_from_os(cause, command=command, **fields)
        if step in {"shim", "stdin", "stdout", "stderr"} and not isinstance(
            error, ResourceExhausted
        ):  # what is said of programs would mislead
            kind = PermissionDenied if isinstance(cause, PermissionError) and step != "shim" else StartupFailed
            return kind(f"could not start {command}: {_of_step(step, cause)}", command=command, **fields)
        error.hint = _why(config, cause) or error.hint
        if cause.errno == errno.EACCES and not (config.user is config.group is None):
            error.hint = "user= or group= names an account that may not run it: the file and the folders above it must be open to it"
        return error
    hint = "remove the NUL character; no argument, name or variable can hold one" if "embedded null" in str(cause) else ""
    return StartupFailed(f"could not start {command}: {cause}", command=command, hint=hint, **fields)


def _of_step(step: str, cause: OSError) -> str:
    if step == "shim":
        return cause.strerror or str(cause)
    if isinstance(cause, io.UnsupportedOperation):
        return f"{step}= can't be opened: a file in memory has no descriptor to be given to a process"
    return f"{step}= can't be opened: {cause.filename or 'the file'}: {cause.strerror or cause}"


_SHELL_ONLY = {"alias", "cd", "eval", "exec", "export", "popd", "pushd", "set", "shopt", "source", "ulimit", "umask", "unset"}


def _why(config: ProcessConfig, cause: OSError) -> str:
    """What the system's word does not tell: an interpreter that is missing, a command line given as one word. Empty if nothing is known."""
    if cause.errno not in {errno.ENOENT, errno.ENAMETOOLONG}:
        return ""
    program = _file_of(config)
    if program is not None:
        interpreter = _interpreter(program)
        if interpreter.endswith("\r"):
            import shlex  # noqa: PLC0415 - `import nbprocs` stays light

            return f"its first line ends with a carriage return, as in files from Windows: sed -i 's/\\r$//' {shlex.quote(program)}"
        if interpreter:
            return f"the program is there, but its interpreter is not: its first line names {interpreter}"
        return "the program is there, but not the loader or library that it was built for"
    if config.executable is not None:
        return f"executable= names {readable(config.executable)}, and there is no such program"
    return _misspelt(config)


def _misspelt(config: ProcessConfig) -> str:
    """What a name that no program has looks like: a line of the shell, or several words."""
    import shutil  # noqa: PLC0415 - `import nbprocs` stays light

    words = config.command.split()
    if words[0] in _SHELL_ONLY:
        return f"{words[0]} is a command of the shell itself: pass shell=True, or see working_dir= and env_vars="
    if config.args:
        return ""
    if len(words) == 1 and words[0] != config.command and shutil.which(words[0]):
        return f"the name has blanks around it: spawn({words[0]!r})"
    if any(sign in config.command for sign in ("|", "&", ";", "$", "`", "*", "~", " <", " >")) or "=" in words[0]:
        return "it looks like a line of the shell: pass shell=True"
    if len(words) > 1 and shutil.which(words[0]):
        call = ", ".join(map(repr, words[:5])) + (", …" if len(words) > 5 else "")  # noqa: PLR2004 - enough to see how
        return f"no program has that name; words go one by one: spawn({call}), or pass shell=True for a line of the shell"
    return ""


def _file_of(config: ProcessConfig) -> str | None:
    """The file that the command names, if it is there."""
    path = config.executable or config.command
    if os.sep in path:
        found = os.path.join(config.working_dir or "", path)
        return found if os.path.isfile(found) else None
    import shutil  # noqa: PLC0415 - `import nbprocs` stays light

    return shutil.which(path, path=config.env_vars.get("PATH"))


def _interpreter(program: str) -> str:
    """What its ``#!`` line names; with a carriage return at the end if the line has one; empty without such a line."""
    with contextlib.suppress(OSError), open(program, "rb") as file:
        first = file.readline(256)
        if first.startswith(b"#!"):
            words = first[2:].rstrip(b"\n").split(None, 1)
            ending = "\r" if first.endswith(b"\r\n") else ""
            return readable(os.fsdecode(words[0])).removesuffix("\\x0d") + ending if words else ""
    return ""


async def before_start(probe: Probe) -> Probe:
    """The probe as it is to be asked of the start that is about to be made."""
    from nbprocs.processes import readiness  # noqa: PLC0415 - loaded with the probe

    return await readiness.before_start(probe)


async def become_ready(process: ProcessCore, probe: Probe, *, seconds: float, tasks: Tasks, grace: float) -> None:
    """Wait until its probe passes. If it does not in time, or the wait is cancelled, the process is stopped; raises NotReady."""
    from nbprocs.processes.readiness import until_ready  # noqa: PLC0415 - loaded with the probe

    why, cause = f"was not ready within {seconds:g} s", None
    stopping = None
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                process.ready = await until_ready(process, probe)
                why = "ended before it was ready"
    except CommunicationError as error:
        why, cause = f"was not ready: {error.message}", error.__cause__
    finally:
        if not process.ready:
            stopping = tasks.start(process.end(EndReason.NOT_READY, grace=grace), name=f"stop {process.name}")
    if stopping is not None:
        await asyncio.wait({stopping})
        raise _not_ready(process, why, getattr(probe, "why", str)()) from cause
    process.mark_ready()


def _not_ready(process: ProcessCore, why: str, hint: str) -> NotReady:
    result = process.result
    error = NotReady(
        f"{process.name} {why}",
        process_id=process.id,
        name=process.name,
        command=process.config.display,
        exit_code=result.exit_code if result else None,
        signal=result.signal if result else None,
        last_output=process.tail(),
        hint=hint or "its last lines say what it waits for; ready_timeout= gives it longer. It has been stopped",
    )
    error.result = result
    return error
