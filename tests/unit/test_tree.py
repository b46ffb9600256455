"""Signals that the kernel sends by itself, where no shim does: only to whom they were meant for."""

import asyncio
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest

from nbprocs.engine import tree
from nbprocs.engine.table import Identity, identify
from nbprocs.errors import StopFailed
from tests.children import SLEEPER


@pytest.mark.parametrize("way", [tree._by_pidfd, tree._by_psutil])
async def test_a_pid_that_is_somebody_elses_by_now_is_not_signalled(way, monkeypatch):
    sent = []
    monkeypatch.setattr(tree.signal, "pidfd_send_signal", lambda _fd, number: sent.append(number))
    monkeypatch.setattr(psutil.Process, "send_signal", lambda self, number: sent.append(number if self.pid == stranger.pid else self))
    with subprocess.Popen(SLEEPER, stdout=subprocess.PIPE) as stranger:
        try:
            assert stranger.stdout is not None
            stranger.stdout.readline()
            found = identify(stranger.pid)
            assert found is not None
            former = Identity(stranger.pid, found.start - 1)
            await way({former}, {former}, (15, 18), time.monotonic())
            assert sent == [], "another start: another process"
            await way(set(), {found}, (15, 18), time.monotonic())
            assert sent == [], "watched, not meant"
            await way({found}, {found}, (15, 18), time.monotonic())
            assert sent == [15, 18]
        finally:
            stranger.kill()


async def test_all_who_look_in_one_turn_share_one_scan_and_its_error(monkeypatch):
    scans = []

    def scan():
        scans.append(1)
        if len(scans) > 1:
            raise OSError("no more descriptors")
        return {}

    monkeypatch.setattr(tree, "scan", scan)
    assert await asyncio.gather(tree._shared_scan(), tree._shared_scan()) == [{}, {}]
    assert len(scans) == 1
    found = await asyncio.gather(tree._shared_scan(), tree._shared_scan(), return_exceptions=True)
    assert [str(one) for one in found] == ["no more descriptors"] * 2
    assert len(scans) == 2


def test_a_session_is_the_childs_until_its_number_may_be_a_strangers():
    child = Identity(100, 5.0)
    root = tree.Root(token="k", since=0, identity=child, reaped_at=9.0)

    def belongs(pid, start):
        return tree._in_session(SimpleNamespace(pid=pid, start=start), root)

    assert [belongs(100, 5.0), belongs(100, 6.0), belongs(101, 4.9)] == [True, False, False]
    assert [belongs(101, 5.0), belongs(101, 9.0), belongs(101, 9.1)] == [True, True, False]
    assert not tree._in_session(SimpleNamespace(pid=101, start=7.0), None)


def test_who_is_left_is_named_with_the_reason():
    tree.check_ended([], name="web")
    left = [tree.Survivor(7, "db", True), tree.survivor(Identity(2**22 + 1, 0.0))]
    assert left[1] == tree.Survivor(2**22 + 1, "?", False)
    with pytest.raises(StopFailed) as caught:
        tree.check_ended(left, name="web", process_id="p1")
    assert caught.value.survivors == ((7, "db"), (2**22 + 1, "?"))
    assert f"SIGKILL: db (pid 7, which we may not signal), ? (pid {2**22 + 1})" in str(caught.value)


async def test_a_tree_is_ended_by_signals_of_our_own():
    wrong = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: wrong.append(context))
    with subprocess.Popen(SLEEPER, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = identify(child.pid)
        assert found is not None
        root = tree.Root(token="of nobody", since=found.start, identity=found)
        left = await tree.end_trees([root], grace=30)
        assert (left, wrong, child.wait(30)) == ([], [], -15)
    assert await tree.end_trees([], grace=0) == []
