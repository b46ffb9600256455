"""Detached processes: what it costs to take one up again, to read its log, to be one, and to list two hundred of them."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nbprocs import ProcessManager
from nbprocs.engine.records import records
from tests.benchmarks.harness import sized

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
BIG = sized(1024, quick=256) * MIB
LOG = sized(256, quick=64) * MIB
LINES = f"yes {'x' * 79} | head -c {LOG}"
FLAT_OUT = sized(8192, quick=256) * MIB  # the log keeps a GiB: seven eighths are written over what is older
PROCESSES = sized(200, quick=40)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Folders of the benchmark's own; what was detached is ended."""
    monkeypatch.setenv("NBPROCS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield tmp_path
    for record in records():
        if record.live and record.pid:
            os.kill(record.pid, signal.SIGKILL)


# --- taking one up again ----------------------------------------------------------------------------------------------------------


async def _adopted(*, big):
    """Seconds until the handle is there, of a live one whose log has a GiB, or a line."""
    async with ProcessManager() as first:
        job = await first.spawn("sh", "-c", f"{f'yes | head -c {BIG};' if big else ''} echo; sleep 1000", name="job", detach=True)
        while job.stdout.end < (BIG if big else 1):
            await asyncio.sleep(0.01)
    async with ProcessManager() as pm:
        began = time.perf_counter()
        job = await pm.adopt("job")
        took = time.perf_counter() - began
        assert job.stdout.end > (BIG if big else 0)
        await job.stop()
    forget()
    return took


def forget():
    """Records and logs, so that the disk has room for the next."""
    import nbprocs

    while [record for record in records() if record.live]:
        time.sleep(0.01)
    nbprocs.forget()


def test_adoption(bench):
    bench.row(
        "adopt with 1 GiB of log, to the handle",
        ours=lambda: _adopted(big=True),
        peers={"with one line of log": lambda: _adopted(big=False)},
        ceiling=0.1,
        unit="s",
    )


# --- reading ----------------------------------------------------------------------------------------------------------------------


async def _lines(*, detach):
    """MB/s of lines() over what lies on disk, once it has ended."""
    async with ProcessManager() as pm:
        job = await pm.spawn("sh", "-c", LINES, name="job", detach=detach)
        await job.wait()
        count, began = 0, time.perf_counter()
        async for _ in job.lines():
            count += 1
        took = time.perf_counter() - began
        assert count == LOG // 80 + bool(LOG % 80)
    forget()
    return LOG / took / 1e6


def test_reading(bench):
    """A local spill keeps its youngest 8 MiB in memory; what is before that is in an unlinked file."""
    bench.row(
        "lines() of 256 MiB, detached",
        ours=lambda: _lines(detach=True),
        peers={"a local spill": lambda: _lines(detach=False)},
        at_least={"a local spill": 0.9},
        unit="MB/s",
    )


# --- writing ----------------------------------------------------------------------------------------------------------------------

WRITER = f"head -c {FLAT_OUT} /dev/zero"
peak = [0]


async def _flat_out():
    """MB/s of a child that writes as fast as it can, most of which is dropped again: the log keeps a GiB."""
    async with ProcessManager() as pm:
        began = time.perf_counter()
        job = await pm.spawn("sh", "-c", WRITER, name="job", detach=True)
        shim = psutil.Process(next(record.shim_pid for record in records() if record.id == job.id))
        while job.status.live:
            with_shim = asyncio.ensure_future(job.wait())
            await asyncio.wait({with_shim}, timeout=0.1)
            if with_shim.done():
                break
            with_shim.cancel()
            peak[0] = max(peak[0], shim.memory_info().rss)
        took = (await job.wait()).execution_time
        assert job.stdout.end == FLAT_OUT
        assert time.perf_counter() - began >= took
    forget()
    return FLAT_OUT / took / 1e6


def _through_cat():
    began = time.perf_counter()
    subprocess.run(f"{WRITER} | cat >/dev/null", shell=True, check=True)
    return FLAT_OUT / (time.perf_counter() - began) / 1e6


def test_writing(bench):
    bench.row(
        "a detached child writes flat out",
        ours=_flat_out,
        peers={"… | cat >/dev/null": _through_cat},
        at_least={"… | cat >/dev/null": 0.7},
        unit="MB/s",
    )
    bench.row("the memory of its shim", ours=lambda: peak[0] / MIB, ceiling=32, unit="MiB", rounds=1)


# --- listing ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(home, monkeypatch):
    """Two hundred detached ones that sleep, each with its shim. Compiled modules are kept, as where nbprocs is installed."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(home / "compiled"))

    async def start():
        async with ProcessManager() as pm:
            for number in range(PROCESSES):
                await pm.spawn("sleep", "1000", name=f"job-{number}", detach=True)

    asyncio.run(start())


def _listed():
    done = subprocess.run([sys.executable, "-m", "nbprocs", "ps"], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) - 1 == PROCESSES


def _cpu_of_listing():
    """Seconds of CPU of the command and of all shims: what the wall clock shows on a machine with nothing else to do, or less."""
    shims = [Path(f"/proc/{record.shim_pid}/schedstat") for record in records()]

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime + sum(int(shim.read_text().split()[0]) for shim in shims) / 1e9

    before = used()
    _listed()
    return used() - before


@pytest.mark.usefixtures("many")
def test_listing(bench):
    _listed()
    bench.row("CPU of nbprocs ps with 200 processes, shims included", ours=_cpu_of_listing, ceiling=0.3, unit="s")
    bench.row(
        "nbprocs ps with 200 processes",
        ours=_listed,
        peers={"an interpreter that does nothing": lambda: subprocess.run([sys.executable, "-c", ""], check=True) and None},
        ceiling=0.3,
        unit="s",
    )
