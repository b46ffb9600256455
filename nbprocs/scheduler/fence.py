"""Nothing of a stored queue starts before what a former kernel left running in the backend has ended."""

import asyncio
from collections.abc import Callable

from nbprocs.engine.home import Home, Tasks, log
from nbprocs.guard import text_of
from nbprocs.scheduler.backend import Backend, Fenced

__all__ = ["Fence"]

_AGAIN = 2.0  # seconds until a backend that could not do it is asked again


class Fence:
    """Asks the backend once, in a task of its own; ``up`` is true when tasks may start."""

    def __init__(self, backend: Backend, prefix: str, *, stored: bool) -> None:
        self._backend = backend if stored and isinstance(backend, Fenced) else None
        self._prefix = prefix
        self._tasks: Tasks | None = None
        self.up: bool = self._backend is None
        self.error: str = ""  # why it is not up yet

    def begin(self, home: Home, done: Callable[[], None]) -> None:
        """Ask, on the home loop; ``done`` is called there when tasks may start."""
        if self._backend is not None:
            self._tasks = Tasks(home)
            self._tasks.start(self._put_up(self._backend, done), name="the fence of a stored queue")

    async def _put_up(self, backend: Fenced, done: Callable[[], None]) -> None:
        while not self.up:
            try:
                await backend.fence(self._prefix)
                self.up = True
            except Exception as error:  # noqa: BLE001 - whatever a backend raises, a task must not run twice
                self.error = text_of(error)
                log.error("the task queue stands still: what a former kernel left running could not be ended: %s", self.error)
                await asyncio.sleep(_AGAIN)
        self.error = ""
        done()

    async def aclose(self) -> None:
        """Ask no more."""
        if self._tasks is not None:
            await self._tasks.aclose()
