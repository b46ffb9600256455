"""A queue on dask_jobqueue's LocalCluster: its whole way from job script to worker, without a batch system. ``python -m tests.cluster.jobqueue FOLDER``.

A program of its own, since that cluster ends its jobs by SIGKILL and never reaps them, nor closes their pipes. Writes what happened as JSON.
"""

import asyncio
import json
import operator
import os
import signal
import sys

from nbprocs import DaskBackend, SchedulerConfig, TaskScheduler, WorkerLost


async def queue(cluster):
    backend = DaskBackend(cluster)
    async with TaskScheduler(SchedulerConfig(max_retries=0), backend=backend) as sch:
        commands = [sch.schedule("sh", "-c", f"echo {number}; sleep 0.2") for number in range(4)]
        functions = [sch.schedule(operator.mul, 6, number) for number in range(4)]
        told = {"commands": [(await task).text for task in commands], "functions": [await task for task in functions]}
        victim = sch.schedule("sh", "-c", "echo up; sleep 1000", name="victim")
        assert await anext(aiter(victim.lines())) == "up"
        (worker,) = [seen for seen in backend.seen() if seen.tasks]
        os.kill(worker.pid, signal.SIGKILL)
        try:
            await victim
        except WorkerLost as error:
            told["lost"] = {"text": str(error), "worker": error.worker, "expected": error.expected}
        told["killed"] = worker.name
        told["after"] = (await sch.schedule("echo", "the queue goes on")).text
        told["outcomes"] = sorted(sch.frame()["outcome"])
        told["hosts"] = sorted({task.task.host for task in commands})
        return told


async def main(folder):
    from dask_jobqueue.local import LocalCluster

    cluster = await LocalCluster(
        cores=1, processes=1, memory="500MB", nanny=False, asynchronous=True, interface="lo", local_directory=folder, log_directory=folder,
        scheduler_options={"dashboard_address": ":0", "host": "127.0.0.1"},
    )  # fmt: skip
    try:
        cluster.scale(jobs=2)
        print(json.dumps(await queue(cluster)), flush=True)
    finally:
        await cluster.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
