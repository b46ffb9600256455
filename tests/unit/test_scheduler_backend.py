"""One conformance check on every backend: the local one, a pool's, and the fake that other tests use."""

import asyncio
import sys
from dataclasses import replace

import pytest

from nbprocs.engine.home import Home
from nbprocs.pool import PoolConfig, ProcessPool
from nbprocs.scheduler import Capacity, Ended, Job, LocalBackend, PoolBackend, Started, TaskScheduler
from nbprocs.testing.conformance import FakeBackend, check_backend
from tests.children import SLEEPER, python_child

COMMANDS = {
    "succeeds": (sys.executable, ("-I", "-S", "-c", "pass")),
    "fails": (sys.executable, ("-I", "-S", "-c", "raise SystemExit(3)")),
    "endless": (SLEEPER[0], SLEEPER[1:]),
    "refused": ("/no/such/program", ()),
}
NAMES = {name: (name, ()) for name in COMMANDS}
GPU = python_child("ready(os.environ.get('CUDA_VISIBLE_DEVICES', '')); forever()")


async def test_local_backend_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    await check_backend(LocalBackend, {**COMMANDS, "gpu": (GPU[0], GPU[1:])})


async def test_fake_backend_conforms() -> None:
    await check_backend(FakeBackend, NAMES)


def succeeds() -> int:
    return 42


def fails() -> None:
    raise ValueError("no")


def endless() -> None:
    import threading

    threading.Event().wait()


async def test_pool_backend_conforms() -> None:
    async with ProcessPool(PoolConfig(min_processes=1, max_processes=2)) as pool:
        work = {"succeeds": (succeeds, ()), "fails": (fails, ()), "endless": (endless, ()), "refused": ("not a function", ())}
        await check_backend(lambda: PoolBackend(pool), work)


class Call:
    """As little as a pool's handle can be: something to await and to cancel."""

    def __init__(self, fn, args) -> None:
        self.future = asyncio.get_running_loop().create_future()
        if fn is not endless:
            try:
                self.future.set_result(fn(*args))
            except ValueError as error:
                self.future.set_exception(error)

    def __await__(self):
        return self.future.__await__()

    def cancel(self) -> None:
        self.future.cancel()


class MinimalPool:
    def submit(self, fn, *args):
        return Call(fn, args)


async def test_anything_with_submit_is_a_pool() -> None:
    work = {"succeeds": (succeeds, ()), "fails": (fails, ()), "endless": (endless, ()), "refused": ("not a function", ())}
    await check_backend(lambda: PoolBackend(MinimalPool()), work)


class TellsTwice(FakeBackend):
    def finish(self, job_id: str, ended: Ended | None = None) -> None:
        job, report = self.running.get(job_id, (None, None))
        super().finish(job_id, ended)
        if report is not None and job.command == "succeeds":
            report(Ended())


class IgnoresCancel(FakeBackend):
    def cancel(self, job_id: str, *, grace: float) -> None:
        pass


class TellsAtOnce(FakeBackend):
    def start(self, job: Job, report) -> None:
        report(Started())


class NoReason(FakeBackend):
    def capacity(self) -> Capacity:
        return Capacity(slots=0)


class NoHost(FakeBackend):
    def start(self, job: Job, report) -> None:
        super().start(job, lambda event: report(Started() if isinstance(event, Started) else event))


class Proxy:
    """What a careless backend takes for a process."""

    pid = 1


class NoProcess(FakeBackend):
    def start(self, job: Job, report) -> None:
        told = Started(host="h", pid=1, process=Proxy())  # type: ignore[arg-type]
        super().start(job, lambda event: report(told if isinstance(event, Started) else event))


class SameGpu(LocalBackend):
    def start(self, job: Job, report) -> None:
        super().start(replace(job, env_vars={"CUDA_VISIBLE_DEVICES": "0"}), report)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (TellsTwice, "exactly one Ended"),
        (TellsAtOnce, "returns before anything"),
        (IgnoresCancel, "no Ended within"),
        (NoReason, "says what it waits for"),
        (NoHost, "tells the host"),
        (NoProcess, "has what JobProcess names"),
    ],
)
async def test_the_check_finds_broken_backends(wrong: type[FakeBackend], what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        await check_backend(wrong, NAMES, limit=0.5)


async def test_the_check_finds_a_gpu_that_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    backends: list[SameGpu] = []

    def make() -> SameGpu:
        backends.append(SameGpu())
        return backends[0]

    with pytest.raises(AssertionError, match="a GPU of its own"):
        await check_backend(make, {**COMMANDS, "gpu": (GPU[0], GPU[1:])})
    await backends[0].aclose()


async def test_functions_run_in_a_pool_and_commands_beside_them() -> None:
    async with ProcessPool(PoolConfig(min_processes=1, max_processes=1)) as pool, TaskScheduler(pool=pool) as sch:
        square = sch.schedule(pow, 7, 2, name="square")
        text = sch.schedule("echo", "after", after=[square])
        assert await square == 49
        assert (await text).text == "after\n"
        with pytest.raises(ValueError, match="no"):
            await sch.schedule(fails)


async def test_a_function_without_a_pool_is_refused() -> None:
    async with TaskScheduler() as sch:
        with pytest.raises(TypeError, match="pool="):
            sch.schedule(print)


async def test_local_jobs_tell_pid_and_process() -> None:
    backend = LocalBackend()
    backend.bind(Home.current(), lambda: None)
    events: asyncio.Queue[Started | Ended] = asyncio.Queue()
    argv = python_child("ready(); forever()")
    backend.start(Job(id="1", task_id="1", name="n", command=argv[0], args=argv[1:]), events.put_nowait)
    started = await events.get()
    assert isinstance(started, Started)
    assert started.pid == started.process.pid
    await backend.aclose()
    ended = await events.get()
    assert isinstance(ended, Ended)
    assert ended.stopped
