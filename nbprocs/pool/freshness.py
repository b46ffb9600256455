"""Whether a module of this process has got other code than its workers may have imported.

Three looks, each as often as its cost allows, called for every task::

    at most every 50 µs      the user's own modules: the same object and the same ``__spec__``?  importlib.reload makes a new one
    at most every 0.5 ms     their files: is one newer, and is anything in its module another object?  %autoreload patches in place
    at most 1 % of the time  the ``__spec__`` of all other modules

A reload takes longer than the first interval, and an edit with the cell that follows it longer than the second. A file that was changed but
not loaded again changes nothing here: this process goes on with its old code, and so do its workers.
"""

import os
import sys
import sysconfig
import threading
import time
from types import FunctionType, ModuleType
from typing import Any

from nbprocs.pool.worker_main import ATOMS

__all__ = ["Freshness"]

_QUICK = 50e-6  # seconds
_FILES = 500e-6  # seconds, or twenty times what that look took
_SHARE = 100  # the look at all other modules rests so many times as long as it took
_LONG_TEXT = 200  # characters
_OURS = ("nbprocs", "nbprocs.")


class Freshness:
    """What was loaded when this was last asked. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[str, _Loaded] = {}  # modules of the user's
        self._others: dict[str, _Loaded] = {}
        self._count = -1  # of sys.modules
        self._quick_at = self._files_at = self._full_at = 0.0

    def lost(self) -> bool:
        """True once for each change: workers that live now may hold old code."""
        now = time.monotonic()
        if now < self._quick_at and len(sys.modules) == self._count:
            return False
        with self._lock:
            found = _reloaded(self._own)
            if now >= self._files_at:
                found = _patched(self._own) or found
                end = time.monotonic()
                self._files_at = end + max(_FILES, 20 * (end - now))
            if now >= self._full_at:
                began = time.monotonic()
                found = _reloaded(self._others) or found
                end = time.monotonic()
                self._full_at = end + _SHARE * (end - began)
            if len(sys.modules) != self._count:
                self._register()
            self._quick_at = time.monotonic() + _QUICK
            return found

    def _register(self) -> None:
        """Note the modules that are new."""
        self._count = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name in self._own or name in self._others or not issubclass(type(module), ModuleType):
                continue
            loaded = _Loaded(module)
            if loaded.file and not loaded.file.startswith(_INSTALLED) and not name.startswith(_OURS):
                loaded.fingerprint = _fingerprint(module)
                self._own[name] = loaded
            else:
                self._others[name] = loaded


_INSTALLED = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class _Loaded:
    """One module as it was seen."""

    __slots__ = ("file", "fingerprint", "module", "spec", "stamp")

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.spec = _space(module).get("__spec__")
        origin = getattr(self.spec, "origin", None)
        self.file = origin if isinstance(origin, str) and origin.endswith(".py") else ""
        self.stamp = _stamp(self.file)
        self.fingerprint: dict[str, Any] = {}


def _space(module: ModuleType) -> dict[str, Any]:
    """Its dictionary, without waking a lazy module."""
    return object.__getattribute__(module, "__dict__")  # type: ignore[no-any-return]


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - a Path costs as much again
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _reloaded(known: dict[str, _Loaded]) -> bool:
    """Whether one was loaded again from another text. A module that was only taken out of sys.modules is none."""
    changed = False
    modules = sys.modules
    for name, loaded in known.items():
        module = modules.get(name)
        if module is None or (module is loaded.module and _space(module).get("__spec__") is loaded.spec):
            continue
        if issubclass(type(module), ModuleType):
            again = _Loaded(module)
            changed = changed or again.stamp != loaded.stamp or not again.file
            again.fingerprint = _fingerprint(module) if loaded.fingerprint else {}
            known[name] = again
    return changed


def _patched(known: dict[str, _Loaded]) -> bool:
    """Whether the file of one was changed, and then something in the module."""
    changed = False
    for name, loaded in known.items():
        stamp = _stamp(loaded.file)
        if stamp is None or stamp == loaded.stamp or sys.modules.get(name) is not loaded.module:
            continue
        fingerprint = _fingerprint(loaded.module)
        if fingerprint != loaded.fingerprint:
            loaded.stamp, loaded.fingerprint = stamp, fingerprint
            changed = True
    return changed


def _fingerprint(module: ModuleType) -> dict[str, Any]:
    """Something for each name that is another thing once its value is another object or has other code. Keeps nothing large alive."""
    found: dict[str, Any] = {}
    for name, value in list(_space(module).items()):
        if not name.startswith("__"):
            found[name] = _mark(value)
        if type(value) is type and value.__module__ == module.__name__:
            for key, part in list(vars(value).items()):
                if not key.startswith("__") or type(part) is FunctionType:  # pickling and abc leave notes of their own there
                    found[f"{name}.{key}"] = _mark(part)
    return found


def _mark(value: Any) -> Any:
    kind = type(value)
    if kind in (staticmethod, classmethod):
        value = value.__func__
    elif kind is property:
        value = value.fget
    if type(value) is FunctionType:
        return value.__code__
    if kind in ATOMS and not (kind in (str, bytes) and len(value) > _LONG_TEXT):
        return kind, value
    return id(value)
