"""ProcessMonitor: watches processes, ours and others, and tells.

::

      home loop                                     one worker thread
      ─────────                                     ─────────────────
      tick: Roster.asks  ──────────────────────►    Sampler.sample (one look at the process table)
            Book.take    ◄──────────────────────    rows
              ├─ History (rings)   ──► frame, latest, summary, plot, export_prometheus
              └─ Episodes (rules)  ──► AlertCallbacks
      events of managers ──► Roster ──► Book        an end is known at once, not at the next tick
"""

import asyncio
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from nbprocs.checks import flag, function, instance, path, refuse, seconds, whole, words
from nbprocs.checks import name as check_name
from nbprocs.config import Command, Word
from nbprocs.display import Displayable, Html
from nbprocs.engine.container import Limits, read_limits
from nbprocs.engine.home import Home, Tasks, hops, log
from nbprocs.engine.owners import register
from nbprocs.engine.table import ON_LINUX
from nbprocs.errors import Closed, UnknownProcess
from nbprocs.monitor.alerts import Transition, as_rules, replay
from nbprocs.monitor.book import Book
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.history import HistorySnapshot, Spill
from nbprocs.monitor.metrics import ProcessMetrics, Scope
from nbprocs.monitor.model import Alert, AlertThresholds, Rule
from nbprocs.monitor.notify import AlertCallback, AlertCallbacks, CallbackFailure
from nbprocs.monitor.plots import PANELS, plot
from nbprocs.monitor.probes import Prober
from nbprocs.monitor.prometheus import exposition
from nbprocs.monitor.remote import RemoteSource, RemoteWatches
from nbprocs.monitor.roster import Roster, look_up
from nbprocs.monitor.sampler import Sample, Sampler
from nbprocs.monitor.targets import MonitorPlace, Target, current_home, group_name
from nbprocs.monitor.views import alert_frame, latest_frame, metrics_of, summary_frame, table_html, wide_frame
from nbprocs.processes.events import Subscribers
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.recording import past_for

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from nbprocs.monitor.record import Recording

__all__ = ["ProcessMonitor"]

T = TypeVar("T")
_MOST_PID = 2**31 - 1
SUMMARY_MOST = 50  # rows of the static table


