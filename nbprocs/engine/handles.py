"""One kept handle for each process that somebody watches: its row, descriptors, I/O, exact memory and ports, by its identity.

Two makes behind one interface: descriptors of ``/proc`` files (a read costs 1-4 µs, and can never be answered by another process that
got the same pid: the descriptor belongs to the process, not to the number), and psutil elsewhere. Each answer is None where the
system doesn't tell it to us; nothing is ever estimated.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Protocol

from nbprocs.engine.table import ON_LINUX, Row, parse_stat

__all__ = [
    "KEEP_ALL",
    "Handle",
    "ProcHandle",
    "descriptor_budget",
    "latest_pid",
    "listening_inodes",
    "listing",
    "open_handle",
    "user_of",
]


KEEP_ALL = 4  # descriptors of a handle that opens nothing any more
RESTED_MOST = 9  # looks in a row that may rely on a process not having run

Inodes = Callable[[], Mapping[int, int]]


class Handle(Protocol):
    """What can be asked about one process. After ``row()`` has returned None it is gone for good, and so are all other answers."""

    pid: int
    kept: int  # descriptors that it holds
    rested: bool  # it has not run since the look before: the answers are those of then

    def row(self) -> Row | None:
        """Its line of the process table now; None once it is gone, or when the pid belongs to another one."""

    def run_time(self) -> int | None:
        """Nanoseconds on a processor at the latest ``row()``, while it has one thread; None where only the ticks of the row are known."""

    def descriptors(self) -> int | None:
        """Open file descriptors (handles on Windows)."""

    def io(self) -> tuple[int, int] | None:
        """Bytes that it has read and written by system calls so far: files, pipes and sockets, cached or not."""

    def exact_memory(self) -> tuple[int | None, int | None]:
        """PSS and USS in bytes. 0.1 ms for a small process, milliseconds for a big one: ask seldom."""

    def ports(self, inodes: Inodes) -> tuple[int, ...] | None:
        """TCP ports that it listens on, given ``listening_inodes``, which is asked only when it has sockets at all."""

    def close(self) -> None:
        """Give back what it holds. Idempotent."""


def descriptor_budget() -> int:
    """How many descriptors handles may keep in all: a quarter of what this process may open, since children need them more."""
    if not ON_LINUX:
        return 0
    import resource  # noqa: PLC0415 - POSIX only

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else min(soft // 4, 8192)


class ProcHandle:
    """By ``/proc``; keeps four descriptors open until ``close``, or one, or none.

    Four answer all questions. The one tells a process at rest; other questions open and close their own, as all do without any.

    A process of one thread whose run time and time slices (schedstat) are what they were has not run, so nothing that it does can have
    changed: the answers of before hold, for ``RESTED_MOST`` looks at most (its pages may be reclaimed meanwhile). An idle process costs
    one read of 30 bytes.
    """

    __slots__ = (
        "_count",
        "_fd_dir",
        "_io",
        "_io_text",
        "_moved",
        "_rests",
        "_row",
        "_sched",
        "_sched_text",
        "_stat",
        "_text",
        "kept",
        "pid",
        "rested",
        "start",
    )

    def __init__(self, pid: int, *, keep: int) -> None:
        """Raises OSError when there is no such process."""
        self.pid: int = pid
        self.start: float | None = None
        self.kept: int = keep
        self.rested: bool = False
        self._rests = 0
        self._row: Row | None = None
        self._moved: tuple[int, int] | None = None
        self._count: int | None = None
        self._text = self._io_text = self._sched_text = b""  # as last read: what is the same needn't be understood again
        self._io = self._fd_dir = self._sched = -1
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        if keep == KEEP_ALL:
            self._fd_dir = _open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
            self._io = _open(f"/proc/{pid}/io", os.O_RDONLY)
        if keep:
            self._sched = _open(f"/proc/{pid}/schedstat", os.O_RDONLY)

    def row(self) -> Row | None:
        """See Handle."""
        try:
            if self._sched >= 0 and self._has_rested():
                return self._row
            text = os.pread(self._stat, 1024, 0) if self.kept == KEEP_ALL else self._first_text()
            if text == self._text:
                return self._row
            row = parse_stat(self.pid, text)
        except (OSError, ValueError):
            return None
        if self.start is None:
            self.start = row.start
        if row.start != self.start:
            return None
        self._text, self._row = text, row
        return row

    def _has_rested(self) -> bool:
        text = os.pread(self._sched, 128, 0)  # before all else: who runs in between is seen next time
        same = text == self._sched_text
        self._sched_text = text
        self.rested = same and self._rests < RESTED_MOST and self._row is not None and self._row.threads == 1
        self._rests = self._rests + 1 if self.rested else 0
        return self.rested

    def run_time(self) -> int | None:
        """See Handle: the first number of schedstat, which knows the main thread only. A tick is 10 ms: at ten samples a second 10 %."""
        if not self._sched_text or self._row is None or self._row.threads != 1:
            return None
        return int(self._sched_text.split(None, 1)[0])

    def _first_text(self) -> bytes:
        fd, self._stat = self._stat, -1
        if fd < 0:
            return self._read("stat", 1024)
        try:
            return os.read(fd, 1024)
        finally:
            os.close(fd)

    def descriptors(self) -> int | None:
        """See Handle. Since Linux 6.2 the size of the directory is the number; before, the entries are counted."""
        if not self.rested:
            try:
                where: int | str = self._fd_dir if self._fd_dir >= 0 else f"/proc/{self.pid}/fd"
                self._count = os.stat(where).st_size or len(os.listdir(where))
            except OSError:
                self._count = None
        return self._count

    def io(self) -> tuple[int, int] | None:
        """See Handle: rchar and wchar of /proc/<pid>/io."""
        if not self.rested:
            try:
                data = os.pread(self._io, 512, 0) if self._io >= 0 else self._read("io", 512)
                if data != self._io_text:
                    read, written = data.split(None, 4)[1:4:2]
                    self._moved = int(read), int(written)
                    self._io_text = data
            except (OSError, ValueError):
                self._moved, self._io_text = None, b""
        return self._moved

    def _read(self, name: str, size: int) -> bytes:
        fd = os.open(f"/proc/{self.pid}/{name}", os.O_RDONLY)
        try:
            return os.read(fd, size)
        finally:
            os.close(fd)

    def exact_memory(self) -> tuple[int | None, int | None]:
        """See Handle: smaps_rollup, Linux 4.14 and later."""
        try:
            data = self._read("smaps_rollup", 4096)
        except OSError:
            return None, None
        pss: int | None = None
        private = 0
        for line in data.splitlines():
            if line.startswith(b"Pss:"):
                pss = int(line.split()[1]) << 10
            elif line.startswith((b"Private_Clean:", b"Private_Dirty:")):
                private += int(line.split()[1]) << 10
        return (None, None) if pss is None else (pss, private)

    def ports(self, inodes: Inodes) -> tuple[int, ...] | None:
        """See Handle."""
        folder = f"/proc/{self.pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            return None
        sockets = []
        for name in names:
            with contextlib.suppress(OSError):  # closed meanwhile
                target = os.readlink(f"{folder}/{name}")
                if target.startswith("socket:["):
                    sockets.append(int(target[8:-1]))
        listeners = inodes() if sockets else {}
        return tuple(sorted({listeners[inode] for inode in sockets if inode in listeners}))

    def close(self) -> None:
        """See Handle."""
        for fd in (self._stat, self._io, self._fd_dir, self._sched):
            if fd >= 0:
                os.close(fd)
        self._stat = self._io = self._fd_dir = self._sched = -1
        self.kept, self.rested = 0, False


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags)
    except OSError:  # another user's, or gone: the question itself will tell
        return -1


def open_handle(pid: int, *, keep: int = 0, portable: bool = not ON_LINUX) -> Handle | None:
    """The handle of a process, or None if there is none."""
    try:
        if not portable:
            return ProcHandle(pid, keep=keep)
        from nbprocs.engine.handles_psutil import PsutilHandle  # noqa: PLC0415 - Linux needs it for nothing

        return PsutilHandle(pid)
    except OSError:
        return None


def listing(*, portable: bool = not ON_LINUX) -> dict[int, float]:
    """All pids, each with a mark that changes when the pid is given to another process. Under 1 µs for each on Linux.

    The mark on Linux is the inode of ``/proc/<pid>``, which a directory listing tells for nothing: the kernel makes a new one for a new
    process (and now and then for an old one, when memory is short: it is read again then, no harm). Elsewhere it is the start time.
    """
    if not portable:
        with os.scandir("/proc") as entries:
            return {int(entry.name): entry.inode() for entry in entries if entry.name.isdigit()}
    from nbprocs.engine.handles_psutil import starts  # noqa: PLC0415

    return starts()


def latest_pid() -> int:
    """The pid that was given out last; 0 where the system doesn't tell. While it stays the same, nobody has been born."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read(128).split()[4])
    except (OSError, ValueError, IndexError):
        return 0


def listening_inodes() -> dict[int, int]:
    """Socket inode -> port for every listening TCP socket of this network namespace; empty where there is no ``/proc/net``."""
    found: dict[int, int] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{table}", "rb") as file:
            file.readline()
            for line in file:
                fields = line.split(None, 10)
                if fields[3] == b"0A":
                    found[int(fields[9])] = int(fields[1].rsplit(b":", 1)[1], 16)
    return found


def user_of(pid: int) -> tuple[str, str]:
    """Name and user of a process, as far as the system tells; empty strings else."""
    import psutil  # noqa: PLC0415

    name = user = ""
    with contextlib.suppress(psutil.Error, OSError, KeyError):
        process = psutil.Process(pid)
        name = process.name()
        user = process.username()
    return name, user
