"""The roster: who is watched now, kept by the managers' events; nobody is asked for what the event stream tells.

::

      STARTED ──► target            EXITED ──► counted, its last row written, target gone
      FAILED  ──► counted, a row    FATAL  ──► a row     REMOVED ──► its alerts end     CLOSED ──► group gone
"""

import functools
import math
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from nbprocs.engine.handles import user_of
from nbprocs.engine.home import Home
from nbprocs.engine.table import Identity, identify, read_psutil
from nbprocs.errors import UnknownProcess
from nbprocs.model import EventKind, ProcessConfig, ProcessEvent, ProcessInfo
from nbprocs.monitor.alerts import Transition
from nbprocs.monitor.book import Book
from nbprocs.monitor.history import Series
from nbprocs.monitor.metrics import State
from nbprocs.monitor.probes import Prober
from nbprocs.monitor.sampler import Ask, GroupAsk
from nbprocs.monitor.targets import Group, Tallies, Tally, Target, end_state, failed, known_home
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.recording import KnowsRuns

__all__ = ["Roster", "look_up"]

_LEAST = 5  # runs that tell what is usual, as in RunHistory.regressions
_GONE_KEPT = 1000  # processes of others that ended: so many may keep an open alert
Report = Callable[[list[Transition]], None]


def look_up(pid: int, *, portable: bool) -> tuple[Identity, str, str]:
    """Identity, name and user of a running process. Raises UnknownProcess."""
    row = read_psutil(pid) if portable else None
    identity = row.identity if row else identify(pid)
    if identity is None:
        raise UnknownProcess(f"no process has the pid {pid}", hint="it may have ended; `psutil.pids()` lists all")
    return identity, *user_of(pid)


