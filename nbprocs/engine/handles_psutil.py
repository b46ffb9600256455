"""What :mod:`nbprocs.engine.handles` asks by psutil, on systems without ``/proc``."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import psutil

from nbprocs.engine.handles import Inodes
from nbprocs.engine.table import Row, read_psutil

__all__ = ["PsutilHandle", "starts"]


def _count_descriptors(process: Any) -> object:
    return process.num_handles() if sys.platform == "win32" else process.num_fds()


class PsutilHandle:
    """By psutil, for every other system; one psutil.Process is kept, which knows its own start time."""

    __slots__ = ("_process", "kept", "pid", "rested")

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self.pid: int = pid
        self.kept: int = 0
        self.rested: bool = False
        try:
            self._process = psutil.Process(pid)
        except psutil.Error as error:
            raise ProcessLookupError(pid) from error

    def row(self) -> Row | None:
        """See Handle."""
        try:
            alive = self._process.is_running()  # compares the start time too
        except psutil.Error:
            return None
        return read_psutil(self.pid) if alive else None

    def run_time(self) -> int | None:
        """See Handle."""
        return None

    def _ask(self, question: Callable[[psutil.Process], object]) -> object:
        try:
            return question(self._process)
        except (psutil.Error, OSError, AttributeError):  # gone, forbidden, or not on this system
            return None

    def descriptors(self) -> int | None:
        """See Handle."""
        found = self._ask(_count_descriptors)
        return found if isinstance(found, int) else None

    def io(self) -> tuple[int, int] | None:
        """See Handle. macOS does not tell."""
        counters = self._ask(lambda p: p.io_counters())
        if counters is None:
            return None
        read = getattr(counters, "read_chars", None)
        if read is not None:
            return int(read), int(getattr(counters, "write_chars", 0))
        return int(getattr(counters, "read_bytes", 0)), int(getattr(counters, "write_bytes", 0))

    def exact_memory(self) -> tuple[int | None, int | None]:
        """See Handle. PSS is known on Linux only."""
        info = self._ask(lambda p: p.memory_full_info())
        return getattr(info, "pss", None), getattr(info, "uss", None)

    def ports(self, inodes: Inodes) -> tuple[int, ...] | None:  # noqa: ARG002 - the other make's need
        """See Handle."""
        found = self._ask(lambda p: tuple(sorted({c.laddr.port for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN})))
        return found if isinstance(found, tuple) else None

    def close(self) -> None:
        """See Handle."""


def starts() -> dict[int, float]:
    """All pids, each with its start time."""
    marks: dict[int, float] = {}
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):
            marks[pid] = psutil.Process(pid).create_time()
    return marks
