"""Signals that the kernel sends by itself, where no shim does: only to whom they were meant for."""

import subprocess
import time

import psutil
import pytest

from nbprocs.engine import tree
from nbprocs.engine.table import Identity, identify
from tests.children import SLEEPER


@pytest.mark.parametrize("way", [tree._by_pidfd, tree._by_psutil])
async def test_a_pid_that_is_somebody_elses_by_now_is_not_signalled(way, monkeypatch):
    sent = []
    monkeypatch.setattr(tree.signal, "pidfd_send_signal", lambda _fd, number: sent.append(number))
    monkeypatch.setattr(psutil.Process, "send_signal", lambda _self, number: sent.append(number))
    with subprocess.Popen(SLEEPER, stdout=subprocess.PIPE) as stranger:
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
        stranger.kill()
