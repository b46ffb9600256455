"""The progress bar of join()."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from nbprocs.scheduler.model import SchedulerStatus
from nbprocs.scheduler.runner import Runner

__all__ = ["Progress"]


class Progress:
    """A tqdm bar: ended of all, and the interval in which the end is expected."""

    INTERVAL = 0.25  # seconds between updates

    def __init__(self, runner: Runner, status: Callable[[], SchedulerStatus]) -> None:
        from tqdm.auto import tqdm  # noqa: PLC0415 - only for those who want a bar

        # Without its monitor thread, which outlives the bar: the updates here come by the clock already.
        kind: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
        self._runner = runner
        self._status = status
        self._before = self._ended()
        self._bar: Any = kind(total=runner.pending, unit="task", dynamic_ncols=True)

    def _ended(self) -> int:
        return sum(count for state, count in self._runner.queue.counts.items() if state.final)

    def update(self) -> None:
        """Show how it stands."""
        done = self._ended() - self._before
        self._bar.total = done + self._runner.pending
        status = self._status()
        told = [f"{status.running_tasks} running"]
        if status.failed:
            told.append(f"{status.failed} failed")
        if status.eta is not None:
            told.append(f"{status.eta} left")
        self._bar.set_postfix_str(", ".join(told), refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def __enter__(self) -> Self:
        self.update()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.update()
        self._bar.close()
