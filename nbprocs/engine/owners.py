"""Which managers, pools, schedulers and monitors there are in this kernel, also those whose variable was overwritten.

Each registers itself when it is made; nothing is kept alive by it. What nbprocs makes for itself (a pool's manager) is left out.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol, overload

from nbprocs.display import Displayable, Html, table, text
from nbprocs.engine.home import log

__all__ = ["Owner", "Owners", "managers", "register"]


class Owner(Protocol):
    """Something that owns processes or tasks, and can be closed."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    async def aclose(self) -> None:
        """Close it. Idempotent, from any loop."""


class _Known:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owners: dict[int, tuple[weakref.ref[Any], str]] = {}  # in the order of making; with the place, if that was a cell
        self.told = False


_known = _Known()


def register(owner: Owner, *, always: bool = False) -> None:
    """Let ``managers()`` know it. For constructors; one that nbprocs itself calls registers nothing, unless ``always``."""
    maker = sys._getframe(2)  # noqa: SLF001 - who called the constructor; the documented way
    if not always and str(maker.f_globals.get("__name__", "")).startswith("nbprocs."):
        return
    place = f"{maker.f_code.co_filename}:{maker.f_lineno}:{maker.f_lasti}" if "ipykernel" in maker.f_code.co_filename else ""
    with _known.lock:
        there = [old for ref, where in _known.owners.values() if place and where == place and _open(old := ref())]
        before = [old for old in there if type(old) is type(owner)]  # a statement may make one of each
        for key in [key for key, (ref, _) in _known.owners.items() if ref() is None]:
            del _known.owners[key]
        _known.owners[id(owner)] = weakref.ref(owner), place
        tell = bool(before) and not _known.told
        _known.told = _known.told or tell
    if tell:
        log.warning(
            "this cell made a %s before, and that one is still open: %r. `nbprocs.managers()` lists all that there are, and "
            "`await nbprocs.managers().aclose()` closes them. Said once.",
            type(owner).__name__,
            before[-1],
        )


def _open(owner: Any) -> bool:
    return owner is not None and not owner.closed and bool(getattr(owner, "live", 1))


class Owners(Displayable, Sequence[Any]):
    """What ``managers()`` returns: a sequence of those that are open, the oldest first."""

    def __init__(self, owners: Sequence[Any]) -> None:
        self._owners = tuple(owners)

    def __len__(self) -> int:
        return len(self._owners)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._owners[index]

    async def aclose(self) -> None:
        """Close all of them, the youngest first; one that fails does not keep the others open. Raises the first failure."""
        failed: BaseException | None = None
        for owner in reversed(self._owners):
            try:
                await owner.aclose()
            except Exception as error:  # noqa: BLE001 - the others are to be closed as well; it is raised below
                failed = failed or error
        if failed is not None:
            raise failed

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._owners)) or "no manager, pool, scheduler or monitor is open"

    def _html_(self) -> Html:
        return table(("kind", "what"), ((text(type(owner).__name__), text(repr(owner), limit=200)) for owner in self._owners))


def managers() -> Owners:
    """Every manager, pool, scheduler and monitor of this kernel that is open, the oldest first.

    Also those whose variable was overwritten, by a cell that ran twice say. ``await managers().aclose()`` closes all of them.

    >>> async with ProcessManager() as pm:
    ...     pm in managers()
    True
    >>> pm in managers()
    False
    """
    with _known.lock:
        found = [ref() for ref, _ in _known.owners.values()]
    return Owners([owner for owner in found if owner is not None and not owner.closed])
