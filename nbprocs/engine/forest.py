"""The watched part of the process table: some roots with all their descendants, kept up to date by one listing a tick.

::

      listing()  ──►  known outsider, same mark      skip: it can't come in later
                 ──►  member                         read its row by its kept handle
                 ──►  new, or another mark           read its row once: child of a member, or of a root's session?
                                                          yes: member        no: outsider

Why an outsider stays one: a process gets a new parent only when its parent dies, and then an ancestor (or init) adopts it. So a
busy host with thousands of foreign processes costs one listing, and a member stays with its tree when its parent dies first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from nbprocs.engine.handles import KEEP_ALL, Handle, descriptor_budget, latest_pid, listing, open_handle
from nbprocs.engine.table import ON_LINUX, Identity, Row

__all__ = ["Forest", "Member"]

TRUSTED = 10  # scans in a row that may rely on the latest pid alone: it is the same again after as many births as there are pids


@dataclass(slots=True)
class Member:
    """A process of some watched tree, with its latest row."""

    handle: Handle
    row: Row
    root: Identity  # of the nearest watched root: itself, if it is one
    at: float  # when the row was read, time.perf_counter()
    before: tuple[float, float, int | None] | None = None  # for whoever measures CPU: ticks, time, run time at the reading before
    reading: Any = None  # … and what was read of it at ``before``


class Forest:
    """Not thread-safe: one owner at a time. Holds descriptors until ``close``."""

    def __init__(self, *, portable: bool = not ON_LINUX, keep: int | None = None) -> None:
        self.portable = portable
        self.members: dict[int, Member] = {}
        self.reused: set[Identity] = set()  # roots whose pid was found to belong to another process, in the latest scan
        self._keep = descriptor_budget() if keep is None else keep
        self._kept = 0
        self._outsiders: dict[int, float] = {}
        self._marks: dict[int, float] = {}
        self._newest = self._trusted = 0
        self._changed = True  # other roots than in the listing before
        self._refreshed: dict[int, float] | None = None  # the listing that was gone through whole
        self._sorted: dict[Identity, list[Member]] | None = None  # the trees, until somebody comes or goes
        self._roots: dict[int, Identity] = {}
        self._above: dict[Identity, Identity] = {}  # a watched root inside another one's tree -> that one

    def scan(self, roots: Iterable[Identity]) -> dict[Identity, list[Member]]:
        """Look once; returns the members of each root that lives, itself first. A root inside another's tree counts in both."""
        self._plant({root.pid: root for root in roots})
        fresh = self._refresh(self._listing())
        self._place(fresh, self._marks)
        return self._trees()

    @property
    def nested(self) -> bool:
        """Whether a watched root is inside another one's tree."""
        return bool(self._above)

    def _listing(self) -> dict[int, float]:
        """Who is there. While no pid was given out there is nobody new, and the members themselves tell when they are gone."""
        newest = 0 if self.portable else latest_pid()  # before the listing: who is born in between is found next time
        if newest and newest == self._newest and self._trusted < TRUSTED and not self._changed:
            self._trusted += 1
        else:
            self._marks = listing(portable=self.portable)
            self._newest, self._trusted, self._changed = newest, 0, False
        return self._marks

    def _plant(self, roots: dict[int, Identity]) -> None:
        if roots == self._roots:
            return
        old, self._roots, self._changed, self._sorted = self._roots, roots, True, None
        added = [pid for pid, root in roots.items() if old.get(pid) != root]
        if any(pid in self._outsiders for pid in added):
            self._outsiders.clear()  # its children may be among them
        again = {self.members[pid].root for pid in added if pid in self.members}  # trees that are to be divided
        for pid in [pid for pid, member in self.members.items() if member.root in again or roots.get(member.root.pid) != member.root]:
            self._drop(pid)

    def _drop(self, pid: int) -> None:
        self._sorted = None
        member = self.members.pop(pid)
        self._release(member.handle)

    def _release(self, handle: Handle) -> None:
        self._kept -= handle.kept
        handle.close()

    def _refresh(self, marks: dict[int, float]) -> dict[int, tuple[Handle, Row]]:
        """Read every member and every newcomer; whoever went is dropped."""
        fresh: dict[int, tuple[Handle, Row]] = {}
        members, outsiders = self.members, self._outsiders
        if marks is self._refreshed:  # nobody has been born
            for known in list(members.values()):
                self._reread(known)
            return fresh
        self._refreshed = marks
        for pid in [pid for pid in members if pid not in marks]:
            self._drop(pid)
        for pid in [pid for pid in outsiders if pid not in marks]:
            del outsiders[pid]
        for pid, mark in marks.items():
            member = members.get(pid)
            if member is not None:
                if self._reread(member):
                    continue
            elif outsiders.get(pid) == mark:
                continue
            found = self._open(pid)
            if found is not None:
                fresh[pid] = found
        return fresh

    def _reread(self, member: Member) -> bool:
        """The member's row anew; False if it is gone, and dropped."""
        row = member.handle.row()
        if row is None:
            self._drop(member.handle.pid)
            return False
        member.row = row
        member.at = perf_counter()
        return True

    def _open(self, pid: int) -> tuple[Handle, Row] | None:
        handle = open_handle(pid, portable=self.portable)
        row = None if handle is None else handle.row()
        if handle is None or row is None:
            if handle is not None:
                handle.close()
            return None
        return handle, row

    def _grant(self) -> int:
        """How many descriptors the next member may keep: all, while half of them are left; then the one that spares most reads."""
        if self.portable:
            return 0
        return KEEP_ALL if self._kept + KEEP_ALL <= self._keep // 2 else int(self._kept < self._keep)

    def _place(self, fresh: dict[int, tuple[Handle, Row]], marks: dict[int, float]) -> None:
        """Sort the newcomers into trees; the rest are outsiders from now on."""
        self.reused = {root for pid, root in self._roots.items() if (found := fresh.get(pid)) is not None and found[1].start != root.start}
        if not fresh:
            return
        self._sorted = None
        sessions = {root.pid: root for root in self._roots.values()}
        for pid, (handle, row) in fresh.items():
            root = self._owner(row, fresh, sessions)
            if root is None:
                self._outsiders[pid] = marks[pid]
                handle.close()
                continue
            self._outsiders.pop(pid, None)
            if grant := self._grant():
                kept = open_handle(pid, keep=grant)
                again = None if kept is None else kept.row()
                if kept is not None and again is not None and again.start == row.start:
                    handle.close()
                    self._kept += grant
                    self.members[pid] = Member(kept, again, root, perf_counter())
                    continue
                if kept is not None:
                    kept.close()
            self.members[pid] = Member(handle, row, root, perf_counter())

    def _owner(self, row: Row, fresh: dict[int, tuple[Handle, Row]], sessions: dict[int, Identity]) -> Identity | None:
        """The nearest watched root above a newcomer, by parents, else by its session."""
        root = self._roots.get(row.pid)
        if root is not None and root.start == row.start:
            above = self._climb(row.ppid, fresh)
            self._above.pop(root, None)
            if above is not None and above != root:
                self._above[root] = above
            return root
        found = self._climb(row.ppid, fresh)
        if found is not None:
            return found
        leader = sessions.get(row.sid)
        # A daemon of the root's own session. Its leader must be the root itself: a session number can't be reused while it has members.
        return leader if leader is not None and leader not in self.reused and row.pid != leader.pid else None

    def _climb(self, pid: int, fresh: dict[int, tuple[Handle, Row]]) -> Identity | None:
        for _ in range(1000):  # a table read while it changes could hold a circle
            member = self.members.get(pid)
            if member is not None:
                return member.root
            found = fresh.get(pid)
            if found is None:
                return None
            root = self._roots.get(pid)
            if root is not None and root.start == found[1].start:
                return root
            pid = found[1].ppid
        return None

    def _trees(self) -> dict[Identity, list[Member]]:
        if self._sorted is None:
            self._sorted = self._sort()
        return self._sorted

    def _sort(self) -> dict[Identity, list[Member]]:
        trees: dict[Identity, list[Member]] = {}
        for member in self.members.values():
            if member.row.pid == member.root.pid:
                trees.setdefault(member.root, []).insert(0, member)
            else:
                trees.setdefault(member.root, []).append(member)
        trees = {root: members for root, members in trees.items() if members[0].row.pid == root.pid}
        if self._above:
            self._above = {root: above for root, above in self._above.items() if root in trees}
            own = {root: list(members) for root, members in trees.items()}
            for root in self._above:
                above: Identity | None = self._above[root]
                while above is not None:
                    trees.setdefault(above, []).extend(own.get(root, ()))
                    above = self._above.get(above)
        return trees

    def close(self) -> None:
        """Give back every descriptor. Idempotent; a later scan starts anew."""
        for pid in list(self.members):
            self._drop(pid)
        self._outsiders.clear()
        self._roots, self._refreshed, self._sorted = {}, None, None
        self._above.clear()
