"""How tasks and their attempts ended. Pure."""

from dataclasses import dataclass, field
from typing import Any

from nbprocs.errors import ExecutionTimeout, ProcessError, WorkerLost
from nbprocs.model import ProcessResult
from nbprocs.scheduler.backend import Ended, Job, Started
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.errors import DependencyFailed, TaskCancelled, TaskInterrupted
from nbprocs.scheduler.model import Attempt, TaskState

__all__ = ["KERNEL_DIED", "RunningAttempt", "TaskOutcome", "attempt_of", "error_of", "job_of", "skip_reason"]

KERNEL_DIED = "the kernel died"  # the reason of an attempt that nobody saw end


@dataclass(slots=True)
class RunningAttempt:
    """An attempt under way."""

    id: str
    number: int
    started: float  # wall clock: the hand-over, then the start
    elapsed: float  # the same on the elapsed clock
    slot: int = 0
    units: dict[str, list[int]] = field(default_factory=dict)
    intent: str = ""  # why we end it: "cancelled", "halted", "closing"
    seen: Started | None = None
    adopted: bool = False  # started by a former kernel


@dataclass(slots=True)
class TaskOutcome:
    """What is known of a task that has at least one ended attempt, or that ended without one."""

    result: Any = None
    error: BaseException | None = None
    attempts: tuple[Attempt, ...] = ()
    first: float | None = None  # elapsed clock: when the first attempt of this run started
    root: Entry | None = None  # of a skipped one: the task that failed first
    base: float | None = None  # of a series: which of its times the run stands for, on the series' clock


def job_of(entry: Entry, run: RunningAttempt, *, task_id: str, timeout: float | None, env: dict[str, str | None]) -> Job:
    """What a backend is given to run. ``env`` tells its slot; what the task asked for goes before that."""
    options = entry.options
    config = {} if options.config is None else options.config.changed()
    config.pop("command", None)
    config.pop("notify", None)  # the task's end is told, not each attempt's
    return Job(
        id=run.id,
        task_id=task_id,
        attempt=run.number,
        name=entry.label,
        command=entry.command,
        args=entry.args,
        working_dir=config.pop("working_dir", None),
        folder=entry.folder,
        env_vars={**env, "NBPROCS_TASK_ID": task_id, "NBPROCS_ATTEMPT": str(run.number), **config.pop("env_vars", {})},
        timeout=timeout,
        shell=config.pop("shell", False),
        named=options.name is not None,
        priority=entry.priority,
        resources=options.resources,
        memory_gate=options.memory_gate,
        group=options.group,
        files=options.files,
        options=config,
    )


def attempt_of(entry: Entry, run: RunningAttempt, ended: Ended, *, task_id: str, wall: float, elapsed: float) -> Attempt:
    """The row of an attempt that has just ended."""
    result = ended.result if isinstance(ended.result, ProcessResult) else None
    error = ended.error if isinstance(ended.error, ProcessError) else None  # another one is the user's: nothing of it is asked
    if run.intent == KERNEL_DIED:
        outcome = "interrupted"
    elif run.intent and ended.stopped:
        outcome = "interrupted" if run.intent == "closing" else "cancelled"
    elif isinstance(ended.error, WorkerLost) and ended.error.expected:
        outcome = "interrupted"
    elif isinstance(ended.error, ExecutionTimeout):
        outcome = "timeout"
    else:
        outcome = "failed" if ended.error is not None else "succeeded"
    return Attempt(
        task_id=task_id,
        attempt=run.number,
        name=entry.label,
        command=entry.display,
        priority=entry.priority,
        group=entry.options.group,
        queued=entry.time,
        started=run.started if run.seen else None,
        ended=wall,
        outcome=outcome,
        exit_code=result.exit_code if result else error.exit_code if error else None,
        signal=result.signal if result else error.signal if error else None,
        retry=entry.retries,
        execution_time=result.execution_time if result else elapsed - run.elapsed,
        peak_rss=result.peak_rss if result else None,
        cpu_time=result.cpu_time if result else None,
        pid=run.seen.pid if run.seen else None,
        host=run.seen.host if run.seen else "",
        worker=run.seen.worker if run.seen else "",
        slot=run.slot,
        reason=(result.reason if result else None) or (run.intent or getattr(error, "reason", None)),
    )


def skip_reason(cause: Entry) -> tuple[str, Entry]:
    """Why a task that waited for this one will not run, and the task that failed first, be it further up."""
    outcome = cause.outcome
    root: Entry = outcome.root if outcome is not None and outcome.root is not None else cause
    how = "failed" if root.state is TaskState.FAILED else f"was {root.state}"
    return f"{root.label} {how}" + ("" if root is cause else f"; it waits for {cause.label}, which was skipped for that"), root


def error_of(entry: Entry, state: TaskState, why: str = "") -> ProcessError | None:
    """The error of a task that ended without an attempt of its own to blame."""
    if state is TaskState.CANCELLED:
        return TaskCancelled(f"{entry.label} was cancelled{why}", command=entry.display, attempts=max(1, entry.retries + 1))
    if state is TaskState.SKIPPED:
        hint = 'say after=[After(task, "any")] to run it however that task ends'
        return DependencyFailed(
            f"{entry.label} was skipped: {why or 'a task it depends on ended otherwise'}", command=entry.display, hint=hint
        )
    if state is TaskState.INTERRUPTED:
        hint = "look at what it left behind, then schedule it again; on_interrupted='retry' does that by itself"
        return TaskInterrupted(f"{entry.label} was running when its kernel died", command=entry.display, hint=hint)
    return None
