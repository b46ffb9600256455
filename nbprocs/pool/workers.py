"""The workers of a pool: started, watched, replaced, let go. On the home loop only.

::

    start ─► STARTING ──READY──► IDLE ⇄ BUSY ──reason to leave──► LEAVING ──quit, or kill──► GONE ─► start another?
               └─BROKEN─► killed            └─ died ───────────────────────────────────────────┘

Every worker is a managed process, so it is in the manager's table and a child of the shim. What happens to a worker is told to the pool's
core by the calls of ``WorkersOwner``; the tasks are the core's business.
"""

import asyncio
import contextlib
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from nbprocs.engine.home import Tasks, log
from nbprocs.engine.table import read_row
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import CommunicationError, ProcessError, StartupFailed, StopFailed, error_from_os
from nbprocs.model import signal_name
from nbprocs.pool.connection import Connection
from nbprocs.pool.model import PoolConfig, WorkerState
from nbprocs.pool.outcome import crashed
from nbprocs.pool.scaling import START_COST, Brake, Health, hung, leave_reason, missing
from nbprocs.pool.worker import WorkerHandle
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess, process_core

__all__ = ["Demand", "Workers", "WorkersOwner"]

_GRACE = 2.0  # seconds for a worker that was asked to leave: exit handlers, then the tree is killed
_ANSWER = 0.05  # seconds for the answer to a ping, when there is reason to doubt
_GIVE_UP = 3  # deaths in a row, with nobody left, after which waiting tasks fail instead of waiting for ever
_SHORTEST = 0.02  # seconds between two rounds of maintenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What waits for workers."""

    queued: int
    mean: float | None  # seconds of a task; None if not known
    waiting: float  # seconds that the oldest has waited


class WorkersOwner(Protocol):
    """What the workers need to tell and ask."""

    def connect(self, worker: WorkerHandle) -> Connection:
        """The connection of a new worker."""

    def demand(self) -> Demand:
        """What waits for workers now."""

    def ready(self, worker: WorkerHandle) -> None:
        """It takes tasks."""

    def closed_to_tasks(self, worker: WorkerHandle) -> None:
        """It takes none any more."""

    def lost(self, worker: WorkerHandle, *, ours: bool) -> None:
        """Its process has ended; ``ours``: because we wanted it."""

    def tree_ended(self, worker: WorkerHandle) -> None:
        """Nothing of it is left."""

    def hopeless(self, error: BaseException) -> None:
        """No worker can be started."""


