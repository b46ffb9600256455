"""The seam to a run history: a manager tells its recorder what starts and ends. Rooms above install what makes recorders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nbprocs.model import EventKind
from nbprocs.seams import installed

if TYPE_CHECKING:
    from nbprocs.processes.process import ManagedProcess

__all__ = [
    "Historian",
    "KnowsRuns",
    "RecordsJobs",
    "RecordsRuns",
    "annotate",
    "job_recorder_for",
    "kernel_runs",
    "past_for",
    "recorder_for",
    "set_kernel_runs",
    "witness",
]


class RecordsRuns(Protocol):
    """What a manager tells. Both are called on its home loop; neither raises nor waits for a disk."""

    def heard(self, kind: EventKind, process: ManagedProcess, error: BaseException | None) -> None:
        """Something happened to a process; OUTPUT is not told."""

    async def aclose(self) -> None:
        """The manager has closed. On return everything is on disk, or it was logged why not."""


class RecordsJobs(Protocol):
    """What a scheduler tells whose backend has machines of its own; on its home loop."""

    def listening(self, job: Any, report: Callable[[Any], None]) -> Callable[[Any], None]:
        """A report for this job that notes what it passes on."""

    async def aclose(self) -> None:
        """The scheduler has closed. On return everything is on disk, or it was logged why not."""


Subscribe = Callable[[Callable[[Any], object]], Callable[[], None]]
Look = Callable[[str], tuple[tuple[str, ...], str, bool] | None]


class KnowsRuns(Protocol):
    """What a history says of a command. Answers are None where nothing is known; they come in a fraction of a millisecond."""

    def usual(self, argv: Sequence[str], *, shell: bool = False) -> Any:
        """``mean`` (seconds) and ``variance`` of its successful runs."""

    def seconds(self, argv: Sequence[str], share: float, *, shell: bool = False) -> float | None:
        """A quantile of its durations."""

    def memory(self, argv: Sequence[str], share: float, *, shell: bool = False) -> int | None:
        """A quantile of its peak memory, in bytes."""


class Historian(Protocol):
    """What the room above gives."""

    def make_recorder(self, runs: Any) -> RecordsRuns:
        """The recorder of one manager. Raises what is wrong with ``runs``."""

    def make_job_recorder(self, runs: Any) -> RecordsJobs:
        """The recorder of one scheduler's jobs. Raises what is wrong with ``runs``."""

    def make_past(self, runs: Any) -> KnowsRuns:
        """What is asked about commands."""

    def make_witness(self, runs: Any, subscribe: Subscribe, look: Look) -> Any:
        """What notes a scheduler's tasks, when they are scheduled."""


def set_kernel_runs(runs: Any) -> None:
    """Where managers record that don't say; None: nowhere."""
    installed["kernel"] = runs


def kernel_runs() -> Any:
    """What ``set_kernel_runs`` said last."""
    return installed["kernel"]


def _wanted(runs: Any) -> tuple[Historian | None, Any]:
    """None and True stand for the kernel's history, False for none."""
    wanted = installed["kernel"] if runs is None or runs is True else runs
    find: Callable[[], Historian] | None = installed["historian"]
    return (None, None) if wanted is None or wanted is False or find is None else (find(), wanted)


def recorder_for(runs: Any) -> RecordsRuns | None:
    """The recorder of a manager, if it is to have one. Raises what the historian raises."""
    historian, wanted = _wanted(runs)
    return None if historian is None else historian.make_recorder(wanted)


def job_recorder_for(runs: Any) -> RecordsJobs | None:
    """The recorder of a scheduler whose jobs are no processes of a manager here."""
    historian, wanted = _wanted(runs)
    return None if historian is None else historian.make_job_recorder(wanted)


def past_for(runs: Any) -> KnowsRuns | None:
    """What a scheduler learns from, if anything."""
    historian, wanted = _wanted(runs)
    return None if historian is None else historian.make_past(wanted)


def witness(runs: Any, subscribe: Subscribe, look: Look) -> Any:
    """Have it noted when tasks are scheduled, and what their input files are then; returns what notes it, None where nobody does.

    ``subscribe(callback)`` has it called with a scheduler's events; ``look(task_id)`` gives words, folder, and whether it is a shell line.
    """
    historian, wanted = _wanted(runs)
    return None if historian is None else historian.make_witness(wanted, subscribe, look)


def annotate(process: ManagedProcess, **about: Any) -> None:
    """Say more of a process than it knows, before its end, for its row: ``task``, ``queued`` (seconds since the epoch), ``parent``."""
    from nbprocs.processes.process import process_core  # noqa: PLC0415 - a manager needs this module, not that one

    core = process_core(process)
    core.annotations = {**core.annotations, **about}
