"""What travels between a kernel and a worker: plain dicts, tuples, text, numbers and bytes, which msgpack can write.

::

    hello(session)                            → facts; with the session's life, which all calls but hello and end must name
    put(session, prefix, jobs)                → {"missing": [hash, …]}     a known id is ignored
    blob(session, hash, offset, data, last)   → {}                         a part of a file that a job is given
    stop(session, {id: grace})                → {}                         also for ids that have not arrived yet
    signal(session, id, what)                 → {} or {"error": text}
    pull(session, ack, wait, room)            → (number, items)            the same batch again until its number comes back as ack
    end(prefix, but, since)                   → how many sessions were ended: the fence
    bye(session)                              → {}                         all of this session ends
    usage(session)                            → {"trees": {id: {metric: value}}}        of each job's tree, as a monitor there would see it

Every operation may arrive twice, late or not at all: each is idempotent. Items of a pull: ``("slots", n)``, ``("started", id, pid,
created)``, ``("output", id, stream, offset, data)``, ``("ended", id, outcome)``, ``("going", expected, why)`` as soon as it is known
that the worker will leave, ``("leaving", expected, why)`` when nothing of the session runs there any more.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nbprocs.errors import CommunicationError, ProcessError, WorkerLost, error_from_result
from nbprocs.guard import text_of
from nbprocs.model import EndReason, ProcessResult, ProcessStatus
from nbprocs.pool.model import RemoteTraceback
from nbprocs.scheduler.backend import Ended, Job

__all__ = ["PROTOCOL", "Facts", "Order", "dump_error", "ended_from", "ended_to", "load_error", "lost", "order_from", "order_to"]

PROTOCOL = 1  # goes up when kernel and worker of two versions would misunderstand each other
_RESULT = ("process_id", "name", "command", "exit_code", "signal", "execution_time", "dropped_bytes", "peak_rss", "cpu_time")

Outcome = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a worker says of itself."""

    protocol: int
    version: str  # of nbprocs there
    host: str
    name: str
    pid: int
    cpus: int
    memory: int  # bytes that it may use; 0: not known
    gpus: int
    cwd: str
    timeout: float  # seconds after which it gives up a connection that is cut, and ends
    life: str = ""  # of the session there: one that was begun anew, under whatever address, knows nothing of what was told before


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job as it travels; a function is in ``call`` as bytes, its files are named by their contents."""

    id: str
    name: str
    command: str
    args: tuple[str, ...]
    working_dir: str | None
    env_vars: Mapping[str, str | None]
    timeout: float | None
    shell: bool
    named: bool
    priority: int
    resources: tuple[tuple[str, float], ...]
    memory_gate: int
    options: Mapping[str, Any] = field(default_factory=dict)  # of the process
    files: tuple[tuple[str, str, int, int], ...] = ()  # name there, hash, size, mode
    call: bytes | None = None


def order_to(job: Job, *, working_dir: str | None, files: tuple[tuple[str, str, int, int], ...], call: bytes | None) -> dict[str, Any]:
    """A job, ready to travel."""
    return {
        "id": job.id,
        "name": job.name,
        "command": "" if callable(job.command) else job.command,
        "args": () if call is not None else tuple(map(str, job.args)),
        "working_dir": working_dir,
        "env_vars": dict(job.env_vars),
        "timeout": job.timeout,
        "shell": job.shell,
        "named": job.named,
        "priority": job.priority,
        "resources": job.resources,
        "memory_gate": job.memory_gate,
        "options": dict(job.options),
        "files": files,
        "call": call,
    }


def order_from(data: Mapping[str, Any]) -> Order:
    """What has travelled."""
    fields = dict(data)
    fields["args"] = tuple(fields["args"])
    fields["resources"] = tuple((name, amount) for name, amount in fields["resources"])
    fields["files"] = tuple((name, digest, size, mode) for name, digest, size, mode in fields["files"])
    return Order(**fields)


# -- outcomes


def ended_to(ended: Ended) -> Outcome:
    """An end, ready to travel; the output goes its own way."""
    outcome: Outcome = {"stopped": ended.stopped}
    if isinstance(ended.result, ProcessResult):
        result = ended.result
        outcome["result"] = {name: getattr(result, name) for name in _RESULT}
        outcome["status"] = result.status.value
        outcome["reason"] = None if result.reason is None else result.reason.value
    elif isinstance(ended.result, bytes):
        outcome["value"] = ended.result  # of a function: pickled where it ran, and rebuilt only in the kernel
    if ended.error is not None and "result" not in outcome:
        outcome["error"] = dump_error(ended.error)
    return outcome


def ended_from(outcome: Outcome, *, stdout: Any, stderr: Any, dropped: int = 0) -> Ended:
    """An end, with the output that came before it."""
    stopped = bool(outcome.get("stopped"))
    if "result" in outcome:
        fields = dict(outcome["result"])
        fields["dropped_bytes"] += dropped
        reason = None if outcome["reason"] is None else EndReason(outcome["reason"])
        result = ProcessResult(**fields, status=ProcessStatus(outcome["status"]), reason=reason, stdout_source=stdout, stderr_source=stderr)
        return Ended(result=result, error=error_from_result(result), stopped=stopped and reason is not EndReason.TIMEOUT)
    if "error" in outcome:
        return Ended(error=load_error(outcome["error"]), stopped=stopped)
    if "value" in outcome:
        return _value(outcome["value"], stopped=stopped)
    return Ended(stopped=stopped)


def _value(data: bytes, *, stopped: bool) -> Ended:
    try:
        kind, payload = pickle.loads(data)  # noqa: S301 - from the worker that the user chose
        if kind == "value":
            return Ended(result=pickle.loads(payload), stopped=stopped)  # noqa: S301
    except Exception as cause:  # noqa: BLE001 - whatever the value's own code raises when it is rebuilt
        problem = CommunicationError(
            f"the result came, but can't be rebuilt here: {text_of(cause)}",
            hint="what a function returns must be importable in this kernel",
        )
        problem.__cause__ = cause
        return Ended(error=problem, stopped=stopped)
    return Ended(error=load_error(payload), stopped=stopped)


def dump_error(error: BaseException, shown: str = "") -> dict[str, Any]:
    """An error, ready to travel."""
    try:
        import cloudpickle  # noqa: PLC0415 - only for ends that have an error

        pickled = cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 - its text travels at least
        pickled = None
    return {"pickled": pickled, "text": text_of(error), "shown": shown}


def load_error(data: Mapping[str, Any]) -> BaseException:
    """The error itself, where it can be rebuilt here; else a CommunicationError with its text."""
    error: BaseException | None = None
    try:
        error = pickle.loads(data["pickled"]) if data["pickled"] is not None else None  # noqa: S301 - from the user's own worker
    except Exception:  # noqa: BLE001 - many exceptions pickle but can't be rebuilt: their text is kept
        error = None
    if not isinstance(error, Exception):
        error = CommunicationError(f"it raised {data['text']}", hint="the exception itself could not be sent; its traceback is the cause")
    if data["shown"]:
        error.__cause__ = RemoteTraceback(data["shown"])
    return error


def lost(name: str, *, worker: str, host: str, expected: bool, why: str) -> ProcessError:
    """The error of a job whose worker is gone."""
    hint = "it is run again without counting as a retry" if expected else "max_retries= runs it again, if it may run twice"
    return WorkerLost(f"the worker that ran {name} is gone: {why}", name=name, worker=worker, host=host, expected=expected, hint=hint)
