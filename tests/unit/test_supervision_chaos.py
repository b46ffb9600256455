"""A hundred supervised processes killed at random. NBPROCS_CHAOS_SECONDS sets how long (10 by default)."""

import asyncio
import bisect
import os
import random
import time
from collections import defaultdict

import psutil
import pytest

from nbprocs import EventKind, ProcessManager, ProcessStatus, RestartPolicy, RestartsExhausted
from nbprocs.processes.manager import manager_core
from nbprocs.recovery import ErrorHandler, RestartProcess
from nbprocs.testing import chaos

SECONDS = float(os.environ.get("NBPROCS_CHAOS_SECONDS", "10"))
COUNT = 100
POLICY = RestartPolicy(max_restarts=8, window=SECONDS, initial_delay=0.02, max_delay=0.5, healthy_after=1.0)


class Witness:
    """Keeps its own account of every life, from the events and from the operating system."""

    def __init__(self, pm):
        self.pm = pm
        self.restarts = defaultdict(list)
        self.fatal = {}
        self.doubles = []
        self.living = defaultdict(dict)  # name -> id -> pid, by the events alone
        pm.subscribe(self.hear)

    def hear(self, event):
        if event.kind is EventKind.STARTED:
            for pid in self.living[event.name].values():
                if psutil.pid_exists(pid):  # a pid of ours is gone from the table once it is reaped, which is before EXITED
                    self.doubles.append((event.name, pid, event.info.pid))
            self.living[event.name][event.process_id] = event.info.pid
            if event.info.restarts:
                self.restarts[event.name].append(event.at)
        elif event.kind is EventKind.EXITED:
            self.living[event.name].pop(event.process_id, None)
        elif event.kind is EventKind.FATAL:
            self.fatal[event.name] = event
        names = [p.name for p in manager_core(self.pm).registry.live]
        if len(names) != len(set(names)):
            self.doubles.append(names)


async def all_decided(pm, witness, names):
    """Until every name runs or is FATAL."""
    told = asyncio.Event()
    end = pm.subscribe(lambda _: told.set())
    async with asyncio.timeout(30):
        while not all(name in witness.fatal or pm.status(name) is ProcessStatus.RUNNING for name in names):
            await told.wait()
            told.clear()
    end()


def own_children(marker):
    """Live descendants of this process that run that very command: their parent is the shim."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if marker in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(120 + 2 * SECONDS)
async def test_a_hundred_supervised_processes_killed_at_random():
    marker = f"1000{random.randrange(10**6)}"
    seed = random.randrange(10**6)
    names = [f"server-{number}" for number in range(COUNT)]
    async with ProcessManager(history=200) as pm:
        witness = Witness(pm)
        for name in names:
            await pm.spawn("sleep", marker, name=name, restart=POLICY)
        # the rate makes about half of them reach their limit
        kills = await chaos(pm, seconds=SECONDS, every=SECONDS / (COUNT * POLICY.max_restarts), rng=random.Random(seed))
        await all_decided(pm, witness, names)

        assert witness.doubles == [], f"seed {seed}"
        assert len(kills) > COUNT
        for name in names:
            times = witness.restarts[name]
            for index, first in enumerate(times):
                inside = bisect.bisect_left(times, first + POLICY.window) - index
                assert inside <= POLICY.max_restarts, (name, seed)
            if name in witness.fatal:
                event = witness.fatal[name]
                assert isinstance(event.error, RestartsExhausted)
                recent = [at for at in times if at > event.at - POLICY.window]
                assert len(recent) == POLICY.max_restarts, (name, seed)
                assert f"{POLICY.max_restarts} restarts within" in str(event.error)
                assert len([line for line in event.error.history if "started" in line]) == len(times) + 1
                assert name not in {p.name for p in manager_core(pm).registry.live}
            else:
                assert pm.status(name) is ProcessStatus.RUNNING
        up = [name for name in names if name not in witness.fatal]
        assert sorted(own_children(marker)) == sorted(pm.get(name).pid for name in up)
        print(
            f"{len(kills)} kills, {sum(map(len, witness.restarts.values()))} restarts, {len(up)} up, {len(witness.fatal)} FATAL, seed {seed}"
        )
    assert own_children(marker) == []


@pytest.mark.slow
async def test_the_same_with_a_handler_instead_of_supervisors():
    names = [f"server-{number}" for number in range(20)]
    limit = RestartPolicy(max_restarts=10_000, initial_delay=0, window=1)
    async with ProcessManager(history=200) as pm, ErrorHandler(pm, settle=0.05) as handler:
        handler.set_recovery_strategy("server-*", RestartProcess(policy=limit))
        witness = Witness(pm)
        for name in names:
            await pm.spawn("sleep", "1000", name=name)
        kills = await chaos(pm, seconds=2, every=0.01)
        await all_decided(pm, witness, names)
        assert witness.doubles == []
        assert len(kills) > len(names)
        assert all(pm.get(name).status.live for name in names)
        assert len(pm.processes()) >= len(names)


@pytest.mark.slow
async def test_chaos_while_the_manager_closes():
    async with ProcessManager(grace=0.2) as pm:
        witness = Witness(pm)
        handler = ErrorHandler(pm)
        handler.set_recovery_strategy("h-*", RestartProcess(policy=RestartPolicy(initial_delay=0, max_restarts=1000)))
        for number in range(20):
            await pm.spawn("sleep", "1000", name=f"s-{number}", restart=RestartPolicy(initial_delay=0.01, max_restarts=1000))
            await pm.spawn("sleep", "1000", name=f"h-{number}")
        storm = asyncio.create_task(chaos(pm, seconds=1.0, every=0.003))
        news = asyncio.Event()
        pm.subscribe(lambda e: e.kind is EventKind.RESTARTING and news.set())
        await news.wait()
        began = time.monotonic()
        await pm.aclose()
        assert time.monotonic() - began < 10
        assert pm.live == 0
        started = sum(map(len, witness.restarts.values()))
        await storm
        assert sum(map(len, witness.restarts.values())) == started  # nothing starts after the end
        assert witness.doubles == []


async def test_a_thousand_idle_supervised_processes_cost_nothing():
    """Event-driven: no timer and no task for any of them. (The benchmark measures the CPU.)"""
    async with ProcessManager() as pm:
        for number in range(50):
            await pm.spawn("sleep", "1000", name=f"idle-{number}", restart=True)
        timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert len(timers) <= 3  # the heartbeat of the loop and the time limit of the test
        assert len(tasks) <= 1
        assert len(manager_core(pm).supervisor._tasks) == 0
