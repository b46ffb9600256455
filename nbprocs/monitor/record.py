"""One command, recorded from its first moment to its last: the frame of its whole tree, as psrecord plots it for one process."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nbprocs.checks import LONGEST, number
from nbprocs.config import Command, Word
from nbprocs.engine.home import Tasks
from nbprocs.model import ProcessResult
from nbprocs.monitor.metrics import Scope
from nbprocs.monitor.monitor import ProcessMonitor
from nbprocs.monitor.plots import PANELS
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Recording", "record"]


class Recording:
    """An async context: starts the command on entry; at the end of the block waits for it (stops it if the block raised).

    ``process`` and, once it ended, ``result`` (with ``cpu_time``, and ``peak_rss`` where it is known, as the kernel accounted them) are
    the process itself; ``monitor`` is the private monitor, with all its methods.

    >>> async with record("sh", "-c", "exit 3") as run:
    ...     pass
    >>> run.result.exit_code, str(run.frame()["state"].iloc[-1])
    (3, 'failed')
    """

    def __init__(self, command: Command, args: tuple[Word, ...], *, interval: float, options: dict[str, Any]) -> None:
        self._command = command
        self._args = args
        self._options = options
        self._interval = interval
        self._manager: ProcessManager | None = None
        self.monitor: ProcessMonitor
        self.process: ManagedProcess

    @property
    def result(self) -> ProcessResult | None:
        """How it ended; None while it runs."""
        return self.process.result

    async def wait(self) -> ProcessResult:
        """Until the command ends."""
        return await self.process.wait()

    def frame(self, *, wide: str | None = None, scope: Scope | str | None = Scope.TREE) -> "pd.DataFrame":
        """The samples: ``ProcessMonitor.frame``."""
        return self.monitor.frame(wide=wide, scope=scope)

    def summary(self) -> "pd.DataFrame":
        """``ProcessMonitor.summary``."""
        return self.monitor.summary()

    def plot(self, *, title: str | None = None, metrics: Sequence[str] = PANELS) -> "Figure":
        """``ProcessMonitor.plot``."""
        return self.monitor.plot(title=title, metrics=metrics)

    async def __aenter__(self) -> Self:
        self._manager = ProcessManager()
        self.monitor = ProcessMonitor(interval=self._interval)
        self.monitor.watch(self._manager)
        try:
            self.process = await self._manager.spawn(self._command, *self._args, **self._options)
            await self.monitor.sample()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                await self.process.wait()
        finally:
            await self._close()

    async def _close(self) -> None:
        # In a task of its own: an interrupt of the cell must neither leave the command running nor the monitor.
        if self._manager is None:
            return
        manager, self._manager = self._manager, None
        closing = Tasks(manager_core(manager).home).start(_end(manager, self.monitor), name="end of a recording")
        await asyncio.wait({closing})


async def _end(manager: ProcessManager, monitor: ProcessMonitor) -> None:
    await manager.aclose()
    await monitor.aclose()


def record(command: Command, *args: Word, interval: float = 0.1, **options: Any) -> Recording:
    """Samples of one command from its start to its end, in an async context.

    ``async with record("pip", "install", "x") as run: ...``, then ``run.frame()``, ``run.plot()``, ``run.result``. ``interval`` is in
    seconds; the options are those of ``ProcessManager.spawn``. A failure of the command is in ``run.result``, not raised.

    >>> async with record("sleep", "0.3") as run:
    ...     pass
    >>> run.result.exit_code, len(run.frame()) >= 2
    (0, True)
    """
    number("interval", interval, above=0, most=LONGEST, what="a positive number of seconds")
    return Recording(command, args, interval=interval, options=options)
