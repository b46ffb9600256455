"""Attempts of tasks that no manager here runs, on a cluster say: recorded by what their backend reports of them."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbprocs.engine.child import new_id
from nbprocs.errors import WorkerLost
from nbprocs.guard import guarded
from nbprocs.model import EventKind, ProcessConfig, ProcessResult, ProcessStatus
from nbprocs.runs.rows import KernelSide, Note
from nbprocs.runs.writer import RunWriter

__all__ = ["JobRecorder", "JobRun", "Kept"]


@dataclass(slots=True)
class Kept:
    """A stream that has ended, as notes read it."""

    data: bytes = b""

    @property
    def end(self) -> int:
        """How much of it there is."""
        return len(self.data)

    def tail(self, size: int) -> bytes:
        """The last bytes, at most ``size``."""
        return self.data[-size:]


@dataclass(slots=True, kw_only=True)
class JobRun:
    """One attempt, as a note's ``process``: what is known here of a process elsewhere."""

    id: str = field(default_factory=new_id)
    name: str
    config: ProcessConfig
    host: str = ""
    worker: str = ""
    pid: int | None = None
    status: ProcessStatus | str = ProcessStatus.RUNNING
    result: ProcessResult | None = None
    stdout: Kept = field(default_factory=Kept)
    stderr: Kept = field(default_factory=Kept)
    annotations: Mapping[str, Any] = field(default_factory=dict)

    def ended(self, result: ProcessResult | None, status: ProcessStatus | str) -> None:
        """Take its end."""
        self.result, self.status = result, status
        if result is not None:
            self.stdout, self.stderr = Kept(result.stdout), Kept(result.stderr)


class JobRecorder:
    """The recorder of one scheduler whose backend has machines of its own. On the scheduler's home loop."""

    def __init__(self, writer: RunWriter, keep: tuple[int, bool]) -> None:
        self._writer = writer
        self._keep = keep
        self._around = KernelSide()

    def listening(self, job: Any, report: Callable[[Any], None]) -> Callable[[Any], None]:
        """The report of a job that notes what it passes on: the start, the end, or that it never started."""
        if not isinstance(job.command, str):
            return report
        seen: list[JobRun] = []

        def heard(event: Any) -> None:
            with guarded(f"recording the run of {job.name}"):
                if hasattr(event, "worker"):
                    seen.append(self._started(job, event))
                else:
                    self._ended(seen[0] if seen else self._run(job), event, started=bool(seen))
            report(event)

        return heard

    @staticmethod
    def _run(job: Any) -> JobRun:
        config = ProcessConfig(
            command=job.command, args=job.args, working_dir=job.working_dir or job.folder, env_vars=job.env_vars, shell=job.shell,
            timeout=job.timeout, **job.options,
        )  # fmt: skip
        return JobRun(name=job.name, config=config)

    def _note(self, kind: EventKind, run: JobRun, error: BaseException | None = None) -> None:
        folder = run.config.working_dir or os.path.curdir
        self._writer.put(Note(kind, run, time.time(), self._keep, folder, self._around.environ(), None, error))

    def _started(self, job: Any, event: Any) -> JobRun:
        run = self._run(job)
        run.host, run.worker, run.pid = event.host, event.worker, event.pid
        self._note(EventKind.STARTED, run)
        return run

    def _ended(self, run: JobRun, event: Any, *, started: bool) -> None:
        told = (event.result, getattr(event.error, "result", None))
        result = next((one for one in told if isinstance(one, ProcessResult)), None)
        status: ProcessStatus | str = ProcessStatus.FAILED if event.error is not None else ProcessStatus.COMPLETED
        if isinstance(event.error, WorkerLost):
            status = "lost"
        elif result is not None:
            status = result.status
        elif event.stopped:
            status = ProcessStatus.TERMINATED
        run.ended(result, status)
        if started or not event.stopped:  # what was cancelled before it ran is no run
            self._note(EventKind.EXITED if started else EventKind.FAILED, run, event.error)

    async def aclose(self) -> None:
        """The scheduler has closed. On return everything is on disk, or was refused by it for two seconds."""
        await self._writer.left()
