"""What starts a recovery of a process that still runs: an alert that lasts, or a liveness probe that keeps failing."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from nbprocs.checks import LONGEST, number, text, whole
from nbprocs.engine.home import Home, Tasks
from nbprocs.errors import Unhealthy
from nbprocs.guard import finish, repr_of
from nbprocs.processes.process import ManagedProcess, process_core
from nbprocs.processes.readiness import Probe, as_probe
from nbprocs.recovery.rules import matches

__all__ = ["AlertLike", "AlertSource", "AlertTrigger", "Liveness"]

Act = Callable[[str, Unhealthy], None]  # process id, error


class AlertLike(Protocol):
    """What is read of an alert; nbprocs.monitor's Alert is one."""

    @property
    def id(self) -> str:
        """The same for all news of one episode."""

    @property
    def process_id(self) -> str:
        """Whose."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def type(self) -> Any:
        """An AlertType."""

    @property
    def message(self) -> str:
        """In words."""

    @property
    def resolved(self) -> bool:
        """True once the condition has ended."""


class AlertSource(Protocol):
    """What gives alerts; a ProcessMonitor is one."""

    def on_alert(self, callback: Callable[[Any], object], /) -> Any:
        """Call back with each alert when it fires and when it resolves."""

    def alerts(self, *, open_only: bool) -> Iterable[Any]:
        """Those that are open now."""


@dataclass(slots=True, kw_only=True)
class AlertTrigger:
    """Waits, for each open alert, whether it lasts."""

    types: frozenset[str]
    pattern: str
    lasting: float
    monitor: AlertSource
    home: Home
    act: Act
    _timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _ended: bool = False

    def listen(self) -> Callable[[], None]:
        """Begin; returns what ends it."""
        unsubscribe = self.monitor.on_alert(lambda alert: self.home.post(self.hear, alert))

        def end() -> None:
            if self._ended:
                return
            self._ended = True
            if callable(unsubscribe):
                unsubscribe()
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

        return end

    def hear(self, alert: AlertLike) -> None:
        """News of an alert: it fired, got worse, or resolved. On the home loop."""
        if self._ended or (self.types and str(alert.type) not in self.types) or not matches(self.pattern, alert.name):
            return
        if alert.resolved:
            if (timer := self._timers.pop(alert.id, None)) is not None:
                timer.cancel()
        elif alert.id not in self._timers:
            self._timers[alert.id] = self.home.loop.call_later(self.lasting, self._lasted, alert)

    def _lasted(self, alert: AlertLike) -> None:
        self._timers.pop(alert.id, None)
        if not any(still.id == alert.id for still in self.monitor.alerts(open_only=True)):
            return  # resolved, and the monitor's rate limit held the news back
        told = alert.message.removeprefix(f"{alert.name}: ")
        error = Unhealthy(
            f"{alert.name} is not well: {told}" + (f", for {self.lasting:g} s" if self.lasting else ""),
            process_id=alert.process_id,
            name=alert.name,
            hint="raise the threshold if this is normal for it",
        )
        self.act(alert.process_id, error)


class Liveness:
    """Asks each process of a pattern again and again whether it is alive; one task for each."""

    def __init__(self, *, pattern: str, probe: Any, interval: float, timeout: float, failures: int, tasks: Tasks, act: Act) -> None:
        """``interval`` and ``timeout`` in seconds; ``failures`` bad answers in a row are one too many."""
        number("interval", interval, above=0, most=LONGEST, what="a positive number of seconds")
        number("timeout", timeout, above=0, most=LONGEST, what="a positive number of seconds")
        failures = whole("failures", failures, least=1)
        self._pattern = text("pattern", pattern)
        self._probe: Probe = as_probe(probe)
        self._interval, self._timeout, self._failures = interval, timeout, failures
        self._tasks = tasks
        self._act = act
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ended = False

    def consider(self, process: ManagedProcess) -> None:
        """Watch it if it fits and is ready. On the home loop."""
        fits = process.ready and process.status.live and matches(self._pattern, process.name)
        if self._ended or not fits or process.id in self._running:
            return
        task = self._tasks.start(self._watch(process), name=f"liveness of {process.name}")
        self._running[process.id] = task
        task.add_done_callback(lambda _: self._running.pop(process.id, None))

    def end(self) -> None:
        """Ask no more."""
        self._ended = True
        for task in tuple(self._running.values()):
            task.cancel()

    async def _watch(self, process: ManagedProcess) -> None:
        bad, why = 0, ""
        while not await process_core(process).ended_within(self._interval):
            if process.paused:
                bad = 0  # its owner wants it to be still
                continue
            why = await self._ask(process)
            bad = bad + 1 if why else 0
            if bad >= self._failures:
                bad = 0
                message = f"{process.name} is not alive: its probe failed {self._failures} times in a row, the last time: {why}"
                error = Unhealthy(
                    message,
                    process_id=process.id,
                    name=process.name,
                    command=process.config.display,
                    last_output=process.tail(),
                    hint="it runs, but does not answer; timeout= and failures= set the patience",
                )
                self._act(process.id, error)

    async def _ask(self, process: ManagedProcess) -> str:
        """Nothing if it answers, else why not."""
        answer, error = await finish(self._probe.check(process), timeout=self._timeout)
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout:g} s"
        return repr_of(error) if error is not None else "" if answer else "it said no"
