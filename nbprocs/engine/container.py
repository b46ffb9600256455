"""What a container allows: memory, processors, processes, by cgroup v1 and v2 and the affinity mask. Missing files mean no limit.

The one reader of cgroups: monitor, pool, scheduler and the watch for out-of-memory kills ask
here. psutil and ``os.cpu_count`` report the host. On a 2 GiB Binder 1 GiB is 50 %, whatever the host has.
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["Limits", "available_memory", "kill_counter", "kills_in", "read_limits", "usable_cpus"]

_UNLIMITED = 1 << 60  # v1 writes a huge number for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits in force for this process and all that it starts. None: no limit, or not told.

    >>> limits = read_limits()
    >>> limits.percent(limits.memory_mb)
    100.0
    """

    memory_bytes: int  # the smaller of the container's limit and the machine's memory
    memory_limited: bool  # True: by the container
    memory_used: int | None  # bytes that the container uses, without the file cache that it could give back
    cpus: float  # processors: quota, affinity mask and machine, whichever is least
    pids: int | None
    oom_kills: int | None  # processes killed so far because the container's memory ran out
    version: int | None  # of the cgroup interface that told; None: no container

    @property
    def memory_mb(self) -> float:
        """The memory limit in MiB."""
        return self.memory_bytes / (1 << 20)

    def percent(self, used_mb: float) -> float:
        """What share of the allowed memory so many MiB are."""
        return 100.0 * used_mb / self.memory_mb


def read_limits(*, root: str = "/") -> Limits:
    """Read them now: a handful of small files, about 0.2 ms. ``root`` is for trees of files in tests.

    >>> read_limits().cpus > 0
    True
    """
    import psutil  # noqa: PLC0415 - `import nbprocs` stays light

    base = Path(root)
    total = psutil.virtual_memory().total
    cpus = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    memory = quota = pids = used = kills = version = None
    groups = _groups(base)
    mounts = _mounts(base)
    if folders := _folders(base, "memory", groups, mounts):
        version = 1
        memory = _least(folders, "memory.limit_in_bytes")
        used = _used(folders[0], "memory.usage_in_bytes", "total_inactive_file")
        kills = kills_in(folders[0] / "memory.oom_control")
    if folders := _folders(base, "cpu", groups, mounts):
        version = 1
        quota = min((q for f in folders if (q := _quota_v1(f)) is not None), default=None)
    if folders := _folders(base, "pids", groups, mounts):
        version = 1
        pids = _least(folders, "pids.max")
    if folders := [f for f in _folders(base, "", groups, mounts) if (f / "cgroup.controllers").exists()]:
        two = _least(folders, "memory.max"), _least(folders, "pids.max")
        memory = memory if memory is not None else two[0]
        pids = pids if pids is not None else two[1]
        quota = quota if quota is not None else min((q for f in folders if (q := _quota_v2(f)) is not None), default=None)
        used = used if used is not None else _used(folders[0], "memory.current", "inactive_file")
        kills = kills if kills is not None else kills_in(folders[0] / "memory.events")
        version = version or 2
    limited = memory is not None and memory < total
    return Limits(
        memory_bytes=memory if limited and memory is not None else total,
        memory_limited=limited,
        memory_used=used,
        cpus=cpus if quota is None else min(cpus, quota),
        pids=pids,
        oom_kills=kills,
        version=version,
    )


def usable_cpus(*, root: str = "/") -> int:
    """How many CPUs this process may really use: the affinity mask and the container's limit, not what the host has; at least 1.

    >>> usable_cpus() >= 1
    True
    """
    return max(1, round(read_limits(root=root).cpus))


def available_memory(*, root: str = "/") -> float:
    """Bytes that new processes could have: of the machine, or of the container if that has less.

    >>> available_memory() > 0
    True
    """
    import psutil  # noqa: PLC0415 - `import nbprocs` stays light

    free, limits = float(psutil.virtual_memory().available), read_limits(root=root)
    if limits.memory_limited and limits.memory_used is not None:
        free = min(free, float(limits.memory_bytes - limits.memory_used))
    return max(free, 0.0)


def kill_counter(*, root: str = "/") -> Path | None:
    """The file in which the system counts the processes of our group that it killed for their memory; None where it doesn't."""
    base = Path(root)
    groups, mounts = _groups(base), _mounts(base)
    two = [folder for folder in _folders(base, "", groups, mounts) if (folder / "cgroup.controllers").exists()]
    files = [folder / "memory.oom_control" for folder in _folders(base, "memory", groups, mounts)[:1]]
    files += [folder / "memory.events" for folder in two[:1]]
    return next((file for file in files if kills_in(file) is not None), None)


def kills_in(counter: Path) -> int | None:
    """How many it has counted so far; None for a file that tells nothing."""
    return _stat(counter, "oom_kill")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _groups(base: Path) -> dict[str, str]:
    """Controller -> path of our group; "" is the one hierarchy of version 2."""
    found: dict[str, str] = {}
    for line in _text(base / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name] = path
    return found


def _mounts(base: Path) -> dict[str, tuple[str, str]]:
    """Controller -> (mount point, the group that is mounted there)."""
    found: dict[str, tuple[str, str]] = {}
    for line in _text(base / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, *rest = right.split(" ")
        if kind not in {"cgroup", "cgroup2"}:
            continue
        group, point = left.split(" ")[3:5]
        names = [""] if kind == "cgroup2" else rest[-1].split(",")
        for name in names:
            found.setdefault(name, (point, group))
    return found


def _folders(base: Path, controller: str, groups: dict[str, str], mounts: dict[str, tuple[str, str]]) -> list[Path]:
    """Our group's folder and all above it: a limit anywhere up the path holds. In a container it may not exist: then the mount's root."""
    if controller not in mounts or controller not in groups:
        return []
    point, mounted = mounts[controller]
    top = base / point.lstrip("/")
    path = PurePosixPath(groups[controller])
    if path.is_relative_to(mounted):
        path = PurePosixPath("/") / path.relative_to(mounted)
    inside = [top / str(part).lstrip("/") for part in (path, *path.parents)]
    return [folder for folder in inside if folder.is_dir()] or ([top] if top.is_dir() else [])


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _least(folders: list[Path], name: str) -> int | None:
    values = [value for folder in folders if (value := _number(folder / name)) is not None and 0 < value < _UNLIMITED]
    return min(values, default=None)


def _stat(path: Path, key: str) -> int | None:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return None


def _used(folder: Path, name: str, cache: str) -> int | None:
    total = _number(folder / name)
    if total is None:
        return None
    return max(total - (_stat(folder / "memory.stat", cache) or 0), 0)


def _quota_v1(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None
