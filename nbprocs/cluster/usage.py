"""What the trees of a kernel's jobs take on a worker, measured while that kernel asks: by the monitor's own sampler."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbprocs.cluster.run import Run

if TYPE_CHECKING:
    from nbprocs.monitor.sampler import Sampler

__all__ = ["Usage"]


class Usage:
    """Keeps what the next look needs: CPU is counted between two looks, so the first one tells none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a look may still go on in its thread when the session ends
        self._sampler: Sampler | None = None
        self._codes: dict[str, int] = {}
        self._next = 0
        self._closed = False

    def look(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        """The metrics of each job's tree by their names, as a monitor there would see them. Blocks: one scan of the process table."""
        from nbprocs.monitor.metrics import METRICS  # noqa: PLC0415 - needed only where somebody looks
        from nbprocs.monitor.sampler import Ask, Sampler  # noqa: PLC0415 - as above

        with self._lock:
            if self._closed:  # it was asked for before
                return {}
            if self._sampler is None:
                self._sampler = Sampler(members=False)
            asks = [
                Ask(self._code(run.id), process.identity, run.order.name, run.id, output=(process.stdout, process.stderr))
                for run in runs
                if (process := run.process) is not None and process.pid is not None
            ]
            self._codes = {ask.process_id: ask.code for ask in asks}
            sample = self._sampler.sample(asks)
            names: list[str] = [*METRICS, "state"]
            rows: list[tuple[Any, ...]] = list(zip(*(sample.columns[name].tolist() for name in names), strict=True))
            return {key: dict(zip(names, row, strict=True)) for key, row in zip(sample.process_ids, rows, strict=True)}

    def _code(self, run_id: str) -> int:
        if run_id not in self._codes:
            self._next += 1
            self._codes[run_id] = self._next
        return self._codes[run_id]

    def close(self) -> None:
        """Give back the descriptors. Blocks while a look goes on."""
        with self._lock:
            self._closed = True
            if self._sampler is not None:
                self._sampler.close()
                self._sampler = None
