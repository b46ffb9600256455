"""Why a task does not run now, in a sentence."""

from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.model import TaskState
from nbprocs.scheduler.queue import TaskQueue
from nbprocs.scheduler.runner import Runner
from nbprocs.scheduler.times import to_datetime

__all__ = ["reason"]


def reason(entry: Entry, runner: Runner) -> str:
    """The first thing that is in its way."""
    state = entry.state
    if state.final:
        return f"it has ended: {state.value}"
    if entry.key in runner.missing:
        return f"it needs {', '.join(runner.missing[entry.key])}: secrets are not stored; set them in os.environ, then release() it"
    simple = {
        TaskState.RUNNING: "it is running",
        TaskState.HELD: "it is held; release() it",
        TaskState.BLOCKED: "it waits for " + ", ".join(other.label for other, _ in (entry.needs or {}).values()),
        TaskState.SCHEDULED: f"its time has not come: {to_datetime(entry.time):%Y-%m-%d %H:%M:%S}",
    }
    return simple.get(state) or _queued(entry, runner)


def _queued(entry: Entry, runner: Runner) -> str:
    impossible = runner.queue.impossible(entry)
    if impossible is not None:
        return f"it can't start: {impossible}"
    if runner.halted or runner.queue.paused:
        return f"the queue is {'halted: ' + runner.halted if runner.halted else 'paused'}; resume() it"
    if not runner.fence.up:
        return "it waits until nothing of a former kernel runs any more" + (f": {runner.fence.error}" if runner.fence.error else "")
    limited = _limited(entry, runner.queue)
    if limited is None and (missing := runner.room.waits_for()):
        return f"it waits for {missing}"
    return limited or "all slots are taken, or others come before it"


def _limited(entry: Entry, queue: TaskQueue) -> str | None:
    options = entry.options
    if options.group is not None and not (group := queue.group(options.group)).has_room:
        return f"its group {options.group!r} is {'paused' if group.paused else 'at its limit'}"
    for name, amount in options.resources:
        if not queue.resource(name).has(amount):
            return f"it waits for {amount:g} of {name!r}"
    if options.memory_gate and queue.gated():
        return f"it waits for {options.memory_gate / 2**30:.3g} GiB of free memory"
    return None
