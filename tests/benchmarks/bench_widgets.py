"""What views cost: bytes on the wire, CPU of the kernel, and the time from a click to its effect.

Wire bytes are those of the messages as a kernel sends them: JSON content with its four headers, and raw buffers. CPU is the thread's own time.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from nbprocs import ProcessManager, ProcessStatus
from nbprocs.model import ProcessConfig, ProcessInfo
from nbprocs.widgets import OutputPane, ProcessTable
from nbprocs.widgets.sampling import Reading
from tests.unit.widgets_kit import Tab

ROWS, CHANGING, REFRESHES, SECONDS = 500, 25, 2, 6
HEADERS = 700  # bytes: header, parent header, metadata, signature and delimiters of one comm message, as measured on a real kernel's socket


def wire(content: Any, buffers: Any = ()) -> int:
    """About the bytes of one message."""
    return HEADERS + len(json.dumps({"method": "custom", "content": content}).encode()) + sum(len(b) for b in buffers or ())


class Meter:
    """Stands in for the comm of a view, and counts."""

    def __init__(self, view: Any) -> None:
        self.bytes = self.messages = 0
        view.__dict__["send"] = self.send

    def send(self, content: Any, buffers: Any = None) -> None:
        self.bytes += wire(content, buffers)
        self.messages += 1


def cpu() -> float:
    """Seconds of CPU of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def plain_table(infos: Sequence[ProcessInfo]) -> str:
    """The leanest HTML table of the same columns, without any styling: what a widget of HTML would send each time."""
    rows = "".join(
        f"<tr><td>{i.name}<td>{i.config.display}<td>{i.status}<td>{i.pid}<td>{i.execution_time:.0f} s<td>1.0<td>50.1<td>{i.last_line}"
        for i in infos
    )
    return f"<table>{rows}</table>"


class Crowd:
    """A manager of many processes that exist on paper only, so that what is measured is the view."""

    def __init__(self, home: Any, tasks: Any) -> None:
        from datetime import UTC, datetime

        self.home, self.tasks = home, tasks
        now = datetime.now(UTC)
        self.infos = {
            f"id-{i}": ProcessInfo(
                id=f"{i:08x}-0000-4000-8000-{i:012x}",
                name=f"process-{i}",
                pid=10_000 + i,
                status=ProcessStatus.RUNNING,
                created_at=now,
                config=ProcessConfig(command="python", args=("-u", "train.py", "--seed", str(i))),
                last_line=f"step 0 of process {i}",
            )
            for i in range(ROWS)
        }

    def list(self) -> tuple[ProcessInfo, ...]:
        return tuple(self.infos.values())

    def subscribe(self, _callback: Callable[..., object], **_: object) -> Callable[[], None]:
        return lambda: None


class Pulse:
    """Readings in which a twentieth of the processes change."""

    interval = 1 / REFRESHES

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.turn = crowd, 0
        self.callbacks: list[Callable[[], None]] = []
        self.current = {info.id: Reading(at=0.0, cpu=1.0, memory=50e6) for info in crowd.list()}

    def history(self, _: str) -> list[Reading]:
        return []

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def beat(self) -> None:
        keys = list(self.current)
        for i in range(CHANGING):
            key = keys[(self.turn * CHANGING + i) % ROWS]
            self.current[key] = Reading(at=float(self.turn), cpu=5.0 + self.turn % 90, memory=50e6 + 3e6 * (self.turn % 50 + 1))
        self.turn += 1
        for callback in self.callbacks:
            callback()


async def table_run() -> tuple[float, float, float]:
    """Bytes a second and share of a core of the table; bytes a second of the same as an HTML table."""
    async with ProcessManager() as pm:
        crowd = Crowd(pm.home, pm.tasks)
        view = ProcessTable(crowd)
        pulse = Pulse(crowd)
        view.parts["table"]._readings = pulse
        meter = Meter(view)
        view._judge({"do": "hello", "view": "tab"})
        meter.bytes = 0
        began, used = time.perf_counter(), cpu()
        for beat in range(SECONDS * REFRESHES):
            pulse.beat()
            await asyncio.sleep(max(began + (beat + 1) / REFRESHES - time.perf_counter(), 0))
        took, used = time.perf_counter() - began, cpu() - used
        view.close()
        await asyncio.sleep(0)
        rendered = len(plain_table(crowd.list()).encode()) + HEADERS
        return meter.bytes / took, used / took, rendered * REFRESHES


def test_table_of_500(bench: Any) -> None:
    rates: dict[str, list[float]] = {"bytes": [], "cpu": [], "html": []}

    def measured(name: str) -> Callable[[], float]:
        def run() -> float:
            for key, value in zip(rates, asyncio.run(table_run()), strict=True):
                rates[key].append(value)
            return rates[name][-1]

        return run

    row = "table of 500 processes, 5 % changing, 2 refreshes a second"
    bench.row(
        f"{row}: bytes a second",
        ours=measured("bytes"),
        peers={"HTML re-render": lambda: rates["html"][-1] if rates["html"] else measured("html")()},
        at_most={"HTML re-render": 1 / 20},
        ceiling=40_000,
        unit="B/s",
    )
    bench.row(f"{row}: kernel", ours=measured("cpu"), ceiling=0.05, unit="cores")


