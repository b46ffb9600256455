"""The exception tree. Each error says what happened, to which command, with the last output, and what to do next.

::

    ProcessError
     ├─ StartupFailed          the command never ran, or never became usable
     │   ├─ PermissionDenied       … because the system refused it (EACCES, EPERM, a directory)
     │   └─ NotReady               … it ran, but its readiness probe did not pass in time
     ├─ ProcessFailed          it ran, and ended with a non-zero exit status
     │   └─ ProcessCrashed         … it was ended by a signal that we did not send
     │       ├─ OutOfMemory            … sent by the system because memory ran out
     │       └─ WorkerLost             … or its machine went, and it with it
     ├─ ExecutionTimeout       it ran longer than allowed and was killed (also a TimeoutError)
     ├─ ResourceExhausted      a limit was reached: ours (max_concurrent) or the system's (descriptors, processes, memory)
     ├─ CommunicationError     talking to a live or just-ended process failed: closed stdin, broken frame
     │   └─ ExpectTimeout          … expect() waited in vain (also a TimeoutError)
     ├─ Unhealthy              it runs, but an alert or its liveness probe says that it is not well
     ├─ StopFailed             after SIGKILL and its deadline somebody of the tree is still there
     ├─ RestartsExhausted      a supervisor gave up: FATAL
     ├─ NameInUse              a live process has that name
     ├─ UnknownProcess         no such id or name (also a KeyError)
     └─ Closed                 the manager, pool or scheduler was closed

All of them pickle, keep their fields, and show masked commands only.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from nbprocs.guard import ShownClearly
from nbprocs.model import EndReason, ProcessResult, signal_name
from nbprocs.redact import readable
from nbprocs.terminal import tail_text

__all__ = [
    "Closed",
    "CommunicationError",
    "ExecutionTimeout",
    "ExpectTimeout",
    "NameInUse",
    "NotReady",
    "OutOfMemory",
    "PermissionDenied",
    "ProcessCrashed",
    "ProcessError",
    "ProcessFailed",
    "ResourceExhausted",
    "RestartsExhausted",
    "StartupFailed",
    "StopFailed",
    "Unhealthy",
    "UnknownProcess",
    "WorkerLost",
    "error_from_os",
    "error_from_result",
    "last_output",
    "tail_text",
]


_HISTORY_SHOWN = 10  # lines of a history in the text of an error


class ProcessError(ShownClearly, Exception):
    """Base of all errors of nbprocs.

    ``message`` says what happened, ``hint`` what to do next; the other fields are evidence and may be None. ``result`` is there where a
    process has ended, with ``stdout`` and ``stderr``.

    >>> print(ProcessError("web did not answer", command="serve 8000", attempts=3, hint="look at its log"))
    web did not answer
      command: serve 8000
      attempts: 3
      → look at its log
    """

    def __init__(
        self,
        message: str,
        *,
        process_id: str | None = None,
        name: str | None = None,
        command: str | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        last_output: str = "",
        attempts: int = 1,
        hint: str = "",
    ) -> None:
        """Keep every field; the text is made when it is asked for."""
        super().__init__(message)
        self.message = message
        self.process_id = process_id
        self.name = name
        self.command = command
        self.exit_code = exit_code
        self.signal = signal
        self.last_output = last_output
        self.attempts = attempts
        self.hint = hint
        self.result: ProcessResult | None = None

    @property
    def stdout(self) -> bytes:
        """All that it wrote to its standard output; empty where no process has ended."""
        return b"" if self.result is None else self.result.stdout

    @property
    def stderr(self) -> bytes:
        """The same of its standard error."""
        return b"" if self.result is None else self.result.stderr

    def __str__(self) -> str:
        """What happened, to which command, the last output, what to do."""
        lines = [self.message]
        if self.command and self.command not in self.message:
            lines.append(f"  command: {self.command}")
        if self.attempts > 1:
            lines.append(f"  attempts: {self.attempts}")
        if self.last_output:
            lines.append("  last output:")
            lines += [f"    {line}" for line in self.last_output.splitlines()]
        if self.hint:
            lines.append(f"  → {self.hint}")
        return readable("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields across pickling: the constructor's keywords would be lost otherwise."""
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[ProcessError], args: tuple[Any, ...], state: dict[str, Any]) -> ProcessError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class StartupFailed(ProcessError):
    """The command never ran. Nothing was left behind.

    >>> issubclass(PermissionDenied, StartupFailed) and issubclass(NotReady, StartupFailed)
    True
    """


class PermissionDenied(StartupFailed):
    """The system refused to run it: not executable, a directory, no right.

    >>> error_from_os(OSError(errno.EACCES, "denied"), command="./run.sh").hint
    'it is not executable; `chmod +x` it, or run it by its interpreter (for example python script.py)'
    """


