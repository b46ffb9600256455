"""Limits and room: files, processes, memory, processors, disks, shared memory, GPUs."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from nbprocs.engine.container import read_limits
from nbprocs.engine.places import runtime_folder, state_folder
from nbprocs.monitor.gpu import Gpu
from nbprocs.runs.doctor.finding import Finding, Verdict

__all__ = ["disks", "gpu", "memory", "open_files", "processors", "room_for_processes", "shared_memory"]

_AREA = "limits"
_TIGHT, _FULL = 0.8, 0.95  # of a limit
_FEW_FILES = 1024
_SHARED = 64 << 20  # bytes: what Docker gives by default, and what data loaders outgrow
_ELSEWHERE = {
    "temporary folder": "TMPDIR, before Jupyter is started", "state folder": "NBPROCS_STATE_DIR", "runtime folder": "NBPROCS_RUNTIME_DIR",
    "working folder": "os.chdir()",
}  # fmt: skip
_LOW, _NONE = 1 << 30, 64 << 20  # bytes free on a disk


def _used(share: float) -> Verdict:
    return Verdict.BAD if share >= _FULL else Verdict.WARN if share >= _TIGHT else Verdict.OK


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def open_files() -> Iterator[Finding]:
    """How many descriptors this kernel may have, and has."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = psutil.Process().num_fds()
    state, cure = _used(used / soft), "close what you don't need; a running process holds two or three"
    if state is Verdict.OK and soft < _FEW_FILES:
        state, cure = Verdict.WARN, f"ulimit -n {min(hard, 65_536) if hard > 0 else 65_536}, before Jupyter is started"
    yield Finding(area=_AREA, what="open files", state=state, said=f"{used:,} of {soft:,}", cure=cure)


def room_for_processes() -> Iterator[Finding]:
    """How many processes the user and the container may have."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    container = read_limits().pids
    limits = [limit for limit in (soft if soft > 0 else None, container) if limit is not None]
    if not limits:
        yield Finding(area=_AREA, what="processes", state=Verdict.OK, said="no limit")
        return
    used = sum(_tasks(pid) for pid in psutil.pids())
    share = used / min(limits)
    cure = "ulimit -u, or the container's pids limit, must be higher; or run fewer at a time: ProcessManager(max_concurrent=…)"
    yield Finding(area=_AREA, what="processes", state=_used(share), said=f"{used:,} tasks of {min(limits):,}", cure=cure)


def _tasks(pid: int) -> int:
    """Its threads, which is what the limit counts; 0 for another user's."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.getuid():  # noqa: PTH116 - hundreds of them
            return 0
        return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - as above
    except OSError:
        return 0


def memory() -> Iterator[Finding]:
    """What the container, or the machine, still has; and whether somebody was killed for want of it."""
    limits = read_limits()
    machine = psutil.virtual_memory()
    if limits.memory_limited and limits.memory_used is not None:
        used, total, whose = limits.memory_used, limits.memory_bytes, "the container's"
    else:
        used, total, whose = machine.total - machine.available, machine.total, "the machine's"
    cure = "stop what you don't need; schedule(memory_gate=…) starts tasks only when there is room"
    yield Finding(area=_AREA, what="memory", state=_used(used / total), said=f"{_size(used)} of {whose} {_size(total)} in use", cure=cure)
    if limits.oom_kills:
        said = f"{limits.oom_kills} processes were killed because the container's memory ran out"
        yield Finding(
            area=_AREA, what="out of memory", state=Verdict.WARN, said=said, cure="smaller tasks, fewer at a time, or more memory"
        )


def processors() -> Iterator[Finding]:
    """How many may be used, where that is not what the machine has."""
    limits, there = read_limits(), os.cpu_count() or 1
    if limits.cpus < there:
        said = f"{limits.cpus:g} of the machine's {there}: the container or an affinity mask allows no more"
        cure = "size pools by nbprocs.monitor's limits, not by os.cpu_count()"
        state = Verdict.WARN if limits.cpus < 1 else Verdict.OK
        yield Finding(area=_AREA, what="processors", state=state, said=said, cure=cure)
    else:
        yield Finding(area=_AREA, what="processors", state=Verdict.OK, said=f"{there}")


def disks() -> Iterator[Finding]:
    """The folders that nbprocs and its processes write to."""
    places: dict[str, Callable[[], Path]] = {
        "temporary folder": lambda: Path(tempfile.gettempdir()),
        "state folder": state_folder,
        "runtime folder": runtime_folder,
        "working folder": Path.cwd,
    }
    for what, find in places.items():
        try:
            folder = find()
            usage = shutil.disk_usage(folder)
        except OSError as error:
            cure = f"{_ELSEWHERE[what]} must name one that is there"
            yield Finding(area=_AREA, what=what, state=Verdict.BAD, said=f"not to be had: {error}", cure=cure)
            continue
        free = f"{_size(usage.free)} of {_size(usage.total)} free in {folder}"
        if not os.access(folder, os.W_OK):
            state = Verdict.WARN if what == "working folder" else Verdict.BAD
            yield Finding(area=_AREA, what=what, state=state, said=f"{folder} can't be written", cure="check its owner and permissions")
        elif hasattr(os, "statvfs") and os.statvfs(folder).f_files > 0 and not os.statvfs(folder).f_favail:
            yield Finding(area=_AREA, what=what, state=Verdict.BAD, said=f"no inodes left; {free}", cure="delete small files")
        else:
            state = Verdict.BAD if usage.free < _NONE else Verdict.WARN if usage.free < _LOW else Verdict.OK
            yield Finding(
                area=_AREA, what=what, state=state, said=free, cure=f"delete what you don't need; or another disk: {_ELSEWHERE[what]}"
            )


def shared_memory() -> Iterator[Finding]:
    """The memory that processes share, where multiprocessing and data loaders keep theirs."""
    folder = Path("/dev/shm")  # noqa: S108 - that is what is looked at
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    said = f"{_size(usage.free)} of {_size(usage.total)} free in {folder}"
    if usage.total <= _SHARED:
        state, cure = Verdict.WARN, "start the container with --shm-size=2g (or --ipc=host): data loaders die of a bus error otherwise"
    else:
        state, cure = _used(1 - usage.free / usage.total), "delete what earlier programs left there"
    yield Finding(area=_AREA, what="shared memory", state=state, said=said, cure=cure)


def gpu() -> Iterator[Finding]:
    """NVIDIA cards, and whether they can be watched."""
    watched = Gpu()
    try:
        if watched.available:
            yield Finding(area=_AREA, what="GPU", state=Verdict.OK, said="there, and watched")
            return
    finally:
        watched.close()
    if Path("/dev/nvidiactl").exists():
        yield Finding(area=_AREA, what="GPU", state=Verdict.WARN, said="there, but not watched", cure="pip install nvidia-ml-py")
    else:
        yield Finding(area=_AREA, what="GPU", state=Verdict.OK, said="none")
