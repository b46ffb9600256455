"""One scan of the process table: who is there, who is whose child, and what each has used.

On Linux it reads ``/proc/<pid>/stat`` directly (a few microseconds each; psutil's ``children(recursive=True)`` scans the whole
table for every question). Elsewhere psutil answers. A process is (pid, start time), never a pid: a pid may be somebody else's
as soon as its owner was reaped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

import psutil

__all__ = ["Identity", "Row", "descendants", "environ_value", "identify", "present", "read_row", "scan"]

ON_LINUX = sys.platform == "linux"
PAGE = os.sysconf("SC_PAGE_SIZE") if ON_LINUX else 4096
TICK = os.sysconf("SC_CLK_TCK") if ON_LINUX else 100  # ticks a second: the unit of start, utime and stime


class Identity(NamedTuple):
    """A process for good: a reused pid has another start."""

    pid: int
    start: float  # Linux: ticks since boot; elsewhere: seconds since the epoch


class Row(NamedTuple):
    """One line of the process table. A NamedTuple because a tick makes hundreds of them."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    state: str  # one letter as in ps: R, S, D, T, Z …
    start: float
    utime: float  # ticks
    stime: float
    threads: int
    rss: int  # bytes
    reaped: float = 0.0  # ticks of the children that it has waited for, with theirs

    @property
    def identity(self) -> Identity:
        """Its pid and start time."""
        return Identity(self.pid, self.start)

    @property
    def gone(self) -> bool:
        """True for a zombie or a dead one: it holds nothing any more but a place in the table."""
        return self.state in "ZX"


def parse_stat(pid: int, data: bytes) -> Row:
    """One line of ``/proc/<pid>/stat``. ValueError for what is none: a process that goes while it is read gives nothing."""
    # The name is in parentheses and may hold spaces and parentheses itself: everything of interest is behind the last one.
    fields = data[data.rindex(b")") + 2 :].split(None, 22)
    return Row(
        pid,
        int(fields[1]),
        int(fields[2]),
        int(fields[3]),
        chr(fields[0][0]),
        int(fields[19]),
        int(fields[11]),
        int(fields[12]),
        int(fields[17]),
        int(fields[21]) * PAGE,
        int(fields[13]) + int(fields[14]),
    )


def _read_proc(pid: int) -> Row | None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it went between the listing and now, or is hidden from us
        return None  # anything else (no descriptors left) must not read as "nobody is there"
    try:
        return parse_stat(pid, os.read(fd, 1024))
    except (ProcessLookupError, ValueError):  # reaped between open and read: an error or nothing
        return None
    finally:
        os.close(fd)


def read_psutil(pid: int) -> Row | None:
    """The same as read_row, by psutil: on every system, ten times slower."""
    try:
        p = psutil.Process(pid)
        with p.oneshot():
            times = p.cpu_times()
            status = p.status()
            pgid, sid = (os.getpgid(pid), os.getsid(pid)) if hasattr(os, "getpgid") else (pid, pid)
            state = {psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_DEAD: "X", psutil.STATUS_STOPPED: "T"}.get(status, "S")
            return Row(
                pid,
                p.ppid() or 0,
                pgid,
                sid,
                state,
                p.create_time(),
                times.user * TICK,
                times.system * TICK,
                p.num_threads(),
                p.memory_info().rss,
                (times.children_user + times.children_system) * TICK if hasattr(times, "children_user") else 0.0,
            )
    except psutil.ZombieProcess:
        return Row(pid, 0, 0, 0, "Z", 0.0, 0.0, 0.0, 0, 0)
    except (psutil.Error, OSError):
        return None


def read_row(pid: int) -> Row | None:
    """The row of one process, or None if there is none (or we may not look at it)."""
    return _read_proc(pid) if ON_LINUX else read_psutil(pid)


def present() -> float:
    """Now, in the unit of ``start``: whoever starts from here on has a start of at least this."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) * TICK if ON_LINUX else time.time()


def identify(pid: int) -> Identity | None:
    """The identity of a running process, or None."""
    row = read_row(pid)
    return None if row is None else row.identity


def scan() -> dict[int, Row]:
    """Every process of the system by pid; those that go meanwhile are left out. 2-5 ms for 300 processes on Linux."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit()) if ON_LINUX else psutil.pids()
    return {pid: row for pid in pids if (row := read_row(pid)) is not None}


def environ_value(pid: int, name: str) -> str:
    """A variable of the environment that the process was started with; empty if it has none, or where we may not look."""
    try:
        if not ON_LINUX:
            return psutil.Process(pid).environ().get(name, "")
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = b"\0" + file.read()
    except (OSError, psutil.Error):
        return ""
    _, found, rest = data.partition(b"\0" + name.encode() + b"=")
    return rest.partition(b"\0")[0].decode("utf-8", "replace") if found else ""


def descendants(table: dict[int, Row], roots: Iterable[int]) -> set[int]:
    """The pids of all children, grandchildren and so on of some pids, without the roots themselves."""
    children: dict[int, list[int]] = {}
    for row in table.values():
        children.setdefault(row.ppid, []).append(row.pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found
