"""Tasks that outlive their kernel in a durable queue: the next scheduler takes them up, runs none twice and loses none."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbprocs
from nbprocs import ProcessManager
from nbprocs.scheduler import LocalBackend, SchedulerConfig, TaskCancelled, TaskInterrupted, TaskScheduler, TaskState
from nbprocs.scheduler.backend import Job, Report, Started
from nbprocs.testing.conformance import FakeBackend
from tests.children import python_child
from tests.unit.test_detached import home  # noqa: F401 - a fixture
from tests.unit.test_scheduler import Clock
from tests.unit.test_scheduler_store import crash

WAITS = """
path, log = sys.argv[1:3]
with open(log, "a") as file: file.write("begun\\n")
ready()
while not os.path.exists(path): time.sleep(0.01)
ready("done " + os.environ["NBPROCS_TASK_ID"])
sys.exit(int(open(path).read() or 0))
"""


@pytest.fixture(autouse=True)
def state(home: Path) -> Iterator[None]:  # noqa: F811 - the fixture
    yield
    gc.collect()  # errors that were caught hold the frames, and these the logs


class Place:
    """One queue file, one task that waits for a file, and what it did."""

    def __init__(self, folder: Path) -> None:
        self.store, self.gate, self.log = folder / "queue.db", folder / "gate", folder / "log"

    def open(self, **options) -> TaskScheduler:
        return TaskScheduler(SchedulerConfig(max_concurrent_tasks=2, grace=0.5, retry_delay=0.01, **options), store=self.store)

    def schedule(self, sch: TaskScheduler, **options):
        return sch.schedule(*python_child(WAITS, str(self.gate), str(self.log)), name="train", detach=True, **options)

    @property
    def begun(self) -> int:
        return Counter(self.log.read_text().split())["begun"] if self.log.exists() else 0


async def leave(sch: TaskScheduler, how: str) -> None:
    """The end of a kernel, as far as one can have it in this one: closed, or let go of without a word."""
    if how == "closed":
        await sch.aclose()
        return
    core = sch._core
    core.runner.closed = True
    core.runner._alarm.off()
    assert core.store is not None
    core.store.close()
    backend = core.runner.backend
    assert isinstance(backend, LocalBackend)
    await backend.aclose()


@pytest.mark.parametrize("how", ["closed", "killed"])
async def test_what_runs_is_taken_up_and_not_run_again(tmp_path: Path, how: str) -> None:
    place = Place(tmp_path)
    sch = place.open()
    train = place.schedule(sch)
    sch.schedule("echo", "behind", name="behind", after=[train])
    assert await anext(aiter(train.lines())) == "ready"
    pid = train.process.pid
    await leave(sch, how)
    os.kill(pid, 0)  # it goes on
    async with place.open() as again:
        train = again.get("train")
        assert train.state is TaskState.RUNNING
        assert again.get("behind").state is TaskState.BLOCKED
        assert await anext(aiter(train.lines())) == "ready", "its output from the first byte"
        assert train.process.pid == pid
        place.gate.touch()
        result = await train
        assert result.text == f"ready\ndone {train.id}\n"
        assert (await again.get("behind")).text == "behind\n"
        assert [(a.outcome, a.pid) for a in train.attempts] == [("succeeded", pid)]
        assert place.begun == 1


@pytest.mark.parametrize("code", [0, 3])
async def test_what_ended_meanwhile_is_taken_with_its_result(tmp_path: Path, code: int) -> None:
    place = Place(tmp_path)
    sch = place.open()
    train = place.schedule(sch, max_retries=1)
    await anext(aiter(train.lines()))
    await leave(sch, "killed")
    place.gate.write_text(str(code))
    async with ProcessManager() as pm:
        ended = await (await pm.adopt(f"{train.id}.1")).wait()
        assert ended.exit_code == code
    async with place.open() as again:
        train = again.get("train")
        if code:
            with pytest.raises(nbprocs.ProcessFailed, match="exit status 3"):
                await train
            assert [a.outcome for a in train.attempts] == ["failed", "failed"], "retries go on"
            assert place.begun == 2
        else:
            assert (await train).text.startswith("ready\ndone ")
            assert place.begun == 1


async def test_one_that_left_no_trace_is_as_any_other_whose_kernel_died(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for policy, error in (("retry", None), ("mark", TaskInterrupted)):
        place.store = tmp_path / f"{policy}.db"
        backend = FakeBackend(gated=True)
        backend.adopt = lambda job, report: None  # type: ignore[attr-defined] - it is to be accepted, and runs nothing
        sch = TaskScheduler(store=place.store, backend=backend)
        place.schedule(sch, on_interrupted=policy)
        while not backend.started:
            await asyncio.sleep(0)
        sch._core.runner.closed = True
        sch._core.runner._alarm.off()
        sch._core.store.close()
        place.gate.touch()
        async with place.open() as again:
            train = again.get("train")
            if error is None:
                assert (await train).ok
                assert [a.outcome for a in train.attempts] == ["interrupted", "succeeded"]
            else:
                with pytest.raises(error):
                    await train


class Adopts(FakeBackend):
    """Takes up whatever it is told of."""

    def __init__(self) -> None:
        super().__init__(gated=True)
        self.adopted: list[str] = []

    def adopt(self, job: Job, report: Report) -> None:
        self.running[job.id] = (job, report)
        self._loop.call_soon(self._runs, job, report)

    def _runs(self, job: Job, report: Report) -> None:
        report(Started(pid=7))
        self.adopted.append(job.name)


async def test_the_time_of_one_that_was_taken_up_counts_from_its_start(tmp_path: Path) -> None:
    clock, backend = Clock(), Adopts()
    began = clock.wall
    sch = TaskScheduler(store=tmp_path / "q.db", backend=backend, clock=clock)
    sch.schedule("x", name="long", detach=True)
    while not backend.started:
        await asyncio.sleep(0)
    crash(sch)
    clock.advance(100)
    backend = Adopts()
    async with TaskScheduler(store=tmp_path / "q.db", backend=backend, clock=clock) as again:
        while not backend.adopted:
            await asyncio.sleep(0)
        clock.advance(20)
        backend.finish(next(iter(backend.running)))
        await again.get("long").wait()
        [attempt] = again.get("long").attempts
        assert (attempt.started, attempt.execution_time, attempt.pid) == (began, 120.0, 7)
        assert (backend.adopted, backend.started) == (["long"], [])


async def test_a_taken_up_task_can_be_cancelled(tmp_path: Path) -> None:
    place = Place(tmp_path)
    sch = place.open()
    train = place.schedule(sch)
    await anext(aiter(train.lines()))
    pid = train.process.pid
    await leave(sch, "closed")
    async with place.open() as again:
        train = again.get("train")
        train.cancel()
        with pytest.raises(TaskCancelled):
            await train
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_detach_needs_a_store_and_a_backend_that_can(tmp_path: Path) -> None:
    async with TaskScheduler() as sch:
        with pytest.raises(ValueError, match="needs a store"):
            sch.schedule("true", detach=True)
    async with TaskScheduler(store=tmp_path / "q.db", backend=FakeBackend()) as sch:
        with pytest.raises(ValueError, match="this machine"):
            sch.schedule("true", detach=True)
