"""The local backend: every job is a process of a ProcessManager."""

import asyncio
import socket
from collections.abc import Callable

from nbprocs.checks import instance
from nbprocs.engine.container import available_memory, usable_cpus
from nbprocs.engine.home import Home, Tasks
from nbprocs.errors import NameInUse, ProcessError, StartupFailed, error_from_result
from nbprocs.model import EndReason, ProcessConfig
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess
from nbprocs.scheduler.backend import Capacity, Ended, Job, Report, Started
from nbprocs.scheduler.slots import GPU, Gpus
from nbprocs.scheduler.system import gpu_devices

__all__ = ["LocalBackend"]

_SLOTS = 4  # jobs at a time, at least: most wait for something else than a core
_TIMEOUT_GRACE = 0.5  # seconds between SIGTERM and SIGKILL for what is left of the tree of one that ran out of time


class LocalBackend:
    r"""Runs jobs as child processes. With a manager of yours it uses that one and leaves it open; else it has its own.

    >>> pm = ProcessManager()
    >>> sch = TaskScheduler(backend=LocalBackend(pm))
    >>> (await sch.schedule("echo", "hello")).text
    'hello\n'
    >>> await sch.aclose(); await pm.aclose()
    """

    name = "local"

    def __init__(self, manager: ProcessManager | None = None, *, runs: object = None) -> None:
        if manager is not None:
            instance("manager", manager, ProcessManager, "a ProcessManager or None")
        self._manager = manager
        self._runs = runs
        self._owned = manager is None
        self._host = socket.gethostname()
        self._running: dict[str, ManagedProcess | None] = {}
        self._cancelled: dict[str, float] = {}  # id -> grace
        self._jobs: set[asyncio.Task[None]] = set()
        self._detached: dict[str, asyncio.Task[None]] = {}  # go on when this closes
        self._adopting: set[str] = set()
        self._closing = False
        self._gpus = Gpus(gpu_devices())

    def capacity(self) -> Capacity:
        """Four jobs, or one a core if this kernel may use more; its GPUs."""
        return Capacity(slots=max(_SLOTS, usable_cpus()), resources={GPU: float(len(self._gpus.names))})

    def free_memory(self) -> float:
        """Bytes that a new process could have."""
        return available_memory()

    def bind(self, home: Home, changed: Callable[[], None]) -> None:  # noqa: ARG002 - this machine's capacity does not change
        """Remember the home."""
        self._tasks = Tasks(home)

    @property
    def manager(self) -> ProcessManager:
        """The manager in use; made on first use, on the home loop."""
        if self._manager is None:
            self._manager = ProcessManager(runs=self._runs)
        return self._manager

    def start(self, job: Job, report: Report) -> None:
        """Start the process."""
        self._begin(job, report)

    def adopt(self, job: Job, report: Report) -> None:
        """Take up the process that a former kernel started for this attempt."""
        self._adopting.add(job.id)
        self._begin(job, report)

    def _begin(self, job: Job, report: Report) -> None:
        self._running[job.id] = None
        task = self._tasks.start(self._run(job, report), name=f"job {job.name}")
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        if job.options.get("detach"):
            self._detached[job.id] = task

    async def _run(self, job: Job, report: Report) -> None:
        ended = Ended(error=StartupFailed(f"{job.name} could not be started", command=job.name))
        try:
            ended = await self._outcome(job, report)
        except ProcessError as error:
            ended = Ended(error=error, stopped=job.id in self._cancelled)
        except (TypeError, ValueError) as error:
            failed = StartupFailed(f"{job.name} could not be started: {error}")
            failed.__cause__ = error
            ended = Ended(error=failed)
        finally:
            self._running.pop(job.id, None)
            self._cancelled.pop(job.id, None)
            self._adopting.discard(job.id)
            self._gpus.give(job.id)
            if not (self._detached.pop(job.id, None) and self._closing):
                report(ended)

    async def _spawn(self, job: Job) -> ManagedProcess:
        assert isinstance(job.command, str)  # noqa: S101 - for the type checker
        detached = bool(job.options.get("detach"))
        config = ProcessConfig(
            command=job.command,
            args=job.args,
            working_dir=job.working_dir if job.working_dir is not None else job.folder,
            env_vars={**self._gpus.take(job.id, dict(job.resources).get(GPU, 0.0)), **job.env_vars},
            timeout=job.timeout,
            shell=job.shell,
            name=_detached_name(job) if detached else job.name if job.named else None,
            **job.options,
        )
        try:
            return await self.manager.spawn(config)
        except NameInUse:  # tasks may share a name, and with processes; live processes don't
            if detached:
                raise
            return await self.manager.spawn(config, name=None)

    async def _adopt(self, job: Job) -> ManagedProcess:
        self._gpus.take(job.id, dict(job.resources).get(GPU, 0.0))
        return await self.manager.adopt(_detached_name(job))

    async def _outcome(self, job: Job, report: Report) -> Ended:
        make = self._adopt if job.id in self._adopting else self._spawn
        if job.id in self._cancelled and job.id not in self._adopting:  # what is taken up runs, and is stopped once it is known
            return Ended(stopped=True)
        if callable(job.command):
            return Ended(error=StartupFailed(f"{job.name} is a function", hint="give the scheduler a pool for it: TaskScheduler(pool=…)"))
        process = await make(job)
        self._running[job.id] = process
        report(Started(pid=process.pid, host=self._host, process=process))
        if job.id in self._cancelled:
            self._stop(process, self._cancelled[job.id])
        result = await process.wait()
        if job.id in self._cancelled or result.reason is EndReason.TIMEOUT:
            # The process has gone; the rest of its tree may still be on its way. This returns when nobody of it is left.
            await process.stop(grace=self._cancelled.get(job.id, _TIMEOUT_GRACE))
        stopped = job.id in self._cancelled and result.reason is not EndReason.TIMEOUT
        return Ended(result=result, error=error_from_result(result), stopped=stopped)

    def cancel(self, job_id: str, *, grace: float) -> None:
        """Stop the process and its tree."""
        if job_id not in self._running or job_id in self._cancelled:
            return
        self._cancelled[job_id] = grace
        process = self._running[job_id]
        if process is not None:
            self._stop(process, grace)

    def _stop(self, process: ManagedProcess, grace: float) -> None:
        self._tasks.start(process.stop(grace=grace), name=f"cancel {process.name}")

    async def aclose(self) -> None:
        """Stop every job's tree, but for those that were started detached; close the manager if it is ours."""
        self._closing = True
        for job_id in list(self._running):
            if (task := self._detached.get(job_id)) is not None:
                task.cancel()
            else:
                self.cancel(job_id, grace=1.0)
        if self._jobs:
            await asyncio.wait(self._jobs)
        await self._tasks.aclose()
        if self._owned and self._manager is not None:
            await self._manager.aclose()
            self._manager = None


def _detached_name(job: Job) -> str:
    """The name that a later kernel finds the process by: the same for the same attempt of the same task."""
    return f"{job.task_id}.{job.attempt}"
