"""Evidence of the out-of-memory killer: the cgroup's own counter, which moves when the system kills for memory.

An out-of-memory kill looks like any other SIGKILL from outside; only the counter tells (``oom_kill`` in ``memory.events`` on cgroup v2,
in ``memory.oom_control`` on v1).
"""

__all__ = ["OomWatch"]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _own_files() -> list[str]:
    files = []
    for line in _read("/proc/self/cgroup").decode(errors="surrogateescape").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files.append(f"/sys/fs/cgroup{path}/memory.events")
            files.append("/sys/fs/cgroup/memory.events")  # in a container's namespace the own path is the root
        elif "memory" in controllers.split(","):
            files.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
            files.append("/sys/fs/cgroup/memory/memory.oom_control")
    return files


def _kills(path: str) -> int | None:
    for line in _read(path).splitlines():
        name, _, value = line.partition(b" ")
        if name == b"oom_kill":
            return int(value)
    return None


class OomWatch:
    """Compares the counter with what it was: each kill explains one SIGKILL.

    The file is looked up once, and only it is read again: a killed process is to be running again within a fraction of a millisecond.
    """

    def __init__(self) -> None:
        counters = ((path, _kills(path)) for path in _own_files())
        found: tuple[str, int | None] = next((counter for counter in counters if counter[1] is not None), ("", None))
        self._path, self._seen = found

    def explains(self) -> bool:
        """Whether a SIGKILL that just came was the system's, for memory. Each kill counts once."""
        if self._seen is None:
            return False
        now = _kills(self._path)
        if now is None or now <= self._seen:
            return False
        self._seen += 1
        return True
