"""A link that is cut: for a moment nothing is lost, for good nothing ever runs twice. In network namespaces; needs root."""

import asyncio
import os
import subprocess
import sys

import pytest

from nbprocs import DaskBackend, TaskScheduler, WorkerLost
from tests.cluster.real import RealCluster, marked

pytestmark = pytest.mark.slow

BRIDGE, SPACES = "nbbr0", {"nbk": "10.77.0.1", "nbw1": "10.77.0.11", "nbw2": "10.77.0.12"}
TCP = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "12s"}


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def spaces():
    """The kernel's side here, a bridge, and two workers in namespaces of their own."""
    try:
        made = ip("link", "add", BRIDGE, "type", "bridge", check=False)
    except FileNotFoundError:
        pytest.skip("the command ip (iproute2) is not there")
    if made.returncode:
        pytest.skip(f"no network namespaces without root: {made.stderr.strip()}")
    try:
        ip("addr", "add", f"{SPACES['nbk']}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for name in ("nbw1", "nbw2"):
            found = ip("netns", "add", name, check=False)
            if found.returncode:
                pytest.skip(f"network namespaces are not allowed here: {found.stderr.strip()}")
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}v", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{SPACES[name]}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in ("nbw1", "nbw2"):
            ip("netns", "del", name, check=False)
        ip("link", "del", BRIDGE, check=False)


def cut(name, state="down"):
    ip("link", "set", f"{name}v", state)


@pytest.fixture
def apart(spaces, tmp_path):
    with RealCluster(tmp_path, env=TCP, host=SPACES["nbk"]) as cluster:
        cluster.start_scheduler()
        for name in ("nbw1", "nbw2"):
            cluster.start_worker(name, threads=1, host=SPACES[name], run=("ip", "netns", "exec", name))
        yield cluster
        for name in ("nbw1", "nbw2"):
            cut(name, "up")


async def test_a_cut_of_five_seconds_loses_nothing(apart):
    """Less than the time after which a connection is given up: 12 s, the least that Dask takes."""
    async with TaskScheduler(backend=DaskBackend(apart.address)) as sch:
        task = sch.schedule("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 1; done")
        assert await anext(aiter(task.lines())) == "1"
        where = task.process.worker.split()[0]
        cut(where)
        await asyncio.to_thread(subprocess.run, ["sleep", "5"], check=True)
        cut(where, "up")
        assert (await task).text == "".join(f"{i}\n" for i in range(1, 9))
        assert len(task.attempts) == 1


@pytest.mark.timeout(180)
async def test_a_cut_for_good_never_has_two_copies_at_once(apart):
    mark = f"mark-{os.urandom(6).hex()}"
    async with TaskScheduler(backend=DaskBackend(apart.address)) as sch:
        task = sch.schedule(
            sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1000)", max_retries=1, env_vars={"CLUSTER_MARK": mark}
        )
        assert await anext(aiter(task.lines())) == "up"
        where = task.process.worker.split()[0]
        cut(where)
        async with asyncio.timeout(60):
            while len(task.attempts) < 1 or task.process is None:
                assert len(marked(mark)) <= 1, "two copies at once"
                await asyncio.sleep(0.02)
        assert task.process.worker.split()[0] != where
        assert isinstance(task.attempts[0].reason, str) and task.attempts[0].reason == "worker lost"
        assert len(marked(mark)) == 1
        task.cancel()
        await task.wait()
    assert WorkerLost.__name__
