"""What a child inherits from its parent and nobody passes on: user, groups, limits, umask, CPU affinity, niceness, scheduling policy.

A shim has those of its kernel at the shim's start. When the kernel's have changed since, another shim is started, which has the new ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

__all__ = ["Ambient"]

_LONGEST = 0.02  # seconds that a look counts at most: a busy machine makes every look seem long
_RARELY = 100  # times as long as a look takes, until the next one: a hundredth of the time at most goes into it
_RLIMIT_LOCKS = 10  # the shim's tags live there
_LINES = (b"Umask:", b"Cpus_allowed:")


class Ambient:
    """The kernel's, as a value that can be compared.

    Who it runs as is looked at each time; the rest costs 60 µs, and a hundredth of the time.
    """

    def __init__(self) -> None:
        self._slow: tuple[object, ...] = ()
        self._until = 0.0

    def look(self) -> tuple[object, ...]:
        """Now, or a few milliseconds ago."""
        now = time.monotonic()
        if now >= self._until:
            with contextlib.suppress(OSError):  # no descriptors left: as it was
                self._slow = (_umask_and_affinity(), os.getpriority(os.PRIO_PROCESS, 0), _policy(), _limits())
            self._until = now + min((time.monotonic() - now) * _RARELY, _LONGEST)
        return (_users(), self._slow)


def _users() -> tuple[object, ...]:
    if hasattr(os, "getresuid"):
        return os.getresuid(), os.getresgid(), tuple(os.getgroups())
    return os.getuid(), os.geteuid(), os.getgid(), os.getegid()


def _umask_and_affinity() -> bytes:
    """As the system writes them: os.umask can't be read without being set, for all threads."""
    if sys.platform != "linux":
        return b""
    with open("/proc/thread-self/status", "rb") as file:
        return b"".join(line for line in file.read().splitlines() if line.startswith(_LINES))


def _policy() -> int:
    try:
        return os.sched_getscheduler(0)
    except (AttributeError, OSError):  # not on this system; musl has the call, and refuses it
        return 0


def _limits() -> tuple[tuple[int, int], ...]:
    import resource  # noqa: PLC0415 - not on Windows

    found = []
    for number in range(16):
        if number != _RLIMIT_LOCKS:
            with contextlib.suppress(ValueError):  # this system has fewer
                found.append(resource.getrlimit(number))
    return tuple(found)
