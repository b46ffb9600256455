"""Who may give a name to a detached process: names of live ones are unique among all kernels of a user."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator

from nbprocs.engine.places import state_folder

__all__ = ["NameClaimed", "claimed"]


class NameClaimed(Exception):
    """Somebody else is about to give that name to a process of theirs."""


@contextlib.contextmanager
def claimed(name: str) -> Iterator[None]:
    """Hold a name, against all other kernels and managers, while it is looked for and its record is made. Raises NameClaimed, at once.

    A byte of one file is locked, whose place the name tells; the system lets it go when its holder dies, and nothing is left behind.
    Where the system or the file system has no such locks, or the file can't be made, nobody holds anything.
    """
    place = int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=7).digest(), "little")
    fd = -1
    try:
        with contextlib.suppress(OSError):
            fd = os.open(state_folder() / "names", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _locked(fd, place, take=True):
                raise NameClaimed(name)
        yield
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):  # not by closing it alone: somebody may have forked meanwhile
                _locked(fd, place, take=False)
            os.close(fd)


def _locked(fd: int, place: int, *, take: bool) -> bool:
    """Lock that byte, or let it go; False if somebody else has it. Raises OSError where there are no locks."""
    try:
        import fcntl  # noqa: PLC0415 - records are read on Windows, too

        kind = fcntl.F_WRLCK if take else fcntl.F_UNLCK
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, place, 1, 0))  # F_SETLK has one holder a process
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, AttributeError) as error:
        raise OSError(0, "it has no locks of open files") from error
    return True