class ProcessMonitor(Displayable):
    """Samples every watched process with its whole tree, keeps the history, and raises alerts.

    Args:
        interval: seconds between two samples; None: only when ``sample()`` is called.
        thresholds, rules: the five limits, and more rules. A process that fails raises PROCESS_DOWN in any case.
        members: keep a sample of each process of a tree too, not only of the tree.
        history_bytes, spill: memory for the samples, 106 bytes each; the oldest leave first, for a ``.csv`` or a ``.parquet`` folder.
        background: live on the loop of the host thread, which a cell that blocks the kernel does not stop.
        runs: the history that tells how long commands used to take (Rule.regression): a path; None: the kernel's (set_runs), False: none.
        clock: monotonic seconds; for tests.
        portable: use psutil instead of ``/proc``; for tests, and the only way on other systems than Linux.

    It lives on the loop it is made on; made where none runs, on that of the first thing it watches. Ticks begin by themselves with the
    first thing watched, and end with ``aclose()``.

    >>> async with ProcessMonitor(interval=None) as mon:
    ...     mon.add(os.getpid(), name="me")
    ...     await mon.sample()
    ...     bool(mon.metrics("me").memory_usage_mb > 1)
    True
    """

    def __init__(
        self,
        *,
        interval: float | None = 1.0,
        thresholds: AlertThresholds | None = None,
        rules: Iterable[Rule] = (),
        members: bool = True,
        history_bytes: int = 64 << 20,
        spill: str | os.PathLike[str] | None = None,
        background: bool = False,
        runs: object = None,
        clock: Callable[[], float] = time.monotonic,
        gpu: Gpu | None = None,
        portable: bool = not ON_LINUX,
    ) -> None:
        self.interval: float | None = seconds("interval", interval)
        if thresholds is not None:
            instance("thresholds", thresholds, AlertThresholds, "AlertThresholds or None")
        self.thresholds: AlertThresholds = thresholds or AlertThresholds()
        self.spill_lost: int = 0  # samples that could not be spilled
        self._spill = None if spill is None else Spill(path("spill", spill))
        self._core = MonitorPlace(Home.background() if flag("background", background) else current_home())
        chosen = (*self.thresholds.rules(), *as_rules(rules))
        self._book = Book(
            chosen,
            max_bytes=whole("history_bytes", history_bytes, least=0),
            clock=function("clock", clock),
            on_full=None if self._spill is None else self._leaving,
        )
        self._sampler = Sampler(interval=interval or 1.0, portable=flag("portable", portable), gpu=gpu, members=flag("members", members))
        self._portable = portable
        self._roster = Roster(self._book, clock=clock, report=self._tell, portable=portable, past=past_for(runs))
        self._listeners: Subscribers[[]] = Subscribers("the monitor's ticks")
        self._remotes = RemoteWatches(self._book, taken=self._roster.alive, done=self._tell, ticked=self._listeners.tell)
        self._callbacks = AlertCallbacks()
        self._tasks: Tasks | None = None
        self._clock = clock
        self._worker: ThreadPoolExecutor | None = None
        self._turn: asyncio.Lock | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failure: type[Exception] | None = None  # of the latest tick
        self._writing: set[asyncio.Task[None]] = set()
        self.closed: bool = False  # whether aclose() was called
        register(self)

    # -- what to watch

    def watch(self, target: Any, *, name: str | None = None) -> None:
        """Watch a manager (all its processes, those to come too), a pool (workers and tasks), a ManagedProcess, a DaskBackend, any pid.

        A manager or pool is a group by itself: counts, error rate and throughput of the whole, under ``name``. Returns at once; the first
        sample comes with the next tick. What a backend's tasks take is measured on its workers, while it is watched. Raises TypeError for
        what can't be watched, UnknownProcess for a pid that nobody has.
        """
        self._check_open()
        name = None if name is None else check_name("name", name)
        if isinstance(target, int) and not isinstance(target, bool):
            self.add(target, name=name)
            return
        self._core.settle_with(target)
        if isinstance(target, ManagedProcess):
            self._at_home(self._roster.add_process, target, None)
        elif isinstance(target, RemoteSource):
            self._at_home(lambda: self._remotes.add(target, self._own_tasks.start, self.interval))
        elif (label := group_name(target)) is not None:
            self._at_home(self._watch_group, target, name or label)
        else:
            refuse(TypeError, "target", "a manager, a pool, a ManagedProcess, a DaskBackend or a pid", target)

    def add(self, pid: int, *, name: str | None = None) -> None:
        """Watch any process of this machine, whoever started it. What the system keeps to its owner (descriptors, I/O, PSS) is absent.

        Raises UnknownProcess when there is none. When it ends, or when its pid goes to another process, its state becomes GONE.
        """
        self._check_open()
        name = None if name is None else check_name("name", name)
        identity, found, user = look_up(whole("pid", pid, least=1, most=_MOST_PID), portable=self._portable)
        own = look_up(os.getpid(), portable=self._portable)[2]
        note = f"a process of {user}: its descriptors, I/O and PSS may not be readable" if user != own else ""
        self._at_home(self._roster.add_pid, identity, name or f"{found or 'process'}-{pid}", user, note)

    def unwatch(self, target: Any) -> None:
        """Watch it no longer: what watch() or add() got. Its samples stay; its open alerts end. Nothing if it wasn't watched."""
        if isinstance(target, int):
            self._at_home(self._unwatch, lambda t: t.process is None and t.identity.pid == target)
        elif isinstance(target, ManagedProcess):
            self._at_home(self._unwatch, lambda t: t.process is target)
        else:
            for watched in (self._roster.remove_group, self._remotes.remove):
                self._at_home(watched, target)

    def _unwatch(self, chosen: Callable[[Target], bool]) -> None:
        for found in [target for target in self._roster.targets.values() if chosen(target)]:
            self._roster.remove(found)

    def _watch_group(self, source: Any, name: str) -> None:
        if id(source) not in self._roster.groups:
            group = self._roster.add_group(source, name, self._core.home)
            if callable(getattr(source, "ping", None)):
                self._add_prober(group.series.name, Prober(source, every=max(5.0, self.interval or 5.0), timeout=5.0))

    def probe(self, name: str, probe: Any, *, every: float | None = None, timeout: float = 5.0) -> None:
        """Measure the response time of a process or group: ``Port``, ``Url``, a URL, a pool, or a callable (async or not).

        It is asked every ``every`` seconds (the interval by default) while something of that name is watched. No answer within ``timeout``
        seconds, an error, or the answer False count as infinite. Raises TypeError or ValueError for what can't be asked.
        """
        self._check_open()
        every = self.interval or 1.0 if every is None else every
        self._at_home(self._add_prober, check_name("name", name), Prober(probe, every=every, timeout=timeout))

    def _add_prober(self, name: str, prober: Prober) -> None:
        self._roster.probers[name] = prober
        wanted = functools.partial(self._wanted, name, prober)
        self._own_tasks.start(prober.run(self._core.home, wanted), name=f"probe of {name}")

    def _wanted(self, name: str, prober: Prober) -> bool:
        return self._roster.probers.get(name) is prober and self._roster.alive(name)

    def _at_home(self, action: Callable[..., object], *args: Any) -> None:
        """On the home loop now, if this is its thread; else soon."""
        if self._core.home.here and current_home() is self._core.home:
            self._do(action, *args)
        else:
            self._core.home.post(self._do, action, *args)

    def _do(self, action: Callable[..., object], *args: Any) -> None:
        if not self.closed:
            action(*args)
            self._begin()

    # -- ticks

    def start(self) -> None:
        """Begin the ticks now. watch() and add() do it by themselves."""
        self._check_open()
        self._at_home(lambda: None)

    @property
    def _own_tasks(self) -> Tasks:
        if self._tasks is None:
            self._tasks = Tasks(self._core.home)
        return self._tasks

    def _begin(self) -> None:
        if self._ticking is None and self.interval is not None:
            self._ticking = self._own_tasks.start(self._run(self.interval), name="monitor")

    async def _run(self, interval: float) -> None:
        loop = self._core.home.loop
        due = loop.time()
        while True:
            try:
                await self._tick()
            except Exception as error:  # noqa: BLE001 - a defect in one tick must not end the watch: said, and tried again
                if type(error) is not self._failure:  # but not said every second
                    log.exception("a tick of the monitor failed; it goes on")
                self._failure = type(error)
            else:
                self._failure = None
            # Ticks that were missed while the loop was blocked are not made up for; two in quick succession would measure noise.
            due = max(due + interval, loop.time() + interval / 2)
            await asyncio.sleep(due - loop.time())

    @hops
    async def sample(self) -> None:
        """Take one sample of everything watched, now; on return it is in the frame and judged by the rules. Milliseconds."""
        self._check_open()
        await self._tick()
        await self._remotes.look()

    async def _tick(self) -> None:
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            asks, groups = self._roster.asks()
            if asks or groups:
                register = self._book.history.series
                sample = await self._aside(functools.partial(self._sampler.sample, asks, groups, register=register))
                self._take(sample)
        self._listeners.tell()

    def _take(self, sample: Sample) -> None:
        """Rows of processes whose end was told while they were looked at are left out: the end is the last word."""
        now = self._roster.live()
        keep: Sequence[int] = range(len(sample.names))
        if not now.issuperset(sample.process_ids):
            keep = [place for place, key in enumerate(sample.process_ids) if key in now]
        columns, names, ids = sample.columns, sample.names, sample.process_ids
        if len(keep) < len(names):
            columns = {name: values[keep] for name, values in columns.items()}
            names, ids = [names[place] for place in keep], [ids[place] for place in keep]
        self._tell(self._book.take(columns, names, ids))
        self._roster.settle(sample.gone, sample.reused)

    async def _aside(self, work: Callable[[], T]) -> T:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="nbprocs-monitor")
        return await self._core.home.loop.run_in_executor(self._worker, work)

    def _tell(self, changes: list[Transition]) -> None:
        if changes:
            self._callbacks.tell(changes, now=self._clock(), tasks=self._own_tasks)

    def _leaving(self, snapshot: HistorySnapshot) -> None:
        writing = Tasks(self._core.home).start(self._write(snapshot), name="spill of samples")  # not cancelled by the end, but awaited
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def _write(self, snapshot: HistorySnapshot) -> None:
        if self._spill is None:
            return
        try:
            await self._aside(functools.partial(self._spill.write, snapshot))
        except OSError as error:
            if not self.spill_lost:
                log.warning(
                    "samples can't be spilled to %s (%s); those that leave memory are counted in spill_lost", self._spill.path, error
                )
            self.spill_lost += len(snapshot)

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back on the home loop after each tick; returns what ends it."""
        return self._listeners.add(callback)

    # -- alerts

    def on_alert(self, callback: AlertCallback) -> Callable[[], None]:
        """Call it (sync or async) with every alert that fires, gets worse, or resolves (``alert.resolved``); returns what ends it.

        On the home loop. What it raises is logged and kept in ``callback_failures``. At most 60 calls a minute after a burst of 50; the
        rest are counted in ``suppressed``.
        """
        return self._callbacks.add(callback)

    @property
    def callback_failures(self) -> tuple[CallbackFailure, ...]:
        """The last hundred failures of callbacks."""
        return tuple(self._callbacks.failures)

    @property
    def suppressed(self) -> int:
        """Calls that the rate limit held back."""
        return self._callbacks.suppressed

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules in force: those of the thresholds, then the others."""
        return self._book.rules

    def alerts(self, *, open_only: bool = False) -> tuple[Alert, ...]:
        """The alerts of this run by the time they fired: open ones, and the last 10,000 resolved ones."""
        return self._book.alerts(open_only=open_only)

    def alert_frame(self) -> "pd.DataFrame":
        """``alerts()`` as a DataFrame."""
        return alert_frame(self.alerts())

    def replay(self, rules: AlertThresholds | Rule | Iterable[Rule]) -> tuple[Alert, ...]:
        """What other rules would have raised on the samples in memory: ``nbprocs.replay`` on the whole frame."""
        return replay(self.frame(scope=None), rules)

    # -- samples

    def frame(
        self,
        *,
        wide: str | None = None,
        names: Iterable[str] | None = None,
        scope: Scope | str | None = Scope.TREE,
        since: datetime | None = None,
    ) -> "pd.DataFrame":
        """The samples in memory as a DataFrame, tidy: a row a sample, timestamps in UTC, oldest first.

        Args:
            wide: a metric: then a column a process, a row a moment, ready for ``.plot()``.
            names: only these processes.
            scope: "tree" (a watched process with all its descendants), "process" (each process), "group" (managers, pools), None: all.
            since: a datetime.

        What was not measured is NaN or NA. Memory is in MiB, times in seconds, CPU in percent of one core; ``read_bytes`` and
        ``write_bytes`` count what system calls moved since the start, cached or not. A million samples take some 0.2 s.
        """
        chosen = None if scope is None else Scope.of(scope)
        start = None if since is None else round(instance("since", since, datetime, "a datetime or None").timestamp() * 1e6)
        names = None if names is None else words("names", names)
        snapshot = self._book.history.snapshot()
        if wide is not None:
            return wide_frame(snapshot, wide, names=names, since=start)
        return snapshot.frame(scope=chosen, names=names, since=start)

    def metrics(self, name: str) -> ProcessMetrics:
        """The latest sample of a process, by name or process id. Raises UnknownProcess."""
        found = [m for m in self._metrics() if name in (m.name, m.process_id)]
        if not found:
            raise UnknownProcess(f"no samples of {name!r}", hint="watch() it, and wait for a tick or await sample()")
        return found[-1]

    def _metrics(self) -> list[ProcessMetrics]:
        newest: dict[str, ProcessMetrics] = {}
        for series, row in self._book.history.latest():
            if row["scope"] != Scope.PROCESS:
                prober = self._roster.probers.get(series.name)
                exact, ports = self._sampler.exact.get(series.code), self._sampler.ports.get(series.code, ())
                found = metrics_of(series, row, exact=exact, ports=ports, response=float("nan") if prober is None else prober.last)
                if series.name not in newest or newest[series.name].timestamp <= found.timestamp:
                    newest[series.name] = found
        return list(newest.values())

    def current(self) -> dict[str, ProcessMetrics]:
        """The latest sample of everything that is watched now, by process id (a group's is its name): for views, 20 µs for each."""
        live = self._roster.live() | self._remotes.live()
        return {m.process_id: m for m in self._metrics() if m.process_id in live}

    def latest(self) -> "pd.DataFrame":
        """The latest sample of each process and group, indexed by name; with ports, PSS and response time as last measured, and notes."""
        notes = {target.name: target.note for target in self._roster.targets.values()} | self._remotes.notes()
        notes |= {note.partition(":")[0]: note.partition(": ")[2] for note in list(self._roster.notes)}
        return latest_frame(self._metrics(), notes)

    def summary(self) -> "pd.DataFrame":
        """A row a process: samples, means and maxima, counts, alerts."""
        return summary_frame(self.frame(), self.alerts())

    @property
    def limits(self) -> Limits:
        """What the container allows, as last read."""
        return self._sampler.limits or read_limits()

    @property
    def dropped(self) -> int:
        """Samples that left memory."""
        return self._book.history.dropped

    def plot(self, *, names: Iterable[str] | None = None, title: str | None = None, metrics: Sequence[str] = PANELS) -> "Figure":
        """Memory and CPU (or other metrics), alerts and ends over time as a matplotlib Figure, which a notebook shows."""
        chosen = None if names is None else list(names)
        alerts = [alert for alert in self.alerts() if chosen is None or alert.name in chosen]
        return plot(self.frame(names=chosen), alerts, thresholds=self.thresholds, title=title, metrics=metrics)

    def export_prometheus(self) -> str:
        """The latest samples and open alerts in Prometheus's text format."""
        return exposition(self._book.history.latest(), self.alerts(open_only=True))

    def record(self, command: Command, *args: Word, interval: float | None = None, **options: Any) -> "Recording":
        """Record one command: ``nbprocs.monitor.record`` with this monitor's interval, but at least ten samples a second."""
        from nbprocs.monitor.record import record  # noqa: PLC0415 - it needs this module

        return record(command, *args, interval=interval or min(self.interval or 0.1, 0.1), **options)

    # -- end

    def _check_open(self) -> None:
        if self.closed:
            raise Closed("the monitor is closed", hint="make a new one; its frame can still be read")

    @hops
    async def aclose(self) -> None:
        """Stop watching and give back thread and descriptors; the samples stay readable. Idempotent; takes a tick's time at most.

        With ``spill`` what is still in memory is written too, so that the file holds the whole run.
        """
        self.closed = True
        if self._closing is None:
            self._closing = Tasks(self._core.home).start(self._close(), name="close the monitor")
        await asyncio.wait({self._closing})
        self._closing.result()

    async def _close(self) -> None:
        for group in list(self._roster.groups.values()):
            if group.unsubscribe is not None:
                group.unsubscribe()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait({self._ticking})
        if self._tasks is not None:
            await self._tasks.aclose()
        if self._spill is not None:
            if self._writing:
                await asyncio.wait(self._writing)
            await self._write(self._book.history.snapshot())
        if self._worker is not None:
            await self._aside(self._sampler.close)  # behind whatever the thread still does
            self._worker.shutdown()  # idle now: this does not wait

    async def __aenter__(self) -> Self:
        self._at_home(lambda: None)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        targets, open_ones = len(self._roster.targets), len(self.alerts(open_only=True))
        state = ", closed" if self.closed else ""
        return f"<ProcessMonitor: {targets} watched, {len(self._book.history):,} samples, {open_ones} open alerts{state}>"

    def _html_(self) -> Html:
        return table_html(self._metrics()[:SUMMARY_MOST], self.alerts(open_only=True), heading=repr(self))