class NotReady(StartupFailed):
    """It ran, but was not ready in time; it has been stopped.

    >>> NotReady("web was not ready within 30 s", name="web").name
    'web'
    """


class ProcessFailed(ProcessError):
    """It ran and ended with a non-zero exit status; ``reason`` tells an end that was not its own.

    >>> ProcessFailed("job failed with exit status 3", exit_code=3).exit_code
    3
    """

    reason: EndReason | None = None

    @property
    def stopped(self) -> bool:
        """Whether its owner asked for its end; nobody should start such a process again by itself."""
        return self.reason is not None and self.reason.stopped


class ProcessCrashed(ProcessFailed):
    """A signal that we did not send ended it.

    >>> isinstance(ProcessCrashed("job was ended by SIGSEGV", signal=11), ProcessFailed)
    True
    """


class OutOfMemory(ProcessCrashed):
    """The system killed it because memory ran out.

    >>> isinstance(OutOfMemory("job was killed by the system", signal=9), ProcessCrashed)
    True
    """


class WorkerLost(ProcessCrashed):
    """The worker of a cluster that ran it is gone, and nothing of the task runs any more.

    ``expected`` tells a worker that was taken away on purpose (scaled down, retired, preempted, at its walltime): a scheduler then runs
    the task again without counting it as a retry.

    >>> WorkerLost("the worker of job is gone", worker="tcp://10.0.0.7:4711", host="node7", expected=True).reason.value
    'worker taken away'
    """

    worker: str
    host: str
    expected: bool
    reason: EndReason | None

    def __init__(self, message: str, *, worker: str = "", host: str = "", expected: bool = False, **fields: Any) -> None:
        """Keep which worker it was, beside the fields of every error."""
        super().__init__(message, **fields)
        self.worker = worker
        self.host = host
        self.expected = expected
        self.reason = EndReason.WORKER_TAKEN_AWAY if expected else EndReason.WORKER_LOST


class ExecutionTimeout(ProcessError, TimeoutError):
    """It ran longer than allowed; its whole tree has been killed.

    >>> isinstance(ExecutionTimeout("job ran out of time"), TimeoutError)
    True
    """


class ResourceExhausted(ProcessError):
    """A limit of ours or of the system is reached; nothing was started.

    >>> type(error_from_os(OSError(errno.EMFILE, "too many"), command="serve")).__name__
    'ResourceExhausted'
    """


class CommunicationError(ProcessError):
    """Bytes could not be exchanged with the process.

    >>> str(CommunicationError("web has no stdin; start it with stdin=True"))
    'web has no stdin; start it with stdin=True'
    """


class ExpectTimeout(CommunicationError, TimeoutError):
    """What was expected of its output did not come in time; it goes on.

    >>> isinstance(ExpectTimeout("web wrote nothing that matches 'ready' within 5 s"), TimeoutError)
    True
    """


class Unhealthy(ProcessError):
    """It still runs, but an alert lasts or its liveness probe fails.

    >>> Unhealthy("web is not alive: its probe failed 3 times in a row", name="web").name
    'web'
    """


class StopFailed(ProcessError):
    """Somebody of the tree survived SIGKILL for longer than the deadline; ``survivors`` lists (pid, name).

    >>> StopFailed("two processes are left").survivors
    ()
    """

    survivors: tuple[tuple[int, str], ...] = ()


