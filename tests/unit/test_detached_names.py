"""A name belongs to one live detached process of a user, whoever starts it and when; a start that is cancelled leaves nothing."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nbprocs
from nbprocs.engine import asking, records
from nbprocs.engine.claims import NameClaimed, claimed
from nbprocs.errors import NameInUse, UnknownProcess
from nbprocs.processes import detached
from nbprocs.processes.manager import manager_core
from tests.unit.test_detached import answering, home, other, pm, until  # noqa: F401 - fixtures

ROOT = Path(nbprocs.__file__).parents[1]

# A kernel that starts a process under each of so many names, all at once, when it is told to; it says how many it got.
RIVAL = """
import asyncio, sys, nbprocs

async def main(count):
    async with nbprocs.ProcessManager() as pm:
        print("up", flush=True)
        sys.stdin.readline()
        starts = [pm.spawn("sleep", "1000", name=f"job-{number}", detach=True) for number in range(count)]
        done = await asyncio.gather(*starts, return_exceptions=True)
        assert all(isinstance(one, (nbprocs.ManagedProcess, nbprocs.NameInUse)) for one in done), done
        print(sum(isinstance(one, nbprocs.ManagedProcess) for one in done), flush=True)

asyncio.run(main(int(sys.argv[1])))
"""


async def contest(count: int) -> None:
    """Two kernels want the same names at the same time: each name is got once."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    rivals = [
        subprocess.Popen([sys.executable, "-c", RIVAL, str(count)], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for rival in rivals:
        assert await asyncio.to_thread(rival.stdout.readline) == "up\n"
    for rival in rivals:
        rival.stdin.write("\n")
        rival.stdin.flush()
    got = [int((await asyncio.to_thread(rival.communicate))[0]) for rival in rivals]
    assert sorted(record.name for record in records.records() if record.live) == sorted(f"job-{number}" for number in range(count))
    assert sum(got) == count


async def test_two_kernels_that_want_one_name_do_not_both_get_it(home):  # noqa: F811
    await contest(5)


@pytest.mark.slow
async def test_two_kernels_that_want_fifty_names_get_each_once(home):  # noqa: F811
    await contest(50)


def test_a_name_is_held_against_all_until_it_is_let_go(home):  # noqa: F811
    with claimed("job"):
        with pytest.raises(NameClaimed), claimed("job"):
            pass
        with claimed("other"):
            pass
    with claimed("job"):
        pass


async def test_who_asked_for_no_name_gets_the_next_one(home, pm):  # noqa: F811
    with claimed("sleep-1"):
        job = await pm.spawn("sleep", "1000", detach=True)
        with pytest.raises(NameInUse, match="another kernel"):
            await pm.spawn("sleep", "1000", name="sleep-1", detach=True)
    assert job.name == "sleep-2"
    await job.stop()


@pytest.mark.parametrize("where", ["a folder that can't be written", "no locks"])
async def test_where_nothing_can_be_locked_names_are_looked_up_all_the_same(home, pm, other, monkeypatch, where):  # noqa: F811
    if where == "no locks":
        monkeypatch.delattr("fcntl.F_OFD_SETLK")
    else:
        (home / "state").mkdir(exist_ok=True)
        (home / "state" / "names").mkdir()
    job = await pm.spawn("sleep", "1000", name="job", detach=True)
    with pytest.raises(NameInUse):
        await other.spawn("sleep", "1000", name="job", detach=True)
    await job.stop()


@pytest.fixture
def halfway(monkeypatch):
    """A start says that it has begun, and goes on when it is told to: the two events."""
    begun, goes_on, launch_child = asyncio.Event(), asyncio.Event(), detached.launch_child

    async def launched(*args):
        begun.set()
        await goes_on.wait()
        return await launch_child(*args)

    monkeypatch.setattr(detached, "launch_child", launched)
    return begun, goes_on


async def test_a_start_that_is_cancelled_twice_is_undone(home, pm, halfway):  # noqa: F811
    """Once while it is being started, and again while that is waited for."""
    begun, goes_on = halfway
    start = asyncio.ensure_future(pm.spawn("sleep", "1000", name="job", detach=True))
    await begun.wait()
    for _ in range(2):
        start.cancel()
        await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait({start})
    assert start.cancelled()
    await until(lambda: [record.state for record in records.records()] == ["ended"])


async def test_a_start_that_is_cancelled_when_its_shim_does_not_answer_yet_is_undone(home, pm, monkeypatch):  # noqa: F811
    """It runs, and nothing was heard from it: the caller got its handle already, or no process stays."""
    heard, follow = asyncio.Event(), detached.DetachedChild.follow

    async def followed(child):
        await heard.wait()
        await follow(child)

    monkeypatch.setattr(detached.DetachedChild, "follow", followed)
    start = asyncio.ensure_future(pm.spawn("sleep", "1000", name="job", detach=True))
    await until(lambda: any(record.state == "running" for record in records.records()))
    for _ in range(5):
        await asyncio.sleep(0.01)
    start.cancel()
    await asyncio.wait({start})
    heard.set()
    if not start.cancelled():
        await start.result().stop()
    await until(lambda: not any(record.live for record in records.records()))


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_manager_that_closes_during_a_start_leaves_nothing(home, halfway, cancelled):  # noqa: F811
    begun, goes_on = halfway
    manager = nbprocs.ProcessManager()
    start = asyncio.ensure_future(manager.spawn("sleep", "1000", name="job", detach=True))
    await begun.wait()
    if cancelled:
        start.cancel()
    closing = asyncio.ensure_future(manager.aclose())
    for _ in range(10):
        await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait({start, closing})
    assert start.cancelled() if cancelled else isinstance(start.exception(), nbprocs.Closed)
    await closing
    await until(lambda: [record.state for record in records.records()] == ["ended"])


async def test_a_start_that_is_refused_is_told_to_its_caller_only(pm, caplog):  # noqa: F811
    with pytest.raises(nbprocs.StartupFailed, match="no such program"):
        await pm.spawn("no-such-program", detach=True)
    assert not caplog.records


# --- names that change


def names():
    """Of the live ones, by pid."""
    return {record.pid: record.name for record in records.records() if record.live}


async def test_a_new_name_is_the_one_that_the_next_kernel_finds(home, pm, other):  # noqa: F811
    job = await pm.spawn("sleep", "1000", name="job", detach=True)
    await pm.rename("job", "better")
    assert names() == {job.pid: "better"}
    [record] = records.records()
    answer = await asyncio.to_thread(asking.ask, record.socket, {"op": "status"}, timeout=20)
    assert [child["name"] for child in answer.answer["children"]] == ["better"]
    assert (await other.adopt("better")).pid == job.pid
    with pytest.raises(UnknownProcess):
        await other.adopt("job")
    again = await pm.spawn("sleep", "1000", name="job", detach=True)  # free now
    with pytest.raises(NameInUse, match="detached process named 'taken' lives already"):
        async with nbprocs.ProcessManager() as third:
            await third.spawn("sleep", "1000", name="taken", detach=True)
            await pm.rename("job", "taken")
    assert (again.name, names()[again.pid]) == ("job", "job")
    await job.stop()
    await pm.rename("better", "ended")  # nobody is told of what has ended, and nothing is refused
    for record in records.records():
        if record.live and record.pid != again.pid:
            await (await pm.adopt(record.id)).stop()
    await again.stop()


async def test_what_replaces_a_process_is_found_under_its_name(home, pm, other):  # noqa: F811
    old = await pm.spawn("sleep", "1000", name="job", detach=True, restart=True)
    new = await pm.replace("job")
    assert names() == {new.pid: "job"}
    assert new.pid != old.pid
    adopted = await other.adopt("job")
    assert (adopted.pid, manager_core(other).supervisor.supervises(adopted.id)) == (new.pid, True)
    newest = await other.replace("job")  # its own "job-next" is nobody else's
    assert names() == {newest.pid: "job"}
    await newest.stop()


async def test_the_shim_of_a_kernel_tells_the_name_that_its_manager_gave(pm, monkeypatch):  # noqa: F811
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", os.path.dirname(path := await answering()))
    await pm.spawn("sleep", "1000", name="web")
    new = await pm.replace("web")
    another = await pm.spawn("sleep", "1000", name="old name")
    await pm.rename("old name", "new name")

    def told():
        answer = asking.ask(Path(path), {"op": "status"}, timeout=20).answer
        return {child["name"]: child["pid"] for child in answer["children"]}

    assert await asyncio.to_thread(told) == {"web": new.pid, "new name": another.pid}
