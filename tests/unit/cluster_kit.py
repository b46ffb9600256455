"""A cluster without a cluster: bays and a fleet on one loop, with a link between them that drops, doubles and delays."""

import asyncio
import random
import time
from collections.abc import Callable

from nbprocs.cluster.bay import Bay, facts_here
from nbprocs.cluster.fleet import Fleet
from nbprocs.cluster.frames import seen_workers
from nbprocs.cluster.link import LinkDown, Sign
from nbprocs.display import text
from nbprocs.engine.home import Home, Tasks
from nbprocs.scheduler.backend import Capacity


class Faults:
    """What happens to messages: each chance is of one call; ``cut`` lets nothing through."""

    def __init__(self, *, seed=0, drop=0.0, lose_answer=0.0, double=0.0, late=0.0):
        self.random = random.Random(seed)
        self.drop, self.lose_answer, self.double, self.late = drop, lose_answer, double, late
        self.cut = False
        self.calls = 0

    def hit(self, chance):
        return self.random.random() < chance


class LoopbackLink:
    """Calls of a bay on the same loop."""

    def __init__(self, bay, faults, tasks):
        self.bay, self.faults, self.tasks = bay, faults, tasks
        self.broken = asyncio.Event()
        self.sign, self.is_listed, self.why = Sign.LISTENS, True, None

    async def call(self, op, *, limit, **given):
        faults = self.faults
        faults.calls += 1
        if faults.cut or faults.hit(faults.drop):
            raise LinkDown("dropped")
        if faults.hit(faults.late):
            await asyncio.sleep(faults.random.random() * 0.02)
        if faults.hit(faults.double) and op != "pull":
            self.tasks.start(self._again(op, given), name="doubled")
        answer = await self._answer(op, given)
        if faults.cut or faults.hit(faults.lose_answer):
            raise LinkDown("the answer was lost")
        return answer

    async def _answer(self, op, given):
        """What the bay says; nothing any more once the connection is cut."""
        call, cut = self.tasks.start(self.bay.call(op, **given), name=op), self.tasks.start(self.broken.wait(), name="cut")
        try:
            await asyncio.wait({call, cut}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise LinkDown("cut")
            return call.result()
        finally:
            for task in (call, cut):
                task.cancel()

    def cut(self):
        self.faults.cut = True
        self.broken.set()

    def mend(self):
        self.faults.cut = False
        self.broken.clear()

    async def _again(self, op, given):
        await asyncio.sleep(self.faults.random.random() * 0.02)
        await self.bay.call(op, **given)

    async def look(self):
        return self.sign, self.is_listed

    async def expected(self):
        return self.why

    async def aclose(self):
        pass


class LoopbackBackend:
    """A backend of bays on this loop."""

    name = "loopback"

    def __init__(self, folder, *, workers=2, slots=2, faults: Callable[[], Faults] = Faults, shared=False, gpus=(), session="s"):
        self.folder, self.workers, self.slots, self.make_faults, self.shared = folder, workers, slots, faults, shared
        self.gpus, self.session = gpus, session
        self.bays: dict[str, Bay] = {}
        self.links: dict[str, LoopbackLink] = {}
        self.fleet: Fleet | None = None

    def capacity(self):
        return Capacity(slots=0 if self.fleet is None else self.fleet.ledger.room, why="a worker")

    def bind(self, home, changed):
        self.home = home
        self.tasks = Tasks(home)
        self.fleet = Fleet(home, session=self.session, since=time.time(), changed=changed, shared=self.shared)
        for number in range(self.workers):
            self.add(f"w{number}")

    def add(self, name, bay=None):
        facts = facts_here(name=name, gpus=len(self.gpus), timeout=0.5)
        bay = self.bays[name] = bay or Bay(facts, folder=self.folder / name, gpus=self.gpus)
        for number in range(self.slots):
            bay.join(self.session, prefix="", since=self.fleet.since, carrier=f"{self.session}-c{number}")
        link = self.links[name] = LoopbackLink(bay, self.make_faults(), self.tasks)
        self.fleet.arrived(name, lambda: link)
        return bay

    # -- what a DaskBackend gives its view

    closed = False

    def seen(self):
        return seen_workers(self.fleet)

    async def trees(self):
        return await self.fleet.trees()

    def _html_(self):
        return text(len(self.seen()))

    # -- the seam

    def start(self, job, report):
        self.fleet.start(job, report)

    def cancel(self, job_id, *, grace):
        self.fleet.cancel(job_id, grace=grace)

    async def aclose(self):
        self.closed = True
        if self.fleet is not None:
            for link in self.links.values():
                link.faults.drop = link.faults.lose_answer = 0.0
            await self.fleet.aclose()
            await self.tasks.aclose()
            for bay in self.bays.values():
                await bay.aclose(expected=True, why="the test is over")


def loopback(folder, **options):
    backend = LoopbackBackend(folder, **options)
    backend.bind(Home.current(), lambda: None)
    return backend
