"""What a worker has in common with this process, and follows when it changes here: sys.path, and the key of multiprocessing's managers."""

import sys
from typing import Any

__all__ = ["Settings"]


class Settings:
    """What one worker was told. ``news()`` is called for every message to it, so that it costs next to nothing when nothing is new."""

    __slots__ = ("_authkey", "_path")

    def __init__(self) -> None:
        self._path: list[Any] = []
        self._authkey = b""

    def news(self) -> dict[str, Any]:
        """What is new since the last time, as the worker's ``_adopt`` takes it; all of it at first."""
        found: dict[str, Any] = {}
        if self._path != sys.path:
            self._path = sys.path.copy()
            found["path"] = [entry for entry in self._path if isinstance(entry, str)]
        if "multiprocessing.managers" in sys.modules and (key := _authkey()) != self._authkey:
            self._authkey = found["authkey"] = key
        return found


def _authkey() -> bytes:
    """Who has it may use the managers of multiprocessing that this process has started."""
    return bytes(sys.modules["multiprocessing.process"].current_process().authkey)
