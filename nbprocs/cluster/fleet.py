"""The kernel's half of a cluster backend, without the cluster: jobs, their places, and what the workers tell of them.

::

    start(job) ─► prepared (function pickled, files hashed, secrets checked) ─► Ledger ─► Peer.put
    report(Started, Ended) ◄── items ◄── Peer                    a worker lost ─► WorkerLost of each of its jobs
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbprocs.cluster.calls import pickled_call
from nbprocs.cluster.files import described
from nbprocs.cluster.ledger import Ledger, Wish
from nbprocs.cluster.link import LinkDown, PeerLink
from nbprocs.cluster.peer import Peer
from nbprocs.cluster.remote import RemoteProcess
from nbprocs.cluster.wire import ended_from, lost, order_to
from nbprocs.engine.home import Home, Tasks, log
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import ProcessError, StartupFailed
from nbprocs.guard import text_of
from nbprocs.redact import is_secret_name
from nbprocs.scheduler.backend import Ended, Job, Report, Started
from nbprocs.scheduler.slots import GPU

if TYPE_CHECKING:
    from nbprocs.monitor.metrics import State
    from nbprocs.monitor.remote import RemoteTree

__all__ = ["Fleet"]

_CLOSING = 10.0  # seconds for the ends of all jobs
_LOOK = 3.0  # seconds
_ENDS = 1000
_GOODBYE = 2.0  # seconds for a last word to a worker


@dataclass(slots=True)
class _Running:
    """A job that has not ended."""

    job: Job
    report: Report
    order: dict[str, Any] | None = None  # once it is prepared
    process: RemoteProcess | None = None
    started: bool = False
    cancelled: float | None = None  # grace
    looked_at: bool = False  # somebody was told what it takes, and may ask how it ended


class Fleet:
    """All that a backend does with its workers; on the home loop only.

    ``changed`` is called when there is more or less room, ``refuse`` may name a reason why a job with secrets must not go to a worker.
    """

    def __init__(
        self, home: Home, *, session: str, since: float, changed: Callable[[], object], shared: bool, timeout: float = 30.0
    ) -> None:
        self.home = home
        self.session = session
        self.since = since  # seconds since the epoch: when this session began
        self.prefix: str = ""  # of the ids of the tasks of this queue
        self.timeout = timeout  # seconds; of a worker that has not said
        self.ledger: Ledger = Ledger()
        self.peers: dict[str, Peer] = {}
        self.secrets_refused: Callable[[str], str] = lambda _address: ""
        self.fenced: bool = False  # another kernel goes on with the queue
        self._changed = changed
        self._shared = shared
        self._tasks = Tasks(home)
        self._jobs: dict[str, _Running] = {}
        self._ends: OrderedDict[str, Ended] = OrderedDict()  # the last ones of those that were looked at
        self._paths: dict[str, str] = {}  # hash -> a file that has it
        self._placing = False
        self._closing = False
        self._idle: Waiters[None] = Waiters()

    # -- jobs

    def start(self, job: Job, report: Report) -> None:
        """Take a job. Reports come in a later turn of the loop."""
        self._jobs[job.id] = _Running(job, report)
        if not self.prefix and "-" in job.task_id:
            self.prefix = job.task_id.rpartition("-")[0] + "-"
        if job.files and not self._shared:
            self._tasks.start(self._prepare_files(job), name=f"files of {job.name}")
        else:
            self.home.loop.call_soon(self._prepare, job, ())

    async def _prepare_files(self, job: Job) -> None:
        try:
            files = await asyncio.to_thread(described, job.files)
        except OSError as error:
            self._fail(job.id, StartupFailed(f"{job.name} could not be started: a file of it can't be read: {text_of(error)}"))
            return
        for (_, path), (_, digest, _, _) in zip(job.files, files, strict=True):
            self._paths[digest] = path
        self._prepare(job, files)

    def _prepare(self, job: Job, files: tuple[tuple[str, str, int, int], ...]) -> None:
        running = self._jobs.get(job.id)
        if running is None:
            return
        if running.cancelled is not None:
            self._end(job.id, Ended(stopped=True))
            return
        call = None
        if callable(job.command):
            try:
                call = pickled_call(job.command, job.args)
            except Exception as error:  # noqa: BLE001 - whatever the arguments' own code raises
                failed = StartupFailed(f"{job.name} could not be sent: {text_of(error)}", hint="a function's arguments must pickle")
                failed.__cause__ = error
                self._fail(job.id, failed)
                return
        folder = job.working_dir or ((job.folder or os.getcwd()) if self._shared else None)  # noqa: PTH109 - text for the wire
        running.order = order_to(job, working_dir=folder, files=files, call=call)
        self._enlist(running)

    def _enlist(self, running: _Running) -> None:
        job = running.job
        kind = "" if callable(job.command) else "\0".join((str(job.command), *map(str, job.args)))
        self.ledger.add(Wish(id=job.id, priority=job.priority, gpus=dict(job.resources).get(GPU, 0.0), kind=kind))
        self.want()

    def cancel(self, job_id: str, *, grace: float) -> None:
        """End a job. Idempotent."""
        running = self._jobs.get(job_id)
        if running is None or running.cancelled is not None:
            return
        running.cancelled = grace
        if self.ledger.remove(job_id):
            self.home.loop.call_soon(self._end, job_id, Ended(stopped=True))
        elif (worker := self.ledger.where(job_id)) is not None and worker in self.peers:
            self.peers[worker].stop(job_id, grace)

    def want(self) -> None:
        """Hand out what has a place, in this turn of the loop."""
        if not self._placing:
            self._placing = True
            self.home.loop.call_soon(self._place)

    def _place(self) -> None:
        self._placing = False
        refused: list[tuple[str, str]] = []
        for worker, job_id in self.ledger.place():
            running, peer = self._jobs[job_id], self.peers[worker]
            if (why := self.secrets_refused(worker)) and (names := _secrets(running.job)):
                refused.append((job_id, f"{running.job.name} was not sent: {', '.join(names)} would travel {why}"))
                continue
            assert running.order is not None  # noqa: S101 - it is in the ledger since it was prepared
            peer.put(running.order)
        for job_id, said in refused:
            hint = "use TLS (security=), leave secrets to the workers' own environment, or allow it with DaskBackend(secrets=True)"
            self._fail(job_id, StartupFailed(said, hint=hint))
        self._changed()

    def _fail(self, job_id: str, error: ProcessError) -> None:
        running = self._jobs.get(job_id)
        self._end(job_id, Ended(error=error, stopped=running is not None and running.cancelled is not None))

    def _end(self, job_id: str, ended: Ended, seconds: float | None = None) -> None:
        running = self._jobs.pop(job_id, None)
        if running is None:
            return
        self.ledger.remove(job_id)
        self.ledger.ended(job_id, seconds)
        if running.process is not None:
            running.process.close()
        if running.looked_at:
            self._ends[job_id] = ended
            while len(self._ends) > _ENDS:
                self._ends.popitem(last=False)
        running.report(ended)
        if not self._jobs:
            self._idle.wake(None)
        self.want()

    def fail_all(self, error: Callable[[Job], ProcessError]) -> None:
        """End every job that has no place."""
        for job_id, running in list(self._jobs.items()):
            if self.ledger.where(job_id) is None:
                self._fail(job_id, error(running.job))

    @property
    def jobs(self) -> int:
        """How many have not ended."""
        return len(self._jobs)

    def jobs_at(self, address: str) -> list[tuple[Job, RemoteProcess | None]]:
        """What a worker has, with the process of what has begun there as one."""
        place = self.ledger.places.get(address)
        found = [self._jobs[job_id] for job_id in (() if place is None else place.jobs) if job_id in self._jobs]
        return [(running.job, running.process) for running in found]

    async def look(self) -> list[tuple[Job, RemoteProcess]]:
        """The processes that run, with what their trees take now. Takes at most 3 s; a worker that does not answer has no figures."""
        looks = [self._tasks.start(self._look(peer), name=f"look at {peer.address}") for peer in self.peers.values()]
        if looks:
            await asyncio.wait(looks)
        found = [running for running in self._jobs.values() if running.process is not None]
        for running in found:  # measured or not: it was told of
            running.looked_at = True
        return [(running.job, running.process) for running in found if running.process is not None]

    async def trees(self) -> list[RemoteTree]:
        """What look() found, for a monitor."""
        from nbprocs.monitor.remote import RemoteTree  # noqa: PLC0415 - only where somebody looks

        looked = await self.look()
        return [RemoteTree(id=job.id, name=job.name, pid=p.pid, host=p.host, worker=p.worker, row=p.row) for job, p in looked]

    def how_ended(self, job_id: str) -> State:
        """How a job ended that somebody has looked at."""
        from nbprocs.monitor.metrics import State  # noqa: PLC0415 - as above

        ended = self._ends.get(job_id)
        if ended is None:
            return State.GONE
        return State.TERMINATED if ended.stopped else State.COMPLETED if ended.error is None else State.FAILED

    async def _look(self, peer: Peer) -> None:
        try:
            answer = await peer.link.call("usage", session=self.session, life=peer.life, limit=_LOOK)
        except LinkDown:
            answer = {}
        trees = answer.get("trees", {})
        for job, process in self.jobs_at(peer.address):
            if process is not None:
                process.row = trees.get(job.id, {})

    # -- workers

    def arrived(self, address: str, link: Callable[[], PeerLink]) -> None:
        """A worker has a carrier of ours."""
        if self._closing:
            return
        if address in self.peers:
            self.peers[address].anew = link
            return
        peer = self.peers[address] = Peer(self, address, link())
        peer.begin()

    async def welcome(self, peer: Peer) -> bool:
        """It has said who it is: put up the fence there, and count it in. From its peer."""
        assert peer.facts is not None  # noqa: S101 - it has just said hello
        if self.prefix and not await self.fence_on(peer):
            return False
        self.ledger.join(peer.address, gpus=float(peer.facts.gpus))
        self.want()
        return True

    async def fence_on(self, peer: Peer) -> bool:
        """End there what other sessions of this queue have; False if it is lost meanwhile."""
        return await peer.ask("end", prefix=self.prefix, since=self.since) is not None

    def unfit(self, peer: Peer, why: str) -> None:
        """It can't be used: everything that waits is told. From its peer."""
        self._drop(peer)
        hint = "install the same version of nbprocs there as here"
        self.fail_all(lambda job: StartupFailed(f"{job.name} could not be started on {peer.name}: {why}", hint=hint))

    def answers(self, peer: Peer, *, again: bool) -> None:
        """It is silent, or answers again. From its peer."""
        self.ledger.close(peer.address, closed=not again or peer.going is not None)
        self.want()

    def lost(self, peer: Peer, *, expected: bool, why: str, fenced: bool = False) -> None:
        """It is gone, and nothing of it runs. From its peer."""
        if peer.gone:
            return
        self.fenced = self.fenced or fenced
        left = self.ledger.lose(peer.address)
        self._drop(peer)
        log.log(20 if expected or not left else 30, "worker %s is gone: %s (%d jobs)", peer.name, why, len(left))
        for job_id in left:
            if peer.leaving is not None:
                self._again(job_id)
            else:
                self._lose(job_id, peer, expected=expected, why=why)
        self.want()

    def _drop(self, peer: Peer) -> None:
        peer.gone = True
        self.ledger.lose(peer.address)
        self.peers.pop(peer.address, None)
        self._tasks.start(peer.aclose(), name=f"leave {peer.address}")

    def _lose(self, job_id: str, peer: Peer, *, expected: bool, why: str) -> None:
        running = self._jobs.get(job_id)
        if running is None:
            return
        host = peer.facts.host if peer.facts is not None else ""
        if running.cancelled is not None:
            self._end(job_id, Ended(stopped=True))
        else:
            self._end(job_id, Ended(error=lost(running.job.name, worker=peer.name, host=host, expected=expected, why=why)))

    def _again(self, job_id: str) -> None:
        """It has not run where it was sent: another worker may have it."""
        running = self._jobs.get(job_id)
        self.ledger.ended(job_id)
        if running is None:
            return
        if running.cancelled is not None:
            self._end(job_id, Ended(stopped=True))
        else:
            self._enlist(running)

    def refused(self, peer: Peer, job_id: str, why: str) -> None:
        """A worker does not take it. From its peer."""
        running = self._jobs.get(job_id)
        if running is not None and self.ledger.where(job_id) == peer.address:
            self._fail(job_id, StartupFailed(f"{running.job.name} was refused by its worker: {why}"))

    def path_of(self, digest: str) -> str:
        """A file with these contents."""
        return self._paths[digest]

    def no_file(self, peer: Peer, digest: str, why: str) -> None:
        """A file did not arrive: the jobs there that need it can't run. From its peer."""
        for job_id, running in list(self._jobs.items()):
            files = running.order["files"] if running.order is not None else ()
            if self.ledger.where(job_id) == peer.address and any(found == digest for _, found, _, _ in files):
                peer.stop(job_id, 0.0)
                self._fail(job_id, StartupFailed(f"{running.job.name} could not be started: a file of it did not arrive: {why}"))

    # -- what workers tell

    def items(self, peer: Peer, items: list[Any]) -> None:
        """One batch, in order. From its peer."""
        for kind, *rest in items:
            if kind == "slots":
                self.ledger.set_slots(peer.address, rest[0])
                self.want()
            elif kind == "going":
                self.goes(peer.address, *rest)
            elif kind == "leaving":
                self._leaves(peer, *rest)
            else:
                running = self._jobs.get(rest[0])
                if running is not None and self.ledger.where(rest[0]) == peer.address:
                    self._item(peer, running, kind, rest)

    def _item(self, peer: Peer, running: _Running, kind: str, rest: list[Any]) -> None:
        job = running.job
        if kind == "started":
            self._started(peer, running, *rest[1:])
        elif kind == "output" and running.process is not None:
            running.process.feed(*rest[1:])
        elif kind == "ended":
            self._ended(peer, job.id, running, rest[1])

    def _started(self, peer: Peer, running: _Running, pid: int | None, created: float | None) -> None:
        job, host = running.job, peer.facts.host if peer.facts is not None else ""
        if running.started:
            return
        running.started = True
        if created is not None:

            def signal(what: str) -> None:
                peer.signal(job.id, what)

            running.process = RemoteProcess(name=job.name, home=self.home, host=host, worker=peer.name, signal=signal)
            running.process.started(pid, created)
        running.report(Started(pid=pid, host=host, worker=peer.name, process=running.process))

    def _ended(self, peer: Peer, job_id: str, running: _Running, outcome: dict[str, Any]) -> None:
        if outcome.get("back"):
            self._again(job_id)
            return
        if outcome.get("lost") is not None:
            expected, why = outcome["lost"]
            self._lose(job_id, peer, expected=expected, why=why)
            return
        process = running.process
        seconds = outcome["result"]["execution_time"] if "result" in outcome else None
        if process is None:
            self._end(job_id, ended_from(outcome, stdout=b"", stderr=b""), seconds)
            return
        process.close()
        ended = ended_from(outcome, stdout=process.stdout.settled(), stderr=process.stderr.settled(), dropped=process.dropped)
        self._end(job_id, ended, seconds)

    def goes(self, address: str, expected: bool, why: str) -> None:  # noqa: FBT001 - the wire's
        """A worker says that it will leave: hand it nothing more. Its jobs may run there until it says that they don't, or is lost."""
        peer = self.peers.get(address)
        if peer is not None and peer.going is None:
            peer.going = (expected, why)
            self.ledger.close(address)
            self.want()

    def _leaves(self, peer: Peer, expected: bool, why: str) -> None:  # noqa: FBT001 - the wire's
        """It has told everything, and will be gone. What was sent too late goes elsewhere."""
        peer.going = peer.leaving = (expected, why)
        left = self.ledger.lose(peer.address)
        for job_id in left:
            self._again(job_id)
        self.want()

    # -- the end

    async def aclose(self) -> None:
        """End every job; on return each has reported.

        Takes at most 12 s: a worker that can't be reached by then ends its jobs by itself.
        """
        for job_id in list(self._jobs):
            self.cancel(job_id, grace=1.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                while self._jobs:
                    await self._idle.wait()
        for job_id in list(self._jobs):
            self._end(job_id, Ended(stopped=True))
        self._closing = True  # a worker that has been told goodbye knows this kernel no more: that is no new beginning
        peers = [self._tasks.start(self._leave(peer), name=f"leave {peer.address}") for peer in self.peers.values()]
        if peers:
            await asyncio.wait(peers)
        self.peers.clear()
        await self._tasks.aclose()

    async def _leave(self, peer: Peer) -> None:
        """Tell it that nothing more will come."""
        if peer.silent_since is None:
            with contextlib.suppress(LinkDown):
                await peer.link.call("bye", session=self.session, life=peer.life, limit=_GOODBYE)
        await peer.aclose()


def _secrets(job: Job) -> list[str]:
    return sorted(name for name, value in job.env_vars.items() if value is not None and is_secret_name(name))
