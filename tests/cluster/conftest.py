"""Real Dask clusters for tests."""

import asyncio
import logging

import pytest

pytest.importorskip("distributed", reason="the extra nbprocs[dask] is not installed")

from nbprocs.testing.leaks import spare
from tests.cluster.real import RealCluster, warmed


@pytest.fixture(scope="session", autouse=True)
def _process_wide():
    """What Dask and multiprocessing start once and keep for as long as the interpreter lives."""
    from multiprocessing import resource_tracker

    from distributed.utils import offload

    asyncio.run(offload(int))
    resource_tracker.ensure_running()
    spare(resource_tracker._resource_tracker._pid)


@pytest.fixture(scope="session")
def _shared(tmp_path_factory):
    with RealCluster(tmp_path_factory.mktemp("dask")).start_scheduler() as cluster:
        cluster.start_workers("alice", "bob")
        yield warmed(cluster)


@pytest.fixture
def cluster(_shared):
    """A scheduler and two workers, alice and bob, of two threads each; all tests have the same: leave it as it was."""
    return _shared


@pytest.fixture(scope="session")
def _hall(tmp_path_factory):
    with RealCluster(tmp_path_factory.mktemp("hall")).start_scheduler() as cluster:
        spare(cluster.processes["scheduler"].pid)
        yield cluster


@pytest.fixture
def hall(_hall):
    """A scheduler that has no worker yet; those that the test starts end with it."""
    yield _hall
    _hall.close(but=("scheduler",))


@pytest.fixture
def fresh(tmp_path):
    """A cluster of the test's own, still without a process: for tests that end its scheduler or configure it."""
    with RealCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _quiet():
    """Dask tells at length what a test has just done on purpose."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
