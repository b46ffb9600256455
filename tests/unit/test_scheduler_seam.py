"""What a backend that is no child of ours needs of the scheduler: capacity, demand, late starts, lost workers, the fence."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nbprocs.errors import CommunicationError, WorkerLost
from nbprocs.model import ProcessConfig
from nbprocs.scheduler import Capacity, Ended, Job, JobProcess, LocalBackend, SchedulerConfig, Shape, Started, TaskScheduler, TaskState
from nbprocs.testing.conformance import FakeBackend
from tests.children import SLEEPER, python_child
from tests.unit.test_scheduler import World
from tests.unit.test_scheduler_backend import MinimalPool, endless
from tests.unit.test_scheduler_store import crash


class Late(LocalBackend):
    """Starts nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()

    async def _outcome(self, job, report):
        await self.let.wait()
        return await super()._outcome(job, report)


async def test_lines_asked_for_before_a_late_start_come_before_the_end() -> None:
    backend = Late()
    async with TaskScheduler(backend=backend) as sch:
        handle = sch.schedule(*SLEEPER)
        kinds: list[str] = []
        sch.subscribe(lambda event: kinds.append(event.kind.value))
        reading = asyncio.ensure_future(anext(aiter(handle.lines())))
        while handle.state is not TaskState.RUNNING:
            await asyncio.sleep(0)
        assert handle.process is None
        assert "started" not in kinds, "handed over is not started"
        with pytest.raises(CommunicationError, match="has not started yet"):
            handle.pause()
        backend.let.set()
        assert await reading == "ready"
        assert kinds[-1] == "started"
        assert isinstance(handle.process, JobProcess)
        handle.cancel()


async def test_a_function_can_not_be_paused() -> None:
    async with TaskScheduler(pool=MinimalPool()) as sch:
        handle = sch.schedule(endless)
        begun = asyncio.Event()
        sch.subscribe(lambda event: begun.set() if event.kind.value == "started" else None)
        await begun.wait()
        for act in (handle.pause, handle.resume):
            with pytest.raises(CommunicationError, match="no process of its own"):
                act()
        handle.cancel()


async def test_started_is_the_start_and_not_the_hand_over() -> None:
    class Slow(FakeBackend):
        def _begin(self, job, report) -> None:
            pass  # handed over, and nothing yet

    async with World() as w:
        w.backend.__class__ = Slow
        handle = w.sch.schedule("x", name="t")
        await w.settle()
        assert w.sch.attempts()[0].started is None
        w.clock.advance(7)
        _, report = next(iter(w.backend.running.values()))
        report(Started(host="node7", worker="tcp://node7:1", pid=5))
        w.clock.advance(3)
        await w.finish("t")
        [attempt] = handle.attempts
        assert attempt.started == 1_000_007.0
        assert attempt.execution_time == 3.0
        assert (attempt.host, attempt.worker, attempt.pid) == ("node7", "tcp://node7:1", 5)
        assert w.sch.frame().loc[0, ["host", "worker"]].tolist() == ["node7", "tcp://node7:1"]
        assert w.sch.frame().loc[0, "waited"] == 7.0


async def test_no_limit_means_the_backends_and_follows_it() -> None:
    async with World() as w:
        handles = [w.sch.schedule("x", name=f"t{n}") for n in range(12)]
        await w.settle()
        assert len(w.started) == w.sch.status().max_concurrent == 4
        w.backend.resize(Capacity(slots=6))
        await w.settle()
        assert len(w.started) == w.sch.status().max_concurrent == 6
        w.backend.resize(Capacity(slots=0, why="the cluster tcp://x to come back"))
        await w.settle()
        assert handles[-1].why() == "it waits for the cluster tcp://x to come back"
        for name in [job.name for job, _ in w.backend.running.values()]:
            await w.finish(name)
        assert len(w.started) == 6, "it stands still"
        assert not w.sch.status().halted
        joined = asyncio.ensure_future(w.sch.join())
        await w.settle()
        assert not joined.done(), "who waits for the end waits on"
        w.backend.resize(Capacity(slots=9))
        await w.settle()
        for name in [job.name for job, _ in w.backend.running.values()]:
            await w.finish(name)
        assert (await joined).succeeded == 12


async def test_a_limit_of_ones_own_is_never_passed() -> None:
    async with World(SchedulerConfig(max_concurrent_tasks=2)) as w:
        w.backend.resize(Capacity(slots=9))
        for n in range(5):
            w.sch.schedule("x", name=f"t{n}")
        await w.settle()
        assert len(w.started) == 2
        w.sch.set_limit(None)
        await w.settle()
        assert len(w.started) == 5


class Growing(FakeBackend):
    """Begins without anything, as an adaptive cluster does."""

    def __init__(self, **options) -> None:
        super().__init__(capacity=Capacity(slots=0, elastic=True, why="a worker"), **options)
        self.told: list[tuple[Shape, ...]] = []

    def demand(self, shapes: tuple[Shape, ...]) -> None:
        self.told.append(shapes)


