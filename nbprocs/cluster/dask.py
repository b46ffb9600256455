"""DaskBackend: the tasks of a scheduler run on the workers of a Dask cluster.

::

    TaskScheduler ─► DaskBackend ─► Fleet ─► Peer ─► DaskLink ─► worker: Station ─► Bay ─► processes, pool
                         │ demand                                    ▲ carriers hold the slots
                         └─► Carriers ─► client.submit(carry) ───────┘

No command is ever a Dask task: Dask runs a task again by itself when a worker dies. A Dask task only holds a slot.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import secrets as random_text
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbprocs.cluster.fleet import Fleet
from nbprocs.display import Displayable, Html, bytes_text, table, text
from nbprocs.engine.home import Home, Tasks, hops, log
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import Closed, ProcessError, StartupFailed
from nbprocs.guard import text_of
from nbprocs.scheduler.backend import Capacity, Job, Report, Shape
from nbprocs.scheduler.slots import GPU

if TYPE_CHECKING:
    import pandas as pd

    from nbprocs.cluster.carriers import Carriers
    from nbprocs.cluster.frames import SeenWorker
    from nbprocs.cluster.own import OwnCluster
    from nbprocs.monitor.metrics import State
    from nbprocs.monitor.remote import RemoteTree

__all__ = ["DaskBackend"]

_CONNECT = 8.0  # seconds for the first answer of a cluster
_TEND = 0.5  # seconds between looks at the carriers; what happens to them is also told
_LINGER = 5.0  # seconds for which free slots are kept when nothing waits
_PATIENCE = 5.0  # seconds between tries where a worker can't run nbprocs
_LOCAL = ("127.", "localhost", "inproc", "[::1]")


class DaskBackend(Displayable):
    r"""Runs tasks on a Dask cluster; through dask-jobqueue also on Slurm, PBS and others. ``pip install nbprocs[dask]``.

    Args:
        where: a ``distributed.Client``, a cluster (``LocalCluster``, ``SLURMCluster`` …) or a scheduler's address. Nothing: a scheduler and
            workers are started as processes on this machine, and end with the kernel.
        security: a ``distributed.Security`` for TLS; by default that of ``where``.
        shared: True where the workers see the same files as the kernel: tasks run in the kernel's folder then, and ``files=`` are not sent.
        secrets: True lets values of secret-looking environment variables travel to another host without TLS.
        proxy: True talks to workers by way of the scheduler, False never does; None does where a worker can't be reached directly.
        workers: of a cluster of our own.
        threads: of each of its workers; None: the cores that this kernel may use, shared out.

    Every slot (thread) of a worker runs one task at a time. Commands and functions are processes of the worker's nbprocs: live output,
    cancelling that ends the whole tree, timeouts and GPUs work as on this machine. Raises StartupFailed where ``distributed`` is missing.

    >>> async with TaskScheduler(backend=DaskBackend(workers=1, threads=2)) as sch:
    ...     (await sch.schedule("echo", "hello")).text
    'hello\n'
    """

    name = "dask"

    def __init__(
        self,
        where: Any = None,
        *,
        security: Any = None,
        shared: bool = False,
        secrets: bool = False,
        proxy: bool | None = None,
        workers: int = 1,
        threads: int | None = None,
    ) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise StartupFailed("DaskBackend needs the package distributed, which is not installed", hint="pip install 'nbprocs[dask]'")
        if workers < 1 or (threads is not None and threads < 1):
            raise ValueError("workers and threads must be 1 or more")
        self.session: str = random_text.token_hex(6)
        self._where = where
        self._security = security
        self._shared, self._secrets, self._proxy = shared, secrets, proxy
        self._sizes = (workers, threads)
        self._own: OwnCluster | None = None
        self._client: Any = None
        self._carriers: Carriers | None = None
        self._fleet: Fleet | None = None
        self._home: Home | None = None
        self._tasks: Tasks | None = None
        self._changed: Callable[[], None] = lambda: None
        self._told = Capacity(slots=0, elastic=True, why="a worker")
        self._problem: ProcessError | None = None  # why nothing can run at all
        self._stored = False  # a stored queue: its tasks wait for better times instead of failing
        self._asked = 0  # tasks that run or would
        self._owed = False  # something was asked for, and there has not been a slot since
        self._lately: list[tuple[float, int]] = []  # what was asked for: (until when it counts, how many)
        self._news: Waiters[None] = Waiters()
        self._arrived: Waiters[None] = Waiters()
        self._connected = False
        self._gone = ""  # the cluster that has gone
        self._closed = False
        self._last_failure = 0.0

    # -- the seam

    @property
    def home(self) -> Home:
        """The scheduler's loop. Raises Closed before there is one."""
        if self._home is None:
            raise Closed("this backend has not been given to a scheduler yet", hint="TaskScheduler(backend=…)")
        return self._home

    def capacity(self) -> Capacity:
        """The slots of the workers that have joined."""
        return self._told

    def bind(self, home: Home, changed: Callable[[], None]) -> None:
        """Begin to connect."""
        self._home, self._changed = home, changed
        self._tasks = Tasks(home)
        since = time.time()
        self._fleet = Fleet(home, session=self.session, since=since, changed=self._recount, shared=self._shared)
        self._fleet.secrets_refused = self._open_to_others
        self._tasks.start(self._begin(), name="connect to the cluster")

    def start(self, job: Job, report: Report) -> None:
        """Hand a job to the next free slot."""
        fleet = self._workers
        fleet.start(job, report)
        if self._problem is not None:
            self.home.loop.call_soon(fleet.fail_all, self._failing)
        self._wake()

    def cancel(self, job_id: str, *, grace: float) -> None:
        """End its tree on the worker."""
        self._workers.cancel(job_id, grace=grace)

    def demand(self, shapes: tuple[Shape, ...]) -> None:
        """So many slots are asked for."""
        self._asked = sum(shape.count for shape in shapes)
        self._owed = self._owed or self._asked > 0
        self._wake()

    async def fence(self, prefix: str) -> None:
        """End what a former kernel of this queue has on the workers; on return none of it runs. Raises StartupFailed without a cluster."""
        from nbprocs.cluster.station import end_others  # noqa: PLC0415 - imports distributed

        self._stored = True
        self._workers.prefix = prefix
        await self._until_connected()
        answers = await self._client.run(
            end_others, prefix=prefix, but=self.session, since=self._workers.since, on_error="return", nanny=False
        )
        for address, answer in answers.items():
            if isinstance(answer, Exception) and not isinstance(answer, ImportError):  # without nbprocs there nothing of it runs
                raise StartupFailed(f"what a former kernel has on {address} could not be ended: {text_of(answer)}")

    async def aclose(self) -> None:
        """End every job, give the slots back, leave the cluster; a cluster of our own ends."""
        self._closed = True
        if self._tasks is None:
            return
        await self._workers.aclose()
        await self._tasks.aclose()
        await self._leave()
        if self._own is not None:
            await self._own.aclose()
        self._recount()

    # -- the cluster

    @property
    def _workers(self) -> Fleet:
        assert self._fleet is not None  # noqa: S101 - bind() has made it
        return self._fleet

    async def _begin(self) -> None:
        try:
            await self._connect()
        except ProcessError as error:
            self._problem = error
            log.error("%s", error)
            self._arrived.wake(None)
            self._workers.fail_all(self._failing)
            self._recount()

    async def _until_connected(self) -> None:
        while not self._connected:
            if self._problem is not None:
                raise self._problem
            if self._gone:
                raise StartupFailed(f"the cluster {self._gone} has gone", hint="await backend.connect() goes on with it, or with another")
            await self._arrived.wait()

    @hops
    async def connect(self, where: Any = None) -> None:
        """Go on after the cluster has gone, or could not be reached: with the same address, or with another cluster. Idempotent.

        Raises StartupFailed where none answers within 8 seconds. What waits in the queue starts then.
        """
        if where is not None:
            self._where = where
        if where is None and self._connected and self._client.status == "running":
            return
        await self._leave()
        self._problem = None
        await self._connect()

    async def _connect(self) -> None:
        distributed = await asyncio.to_thread(importlib.import_module, "distributed")  # 0.4 s and more, in which the loop goes on
        from nbprocs.cluster.carriers import Carriers  # noqa: PLC0415 - as above

        address, security = await self._address()
        client = None
        try:
            client = distributed.Client(
                address,
                asynchronous=True,
                set_as_default=False,
                name="nbprocs",
                security=security,
                timeout=_CONNECT,
                direct_to_workers=False,
            )
            await client
        except BaseException as error:
            if client is not None:  # also one whose papers were refused: it does not close by itself
                await client.close()
            if not isinstance(error, OSError | ValueError | TypeError | ImportError):
                raise  # closed while it connects
            said = f"no Dask scheduler answers at {address}"
            raise StartupFailed(said, hint=f"is it running, and can it be reached from here? ({text_of(error)})") from error
        self._client, self._gone = client, ""
        self._carriers = Carriers(client, session=self.session, since=self._workers.since)
        self._subscribe()
        self._connected = True
        self._arrived.wake(None)
        assert self._tasks is not None  # noqa: S101 - bind() has made it
        self._tasks.start(self._tend(), name="tend the carriers")

    async def _address(self) -> tuple[str, Any]:
        """Where the scheduler is, and how to talk to it."""
        where = self._where
        if where is None:
            if self._own is None:
                from nbprocs.cluster.own import OwnCluster  # noqa: PLC0415 - only for a cluster of our own

                self._own = OwnCluster(workers=self._sizes[0], threads=self._sizes[1])
            return await self._own.start(), self._security
        if isinstance(where, str):
            return where, self._security
        if hasattr(where, "scheduler_address"):
            if not where.scheduler_address or where.scheduler_address == "<Not Connected>":
                await where  # an asynchronous cluster that nobody has awaited
            return where.scheduler_address, self._security or getattr(where, "security", None)
        scheduler = getattr(where, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "address"):
            raise StartupFailed(f"{type(where).__name__} is no Dask client, cluster or address", hint="see help(nbprocs.DaskBackend)")
        return scheduler.address, self._security or getattr(where, "security", None)

    def _subscribe(self) -> None:
        from nbprocs.cluster.station import topic_of  # noqa: PLC0415 - imports distributed

        self._client.subscribe_topic(topic_of(self.session), self._heard)

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        """From the client: a worker has begun to run a carrier, or says that it will leave."""
        from nbprocs.cluster.carriers import DaskLink  # noqa: PLC0415 - imports distributed

        address, key = event[1]["address"], event[1].get("key")
        if key is None:
            self._workers.goes(address, *event[1]["going"])
        elif self._carriers is not None and not self._closed:
            self._carriers.started(key, address)
            client = self._client
            self._workers.arrived(address, lambda: DaskLink(client, address, proxy=self._proxy))

    async def _leave(self) -> None:
        """Let go of the cluster."""
        client, self._client, self._connected = self._client, None, False
        if self._carriers is not None:
            self._carriers.close()
            self._carriers = None
        if client is not None:
            await client.close()

    # -- tending

    def _wake(self) -> None:
        """More may be asked for than there is."""
        wanted = max(self._asked, self._workers.jobs)
        if self._carriers is not None and self._carriers.missing(wanted, slots=self._workers.ledger.slots) > 0:
            self._news.wake(None)

    async def _tend(self) -> None:
        """Have as many carriers as are wanted, for as long as the cluster is there."""
        client = self._client
        while not self._closed and self._client is client:
            if client.status in ("closed", "closing"):
                self._lose_cluster()
                return
            if client.status == "running" and self._gone:
                self._gone = ""
                self._subscribe()
            elif client.status != "running" and not self._gone:
                self._gone = self._name
            if client.status == "running":
                self._keep_carriers()
            self._recount()
            try:
                async with asyncio.timeout(_TEND):
                    await self._news.wait()
            except TimeoutError:
                continue

    @property
    def _name(self) -> str:
        where = self._client.scheduler.address if self._client is not None and self._client.scheduler is not None else ""
        return where or self._gone or "it was connected to"

    def _lose_cluster(self) -> None:
        self._gone = self._name
        self._connected = False
        log.warning("the cluster %s has gone: the queue stands still until `await backend.connect()`", self._gone)
        self._recount()

    def _wanted(self) -> int:
        """Slots that are asked for, or were until a moment ago."""
        now = self.home.loop.time()
        self._owed = self._owed and not self._workers.ledger.slots
        most = max(self._asked, self._workers.jobs, int(self._owed))
        self._lately = [(until, count) for until, count in self._lately if until > now and count > most]
        self._lately.append((now + _LINGER, most))
        return max(count for _, count in self._lately)

    def _keep_carriers(self) -> None:
        carriers, fleet = self._carriers, self._workers
        if carriers is None or fleet.fenced:
            return
        wanted = self._wanted()
        if self._problem is not None and self.home.loop.time() - self._last_failure < _PATIENCE:
            return
        failed = carriers.tend(wanted, slots=fleet.ledger.slots, prefix=fleet.prefix, spare=fleet.ledger.spare)
        self._judge([error for error in failed if type(error).__name__ != "KilledWorker"])

    def _judge(self, failed: list[BaseException]) -> None:
        """Carriers that failed: a worker has no nbprocs, or another one."""
        if not failed:
            if self._problem is not None and self._workers.peers:
                self._problem = None
            return
        self._last_failure = self.home.loop.time()
        error = failed[-1]
        missing = isinstance(error, ImportError)
        said = "nbprocs is not installed on the cluster's workers" if missing else f"nbprocs does not work there: {text_of(error)}"
        problem = StartupFailed(f"no worker can run anything: {said}", hint="install nbprocs in the workers' environment, in this version")
        problem.__cause__ = error
        if not self._workers.peers:
            if self._problem is None:
                log.error("%s", problem)
            self._problem = problem
            self._workers.fail_all(self._failing)

    def _failing(self, job: Job) -> ProcessError:
        problem = self._problem or StartupFailed("it could not be started")
        error = StartupFailed(f"{job.name} could not be started: {problem.message}", hint=problem.hint)
        error.__cause__ = problem
        return error

    def _recount(self) -> None:
        """Tell the scheduler if there is more or less room."""
        fleet, why = self._workers, "a worker"
        slots = 0 if self._closed or fleet.fenced else fleet.ledger.room
        if fleet.fenced:
            why = "nothing any more: another kernel goes on with this queue"
        elif self._gone:
            why = f"the cluster {self._gone} to come back; await backend.connect() goes on"
        elif self._problem is not None:
            why = f"a worker: {self._problem.message}"
            slots = slots or (0 if self._stored else 1)  # so that the tasks of a queue that is not stored fail, and say why
        elif not self._connected:
            why = "its cluster to answer"
        resources = {GPU: fleet.ledger.gpus} if fleet.ledger.gpus else {}
        capacity = Capacity(slots=slots, resources=resources, elastic=True, why=why)
        if capacity != self._told:
            self._told = capacity
            self._changed()

    def _open_to_others(self, address: str) -> str:
        """Why a secret must not travel to that worker; "" where it may."""
        if self._secrets or address.startswith("tls://"):
            return ""
        host = address.partition("://")[2]
        peer = self._workers.peers.get(address)
        here = address.startswith(_LOCAL) or host.startswith(_LOCAL)
        if here or (peer is not None and peer.facts is not None and peer.facts.host == socket.gethostname()):
            return ""
        return f"to {address} unencrypted"

    # -- looking

    def workers(self) -> pd.DataFrame:
        """The workers that have joined, indexed by address: name, host, slots, running, cpu, used, memory, gpus, pid, state, nbprocs.

        ``cpu`` (percent of a core) and ``used`` (bytes) are of what runs there, by the last look: of :meth:`processes`, of a monitor or of
        a :class:`WorkersView`. ``memory``: bytes that it may use.

        >>> DaskBackend().workers().empty
        True
        """
        from nbprocs.cluster.frames import workers_frame  # noqa: PLC0415 - imports pandas

        return workers_frame(self._fleet)

    def seen(self) -> list[SeenWorker]:
        """The same as values, without pandas."""
        from nbprocs.cluster.frames import seen_workers  # noqa: PLC0415 - needed only where somebody looks

        return seen_workers(self._fleet)

    @property
    def closed(self) -> bool:
        """True from aclose() on."""
        return self._closed

    @hops
    async def processes(self) -> pd.DataFrame:
        """What runs on the workers, indexed by task: name, worker, host, pid, memory, cpu, started. Measured now, of whole trees.

        ``memory`` in bytes; ``cpu`` in percent of a core since the last look, unknown at the first. Nothing is measured while nobody asks:
        ``ProcessMonitor().watch(backend)`` asks at its interval, and keeps the history.
        """
        from nbprocs.cluster.frames import processes_frame  # noqa: PLC0415 - imports pandas

        return processes_frame(await self._workers.look())

    @hops
    async def trees(self) -> list[RemoteTree]:
        """What runs on the workers, measured now by all metrics of a monitor: a monitor.RemoteSource. Takes at most 3 s."""
        return await self._workers.trees()

    def how_ended(self, tree_id: str) -> State:
        """How one of those ended."""
        return self._workers.how_ended(tree_id)

    def __repr__(self) -> str:
        capacity = self._told
        state = "closed" if self._closed else f"{capacity.slots} slots" if capacity.slots else f"waits for {capacity.why}"
        return f"<DaskBackend {self._name if self._client is not None else ''}: {state}>".replace(" :", ":")

    def _html_(self) -> Html:
        head = ("worker", "name", "host", "state", "running", "slots", "cpu", "memory")
        rows = [
            [
                *(text(cell or "", limit=80) for cell in (worker.address, worker.name, worker.host, worker.state)),
                text(len(worker.tasks)),
                text(worker.slots),
                text("" if worker.cpu is None else f"{worker.cpu:.0f} %"),
                text("" if worker.used is None else bytes_text(worker.used)),
            ]
            for worker in self.seen()
        ]
        return Html("<div>{}{}</div>").format(text(repr(self)), table(head, rows) if rows else "")
