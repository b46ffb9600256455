"""What a worker has in common with this process, and follows when it changes here.

sys.path, logging levels, warning filters, the key of multiprocessing's managers; the folder and the environment where that was asked for.
"""

import contextlib
import itertools
import logging
import os
import sys
import warnings
from typing import Any

__all__ = ["KernelFollower"]

_SEEN: Any = "nbprocs"  # in the cache of the root logger, which every change of a level empties
_versions = itertools.count(1)
_level_version = 0


class KernelFollower:
    """What one worker was told of it. ``news()`` is called for every message to it, so it costs next to nothing when nothing is new."""

    __slots__ = ("_authkey", "_environment", "_filters", "_folder", "_follow", "_levels", "_path")

    def __init__(self, *, follow: bool = False) -> None:
        """``follow``: folder and environment, too; they are taken as given until the first change."""
        self._path: list[Any] = []
        self._authkey = b""
        self._filters: list[Any] = []
        self._levels = 0
        self._follow = follow
        self._folder = os.getcwd() if follow else ""  # noqa: PTH109 - a text
        self._environment = dict(os.environ) if follow else {}

    def news(self) -> dict[str, Any]:
        """What is new since the last time, as the worker's ``_adopt`` takes it; all of it at first."""
        found: dict[str, Any] = {}
        if self._path != sys.path:
            self._path = sys.path.copy()
            found["path"] = [entry for entry in self._path if isinstance(entry, str)]
        if self._filters != warnings.filters:
            self._filters = list(warnings.filters)
            found["filters"] = [told for entry in self._filters if (told := _filter(entry)) is not None]
        if self._levels != (version := _levels_now()):
            self._levels = version
            found["levels"] = _explicit_levels()
        if "multiprocessing.managers" in sys.modules and (key := _authkey()) != self._authkey:
            self._authkey = found["authkey"] = key
        if self._follow and (changed := self._moved()) is not None:
            found["place"] = changed
        return found

    def _moved(self) -> tuple[str | None, dict[str, str | None]] | None:
        """(the new folder or None, changed variables; None for those that are gone), or None."""
        folder, environment = self._folder, dict(os.environ)
        with contextlib.suppress(FileNotFoundError):  # a folder that was removed is no news
            folder = os.getcwd()  # noqa: PTH109 - a text
        if (folder, environment) == (self._folder, self._environment):
            return None
        changes: dict[str, str | None] = {name: value for name, value in environment.items() if self._environment.get(name) != value}
        changes.update(dict.fromkeys(self._environment.keys() - environment.keys()))
        moved = folder if folder != self._folder else None
        self._folder, self._environment = folder, environment
        return moved, changes


def _authkey() -> bytes:
    """Who has it may use the managers of multiprocessing that this process has started."""
    return bytes(sys.modules["multiprocessing.process"].current_process().authkey)


def _levels_now() -> int:
    """Another number after each change of a level."""
    global _level_version  # noqa: PLW0603 - one logging for all pools
    cache = logging.root._cache  # type: ignore[attr-defined]  # noqa: SLF001 - all levels would have to be read each time
    if _SEEN not in cache:
        _level_version = next(_versions)
        cache[_SEEN] = True
    return _level_version


def _explicit_levels() -> tuple[dict[str, int], int]:
    """The levels that were set, by name, that of the root under an empty one; and the level that is disabled."""
    found = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            found[name] = int(logger.level)
    return found, int(logging.root.manager.disable)


def _filter(entry: Any) -> tuple[Any, ...] | None:
    """A warning filter as the worker takes it; None for what is not a usual one."""
    try:
        action, text, category, module, line = entry
        return str(action), _pattern(text), (category.__module__, category.__qualname__), _pattern(module), int(line)
    except (AttributeError, TypeError, ValueError):
        return None


def _pattern(found: Any) -> Any:
    return found if found is None or type(found) is str else (str(found.pattern), int(found.flags))
