"""What ``%%proc`` returns: the process of a cell, through its retries and restarts."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from nbprocs.engine.home import Home, Tasks, hops
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import ProcessError, error_from_result
from nbprocs.model import EventKind, ProcessConfig, ProcessEvent, ProcessResult
from nbprocs.policy import RetryPolicy
from nbprocs.processes.default import default_manager as manager  # noqa: F401 - for the example
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.readiness import Ready
from nbprocs.processes.recording import recorder_for

__all__ = ["CellProcess"]


class CellProcess:
    r"""What ``%%proc`` returns: the process of a cell, through its retries and restarts. Await it for the last result.

    ``process`` is the ManagedProcess of the moment, None before the start. Displayed as its live pane.

    >>> handle = CellProcess(manager(), ProcessConfig(command="echo hello", shell=True, name="greeting"))
    >>> (await handle).text
    'hello\n'
    >>> handle.process.name
    'greeting'
    """

    def __init__(
        self,
        pm: ProcessManager,
        config: ProcessConfig,
        *,
        retries: int = 0,
        restart: bool = False,
        ready: Ready | None = None,
        ready_timeout: float = 30.0,
        record: str | None = None,
    ) -> None:
        self._recorder = None if record is None else recorder_for(record)
        self.home: Home = manager_core(pm).home
        self.config = config
        self.process: ManagedProcess | None = None
        self.started: threading.Event = threading.Event()  # it has a process, or will have none
        self.ended: threading.Event = threading.Event()
        self.result: ProcessResult | None = None
        self.error: ProcessError | None = None
        self._manager = pm
        self._retries = RetryPolicy(max_retries=retries)
        self._spawn = {"restart": restart or None, "ready": ready, "ready_timeout": ready_timeout}
        self._tasks = Tasks(manager_core(pm).home)
        self._waiters: Waiters[None] = Waiters()
        self._changed = asyncio.Event()  # the manager told something of it
        manager_core(pm).home.post(self._begin)

    def _begin(self) -> None:
        self._tasks.start(self._live(), name=f"cell {self.config.name}")

    async def _live(self) -> None:
        unsubscribe = self._manager.subscribe(self._heard)
        try:
            self.result = await self._tries()
        except ProcessError as error:  # raised again where the handle is awaited
            self.error = error
        finally:
            unsubscribe()
            self.started.set()
            if self._recorder is not None:
                await self._recorder.aclose()
            self.ended.set()
            self._waiters.wake(None)

    def _heard(self, event: ProcessEvent) -> None:
        if event.name != self.config.name:
            return
        if event.kind is EventKind.STARTED:
            self.process = self._manager.get(event.process_id)
            self.started.set()
        if self._recorder is not None and self.process is not None:
            self._recorder.heard(event.kind, self.process, event.error)
        self._changed.set()

    async def _tries(self) -> ProcessResult:
        attempt = 0
        began = time.monotonic()
        while True:
            attempt += 1
            process = await self._manager.spawn(self.config, wait=True, **self._spawn)  # type: ignore[arg-type]
            result = await self._last_life(process)
            error = error_from_result(result, attempts=attempt)
            delay = None if error is None else self._retries.decide(error, attempt=attempt, elapsed=time.monotonic() - began)
            if delay is None:
                return result
            await asyncio.sleep(delay)

    async def _last_life(self, process: ManagedProcess) -> ProcessResult:
        """The result of a process, or of the last of those that a supervisor made of it."""
        while True:
            result = await process.wait()
            while manager_core(self._manager).supervisor.supervises(process.id):
                self._changed.clear()
                with contextlib.suppress(TimeoutError):  # a restart that is called off while it waits is no event
                    async with asyncio.timeout(0.5):
                        await self._changed.wait()
            if self.process is None or self.process is process:
                return result
            process = self.process

    @hops
    async def wait(self) -> ProcessResult:
        """Wait for its end: of the last retry, or until it is not restarted any more. Raises what its start raised.

        Cancelling the wait leaves the process alone.
        """
        if not self.ended.is_set():
            await self._waiters.wait()
        if self.error is not None:
            raise self.error
        assert self.result is not None  # noqa: S101 - one of the two is there
        return self.result

    def __await__(self) -> Generator[Any, None, ProcessResult]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        if self.process is not None:
            return repr(self.process)
        return f"<CellProcess {self.config.name}, {'failed to start' if self.error else 'starting'}: {self.config.display}>"

    @property
    def _ipython_display_(self) -> Callable[[], object] | None:
        return None if self.process is None else self.process._ipython_display_

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        if self.process is None:
            return {"text/plain": repr(self)}
        return self.process._repr_mimebundle_(include, exclude)
