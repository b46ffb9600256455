"""The kernel's and the worker's half together, without a cluster between them; with messages dropped, doubled and delayed."""

import pytest

from nbprocs.testing.conformance import check_backend
from tests.unit.cluster_kit import Faults, LoopbackBackend

WORK = {"succeeds": ("true", ()), "fails": ("false", ()), "endless": ("sleep", ("1000",)), "refused": ("/no/such/program", ())}


async def test_it_is_a_backend(tmp_path):
    await check_backend(lambda: LoopbackBackend(tmp_path), WORK)


@pytest.mark.parametrize("seed", range(3))
async def test_it_is_a_backend_whatever_happens_to_messages(tmp_path, seed):
    def faults():
        return Faults(seed=seed, drop=0.1, lose_answer=0.1, double=0.2, late=0.3)

    await check_backend(lambda: LoopbackBackend(tmp_path, faults=faults), WORK)
