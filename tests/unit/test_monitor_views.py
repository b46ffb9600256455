"""Plots, Prometheus's text, and recordings of one command."""

import asyncio
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import nbprocs
from nbprocs.display import GREY, PALETTE
from nbprocs.monitor import AlertThresholds, ProcessMonitor, Recording, record, replay
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.plots import plot
from tests.children import SLEEPER, python_child


def frame_of(count, samples=100):
    """Samples of some processes; the last one fails at the end."""
    times = pd.date_range("2026-01-01", periods=samples, freq="s", tz="UTC")
    parts = []
    for number in range(count):
        memory = 50 + 10 * number + np.linspace(0, 3 * number, samples)
        part = pd.DataFrame({"timestamp": times, "name": f"job-{number}", "memory_usage_mb": memory, "cpu_percent": number})
        part["scope"], part["state"] = "tree", "running"
        parts.append(part)
    parts[-1].loc[samples - 1, ["memory_usage_mb", "cpu_percent", "state"]] = [np.nan, np.nan, "failed"]
    return pd.concat(parts).sort_values("timestamp", kind="stable").reset_index(drop=True)


@pytest.fixture(scope="module", autouse=True)
def fonts():
    """matplotlib keeps its font files open from the first drawing on."""
    plot(frame_of(1))._repr_png_()


def texts(panel):
    return [text.get_text() for text in panel.texts]


@pytest.mark.parametrize(("count", "above"), [(1, -12), (5, -12), (7, 1000), (50, -12), (50, 5000)])
def test_plots_are_readable_with_one_and_with_fifty(count, above):
    frame = frame_of(count)
    limit = 50 + 10 * count + above
    alerts = replay(frame, AlertThresholds(max_memory_mb=limit))
    figure = plot(frame, alerts, thresholds=AlertThresholds(max_memory_mb=limit))
    memory, cpu, events = figure.axes
    named = count if count <= 7 else 5
    colours = [line.get_color() for line in memory.lines if line.get_color() in PALETTE]
    assert len(colours) == len(set(colours)) == named
    assert sum(line.get_color() == GREY for line in memory.lines) == count - named
    assert f"job-{count - 1}" in texts(memory)  # the highest is named
    assert f"limit {limit}" in texts(memory)
    assert (f"{count - 5} more" in texts(memory)) == (count > 7)
    assert f"job-{count - 1}" in [tick.get_text() for tick in events.get_yticklabels()]
    figure.canvas.draw()
    for panel in (memory, cpu):  # no two names on top of each other
        boxes = [text.get_window_extent() for text in panel.texts if text.get_text().startswith("job-")]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert memory.get_ylabel() == "Memory (MiB)"
    assert memory.get_ylim()[1] >= limit


def test_a_plot_shows_itself_without_pyplot_and_its_state():
    code = """
import sys
import pandas as pd
from nbprocs.monitor.plots import plot
t = pd.date_range("2026-01-01", periods=3, freq="s", tz="UTC")
f = plot(pd.DataFrame({"timestamp": t, "name": "a", "scope": "tree", "state": "running", "memory_usage_mb": [1., 2, 3], "cpu_percent": 1.0}))
assert f._repr_png_().startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_plot_of_nothing_says_so():
    figure = plot(frame_of(1).iloc[:0])
    assert "no samples yet" in texts(figure.axes[-1])


def test_a_long_line_is_thinned_and_keeps_its_peaks():
    frame = frame_of(1, samples=50_000)
    frame.loc[31_415, "memory_usage_mb"] = 10_000
    (line,) = plot(frame).axes[0].lines
    assert len(line.get_xdata()) <= 2100
    assert max(line.get_ydata()) == 10_000


def test_other_metrics_can_be_drawn():
    frame = frame_of(2).assign(file_descriptors=pd.array([7] * 200, dtype="Int32"))
    figure = plot(frame, metrics=["file_descriptors"], title="Descriptors")
    assert figure.axes[0].get_ylabel() == "Open descriptors"
    figure.savefig(io.BytesIO(), format="png")


LINE = re.compile(r'^[a-z_]+\{name="(\\.|[^"\\])*"(,[a-z]+="(\\.|[^"\\])*")*\} (\+Inf|-?[0-9.e+-]+)$')


async def test_prometheus_text():
    async with nbprocs.ProcessManager() as pm, ProcessMonitor(interval=None, gpu=Gpu(library=None)) as mon:
        assert mon.export_prometheus() == ""
        mon.watch(pm)
        proc = await pm.spawn(*SLEEPER, name='we"ird\\na\nme')
        await (await pm.spawn("false", name="bad")).wait()
        await mon.sample()
        found = mon.export_prometheus()
    lines = found.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(LINE.match(line) for line in samples), [line for line in samples if not LINE.match(line)]
    label = 'name="we\\"ird\\\\na\\nme"'
    assert f'nbprocs_up{{{label},pid="{proc.pid}",scope="tree"}} 1' in lines
    assert any(line.startswith('nbprocs_up{name="bad"') and line.endswith(" 0") for line in lines)
    assert 'nbprocs_alert_open{name="bad",type="process_down",severity="critical"} 1' in lines
    assert 'nbprocs_errors_total{name="manager",pid="",scope="group"} 1' in lines
    assert not any("nan" in line.lower() for line in samples)  # what was not measured is left out
    assert not any("response" in line for line in samples)
    helps = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(helps) == len(set(helps))
    assert found.endswith("\n")


async def test_a_recording_holds_the_whole_tree_of_one_command():
    code = "import subprocess, sys; x = bytearray(50 << 20); subprocess.run([sys.executable, '-c', 'x = bytearray(80 << 20); import time; time.sleep(.4)'])"
    async with record(*python_child(code), interval=0.02) as run:
        assert run.result is None
        assert run.process.pid
    assert isinstance(run, Recording)
    assert run.result.exit_code == 0
    frame = run.frame()
    assert frame["memory_usage_mb"].max() > 130
    assert frame["processes"].max() == 2
    assert frame["state"].iloc[-1] == "completed"
    assert run.summary().iloc[0]["memory_max_mb"] > 130
    assert run.result.peak_rss is None or run.result.peak_rss > 50 << 20  # unknown below our own peak
    assert len(run.plot().axes) == 3


async def test_a_failed_command_is_told_not_raised_and_a_failed_block_stops_it():
    async with ProcessMonitor(interval=None, gpu=Gpu(library=None)) as mon:
        async with mon.record("sh", "-c", "exit 3") as run:
            pass
        assert run.result.exit_code == 3
        assert run.frame()["state"].iloc[-1] == "failed"
        with pytest.raises(RuntimeError, match="mine"):
            async with mon.record(*SLEEPER) as run:
                raise RuntimeError("mine")
        assert run.result.status is nbprocs.ProcessStatus.TERMINATED
        with pytest.raises(nbprocs.StartupFailed):
            async with mon.record("/no/such/program"):
                pass


async def test_an_interrupted_recording_leaves_nothing():
    began = asyncio.Event()
    runs = []

    async def cell():
        async with record(*SLEEPER) as run:
            runs.append(run)
            began.set()
            await run.wait()

    task = asyncio.create_task(cell())
    await began.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not os.path.exists(f"/proc/{runs[0].process.pid}")


def test_the_package_imports_no_pandas_numpy_or_matplotlib():
    code = (
        "import sys, json, nbprocs.monitor; print(json.dumps([m for m in ('pandas', 'numpy', 'matplotlib', 'pynvml') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert json.loads(out) == []
