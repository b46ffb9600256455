"""Memory and load of each process on NVIDIA GPUs, by nvidia-ml-py where it is installed and a GPU is there. Elsewhere: nothing, quietly."""

import logging
from typing import Any

__all__ = ["Gpu"]

log: logging.Logger = logging.getLogger("nbprocs.monitor")


class Gpu:
    """Ask with ``read()``; the library is loaded at the first question and given back by ``close()``.

    >>> Gpu(library=None).read()
    {}
    """

    def __init__(self, *, library: Any = "pynvml") -> None:
        """``library`` is a module's name, a module (for tests) or None."""
        self._library: Any = library
        self._devices: list[Any] | None = None
        self._seen: dict[int, int] = {}  # device -> microseconds, of the newest load sample read

    @property
    def available(self) -> bool:
        """Whether there is a GPU that answers. The first call loads the driver's library."""
        if self._devices is None:
            self._devices = self._load()
        return bool(self._devices)

    def _load(self) -> list[Any]:
        library = self._library
        if library is None:
            return []
        try:
            if isinstance(library, str):
                library = self._library = __import__(library)
            library.nvmlInit()
            return [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        except Exception as error:  # noqa: BLE001 - not installed, no driver, no card: NVMLError is known only once it is loaded
            log.debug("no GPU is watched: %r", error)
            return []

    def read(self) -> dict[int, tuple[float, float]]:
        """MiB and percent of a GPU by pid, summed over the GPUs; NaN for what the driver does not tell."""
        if not self.available:
            return {}
        found: dict[int, tuple[float, float]] = {}
        for number, device in enumerate(self._devices or ()):
            for pid, used in self._memory(device).items():
                memory, load = found.get(pid, (0.0, float("nan")))
                found[pid] = (memory + used, load)
            for pid, share in self._load_of(number, device).items():
                memory, load = found.get(pid, (float("nan"), float("nan")))
                found[pid] = (memory, share if load != load else load + share)  # noqa: PLR0124 - NaN
        return found

    def _ask(self, question: str, *args: Any) -> list[Any]:
        try:
            return list(getattr(self._library, question)(*args))
        except Exception as error:  # noqa: BLE001 - NVMLError: not supported by this card, or nothing happened yet
            log.debug("%s: %r", question, error)
            return []

    def _memory(self, device: Any) -> dict[int, float]:
        found: dict[int, float] = {}
        for question in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            for entry in self._ask(question, device):
                used = entry.usedGpuMemory
                found[entry.pid] = float("nan") if used is None else used / (1 << 20)
        return found

    def _load_of(self, number: int, device: Any) -> dict[int, float]:
        sums: dict[int, list[float]] = {}
        for entry in self._ask("nvmlDeviceGetProcessUtilization", device, self._seen.get(number, 0)):
            self._seen[number] = max(self._seen.get(number, 0), entry.timeStamp)
            sums.setdefault(entry.pid, []).append(float(entry.smUtil))
        return {pid: sum(shares) / len(shares) for pid, shares in sums.items()}

    def close(self) -> None:
        """Give the driver's library back. Idempotent."""
        if self._devices:
            self._ask("nvmlShutdown")
        self._devices = None if self._library is not None else []
