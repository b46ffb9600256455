"""The backend for callables: every job is a call in a worker of a pool."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from nbprocs.checks import like
from nbprocs.engine.container import available_memory
from nbprocs.engine.home import Home, Tasks
from nbprocs.errors import ExecutionTimeout, StartupFailed
from nbprocs.scheduler.backend import Capacity, Ended, Job, Report, Started

__all__ = ["Pool", "PoolBackend"]

_SLOTS = 4


class Pool(Protocol):
    """What is asked of a pool: ProcessPool has it, and so has anything like it."""

    def submit(self, fn: Any, /, *args: Any) -> Any:
        """Start a call; returns something to await, with ``cancel()``."""


class PoolBackend:
    """Runs jobs whose command is a function. The pool stays its owner's: ``aclose`` cancels the calls and leaves it open.

    >>> async with ProcessPool(PoolConfig(max_processes=1)) as pool:
    ...     async with TaskScheduler(pool=pool) as sch:
    ...         print(await sch.schedule(pow, 2, 10))
    1024
    """

    name = "pool"

    def __init__(self, pool: Pool) -> None:
        self._pool = like("pool", pool, ("submit",), "a ProcessPool, or anything else with submit()")
        self._running: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[str, Any] = {}
        self._cancelled: set[str] = set()

    def capacity(self) -> Capacity:
        """One call for each worker that the pool may have; four where it does not say."""
        return Capacity(slots=getattr(getattr(self._pool, "config", None), "max_processes", None) or _SLOTS)

    def free_memory(self) -> float:
        """Bytes that a new worker could have."""
        return available_memory()

    def bind(self, home: Home, changed: Callable[[], None]) -> None:  # noqa: ARG002 - a pool queues by itself
        """Remember the home."""
        self._tasks = Tasks(home)

    def start(self, job: Job, report: Report) -> None:
        """Hand the call to the pool."""
        self._running[job.id] = self._tasks.start(self._run(job, report), name=f"call {job.name}")

    async def _run(self, job: Job, report: Report) -> None:
        ended = Ended(error=StartupFailed(f"{job.name} could not be started"))
        try:
            ended = await self._outcome(job, report)
        except asyncio.CancelledError as error:
            ended = Ended(error=error, stopped=True)
            if job.id not in self._cancelled:
                raise
        except Exception as error:  # noqa: BLE001 - whatever the function raises is the task's outcome
            ended = Ended(error=error, stopped=job.id in self._cancelled)
        finally:
            self._running.pop(job.id, None)
            self._calls.pop(job.id, None)
            self._cancelled.discard(job.id)
            report(ended)

    async def _outcome(self, job: Job, report: Report) -> Ended:
        if not callable(job.command):
            hint = "TaskScheduler(pool=pool) runs functions in the pool and commands as processes"
            return Ended(error=StartupFailed(f"{job.name} is not a function: this backend runs functions only", hint=hint))
        if job.id in self._cancelled:
            return Ended(stopped=True)
        call = self._calls[job.id] = self._pool.submit(job.command, *job.args)
        report(Started(host="pool"))
        clock = asyncio.timeout(job.timeout)
        try:
            async with clock:
                return Ended(result=await call)
        except TimeoutError as error:
            if not clock.expired():
                raise
            call.cancel()
            message = f"{job.name} ran out of time after {job.timeout:g} s and was cancelled"
            raise ExecutionTimeout(message, hint="give it more time with timeout=") from error

    def cancel(self, job_id: str, *, grace: float) -> None:  # noqa: ARG002 - a pool kills at once
        """Cancel the call; the pool ends the worker if it has begun."""
        if job_id not in self._running or job_id in self._cancelled:
            return
        self._cancelled.add(job_id)
        call = self._calls.get(job_id)
        if call is not None:
            call.cancel()

    async def aclose(self) -> None:
        """Cancel all calls and wait for their ends."""
        for job_id in list(self._running):
            self.cancel(job_id, grace=0.0)
        if self._running:
            await asyncio.wait(set(self._running.values()))
        await self._tasks.aclose()
