"""Evidence of the out-of-memory killer: the cgroup's own counter, which moves when the system kills for memory.

An out-of-memory kill looks like any other SIGKILL from outside; only the counter tells (``oom_kill`` in ``memory.events`` on cgroup v2,
in ``memory.oom_control`` on v1).
"""

__all__ = ["OomWatch", "oom_kills"]


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _own_files() -> list[str]:
    files = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files.append(f"/sys/fs/cgroup{path}/memory.events")
            files.append("/sys/fs/cgroup/memory.events")  # in a container's namespace the own path is the root
        elif "memory" in controllers.split(","):
            files.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
            files.append("/sys/fs/cgroup/memory/memory.oom_control")
    return files


def oom_kills() -> int | None:
    """How often the system has killed for memory in our cgroup; None where it doesn't say."""
    for file in _own_files():
        for line in _read(file).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


class OomWatch:
    """Compares the counter with what it was: each kill explains one SIGKILL."""

    def __init__(self) -> None:
        self._seen = oom_kills()

    def explains(self) -> bool:
        """Whether a SIGKILL that just came was the system's, for memory. Each kill counts once."""
        if self._seen is None:
            return False
        now = oom_kills()
        if now is None or now <= self._seen:
            return False
        self._seen += 1
        return True
