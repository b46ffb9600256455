"""What the trees of a worker's jobs take, measured when somebody asks."""

from collections.abc import Mapping

import psutil

__all__ = ["Usage"]


class Usage:
    """Keeps what the next look needs: CPU is counted between two looks, so the first one tells none. Usable from one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, psutil.Process]] = {}

    def look(self, pids: Mapping[str, int]) -> list[tuple[str, int, float]]:
        """(job, bytes resident, percent of one core) of each job's tree. Blocks: one scan of the process table."""
        children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            try:
                children.setdefault(process.ppid(), []).append(process)
            except psutil.Error:
                continue
        self._known = {job: self._known.get(job, {}) for job in pids}
        return [(job, *self._tree(job, pid, children)) for job, pid in pids.items()]

    def _tree(self, job: str, pid: int, children: Mapping[int, list[psutil.Process]]) -> tuple[int, float]:
        known, now = self._known[job], {}
        memory, cpu = 0, 0.0
        todo = [pid]
        while todo:
            one = todo.pop()
            todo += [child.pid for child in children.get(one, ())]
            try:
                process = now[one] = known.get(one) or psutil.Process(one)
                cpu += process.cpu_percent()  # since the last call on this very object; 0.0 the first time
                memory += process.memory_info().rss
            except psutil.Error:
                continue
        self._known[job] = now
        return memory, cpu
