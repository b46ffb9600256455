"""The kernel's and the worker's half together, without a cluster between them; with messages dropped, doubled and delayed."""

import asyncio
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbprocs import AlertThresholds, ProcessMonitor
from nbprocs.cluster.bay import Bay
from nbprocs.cluster.link import LinkDown, Sign
from nbprocs.errors import WorkerLost
from nbprocs.monitor.metrics import State
from nbprocs.scheduler.backend import Ended, Job
from nbprocs.testing.conformance import check_backend
from tests.unit.cluster_kit import Faults, LoopbackBackend, loopback

WORK = {"succeeds": ("true", ()), "fails": ("false", ()), "endless": ("sleep", ("1000",)), "refused": ("/no/such/program", ())}


async def test_it_is_a_backend(tmp_path):
    await check_backend(lambda: LoopbackBackend(tmp_path), WORK)


@pytest.mark.parametrize("seed", range(3))
async def test_it_is_a_backend_whatever_happens_to_messages(tmp_path, seed):
    def faults():
        return Faults(seed=seed, drop=0.1, lose_answer=0.1, double=0.2, late=0.3)

    await check_backend(lambda: LoopbackBackend(tmp_path, faults=faults), WORK)


# -- whatever happens to messages

PROGRAMS = {
    "quick": "echo $N",
    "loud": "i=0; while [ $i -lt 1500 ]; do echo line $i of $N; i=$((i+1)); done",
    "fails": "echo $N >&2; exit 3",
}


class Reports:
    """What was reported of one job; it must be one Ended, and at most one Started before it."""

    def __init__(self):
        self.events, self.ended = [], asyncio.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Ended):
            self.ended.set()


def local(program, number):
    return subprocess.run(["sh", "-c", program], env={"N": str(number)}, capture_output=True, check=False)


@given(
    seed=st.integers(0, 10_000),
    drop=st.sampled_from([0.0, 0.2]),
    double=st.sampled_from([0.0, 0.5]),
    programs=st.lists(st.sampled_from(sorted(PROGRAMS)), min_size=1, max_size=5),
    cancelled=st.sets(st.integers(0, 4), max_size=2),
)
@settings(max_examples=10)
async def test_one_end_each_and_the_same_bytes(tmp_path_factory, seed, drop, double, programs, cancelled):
    def faults():
        return Faults(seed=seed, drop=drop, lose_answer=drop, double=double, late=0.3)

    backend = loopback(tmp_path_factory.mktemp("loop"), faults=faults)
    jobs = []
    for number, name in enumerate(programs):
        reports = Reports()
        job = Job(
            id=f"q-{number}.1", task_id=f"q-{number}", name=name, command="sh", args=("-c", PROGRAMS[name]), env_vars={"N": str(number)}
        )
        backend.start(job, reports)
        jobs.append(reports)
    for number in cancelled & set(range(len(jobs))):
        backend.cancel(f"q-{number}.1", grace=0.5)
    async with asyncio.timeout(30):
        for reports in jobs:
            await reports.ended.wait()
    await backend.aclose()
    for number, (name, reports) in enumerate(zip(programs, jobs, strict=True)):
        *before, ended = reports.events
        assert isinstance(ended, Ended) and len(before) <= 1 and not any(isinstance(e, Ended) for e in before)
        if not ended.stopped:
            expected = local(PROGRAMS[name], number)
            assert (ended.result.stdout, ended.result.stderr) == (expected.stdout, expected.stderr)
            assert ended.result.exit_code == expected.returncode
        else:
            assert number in cancelled


async def start(backend, command, *args, number=1, **options):
    reports = Reports()
    backend.start(Job(id=f"q-{number}.1", task_id=f"q-{number}", name="job", command=command, args=args, **options), reports)
    while not reports.events:
        await asyncio.sleep(0.01)
    return reports