async def test_an_elastic_backend_is_told_the_demand_and_nothing_is_refused() -> None:
    backend = Growing(gated=True)
    async with TaskScheduler(SchedulerConfig(groups={"g": 2}, resources={"licence": 1}), backend=backend) as sch:
        w = World.__new__(World)
        w.sch, w.backend = sch, backend
        gpu = sch.schedule("x", name="gpu", resources={"gpu": 2})
        handles = [sch.schedule("x", name=f"g{n}", group="g") for n in range(5)]
        plain = sch.schedule("x", name="plain", memory_gate="1 GB")
        await w.settle()
        assert backend.told[-1] == (
            Shape(count=1, resources=(("gpu", 2.0),)),
            Shape(count=2),
            Shape(count=1, memory=1 << 30),
        )
        assert plain.why() == "it waits for a worker"
        assert gpu.state is TaskState.QUEUED
        joined = asyncio.ensure_future(sch.join())
        await w.settle()
        assert not joined.done()
        backend.resize(Capacity(slots=8, elastic=True, resources={"gpu": 4}))
        await w.settle()
        assert w.started == ["gpu", "g0", "g1", "plain"]
        sch.pause()
        for name in list(w.started):
            await w.finish(name)
        assert backend.told[-1] == ()
        sch.resume()
        await w.settle()
        for handle in handles[2:]:
            await w.finish(handle.name)
        assert (await joined).succeeded == 7
        assert backend.told[-1] == ()


def lost(*, expected: bool) -> WorkerLost:
    return WorkerLost("its worker is gone", worker="tcp://node7:1", host="node7", expected=expected)


async def test_a_worker_lost_on_purpose_costs_no_retry() -> None:
    async with World(SchedulerConfig(max_retries=0)) as w:
        handle = w.sch.schedule("x", name="t")
        await w.settle()
        await w.finish("t", lost(expected=True))
        assert w.started == ["t", "t"], "at once"
        await w.finish("t", lost(expected=True))
        assert w.started == ["t", "t"], "the second time in a row later: it may be too long for any worker"
        assert handle.state is TaskState.SCHEDULED
        await w.advance(1.1)
        await w.finish("t")
        assert await handle == "t"
        assert handle.task.retry_count == w.sch.status().retries == 0
        assert [(a.outcome, a.reason, a.retry) for a in handle.attempts] == [
            ("interrupted", "worker taken away", 0),
            ("interrupted", "worker taken away", 0),
            ("succeeded", None, 0),
        ]


async def test_a_worker_lost_by_accident_is_a_failure_and_starts_once_without_retries() -> None:
    async with World(SchedulerConfig(max_retries=0)) as w:
        handle = w.sch.schedule("x", name="t")
        await w.settle()
        await w.finish("t", lost(expected=False))
        with pytest.raises(WorkerLost) as caught:
            await handle
        assert (caught.value.worker, caught.value.host, caught.value.expected) == ("tcp://node7:1", "node7", False)
        assert w.started == ["t"]
        assert [(a.outcome, a.reason) for a in handle.attempts] == [("failed", "worker lost")]


async def test_a_cancelled_task_whose_worker_goes_is_cancelled() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="t")
        await w.settle()
        w.backend.cancel = lambda job_id, *, grace: None  # type: ignore[method-assign]
        handle.cancel()
        await w.finish("t", lost(expected=True))
        assert handle.state is TaskState.CANCELLED
        assert w.started == ["t"]


class Remote(FakeBackend):
    """Jobs outlive their kernel until a fence ends them."""

    def __init__(self, *, fails: int = 0, **options) -> None:
        super().__init__(**options)
        self.fences: list[str] = []
        self.let = asyncio.Event()
        self.fails = fails

    async def fence(self, prefix: str) -> None:
        self.fences.append(prefix)
        assert not self.started, "before anything starts"
        if self.fails:
            self.fails -= 1
            raise OSError("no cluster")
        await self.let.wait()


async def test_a_stored_queue_starts_nothing_before_its_fence(tmp_path: Path) -> None:
    backend = Remote()
    async with TaskScheduler(store=tmp_path / "q.db", backend=backend) as sch:
        w = World.__new__(World)
        w.sch, w.backend = sch, backend
        handle = sch.schedule("x", "1")
        await w.settle()
        assert w.started == []
        assert "former kernel" in handle.why()
        joined = asyncio.ensure_future(sch.join())
        await w.settle()
        assert not joined.done()
        backend.let.set()
        assert await handle == ("1",)
        assert backend.fences == [handle.id[: handle.id.index("-") + 1]]
        await joined


async def test_a_fence_that_fails_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr("nbprocs.scheduler.fence._AGAIN", 0.01)
    backend = Remote(fails=2)
    backend.let.set()
    async with TaskScheduler(store=tmp_path / "q.db", backend=backend) as sch:
        assert await sch.schedule("x", "1") == ("1",)
        assert len(backend.fences) == 3
    assert "no cluster" in caplog.text


