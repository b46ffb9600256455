"""What a shim does to trees: ends, pauses, resumes and interrupts them, by its own clock."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from nbprocs.engine.shimlib.endings import Ending
from nbprocs.engine.shimlib.evidence import Claim
from nbprocs.engine.shimlib.kids import Kid, Kids
from nbprocs.engine.shimlib.looks import Looker, send_signals
from nbprocs.engine.shimlib.proc import name_of, read_proc
from nbprocs.engine.shimlib.wire import Survivor, parts_of_tag

__all__ = ["Tending", "Timers"]

_ROUNDS = 5  # looks at most until everybody of a tree is stopped: who is being forked meanwhile is found by the next one
_BREATH = 3  # times as long as a look took, until the next one: a thousand exits in a row must not make a thousand looks
Over = Callable[[list[Survivor]], None]


class Timers:
    """Callbacks by time.monotonic()."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, list[Callable[[], None] | None]]] = []
        self._serial = itertools.count()

    def at(self, when: float, callback: Callable[[], None]) -> list[Callable[[], None] | None]:
        """Call it then; what is returned is for ``cancel``."""
        cell: list[Callable[[], None] | None] = [callback]
        heapq.heappush(self._heap, (when, next(self._serial), cell))
        return cell

    @staticmethod
    def cancel(cell: Any) -> None:
        """It will not be called. Idempotent; None is nothing."""
        if cell is not None:
            cell[0] = None

    def next(self) -> float | None:
        """When the next one is due."""
        while self._heap and self._heap[0][2][0] is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Call those that are due."""
        while (due := self.next()) is not None and due <= now:
            callback = heapq.heappop(self._heap)[2][0]
            if callback is not None:
                callback()


class _Task:
    __slots__ = ("claim", "due", "ending", "over", "whole_table")

    def __init__(self, claim: Claim, ending: Ending, over: Over, due: float, *, whole_table: bool) -> None:
        self.claim = claim
        self.ending = ending
        self.over = over
        self.due = due
        self.whole_table = whole_table


class Tending:
    """All endings under way. ``step`` is called whenever something may have changed."""

    def __init__(self, kids: Kids, looker: Looker, *, reap: Callable[[], object]) -> None:
        self._kids = kids
        self._looker = looker
        self._reap = reap  # before each look: who has ended already must not be seen
        self._tasks: list[_Task] = []
        self._soonest = 0.0  # no look before this
        self._hurried = False  # everybody is due: a thousand exits must not go through a thousand endings each

    def end(
        self, claim: Claim, *, number: int, leader_first: bool, grace: float, leader: int, over: Over, whole_table: bool = False
    ) -> None:
        """Begin to end a tree with a signal; ``over`` is called with who survived."""
        now = time.monotonic()
        ending = Ending(now=now, signal=number, grace=grace, leader=leader, leader_first=leader_first and bool(leader))
        self._tasks.append(_Task(claim, ending, over, now, whole_table=whole_table))

    def next(self) -> float | None:
        """When it wants to look again."""
        if not self._tasks:
            return None
        return self._soonest if self._hurried else max(min(task.due for task in self._tasks), self._soonest)

    def hurry(self) -> None:
        """Somebody has ended: look soon."""
        self._hurried = True

    def step(self) -> None:
        """Look once for all that are due, and carry out what follows."""
        now = time.monotonic()
        if not self._tasks or now < self._soonest:
            return
        self._reap()
        due = [task for task in self._tasks if self._hurried or task.due <= now]
        self._hurried = False
        if not due:
            return
        seen = self._looker.look([task.claim for task in due], whole_table=any(task.whole_table for task in due))
        after = time.monotonic()
        self._soonest = after + (after - now) * _BREATH if after - now > 0.0005 else after  # noqa: PLR2004 - seconds: a small tree's look costs less
        for task, members in zip(due, seen, strict=True):
            step = task.ending.looked(after, members, blurred=self._looker.blurred)
            for pid, numbers in step.send:
                try:
                    send_signals(pid, members[pid], numbers, own=not members[pid])
                except PermissionError:
                    task.ending.refused(pid, members[pid])
            if step.again is None:
                self._tasks.remove(task)
                task.over([Survivor(pid, name_of(pid), pid in task.ending.not_ours) for pid in task.ending.survivors])
            else:
                task.due = step.again

    # -- signals to a tree that goes on

    def signal_tree(self, kid: Kid, number: int) -> None:
        """To every member, again while new ones turn up."""
        claim = self.claim_of(kid)
        told: set[int] = set()
        for _ in range(_ROUNDS):
            members = self._looker.look([claim])[0]
            fresh = members.keys() - told
            if not fresh:
                return
            for pid in sorted(fresh):
                try:
                    send_signals(pid, members[pid], (number,), own=not members[pid])
                except PermissionError:
                    continue
            told |= fresh

    def pause(self, kid: Kid) -> None:
        """Stop the whole tree where it stands."""
        self.signal_tree(kid, signal.SIGSTOP)
        kid.paused = True

    def resume(self, kid: Kid) -> None:
        """Let a stopped tree go on."""
        self.signal_tree(kid, signal.SIGCONT)
        kid.paused = False

    def interrupt(self, kid: Kid) -> None:
        """SIGINT as Ctrl-C gives it: to the foreground group of its terminal, or, without one, to the whole tree."""
        row = read_proc(kid.pid) if kid.terminal >= 0 else None
        if row is not None and row.foreground > 1:
            try:
                os.killpg(row.foreground, signal.SIGINT)
            except OSError:  # that group ended this very moment
                return
        else:
            self.signal_tree(kid, signal.SIGINT)

    def claim_of(self, kid: Kid) -> Claim:
        """The tree of one child."""
        return self._looker.claim(number=kid.number, manager=parts_of_tag(kid.tag)[1], pid=kid.pid, token=kid.token)
