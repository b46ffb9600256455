"""The children that a shim knows: its table, by number and by pid, and a short memory of those that have ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbprocs.engine.shimlib.wire import parts_of_tag

if TYPE_CHECKING:
    from nbprocs.engine.shimlib.links import Link

__all__ = ["Kid", "Kids"]

REMEMBERED = 4096  # children that have ended, at least, whose sessions are still known: a daemon's only evidence may be its session


class Kid:
    """A child: started by this shim (``own``), or guarded for another parent that is gone or can't.

    Written out, as the other classes in here: the dataclasses module alone would take a fifth of the shim's memory, and of its start.
    """

    __slots__ = (
        "argv",
        "label",
        "link",
        "number",
        "own",
        "paused",
        "pid",
        "pidfd",
        "start",
        "started",
        "stop",
        "tag",
        "terminal",
        "timer",
        "token",
        "untold",
    )

    def __init__(
        self,
        number: int,
        pid: int,
        tag: int,
        link: Link | None,
        label: tuple[str, str, str | None],
        argv: tuple[bytes, ...],
        token: str,
        stop: tuple[int, bool, float, float | None],
        started: float,
        *,
        own: bool = True,
        start: float = 0.0,
        terminal: int = -1,
    ) -> None:
        self.number: int = number
        self.pid: int = pid
        self.tag: int = tag
        self.link: Link | None = link  # who wants to hear of it
        self.label: tuple[str, str, str | None] = label  # id, name, masked command
        self.argv: tuple[bytes, ...] = argv
        self.token: str = token
        self.stop: tuple[int, bool, float, float | None] = stop  # signal, leader first, grace, timeout
        self.started: float = started  # time.monotonic()
        self.own: bool = own
        self.start: float = start  # ticks; known of those that are not our own: until we reap our own, their pids are theirs
        self.terminal: int = terminal  # the slave of its pseudo-terminal: held until it ends, so that its output is not cut off
        self.pidfd: int = -1  # where it is not our child
        self.timer: Any = None
        self.untold: Any = None  # the timer of its start that was not yet told
        self.paused: bool = False

    def rename(self, name: str) -> None:
        """Its manager calls it so now."""
        self.label = (self.label[0], name, self.label[2])


class Kids:
    """The table."""

    def __init__(self) -> None:
        self.by_number: dict[int, Kid] = {}
        self.by_pid: dict[int, Kid] = {}
        self._ended: dict[int, int] = {}  # pid → the manager's part of its tag
        self._earlier: dict[int, int] = {}  # the same of those before: one that is emptied from its front would take twice the memory

    def __len__(self) -> int:
        return len(self.by_number)

    def __iter__(self) -> Iterator[Kid]:
        return iter(tuple(self.by_number.values()))

    def add(self, kid: Kid) -> None:
        """A child is alive."""
        self.by_number[kid.number] = kid
        self.by_pid[kid.pid] = kid
        self._ended.pop(kid.pid, None)
        self._earlier.pop(kid.pid, None)

    def remove(self, kid: Kid) -> None:
        """It has ended and was reaped."""
        self.by_number.pop(kid.number, None)
        if self.by_pid.get(kid.pid) is kid:
            del self.by_pid[kid.pid]
        self._ended[kid.pid] = parts_of_tag(kid.tag)[1]
        if len(self._ended) > REMEMBERED:
            self._earlier, self._ended = self._ended, {}

    def led(self, session: int) -> bool:
        """Whether a child of ours, alive or not long gone, led that session."""
        return session in self.by_pid or session in self._ended or session in self._earlier

    def sessions(self, manager: int) -> set[int]:
        """Those that a manager's children led, alive or not long gone. ``manager`` as ``parts_of_tag`` gives it."""
        living = {kid.pid for kid in self.by_number.values() if parts_of_tag(kid.tag)[1] == manager}
        return living | {pid for pid, ended in (*self._earlier.items(), *self._ended.items()) if ended == manager}

    def of_id(self, key: str) -> Kid | None:
        """By the id in its label."""
        return next((kid for kid in self.by_number.values() if kid.label[0] == key), None)