LOUD = """
import sys, time
line = 'x' * 60 + ' %08d\\n'
began, n = time.monotonic(), 0
while time.monotonic() - began < float(sys.argv[1]):
    sys.stdout.write(''.join(line % (n + i) for i in range(500))); sys.stdout.flush()
    n += 500
    time.sleep(max(began + n / 50_000 - time.monotonic(), 0))
"""


async def loud_run(*, shown: bool) -> tuple[float, float, float]:
    """Share of a core of the kernel, bytes a second, and the worst wait for a reply in seconds, with a child that prints 50,000 lines a second."""
    async with ProcessManager() as pm:
        process = await pm.spawn(sys.executable, "-c", LOUD, str(SECONDS))
        view = OutputPane(process)
        tab = Tab(view) if shown else None
        sizes: list[int] = []
        waits = [0.0]
        if tab is not None:
            send = view.__dict__["send"]
            view.__dict__["send"] = lambda content, buffers=None: (sizes.append(wire(content, buffers)), send(content, buffers))
            await tab.hello()
        began, used = time.perf_counter(), cpu()
        while process.status.live:
            await asyncio.sleep(0.25)
            if tab is not None:
                asked = time.perf_counter()
                await tab.call("view", "snapshot", part="none")
                waits.append(time.perf_counter() - asked)
        took, used = time.perf_counter() - began, cpu() - used
        assert process.stdout.end > 40_000 * SECONDS * 70
        view.close()
        await asyncio.sleep(0)
        return used / took, sum(sizes) / took, max(waits)


def test_loud_child(bench: Any) -> None:
    found: list[tuple[float, float, float]] = []

    def views() -> float:
        bare = asyncio.run(loud_run(shown=False))
        full = asyncio.run(loud_run(shown=True))
        found.append(full)
        return max(full[0] - bare[0], 0.0)

    row = "a child printing 50,000 lines a second into a pane"
    bench.row(f"{row}: kernel on views", ours=views, ceiling=0.25, unit="cores", rounds=2)
    bench.row(f"{row}: on the wire", ours=lambda: sorted(f[1] for f in found)[len(found) // 2], ceiling=1_000_000, unit="B/s", rounds=1)
    bench.row(f"{row}: from a click to its reply", ours=lambda: max(f[2] for f in found), ceiling=0.3, unit="s", rounds=1)


async def pane_bytes(lines: list[str]) -> int:
    """The bytes for some lines that come at once, through a pane."""
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True)
        view = OutputPane(process)
        tab = Tab(view)
        sizes: list[int] = []
        send = view.__dict__["send"]
        view.__dict__["send"] = lambda content, buffers=None: (sizes.append(wire(content, buffers)), send(content, buffers))
        await tab.hello()
        for line in lines:
            await process.send(line)
        await process.close_stdin()
        await process.wait()
        while process.stdout.end > len(tab.output()):
            await asyncio.sleep(0.01)
        view.close()
        await asyncio.sleep(0)
        return sum(sizes)


def output_bytes(lines: list[str]) -> int:
    """The same through ``Output.append_stdout``: every line sends all of them again."""
    output = ipywidgets.Output()
    total = [0]

    def sent(change: Any) -> None:
        total[0] += HEADERS + len(json.dumps({"method": "update", "state": {"outputs": change["new"]}}))

    output.observe(sent, "outputs")
    for line in lines:
        output.append_stdout(line)
    output.close()
    return total[0]


def test_2000_lines(bench: Any) -> None:
    lines = [f"line {i:6d} of the output of some program, of a usual length\n" for i in range(2000)]
    bench.row(
        "2,000 lines",
        ours=lambda: asyncio.run(pane_bytes(lines)),
        peers={"Output.append_stdout": lambda: output_bytes(lines)},
        at_most={"Output.append_stdout": 1 / 400},
        unit="B",
        rounds=1,
    )


FIRST = """
import time; began = time.perf_counter()
import asyncio, nbprocs
async def main():
    pm = nbprocs.ProcessManager()
    await pm.spawn('sleep', '1000')
    view = nbprocs.Dashboard(pm)
    seen = []
    view.__dict__['send'] = lambda content, buffers=None: seen.append(content)
    bundle = view._repr_mimebundle_()
    view._judge({'do': 'hello', 'view': 'tab'})
    assert seen[-1]['s']['table']['rows'] and bundle['text/html']
    print(time.perf_counter() - began)
    view.close()
    await pm.aclose()
asyncio.run(main())
"""


def test_first_pixel(bench: Any) -> None:
    def cold() -> float:
        return float(subprocess.run([sys.executable, "-c", FIRST], capture_output=True, check=True, text=True).stdout)

    def stack() -> float:
        code = (
            "import time; b = time.perf_counter(); import IPython, ipywidgets, anywidget, psutil, asyncio; print(time.perf_counter() - b)"
        )
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)

    row = "a dashboard, cold: import, a process, the view and its first snapshot (kernel's part)"
    bench.row(row, ours=cold, peers={"import of IPython and anywidget alone": stack}, ceiling=1.5, unit="s")
