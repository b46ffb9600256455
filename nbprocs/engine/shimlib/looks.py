"""Looking: who is in which tree now. One look serves all endings that want one.

The shim is the parent of its children and, as subreaper, of every process below them whose own parent has ended. So the living members of a
tree are found from its child, or from an orphan that the evidence gives to it, downwards; no process table is read. Where that does not
hold (a child of a shim that died, a system without lists of children, the end of the kernel) the whole table is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence

from nbprocs.engine.shimlib.evidence import Claim, Found, below, claimed, is_stray, tokens_in
from nbprocs.engine.shimlib.kids import Kid, Kids
from nbprocs.engine.shimlib.proc import Row, children_of, environ_of, has_children_files, read_proc, rows, tag_of
from nbprocs.engine.shimlib.wire import child_part, is_tag, parts_of_tag, tag_of_child

__all__ = ["Looker", "send_signals"]

_TOKEN = b"NBPROCS_TOKEN"


class Looker:
    """Sees who is there. ``base`` and ``token`` are the kernel's."""

    def __init__(self, kids: Kids, *, base: int, token: str) -> None:
        self.base = base
        self.token = token
        self.orphans: dict[int, Found] = {}  # children of ours that we did not start; by pid, which is theirs until we reap them
        self.everywhere = False  # a shim died: its orphans are not below us
        self.blurred: bool = False  # a child of ours that nobody knew ended during the latest look: whom it had forked was not seen
        self._nested: dict[int, int] = {}  # another kernel's part of its tags -> the tag of the tree that it was seen in
        self._kids = kids
        self._me = os.getpid()
        self._lists = has_children_files()

    def forget(self, pid: int) -> None:
        """An orphan was reaped."""
        self.orphans.pop(pid, None)

    def claim(self, *, number: int | None, manager: int, pid: int = 0, token: str = "", strays: bool = False) -> Claim:
        """What an order to end means: one child by number and the pid that it had, or a manager."""
        sessions = {pid} - {0}
        if number is None:
            sessions |= self._kids.sessions(manager)
        child = None if number is None else child_part(number)
        return Claim(self.base, manager, child, frozenset(sessions), token, strays)

    # -- looking

    def look(self, claims: Sequence[Claim], *, whole_table: bool = False) -> list[dict[int, float]]:
        """For each claim the living members of its tree, pid → start; the start of children of our own is 0."""
        self.blurred = False
        if whole_table or not self._lists or any(not kid.own for kid in self._kids):
            return self._by_table(claims)
        leaders, orphans = self._own()
        by_tag = {kid.tag: kid for kid in leaders}  # a thousand stops at once must not each go through a thousand children
        walk = _Walk()
        found = []
        for claim in claims:
            seen: dict[int, float] = {}
            for kid in self._meant(claim, leaders, by_tag):
                seen[kid.pid] = 0.0
                self._learn(kid.tag, walk.down(kid.pid, seen))
            for orphan in orphans:
                if claimed(claim, orphan, stray=claim.strays and self._stray(orphan)):
                    seen[orphan.pid] = orphan.start
                    self._learn(orphan.tag, walk.down(orphan.pid, seen))
            found.append(seen)
        missed = [place for place, seen in enumerate(found) if not seen] if self.everywhere else []
        if missed:  # only then: the table takes longer to read than a link of a chain of forks lives
            for place, seen in zip(missed, self._by_table([claims[place] for place in missed]), strict=True):
                found[place] = seen
        return found

    @staticmethod
    def _meant(claim: Claim, leaders: list[Kid], by_tag: dict[int, Kid]) -> list[Kid]:
        if claim.everything or claim.child is None:
            return [kid for kid in leaders if claim.everything or claim.has_tag(kid.tag)]
        kid = by_tag.get(tag_of_child(claim.base, claim.manager, claim.child))
        return [] if kid is None else [kid]

    def _learn(self, tag: int | None, pids: Iterable[int]) -> None:
        """Note which tree another kernel's tags were seen in: its children are orphans of ours when its own shim is ended."""
        for pid in pids:
            value = tag_of(pid)
            if value is not None and tag is not None and is_tag(value) and (base := parts_of_tag(value)[0]) != self.base:
                self._nested[base] = tag

    def _own(self) -> tuple[list[Kid], list[Found]]:
        leaders, orphans = [], []
        by_pid = self._kids.by_pid
        for pid in children_of(self._me):
            kid = by_pid.get(pid)
            if kid is not None and kid.own:
                leaders.append(kid)
            elif (orphan := self._orphan(pid)) is not None:
                orphans.append(orphan)
        return leaders, orphans

    def _orphan(self, pid: int) -> Found | None:
        """What is known of a child that we did not start. Asked once: until we reap it, its pid is its own."""
        known = self.orphans.get(pid)
        if known is None:
            row = read_proc(pid)
            known = None if row is None or row.gone else found_of(row)
            after = read_proc(pid)  # one that ended meanwhile may have shown half of its evidence
            if known is None or after is None or after.gone:
                self.blurred = True
                return None
            self.orphans[pid] = known
        return self._translated(known)

    def _translated(self, found: Found) -> Found:
        if is_tag(found.tag):
            outer = self._nested.get(parts_of_tag(found.tag or 0)[0])
            if outer is not None:
                return found._replace(tag=outer)
        return found

    def _stray(self, orphan: Found) -> bool:
        return is_stray(orphan, base=self.base, led=self._kids.led(orphan.session), token=self.token)

    def strays(self) -> list[Found]:
        """The children of ours that nothing ties to anybody."""
        if not self._lists:
            return []
        return [orphan for orphan in self._own()[1] if self._stray(orphan)]

    def _by_table(self, claims: Sequence[Claim]) -> list[dict[int, float]]:
        """From the whole table: by descent from children and guarded ones, then each kind of evidence for everybody."""
        table = rows()
        children: dict[int, list[int]] = {}
        for row in table.values():
            children.setdefault(row.ppid, []).append(row.pid)
        evidence = {row.pid: self._translated(found_of(row)) for row in table.values() if not row.gone and row.pid != self._me}
        ours = below([self._me], children) - {self._me}
        led = {kid.pid for kid in self._kids}
        found = []
        for claim in claims:
            meant = [kid for kid in self._kids if claim.everything or claim.has_tag(kid.tag)]
            roots = {kid.pid for kid in meant if self._is_still(kid, table.get(kid.pid))}
            for pid, known in evidence.items():
                if claim.everything:
                    mine = pid in ours or known.session in led or (is_tag(known.tag) and parts_of_tag(known.tag or 0)[0] == self.base)
                    mine = mine or self.token in known.tokens
                else:
                    mine = claimed(claim, known, stray=claim.strays and table[pid].ppid == self._me and self._stray(known))
                if mine and pid not in self._kids.by_pid:
                    roots.add(pid)
            found.append({pid: table[pid].start for pid in below(roots, children) if pid in evidence})
        return found

    def _is_still(self, kid: Kid, row: Row | None) -> bool:
        return row is not None and (kid.own or not kid.start or row.start in (kid.start, 0))


