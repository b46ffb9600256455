"""Evidence of the out-of-memory killer: the cgroup's own counter, which moves when the system kills for memory.

An out-of-memory kill looks like any other SIGKILL from outside; only the counter tells (``oom_kill`` in ``memory.events`` on cgroup v2,
in ``memory.oom_control`` on v1).
"""

from nbprocs.engine.container import kill_counter, kills_in

__all__ = ["OomWatch"]


class OomWatch:
    """Compares the counter with what it was: each kill explains one SIGKILL.

    The file is looked up once, and only it is read again: a killed process is to be running again within a fraction of a millisecond.
    """

    def __init__(self) -> None:
        self._counter = kill_counter()
        self._seen = None if self._counter is None else kills_in(self._counter)

    def explains(self) -> bool:
        """Whether a SIGKILL that just came was the system's, for memory. Each kill counts once."""
        if self._seen is None or self._counter is None:
            return False
        now = kills_in(self._counter)
        if now is None or now <= self._seen:
            return False
        self._seen += 1
        return True