async def test_without_a_store_there_is_nothing_to_fence() -> None:
    backend = Remote()
    async with TaskScheduler(backend=backend) as sch:
        assert await sch.schedule("x", "1") == ("1",)
        assert backend.fences == []


async def test_where_a_task_ran_is_known_to_the_next_kernel(tmp_path: Path) -> None:
    w = World(store=tmp_path / "q.db")
    w.sch.schedule("x", name="t")
    job_report = {}

    class Told(FakeBackend):
        def _begin(self, job, report) -> None:
            job_report[job.name] = report
            report(Started(host="node7", worker="tcp://node7:1", pid=77))

    w.backend.__class__ = Told
    await w.settle()
    crash(w.sch)
    async with World(store=tmp_path / "q.db") as v:
        await v.settle()
        [attempt] = v.sch.get("t").attempts
        assert (attempt.host, attempt.worker, attempt.pid, attempt.started) == ("node7", "tcp://node7:1", 77, w.clock.wall)


async def test_a_job_says_all_that_a_cluster_needs() -> None:
    async with World(SchedulerConfig(resources={"disk": 2})) as w:
        w.sch.schedule("x", name="t", priority=3, resources={"disk": 1, "gpu": 1}, group="g", memory_gate=5)
        await w.settle()
        job: Job = w.backend.started[0]
        assert (job.priority, job.resources, job.group, job.memory_gate) == (3, (("disk", 1.0), ("gpu", 1.0)), "g", 5)


VERSION_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (
    key INTEGER PRIMARY KEY, argv TEXT NOT NULL, priority INTEGER NOT NULL, time REAL NOT NULL, clock INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'queued', options TEXT, after TEXT, retries INTEGER NOT NULL DEFAULT 0, runs INTEGER NOT NULL DEFAULT 0,
    interruptions INTEGER NOT NULL DEFAULT 0, started REAL, name TEXT, error TEXT
);
CREATE INDEX named ON tasks (name) WHERE name IS NOT NULL;
CREATE TABLE attempts (
    key INTEGER NOT NULL, attempt INTEGER NOT NULL, retry INTEGER NOT NULL, queued REAL NOT NULL, started REAL, ended REAL,
    outcome TEXT NOT NULL, exit_code INTEGER, signal INTEGER, reason TEXT, execution_time REAL, peak_rss INTEGER, cpu_time REAL,
    pid INTEGER, host TEXT, slot INTEGER, stdout BLOB, stderr BLOB, dropped INTEGER, error TEXT
);
CREATE INDEX attempts_of ON attempts (key);
INSERT INTO meta VALUES ('prefix', 'abc-');
INSERT INTO tasks (key, argv, priority, time, name) VALUES (1, '["x","1"]', 1, 5.0, 'old');
INSERT INTO tasks (key, argv, priority, time, name, state) VALUES (2, '["x"]', 1, 5.0, 'done', 'succeeded');
INSERT INTO attempts VALUES (2, 1, 0, 5.0, 6.0, 7.0, 'succeeded', 0, NULL, NULL, 1.0, 2, 0.5, 9, 'here', 3, x'6f7574', x'', 0, NULL);
"""


async def test_a_queue_of_the_release_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {0x6E627073}")
        db.execute("PRAGMA user_version = 1")
        db.executescript(VERSION_1)
        db.execute("PRAGMA journal_mode = WAL").fetchone()
    for _ in range(2):
        async with World(store=path) as w:
            assert w.sch.get("old").id == "abc-1"
            done = w.sch.get("done")
            assert done.result.stdout == b"out"
            assert (done.attempts[0].pid, done.attempts[0].slot, done.attempts[0].worker) == (9, 3, "")
            w.sch.pause()
            w.sch.schedule("x")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


async def test_a_managers_process_is_a_jobs_process() -> None:
    from nbprocs import ProcessManager

    async with ProcessManager() as pm:
        process = await pm.spawn(ProcessConfig(command=SLEEPER[0], args=SLEEPER[1:]))
        assert isinstance(process, JobProcess)
        assert process.host
        await process.stop()


async def test_gpus_are_numbered_where_the_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    show = python_child("ready(os.environ['CUDA_VISIBLE_DEVICES'] + ' ' + os.environ['NBPROCS_SLOT_GPU']); forever()")
    async with TaskScheduler() as sch:
        handles = [sch.schedule(*show, resources={"gpu": 1}) for _ in range(3)]
        first, second = [await anext(aiter(h.lines())) for h in handles[:2]]
        assert (first, second) == ("GPU-a 0", "GPU-b 1")
        assert "waits for 1 of 'gpu'" in handles[2].why()
        handles[1].cancel()
        assert await anext(aiter(handles[2].lines())) == "GPU-b 1"
        [h.cancel() for h in handles]


def test_lost_workers_pickle() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(lost(expected=True)))
    assert (again.worker, again.host, again.expected, again.reason) == ("tcp://node7:1", "node7", True, "worker taken away")
    assert Ended(error=again).error is again
