"""A real Slurm of one node, through dask-jobqueue's SLURMCluster as it is. Where root is missing the test says why it can't run."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from nbprocs import DaskBackend, SchedulerConfig, TaskScheduler
from tests.waiting import until_blocking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CONF = """
ClusterName=nb
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ReturnToService=2
KillWait=3
MinJobAge=10
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName={host} CPUs=8 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    pytest.importorskip("dask_jobqueue")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(
        CONF.format(host=socket.gethostname().split(".")[0], folder=folder, ports=(free_port(), free_port()))
    )
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}", f"--pid-file={folder}/munge.pid"]
    munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    started = []

    def start(*words):
        with (folder / f"{words[0]}.out").open("wb") as out:
            started.append(
                subprocess.Popen(words, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
            )

    try:
        start(*munged)
        until_blocking((folder / "munge.socket").exists, what="munged is up")
        start("slurmctld", "-D", "-f", env["SLURM_CONF"])
        start("slurmd", "-D", "-f", env["SLURM_CONF"])
        until_blocking(
            lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True, check=False).stdout,
            within=60,
            what=f"an idle node: see {folder}",
        )
        yield env
    except AssertionError as error:
        pytest.skip(f"Slurm did not come up in this container: {error}")
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(5)


def jobs(env):
    return subprocess.run(["squeue", "-h", "-o", "%i %t"], env=env, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


async def test_a_queue_goes_through_slurm_and_a_job_that_is_cancelled_costs_no_try(slurm, tmp_path, monkeypatch):
    from dask_jobqueue import SLURMCluster

    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    cluster = await SLURMCluster(
        cores=2, processes=1, memory="500MB", walltime="00:10:00", asynchronous=True, local_directory=str(tmp_path), log_directory=str(tmp_path),
        scheduler_options={"dashboard_address": ":0", "host": "127.0.0.1"}, job_extra_directives=["--chdir=" + str(tmp_path)], interface="lo",
    )  # fmt: skip
    try:
        cluster.scale(jobs=2)
        runs = tmp_path / "runs"
        async with TaskScheduler(SchedulerConfig(max_retries=0), backend=DaskBackend(cluster)) as sch:
            tasks = [
                sch.schedule("sh", "-c", "echo x >> $RUNS; sleep 0.5; echo $SLURM_JOB_ID", env_vars={"RUNS": str(runs)}) for _ in range(20)
            ]
            await tasks[3]
            victim = tasks[3].result.text.strip()
            assert victim
            began = time.monotonic()
            await asyncio.to_thread(subprocess.run, ["scancel", victim], check=True, env=slurm)
            async with asyncio.timeout(120):
                for task in tasks:
                    assert (await task).ok, "an expected loss is no failure"
            frame = sch.frame()
            assert (frame["outcome"] == "succeeded").sum() == 20
            taken = frame[frame["outcome"] != "succeeded"]
            assert set(taken["reason"]) <= {"worker taken away"}
            assert time.monotonic() - began < 120
    finally:
        await cluster.close()
    async with asyncio.timeout(60):
        while await asyncio.to_thread(jobs, slurm):
            await asyncio.sleep(0.05)
