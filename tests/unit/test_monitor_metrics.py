"""One table of metrics: everything that shows or keeps a metric derives from it."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nbprocs
from nbprocs.monitor import AlertSeverity, AlertThresholds, ProcessMetrics, Scope
from nbprocs.monitor.history import COLUMNS, ROW_BYTES
from nbprocs.monitor.metrics import METRICS, Fold, Metric, Prometheus, Rest

HERE = Path(nbprocs.__file__).parent
LINE = """
    faults: Annotated[int | None, Metric(
        dtype="i4", label="Faults", unit="pages", fold=Fold.SUM, alert=AlertType.MEMORY_USAGE, head="faults", summary=(("faults_max", "max"),),
        prometheus=Prometheus("faults_total", "Minor page faults."),
    )]
"""
READING = """
        "faults": int(open(f"/proc/{row.pid}/stat").read().rsplit(")", 1)[1].split()[7]),
"""
USE = """
import asyncio, os
from nbprocs.monitor import ProcessMonitor, Rule
from nbprocs.monitor.history import ROW_BYTES
async def main():
    async with ProcessMonitor(interval=None, rules=[Rule(metric="faults", above=10)]) as mon:
        mon.add(os.getpid(), name="me")
        await mon.sample(); await mon.sample()
        frame = mon.frame()
        assert frame["faults"].iloc[-1] > 10 and str(frame["faults"].dtype) == "Int32", frame
        assert mon.metrics("me").faults > 10
        assert mon.latest().loc["me", "faults"] > 10
        assert mon.summary().loc["me", "faults_max"] > 10
        assert "nbprocs_faults_total{" in mon.export_prometheus()
        assert "faults" in mon._repr_mimebundle_()["text/html"]
        (alert,) = mon.alerts()
        assert alert.message.startswith("me: Faults ") and alert.message.endswith(" pages (above 10)"), alert.message
        assert mon.plot(metrics=["faults"]).axes[0].get_ylabel() == "Faults (pages)"
        print(ROW_BYTES)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the reading of the example is Linux's")
def test_a_new_column_is_one_line_and_its_reading(tmp_path):
    """The package with the two lines added, and nothing else changed."""
    copy = tmp_path / "nbprocs"
    shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("js", "static", "__pycache__"))
    for file, mark, line in (
        ("metrics.py", "    # the latest measurement: seldom", LINE),
        ("sampler.py", '        "processes": 1,\n        "read_bytes"', READING),
    ):
        path = copy / "monitor" / file
        text = path.read_text()
        assert text.count(mark) == 1
        path.write_text(text.replace(mark, line.strip("\n") + "\n" + mark))
    found = subprocess.run(
        [sys.executable, "-c", USE], check=False, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) == ROW_BYTES + 4


def test_each_field_of_a_sample_but_whose_it_is_is_a_metric():
    others = {"process_id", "name", "pid", "timestamp", "state", "ports"}
    assert set(METRICS) == set(ProcessMetrics.__dataclass_fields__) - others
    assert list(COLUMNS)[4:] == list(METRICS)
    assert sum(np.dtype(kind).itemsize for kind in COLUMNS.values()) == ROW_BYTES


def test_each_threshold_is_of_one_metric():
    fields = list(AlertThresholds.__dataclass_fields__)
    assert sorted(metric.threshold.field for metric in METRICS.values() if metric.threshold) == sorted(fields)
    rules = AlertThresholds(**dict.fromkeys(fields, 0.5)).rules()[2:]
    assert [(rule.metric, rule.limit, rule.clear, rule.severity, rule.scope) for rule in rules] == [
        ("memory_usage_mb", 0.5, 0.475, AlertSeverity.WARNING, Scope.TREE),
        ("cpu_percent", 0.5, 0.475, AlertSeverity.WARNING, Scope.TREE),
        ("response_time", 0.5, 0.475, AlertSeverity.WARNING, None),
        ("error_rate", 0.5, 0.475, AlertSeverity.CRITICAL, None),
        ("idle_seconds", 0.5, 0.5, AlertSeverity.CRITICAL, Scope.TREE),
    ]


@pytest.mark.parametrize(
    ("dtype", "fold", "values", "whole"),
    [
        ("f4", Fold.SUM, [1.5, 2.5], 4.0),
        ("f4", Fold.SUM, [1.5, math.nan], math.nan),
        ("f4", Fold.SUM, [], 0.0),
        ("f4", Fold.KNOWN, [1.5, math.nan], 1.5),
        ("f4", Fold.KNOWN, [math.nan], math.nan),
        ("f4", Fold.KNOWN, [], 0.0),
        ("i4", Fold.SUM, [1, 2], 3),
        ("i4", Fold.SUM, [1, -1], -1),
        ("i4", Fold.KNOWN, [1, -1], 1),
        ("i4", Fold.KNOWN, [-1], -1),
        ("i2", Fold.SUM, [30_000, 30_000], 32_767),
    ],
)
def test_values_of_members_become_that_of_the_whole(dtype, fold, values, whole):
    assert Metric(dtype=dtype, label="x", fold=fold).folded(values) == pytest.approx(whole, nan_ok=True)


@pytest.mark.parametrize(
    ("rest", "expected"), [(Rest.HELD, [2, 3]), (Rest.ZERO, [0, 0]), (Rest.CLOCK, [2.5, 4]), (Rest.UNKNOWN, [math.nan] * 2)]
)
def test_what_rest_does_to_a_value(rest, expected):
    found = Metric(dtype="f4", label="x", rest=rest).rested(np.array([2.0, 3.0]), np.array([0.5, 1.0]))
    assert np.broadcast_to(found, 2).tolist() == pytest.approx(expected, nan_ok=True)


def test_the_kind_of_a_prometheus_family_is_by_its_name():
    assert (Prometheus("x_total", "").kind, Prometheus("x", "").kind) == ("counter", "gauge")
