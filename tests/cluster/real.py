"""A real Dask cluster of processes, each of which a test can end by its pid."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from nbprocs import DaskBackend, TaskScheduler
from nbprocs.testing.leaks import spare
from tests.waiting import until_blocking

QUIET = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}


class RealCluster:
    """A scheduler and workers. ``run`` puts a command in front of each, to start it in a network namespace say."""

    def __init__(self, folder: Path, *, env=None, host="127.0.0.1", run=()):
        self.folder, self.host, self.run = folder, host, tuple(run)
        self.env = {**os.environ, **QUIET, **(env or {})}
        self.processes: dict[str, subprocess.Popen] = {}
        self.logs: dict[str, Path] = {}
        self.nannies: dict[str, bool] = {}
        self.address = ""

    def _start(self, name, *words, env=None, run=None):
        log = self.logs[name] = self.folder / f"{name}.log"
        if name in self.processes:
            self.processes[name].wait(10)
        with log.open("wb") as target:
            self.processes[name] = subprocess.Popen(
                [*(self.run if run is None else run), sys.executable, "-m", *words],
                stdout=target,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**self.env, **(env or {})},
                cwd=self.folder,
                start_new_session=True,
            )

    def _until_ready(self, name, ready):
        return until_blocking(lambda: self._ready(name, ready), within=60, what=f"{name} is ready")

    def _ready(self, name, pattern):
        text = self.logs[name].read_text(errors="replace")
        assert self.processes[name].poll() is None, f"{name} ended: {text}"
        return re.search(pattern, text)

    def start_scheduler(self, *options, port=0):
        self._start(
            "scheduler", "distributed.cli.dask_scheduler", "--host", self.host, "--port", str(port), "--dashboard-address", ":0", *options,
        )  # fmt: skip
        self.address = self._until_ready("scheduler", r"Scheduler at:\s+(\S+)")[1]
        return self

    def start_workers(self, *names, **options):
        """All at once."""
        for name in names:
            self._start_worker(name, **options)
        for name in names:
            self._until_ready(name, r"Registered to:")
        return self

    def start_worker(self, name, **options):
        return self.start_workers(name, **options)

    def _start_worker(self, name, *, threads=2, nanny=False, options=(), env=None, host=None, run=None):
        self.nannies[name] = nanny
        self._start(
            name, "distributed.cli.dask_worker", self.address, "--name", name, "--nthreads", str(threads),
            "--nanny" if nanny else "--no-nanny", "--no-dashboard", "--memory-limit", "0", "--host", host or self.host,
            "--local-directory", str(self.folder), *options, env=env, run=run,
        )  # fmt: skip

    def pid(self, name):
        """Of the worker itself, also behind a nanny."""
        process = self.processes[name]
        if not self.nannies.get(name):
            return process.pid
        # Its command line is no help: Dask gives it a title of its own.
        (worker,) = [c for c in psutil.Process(process.pid).children() if "resource_tracker" not in " ".join(c.cmdline())]
        return worker.pid

    def kill(self, name, number=signal.SIGKILL, *, pid=None):
        os.kill(pid or self.processes[name].pid, number)

    def tree(self, names=None):
        """All pids, or those of some."""
        found = set()
        for process in [self.processes[name] for name in (self.processes if names is None else names)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                found |= {parent.pid, *(child.pid for child in parent.children(recursive=True))}
        return found

    def close(self, *, but=()):
        """End all, or all but some."""
        names = self.processes.keys() - set(but)
        left = self.tree(names)
        for process in [self.processes.pop(name) for name in names]:
            process.kill()
            process.wait(5)
        deadline = time.monotonic() + 2  # what a worker leaves behind is ended by its shim
        while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in left):
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def warmed(cluster, *, tasks=4, **options):
    """What nbprocs, Dask and the workers keep for ever is there before the first test counts: for a cluster of several tests."""

    async def warm():
        used = set()
        async with TaskScheduler(backend=DaskBackend(cluster.address, **options)) as sch, asyncio.timeout(60):
            while len(used) < len(cluster.processes) - 1:  # each but the scheduler; a slow one may join when the first tasks are over
                handles = [sch.schedule("sleep", "0.2") for _ in range(tasks)]
                await asyncio.gather(*handles)
                used |= {handle.task.worker for handle in handles}

    asyncio.run(warm())
    for pid in cluster.tree():
        spare(pid)
    return cluster


def marked(mark):
    """Processes that carry this text in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found
