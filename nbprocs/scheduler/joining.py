"""Who waits for the queue to be done, and when that will never be. Pure but for the waiting."""

from nbprocs.engine.waiting import Waiters
from nbprocs.errors import ProcessError, ResourceExhausted
from nbprocs.scheduler.errors import Halted
from nbprocs.scheduler.model import TaskState
from nbprocs.scheduler.queue import TaskQueue

__all__ = ["check_joiners"]


def check_joiners(waiters: Waiters[None], queue: TaskQueue, *, done: bool, quiet: bool, halted: str | None) -> None:
    """Wake them if nothing is left to do; let them raise if waiting longer is pointless.

    ``quiet``: nothing runs, nothing is about to start, and nobody holds the queue back who may let go of it by himself.
    """
    if not waiters:
        return
    if done:
        waiters.wake(None)
    elif quiet and (error := _stuck(queue, halted)) is not None:
        waiters.fail(error)


def _stuck(queue: TaskQueue, halted: str | None) -> ProcessError | None:
    """Why what is left never starts by itself; None if it may."""
    if halted:
        return Halted(f"the queue stopped: {halted}", hint="look at sch.frame(), then resume() or cancel the rest")
    counts = queue.counts
    if counts[TaskState.SCHEDULED] or counts[TaskState.HELD] or not counts[TaskState.QUEUED]:
        return None
    reasons = []
    for entry in queue:
        if entry.state is TaskState.QUEUED:
            reason = queue.impossible(entry)
            if reason is None:
                return None
            reasons.append(f"{entry.label} {reason}")
    hint = "set_resource() or set_group_limit() changes that at any time; or cancel them"
    return ResourceExhausted(f"{len(reasons)} tasks can never start: {reasons[0]}", hint=hint)
