"""Evidence of the out-of-memory killer: the cgroup's own counter, which moves when the system kills for memory.

An out-of-memory kill looks like any other SIGKILL from outside; only the counter tells (``oom_kill`` in ``memory.events`` on cgroup v2,
in ``memory.oom_control`` on v1).
"""

from __future__ import annotations

import time
from collections import deque

__all__ = ["OomWatch"]

FRESH = 0.05  # seconds for which a count is good enough for the start of a process: a burst of starts reads once


class OomWatch:
    """Compares the counter with what it was: each kill explains one end, of a process that lived when it was counted.

    A kill that was counted before a process started can't have hit it. One that hit a descendant of ours makes its tree fail in some other
    way: that end takes the kill, so that it does not explain a later SIGKILL by somebody else. The file is looked up once, and only it is
    read again: a killed process is to be running again within a fraction of a millisecond.
    """

    def __init__(self) -> None:
        from nbprocs.engine.container import kill_counter, kills_in  # noqa: PLC0415 - `import nbprocs` stays light

        self._counter = kill_counter()
        self._kills_in = kills_in
        self._count = 0
        self._read_at = float("-inf")
        self._explained: deque[int] = deque(maxlen=1000)  # the numbers of kills that explain an end
        self._known = self._read()

    def _read(self) -> bool:
        found = None if self._counter is None else self._kills_in(self._counter)
        if found is not None:
            self._count, self._read_at = found, time.monotonic()
        return found is not None

    def mark(self) -> int:
        """The number of kills so far, for a process that is about to start."""
        if self._known and time.monotonic() - self._read_at > FRESH:
            self._read()
        return self._count

    def explains(self, mark: int, *, killed: bool) -> bool:
        """Whether the end of a process that started at ``mark`` was the system's, for memory.

        Ask at each end that is a failure and was not our doing; ``killed`` says whether SIGKILL ended it.
        """
        if not self._known or not self._read():
            return False
        number = next((kill for kill in range(self._count, mark, -1) if kill not in self._explained), None)
        if number is None:
            return False
        self._explained.append(number)
        return killed
