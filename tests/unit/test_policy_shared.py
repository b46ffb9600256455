"""One RetryPolicy object, everywhere: manager, pool, scheduler and handler give up after the same tries, and wait as it says."""

import random

import pytest

from nbprocs import ProcessFailed, ProcessManager, RetryPolicy
from nbprocs.pool import PoolConfig, ProcessPool
from nbprocs.recovery import ErrorHandler
from nbprocs.scheduler import SchedulerConfig, TaskScheduler
from nbprocs.testing import instant_waits


def policy():
    return RetryPolicy(max_retries=2, initial_delay=60, max_delay=60, jitter="proportional", rng=random.Random(1))


async def test_one_object_for_manager_pool_scheduler_and_handler(tmp_path):
    shared = policy()

    def flaky(path):
        with open(path, "a+") as file:
            file.write("x")
            file.seek(0)
            tries = len(file.read())
        if tries < 3:
            raise OSError("busy")
        return tries

    with instant_waits():  # else each try would come a minute later
        async with ProcessManager() as pm, ErrorHandler(pm, automatic=False) as handler, ProcessPool(PoolConfig(max_processes=1)) as pool:
            with pytest.raises(ProcessFailed) as caught:
                await pm.run("false", retry=shared)
            assert caught.value.attempts == 3

            assert await pool.run(flaky, str(tmp_path / "tries"), retries=shared) == 3

            async with TaskScheduler(SchedulerConfig(retry=shared)) as sch:
                with pytest.raises(ProcessFailed) as caught:
                    await sch.schedule("false")
            assert caught.value.attempts == 3

            handler.set_retry_policy("*", shared)
            process = await pm.spawn("false", name="job")
            await process.wait()
            report = await handler.handle_error(process)
            assert report.attempts == 3
    assert shared == policy()
