"""What a manager tells of its processes: notes for the writer's thread. On the loop it costs a few microseconds a process."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbprocs import checks
from nbprocs.model import EventKind
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.recording import Look, Subscribe
from nbprocs.runs.cells import Cells
from nbprocs.runs.jobs import JobRecorder
from nbprocs.runs.learned import Past
from nbprocs.runs.rows import KernelSide, Note, Scheduled
from nbprocs.runs.writer import RunWriter, writer_for

__all__ = ["ManagerRecorder", "RunsConfig", "make_job_recorder", "make_past", "make_recorder", "make_witness"]

_NOTED = frozenset({EventKind.STARTED, EventKind.ADOPTED, EventKind.EXITED, EventKind.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsConfig:
    """Where runs are recorded, and how much of their output. ``path`` is made absolute. Raises TypeError or ValueError for what is none.

    >>> RunsConfig(path="runs.db", output=True).tail
    4096
    """

    path: str | os.PathLike[str]
    tail: int = 4096  # bytes of the end of each stream that a row keeps
    output: bool = False  # True: the whole output, up to 16 MiB a stream, is kept too; Run.output() reads it

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        object.__setattr__(self, "path", checks.path("path", self.path))
        object.__setattr__(self, "tail", checks.whole("tail", self.tail, least=0))
        checks.flag("output", self.output)

    @classmethod
    def of(cls, runs: "RunsConfig | str | os.PathLike[str]") -> "RunsConfig":
        """A path stands for the defaults. Raises TypeError for anything else."""
        if isinstance(runs, cls):
            return runs
        if not isinstance(runs, (str, os.PathLike)):
            checks.refuse(TypeError, "runs", "a path or a RunsConfig", runs)
        return cls(path=checks.path("runs", runs))


class ManagerRecorder:
    """The recorder of one manager."""

    def __init__(self, config: RunsConfig) -> None:
        self._writer = writer_for(Path(config.path))
        self._keep = config.tail, config.output
        self._around = KernelSide()
        self._cells = Cells()
        self._open = True

    def heard(self, kind: EventKind, process: ManagedProcess, error: BaseException | None) -> None:
        """Note a start, a failed start, an adoption or an end."""
        if kind not in _NOTED or not self._open:
            return
        if kind is EventKind.EXITED:
            self._writer.put(Note(kind, process, time.time(), self._keep))
            return
        try:
            folder = os.getcwd()  # noqa: PTH109 - a Path would cost more than all the rest
        except OSError:  # it was deleted
            folder = ""
        self._writer.put(Note(kind, process, time.time(), self._keep, folder, self._around.environ(), self._cells.now, error))

    async def aclose(self) -> None:
        """Hear no more; on return everything is on disk, or was refused by it for two seconds. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._cells.stop()
        await self._writer.left()


def make_recorder(runs: "RunsConfig | str | os.PathLike[str]") -> ManagerRecorder:
    """See processes.recording."""
    return ManagerRecorder(RunsConfig.of(runs))


def make_job_recorder(runs: "RunsConfig | str | os.PathLike[str]") -> JobRecorder:
    """See processes.recording."""
    config = RunsConfig.of(runs)
    return JobRecorder(writer_for(Path(config.path)), (config.tail, config.output))


def make_past(runs: "RunsConfig | str | os.PathLike[str]") -> Past:
    """See processes.recording."""
    return Past(RunsConfig.of(runs).path)


def make_witness(runs: "RunsConfig | str | os.PathLike[str]", subscribe: Subscribe, look: Look) -> RunWriter:
    """See processes.recording. It holds the writer until the manager does, which is made for the first task that starts."""
    writer = writer_for(Path(RunsConfig.of(runs).path))
    held = [True]

    def heard(event: Any) -> None:
        if event.kind == "scheduled" and (found := look(event.task_id)) is not None:
            writer.put(Scheduled(event.task_id, *found, time.time()))
        elif held and event.kind in {"started", "closed"}:
            held.clear()
            writer.leave(lambda: None)

    subscribe(heard)
    return writer
