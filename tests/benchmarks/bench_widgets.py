"""What views cost: bytes on the wire, CPU of the kernel, the time from a click to its effect, and from the start of a cell to the first pixel.

Wire bytes are all frames of a message as ipykernel puts it on its socket: serialised and signed by Jupyter's own Session, with its headers
(about 600 bytes) and raw buffers; only ZeroMQ's framing, a few bytes a frame, is left out. CPU is the thread's own time.
The first pixel needs Chromium and Playwright, as the browser tests do; only those two rows are skipped without them.
"""

import asyncio
import functools
import os
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import pytest
from jupyter_client.session import Session

from nbprocs import ProcessManager, ProcessStatus
from nbprocs.model import ProcessConfig, ProcessInfo
from nbprocs.processes.manager import manager_core
from nbprocs.widgets import OutputPane, ProcessTable
from nbprocs.widgets.sampling import Reading
from tests.benchmarks.harness import sized
from tests.browser.server import CHROMIUM, FLAGS, Server, missing, serve
from tests.unit.widgets_kit import Tab

ROWS, CHANGING, REFRESHES, SECONDS = 500, 25, 2, sized(6, quick=3)
SESSION, COMM = Session(key=uuid.uuid4().hex.encode()), uuid.uuid4().hex
PARENT = Session().msg_header("execute_request")


def wire(data: Any, buffers: Any = ()) -> int:
    """The bytes of one comm message, as ipykernel sends it."""
    message = SESSION.msg("comm_msg", {"data": data, "comm_id": COMM}, parent={"header": PARENT})
    frames = SESSION.serialize(message, ident=b"comm-" + COMM.encode())
    return sum(map(len, frames)) + sum(len(b) for b in buffers or ())


def wire_custom(content: Any, buffers: Any = ()) -> int:
    """The bytes of what ``Widget.send`` sends."""
    return wire({"method": "custom", "content": content}, buffers)


def wire_trait(name: str, value: Any) -> int:
    """The bytes of the update of one trait."""
    return wire({"method": "update", "state": {name: value}, "buffer_paths": []})


class Meter:
    """Stands in for the comm of a view, and counts."""

    def __init__(self, view: Any) -> None:
        self.bytes = self.messages = 0
        view.outlets.append(self.send)

    def send(self, content: Any, buffers: Any = None) -> None:
        self.bytes += wire_custom(content, buffers or ())
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

    closed = False

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
        crowd = Crowd(manager_core(pm).home, manager_core(pm).tasks)
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
        rendered = wire_trait("value", plain_table(crowd.list()))
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
            view.__dict__["send"] = lambda content, buffers=None: (sizes.append(wire_custom(content, buffers)), send(content, buffers))
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
        view.outlets.append(lambda content, buffers: sizes.append(wire_custom(content, buffers or ())))
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
        total[0] += wire_trait("outputs", change["new"])

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
    view.outlets.append(lambda content, buffers: seen.append(content))
    bundle = view.record()
    view._judge({'do': 'hello', 'view': 'tab'})
    assert seen[-1]['s']['table']['rows'] and bundle['text/html']
    print(time.perf_counter() - began)
    view.close()
    await pm.aclose()
asyncio.run(main())
"""


def test_first_snapshot(bench: Any) -> None:
    def cold() -> float:
        return float(subprocess.run([sys.executable, "-c", FIRST], capture_output=True, check=True, text=True).stdout)

    def stack() -> float:
        code = (
            "import time; b = time.perf_counter(); import IPython, ipywidgets, anywidget, psutil, asyncio; print(time.perf_counter() - b)"
        )
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)

    row = "a dashboard, cold: import, a process, the view and its first snapshot (kernel's part)"
    bench.row(row, ours=cold, peers={"import of IPython and anywidget alone": stack}, ceiling=1.5, unit="s")


# In the page: the time of the key press, and that of the first frame with something in it. A frame is known to be painted when a task
# that was queued from its animation callback runs: callbacks come before the paint, tasks after it.
WATCH = """(wanted) => {
  const times = (window.times = {});
  addEventListener("keydown", (event) => event.key === "Enter" && (times.pressed ??= event.timeStamp), true);
  const look = () => {
    if (times.found || !document.querySelector(wanted)?.getBoundingClientRect().height) return;
    times.found = true;
    const painted = new MessageChannel();
    painted.port1.onmessage = () => (times.painted = performance.now());
    requestAnimationFrame(() => painted.port2.postMessage(null));
  };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
}"""
QUIET = 1500  # milliseconds for the page to settle before the key is pressed
EMPTY = "import nbprocs; pm = nbprocs.ProcessManager(); d = nbprocs.Dashboard(pm); d"
BUSY = "import nbprocs; pm = nbprocs.ProcessManager(); await pm.spawn('sleep', '1000'); d = nbprocs.Dashboard(pm); d"
BARE = """
import anywidget
class Bare(anywidget.AnyWidget):
    _esm = "export default { render({ el }) { el.innerHTML = '<p class=bare>here</p>'; } }"
Bare()
"""


class Stopwatch:
    """JupyterLab in a browser: from Shift+Enter in a fresh kernel, which has imported nothing, to what is painted."""

    def __init__(self, server: Server, browser: Any) -> None:
        self.server, self.browser, self.runs = server, browser, 0

    def painted(self, code: str, wanted: str) -> float:
        """Seconds until an element shows, in a notebook, a page and a kernel of its own (the page has an empty cache)."""
        self.runs += 1
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.server.folder / f"{self.runs}.ipynb")
        context = self.browser.new_context(viewport={"width": 1280, "height": 900})
        try:
            page = context.new_page()
            page.goto(self.server.url(f"{self.runs}.ipynb"), timeout=90_000)
            prompt = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
            prompt.wait_for(timeout=90_000)
            page.locator("[data-status='idle']").first.wait_for(timeout=90_000)
            page.wait_for_load_state("networkidle")
            prompt.click()
            page.wait_for_timeout(QUIET)
            page.evaluate(WATCH, wanted)
            page.keyboard.press("Shift+Enter")
            page.wait_for_function("() => times.painted", timeout=30_000)
            return float(page.evaluate("(times.painted - times.pressed) / 1000"))
        finally:
            context.close()
            self.server.end_kernels()


@pytest.fixture
def stopwatch(tmp_path: Path) -> Iterator[Stopwatch]:
    """A server and a browser, once for both rows."""
    if lacking := missing("playwright", "jupyterlab"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the first pixel is seen in a browser, which needs {', '.join(lacking)}")
    from playwright.sync_api import sync_playwright

    with serve("lab", tmp_path) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield Stopwatch(server, browser)
        browser.close()


def test_first_pixel(bench: Any, stopwatch: Stopwatch) -> None:
    row = "JupyterLab, a fresh kernel, from Shift+Enter"
    bare = {"the smallest anywidget": lambda: stopwatch.painted(BARE, ".bare")}
    for what, code, wanted in (
        ("the first pixel of a dashboard", EMPTY, ".nb-view .nb-section"),
        ("a started process's row in a dashboard", BUSY, ".nb-view .nb-space .nb-row"),
    ):
        ours = functools.partial(stopwatch.painted, code, wanted)
        bench.row(f"{row} to {what}", ours=ours, peers=bare, ceiling=1.5, unit="s", rounds=5)
