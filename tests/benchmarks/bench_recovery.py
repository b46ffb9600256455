"""Supervision: how soon a killed process runs again, and what a thousand idle ones cost."""

import asyncio
import os
import signal
import statistics
import subprocess
import time

from nbprocs import EventKind, LogLine, ProcessManager, RestartPolicy
from tests.benchmarks.harness import sized
from tests.children import SLEEPER

ROUNDS = sized(60, quick=15)
AT_ONCE = RestartPolicy(initial_delay=0, max_restarts=1_000_000)


async def _restarts(command, *, kind, **options):
    """Median seconds from the kill to the event of the restarted process."""
    async with ProcessManager() as pm:
        up = asyncio.Event()
        pm.subscribe(lambda event: event.kind is kind and event.info.restarts and up.set())
        await pm.spawn(*command, name="web", restart=AT_ONCE, **options)
        took = []
        for _ in range(ROUNDS):
            up.clear()
            process = pm.get("web")
            began = time.perf_counter()
            os.kill(process.pid, signal.SIGKILL)
            await up.wait()
            took.append(time.perf_counter() - began)
        return statistics.median(took)


async def _spawns(command, *, crash=False, **options):
    """Median seconds of a bare spawn; with ``crash`` from the kill of the one before, which somebody awaits."""
    async with ProcessManager() as pm:
        took = []
        process = await pm.spawn(*command, **options)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            began = began if crash else time.perf_counter()
            process = await pm.spawn(*command, **options)
            took.append(time.perf_counter() - began)
        return statistics.median(took)


def _by_hand():
    """The least that anybody can do: wait for the end, start again."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    took = []
    process = subprocess.Popen(["sleep", "1000"], **options)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        process.kill()
        process.wait()
        after = subprocess.Popen(["sleep", "1000"], **options)
        took.append(time.perf_counter() - began)
        process.stdout.close()
        process.stderr.close()
        process = after
    process.kill()
    process.communicate()
    return statistics.median(took)


def test_crash_to_ready_again(bench):
    bench.row(
        "a Python program killed, restarted and ready",
        ours=lambda: asyncio.run(_restarts(SLEEPER, kind=EventKind.READY, ready=LogLine("ready"))),
        peers={"bare spawn": lambda: asyncio.run(_spawns(SLEEPER, ready=LogLine("ready")))},
        at_most={"bare spawn": 1.3},
        unit="s",
    )


def test_crash_to_running_again(bench):
    """A process that runs as soon as it is spawned: what is left is the noticing of an end, which a bare spawn does not have."""
    bench.row(
        "sleep killed and running again",
        ours=lambda: asyncio.run(_restarts(("sleep", "1000"), kind=EventKind.STARTED)),
        peers={
            "await wait(), then spawn()": lambda: asyncio.run(_spawns(("sleep", "1000"), crash=True)),
            "bare spawn": lambda: asyncio.run(_spawns(("sleep", "1000"))),
            "Popen.wait, then Popen": _by_hand,
        },
        at_most={"await wait(), then spawn()": 1.3},
        unit="s",
    )


def test_a_thousand_idle(bench):
    bench.row("CPU of 1,000 supervised idle processes", ours=lambda: asyncio.run(_idle(1000)), ceiling=0.005, unit="cores")


async def _idle(count, seconds=4.0):
    """Our CPU time for each second, with so many supervised processes minus with none; the heartbeat is in both."""
    async with ProcessManager() as pm:
        await pm.spawn("sleep", "1000")
        before = await _cpu(seconds)
        for number in range(count):
            await pm.spawn("sleep", "1000", name=f"idle-{number}", restart=True)
        return max(0.0, await _cpu(seconds) - before)


async def _cpu(seconds):
    await asyncio.sleep(0.5)  # what the starts have left behind
    began, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.perf_counter() - began)
