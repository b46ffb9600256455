"""For those who write a backend: a check that any backend must pass, and a fake one that passes it."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbprocs.engine.home import Home
from nbprocs.errors import ExecutionTimeout, ProcessFailed, StartupFailed
from nbprocs.scheduler.backend import Backend, Capacity, Elastic, Ended, Fenced, Job, JobProcess, Report, Shape, Started

__all__ = ["FakeBackend", "check_backend"]

Work = tuple[Any, tuple[Any, ...]]  # command and arguments


@dataclass(slots=True)
class _Record:
    """What was reported of one job."""

    events: list[Started | Ended] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: Started | Ended) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())
        (self.started if isinstance(event, Started) else self.ended).set()

    async def beginning(self, limit: float) -> Started:
        """What Started told."""
        async with asyncio.timeout(limit):
            await self.started.wait()
        first = self.events[0]
        assert isinstance(first, Started)  # noqa: S101 - for the type checker
        return first

    async def outcome(self, limit: float) -> Ended:
        try:
            async with asyncio.timeout(limit):
                await self.ended.wait()
        except TimeoutError:
            raise AssertionError(f"the backend breaks its contract: no Ended within {limit:g} s of {self.events}") from None
        await asyncio.sleep(0)  # a second Ended would come now
        *before, last = self.events
        _require(isinstance(last, Ended) and not any(isinstance(e, Ended) for e in before), f"exactly one Ended, the last: {self.events}")
        _require(len(before) <= 1, f"at most one Started: {self.events}")
        _require(self.threads == {threading.get_ident()}, "reports are made on the home loop")
        assert isinstance(last, Ended)  # noqa: S101 - for the type checker
        return last


def _require(condition: bool, what: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise AssertionError(f"the backend breaks its contract: {what}")


async def check_backend(make: Callable[[], Backend], work: Mapping[str, Work], *, limit: float = 20.0) -> None:
    """Raise AssertionError, saying what is wrong, unless the backend keeps the contract of :class:`~nbprocs.scheduler.backend.Backend`.

    ``work`` holds commands with arguments under the names "succeeds", "fails" and "endless", and "refused" for one that can't start;
    optionally "gpu", for one that writes CUDA_VISIBLE_DEVICES and then runs on until it is cancelled. Nothing may take longer than
    ``limit`` seconds. Runs on the calling loop.

    >>> await check_backend(FakeBackend, {name: (name, ()) for name in ("succeeds", "fails", "endless", "refused")})
    """
    backend = make()
    _check_capacity(backend)
    changed = asyncio.Event()
    backend.bind(Home.current(), changed.set)
    async with asyncio.timeout(limit):
        if isinstance(backend, Fenced):
            await backend.fence("a-former-kernel-")
        if isinstance(backend, Elastic):
            backend.demand((Shape(count=1),))
            backend.demand(())
        while not _check_capacity(backend).slots:
            await changed.wait()
            changed.clear()
    run = _Starter(backend, work)
    success = await run("succeeds").outcome(limit)
    _require(success.error is None and not success.stopped, f"a success has no error: {success}")
    failure = await run("fails").outcome(limit)
    _require(failure.error is not None and not failure.stopped, f"a failure has its error: {failure}")
    refused = await run("refused").outcome(limit)
    _require(refused.error is not None, f"what can't start ends with an error: {refused}")
    late = await run("endless", timeout=0.3).outcome(limit)
    _require(isinstance(late.error, TimeoutError), f"past its timeout a job ends with ExecutionTimeout: {late}")
    await _check_cancel(backend, run, limit)
    await _check_process(backend, run, limit)
    if "gpu" in work:
        await _check_gpus(backend, run, limit)
    many = [run("succeeds") for _ in range(8)]
    for record in many:
        _require((await record.outcome(limit)).error is None, "jobs side by side don't disturb each other")
    left = run("endless")
    async with asyncio.timeout(limit):
        await left.started.wait()
        await backend.aclose()
    _require((await left.outcome(0.1)).stopped, "aclose() ends and reports what runs")
    await backend.aclose()


def _check_capacity(backend: Backend) -> Capacity:
    capacity = backend.capacity()
    _require(isinstance(capacity, Capacity) and capacity.slots >= 0, f"capacity() tells how many jobs it can run: {capacity}")
    _require(capacity.slots > 0 or bool(capacity.why), f"a backend without a slot says what it waits for: {capacity}")
    return capacity


async def _check_process(backend: Backend, run: "_Starter", limit: float) -> None:
    """What Started tells, and what can be done with a process where there is one."""
    record = run("endless", resources=(("disk", 0.5),), group="g", priority=3, memory_gate=1, files=())
    began = await record.beginning(limit)
    _require(bool(began.host), f"Started tells the host: {began}")
    process = began.process
    if process is not None:
        _require(isinstance(process, JobProcess), f"Started.process has what JobProcess names: {process!r}")
        _require(process.pid == began.pid and process.pid is not None, f"the process has the pid that Started tells: {began}")
        _require(process.created_at.tzinfo is not None, "created_at has a time zone")
        _require(isinstance(process.stdout.getvalue(), bytes) and isinstance(process.stderr.getvalue(), bytes), "streams have bytes")
        process.pause()
        process.resume()
    backend.cancel(run.last, grace=1.0)
    _require((await record.outcome(limit)).stopped, "a job that was paused and resumed can be cancelled")


async def _check_gpus(backend: Backend, run: "_Starter", limit: float) -> None:
    """Two jobs with a GPU each see different ones, if there are two; a later one may have one that was given back."""
    seen: dict[str, set[str]] = {}
    count = min(2, int(backend.capacity().resources.get("gpu", 0)))
    jobs = []
    for _ in range(count):
        record = run("gpu", resources=(("gpu", 1.0),))
        began = await record.beginning(limit)
        jobs.append((run.last, record, began))
        _require(began.process is not None, "a command that asks for a GPU has a process")
        assert began.process is not None  # noqa: S101 - for the type checker
        async with asyncio.timeout(limit):
            devices = await anext(aiter(began.process.lines()))
        mine = seen.setdefault(began.worker or began.host, set())
        _require(bool(devices.strip()) and devices not in mine, f"a GPU of its own for each job: {devices!r}, {mine}")
        mine.add(devices)
    for job_id, record, _ in jobs:
        backend.cancel(job_id, grace=1.0)
        await record.outcome(limit)


async def _check_cancel(backend: Backend, run: "_Starter", limit: float) -> None:
    running = run("endless")
    async with asyncio.timeout(limit):
        await running.started.wait()
    backend.cancel(run.last, grace=1.0)
    backend.cancel(run.last, grace=1.0)
    _require((await running.outcome(limit)).stopped, "a cancelled job ends as stopped")
    backend.cancel(run.last, grace=1.0)
    backend.cancel("no such job", grace=1.0)
    early = run("endless")
    backend.cancel(run.last, grace=1.0)
    _require((await early.outcome(limit)).stopped, "a job can be cancelled before it has started")


class _Starter:
    def __init__(self, backend: Backend, work: Mapping[str, Work]) -> None:
        self._backend, self._work = backend, work
        self._number = 0

    @property
    def last(self) -> str:
        return f"job-{self._number}"

    def __call__(self, name: str, **options: Any) -> _Record:
        self._number += 1
        command, args = self._work[name]
        record = _Record()
        self._backend.start(Job(id=self.last, task_id=self.last, name=name, command=command, args=args, **options), record)
        _require(not record.events, "start() returns before anything is reported")
        return record


class FakeBackend:
    """Runs nothing. What a job does is its command: ``succeeds``, ``fails``, ``refused``, ``endless``; with ``gated=True`` every job waits.

    ``started`` lists the jobs in order; ``finish(job_id)`` ends one that waits.

    >>> async with TaskScheduler(backend=FakeBackend()) as sch:
    ...     print(await sch.schedule("succeeds", "42"))
    ('42',)
    """

    name = "fake"

    def __init__(self, *, gated: bool = False, capacity: Capacity | None = None) -> None:
        self.gated = gated
        self._capacity = capacity or Capacity(slots=4, resources={"gpu": 1.0})
        self._changed: Callable[[], None] = lambda: None
        self.started: list[Job] = []
        self.running: dict[str, tuple[Job, Report]] = {}
        self.closed: bool = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def capacity(self) -> Capacity:
        """As given, or as last resized."""
        return self._capacity

    def resize(self, capacity: Capacity) -> None:
        """Have another capacity from now on."""
        self._capacity = capacity
        self._changed()

    def bind(self, home: Home, changed: Callable[[], None]) -> None:
        """Remember the loop."""
        self._loop = home.loop
        self._changed = changed

    def start(self, job: Job, report: Report) -> None:
        """Note it, and let the loop come round once before anything is told."""
        self.started.append(job)
        self.running[job.id] = (job, report)
        self._loop.call_soon(self._begin, job, report)

    def _begin(self, job: Job, report: Report) -> None:
        if job.id not in self.running:
            return
        if job.command == "refused":
            self.finish(job.id, Ended(error=StartupFailed(f"{job.name} could not be started")))
            return
        report(Started(host="fake"))
        if job.timeout is not None:
            error = ExecutionTimeout(f"{job.name} ran out of time")
            self._timers[job.id] = self._loop.call_later(job.timeout, self.finish, job.id, Ended(error=error))
        if job.command == "fails":
            self.finish(job.id, Ended(error=ProcessFailed(f"{job.name} failed", exit_code=1)))
        elif job.command != "endless" and not self.gated:
            self.finish(job.id)

    def finish(self, job_id: str, ended: Ended | None = None) -> None:
        """End a job, by default with success and its arguments as the result. Nothing for one that has ended."""
        job, report = self.running.pop(job_id, (None, None))
        if (timer := self._timers.pop(job_id, None)) is not None:
            timer.cancel()
        if job is not None and report is not None:
            report(ended or Ended(result=job.args))

    def cancel(self, job_id: str, *, grace: float) -> None:  # noqa: ARG002 - nothing here needs time to end
        """End it as stopped."""
        self._loop.call_soon(self.finish, job_id, Ended(stopped=True))

    async def aclose(self) -> None:
        """End all."""
        self.closed = True
        for job_id in list(self.running):
            self.finish(job_id, Ended(stopped=True))
