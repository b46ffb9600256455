"""nbprocs on a Dask worker: the task that holds a slot, and the plugin that brings the worker's bay with it.

::

    scheduler ─ task carry(…) ─► worker: the first one adds the plugin there ─► Bay, handler "nbprocs"
              ─ released ──────► transition() ─► the carrier returns; after the last one the kernel's jobs end
              ─ closes, SIGTERM ► the kernels hear at once that it goes, every tree ends, what is left is told, then the worker goes

The plugin is added on the worker and by the worker. It is not registered with the scheduler: a worker that has no nbprocs could not even
start then, and the plugins of kernels that died would stay there for ever.
"""

import asyncio
import glob
import os
import signal
import threading
from pathlib import Path
from typing import Any

import dask
from distributed import get_worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin

from nbprocs.cluster.bay import Bay, facts_here
from nbprocs.engine.home import Home, Tasks, log

__all__ = ["HANDLER", "Station", "carry", "end_others", "topic_of"]

HANDLER = "nbprocs"
_OVER = frozenset({"cancelled", "released", "forgotten"})
_CUT_OFF = frozenset({"worker-handle-scheduler-connection-broken", "worker-heartbeat-missing", "worker-heartbeat-error"})
_ENDED = frozenset({Status.closed, Status.closing, Status.failed})
_BY_SIGTERM = "its process was told to end (SIGTERM)"
_KEPT_WAITING = 10.0  # seconds that ending all trees may delay a worker's end


def topic_of(session: str) -> str:
    """Under which a worker tells that a carrier has started there."""
    return f"nbprocs-{session}"


async def carry(key: str, session: str, prefix: str, since: float) -> str:
    """Hold one slot of a worker for a kernel, until it is released. Runs as a Dask task on the worker's loop; it takes no thread."""
    worker = get_worker()
    station: Any = worker.plugins.get(HANDLER)
    if station is None:
        station = Station()
        await worker.plugin_add(station, name=HANDLER, catch_errors=False)  # has no await before the plugin is in its place
    return str(await station.carry(key, session, prefix, since))


async def end_others(prefix: str, but: str, since: float, dask_worker: Any = None) -> int:
    """The fence on a worker; by ``client.run``, where the kernel may have no carrier yet."""
    station = None if dask_worker is None else dask_worker.plugins.get(HANDLER)
    return 0 if station is None else int(await station.bay.end_others(prefix, but=but, since=since))


class Station(WorkerPlugin):
    """The bay of a Dask worker, with its carriers."""

    name = HANDLER
    bay: Bay
    _before: Any = signal.SIG_DFL

    def __init__(self) -> None:
        self._carriers: dict[str, asyncio.Event] = {}
        self._reason = ""  # of the worker's end

    def setup(self, worker: Any) -> None:
        """Make the bay, and take calls. Has no await: two carriers that come at once make one."""
        self._worker = worker
        resources = worker.state.total_resources
        gpus = _gpus()
        if "GPU" in resources:
            gpus = gpus[: int(resources["GPU"])] or tuple(map(str, range(int(resources["GPU"]))))
        facts = facts_here(
            name=str(worker.name),
            cpus=worker.state.nthreads,
            memory=int(worker.memory_manager.memory_limit or 0),
            gpus=len(gpus),
            timeout=float(dask.utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.tcp"))),
        )
        self._tasks = Tasks(Home.current())  # not the bay's: they see the bay's end
        self.bay = Bay(facts, folder=Path(worker.local_directory) / "nbprocs", gpus=gpus)
        worker.handlers[HANDLER] = self._handle
        self._close, worker.close = worker.close, self._closing
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._terminated)

    async def _closing(self, *args: Any, reason: str = "", **options: Any) -> Any:
        """In front of the worker's own close(): its reason is told to nobody else."""
        self._reason = self._reason or reason or "worker-close"
        if self._worker.status not in _ENDED:
            self._announce(*self._meaning)
        return await self._close(*args, reason=self._reason, **options)

    def _terminated(self, *_: object) -> None:
        """SIGTERM, from Slurm at the walltime say: Dask would cut everything off at once. A second one does."""
        signal.signal(signal.SIGTERM, self._before)
        self.bay.home.post(self._told_to_end)

    def _told_to_end(self) -> None:
        self._announce(True, _BY_SIGTERM)
        self._tasks.start(self._go(), name="SIGTERM")

    def _announce(self, expected: bool, why: str) -> None:  # noqa: FBT001 - as it travels
        """Tell the kernels directly, and by way of the scheduler: what ended this worker may leave it only a moment."""
        if self.bay.announce(expected=expected, why=why):
            for name in self.bay.sessions:
                self._worker.log_event(topic_of(name), {"address": self._worker.address, "going": (expected, why)})

    async def _go(self) -> None:
        await self._end_bay(expected=True, why=_BY_SIGTERM)
        if callable(self._before):
            self._before(signal.SIGTERM, None)
        else:
            signal.raise_signal(signal.SIGTERM)

    async def _handle(self, do: str, **given: Any) -> dict[str, Any]:
        return await self.bay.call(do, **given)

    async def carry(self, key: str, session: str, prefix: str, since: float) -> str:
        """One slot more, until it is released."""
        joined = self.bay.join(session, prefix=prefix, since=since, carrier=key)
        if joined is None:
            return "refused"
        done = self._carriers[key] = asyncio.Event()
        joined.on_close.append(done.set)
        released = False
        try:
            self._worker.log_event(topic_of(session), {"address": self._worker.address, "key": key})
            await done.wait()
            released = True
        finally:  # cancelled when the worker closes: teardown comes then
            del self._carriers[key]
            self.bay.part(session, key, released=released)
        return "released"

    def transition(self, key: Any, start: Any, finish: Any, **_: Any) -> None:  # noqa: ARG002 - Dask's signature
        """A carrier that the scheduler has released: its kernel gave the slot back, or has gone."""
        if finish in _OVER and (done := self._carriers.get(key)) is not None:
            done.set()

    async def teardown(self, worker: Any) -> None:
        """The worker closes: end every tree first. Calls are answered meanwhile, so that kernels hear of it."""
        del worker.close
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == self._terminated:
            signal.signal(signal.SIGTERM, self._before)
        expected, why = self._meaning
        await self._end_bay(expected=expected, why=why)

    @property
    def _meaning(self) -> tuple[bool, str]:
        """What the reason of the worker's end says: whether it was taken away on purpose, and why."""
        cut_off = self._reason in _CUT_OFF
        return not cut_off, "its connection to the cluster broke" if cut_off else f"it was taken away ({self._reason})"

    async def _end_bay(self, *, expected: bool, why: str) -> None:
        try:
            async with asyncio.timeout(_KEPT_WAITING):
                await self.bay.aclose(expected=expected, why=why)
        except TimeoutError:
            log.warning("a worker closes with jobs that did not end within %.0f s: its shim ends them", _KEPT_WAITING)


def _gpus() -> tuple[str, ...]:
    """The GPUs that this worker may use, as CUDA_VISIBLE_DEVICES names them; none where nothing is found."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip())
    return tuple(sorted(path[len("/dev/nvidia") :] for path in glob.glob("/dev/nvidia[0-9]*")))  # noqa: PTH207 - names only