class Workers:
    """All workers of a pool."""

    def __init__(self, core: WorkersOwner, manager: ProcessManager, config: PoolConfig, *, name: str, tasks: Tasks) -> None:
        self._core = core
        self._home = manager_core(manager).home
        self._manager = manager
        self._tasks = tasks
        self.config = config
        self.name = name
        self.live: dict[str, WorkerHandle] = {}  # in the order of their start
        self.past: deque[WorkerHandle] = deque(maxlen=1000)
        self.size: int | None = None  # what resize() asked for; None: as many as the load needs
        self.created: int = 0
        self.destroyed: int = 0
        self.crashed: int = 0
        self.started: bool = False
        self.closing: bool = False
        self._brake = Brake()
        self._generation = 0
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._recheck: asyncio.TimerHandle | None = None
        self._gone: Waiters[None] = Waiters()
        self._endings = 0  # asyncio tasks that see to the end of a worker

    # -- starting

    @property
    def staying(self) -> list[WorkerHandle]:
        """Those that work, or will."""
        return [worker for worker in self.live.values() if worker.staying]

    @property
    def target(self) -> int:
        """The least number wanted."""
        return self.config.min_processes if self.size is None else self.size

    @property
    def limit(self) -> int:
        """How many there may be."""
        return self.size or self.config.most

    def begin(self) -> None:
        """Start the first ones. Idempotent."""
        if not self.started and not self.closing:
            self.started = True
            for _ in range(self.size or self.config.initial):
                self._start_one()
            self.maintain()

    def short(self) -> None:
        """Tasks wait that nobody can take."""
        if len(self.live) < (self.config.most if self.size is None else self.size):
            self.staff()

    def staff(self, *, waited: bool = False) -> None:
        """Start as many as are missing; ``waited``: the delay after deaths is over, one may be tried."""
        if self.closing or not self.started:
            return
        staying = self.staying
        demand = self._core.demand()
        count = missing(
            self.config,
            target=self.target,
            workers=len(staying),
            starting=sum(worker.state is WorkerState.STARTING for worker in staying),
            queued=demand.queued if self.size is None else 0,
            mean=demand.mean,
            waiting=demand.waiting,
        )
        most = self.config.most if self.size is None else max(self.size, len(staying))
        count = min(count, most - len(self.live))
        if count > 0 and self._brake.delay:
            if not waited:
                self._look_again(self._brake.delay)
                return
            count = 1
        for _ in range(count):
            self._start_one()
        if demand.queued and len(self.live) < most:
            self._look_again(max(START_COST, self._brake.delay))

    def _look_again(self, seconds: float) -> None:
        if self._recheck is None:
            self._recheck = self._home.loop.call_later(seconds, self._looked)

    def _looked(self) -> None:
        self._recheck = None
        self.staff(waited=True)

    def _start_one(self) -> None:
        self._count += 1
        worker = WorkerHandle(f"{self.name}-worker-{self._count}", generation=self._generation, budget=self.config.max_tasks_per_worker)
        worker.connect(self._core.connect(worker))
        self.live[worker.name] = worker
        self._tasks.start(self._start(worker), name=f"start {worker.name}")

    async def _start(self, worker: WorkerHandle) -> None:
        try:
            process = worker.process = await worker.connection.open(self._manager, worker.name)
        except (ProcessError, OSError) as error:
            worker.error = error_from_os(error, command=worker.name) if isinstance(error, OSError) else error
            self._strike(worker, "it could not be started")
            return
        except asyncio.CancelledError:
            self._strike(worker, "the pool closed")
            raise
        self.created += 1
        process.add_done_callback(lambda _: self._ended(worker))
        if self.closing or not worker.staying:  # decided while it was being started, when there was nobody to end yet
            self.end(worker, "the pool closed")
        try:
            async with asyncio.timeout(self.config.start_timeout):
                while worker.state is WorkerState.STARTING:
                    await worker.settled.wait()
        except TimeoutError:
            late = StartupFailed(
                f"worker {worker.name} was not ready within {self.config.start_timeout:g} s",
                name=worker.name,
                process_id=process.id,
                last_output=process.tail(),
                hint="its initialiser or preload takes too long; start_timeout= gives it more time",
            )
            self.unusable(worker, late)

    async def all_started(self) -> BaseException | None:
        """Wait until each of those that start now is ready or never will be; the first one's error, if any failed."""
        first = list(self.live.values())
        for worker in first:
            while worker.state is WorkerState.STARTING:
                await worker.settled.wait()
        return next((worker.error for worker in first if worker.error is not None), None)

    def arrived(self, worker: WorkerHandle) -> None:
        """It is ready."""
        if worker.state is not WorkerState.STARTING:
            return
        worker.ready_at = worker.idle_since = time.monotonic()
        worker.move(WorkerState.IDLE)
        self._brake.useful()
        worker.settled.wake(None)
        self._core.ready(worker)

    def unusable(self, worker: WorkerHandle, error: BaseException) -> None:
        """It will never be ready."""
        worker.error = error
        self.end(worker, f"it could not be set up: {error}")

    # -- working

    def worked(self, worker: WorkerHandle, count: int, now: float) -> None:
        """It answered so many tasks."""
        worker.done += count
        worker.idle_since = now
        worker.pinged_at = None
        self._brake.useful()
        if worker.window.sent:
            return
        worker.count()
        if worker.state is WorkerState.LEAVING:
            self.dismiss(worker)
        elif worker.window.budget is not None and worker.window.budget <= 0:
            self.leave(worker, f"ran {worker.done} tasks")

    # -- leaving

    def leave(self, worker: WorkerHandle, reason: str) -> None:
        """No new tasks; it goes when it is free."""
        if not worker.staying:
            return
        worker.reason = reason
        worker.move(WorkerState.LEAVING)
        worker.settled.wake(None)
        worker.window.open = False
        if worker.window.sent:
            worker.withdraw()
        else:
            self.dismiss(worker)
        self.staff()

    def dismiss(self, worker: WorkerHandle) -> None:
        """It is free: ask it to go, and see that it does, with all that its tasks left running."""
        if worker.asked or worker.gone:
            return
        worker.asked = True
        self._core.closed_to_tasks(worker)
        worker.connection.quit()
        self._see_to_end(worker, _GRACE)

    def end(self, worker: WorkerHandle, reason: str) -> None:
        """Kill its whole tree now. What it runs is judged when it is dead."""
        if worker.gone:
            return
        worker.reason = worker.reason or reason
        if worker.staying:
            worker.move(WorkerState.LEAVING)
            worker.settled.wake(None)
        worker.window.open = False
        self._see_to_end(worker, 0.0)

    def _see_to_end(self, worker: WorkerHandle, grace: float) -> None:
        if worker.process is not None:
            worker.endings += 1
            self._endings += 1
            self._tasks.start(self._until_gone(worker, worker.process, grace), name=f"end of {worker.name}")

    async def _until_gone(self, worker: WorkerHandle, process: ManagedProcess, grace: float) -> None:
        """Its whole tree. Only then do its tasks fail: what they had started must not run beside a second try."""
        try:
            if grace:
                await process_core(process).ended_within(grace)
            await process.kill()
        except StopFailed as error:
            log.error("%s", error)
        finally:
            worker.endings -= 1
            self._endings -= 1
            if worker.gone and not worker.endings:
                self._core.tree_ended(worker)
            self._gone.wake(None)

    def _ended(self, worker: WorkerHandle) -> None:
        """Its process has ended, whoever wanted that."""
        worker.connection.drain()
        process = worker.process
        ours = bool(worker.reason)
        if not ours and process is not None:
            worker.reason = _describe(process)
        if worker.ready_at is None and worker.error is None and process is not None:
            worker.error = crashed(f"worker {worker.name}", process.result, last_output=process.tail())
        self._core.lost(worker, ours=ours)
        self._strike(worker, worker.reason, crashed_itself=not ours)
        if not worker.endings:
            self._see_to_end(worker, 0.0)  # for what its tasks left running

    def _strike(self, worker: WorkerHandle, reason: str, *, crashed_itself: bool = False) -> None:
        """Off the list."""
        if worker.gone:
            return
        worker.reason = reason
        worker.move(WorkerState.GONE)
        worker.ended_at = time.monotonic()
        worker.close()
        self.live.pop(worker.name, None)
        self.past.append(worker)
        if worker.process is not None:
            self.destroyed += 1
            self.crashed += crashed_itself
        if not worker.done and (worker.error is not None or crashed_itself):
            result = worker.process.result if worker.process else None
            self._brake.died(worker.error, killed=crashed_itself and result is not None and result.signal is not None)
        worker.settled.wake(None)
        worker.pongs.wake(None)
        self._gone.wake(None)
        if self.closing:
            return
        if self._brake.deaths >= _GIVE_UP and not any(w.ready_at is not None for w in self.live.values()):
            self._nobody_comes()
        self._home.loop.call_soon(self.staff)  # not at once: the tasks of the dead are still being sorted

    def _nobody_comes(self) -> None:
        cause = self._brake.last_error
        if cause is None:
            return
        error = StartupFailed(
            f"no worker of {self.name} can be started: {getattr(cause, 'message', cause)}", name=self.name, hint="see the cause above"
        )
        error.__cause__ = cause
        self._core.hopeless(error)

    # -- health

    async def ping(self) -> float:
        """Seconds to the answer of a ready worker, an idle one if there is one."""
        ready = [worker for worker in self.live.values() if worker.usable]
        if not ready:
            raise CommunicationError("no worker is ready to answer a ping", hint="await pool.start(), or give it a task first")
        worker = min(ready, key=lambda worker: len(worker.window.sent))
        began = time.monotonic()
        worker.ping()
        await worker.pongs.wait()
        if worker.gone:
            raise CommunicationError(f"{worker.name} ended instead of answering a ping", name=worker.name)
        return time.monotonic() - began

    def suspect(self, worker: WorkerHandle) -> None:
        """It is overdue: look at it now instead of at the next round."""
        worker.connection.drain()  # the loop may have been late, and the answer be here already
        if worker.pinged_at is None:
            worker.ping()
        elif time.monotonic() - worker.pinged_at > _ANSWER:
            self.end(worker, "it does not answer")

    def wake(self, worker: WorkerHandle) -> None:
        """It does not begin what it was given: let it go on if somebody has stopped it, unless that was its owner by ``pause()``."""
        process = worker.process
        row = None if process is None or process.pid is None else read_row(process.pid)
        if process is not None and row is not None and row.state == "T" and not process.info.paused:
            log.warning("%s was stopped by somebody (pid %d) and a task waits for it: it is continued", worker.name, row.pid)
            with contextlib.suppress(ProcessError):  # it has ended just now
                process.send_signal(signal.SIGCONT)

    def maintain(self) -> None:
        """One round of health checks and dismissals; sets the timer for the next."""
        self._timer = None
        if self.closing:
            return
        config = self.config
        for worker in list(self.live.values()):
            if worker.usable:
                self._check(worker)
        self.staff()
        times = [config.health_check_interval, config.idle_timeout, config.max_worker_age]
        self._timer = self._home.loop.call_later(max(_SHORTEST, min(t for t in times if t is not None)), self.maintain)

    def _check(self, worker: WorkerHandle) -> None:
        worker.connection.drain()
        if not worker.usable:
            return
        now = time.monotonic()
        process, window = worker.process, worker.window
        row = None if process is None or process.pid is None else read_row(process.pid)
        if worker.pinged_at is not None and now - worker.pinged_at >= self.config.health_check_interval:
            health = Health(
                pinged=True,
                busy=bool(window.sent) and not window.withdrawing,
                stopped=row is not None and row.state in "Tt",
                paused=process is not None and process.info.paused,
            )
            if hung(health):
                self.end(worker, "it does not answer")
                return
            if health.paused:
                worker.pinged_at = now  # once it is resumed, it has an interval to answer in
        worker.memory = row.rss if row else 0
        worker.base_memory = worker.base_memory or worker.memory
        reason = leave_reason(
            self.config,
            workers=len(self.staying),
            target=self.target,
            idle_for=None if window.sent else now - worker.idle_since,
            age=now - (worker.ready_at or now),
            budget=None if window.sent else window.budget,
            growth=worker.memory - worker.base_memory,
            stale_code=worker.generation != self._generation,
        )
        if reason is not None:
            self.leave(worker, reason)
        elif worker.pinged_at is None:
            worker.ping()

    # -- size

    def resize(self, size: int | None) -> None:
        """So many workers; None: as many as the load needs."""
        if self.closing:
            return
        self.size = size
        if size is not None:
            self.begin()
            staying = self.staying
            spare = len(staying) - size
            for worker in sorted(staying, key=lambda w: (bool(w.window.sent), -w.idle_since))[: max(0, spare)]:
                self.leave(worker, f"resized to {size}")
        self.staff()

    def renew(self) -> None:
        """Replace all workers, each when it is free."""
        self._generation += 1
        for worker in self.staying:
            self.leave(worker, "its code is out of date")

    # -- end

    async def aclose(self) -> None:
        """End all workers: the free ones politely, the others at once. On return none is left, nor what their tasks started."""
        self.closing = True
        for timer in (self._timer, self._recheck):
            if timer is not None:
                timer.cancel()
        for worker in list(self.live.values()):
            if worker.process is None:
                continue
            if worker.state is WorkerState.IDLE:
                worker.reason = "the pool closed"
                worker.move(WorkerState.LEAVING)
                worker.window.open = False
                self.dismiss(worker)
            else:
                self.end(worker, "the pool closed")
        while self.live or self._endings:
            await self._gone.wait()
        await self._tasks.aclose()


def _describe(process: ManagedProcess) -> str:
    """How it ended, in a few words."""
    result = process.result
    if result is None:
        return "it is gone"
    return f"it died: {signal_name(result.signal)}" if result.signal else f"it died: exit status {result.exit_code}"