async def test_a_worker_that_is_gone_is_told_by_name_and_no_sooner_than_nothing_of_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("nbprocs.cluster.link._DEAD", 0.6)
    backend = loopback(tmp_path, workers=1)
    reports = await start(backend, "sleep", "1000")
    link = backend.links["w0"]
    link.cut()
    await asyncio.sleep(0.09)
    assert len(reports.events) == 1, "a cut on its own is nothing"
    link.sign, link.is_listed = Sign.REFUSED, False
    began = time.monotonic()
    await reports.ended.wait()
    error = reports.events[-1].error
    assert isinstance(error, WorkerLost) and not error.expected and error.worker.startswith("w0")
    assert time.monotonic() - began > 0.5
    link.mend()
    await backend.aclose()


async def test_a_short_cut_loses_nothing(tmp_path):
    backend = loopback(tmp_path, workers=1)
    reports = await start(backend, "sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done")
    backend.links["w0"].cut()
    backend.links["w0"].sign = Sign.SILENT
    await asyncio.sleep(0.09)
    backend.links["w0"].mend()
    await reports.ended.wait()
    assert reports.events[-1].result.stdout == b"1\n2\n3\n4\n5\n"
    await backend.aclose()


async def test_a_worker_that_leaves_says_so_and_what_waited_there_goes_elsewhere(tmp_path):
    backend = loopback(tmp_path, workers=1, slots=1)
    running = await start(backend, "sleep", "1000")
    waiting = Reports()
    backend.start(Job(id="q-2.1", task_id="q-2", name="waits", command="echo", args=("there",)), waiting)
    backend.add("w1")
    leave = asyncio.get_running_loop().create_task(backend.bays["w0"].aclose(expected=True, why="it was retired"))
    await running.ended.wait()
    error = running.events[-1].error
    assert isinstance(error, WorkerLost) and error.expected and "it was retired" in str(error)
    await waiting.ended.wait()
    assert waiting.events[-1].result.stdout == b"there\n"
    await leave
    await backend.aclose()


async def going(backend, worker="w0"):
    """The worker says that it goes, and the kernel has heard it."""
    assert backend.bays[worker].announce(expected=True, why="its job was cancelled")
    async with asyncio.timeout(20):
        while backend.fleet.peers[worker].going is None:
            await asyncio.sleep(0.01)


async def test_a_worker_that_had_no_time_for_more_than_to_say_that_it_goes_is_an_expected_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("nbprocs.cluster.link._DEAD", 0.2)
    backend = loopback(tmp_path, workers=1)
    reports = await start(backend, "sleep", "1000")
    await going(backend)
    link = backend.links["w0"]
    link.cut()
    link.sign, link.is_listed = Sign.REFUSED, False
    await reports.ended.wait()
    error = reports.events[-1].error
    assert isinstance(error, WorkerLost) and error.expected and "its job was cancelled" in str(error)
    link.mend()
    await backend.aclose()


async def test_a_worker_that_goes_gets_nothing_more_and_is_not_lost_while_something_of_it_may_run(tmp_path):
    backend = loopback(tmp_path, workers=1)
    reports = await start(backend, "sleep", "1000")
    await going(backend)
    later = Reports()
    backend.start(Job(id="q-2.1", task_id="q-2", name="later", command="true"), later)
    backend.links["w0"].cut()
    async with asyncio.timeout(20):
        while backend.fleet.peers["w0"].silent_since is None:
            await asyncio.sleep(0.01)
    backend.links["w0"].mend()
    async with asyncio.timeout(20):
        while backend.fleet.peers["w0"].silent_since is not None:
            await asyncio.sleep(0.01)
    assert len(reports.events) == 1 and backend.bays["w0"].live == 1, "it still runs there, and nobody says otherwise"
    assert not later.events and backend.fleet.ledger.waiting == 1
    await backend.aclose()
    assert later.events[-1].stopped