class _Walk:
    """Downwards from some processes, the children of each asked for once a look."""

    def __init__(self) -> None:
        self._below: dict[int, list[tuple[int, float]]] = {}

    def down(self, root: int, seen: dict[int, float]) -> list[int]:
        """Add all below a living root; returns those that were not in ``seen``."""
        added = []
        todo = [root]
        while todo:
            for pid, start in self._children(todo.pop()):
                if pid not in seen:
                    seen[pid] = start
                    added.append(pid)
                    todo.append(pid)
        return added

    def _children(self, parent: int) -> list[tuple[int, float]]:
        known = self._below.get(parent)
        if known is None:
            known = []
            with contextlib.suppress(OSError):
                for pid in children_of(parent):
                    row = read_proc(pid)
                    if row is not None and row.ppid == parent and not row.gone:  # else it went, and its pid may be anybody's
                        known.append((pid, row.start))
            self._below[parent] = known
        return known


def found_of(row: Row) -> Found:
    """The evidence about a process, read now."""
    return Found(row.pid, row.start, tag_of(row.pid), row.sid, tokens_in(environ_of(row.pid, _TOKEN)))


def send_signals(pid: int, start: float, numbers: Iterable[int], *, own: bool) -> None:
    """Signals to a process while its identity holds; nothing if it has gone. Raises PermissionError.

    ``own``: an unreaped child of ours, whose pid can't be anybody else's. For all others the pidfd is opened first and the row read
    after that:
    if the row is the one that was seen, the pidfd is of that process or of one that is gone.
    """
    with contextlib.suppress(ProcessLookupError):
        if own:
            for number in numbers:
                os.kill(pid, number)
            return
        opener = getattr(os, "pidfd_open", None)
        fd = -1 if opener is None else opener(pid)
        try:
            row = read_proc(pid)
            if row is None or row.start != start or row.gone:
                return
            for number in numbers:
                if fd >= 0:
                    signal.pidfd_send_signal(fd, number)
                else:
                    os.kill(pid, number)
        finally:
            if fd >= 0:
                os.close(fd)
