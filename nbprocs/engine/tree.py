"""Ending whole process trees, and proving that they are empty.

Who belongs to a child's tree: its session, everybody who descends from those, and everybody who carries the child's token in the
environment (that finds daemons, which left both session and family). Signals go through a pidfd whose identity was checked, so that a
reused pid is never hit; the end of each is awaited on the same pidfd, so nothing polls where the system has pidfds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

from nbprocs.engine.child import TOKEN
from nbprocs.engine.shimlib.wire import Survivor
from nbprocs.engine.table import Identity, Row, descendants, environ_value, read_row, scan
from nbprocs.errors import StopFailed

__all__ = ["KILL_DEADLINE", "Root", "check_ended", "end_trees", "members"]

KILL_DEADLINE = 5.0  # seconds after SIGKILL in which the system must have ended everybody
_ROUND = 1.0  # seconds to wait for the known members before looking again for new ones
_SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A child whose tree is meant, alive or not; or, without an identity, all whose token begins with this one."""

    token: str  # parts joined by dots: kernel, manager, process
    since: float  # table.present() or a start: nobody of the tree is older
    identity: Identity | None = None
    reaped_at: float | None = None  # table.present() when it was reaped: from then on its pid may name a stranger's session


def members(roots: Iterable[Root], table: dict[int, Row]) -> set[Identity]:
    """The living of all the trees together, roots included. Reads environments of the younger processes only, each once."""
    roots = list(roots)
    if not roots:
        return set()
    earliest = min(root.since for root in roots)
    me = os.getpid()
    young = [row for row in table.values() if row.start >= earliest and not row.gone and row.pid != me]
    by_pid = {root.identity.pid: root for root in roots if root.identity is not None}
    wanted = {root.token for root in roots}
    seeds = {row.pid for row in young if _in_session(row, by_pid.get(row.sid)) or not wanted.isdisjoint(_tokens(row.pid))}
    found = seeds | descendants(table, seeds)
    return {row.identity for row in young if row.pid in found}


def _in_session(row: Row, root: Root | None) -> bool:
    if root is None or root.identity is None or row.start < root.identity.start:
        return False
    if row.pid == root.identity.pid:
        return row.start == root.identity.start
    return root.reaped_at is None or row.start <= root.reaped_at


def _tokens(pid: int) -> set[str]:
    """The tokens that a process carries, and what they begin with: a process of ours, its manager, its kernel."""
    found = set()
    for token in environ_value(pid, TOKEN).split(":"):
        parts = token.split(".")
        found |= {".".join(parts[:size]) for size in range(1, len(parts) + 1)}
    return found


_waiting: dict[int, list[asyncio.Future[dict[int, Row]]]] = {}


async def _shared_scan() -> dict[int, Row]:
    """One scan for everybody who asks in the same turn of the loop: a thousand stops at once must not scan a thousand times."""
    loop = asyncio.get_running_loop()
    mine: asyncio.Future[dict[int, Row]] = loop.create_future()
    asking = _waiting.setdefault(id(loop), [])
    asking.append(mine)
    if len(asking) == 1:
        loop.call_soon(_scan_now, id(loop))
    return await mine


def _scan_now(key: int) -> None:
    asking = [future for future in _waiting.pop(key) if not future.done()]
    try:
        table = scan()
    except OSError as error:
        for future in asking:
            future.set_exception(error)
        return
    for future in asking:
        future.set_result(table)


async def end_trees(roots: list[Root], *, grace: float, number: int = signal.SIGTERM) -> list[Survivor]:
    """SIGTERM and SIGCONT to every member, SIGKILL to those left after ``grace`` seconds; returns who survived that too.

    Takes at most ``grace`` + 5 seconds. On an empty return nobody of the trees is alive; zombies of other parents are theirs to reap.
    """
    kill_at = time.monotonic() + grace
    give_up = kill_at + KILL_DEADLINE
    asked: set[Identity] = set()
    while True:
        left = members(roots, await _shared_scan())
        now = time.monotonic()
        if not left or now >= give_up:
            return [survivor(identity) for identity in sorted(left)]
        if now >= kill_at:
            numbers: tuple[int, ...] = (_SIGKILL,)
            targets, until = left, min(now + _ROUND, give_up)
        else:
            numbers = (number, getattr(signal, "SIGCONT", number))
            targets, until = left - asked, min(now + _ROUND, kill_at)
        asked |= targets
        await _signal_and_wait(targets, left, numbers, until)


async def _signal_and_wait(targets: set[Identity], everybody: set[Identity], numbers: tuple[int, ...], until: float) -> None:
    if hasattr(os, "pidfd_open"):
        await _by_pidfd(targets, everybody, numbers, until)
    else:
        await _by_psutil(targets, everybody, numbers, until)


async def _by_pidfd(targets: set[Identity], everybody: set[Identity], numbers: tuple[int, ...], until: float) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    watched: set[int] = set()

    def gone(fd: int) -> None:
        loop.remove_reader(fd)
        watched.discard(fd)
        os.close(fd)
        if not watched:
            ended.set()

    try:
        for identity in everybody:
            fd = _open_checked(identity)
            if fd is None:
                continue
            watched.add(fd)
            loop.add_reader(fd, gone, fd)
            if identity in targets:
                for number in numbers:
                    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or another user's: it will be listed
                        signal.pidfd_send_signal(fd, number)
        if watched:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(until - time.monotonic(), 0)):
                    await ended.wait()
    finally:
        for fd in watched:
            loop.remove_reader(fd)
            os.close(fd)


def _open_checked(identity: Identity) -> int | None:
    try:
        fd = os.pidfd_open(identity.pid)
    except OSError:  # it has gone; or no descriptors are left, then the next round finds it again
        return None
    row = read_row(identity.pid)
    if row is None or row.identity != identity or row.gone:
        os.close(fd)
        return None
    return fd


async def _by_psutil(targets: set[Identity], everybody: set[Identity], numbers: tuple[int, ...], until: float) -> None:
    import psutil  # noqa: PLC0415 - `import nbprocs` stays light

    processes = []
    for identity in everybody:
        row = read_row(identity.pid)
        if row is None or row.identity != identity:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(identity.pid)
            processes.append(process)
            if identity in targets:
                for number in dict.fromkeys(numbers):
                    process.send_signal(number)
    timeout = max(until - time.monotonic(), 0)
    await asyncio.get_running_loop().run_in_executor(None, lambda: psutil.wait_procs(processes, timeout=timeout))


def check_ended(left: Iterable[Survivor], *, name: str, process_id: str | None = None) -> None:
    """Raise StopFailed if somebody of ``name``'s tree is left, naming them."""
    left = tuple(left)
    if not left:
        return
    named = ", ".join(f"{one.name} (pid {one.pid}{', which we may not signal' if one.refused else ''})" for one in left)
    error = StopFailed(
        f"{name} could not be ended: still there after SIGKILL: {named}",
        process_id=process_id,
        name=name,
        hint="a process in the middle of disk or network I/O ends when that does; another user's can only be ended by that user",
    )
    error.survivors = tuple((one.pid, one.name) for one in left)
    raise error


def survivor(identity: Identity) -> Survivor:
    """Somebody who is left, with its program's name."""
    import psutil  # noqa: PLC0415 - `import nbprocs` stays light

    try:
        return Survivor(identity.pid, psutil.Process(identity.pid).name(), False)
    except psutil.Error:
        return Survivor(identity.pid, "?", False)