async def test_what_is_sent_to_a_worker_that_has_begun_anew_is_lost_and_not_refused(tmp_path):
    """It may have arrived before: only the poll, which hears of the same, knows whether the loss was expected."""
    backend = loopback(tmp_path, workers=1)
    reports = await start(backend, "sleep", "1000")
    link, old = backend.links["w0"], backend.bays["w0"]
    heard = []

    class Anew(Bay):
        async def call(self, op, **given):
            heard.append((op, answer := await super().call(op, **given)))
            return answer

    link.bay = anew = Anew(old.facts, folder=tmp_path / "anew")  # the poll still waits at the old one
    later = Reports()
    backend.start(Job(id="q-2.1", task_id="q-2", name="later", command="true"), later)
    async with asyncio.timeout(20):
        while "put" not in {op for op, answer in heard if answer.get("kind") == "unknown"}:
            await asyncio.sleep(0.01)
    assert not later.events
    link.cut()
    link.mend()
    async with asyncio.timeout(30):
        await later.ended.wait()
        await reports.ended.wait()
    for error in (later.events[-1].error, reports.events[-1].error):
        assert isinstance(error, WorkerLost) and "started again" in str(error)
    await backend.aclose()
    await anew.aclose(expected=True, why="the test is over")


DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)"


async def test_slots_that_are_taken_back_are_told_when_nothing_runs_there_any_more_and_may_come_again(tmp_path):
    """As at a restart of the cluster: the kernel lives. Told any sooner, two copies could run."""
    backend = loopback(tmp_path, workers=1, slots=1)
    reports = await start(backend, sys.executable, "-c", DEAF)
    process = reports.events[0].process
    assert await anext(aiter(process.lines())) == "deaf"
    bay = backend.bays["w0"]
    bay.part("s", "s-c0", released=True)
    assert bay.join("s", prefix="", since=backend.fleet.since, carrier="anew") is not None
    backend.fleet.arrived("w0", lambda: backend.links["w0"])
    await reports.ended.wait()
    assert not psutil.pid_exists(process.pid)
    assert isinstance(reports.events[-1].error, WorkerLost) and reports.events[-1].error.expected
    again = Reports()
    backend.start(Job(id="q-2.1", task_id="q-2", name="again", command="echo", args=("again",)), again)
    async with asyncio.timeout(30):
        await again.ended.wait()
    assert again.events[-1].result.stdout == b"again\n"
    await backend.aclose()


async def test_who_asks_a_worker_to_end_while_it_does_waits_until_it_has(tmp_path):
    """At a walltime SIGTERM reaches the worker and its nanny at once: the nanny's word must not cut the worker's last words off."""
    backend = loopback(tmp_path, workers=1)
    reports = await start(backend, sys.executable, "-c", DEAF)
    process = reports.events[0].process
    assert await anext(aiter(process.lines())) == "deaf"
    bay = backend.bays["w0"]
    first = asyncio.get_running_loop().create_task(bay.aclose(expected=True, why="SIGTERM"))
    await asyncio.sleep(0)
    await bay.aclose(expected=True, why="nanny")
    assert first.done() or bay.live == 0
    assert not psutil.pid_exists(process.pid)
    await reports.ended.wait()
    assert reports.events[-1].error.expected and "SIGTERM" in str(reports.events[-1].error)
    await first
    await backend.aclose()


@pytest.mark.parametrize("code", ["exit 143", "kill -15 $$", "exit 1"])
async def test_what_fails_while_its_worker_goes_is_not_blamed(tmp_path, code):
    backend = loopback(tmp_path, workers=1)
    reports = await start(backend, "sh", "-c", f"echo up; read x; {code}", options={"stdin": True})
    bay = backend.bays["w0"]
    (run,) = bay.sessions["s"].running
    run.lost = (True, "its job was cancelled")
    await run.process.close_stdin()
    await reports.ended.wait()
    assert isinstance(reports.events[-1].error, WorkerLost) and reports.events[-1].error.expected
    await backend.aclose()


# -- seen


