"""A cluster that grows and shrinks with the queue, GPUs of the workers, and large output."""

import asyncio
import os
import sys
import time

import psutil
import pytest

from nbprocs import DaskBackend, SchedulerConfig, TaskScheduler

LONGER = 100  # seconds


async def test_an_adaptive_cluster_grows_with_the_queue_and_shrinks_after_it(tmp_path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr("nbprocs.cluster.dask._LINGER", 0.3)
    runs = tmp_path / "runs"
    async with LocalCluster(
        n_workers=0,
        threads_per_worker=1,
        processes=True,
        asynchronous=True,
        dashboard_address=":0",
        memory_limit=0,
        local_directory=str(tmp_path),
    ) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2)
        async with TaskScheduler(backend=DaskBackend(cluster)) as sch:
            tasks = [sch.schedule("sh", "-c", "echo x >> $RUNS; sleep 0.2", env_vars={"RUNS": str(runs)}) for _ in range(6)]
            assert tasks[-1].state == "queued" and "waits for" in tasks[-1].why()
            async with asyncio.timeout(LONGER):
                for task in tasks:
                    assert (await task).ok
                assert len(cluster.scheduler.workers) >= 1
                while cluster.scheduler.workers:
                    await asyncio.sleep(0.05)
        assert runs.read_text() == "x\n" * 6, "each ran once"


async def test_gpus_are_the_workers_own(fresh):
    fresh.start_scheduler().start_worker("with", threads=3, env={"CUDA_VISIBLE_DEVICES": "4,7"})
    fresh.start_worker("without", threads=1, env={"CUDA_VISIBLE_DEVICES": ""})
    async with TaskScheduler(backend=DaskBackend(fresh.address)) as sch:
        first = [sch.schedule("sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 1000", resources={"gpu": 1}) for _ in range(3)]
        seen = {await anext(aiter(task.lines())) for task in first[:2]}
        assert seen == {"4", "7"}
        assert first[2].state == "queued" and "gpu" in first[2].why()
        assert all(task.process.worker.startswith("with ") for task in first[:2])
        first[0].cancel()
        assert await anext(aiter(first[2].lines())) in seen

        def mine():
            return os.environ.get("CUDA_VISIBLE_DEVICES")

        first[1].cancel()
        assert await sch.schedule(mine, resources={"gpu": 1}) in seen
        for task in first:
            task.cancel()


@pytest.mark.slow
async def test_a_gigabyte_arrives_whole_and_nobody_holds_it(cluster):
    """Each of kernel, scheduler and workers stays below +64 MB; meanwhile other tasks' first lines come at once."""
    size = 1 << 30
    code = f"import sys\nline = (b'%015d\\n')\nfor i in range({size >> 16}): sys.stdout.buffer.write(b''.join(line % (i * 4096 + j) for j in range(4096)))"
    processes = [psutil.Process()] + [psutil.Process(process.pid) for process in cluster.processes.values()]
    async with TaskScheduler(SchedulerConfig(), backend=DaskBackend(cluster.address)) as sch:
        await asyncio.gather(*(sch.schedule("true") for _ in range(8)))
        before = [process.memory_info().rss for process in processes]
        task = sch.schedule(sys.executable, "-c", code)
        peaks, firsts = list(before), []
        while not task.done:
            began = time.monotonic()
            other = sch.schedule("echo", "here")
            assert await anext(aiter(other.lines())) == "here"
            firsts.append(time.monotonic() - began)
            peaks = [max(peak, process.memory_info().rss) for peak, process in zip(peaks, processes, strict=True)]
        grown = [(peak - was) / 1e6 for peak, was in zip(peaks, before, strict=True)]
        assert max(grown) < 64, grown
        assert sorted(firsts)[len(firsts) // 2] < 0.5, firsts  # 0.25 on a quiet machine
        result = await task
        log = result.stdout_source
        position = number = 0
        while position < size:
            at, data = log.read(position, 1 << 20)
            assert at == position and data
            whole = data[: len(data) // 16 * 16] or data
            assert whole == b"".join(b"%015d\n" % n for n in range(number, number + len(whole) // 16))
            position, number = position + len(whole), number + len(whole) // 16
        assert result.dropped_bytes == 0
