"""One worker as the kernel sees it: what is on its way there, what comes from there, and whether it still lives.

::

    jobs, stops, signals ─► outbox ─► send loop ─► put, stop, signal      tried again until they have arrived
    items ◄─ Fleet.items ◄─ pull loop ◄─ pull(ack)                        silence ─► look ─► Fleet.lost
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbprocs.cluster.files import parts
from nbprocs.cluster.link import LinkDown, PeerLink, Sign, certainly_gone
from nbprocs.cluster.wire import PROTOCOL, Facts
from nbprocs.engine.home import Tasks, log
from nbprocs.engine.waiting import Waiters
from nbprocs.guard import text_of

if TYPE_CHECKING:
    from nbprocs.cluster.fleet import Fleet

__all__ = ["Peer"]

_WAIT = 5.0  # seconds of a long poll
_ROOM = 1 << 20  # bytes of output in one answer
_LIMIT = 10.0  # seconds for an answer that needs no waiting
_SHORT = 3.0  # seconds, from one that has been silent
_BATCH = 256  # jobs in one message
_OVER = ("unknown", "fenced")  # kinds of errors: our session there has ended, or never was
_PAUSES = (0.05, 0.1, 0.2, 0.5)  # seconds between tries while nothing answers


class Peer:
    """A worker that this kernel has carriers on; on the home loop only."""

    def __init__(self, fleet: Fleet, address: str, link: PeerLink) -> None:
        self.address = address
        self.link = link
        self.facts: Facts | None = None
        self.going: tuple[bool, str] | None = None  # it has said that it will leave: (expected, why)
        self.leaving: tuple[bool, str] | None = None  # and later, that nothing of ours runs there any more; then ``going`` is set, too
        self.silent_since: float | None = None  # the loop's clock
        self._unlisted_since: float | None = None
        self.gone: bool = False
        self.anew: Callable[[], PeerLink] | None = None  # it has got one more carrier: perhaps of a session that has begun anew
        self._fleet = fleet
        self._tasks = Tasks(fleet.home)
        self._ack = 0
        self._jobs: deque[dict[str, Any]] = deque()
        self._stops: dict[str, float] = {}
        self._signals: deque[tuple[str, str]] = deque()
        self._wake: Waiters[None] = Waiters()

    @property
    def name(self) -> str:
        """For people: name and address."""
        return self.address if self.facts is None else f"{self.facts.name} ({self.address})"

    @property
    def life(self) -> str:
        """Of our session there."""
        return "" if self.facts is None else self.facts.life

    @property
    def state(self) -> str:
        """For people."""
        if self.facts is None:
            return "joining"
        return "leaving" if self.going else "silent" if self.silent_since is not None else "joined"

    def begin(self) -> None:
        """Say hello, then send and pull until it is gone."""
        self._tasks.start(self._live(), name=f"worker {self.address}")

    async def aclose(self) -> None:
        """Stop talking to it."""
        self.gone = True
        await self._tasks.aclose()
        await self.link.aclose()

    # -- what goes there

    def put(self, order: dict[str, Any]) -> None:
        """Send a job soon; those of one turn of the loop travel together."""
        self._jobs.append(order)
        self._wake.wake(None)

    def stop(self, job_id: str, grace: float) -> None:
        """Send a stop soon; it may overtake its job."""
        self._stops[job_id] = grace
        self._wake.wake(None)

    def signal(self, job_id: str, what: str) -> None:
        """Send a signal soon."""
        self._signals.append((job_id, what))
        self._wake.wake(None)

    async def _live(self) -> None:
        hello = await self.ask("hello")
        if hello is None:
            return
        facts = {name: value for name, value in hello.items() if name in Facts.__dataclass_fields__}
        if hello.get("protocol") != PROTOCOL:
            self._fleet.unfit(self, f"it has nbprocs {hello.get('version')}, which speaks another protocol")
            return
        self.facts = Facts(**facts)
        if not await self._fleet.welcome(self):
            return
        self._tasks.start(self._send(), name=f"messages to {self.address}")
        await self._pull()

    async def _send(self) -> None:
        while not self.gone:
            if not (self._jobs or self._stops or self._signals):
                await self._wake.wait()
                continue
            if self._stops:
                stops = dict(self._stops)
                if await self.ask("stop", jobs=stops) is not None:
                    self._stops = {key: grace for key, grace in self._stops.items() if key not in stops}
            elif self._jobs:
                await self._send_jobs()
            else:
                job_id, what = self._signals.popleft()
                answer = await self.ask("signal", id=job_id, what=what)
                if answer and "error" in answer:
                    log.debug("%s of %s did nothing: %s", what, job_id, answer["error"])

    async def _send_jobs(self) -> None:
        jobs = [self._jobs[i] for i in range(min(len(self._jobs), _BATCH))]
        answer = await self.ask("put", prefix=self._fleet.prefix, jobs=jobs)
        if answer is None:
            return
        for _ in jobs:
            self._jobs.popleft()
        if "error" in answer:
            for job in jobs:
                self._fleet.refused(self, job["id"], answer["error"])
        for digest in answer.get("missing", ()):
            self._tasks.start(self._send_file(digest), name=f"a file to {self.address}")

    async def _send_file(self, digest: str) -> None:
        problem = "the worker is gone"
        path, offset, last = self._fleet.path_of(digest), 0, False
        while not last:
            try:
                data, last = await asyncio.to_thread(parts, path, offset)
            except OSError as error:
                problem = text_of(error)
                break
            answer = await self.ask("blob", digest=digest, offset=offset, data=data, last=last)
            problem = "" if answer is None else answer.get("error", "")
            if answer is None or problem:
                break
            offset += len(data)
        if problem and not self.gone:
            self._fleet.no_file(self, digest, problem)

    # -- what comes from there

    async def _pull(self) -> None:
        while not self.gone:
            answer = await self.ask("pull", extra=_WAIT, ack=self._ack, wait=_WAIT, room=_ROOM)
            if answer is None:
                return
            if "error" in answer:
                fenced = answer.get("kind") == "fenced"
                expected, why = self.going or (False, "its process was started again, or gave this kernel up")
                if fenced:
                    expected, why = False, "another kernel goes on with this queue"
                self._fleet.lost(self, expected=expected, why=why, fenced=fenced)
                if self.anew is not None and not fenced:
                    self._fleet.arrived(self.address, self.anew)
                return
            if answer["number"] == self._ack + 1:
                self._ack += 1
                self._fleet.items(self, answer["items"])
            if self.leaving is not None and not answer["items"]:
                await asyncio.sleep(_PAUSES[-1])  # a worker that leaves answers at once, with nothing

    # -- whether it lives

    async def ask(self, op: str, *, extra: float = 0.0, **given: Any) -> dict[str, Any] | None:
        """Try until there is an answer; None once the worker is lost, which the fleet has been told then."""
        while not self.gone:
            silent = self.silent_since is not None
            if silent and "wait" in given:
                given["wait"] = 0.0  # it is not heard again before there is an answer
            limit = _SHORT if silent else _LIMIT + extra
            try:
                answer = await self.link.call(op, session=self._fleet.session, life=self.life, limit=limit, **given)
            except LinkDown:
                if self.leaving is not None:
                    self._fleet.lost(self, expected=self.leaving[0], why=self.leaving[1])
                else:
                    await self._silent()
            else:
                self._heard()
                if op == "pull" or answer.get("kind") not in _OVER:
                    return answer
                await asyncio.sleep(_PAUSES[0])  # our session there is over: pull() is told so as well, and says what became of its jobs
        return None

    def _heard(self) -> None:
        if self.silent_since is not None:
            self.silent_since = self._unlisted_since = None
            self._fleet.answers(self, again=True)

    async def _silent(self) -> None:
        """Nothing was heard: wait until it may answer again, or is certainly gone."""
        clock = self._fleet.home.loop.time
        if self.silent_since is None:
            self.silent_since = clock()
            self._fleet.answers(self, again=False)
        for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
            sign, listed = await self.link.look()
            if self.gone or self.silent_since is None:
                return
            now = clock()
            self._unlisted_since = None if listed else self._unlisted_since or now
            silent, unlisted = now - self.silent_since, None if self._unlisted_since is None else now - self._unlisted_since
            timeout = self.facts.timeout if self.facts is not None else self._fleet.timeout
            if certainly_gone(sign, silent=silent, unlisted=unlisted, timeout=timeout):
                expected, why = self.going or await self._reason(sign, silent)
                self._fleet.lost(self, expected=expected, why=why)
                return
            await asyncio.sleep(pause)
            if sign is not Sign.REFUSED:  # else a call would only wait for somebody to listen there
                return

    async def _reason(self, sign: Sign, silent: float) -> tuple[bool, str]:
        """Of an end that it has not announced: whether it was expected, and why."""
        if (why := await self.link.expected()) is not None:
            return True, why
        return False, "its process has ended" if sign is Sign.REFUSED else f"it could not be reached for {silent:.0f} s"
