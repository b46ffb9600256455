"""dask-jobqueue without a batch system: its own LocalCluster runs the job scripts here. See test_slurm.py for a real one."""

import json
import os
import sys
from pathlib import Path

import pytest

from nbprocs import ProcessManager

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def test_a_queue_goes_through_jobqueue_and_a_worker_that_is_killed_is_named(tmp_path):
    pytest.importorskip("dask_jobqueue")
    async with ProcessManager() as pm:  # its shim adopts and reaps what that cluster leaves behind, and ends what is left
        result = await pm.run(sys.executable, "-m", "tests.cluster.jobqueue", tmp_path, working_dir=ROOT, timeout=200)
    told = json.loads(result.text)
    assert told["commands"] == ["0\n", "1\n", "2\n", "3\n"] and told["functions"] == [0, 6, 12, 18]
    assert told["hosts"] == [os.uname().nodename]
    lost = told["lost"]
    assert "the worker that ran victim is gone: its process has ended" in lost["text"] and not lost["expected"]
    assert lost["worker"].startswith(told["killed"])
    assert told["after"] == "the queue goes on\n"
    assert told["outcomes"] == ["failed", *["succeeded"] * 9], "the victim was started once"
