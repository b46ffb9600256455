"""kill -9 of a kernel at random moments: each detached process is running and can be adopted, or has ended with its status."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

import nbprocs
from nbprocs import ProcessManager, ProcessStatus
from nbprocs.engine import records
from tests.unit.test_detached import home  # noqa: F401 - a fixture

ROOT = Path(nbprocs.__file__).parents[1]
PHASES = ("spawn", "output", "adopt", "stop")
KERNELS, AT_ONCE = 200, 10
LATEST = 0.1  # seconds after its phase began that a kernel is killed at the latest: longer than a phase takes

# An interpreter that has nbprocs loaded, and for each line that it reads forks one that forks a kernel and kills it. The kernel goes
# through the phases again and again; so many seconds after the one that was asked for began, it is killed, and its name is written. Its
# standard error is a FIFO, which every process that it started holds open until that is a detached one: its end of file is the proof that
# nothing is on its way any more between fork and exec, where no look at the process table finds it for certain.
FORKS = """
import asyncio, os, signal, sys, time, nbprocs

async def kernel(name, at_phase, at_round, fd):
    def begins(phase, number):
        if (phase, number) == (at_phase, at_round):
            os.write(fd, b"x")
    async with nbprocs.ProcessManager() as first, nbprocs.ProcessManager() as second:
        number = 0
        while True:
            begins("spawn", number)
            child = "echo $0 >> begun; for i in 1 2 3; do echo $i; done; exec sleep 1000"
            job = await first.spawn("sh", "-c", child, f"{name}-{number}", name=f"{name}-{number}", detach=True, working_dir=sys.argv[1])
            begins("output", number)
            for _ in range(3):
                await job.receive_output()
            begins("adopt", number)
            job = await second.adopt(job.id)
            begins("stop", number)
            await job.stop(grace=10)
            number += 1

def killed(name, phase, number, delay):
    heard, said = os.pipe()
    os.dup2(os.open(sys.argv[1] + "/started", os.O_WRONLY), 2)
    pid = os.fork()
    if not pid:
        asyncio.run(kernel(name, phase, int(number), said))
    os.close(said)
    os.read(heard, 1)
    time.sleep(float(delay))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.write(1, f"{name}\\n".encode())

forked = []
print("up", flush=True)
while line := sys.stdin.readline():
    forked.append(os.fork())
    if not forked[-1]:
        killed(*line.split())
        os._exit(0)
for pid in forked:
    os.waitpid(pid, 0)
"""


class Batch:
    """Some kernels at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun = folder / "begun"
        self.begun.write_text("")
        (folder / "started").unlink(missing_ok=True)
        os.mkfifo(folder / "started")
        self._fifo = os.open(folder / "started", os.O_RDONLY | os.O_NONBLOCK)

    async def over(self, done: IO[bytes]) -> None:
        """Wait until all of them were killed, and nothing that they started is on its way any more."""
        for _ in range(AT_ONCE):
            assert await asyncio.to_thread(done.readline)
        os.set_blocking(self._fifo, True)
        while said := await asyncio.to_thread(os.read, self._fifo, 4096):
            sys.stderr.write(said.decode())
        os.close(self._fifo)


def ours(folder: Path) -> set[int]:
    """Whoever has our state folder in its environment: shims and children."""
    mark = os.fsencode(f"NBPROCS_STATE_DIR={folder / 'state'}")
    found = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if mark in environ.split(b"\0"):
            found.add(pid)
    return found


async def settled(folder: Path, besides: int) -> None:
    """Wait until all who are there are in records that say "running"."""
    async with asyncio.timeout(60):
        while True:
            there = ours(folder) - {besides}
            if there == {pid for record in records.records() if record.live for pid in (record.pid, record.shim_pid)}:
                return
            await asyncio.sleep(0.02)


async def whole(pm: ProcessManager, record: records.DetachedRecord) -> None:
    """It runs and can be adopted, or it ended with its status; nothing of its output is missing."""
    assert record.state in {"running", "ended"}, record
    job = await pm.adopt(record.id)
    if record.state == "running":
        assert [await job.receive_output() for _ in range(3)] == ["1", "2", "3"]
        await job.stop(grace=10)
    result = await job.wait()
    assert (result.status, result.stdout) == (ProcessStatus.TERMINATED, b"1\n2\n3\n"), record
    assert result.exit_code is not None or result.signal is not None, record


@pytest.mark.slow
async def test_kernels_killed_at_200_moments_lose_no_process_and_start_none_twice(home):  # noqa: F811 - the fixture
    """Each of the four phases is hit in a quarter of the kernels, ten kernels at a time, the first or a later round of each."""
    chance = random.Random(int(os.environ.get("NBPROCS_TEST_SEED", "7")))
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", FORKS, str(home)], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forks:
        assert forks.stdin is not None
        assert forks.stdout is not None
        await asyncio.to_thread(forks.stdout.readline)
        for first in range(0, KERNELS, AT_ONCE):
            batch = Batch(home)
            for number in range(first, first + AT_ONCE):
                phase = PHASES[number % len(PHASES)]
                forks.stdin.write(f"k{number} {phase} {chance.randrange(2)} {chance.random() * LATEST}\n".encode())
            forks.stdin.flush()
            await batch.over(forks.stdout)
            await settled(home, forks.pid)
            known = records.records()
            async with ProcessManager() as pm:
                for record in known:
                    await whole(pm, record)
            assert sorted(batch.begun.read_text().split()) == sorted(record.name for record in known), "one is lost, or there twice"
            await settled(home, forks.pid)
            assert nbprocs.forget() == len(known)
            assert list((home / "state" / "detached").iterdir()) == []
        forks.stdin.close()
