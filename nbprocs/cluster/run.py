"""One job on a worker: where it is, and what of it has been told to the kernel."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from nbprocs.cluster.wire import Order, ended_to
from nbprocs.engine.output import OutputLog
from nbprocs.errors import NotReady, StartupFailed
from nbprocs.model import ProcessResult
from nbprocs.scheduler.backend import Ended, Started

__all__ = ["Run", "RunState", "by_sigterm"]

_SIGTERM = 15


class RunState(StrEnum):
    """The life of a job on a worker."""

    WAITING = "waiting"  # for a slot, its files or memory
    RUNNING = "running"
    ENDED = "ended"  # nothing of it runs
    SETTLED = "settled"  # and the kernel knows


class Run:
    """A job on a worker; a window.Teller. Changed by its session only."""

    def __init__(self, order: Order, *, nudge: Callable[[Run], object], settled: Callable[[Run], object]) -> None:
        self.order = order
        self.state: RunState = RunState.WAITING
        self.process: Any = None  # a ManagedProcess, once it runs; None for a function
        self.stopped: float | None = None  # the grace with which the kernel has asked for its end
        self.lost: tuple[bool, str] | None = None  # it is ended because its worker leaves: (expected, why)
        self.scratch = ""
        self._nudge = nudge
        self._settled = settled
        self._started: Started | None = None
        self._told = False
        self._outcome: dict[str, Any] | None = None
        self._streams: list[tuple[str, OutputLog]] = []
        self._positions: dict[str, int] = {}

    @property
    def id(self) -> str:
        """Of the attempt."""
        return self.order.id

    # -- what happens to it

    def started(self, event: Started) -> None:
        """It runs."""
        self.state = RunState.RUNNING
        self._started = event
        self.process = event.process
        if event.process is not None:
            self._streams = [("stdout", self.process.stdout), ("stderr", self.process.stderr)]
            for name, log in self._streams:
                self._positions[name] = 0
                log.on_feed = self._fed
        self._nudge(self)

    def _fed(self, _size: int) -> None:
        self._nudge(self)

    def ended(self, event: Ended) -> None:
        """Nothing of it runs any more."""
        self.state = RunState.ENDED
        # What fails while its worker goes was told to end as well, by SIGTERM or by what it needed: that is no failure of its own.
        own = self.lost is None or (event.error is None and not event.stopped)
        self._outcome = ended_to(event) if own else {"lost": self.lost}
        self._nudge(self)

    def cut_off(self, event: Ended) -> bool:
        """Whether this is no end of its own: one that had started can't fail to start."""
        failed = isinstance(event.error, StartupFailed) and not isinstance(event.error, NotReady)
        return self._started is not None and failed and event.result is None and not event.stopped

    def refused(self) -> None:
        """It has not run, and another worker may have it."""
        self.state = RunState.ENDED
        self._outcome = {"back": True}
        self._nudge(self)

    # -- what is told of it

    def news(self) -> list[tuple[Any, ...]]:
        """That it has started, once."""
        if self._started is None or self._told:
            return []
        self._told = True
        created = None if self.process is None else self.process.created_at.timestamp()
        return [("started", self.id, self._started.pid, created)]

    def output(self, size: int) -> list[tuple[Any, ...]]:
        """The next bytes of both streams."""
        items: list[tuple[Any, ...]] = []
        for name, log in self._streams:
            position, data = log.read(self._positions[name], size)
            if data:
                self._positions[name] = position + len(data)
                items.append(("output", self.id, name, position, data))
        return items

    def end(self) -> tuple[Any, ...] | None:
        """How it ended, when all output has been told."""
        return None if self._outcome is None else ("ended", self.id, self._outcome)

    def settled(self) -> None:
        """The kernel knows all: let go of the output."""
        self.state = RunState.SETTLED
        for _, log in self._streams:
            log.on_feed = None
        self._streams, self.process, self._outcome = [], None, None
        self._settled(self)


def by_sigterm(event: Ended) -> bool:
    """Whether SIGTERM ended it, or it says so as shells do: by the exit status 143."""
    result = event.result
    return isinstance(result, ProcessResult) and (result.signal == _SIGTERM or result.exit_code == 128 + _SIGTERM)
