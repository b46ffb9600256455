"""Who waits for the queue to be done, and when that will never be."""

import asyncio
from typing import TYPE_CHECKING

from nbprocs.errors import Closed, ProcessError, ResourceExhausted
from nbprocs.scheduler.errors import Halted
from nbprocs.scheduler.model import TaskState

if TYPE_CHECKING:
    from nbprocs.scheduler.runner import Runner

__all__ = ["Joiners"]


class Joiners:
    """The futures of ``join()``."""

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner
        self._futures: list[asyncio.Future[None]] = []

    def add(self) -> "asyncio.Future[None]":
        """A future that is done when nothing is pending; failed when that can't come."""
        home = self._runner.home
        if home is None:
            raise Closed("the scheduler has no event loop", hint="use it where one runs, or make it with background=True")
        future: asyncio.Future[None] = home.loop.create_future()
        self._futures.append(future)
        self.check()
        return future

    def end(self, error: ProcessError | None = None) -> None:
        """Tell them all."""
        futures, self._futures = self._futures, []
        for future in futures:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def check(self) -> None:
        """Tell them if it is time; after each pump."""
        if not self._futures:
            return
        if self._runner.settled_all:
            self.end()
        elif (error := self._stuck()) is not None:
            self.end(error)

    def _stuck(self) -> ProcessError | None:
        """Why waiting longer is pointless, if it is."""
        runner, queue = self._runner, self._runner.queue
        counts = queue.counts
        if not runner.idle or queue.paused or runner.store_failed or not runner.fence.up:
            return None
        if runner.halted:
            return Halted(f"the queue stopped: {runner.halted}", hint="look at sch.frame(), then resume() or cancel the rest")
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
