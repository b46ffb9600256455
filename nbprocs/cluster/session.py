"""What one kernel has on one worker: its slots, its jobs, and the window through which it hears of them."""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nbprocs.cluster.run import Run, RunState, by_sigterm
from nbprocs.cluster.usage import Usage
from nbprocs.cluster.window import PullWindow
from nbprocs.cluster.wire import Order, order_from
from nbprocs.engine.container import available_memory
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import CommunicationError, StartupFailed
from nbprocs.guard import text_of
from nbprocs.scheduler.backend import Ended, Started

if TYPE_CHECKING:
    from nbprocs.cluster.bay import Bay

__all__ = ["Session"]

_REMEMBERED = 10_000  # ids of jobs that have ended: a message that comes late must not start one again
_MEANT = 0.3  # seconds
_GATE = 0.5  # seconds between looks at the free memory


class Session:
    """One kernel's side of a worker; on the worker's loop only."""

    def __init__(self, name: str, *, since: float, bay: Bay) -> None:
        self.name = name
        self.prefix: str = ""  # of the task ids; comes with the first jobs
        self.life: str = secrets.token_hex(8)
        self.since = since  # seconds since the epoch: when the kernel made it
        self.carriers: set[str] = set()
        self.slots: int = 0
        self.runs: dict[str, Run] = {}
        self.window: PullWindow = PullWindow(self._extra)
        self.usage: Usage = Usage()
        self.leaving: tuple[bool, str] | None = None
        self.going: tuple[bool, str] | None = None  # until it has been told
        self.on_close: list[Callable[[], object]] = []
        self._bay = bay
        self._told = 0  # slots
        self._waiting: list[tuple[int, int, Run]] = []
        self._arrivals = 0
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._stops: OrderedDict[str, float] = OrderedDict()  # for jobs that have not arrived
        self._empty: Waiters[None] = Waiters()
        self._timer: asyncio.TimerHandle | None = None

    # -- slots

    def set_slots(self, slots: int) -> None:
        """Run so many at a time."""
        self.slots = slots
        self.window.nudge()
        self._start_more()

    def _extra(self) -> list[tuple[Any, ...]]:
        items: list[tuple[Any, ...]] = []
        if self.going is not None:
            items.append(("going", *self.going))
            self.going = None
        if self._told != self.slots:
            self._told = self.slots
            items.append(("slots", self.slots))
        return items

    @property
    def live(self) -> int:
        """Jobs that run or wait to."""
        return sum(run.state in (RunState.WAITING, RunState.RUNNING) for run in self.runs.values())

    @property
    def running(self) -> list[Run]:
        """Jobs that run."""
        return [run for run in self.runs.values() if run.state is RunState.RUNNING]

    # -- what the kernel asks for

    def put(self, prefix: str, jobs: Iterable[Mapping[str, Any]]) -> list[str]:
        """Take jobs that are not known yet; the hashes of files that are still needed for them."""
        self.prefix = prefix or self.prefix
        missing: dict[str, None] = {}
        for data in jobs:
            order = order_from(data)
            missing |= dict.fromkeys(digest for _, digest, _, _ in order.files if not self._bay.shelf.has(digest))
            if order.id not in self.runs and order.id not in self._gone:
                self._take(order)
        self._start_more()
        return list(missing)

    def _take(self, order: Order) -> None:
        run = self.runs[order.id] = Run(order, nudge=self._news, settled=self._settled)
        if self.leaving is not None:
            run.refused()
            return
        if order.id in self._stops:
            run.stopped = self._stops.pop(order.id)
        self._arrivals += 1
        heapq.heappush(self._waiting, (-order.priority, self._arrivals, run))

    def stop(self, job_id: str, grace: float) -> None:
        """End a job, also one that will arrive only later. Idempotent."""
        run = self.runs.get(job_id)
        if run is None and job_id not in self._gone:
            _remember(self._stops, job_id, grace)
        elif run is not None and run.stopped is None:
            run.stopped = grace
            if run.state is RunState.WAITING:
                self._start_more()
            else:
                self._bay.cancel(self, run, grace)

    def signal(self, job_id: str, what: str) -> None:
        """pause, resume or interrupt. Raises CommunicationError for what does not run."""
        run = self.runs.get(job_id)
        if run is None or run.process is None:
            raise CommunicationError(f"{job_id} has no process here")
        {"pause": run.process.pause, "resume": run.process.resume, "interrupt": run.process.interrupt}[what]()

    # -- starting

    def _start_soon(self) -> None:
        if self._waiting:
            self._bay.home.loop.call_soon(self._start_more)

    def files_came(self) -> None:
        """A file is complete."""
        self._start_more()

    def _start_more(self) -> None:
        """Start what has a slot and all that it needs; what lacks something holds nobody else back."""
        left: list[tuple[int, int, Run]] = []
        room = self.slots - sum(run.state is RunState.RUNNING for run in self.runs.values())
        gated = False
        while self._waiting:
            item = heapq.heappop(self._waiting)
            run = item[2]
            if run.state is not RunState.WAITING:
                continue
            if run.stopped is not None:
                self._ended(run, Ended(stopped=True))
            elif room > 0 and self._ready(run):
                room -= 1
                self._begin(run)
            else:
                left.append(item)
                gated = gated or run.order.memory_gate > 0
                if room <= 0 and not any(waits.stopped is not None for _, _, waits in self._waiting):
                    break
        for item in left:
            heapq.heappush(self._waiting, item)
        if gated and room > 0 and self._timer is None:
            self._timer = self._bay.home.loop.call_later(_GATE, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._start_more()

    def _ready(self, run: Run) -> bool:
        order = run.order
        if order.memory_gate and available_memory() < order.memory_gate:
            return False
        return all(self._bay.shelf.has(digest) for _, digest, _, _ in order.files)

    def _begin(self, run: Run) -> None:
        run.state = RunState.RUNNING
        try:
            if run.order.files:
                run.scratch = self._bay.shelf.scratch(f"{self.name}{run.id}", run.order.files)
        except (OSError, ValueError) as error:
            self._ended(run, Ended(error=StartupFailed(f"the files of {run.order.name} could not be laid out: {text_of(error)}")))
            return
        self._bay.begin(self, run, lambda event: self._heard(run, event))

    def _heard(self, run: Run, event: Started | Ended) -> None:
        if isinstance(event, Started):
            run.started(event)
        elif run.cut_off(event):
            return  # the loop is being taken down under it: it still runs, and the kernel will see the worker go
        elif by_sigterm(event) and not event.stopped:
            # At a walltime everything gets SIGTERM at once: wait until it is seen whether it was meant for the worker.
            self._bay.home.loop.call_later(_MEANT, self._ended, run, event)
        else:
            self._ended(run, event)

    def _ended(self, run: Run, event: Ended) -> None:
        if run.state is RunState.ENDED:
            return
        run.ended(event)
        if run.scratch:
            self._bay.shelf.remove(run.scratch)
        if not self.live:
            self._empty.wake(None)
        self._start_soon()

    def _news(self, run: Run) -> None:
        self.window.nudge(run)

    # -- its end

    def announce(self, expected: bool, why: str) -> None:  # noqa: FBT001 - as it travels
        """Tell the kernel first of all that the worker will leave: if its process ends before it has told more, that was no crash."""
        self.going = (expected, why)
        self.window.nudge()

    async def end(self, *, grace: float, lost: tuple[bool, str] | None = None) -> None:
        """End every job; on return nothing of it runs."""
        self.leaving = lost or (False, "its kernel has gone")
        for run in list(self.runs.values()):
            run.lost = lost if run.state is RunState.RUNNING else run.lost
            if run.state is RunState.WAITING:
                run.refused()
            elif run.state is RunState.RUNNING:
                self.stop(run.id, grace)
        while self.live:
            await self._empty.wait()
        self.window.finish(("leaving", *self.leaving))

    def _settled(self, run: Run) -> None:
        """The kernel knows how it ended; its id stays known for a while."""
        self.runs.pop(run.id, None)
        _remember(self._gone, run.id, None)

    def close(self) -> None:
        """Nobody asks any more."""
        if self._timer is not None:
            self._timer.cancel()
        self.window.close()
        self.usage.close()
        for callback in self.on_close:
            callback()


def _remember(memory: OrderedDict[str, Any], key: str, value: Any) -> None:
    memory[key] = value
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
