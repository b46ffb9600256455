"""The workers' side of a pool: hire them, watch them, replace them, let them go. On the home loop only.

::

    hire ─► STARTING ──READY──► in the dispatcher: IDLE ⇄ BUSY ──reason to leave──► LEAVING ──quit, or kill──► GONE ─► hire?
               └─BROKEN─► killed                └─ died ─► its claimed task fails, the others go back to the queue ──┘

Every worker is a managed process, so it is in the manager's table and a child of the shim.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from nbprocs.engine.home import Home, Tasks, log
from nbprocs.engine.table import read_row
from nbprocs.errors import Closed, CommunicationError, ProcessError, StartupFailed, StopFailed, error_from_os
from nbprocs.model import signal_name
from nbprocs.pool.desk import Desk
from nbprocs.pool.member import Member
from nbprocs.pool.model import PoolConfig, TaskState
from nbprocs.pool.outcome import crashed
from nbprocs.pool.python import Link, Listener
from nbprocs.pool.scaling import HIRE_COST, Brake, Health, hires, hung, leave_reason
from nbprocs.pool.task import Task
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess, process_core

__all__ = ["Crew"]

_FAREWELL = 2.0  # seconds for a worker that was asked to leave: exit handlers, then the tree is killed
_ANSWER = 0.05  # seconds for the answer to a ping, when there is reason to doubt
_GIVE_UP = 3  # deaths in a row, with nobody left, after which waiting tasks fail instead of waiting for ever
_SHORTEST = 0.02  # seconds between two rounds of maintenance

MakeLink = Callable[[Listener], Link]


class Crew:
    """All workers of a pool."""

    def __init__(self, manager: ProcessManager, desk: Desk, config: PoolConfig, *, name: str, tasks: Tasks, make_link: MakeLink) -> None:
        self.home: Home = manager_core(manager).home
        self.manager = manager
        self.desk = desk
        self.config = config
        self.name = name
        self.tasks = tasks
        self.make_link = make_link
        self.members: dict[str, Member] = {}
        self.past: deque[Member] = deque(maxlen=1000)
        self.brake = Brake()
        self.generation = 0
        self.size: int | None = None  # what resize() asked for; None: as many as the load needs
        self.created = self.destroyed = self.crashed = 0
        self.started = False
        self.closing = False
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._recheck: asyncio.TimerHandle | None = None

    # -- hiring

    @property
    def staying(self) -> list[Member]:
        """Those that work, or will."""
        return [member for member in self.members.values() if not member.leaving]

    @property
    def target(self) -> int:
        """The least number wanted."""
        return self.config.min_processes if self.size is None else self.size

    def begin(self) -> None:
        """Hire the first ones. Idempotent."""
        if not self.started and not self.closing:
            self.started = True
            for _ in range(self.size or self.config.initial):
                self._hire()
            self.maintain()

    def short_of_hands(self) -> None:
        """Tasks wait that nobody can take."""
        if len(self.members) < (self.config.most if self.size is None else self.size):
            self.staff()

    def staff(self) -> None:
        """Hire as many as are missing."""
        if self.closing or not self.started:
            return
        queue = self.desk.dispatcher.queue
        staying = self.staying
        first = next(iter(queue), None)
        count = hires(
            self.config,
            target=self.target,
            workers=len(staying),
            starting=sum(member.ready_at is None for member in staying),
            queued=len(queue) if self.size is None else 0,
            mean=self.desk.dispatcher.pace.mean,
            waiting=time.monotonic() - first.queued if first else 0.0,
        )
        most = self.config.most if self.size is None else max(self.size, len(staying))
        count = min(count, most - len(self.members))
        if count > 0 and self.brake.delay:
            self._look_again(self.brake.delay)
            return
        for _ in range(count):
            self._hire()
        if queue and len(self.members) < most:
            self._look_again(HIRE_COST)

    def _look_again(self, seconds: float) -> None:
        if self._recheck is None:
            self._recheck = self.home.loop.call_later(seconds, self._looked)

    def _looked(self) -> None:
        self._recheck = None
        if self.brake.deaths:
            self.brake.deaths -= 1  # this try is free: the delay has been waited for
            self.staff()
            self.brake.deaths += 1
        else:
            self.staff()

    def _hire(self) -> None:
        self._count += 1
        budget = self.config.max_tasks_per_worker
        member = Member(self, f"{self.name}-worker-{self._count}", generation=self.generation, budget=budget)
        self.members[member.name] = member
        self.tasks.start(self._start(member), name=f"start {member.name}")

    async def _start(self, member: Member) -> None:
        try:
            process = member.process = await member.link.open(self.manager, member.name)
        except (ProcessError, OSError) as error:
            member.error = error_from_os(error, command=member.name) if isinstance(error, OSError) else error
            self._strike(member, "it could not be started")
            return
        except asyncio.CancelledError:
            self._strike(member, "the pool closed")
            raise
        self.created += 1
        process.add_done_callback(lambda _: self.lost(member))
        if self.closing or member.leaving:  # decided while it was being started, when there was nobody to end yet
            self.end(member, "the pool closed")
        if not await _settled_within(member.ready, self.config.start_timeout):
            late = StartupFailed(
                f"worker {member.name} was not ready within {self.config.start_timeout:g} s",
                name=member.name,
                process_id=process.id,
                last_output=process.tail(),
                hint="its initialiser or preload takes too long; start_timeout= gives it more time",
            )
            self.unusable(member, late)

    def arrived(self, member: Member) -> None:
        """It is ready."""
        if member.leaving or member.gone:
            return
        member.ready_at = member.idle_since = time.monotonic()
        self.brake.useful()
        _settle(member.ready)
        self.desk.dispatcher.add(member.lane)
        self.desk.pump()

    def unusable(self, member: Member, error: BaseException) -> None:
        """It will never be ready."""
        member.error = error
        self.end(member, f"it could not be set up: {error}")

    # -- leaving

    def leave(self, member: Member, reason: str) -> None:
        """No new tasks; it goes when it is free."""
        if member.leaving or member.gone:
            return
        member.leaving = True
        member.reason = reason
        member.lane.open = False
        if member.lane.sent:
            member.withdraw()
        else:
            self.dismiss(member)
        self.staff()

    def dismiss(self, member: Member) -> None:
        """It is free: ask it to go, and see that it does, with all that its tasks left running."""
        if member.dismissed:
            return
        member.dismissed = True
        self.desk.dispatcher.lanes.pop(member, None)
        member.link.quit()
        self._see_off(member, _FAREWELL)

    def end(self, member: Member, reason: str) -> None:
        """Kill its whole tree now. What it runs is judged when it is dead."""
        if member.gone:
            return
        member.leaving = True
        member.reason = member.reason or reason
        member.lane.open = False
        self._see_off(member, 0.0)

    def _see_off(self, member: Member, grace: float) -> None:
        if member.process is not None:
            member.seen_off += 1
            self.tasks.start(self._until_gone(member, member.process, grace), name=f"see off {member.name}")

    async def _until_gone(self, member: Member, process: ManagedProcess, grace: float) -> None:
        """Its whole tree. Only then do its victims fail: what they had started must not run beside a second try."""
        try:
            if grace:
                await process_core(process).ended_within(grace)
            await process.kill()
        except StopFailed as error:
            log.error("%s", error)
        finally:
            member.seen_off -= 1
            if member.gone and not member.seen_off:
                self.desk.bury(member.name)

    def lost(self, member: Member) -> None:
        """Its process has ended, whoever wanted that."""
        member.link.drain()
        claimed, _ = member.link.claimed()
        unstarted = [task for number, task in member.lane.sent.items() if number > claimed and not task.dropped]
        victims = self.desk.dispatcher.lost(member.lane, claimed)
        for task in unstarted:
            task.state = TaskState.QUEUED
        process = member.process
        ours = bool(member.reason)
        if not member.reason and process is not None:
            member.reason = _describe(process)
        if member.ready_at is None and member.error is None and process is not None:
            member.error = crashed(f"worker {member.name}", process.result, last_output=process.tail())
        self._strike(member, member.reason, crashed_itself=not ours)
        for task in victims:
            if not task.dropped:
                self.desk.limbo[task] = member.sentences.get(task) or self._crash_error(member, task, ours=ours)
        if not member.seen_off:
            self._see_off(member, 0.0)  # for what its tasks left running
        self.desk.pump()

    def _crash_error(self, member: Member, task: Task, *, ours: bool) -> BaseException:
        if self.closing:
            return Closed(f"{task.title} was still running when {self.name} was closed", name=self.name)
        process = member.process
        why = member.reason if ours else None
        return crashed(task.title, process.result if process else None, last_output=process.tail() if process else "", why=why)

    def _strike(self, member: Member, reason: str, *, crashed_itself: bool = False) -> None:
        """Off the list."""
        if member.gone:
            return
        member.gone = True
        member.reason = reason
        member.ended_at = time.monotonic()
        member.close()
        self.members.pop(member.name, None)
        self.past.append(member)
        if member.process is not None:
            self.destroyed += 1
            self.crashed += crashed_itself
        if not member.done and (member.error is not None or crashed_itself):
            result = member.process.result if member.process else None
            self.brake.died(member.error, killed=crashed_itself and result is not None and result.signal is not None)
        _settle(member.ready)
        if self.closing:
            return
        if self.brake.deaths >= _GIVE_UP and not any(m.ready_at is not None for m in self.members.values()):
            self._nobody_comes()
        self.home.loop.call_soon(self.staff)  # not at once: the tasks of the dead are still being sorted

    def _nobody_comes(self) -> None:
        cause = self.brake.last_error
        if cause is None:
            return
        error = StartupFailed(
            f"no worker of {self.name} can be started: {getattr(cause, 'message', cause)}", name=self.name, hint="see the cause above"
        )
        error.__cause__ = cause
        self.desk.abandon(error)

    # -- interrupting

    def interrupt(self, task: Task) -> None:
        """A task in a worker was cancelled: take it back, or end the worker if it runs."""
        member = self.members.get(task.worker)
        if member is None:
            return
        claimed, _ = member.link.claimed()
        for number, sent in member.lane.sent.items():
            if sent is task:
                if number <= claimed:
                    member.condemn(task, None)
                else:
                    member.withdraw()
                return

    def returned(self, member: Member, numbers: list[int]) -> None:
        """These never started there."""
        for number in numbers:
            task = member.lane.sent.get(number)
            if task is not None and not task.dropped:
                task.state = TaskState.QUEUED
        self.desk.dispatcher.returned(member.lane, numbers)
        if member.sentences:
            member.execute()
        for task in [task for task in member.lane.sent.values() if task.dropped and task not in member.sentences]:
            self.interrupt(task)
        if member.leaving and not member.lane.sent and not member.gone:
            self.dismiss(member)
        self.desk.pump()
        self.desk.flush()  # cancelled ones go nowhere from here: perhaps they were the last that a join() waits for

    # -- health

    async def ping(self) -> float:
        """Seconds to the answer of a ready worker, an idle one if there is one."""
        ready = [member for member in self.members.values() if member.ready_at is not None and not member.leaving and not member.gone]
        if not ready:
            raise CommunicationError("no worker is ready to answer a ping", hint="await pool.start(), or give it a task first")
        member = min(ready, key=lambda member: len(member.lane.sent))
        began = time.monotonic()
        answer = self.home.loop.create_future()
        member.pongs.append(answer)
        if member.pinged_at is None:
            member.pinged_at = began
        member.link.ping()
        await answer
        return time.monotonic() - began

    def suspect(self, member: Member) -> None:
        """It is overdue: look at it now instead of at the next round."""
        member.link.drain()  # the loop may have been late, and the answer be here already
        if member.pinged_at is None:
            member.pinged_at = time.monotonic()
            member.link.ping()
        elif time.monotonic() - member.pinged_at > _ANSWER:
            self.end(member, "it does not answer")

    def maintain(self) -> None:
        """One round of health checks and dismissals; sets the timer for the next."""
        self._timer = None
        if self.closing:
            return
        config = self.config
        for member in list(self.members.values()):
            if member.ready_at is not None and not member.leaving:
                self._check(member)
        self.staff()
        times = [config.health_check_interval, config.idle_timeout, config.max_worker_age]
        self._timer = self.home.loop.call_later(max(_SHORTEST, min(t for t in times if t is not None)), self.maintain)

    def _check(self, member: Member) -> None:
        member.link.drain()
        if member.gone or member.leaving:
            return
        now = time.monotonic()
        process = member.process
        row = None if process is None or process.pid is None else read_row(process.pid)
        if member.pinged_at is not None and now - member.pinged_at >= self.config.health_check_interval:
            health = Health(
                pinged=True,
                busy=bool(member.lane.sent) and not member.lane.withdrawing,
                stopped=row is not None and row.state in "Tt",
                paused=process is not None and process.info.paused,
            )
            if hung(health):
                self.end(member, "it does not answer")
                return
        member.memory = row.rss if row else 0
        member.base_memory = member.base_memory or member.memory
        reason = leave_reason(
            self.config,
            workers=len(self.staying),
            target=self.target,
            idle_for=None if member.lane.sent else now - member.idle_since,
            age=now - (member.ready_at or now),
            budget=None if member.lane.sent else member.lane.budget,
            growth=member.memory - member.base_memory,
            stale_code=member.generation != self.generation,
        )
        if reason is not None:
            self.leave(member, reason)
        elif member.pinged_at is None:
            member.pinged_at = now
            member.link.ping()

    # -- size

    def resize(self, size: int | None) -> None:
        """So many workers; None: as many as the load needs."""
        self.size = size
        staying = self.staying
        if size is not None:
            spare = len(staying) - size
            for member in sorted(staying, key=lambda m: (bool(m.lane.sent), -m.idle_since))[: max(0, spare)]:
                self.leave(member, f"resized to {size}")
        self.staff()

    def renew(self) -> None:
        """Replace all workers, each when it is free."""
        self.generation += 1
        for member in self.staying:
            self.leave(member, "its code is out of date")

    # -- end

    async def aclose(self) -> None:
        """End all workers: the free ones politely, the others at once. On return none is left."""
        self.closing = True
        for timer in (self._timer, self._recheck):
            if timer is not None:
                timer.cancel()
        for member in list(self.members.values()):
            if member.process is None:
                continue
            if not member.leaving and not member.lane.sent and member.ready_at is not None:
                member.leaving = True
                member.reason = "the pool closed"
                self.dismiss(member)
            else:
                self.end(member, "the pool closed")
        while waiting := [member.process for member in self.members.values() if member.process is not None]:
            await process_core(waiting[0]).ended_within(1.0)
            await asyncio.sleep(0)
        await self.tasks.aclose()


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _settled_within(future: "asyncio.Future[None]", seconds: float) -> bool:
    done, _ = await asyncio.wait({future}, timeout=seconds)
    return bool(done)


def _describe(process: ManagedProcess) -> str:
    """How it ended, in a few words."""
    result = process.result
    if result is None:
        return "it is gone"
    return f"it died: {signal_name(result.signal)}" if result.signal else f"it died: exit status {result.exit_code}"
