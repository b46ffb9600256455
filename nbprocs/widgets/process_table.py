"""The live table of a manager's processes."""

import signal as signals
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from nbprocs.display import Html, plain
from nbprocs.errors import ProcessError, UnknownProcess
from nbprocs.model import EventKind, ProcessEvent, ProcessInfo
from nbprocs.processes.manager import manager_core
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.bell import hear, ring, rung
from nbprocs.widgets.output_pane import PanePart
from nbprocs.widgets.record import ending, status_word, table_html
from nbprocs.widgets.sampling import Reading, Readings, readings_of
from nbprocs.widgets.wire import Delta, Refused, choice, flag, op, text, texts

__all__ = ["ProcessTable", "TablePart"]

COLUMNS = (
    "id",
    "name",
    "cmd",
    "status",
    "pid",
    "start",
    "took",
    "end",
    "restarts",
    "ports",
    "line",
    "cpu",
    "mem",
    "stdin",
    "detached",
    "told",
)
_CPU, _MEM, _PORTS, _TOOK = (COLUMNS.index(name) for name in ("cpu", "mem", "ports", "took"))
LINES_EVERY = 0.5  # seconds: a loud process changes its last line at most this often
HISTORY = 60  # readings in a sparkline
_SELECTED = 2000
SIGNALS = tuple(name for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGTERM", "SIGKILL") if hasattr(signals, name))


class TableRow:
    """What the front ends know of one process."""

    __slots__ = ("cells", "cpu", "key", "mem")

    def __init__(self, key: int, cells: list[Any]) -> None:
        self.key: int = key
        self.cells: list[Any] = cells
        self.cpu: deque[float] = deque(maxlen=HISTORY)
        self.mem: deque[float] = deque(maxlen=HISTORY)


def _cells(info: ProcessInfo, reading: Reading | None) -> list[Any]:
    live = info.status.live
    measures = _measures(reading) if reading is not None and live else [None, None, ""]
    return [
        info.id,
        plain(info.name, limit=120),
        plain(info.config.display, limit=400),
        status_word(info),
        info.pid,
        round(info.created_at.timestamp(), 2),
        None if live else round(info.execution_time, 3),
        plain(ending(info)),
        info.restarts,
        measures[2],
        plain(info.last_line, limit=200),
        measures[0],
        measures[1],
        info.config.stdin is True and live,
        info.config.detach,
        rung(info),
    ]


def _measures(reading: Reading) -> list[Any]:
    cpu = None if reading.cpu is None else _percent(reading.cpu)
    return [cpu, None if reading.memory is None else _megabytes(reading.memory), ", ".join(map(str, reading.ports))]


def _percent(value: float) -> float:
    return round(value) if value >= 10 else round(value, 1)  # noqa: PLR2004 - three digits are enough, and change less often


def _megabytes(size: float) -> float:
    mib = size / 1048576
    return round(mib) if mib >= 100 else round(mib, 1)  # noqa: PLR2004 - as above


class TablePart(Part):
    """Rows by short numbers, so that a change costs a few bytes."""

    kind = "table"

    def __init__(self, manager: Any, readings: Readings) -> None:
        self._manager = manager
        self._readings = readings
        self._rows: dict[str, TableRow] = {}
        self._next_key = 1
        self._dirty: dict[str, None] = {}
        self._removed: list[int] = []
        self._ticked = False
        self._closed_manager = False
        self._unsubscribe: list[Callable[[], None]] = []

    # -- models

    def attach(self, host: Host) -> None:
        """Subscribe to the manager and to the readings."""
        super().attach(host)
        self._rows.clear()
        for info in self._manager.list():
            self._add(info)
        self._dirty.clear()
        self._removed.clear()
        self._unsubscribe = [
            self._manager.subscribe(host.carry(self._on_event), output=True),
            self._readings.subscribe(host.carry(self._on_readings)),
        ]
        hear(self, on=True)

    def detach(self) -> None:
        """Unsubscribe."""
        hear(self, on=False)
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def _add(self, info: ProcessInfo) -> TableRow:
        row = self._rows[info.id] = TableRow(self._next_key, _cells(info, self._reading(info)))
        self._next_key += 1
        for reading in self._readings.history(info.id)[-HISTORY:]:
            cpu, mem, _ = _measures(reading)
            row.cpu.append(cpu or 0)
            row.mem.append(mem or 0)
        return row

    def _reading(self, info: ProcessInfo) -> Reading | None:
        return self._readings.current.get(info.id)

    def _on_event(self, event: ProcessEvent) -> None:
        if event.kind is EventKind.OUTPUT:
            if event.process_id not in self._dirty:
                self._dirty[event.process_id] = None
                self.host.want(self, after=LINES_EVERY)
            return
        if event.kind is EventKind.REMOVED:
            self._dirty.pop(event.process_id, None)
            if (row := self._rows.pop(event.process_id, None)) is not None:
                self._removed.append(row.key)
        elif event.kind is EventKind.CLOSED:
            self._closed_manager = True
        else:
            self._dirty[event.process_id] = None
        self.host.want(self)

    def bell_changed(self, process_id: str) -> None:
        """The bell of that process was set or taken back, perhaps by another view."""
        self.host.carry(self._on_bell)(process_id)

    def _on_bell(self, process_id: str) -> None:
        if process_id in self._rows:
            self._dirty[process_id] = None
            self.host.want(self)

    def _on_readings(self) -> None:
        if not self._readings.current:
            return
        self._ticked = True
        self.host.want(self)

    # -- what the front ends get

    def snapshot(self) -> Delta:
        """All rows, with the readings of the last minute."""
        rows = [[row.key, row.cells, list(row.cpu), list(row.mem)] for row in self._rows.values()]
        content = {
            "columns": COLUMNS,
            "rows": rows,
            "now": time.time(),
            "closed": self._manager.closed,
            "signals": SIGNALS,
            "every": self._readings.interval,
        }
        return Delta(content=content, size=300 * len(rows) + 200)

    def delta(self) -> Delta | None:
        """``+`` new rows, ``u`` changed cells by row, ``-`` gone rows, ``k`` a sparkline step, ``closed``."""
        content: dict[str, Any] = {}
        added: list[list[Any]] = []
        changed: list[list[Any]] = []
        self._changed_rows(added, changed)
        if self._ticked:
            self._ticked = False
            self._tick(changed)
            content["k"] = 1
        if added:
            content["+"] = added
        if changed:
            content["u"] = changed
        if self._removed:
            content["-"], self._removed = self._removed, []
        if self._closed_manager:
            content["closed"] = True
        if not content:
            return None
        return Delta(content=content, size=150 + 300 * len(added) + 40 * len(changed))

    def _changed_rows(self, added: list[list[Any]], changed: list[list[Any]]) -> None:
        dirty, self._dirty = self._dirty, {}
        for process_id in dirty:
            try:
                info = self._manager.get(process_id).info
            except UnknownProcess:
                continue
            row = self._rows.get(process_id)
            if row is None:
                row = self._add(info)
                added.append([row.key, row.cells])
                continue
            cells = _cells(info, self._reading(info))
            if info.status.live:  # measures change with the tick, together with the sparklines
                cells[_CPU], cells[_MEM], cells[_PORTS] = row.cells[_CPU], row.cells[_MEM], row.cells[_PORTS]
            if difference := _difference(row.cells, cells):
                changed.append([row.key, *difference])
                row.cells = cells

    def _tick(self, changed: list[list[Any]]) -> None:
        for process_id, reading in self._readings.current.items():
            row = self._rows.get(process_id)
            if row is None or row.cells[_TOOK] is not None:
                continue
            measures = _measures(reading)
            row.cpu.append(measures[0] or 0)
            row.mem.append(measures[1] or 0)
            old = row.cells
            if measures == [old[_CPU], old[_MEM], old[_PORTS]]:
                continue
            row.cells = [*old]
            row.cells[_CPU], row.cells[_MEM], row.cells[_PORTS] = measures
            changed.append([row.key, *_difference(old, row.cells)])

    @property
    def over(self) -> bool:  # type: ignore[override]
        """The manager was closed, and has said so."""
        return self._closed_manager

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Some process lives."""
        return any(info.status.live for info in self._manager.list())

    def html(self) -> Html:
        """The static record."""
        return table_html(self._manager.list())

    def watch_record(self, changed: Callable[[], None], *, live: bool) -> Callable[[], None]:
        """After a process started or ended; with ``live`` also after output."""

        def heard(event: ProcessEvent) -> None:
            self._closed_manager = self._closed_manager or event.kind is EventKind.CLOSED
            changed()

        return self._manager.subscribe(heard, output=live)  # type: ignore[no-any-return]

    # -- what the front ends may do

    async def _each(self, ids: list[str], act: Callable[[Any], Any]) -> str:
        """Do it to all; one error for all that failed. Sync acts return None, async ones are awaited one after the other's start."""
        problems = []
        started = []
        for process_id in ids:
            try:
                process = self._manager.get(process_id)
                done = act(process)
                if done is not None:
                    started.append(self.host.tasks.start(_attempt(process.name, done), name="table action"))
            except (ProcessError, Refused) as error:
                problems.append(plain(error, limit=300))
        problems += [problem for task in started if (problem := await task)]
        if problems:
            raise Refused("\n".join(problems))
        return f"{len(ids)} done"

    @op(ids=texts(_SELECTED, 100))
    async def stop(self, ids: list[str]) -> str:
        """SIGTERM, grace, SIGKILL for each, at once."""
        return await self._each(ids, lambda process: process.stop())

    @op(ids=texts(_SELECTED, 100))
    async def kill(self, ids: list[str]) -> str:
        """SIGKILL for each."""
        return await self._each(ids, lambda process: process.kill())

    @op(ids=texts(_SELECTED, 100))
    async def pause(self, ids: list[str]) -> str:
        """Suspend each."""
        return await self._each(ids, lambda process: process.pause())

    @op(ids=texts(_SELECTED, 100))
    async def resume(self, ids: list[str]) -> str:
        """Continue each."""
        return await self._each(ids, lambda process: process.resume())

    @op(ids=texts(_SELECTED, 100))
    async def restart(self, ids: list[str]) -> str:
        """Run the same again, under the same name."""
        return await self._each(ids, lambda process: self._manager.restart(process.id))

    @op(ids=texts(_SELECTED, 100), signal=choice(*SIGNALS))
    async def signal(self, ids: list[str], signal: str) -> str:
        """Send a signal to each."""
        return await self._each(ids, lambda process: process.send_signal(signals.Signals[signal]))

    @op(ids=texts(_SELECTED, 100), on=flag)
    async def bell(self, ids: list[str], *, on: bool) -> str:
        """Tell of the end of each that still lives, or not."""
        wanted = set(ids)
        live = [process.id for process in self._manager.list() if process.id in wanted and process.status.live]
        if not live:
            raise Refused("what has ended is told already")
        return await self._each(live, lambda process: ring(process, on=on))

    @op(id=text(100))
    def show(self, id: str) -> str:  # noqa: A002 - the name on the wire
        """Open the output of one; returns the name of the part to mount."""
        process = self._manager.get(id)
        name = f"pane:{process.id}"
        self.host.mount(name, PanePart(process))
        return name


async def _attempt(name: str, action: Awaitable[Any]) -> str:
    try:
        await action
    except ProcessError as error:
        return f"{plain(name)}: {plain(error, limit=300)}"
    return ""


def _difference(old: Iterable[Any], new: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            flat += [index, after]
    return flat


class ProcessTable(View):
    """A live table of a manager's processes: sort, filter, select, stop, restart, pause, signal, show output.

    ``monitor`` is a ProcessMonitor whose readings are shown; without one, a private one samples while somebody looks.

    >>> async with ProcessManager() as pm:
    ...     ProcessTable(pm).close()
    """

    def __init__(self, manager: Any, *, monitor: Any = None, height: int = 360) -> None:
        part = TablePart(manager, readings_of(manager, monitor))
        super().__init__({"table": part}, model=manager, home=manager_core(manager).home, height=height)