async def test_a_monitor_sees_what_the_workers_run_and_how_it_ended(tmp_path):
    """By the same metrics as a process of this machine; nothing is measured while nobody asks."""
    backend = loopback(tmp_path, workers=1, slots=4)
    code = "print('up', flush=True)\nblob = b'x' * (48 << 20)\nwhile True: pass"
    busy = await start(backend, "sh", "-c", f'{sys.executable} -c "{code}"; true')
    quiet = await start(backend, "sh", "-c", "read x; exit 3", number=2, options={"stdin": True})
    (session,) = backend.bays["w0"].sessions.values()
    assert session.usage._sampler is None
    async with ProcessMonitor(interval=None, thresholds=AlertThresholds(max_memory_mb=40)) as mon:
        mon.watch(backend.fleet)
        async with asyncio.timeout(30):
            while not mon.alerts() or not ((mon.frame()["cpu_percent"] > 1) & (mon.frame()["memory_usage_mb"] > 48)).any():
                await mon.sample()
                await asyncio.sleep(0.01)
        assert {alert.process_id for alert in mon.alerts()} == {"q-1.1"}
        latest = mon.latest().set_index("process_id")
        row = latest.loc["q-1.1"]
        assert row["processes"] == 2 and row["memory_usage_mb"] > 48 and row["pid"] == busy.events[0].pid
        assert "w0" in row["note"] and set(mon.current()) == {"q-1.1", "q-2.1"}
        run = next(run for run in session.running if run.id == "q-2.1")
        await run.process.close_stdin()
        await quiet.ended.wait()
        backend.cancel("q-1.1", grace=1.0)
        await busy.ended.wait()
        await mon.sample()
        states = mon.frame().groupby("process_id", observed=True)["state"].last()
        assert dict(states) == {"q-1.1": "terminated", "q-2.1": "failed"} and not mon.current()
        assert next(a for a in mon.alerts() if a.type == "process_down").process_id == "q-2.1"
        mon.unwatch(backend.fleet)
    await backend.aclose()
    assert session.usage._sampler is None, "the worker's descriptors are given back"


async def test_another_session_of_the_same_queue_is_fenced_off(tmp_path):
    first = loopback(tmp_path, workers=1, session="a")
    reports = await start(first, "sleep", "1000")
    bay = first.bays["w0"]
    assert await bay.end_others("q-", but="b", since=time.time()) == 1
    assert bay.live == 0
    await reports.ended.wait()
    error = reports.events[-1].error
    assert isinstance(error, WorkerLost)
    async with asyncio.timeout(5):
        while not first.fleet.fenced:
            await asyncio.sleep(0.01)
    assert bay.join("a", prefix="q-", since=first.fleet.since, carrier="again") is None
    assert bay.join("older", prefix="q-", since=first.fleet.since, carrier="x") is None
    await first.aclose()


async def test_files_arrive_in_parts_that_may_come_twice(tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 10_000)
    backend = loopback(tmp_path / "work", faults=lambda: Faults(seed=3, drop=0.2, lose_answer=0.2, double=0.5))
    reports = await start(backend, "cmp", "data", str(data), files=(("data", str(data)),))
    await reports.ended.wait()
    assert reports.events[-1].error is None
    await backend.aclose()


async def test_a_stop_may_overtake_its_job(tmp_path):
    backend = loopback(tmp_path, workers=1)
    bay = backend.bays["w0"]
    session = bay.sessions["s"]
    session.stop("q-9.1", 1.0)
    reports = await start(backend, "sleep", "1000", number=9)
    await reports.ended.wait()
    assert reports.events[-1].stopped and len(reports.events) == 1
    await backend.aclose()


async def test_how_a_job_ended_that_was_told_of_and_never_measured_is_known(tmp_path):
    """Its worker was silent at every look."""
    backend = loopback(tmp_path, workers=1, slots=1)
    quiet = await start(backend, "sh", "-c", "read x; exit 3", number=2, options={"stdin": True})
    (session,) = backend.bays["w0"].sessions.values()
    backend.fleet.peers["w0"].link.call = unanswered(backend.fleet.peers["w0"].link.call, "usage")
    assert [(tree.id, dict(tree.row)) for tree in await backend.fleet.trees()] == [("q-2.1", {})]
    await next(iter(session.running)).process.close_stdin()
    await quiet.ended.wait()
    assert backend.fleet.how_ended("q-2.1") is State.FAILED
    await backend.aclose()


def unanswered(call, what):
    async def called(op, **given):
        if op == what:
            raise LinkDown
        return await call(op, **given)

    return called
