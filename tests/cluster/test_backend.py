"""The contract of a backend, on a real Dask cluster."""

import pytest

from nbprocs import DaskBackend
from nbprocs.testing.conformance import check_backend

WORK = {"succeeds": ("true", ()), "fails": ("false", ()), "endless": ("sleep", ("1000",)), "refused": ("/no/such/program", ())}


@pytest.mark.parametrize("proxy", [False, True], ids=["direct", "by way of the scheduler"])
async def test_it_is_a_backend(cluster, proxy):
    await check_backend(lambda: DaskBackend(cluster.address, proxy=proxy), WORK)
