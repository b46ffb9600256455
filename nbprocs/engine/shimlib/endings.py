"""How one tree is ended: told the time and who was seen, it answers whom to send what, and when to look again. Touches nothing itself.

::

    ASKING ──grace is over──► KILLING ──give up──► done, with survivors
       │  the stop signal and SIGCONT,   │  SIGKILL to whoever is seen,
       │  to each one once               │  at every look
       └──────── enough looks in a row found nobody ────────► done

With ``leader_first`` ASKING has two parts: the child alone is asked; when the grace is over the rest of its tree is, and a shorter grace
begins.

One empty look proves nothing while things move: a process that forks and ends every few milliseconds may be between two names. The more
often new members turned up, the more empty looks in a row are wanted; and one during which somebody ended, who may have forked before that,
counts for an eighth.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping
from typing import NamedTuple

__all__ = ["Ending", "Measures"]

KILL_DEADLINE = 5.0  # seconds after the first SIGKILL in which the system must have ended everybody
SECOND_GRACE = 0.5  # seconds for the rest of the tree, where the leader was asked first
FIRST_LOOK, LONGEST_LOOK = 0.002, 0.1  # seconds between looks: doubled each time, from the one to the other
CHASE = 0.0005  # seconds until the next look, where the one before showed somebody new who had to be killed
CALM, RESTLESS = 2, 6  # empty looks in a row that end it, for a tree that stood still and for one in which new members kept turning up
BETWEEN_EMPTY = 0.002  # seconds between such looks
BLURRED = 0.125  # of an empty look: not nothing, since somebody else's chain of forks may blur every one
SIGCONT = int(getattr(signal, "SIGCONT", signal.SIGTERM))
SIGKILL = int(getattr(signal, "SIGKILL", signal.SIGTERM))


class Measures(NamedTuple):
    """What one look led to."""

    send: tuple[tuple[int, tuple[int, ...]], ...]  # (pid, signals in order)
    again: float | None  # when to look again at the latest; None: it is over


class Ending:
    """One ending under way. ``leader`` is the pid that is asked first with ``leader_first``."""

    def __init__(self, *, now: float, signal: int, grace: float, leader: int = 0, leader_first: bool = False) -> None:
        self.signal = signal
        self.leader = leader
        self.survivors: tuple[int, ...] = ()
        self.done: bool = False
        self.killed: bool = False  # a SIGKILL was sent
        self._asked: set[tuple[int, float]] = set()
        self._known: set[tuple[int, float]] = set()
        self._refused: set[tuple[int, float]] = set()
        self._whole_tree_at = now + (grace if leader_first else 0.0)
        self._kill_at = self._whole_tree_at + (min(SECOND_GRACE, grace) if leader_first else grace)
        self._give_up_at: float | None = None
        self._wait = FIRST_LOOK
        self._empty = 0.0
        self._news = -1  # looks that showed somebody new; the first one always does

    def refused(self, pid: int, start: float) -> None:
        """The system did not let us signal this one."""
        self._refused.add((pid, start))

    @property
    def not_ours(self) -> Collection[int]:
        """The pids that we may not signal."""
        return {pid for pid, _ in self._refused}

    def looked(self, now: float, seen: Mapping[int, float], *, blurred: bool = False) -> Measures:
        """After a look that found these living members (pid → start). Raises RuntimeError when it is over already.

        ``blurred``: somebody who may have been a member ended while it looked.
        """
        if self.done:
            msg = "this ending is over"
            raise RuntimeError(msg)
        members = set(seen.items())
        news = bool(members - self._known)
        if news:
            self._news += 1
            self._known |= members
        if not members:
            return self._nobody(now, blurred=blurred)
        self._empty = 0.0
        if self._give_up_at is not None and now >= self._give_up_at:
            self.done = True
            self.survivors = tuple(sorted(seen))
            return Measures((), None)
        if now >= self._kill_at:
            return self._kill(now, members, news=news)
        return self._ask(now, members)

    def _nobody(self, now: float, *, blurred: bool) -> Measures:
        self._empty += BLURRED if blurred else 1.0
        if self._empty >= (CALM if self._news <= 1 else RESTLESS):
            self.done = True
            return Measures((), None)
        return Measures((), now + (CHASE if blurred else BETWEEN_EMPTY * self._empty))

    def _ask(self, now: float, members: set[tuple[int, float]]) -> Measures:
        whole = now >= self._whole_tree_at
        fresh = {member for member in members - self._asked if whole or member[0] == self.leader}
        self._asked |= fresh
        send = tuple((pid, (self.signal, SIGCONT)) for pid, _ in sorted(fresh))
        self._wait = FIRST_LOOK if fresh else min(self._wait * 2, LONGEST_LOOK)
        change = self._kill_at if whole else self._whole_tree_at
        return Measures(send, min(now + self._wait, change))

    def _kill(self, now: float, members: set[tuple[int, float]], *, news: bool) -> Measures:
        if self._give_up_at is None:  # the deadline counts from the SIGKILL that is really sent
            self._give_up_at = now + KILL_DEADLINE
        self._wait = CHASE if news else min(self._wait * 2, LONGEST_LOOK / 2)  # who forks faster than we look is never caught
        self.killed = True
        return Measures(tuple((pid, (SIGKILL,)) for pid, _ in sorted(members)), min(now + self._wait, self._give_up_at))
