"""The way from a kernel to one worker: calls with an answer, and a look whether anybody is there. What is behind it is not known here."""

from enum import StrEnum
from typing import Any, Protocol

__all__ = ["LinkDown", "PeerLink", "Sign", "certainly_gone"]

_DEAD = 2.0  # seconds from the end of a worker's process until its trees are certainly gone: its shim takes some 0.1 s
_MARGIN = 5.0  # seconds, at least, that a worker is given beyond the time after which it ends by itself


class LinkDown(Exception):
    """A call got no answer; it may or may not have arrived."""


class Sign(StrEnum):
    """What can be seen of a worker that does not answer."""

    LISTENS = "listens"  # its port is open
    REFUSED = "refused"  # its machine answers, and says that nobody listens there: the process has ended
    SILENT = "silent"  # nothing can be seen: it may well run


class PeerLink(Protocol):
    """Calls to one worker, on the home loop."""

    async def call(self, op: str, *, limit: float, **given: Any) -> dict[str, Any]:
        """One operation and its answer. Raises LinkDown when none has come within ``limit`` seconds, or the connection broke."""

    async def look(self) -> tuple[Sign, bool]:
        """What can be seen of the worker's process, and whether the cluster still counts it among its workers. Takes at most 3 s."""

    async def expected(self) -> str | None:
        """Why it was taken away, if the cluster did that on purpose; None if it did not, or nobody knows."""

    async def aclose(self) -> None:
        """Let go of it."""


def certainly_gone(sign: Sign, *, silent: float, unlisted: float | None, timeout: float) -> bool:
    """Whether a worker is lost, after so many seconds of silence and so many since the cluster does not list it (None: it does). Pure.

    A process that has ended takes its trees with it at once. One that can only not be reached ends them by itself when its own connection
    to the cluster has been dead for ``timeout`` seconds; told any earlier, two copies of a task could run.

    >>> certainly_gone(Sign.REFUSED, silent=2.0, unlisted=1.0, timeout=30.0)
    True
    >>> [certainly_gone(Sign.SILENT, silent=s, unlisted=u, timeout=30.0) for s, u in ((44, 20), (45, 15), (900, None))]
    [False, True, False]
    """
    if unlisted is None:
        return False
    if sign is Sign.REFUSED:
        return silent >= _DEAD
    margin = max(_MARGIN, timeout / 2)
    return silent >= timeout + margin and unlisted >= margin
