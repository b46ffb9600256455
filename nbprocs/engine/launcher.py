"""Where a manager's children come from: the seam between the shim and the loop's own means.

::

    ProcessManager ──► Launcher.start ──► PosixChild      by the shim
                                     └──► PortableChild   by the loop; the shim only guards it
                   ──► Launcher.end_all                   everything that it ever started
"""

from __future__ import annotations

import asyncio
import itertools
import os
import weakref
from collections.abc import Iterable
from typing import Protocol

from nbprocs.engine.child import Child, Engine, Listener, Spec, Survivor
from nbprocs.engine.home import log
from nbprocs.engine.shim import NoShim, shims
from nbprocs.engine.shimlib import wire
from nbprocs.engine.table import present
from nbprocs.engine.tree import Root, end_trees

__all__ = ["Launcher", "Stray", "launcher_for"]

_numbers = itertools.count(1)
_parts = itertools.cycle(range(1, wire.MANAGERS))
_open: set[int] = set()  # the managers' parts of the tags that are in use; strays may yet be anybody's of them
Stray = tuple[int, float, str]  # pid, start, masked command


class Launcher(Protocol):
    """One manager's way to children. On the manager's home loop only."""

    token: str  # what the tokens of its processes begin with

    async def start(self, spec: Spec, listener: Listener) -> Child:
        """Start a process. Raises OSError as the system said it, or ValueError for what no system can run; nothing is left then."""

    async def end_all(self, children: Iterable[Child], *, grace: float) -> list[Survivor]:
        """End everything that was started here, with all that descends from it; returns who survived SIGKILL for 5 seconds."""

    async def strays(self) -> list[Stray]:
        """What descends from children of this kernel, and nothing tells from which."""

    def close(self) -> None:
        """There will be no further start."""


class PosixLauncher:
    """By the shim, and by the loop where this kernel can have none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closed = False
        self._used = self._asked = False  # a start was tried; a shim was asked for one
        self.manager: int = 0  # its part of the tags, from the first start on
        self.token: str = f"{shims.token}.{next(_numbers)}"
        self._portable: PortableLauncher | None = None

    async def start(self, spec: Spec, listener: Listener) -> Child:
        """See Launcher."""
        from nbprocs.engine.posix import PosixChild  # noqa: PLC0415 - not importable on Windows

        if self._portable is not None or shims.unusable:
            return await self._by_the_loop().start(spec, listener)
        if not self._used:
            self._used = True
            self.manager = _free_part()
            _open.add(self.manager)
            shims.hold(self._loop)
            self._release = weakref.finalize(self, _forgotten, weakref.ref(self._loop), self.manager)
            self._release.atexit = False
        try:
            child = PosixChild(spec, manager=self.manager, listener=listener)
            self._asked = True
            await child.started()
        except NoShim as error:
            shims.unusable = str(error)
            return await self._by_the_loop().start(spec, listener)
        except OSError:
            if not self._has_none():
                raise
            return await self._by_the_loop().start(spec, listener)
        self._loop.call_soon(child.begin)  # after the starter has taken the child in: its exit must not be heard before its start
        return child

    @staticmethod
    def _has_none() -> bool:
        """Whether it turned out meanwhile that this kernel can have no shim."""
        return bool(shims.unusable)

    def _by_the_loop(self) -> PortableLauncher:
        if self._portable is None:
            log.warning(
                "children are started by the event loop itself: %s. If this kernel is killed, they stay; a cell that computes holds up "
                "their timeouts",
                shims.unusable,
            )
            self._portable = PortableLauncher(token=self.token)
        return self._portable

    async def end_all(self, children: Iterable[Child], *, grace: float) -> list[Survivor]:
        """See Launcher. Strays go with the last manager that could be theirs."""
        left: list[Survivor] = [] if self._portable is None else await self._portable.end_all(children, grace=grace)
        clients = shims.connected(self._loop) if self._asked and not shims.unusable else ()
        strays = _open <= {self.manager}
        asked = [client.request_end(self._everything(grace, strays=strays)) for client in clients]
        for future in asked:
            left += await future
        if strays:
            shims.strays.clear()
        return left

    def _everything(self, grace: float, *, strays: bool) -> wire.StopOrder:
        return wire.StopOrder(shims.number(), None, self.manager, 15, False, grace, 0, self.token, strays)

    async def strays(self) -> list[Stray]:
        """See Launcher."""
        found: list[Stray] = []
        for client in shims.connected(self._loop) if shims.pids else ():
            found += [(pid, start, shims.masked(argv)) for pid, start, argv in await client.ask(wire.STRAYS, shims.number())]
        return found

    def close(self) -> None:
        """See Launcher."""
        if self._used and not self._closed:
            self._closed = True
            self._release()
            for client in shims.clients(self._loop):
                client.maybe_close()


def _free_part() -> int:
    """A manager's part of the tags that no open manager has; with more than 4,095 of them open, one that is shared."""
    part = next(_parts)
    for _ in range(wire.MANAGERS):
        if part not in _open:
            break
        part = next(_parts)
    return part


def _forgotten(loop: weakref.ref[asyncio.AbstractEventLoop], manager: int) -> None:
    """The manager is closed, or was lost without; then this may run in any thread."""
    _open.discard(manager)
    found = loop()
    if found is not None:
        shims.let_go(found)


class PortableLauncher:
    """By the loop's own means. On POSIX the shim guards the children, if there can be one: it ends them with the kernel."""

    def __init__(self, *, token: str | None = None) -> None:
        self.token: str = f"{shims.token}.{next(_numbers)}" if token is None else token
        self._since = present()
        self._guards = os.name == "posix"

    async def start(self, spec: Spec, listener: Listener) -> Child:
        """See Launcher."""
        from nbprocs.engine.portable import start_portable  # noqa: PLC0415 - the other make is loaded only where it is used

        child = await start_portable(spec, listener=listener)
        if self._guards and not shims.unusable:
            try:
                child.guard()
            except OSError as error:
                shims.unusable = str(error)
                log.warning("this kernel can have no helper process (%s): if it is killed, its children stay", error)
        return child

    async def end_all(self, children: Iterable[Child], *, grace: float) -> list[Survivor]:
        """See Launcher."""
        roots = [child.root for child in children]
        return await end_trees([Root(token=self.token, since=self._since), *roots], grace=grace)

    async def strays(self) -> list[Stray]:
        """They can't be told here."""
        return []

    def close(self) -> None:
        """Nothing is held."""


def launcher_for(engine: Engine, loop: asyncio.AbstractEventLoop) -> Launcher:
    """A manager's launcher, for a loop that can have that engine."""
    return PosixLauncher(loop) if engine == "posix" else PortableLauncher()