class Roster:
    """Lives on the home loop of its monitor. ``report`` gets the alert transitions of what events tell."""

    def __init__(self, book: Book, *, clock: Callable[[], float], report: Report, portable: bool, past: KnowsRuns | None = None) -> None:
        self.book = book
        self.targets: dict[str, Target] = {}
        self.groups: dict[int, Group] = {}  # by id() of the manager or pool
        self.probers: dict[str, Prober] = {}
        self.tallies: Tallies = Tallies()
        self.notes: deque[str] = deque(maxlen=1000)  # what happened to processes of others
        self._clock = clock
        self._report = report
        self._portable = portable
        self._past = past
        self._missed: set[str] = set()  # ended before we heard of their start; of their end we hear yet
        self._names: dict[str, str] = {}  # of live targets -> process id
        self._waiting: dict[str, tuple[Series, State]] = {}  # ended, but a rule still counts the seconds
        self._gone: deque[tuple[Series, str]] = deque()
        self._replaced: deque[tuple[str, str, Group]] = deque(maxlen=_GONE_KEPT)

    # -- who

    def add_pid(self, identity: Identity, name: str, user: str, note: str) -> None:
        """Watch any process."""
        key = f"pid:{identity.pid}:{identity.start:g}"
        if key not in self.targets:
            self._add(Target(
                series=self.book.history.series(process_id=key, name=self._free(name, identity.pid), pid=identity.pid), name=name,
                process_id=key, identity=identity, tally=Tally(), user=user, note=note,
            ))  # fmt: skip

    def add_process(self, process: ManagedProcess, group: Group | None) -> None:
        """Watch one of ours."""
        if process.id in self.targets or process.pid is None or not process.status.live:
            return
        identity = look_up(process.pid, portable=True)[0] if self._portable else process.identity
        name = self._free(process.name, process.pid)
        series = self.book.history.series(process_id=process.id, name=name, pid=process.pid)
        self._add(Target(
            series=series, name=name, process_id=process.id, identity=identity, tally=self.tallies.of(name), process=process, group=group,
            usual=self._usual(process.config),
        ))  # fmt: skip
        if group is None:
            process.add_done_callback(self._ended_alone)

    def _usual(self, config: ProcessConfig) -> float:
        """Seconds that its command used to take: the median of its last 20 successful runs; NaN where fewer than 5 are known."""
        known = None if self._past is None else self._past.usual(tuple(map(os.fsdecode, config.argv)), shell=config.shell)
        if known is None or not known.exact or len(known.seconds) < _LEAST:
            return math.nan
        import statistics  # noqa: PLC0415 - it loads fractions and decimal, which nothing else needs

        return max(float(statistics.median(known.seconds[:20])), 0.001)

    def _add(self, target: Target) -> None:
        target.name = target.series.name
        self.targets[target.process_id] = target
        self._names[target.name] = target.process_id
        self._waiting.pop(target.name, None)

    def _free(self, name: str, pid: int) -> str:
        return name if name not in self._names else f"{name}#{pid}"

    def add_group(self, source: Any, name: str, home: Home) -> Group:
        """Watch a manager, or a pool with the manager of its workers."""
        taken = {group.series.name for group in self.groups.values()}
        label = name if name not in taken else f"{name}#{len(taken) + 1}"
        group = Group(series=self.book.history.series(process_id=label, name=label, pid=0), source=source)
        self.groups[id(source)] = group
        manager = source if hasattr(source, "subscribe") and hasattr(source, "processes") else getattr(source, "manager", None)
        if group.pool:
            group.look(self._clock())
        if manager is not None and hasattr(manager, "subscribe"):
            heard = functools.partial(self.heard, group)
            if known_home(manager) not in (None, home):  # its events come on its own thread
                heard = functools.partial(home.post, heard)
            group.unsubscribe = manager.subscribe(heard)
            for process in manager.processes():
                if group.has(process.name):
                    self.add_process(process, group)
        return group

    def remove_group(self, source: Any) -> None:
        """Watch it no longer."""
        group = self.groups.pop(id(source), None)
        if group is None:
            return
        if group.unsubscribe is not None:
            group.unsubscribe()
        for target in [target for target in self.targets.values() if target.group is group]:
            self.remove(target)

    def remove(self, target: Target) -> None:
        """Watch it no longer; its open alerts end."""
        self._drop(target)
        if self.book.has_open(target.name):
            self._report(self.book.end(target.series, State.FORGOTTEN))

    def _drop(self, target: Target) -> None:
        self.targets.pop(target.process_id, None)
        if self._names.get(target.name) == target.process_id:
            del self._names[target.name]

    def live(self) -> set[str]:
        """The ids of all that is watched; a group's is its name. From any thread."""
        return set(self.targets) | {group.series.process_id for group in list(self.groups.values())}

    def alive(self, name: str) -> bool:
        """Whether somebody of that name is watched now."""
        return name in self._names or any(group.series.name == name for group in self.groups.values())

    # -- what the managers tell

    def heard(self, group: Group, event: ProcessEvent) -> None:
        """An event of a watched manager."""
        kind = event.kind
        if kind is EventKind.CLOSED:
            self.groups.pop(id(group.source), None)
        elif not group.has(event.name):
            return
        elif kind is EventKind.STARTED:
            self._started(group, event)
        elif kind is EventKind.EXITED and event.info is not None:
            self._exited(group, event.info)
        elif kind in (EventKind.FAILED, EventKind.FATAL):
            self._never_ran_or_never_again(group, event)
        elif kind is EventKind.REMOVED:
            self._forget(event.name, event.process_id)

    def _exited(self, group: Group, info: ProcessInfo) -> None:
        now = self._clock()
        bad, good = int(failed(info)), int(info.exit_code == 0 and not failed(info))
        if not group.pool:
            group.tally.add(now, errors=bad, successes=good)
        target = self.targets.get(info.id)
        if target is not None:
            target.tally.add(now, errors=bad, successes=good)
            self._end(target, end_state(info), info.restarts, seconds=info.execution_time)
            if group.pool:  # the pool replaces it, under another name
                self._replaced.append((info.name, info.id, group))
        elif info.id in self._missed:
            self._missed.discard(info.id)
            series = self.book.history.series(process_id=info.id, name=info.name, pid=0)
            slowdown = info.execution_time / self._usual(info.config)
            self._report(self.book.end(series, end_state(info), errors=bad, successes=good, restarts=info.restarts, slowdown=slowdown))

    def _never_ran_or_never_again(self, group: Group, event: ProcessEvent) -> None:
        tally, state = self.tallies.of(event.name), State.FATAL
        if event.kind is EventKind.FAILED:
            state = State.FAILED
            tally.add(self._clock(), errors=1)
            group.tally.add(self._clock(), errors=1)
        series = self.book.history.series(process_id=event.process_id, name=event.name, pid=0)
        self._report(self.book.end(series, state, errors=tally.errors, successes=tally.successes))

    def _started(self, group: Group, event: ProcessEvent) -> None:
        manager = group.source if hasattr(group.source, "get") else getattr(group.source, "manager", None)
        if manager is None:
            return
        try:
            process = manager.get(event.process_id)
            self.add_process(process, group)
        except UnknownProcess:  # ended and forgotten before we heard of its start
            pass
        if event.process_id not in self.targets and not group.pool:
            self._missed.add(event.process_id)  # its end comes in the next turn of the loop

    def _ended_alone(self, process: ManagedProcess) -> None:
        target = self.targets.get(process.id)
        if target is not None:
            info = process.info
            target.tally.add(self._clock(), errors=int(failed(info)), successes=int(info.exit_code == 0 and not failed(info)))
            self._end(target, end_state(info), info.restarts, seconds=info.execution_time)

    def _end(self, target: Target, state: State, restarts: int = 0, *, seconds: float = math.nan) -> None:
        self._drop(target)
        tally, slowdown = target.tally, seconds / target.usual
        self._report(
            self.book.end(target.series, state, errors=tally.errors, successes=tally.successes, restarts=restarts, slowdown=slowdown)
        )
        if self.book.pending(target.name):
            self._waiting[target.name] = target.series, state

    def _forget(self, name: str, process_id: str) -> None:
        self._waiting.pop(name, None)
        if name not in self._names and self.book.has_open(name):
            series = self.book.history.series(process_id=process_id, name=name, pid=0)
            self._report(self.book.end(series, State.FORGOTTEN))

    # -- for a tick

    def asks(self) -> tuple[list[Ask], list[GroupAsk]]:
        """The questions of this tick."""
        now = self._clock()
        asks = []
        for target in self.targets.values():
            process, tally = target.process, target.tally
            if process is not None and process.name != target.name and "#" not in target.name:
                self._rename(target, process.name)
            prober = self.probers.get(target.name)
            asks.append(Ask(
                code=target.series.code, identity=target.identity, name=target.name, process_id=target.process_id,
                group=-1 if target.group is None else target.group.series.code,
                restarts=0 if process is None else min(process.restarts, 32767),
                error_count=tally.errors, success_count=tally.successes, error_rate=tally.rate(now),
                response_time=math.nan if prober is None else prober.take(),
                output=None if process is None else (process.stdout, process.stderr), usual=target.usual,
            ))  # fmt: skip
        groups = []
        for group in self.groups.values():
            throughput, name = group.look(now), group.series.name
            prober, tally = self.probers.get(name), group.tally
            groups.append(GroupAsk(
                code=group.series.code, name=name, process_id=group.series.process_id,
                error_count=tally.errors, success_count=tally.successes, error_rate=tally.rate(now),
                throughput=throughput, response_time=math.nan if prober is None else prober.take(),
            ))  # fmt: skip
        return asks, groups

    def _rename(self, target: Target, name: str) -> None:
        if self._names.get(target.name) == target.process_id:
            del self._names[target.name]
        target.series = self.book.history.series(process_id=target.process_id, name=name, pid=target.identity.pid)
        target.name = name
        self._names[name] = target.process_id

    def settle(self, gone: list[Identity], reused: set[Identity]) -> None:
        """Processes that nobody will tell us the end of; and those whose end a rule still counts the seconds of."""
        missing = set(gone)
        if missing:
            for target in [t for t in self.targets.values() if t.process is None and t.identity in missing]:
                how = f"its pid {target.identity.pid} belongs to another process now" if target.identity in reused else "it ended"
                self.notes.append(f"{target.name}: {how}; how it ended nobody can tell: it was not our child")
                self._end(target, State.GONE)
                self._gone.append((target.series, target.name))
            while len(self._gone) > _GONE_KEPT:
                series, name = self._gone.popleft()
                self._forget(name, series.process_id)
        for _ in range(len(self._replaced)):
            name, process_id, group = self._replaced.popleft()
            if group.source.metrics().current_active_processes or id(group.source) not in self.groups:
                self._forget(name, process_id)
            else:
                self._replaced.append((name, process_id, group))
        for name, (series, state) in list(self._waiting.items()):
            if name in self._names or not self.book.pending(name):
                del self._waiting[name]
            else:
                self._report(self.book.end(series, state))
