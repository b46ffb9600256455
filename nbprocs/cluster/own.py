"""A cluster of our own: a Dask scheduler and workers as processes of a ProcessManager, never on the kernel's loop.

A scheduler that lives on the kernel's loop takes every worker for dead when a cell computes for longer than its patience.
"""

import re
import sys
import tempfile

from nbprocs.engine.container import usable_cpus
from nbprocs.errors import ProcessError, StartupFailed
from nbprocs.model import Stream
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.readiness import LogLine

__all__ = ["OwnCluster"]

_AT = r"Scheduler at:\s+(\S+)"
_READY = r"Registered to:|Start worker at"
_PATIENCE = 30.0  # seconds for one of them to be ready


class OwnCluster:
    """Starts with the first use, on this machine only; ends with the kernel, whatever becomes of it."""

    def __init__(self, *, workers: int, threads: int | None) -> None:
        self.workers = workers
        self.threads: int = threads or max(1, usable_cpus() // workers)
        self.address: str = ""
        self._manager: ProcessManager | None = None
        self._scheduler: ManagedProcess | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> str:
        """Start what does not run; the scheduler's address. Takes a second or two. Raises StartupFailed."""
        if self._manager is None:
            self._manager = ProcessManager(history=10)
            self._folder = tempfile.TemporaryDirectory(prefix="nbprocs-dask-", ignore_cleanup_errors=True)
        if self._scheduler is None or not self._scheduler.status.live:
            await self._stop_workers()
            await self._start_scheduler()
        try:
            for number in range(self.workers):
                await self._start_worker(f"local-{number + 1}")
        except ProcessError as error:
            raise StartupFailed(f"a Dask worker could not be started: {error.message}", last_output=error.last_output) from error
        return self.address

    async def _start_scheduler(self) -> None:
        assert self._manager is not None  # noqa: S101 - start() has made it
        quiet = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0")
        try:
            self._scheduler = await self._manager.spawn(
                sys.executable, "-m", "distributed.cli.dask_scheduler", *quiet, name="dask-scheduler",
                ready=LogLine(_AT, stream=Stream.STDERR), ready_timeout=_PATIENCE,
            )  # fmt: skip
        except ProcessError as error:
            raise StartupFailed(f"a Dask scheduler could not be started: {error.message}", last_output=error.last_output) from error
        found = re.search(_AT, self._scheduler.stderr.getvalue().decode("utf-8", "replace"))
        self.address = found[1] if found else ""

    async def _start_worker(self, name: str) -> None:
        assert self._manager is not None  # noqa: S101 - start() has made it
        assert self._folder is not None  # noqa: S101 - as above
        if any(process.name == name and process.status.live for process in self._manager.processes()):
            return
        options = ("--nthreads", str(self.threads), "--no-nanny", "--no-dashboard", "--memory-limit", "0", "--host", "127.0.0.1")
        await self._manager.spawn(
            sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--name", name, *options,
            "--local-directory", self._folder.name, name=name, restart=True,
        )  # fmt: skip

    async def _stop_workers(self) -> None:
        assert self._manager is not None  # noqa: S101 - start() has made it
        for process in self._manager.processes():
            if process.status.live:
                await process.stop(grace=1.0)

    async def aclose(self) -> None:
        """End all of it. Idempotent."""
        if self._manager is not None:
            await self._manager.aclose(grace=0.3)
            self._manager = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
