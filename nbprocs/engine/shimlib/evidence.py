"""Whose a process is. Pure: what is known of it goes in, the answer comes out.

In this order, and the first that speaks decides:

1. descent: it is below a child, or below an orphan that is the child's;
2. its tag, which it inherited from the child and can lose through PAM only (su, sudo, login);
3. its session, when the child was its leader;
4. the token in its environment, which a process may overwrite or be started without.

When it appeared is no evidence: by "who ended just before" a quarter of the daemons in a burst would be somebody else's.
Whoever descends from the shim and is claimed by nobody is a *stray*: it is listed, said in the log, and ended with what is left at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from nbprocs.engine.shimlib.wire import is_tag, parts_of_tag

__all__ = ["Claim", "Found", "claimed", "is_stray", "tokens_in"]


class Found(NamedTuple):
    """A process without a living parent of ours: what can be known about it."""

    pid: int
    start: float
    tag: int | None
    session: int
    tokens: frozenset[str]


class Claim(NamedTuple):
    """Whose tree is meant: one child's, a manager's, or everything."""

    base: int  # the kernel's part of every tag
    manager: int = 0
    child: int | None = None  # a tag's part; None: everything of the manager
    sessions: frozenset[int] = frozenset()  # pids of the children meant, which led a session each
    token: str = ""
    strays: bool = False
    everything: bool = False

    def has_tag(self, tag: int) -> bool:
        """Whether a child of that tag is meant."""
        base, manager, child = parts_of_tag(tag)
        return base == self.base and manager == self.manager and self.child in (None, child)


def tokens_in(value: bytes) -> frozenset[str]:
    """What an environment's NBPROCS_TOKEN says.

    The tokens of nested kernels, each with all that it begins with (kernel, manager, process).
    """
    found = set()
    for token in value.decode("ascii", "replace").split(":"):
        parts = token.split(".")
        found |= {".".join(parts[:size]) for size in range(1, len(parts) + 1)}
    return frozenset(found - {""})


def claimed(claim: Claim, found: Found, *, stray: bool = False) -> bool:
    """Whether this orphan belongs to that tree. ``stray``: nothing ties it to anybody."""
    if claim.everything:
        return True
    if is_tag(found.tag) and parts_of_tag(found.tag or 0)[0] == claim.base:
        return claim.has_tag(found.tag or 0)
    if found.session in claim.sessions:
        return True
    if claim.token and claim.token in found.tokens:
        return True
    return stray and claim.strays


def is_stray(found: Found, *, base: int, led: bool, token: str) -> bool:
    """Whether no evidence at all ties it to a child of this kernel; ``led``: one of them led its session."""
    ours = is_tag(found.tag) and parts_of_tag(found.tag or 0)[0] == base
    return not ours and not led and token not in found.tokens


def below(roots: Iterable[int], children: Mapping[int, Collection[int]]) -> set[int]:
    """The roots and all that descends from them. A table read while it changes may hold a circle: each is visited once."""
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found
