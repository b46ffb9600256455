"""The seam to a run history: a manager tells its recorder what starts and ends. Rooms above install what makes recorders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from nbprocs.model import EventKind

if TYPE_CHECKING:
    from nbprocs.processes.process import ManagedProcess

__all__ = ["RecordsRuns", "annotate", "kernel_runs", "recorder_for", "set_kernel_runs", "set_recorder_factory"]


class RecordsRuns(Protocol):
    """What a manager tells. Both are called on its home loop; neither raises nor waits for a disk."""

    def heard(self, kind: EventKind, process: ManagedProcess, error: BaseException | None) -> None:
        """Something happened to a process; OUTPUT is not told."""

    async def aclose(self) -> None:
        """The manager has closed. On return everything is on disk, or it was logged why not."""


Factory = Callable[[Any], RecordsRuns]
_installed: dict[str, Any] = {"factory": None, "kernel": None}  # one per interpreter


def set_recorder_factory(factory: Factory | None) -> None:
    """Install what makes a recorder of a ``runs=`` argument. One per interpreter."""
    _installed["factory"] = factory


def set_kernel_runs(runs: Any) -> None:
    """Where managers record that don't say; None: nowhere."""
    _installed["kernel"] = runs


def kernel_runs() -> Any:
    """What ``set_kernel_runs`` said last."""
    return _installed["kernel"]


def recorder_for(runs: Any) -> RecordsRuns | None:
    """The recorder of a manager: None and True stand for the kernel's history, False for none. Raises what the factory raises."""
    wanted = _installed["kernel"] if runs is None or runs is True else runs
    factory: Factory | None = _installed["factory"]
    return None if wanted is None or wanted is False or factory is None else factory(wanted)


def annotate(process: ManagedProcess, **about: Any) -> None:
    """Say more of a process than it knows, before its end, for its row: ``task``, ``queued`` (seconds since the epoch), ``parent``."""
    process.annotations = {**process.annotations, **about}