class RestartsExhausted(ProcessError):
    """The supervisor gave up; ``history`` holds a line for each life and each wait, the last 50 of them.

    >>> RestartsExhausted("web was given up: 5 restarts within 60 s", attempts=6).attempts
    6
    """

    history: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As the others, with the end of the history."""
        return "\n".join([super().__str__(), *(f"  {line}" for line in self.history[-_HISTORY_SHOWN:])])


class NameInUse(ProcessError):
    """A live process has the name; names of live processes are unique.

    >>> NameInUse("a live process is called 'web' already", name="web").name
    'web'
    """


class UnknownProcess(ProcessError, KeyError):
    """No process with that id or name, live or in the history.

    >>> isinstance(UnknownProcess("no process with the id or name 'wep'"), KeyError)
    True
    """

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return ProcessError.__str__(self)


class Closed(ProcessError):
    """The object was closed and starts nothing any more.

    >>> str(Closed("this manager is closed"))
    'this manager is closed'
    """


_SHELL_SIGNAL = 128  # what a shell adds to the number of the signal that ended its command

_EXHAUSTED = {
    errno.EMFILE: "this kernel has no file descriptors left; close what is not needed, or raise `ulimit -n` before starting Jupyter",
    errno.ENFILE: "the system has no file descriptors left",
    errno.EAGAIN: "no more processes are allowed; wait for some to end, set max_concurrent, or raise `ulimit -u`",
    errno.ENOMEM: "no memory left to start a process; free some, or restart the kernel",
}
_DENIED = {
    errno.EACCES: "it is not executable; `chmod +x` it, or run it by its interpreter (for example python script.py)",
    errno.EPERM: "the system forbids it",
    errno.EISDIR: "it is a directory; name a program inside it",
}
_FAILED = {
    errno.ENOENT: "no such program; check the spelling and PATH, or give the full path",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ENOEXEC: "it is not a program this system can run; start a script with #!, or run it by its interpreter",
    errno.E2BIG: "the arguments and the environment are too long together; pass the data by a file or by stdin",
    errno.ENAMETOOLONG: "the name is too long for a file",
    errno.ELOOP: "too many symbolic links",
    errno.ETXTBSY: "the program file is open for writing; close it first",
}


def error_from_os(error: OSError, *, command: str, **fields: Any) -> ProcessError:
    """The error of ours for a start that the system refused; the original becomes its cause when raised ``from`` it.

    >>> error_from_os(OSError(errno.ENOENT, "no such file"), command="pyhton").hint
    'no such program; check the spelling and PATH, or give the full path'
    """
    number = error.errno or 0
    for table, kind in ((_EXHAUSTED, ResourceExhausted), (_DENIED, PermissionDenied), (_FAILED, StartupFailed)):
        if number in table:
            return kind(f"could not start {command}: {os.strerror(number)}", command=command, hint=table[number], **fields)
    return StartupFailed(f"could not start {command}: {error.strerror or error}", command=command, **fields)


def last_output(result: ProcessResult) -> str:
    """The last lines that it wrote, both streams in their order, as a terminal shows them.

    >>> last_output(ProcessResult(process_id="1", name="job", command="job", exit_code=1, stderr_source=b"no such file"))
    'no such file'
    """
    return result.tail()


def error_from_result(result: ProcessResult, *, attempts: int = 1) -> ProcessError | None:
    """The error that a result stands for; None when it completed with exit status 0.

    The classes: timeout, out of memory, signal, stopped by us, non-zero exit, in this order.

    >>> from nbprocs.model import ProcessStatus
    >>> failed = ProcessResult(process_id="1", name="job", command="job", exit_code=3, status=ProcessStatus.FAILED)
    >>> type(error_from_result(failed)).__name__
    'ProcessFailed'
    """
    if result.ok:
        return None
    output = last_output(result)
    fields: dict[str, Any] = {
        "process_id": result.process_id,
        "name": result.name,
        "command": result.command,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "last_output": output,
        "attempts": attempts,
    }
    error = _classified(result, took=f"after {result.execution_time:.3g} s", fields=fields)
    error.result = result
    if isinstance(error, ProcessFailed):
        error.reason = result.reason
    return error


def _classified(result: ProcessResult, *, took: str, fields: dict[str, Any]) -> ProcessError:
    if result.reason is EndReason.TIMEOUT:
        hint = "give it more time with timeout=, or find out what it waits for with its last output"
        return ExecutionTimeout(f"{result.name} ran out of time {took} and was killed with its whole tree", hint=hint, **fields)
    if result.reason is EndReason.OUT_OF_MEMORY:
        hint = "lower its memory use, or run fewer at a time"
        return OutOfMemory(f"{result.name} was killed by the system {took}: out of memory", hint=hint, **fields)
    if result.reason is not None and result.reason.stopped:
        return ProcessFailed(f"{result.name} was stopped {took}", **fields)
    if result.signal is not None:
        hint = "a segmentation fault is a bug in the program; SIGKILL from outside is often the out-of-memory killer"
        return ProcessCrashed(f"{result.name} was ended by {signal_name(result.signal)} {took}", hint=hint, **fields)
    if result.exit_code is None:
        hint = (
            "the helper process that waits for the children was killed meanwhile; on other event loops, another library waited for it first"
        )
        return ProcessFailed(f"{result.name} ended {took}, and its exit status is not known", hint=hint, **fields)
    hint = "its last output should say why; run(…, check=False) returns the result instead of raising"
    if result.exit_code > _SHELL_SIGNAL:
        number = result.exit_code - _SHELL_SIGNAL
        hint = f"a shell says {result.exit_code} when {signal_name(number)} ended its command ({_SHELL_SIGNAL} + {number})"
    return ProcessFailed(f"{result.name} failed with exit status {result.exit_code} {took}", hint=hint, **fields)
