"""A cluster that grows and shrinks with the queue, GPUs of the workers, and large output."""

import asyncio
import os
import sys
import time

import psutil
import pytest

from nbprocs import DaskBackend, SchedulerConfig, TaskScheduler

LONGER = 100  # seconds


@pytest.mark.slow
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


async def test_gpus_are_the_workers_own(hall):
    hall.start_worker("with", threads=3, env={"CUDA_VISIBLE_DEVICES": "4,7"})
    hall.start_worker("without", threads=1, env={"CUDA_VISIBLE_DEVICES": ""})
    async with TaskScheduler(backend=DaskBackend(hall.address)) as sch:
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


BLOCK = 65536


def block(number):
    return b"%015d\n" % number + b"x" * (BLOCK - 17) + b"\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_gigabyte_arrives_whole_and_nobody_holds_it(cluster):
    """Each of kernel, scheduler and workers stays below +64 MB; meanwhile other tasks' first lines come at once."""
    blocks = (1 << 30) // BLOCK
    code = f"import sys\nfor i in range({blocks}): sys.stdout.buffer.write(b'%015d\\n' % i + b'x' * {BLOCK - 17} + b'\\n')"
    processes = [psutil.Process()] + [psutil.Process(process.pid) for process in cluster.processes.values()]
    async with TaskScheduler(SchedulerConfig(), backend=DaskBackend(cluster.address)) as sch:
        await asyncio.gather(*(sch.schedule("true") for _ in range(8)))
        before = [process.memory_info().rss for process in processes]
        began = time.monotonic()
        task = sch.schedule(sys.executable, "-c", code)
        peaks, firsts = list(before), []
        while not task.done:
            asked = time.monotonic()
            other = sch.schedule("echo", "here")
            assert await anext(aiter(other.lines())) == "here"
            firsts.append(time.monotonic() - asked)
            peaks = [max(peak, process.memory_info().rss) for peak, process in zip(peaks, processes, strict=True)]
        print(f"{(1 << 30) / 1e6 / (time.monotonic() - began):.0f} MB/s, first lines {sorted(firsts)[len(firsts) // 2]:.3f} s")
        grown = [round((peak - was) / 1e6, 1) for peak, was in zip(peaks, before, strict=True)]
        print("grown by MB: kernel, scheduler, workers", grown)
        assert max(grown) < 64, grown
        assert sorted(firsts)[len(firsts) // 2] < 0.5, firsts  # 0.25 on a quiet machine
        log = (await task).stdout_source
        for number in range(blocks):
            data = b""
            while len(data) < BLOCK:
                at, more = log.read(number * BLOCK + len(data), BLOCK - len(data))
                assert at == number * BLOCK + len(data) and more
                data += more
            assert data == block(number)
        assert log.end == 1 << 30 and task.result.dropped_bytes == 0
