"""What the system says about processes, standard library only: /proc on Linux, ``ps`` elsewhere.

A process is (pid, start time), never a pid: a pid may be somebody else's as soon as its owner was reaped.
"""

from __future__ import annotations

import os
import sys
import time
from typing import NamedTuple

__all__ = [
    "ON_LINUX",
    "PAGE",
    "TICK",
    "Identity",
    "Row",
    "children_of",
    "environ_of",
    "name_of",
    "parse_stat",
    "present",
    "read_proc",
    "rows",
    "tag_of",
]

ON_LINUX = sys.platform == "linux"
PAGE = os.sysconf("SC_PAGE_SIZE") if ON_LINUX else 4096
TICK = os.sysconf("SC_CLK_TCK") if ON_LINUX else 100  # ticks a second: the unit of start, utime and stime
RLIMIT_LOCKS = 10  # no effect since Linux 2.4, inherited like every other limit; the resource module takes the number


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
    foreground: int = -1  # the process group in the foreground of its terminal

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
        int(fields[5]),
    )


def read_proc(pid: int) -> Row | None:
    """The row of one process from /proc, or None if there is none (or we may not look at it)."""
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


def present() -> float:
    """Now, in the unit of ``start``: whoever starts from here on has a start of at least this. Whole ticks, as the system's own."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * TICK // 1_000_000_000 if ON_LINUX else time.time()


def rows() -> dict[int, Row]:
    """Every process of the system by pid; those that go meanwhile are left out. 2-5 ms for 300 processes on Linux."""
    if not ON_LINUX:
        return _rows_by_ps()
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {pid: row for pid in pids if (row := read_proc(pid)) is not None}


def _rows_by_ps() -> dict[int, Row]:
    """The same from ps, which every POSIX system has; ``start`` is 0: it can't tell a reused pid."""
    found = {}
    with os.popen("ps -A -o pid= -o ppid= -o pgid= -o stat=") as lines:  # noqa: S605 - a constant
        for line in lines:
            pid, parent, group, state = line.split()[:4]
            found[int(pid)] = Row(int(pid), int(parent), int(group), int(group), state[0], 0.0, 0.0, 0.0, 1, 0)
    return found


def children_of(pid: int) -> list[int]:
    """The direct children of a process, zombies included, by all its threads. Raises FileNotFoundError when it is gone.

    One read of a few hundred numbers is of one moment; a longer list may miss one that comes while it is read.
    """
    found: list[int] = []
    folder = f"/proc/{pid}/task"
    for thread in os.listdir(folder):
        try:
            fd = os.open(f"{folder}/{thread}/children", os.O_RDONLY)
        except (FileNotFoundError, ProcessLookupError):
            continue
        try:
            data = b""
            while piece := os.read(fd, 1 << 20):
                data += piece
        except ProcessLookupError:
            continue
        finally:
            os.close(fd)
        found.extend(map(int, data.split()))
    return found


def has_children_files() -> bool:
    """Whether the system keeps such lists (CONFIG_PROC_CHILDREN)."""
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def tag_of(pid: int) -> int | None:
    """The tag that a process carries: the soft limit of RLIMIT_LOCKS; None for none, or no such process."""
    import resource  # noqa: PLC0415 - not on Windows

    try:
        soft: int = resource.prlimit(pid, RLIMIT_LOCKS)[0]
    except PermissionError:  # another user's; the file may be read by everybody
        return _tag_by_file(pid)
    except (OSError, AttributeError, ValueError):
        return None
    return soft if soft > 0 else None


def _tag_by_file(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            for line in file:
                if line.startswith(b"Max file locks"):
                    word = line.split()[3]
                    return int(word) if word.isdigit() else None
    except OSError:
        return None
    return None


def environ_of(pid: int, name: bytes) -> bytes:
    """A variable of the environment that the process was started with; empty if it has none, or where we may not look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = b"\0" + file.read()
    except OSError:
        return b""
    _, found, rest = data.partition(b"\0" + name + b"=")
    return rest.partition(b"\0")[0] if found else b""


def name_of(pid: int) -> str:
    """The short name of its program; "?" when it is gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return "?"


def command_of(pid: int) -> tuple[str, ...]:
    """Its argument vector, or its name where that is empty."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    return tuple(word.decode("utf-8", "replace") for word in words if word) or (name_of(pid),)
