"""What a worker does for nbprocs: it runs the jobs of kernels. It knows nothing of Dask.

::

    call(op, …) ─► Session (one a kernel) ─► Run ─► LocalBackend(ProcessManager on the worker's loop), PoolBackend(ProcessPool)
                       ▲ carriers come and go                    └─ its shim ends every tree when the worker's process ends
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nbprocs.cluster.calls import invoke
from nbprocs.cluster.files import Shelf
from nbprocs.cluster.run import Run, RunState
from nbprocs.cluster.session import Session
from nbprocs.cluster.wire import PROTOCOL, Facts
from nbprocs.engine.container import usable_cpus
from nbprocs.engine.home import Home, Tasks
from nbprocs.errors import ProcessError
from nbprocs.guard import text_of
from nbprocs.pool import PoolConfig, ProcessPool
from nbprocs.processes.manager import ProcessManager
from nbprocs.scheduler.backend import Ended, Job, Report, Started
from nbprocs.scheduler.calls import PoolBackend
from nbprocs.scheduler.local import LocalBackend
from nbprocs.scheduler.slots import GPU, Gpus

__all__ = ["Bay", "facts_here"]

_FENCED = 1000  # sessions that were ended, to be refused if they come again
_GRACE = 1.0  # seconds between SIGTERM and SIGKILL where nobody said
_LAST_WORDS = 1.0  # seconds that a kernel has to fetch what is left when the worker leaves
_HISTORY = 16  # processes that the manager keeps by itself; the runs hold what they need


def facts_here(*, name: str, cpus: int | None = None, memory: int = 0, gpus: int = 0, timeout: float = 30.0) -> Facts:
    """What this process can say of itself."""
    return Facts(
        protocol=PROTOCOL,
        version=str(getattr(sys.modules["nbprocs"], "__version__", "")),  # not imported: the package imports this module
        host=socket.gethostname(),
        name=name,
        pid=os.getpid(),
        cpus=cpus or usable_cpus(),
        memory=memory,
        gpus=gpus,
        cwd=os.getcwd(),  # noqa: PTH109 - text for the wire
        timeout=timeout,
    )


class Bay:
    """The jobs of all kernels on one worker. Made on the worker's loop, and used only there."""

    def __init__(self, facts: Facts, *, folder: Path, gpus: tuple[str, ...] = ()) -> None:
        self.facts = facts
        self.home: Home = Home.current()
        self.shelf: Shelf = Shelf(folder)
        self.sessions: dict[str, Session] = {}
        self.tasks: Tasks = Tasks(self.home)
        self.manager: ProcessManager = ProcessManager(history=_HISTORY, history_bytes=1 << 20)
        self._commands = LocalBackend(self.manager)
        self._commands.bind(self.home, _nothing)
        self._pool: ProcessPool | None = None
        self._calls: PoolBackend | None = None
        self._ends: dict[Session, asyncio.Task[None]] = {}  # of sessions that nobody wants any more
        self._parting: dict[str, Session] = {}  # by their lives: they end, and their kernels may still hear of it
        self._pool_ends: asyncio.Task[None] | None = None
        self._gpus = Gpus(gpus)
        self._keepers: dict[str, tuple[str, float]] = {}  # prefix -> the session that may have it, and since when
        self._fenced: OrderedDict[str, None] = OrderedDict()
        self._leaving: tuple[bool, str] | None = None
        self._closing: asyncio.Task[None] | None = None

    # -- carriers

    def join(self, name: str, *, prefix: str, since: float, carrier: str) -> Session | None:
        """A carrier of a session has come: one slot more. None: the session was ended by the fence, or the worker leaves."""
        keeper = self._keepers.get(prefix) if prefix else None
        if name in self._fenced or self._leaving is not None or (keeper is not None and keeper[0] != name and keeper[1] > since):
            return None
        session = self.sessions.get(name)
        if session is None:
            session = self.sessions[name] = Session(name, since=since, bay=self)
            session.prefix = prefix
        session.carriers.add(carrier)
        session.set_slots(len(session.carriers))
        return session

    def part(self, name: str, carrier: str, *, released: bool) -> None:
        """A carrier has gone. When the last one was ``released``, the session ends: its kernel has gone, or needs this worker no more."""
        session = self.sessions.get(name)
        if session is None or carrier not in session.carriers:
            return
        session.carriers.discard(carrier)
        session.set_slots(len(session.carriers))
        if released and not session.carriers and self._leaving is None:
            del self.sessions[name]  # a carrier that comes now begins another one
            self._parting[session.life] = session
            self._ends[session] = self.tasks.start(self._abandon(session), name=f"end the jobs of {name}")

    async def _abandon(self, session: Session) -> None:
        """End it. Its kernel may live, where the cluster was restarted: it hears of each end when that has come, and no sooner."""
        await session.end(grace=_GRACE, lost=(True, "its slots there were taken back: the cluster was restarted, or had lost this kernel"))
        del self._ends[session]  # a fence waits for no more than that
        self.tasks.start(self._let_go(session), name=f"what {session.name} has not heard")

    async def _let_go(self, session: Session) -> None:
        await self._last_words(session, self.home.loop.time() + _LAST_WORDS)
        self._drop(session)

    @staticmethod
    async def _last_words(session: Session, until: float) -> None:
        """Until its kernel has heard everything, or that time has come."""
        clock = asyncio.get_running_loop().time
        while not session.window.empty and clock() < until:
            await session.window.settled(until - clock())

    def _drop(self, session: Session) -> None:
        session.close()
        self._parting.pop(session.life, None)
        if self.sessions.get(session.name) is session:
            del self.sessions[session.name]
        if not self.sessions and not self._parting and self._pool is not None:  # warm processes that nobody may ever need again
            calls, pool, self._calls, self._pool = self._calls, self._pool, None, None
            self._pool_ends = self.tasks.start(self._close_pool(calls, pool), name="close the pool")

    @staticmethod
    async def _close_pool(calls: PoolBackend | None, pool: ProcessPool) -> None:
        if calls is not None:
            await calls.aclose()
        await pool.aclose()

    # -- running

    def begin(self, session: Session, run: Run, report: Report) -> None:
        """Start a job."""
        order = run.order
        key = f"{session.name}/{order.id}"
        folder = order.working_dir or run.scratch or None
        env: dict[str, str | None] = {**self._gpus.take(key, dict(order.resources).get(GPU, 0.0)), **order.env_vars}
        if run.scratch:
            env["NBPROCS_SCRATCH"] = run.scratch
        function = order.call is not None
        job = Job(
            id=key,
            task_id=order.id,
            name=order.name,
            command=invoke if function else order.command,
            args=(order.call, env, folder) if function else order.args,
            working_dir=None if function else folder,
            env_vars=env,
            timeout=order.timeout,
            shell=order.shell,
            named=order.named,
            options=order.options,
        )

        def heard(event: Started | Ended) -> None:
            if isinstance(event, Ended):
                self._gpus.give(key)
            report(event)

        (self._functions() if function else self._commands).start(job, heard)

    def _functions(self) -> PoolBackend:
        if self._calls is None:
            config = PoolConfig(min_processes=0, max_processes=max(self.facts.cpus, 1))
            self._pool = ProcessPool(config, manager=self.manager, name=f"{self.facts.name}-pool")
            self._calls = PoolBackend(self._pool)
            self._calls.bind(self.home, _nothing)
        return self._calls

    def cancel(self, session: Session, run: Run, grace: float) -> None:
        """End a job that runs."""
        backend = self._commands if run.order.call is None else self._functions()
        backend.cancel(f"{session.name}/{run.id}", grace=grace)

    # -- what arrives

    async def call(self, op: str, **given: Any) -> dict[str, Any]:
        """Carry out one operation; what goes wrong is in the answer, under "error". Never raises but for cancellation."""
        try:
            handler = self._ops.get(op)
            if handler is None:
                return {"error": f"this worker's nbprocs knows no operation {op!r}", "kind": "version"}
            if op in ("end", "hello"):
                given.pop("life", None)
                return await handler(self, **given)
            name, life = given.pop("session"), given.pop("life")
            session = self.sessions.get(name)
            if session is None or session.life != life:
                session = self._parting.get(life)
            if session is None:
                return {"error": "this worker knows no such session", "kind": "fenced" if name in self._fenced else "unknown"}
            return await handler(self, session, **given)
        except (ProcessError, OSError, ValueError, TypeError, KeyError) as error:
            return {"error": error.message if isinstance(error, ProcessError) else text_of(error), "kind": "failed"}

    async def _hello(self, session: str = "") -> dict[str, Any]:
        found = self.sessions.get(session)
        return {**asdict(self.facts), "life": "" if found is None else found.life}

    async def _put(self, session: Session, prefix: str, jobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"missing": session.put(prefix, jobs)}

    async def _blob(self, session: Session, digest: str, offset: int, data: bytes, last: bool) -> dict[str, Any]:  # noqa: FBT001 - the wire's
        await asyncio.to_thread(self.shelf.write, session.name, digest, offset, bytes(data), last=last)
        if last:
            session.files_came()
        return {}

    async def _stop(self, session: Session, jobs: dict[str, float]) -> dict[str, Any]:
        for job_id, grace in jobs.items():
            session.stop(job_id, grace)
        return {}

    async def _signal(self, session: Session, id: str, what: str) -> dict[str, Any]:  # noqa: A002 - the wire's
        session.signal(id, what)
        return {}

    async def _pull(self, session: Session, ack: int, wait: float, room: int) -> dict[str, Any]:
        number, items = await session.window.pull(ack, wait=wait, room=room)
        return {"number": number, "items": items}

    async def _usage(self, session: Session) -> dict[str, Any]:
        return {"trees": await asyncio.to_thread(session.usage.look, session.running)}

    async def _bye(self, session: Session) -> dict[str, Any]:
        await session.end(grace=_GRACE)
        self._drop(session)
        if self._pool_ends is not None:
            await asyncio.wait({self._pool_ends}, timeout=_LAST_WORDS)
        return {}

    async def _end(self, session: str, prefix: str, since: float) -> dict[str, Any]:
        """The fence: on return nothing of another session with this prefix runs, nor will."""
        return {"ended": await self.end_others(prefix, but=session, since=since)}

    async def end_others(self, prefix: str, *, but: str, since: float) -> int:
        """End what other sessions of this queue have, and refuse those that are older than this one; how many were ended."""
        self._keepers[prefix] = (but, since)
        ended = [s for s in self.sessions.values() if s.name != but and prefix and s.prefix == prefix]
        for session in ended:
            self._fenced[session.name] = None
            while len(self._fenced) > _FENCED:
                self._fenced.popitem(last=False)
        stops = [self.tasks.start(s.end(grace=_GRACE, lost=(False, "another kernel goes on with its queue")), name="fence") for s in ended]
        stops += [task for session, task in self._ends.items() if session.prefix == prefix and session.name != but]
        if stops:
            await asyncio.wait(stops)
        for session in ended:
            self._drop(session)
        return len(ended)

    _ops: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {  # noqa: RUF012 - never changed
        "hello": _hello, "put": _put, "blob": _blob, "stop": _stop, "signal": _signal, "pull": _pull, "usage": _usage,
        "bye": _bye, "end": _end,
    }  # fmt: skip

    # -- its end

    def announce(self, *, expected: bool, why: str) -> bool:
        """The worker will leave: take no more jobs, and tell the kernels at once, there may be no time for more. False: they know."""
        if self._leaving is not None:
            return False
        self._leaving = (expected, why)
        for session in self.sessions.values():
            session.announce(expected, why)
        return True

    async def aclose(self, *, expected: bool, why: str) -> None:
        """The worker leaves: end every job, give the kernels a second to hear of it, and clear up. On return nothing runs. Idempotent.

        SIGTERM and its nanny may both ask for it at the same time: each caller waits for the one end.
        """
        self.announce(expected=expected, why=why)
        if self._closing is None:
            self._closing = self.tasks.start(self._end_all(), name="end the bay")
        await asyncio.wait({self._closing})

    async def _end_all(self) -> None:
        sessions = [*self.sessions.values()]
        parting = [*self._parting.values()]
        ends = [self.tasks.start(s.end(grace=_GRACE, lost=self._leaving), name="the worker leaves") for s in sessions]
        ends += self._ends.values()
        if ends:
            await asyncio.wait(ends)
        until = self.home.loop.time() + _LAST_WORDS
        for session in (*sessions, *parting):
            await self._last_words(session, until)
            self._drop(session)
        if self._pool is not None:
            await self._close_pool(self._calls, self._pool)
        await self._commands.aclose()
        await self.manager.aclose(grace=_GRACE)
        await self.tasks.aclose()
        self.shelf.clear()

    @property
    def live(self) -> int:
        """Jobs of all kernels that run."""
        return sum(run.state is RunState.RUNNING for session in self.sessions.values() for run in session.runs.values())


def _nothing() -> None:
    """A worker's own capacity does not change."""
