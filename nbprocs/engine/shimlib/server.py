"""The shim's loop: what wakes it, in one ``poll``.

::

    first socket ──CONNECT, PING, GUARD──►┐                       ┌──► HELLO, PONG, STRAY, LOG
    a loop's link ──START, STOP, PAUSE …─►│   children, endings,  ├──► STARTED, REFUSED, EXITED, ENDED …
    SIGCHLD (a wakeup descriptor) ───────►│   timers              │
    pidfds of guarded children ──────────►│                       │
    status socket ──one line of JSON─────►┘                       └──► one line of JSON

The kernel's end is the first socket's end of file, or the kernel's pidfd (a forked copy of the kernel may hold the socket open).
Then everything that descends from here is ended, and the shim with it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from nbprocs.engine.shimlib import wire
from nbprocs.engine.shimlib.evidence import Claim
from nbprocs.engine.shimlib.kids import Kid, Kids
from nbprocs.engine.shimlib.launching import TAGS, Refusal, launch, stand_back
from nbprocs.engine.shimlib.links import Link, ShimLink
from nbprocs.engine.shimlib.looks import Looker
from nbprocs.engine.shimlib.proc import command_of, read_proc, tag_of
from nbprocs.engine.shimlib.tending import Tending, Timers

__all__ = ["Server"]

LAST_GRACE = 0.7  # seconds between SIGTERM and SIGKILL when the kernel is gone: all must be over within two seconds
GIVE_UP = 20.0  # seconds after which only what the system itself holds can be left
BRIEF, HELD, MOST_BRIEF = 0.005, 0.002, 256  # seconds; seconds that a start is told later at most; programs remembered
STRAYS_EVERY = 0.5  # seconds at most between a child's end and the look for what it left behind
_BLOCK = 512  # bytes: the unit of a rusage's blocks, whatever the disk's is
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


def _high_water() -> int:
    """The most memory that this process had since it began, in the unit of ``ru_maxrss``.

    Not ``ru_maxrss`` itself: that one begins with what the kernel had when it forked this process, and no child would be above it.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Server:
    """One shim. ``base`` and ``token`` are its kernel's; ``inherits`` says that it follows one that died."""

    detached = False

    def __init__(self, first: ShimLink, *, kernel: int, base: int, token: str, inherits: bool) -> None:
        self.kernel = kernel
        self.started: float = time.time()
        self.began: float = time.monotonic()
        self.kids: Kids = Kids()
        self.timers: Timers = Timers()
        self.looker: Looker = Looker(self.kids, base=base, token=token)
        self.tending: Tending = Tending(self.kids, self.looker, reap=self.reap)
        self.kernel_alive: bool = True
        self.told_strays: set[int] = set()
        self.operations: dict[str, Callable[[dict[str, Any], Any], None]] = {}  # what its status socket does beyond the common
        self.status: Any = None
        self.waiting: dict[int, list[Any]] = {}  # number of a child → who asked its status socket for its end
        self._inherits = self.looker.everywhere = inherits
        self._first = first
        self._links: dict[int, ShimLink] = {}
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._blocked: set[int] = set()  # links whose peer does not read at the moment
        self._stray_look: Any = None
        self._own_peak = _high_water()
        self._done = False
        self._brief: set[bytes] = set()  # programs whose last child ended within BRIEF

    # -- the loop

    def run(self) -> None:
        """Serve until the kernel and everything that descends from here are gone."""
        self._wake_by_signals()
        self.meet_kernel()
        while not self._done:
            self._flush()
            ready = self._poll.poll(self._timeout())
            try:
                for fd, _ in ready:
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        handler(fd)
                self.reap()
                self.timers.run(time.monotonic())
                self.tending.step()
                self.after_turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, the children must keep their guard
                self._complain(error)
        if self.status is not None:
            self.status.close()

    def meet_kernel(self) -> None:
        """Hear of its orders and of its end."""
        self.watch(self._first.fd, self._first_ready)
        with contextlib.suppress(AttributeError, OSError):  # not on this system, or it is gone already: then the parent's pid tells
            self.watch(os.pidfd_open(self.kernel), self._kernel_gone)
        stand_back()
        self._first.tell(wire.HELLO, wire.VERSION, os.getpid(), TAGS)
        if os.getppid() != self.kernel:
            self._kernel_gone(-1)

    def after_turn(self) -> None:
        """Called at the end of each turn of the loop."""

    def _complain(self, error: Exception) -> None:
        """Say it in the kernel's log; a fault that comes again at once must not make it spin."""
        import traceback  # noqa: PLC0415 - only in trouble

        self._first.tell(wire.LOG, "".join(traceback.format_exception(error)))
        time.sleep(0.01)

    def _timeout(self) -> float | None:
        times = [when for when in (self.timers.next(), self.tending.next()) if when is not None]
        return max(0.0, (min(times) - time.monotonic()) * 1000 + 0.2) if times else None

    def _wake_by_signals(self) -> None:
        heard, said = os.pipe()
        os.set_blocking(heard, False)
        os.set_blocking(said, False)
        signal.set_wakeup_fd(said, warn_on_full_buffer=False)
        for number in signal.valid_signals():
            # Handlers, not "ignore": exec turns a handler into the default, but hands on what is ignored.
            if number not in {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ} and (
                number in _WORLDLY or signal.getsignal(number) is signal.SIG_IGN
            ):
                signal.signal(number, _nothing)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

        def empty(_: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(heard, 4096)

        self.watch(heard, empty)

    def watch(self, fd: int, handler: Callable[[int], object], events: int = select.POLLIN) -> None:
        """Call it whenever the descriptor is ready."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Not any more. Idempotent."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _flush(self) -> None:
        for link in (self._first, *self._links.values()):
            if link.flush() == (link.fd in self._blocked):
                self._poll.modify(link.fd, select.POLLIN if link.fd in self._blocked else select.POLLIN | select.POLLOUT)
                self._blocked ^= {link.fd}

    # -- the first socket

    def _first_ready(self, _: int) -> None:
        frames = self._first.receive()
        if frames is None:
            self._kernel_gone(-1)
            return
        for operation, *fields in frames:
            match operation:
                case wire.PING:
                    self._first.tell(wire.PONG, *fields)
                case wire.CONNECT:
                    with contextlib.suppress(OSError):
                        (fd,) = self._first.descriptors()
                        link = ShimLink(socket.socket(fileno=fd))
                        self._links[link.fd] = link
                        self.watch(link.fd, self._link_ready)
                case wire.SERVE:
                    self.serve(*fields)
                case _:
                    self._first_rarer(operation, fields)

    def _first_rarer(self, operation: int, fields: list[Any]) -> None:
        match operation:
            case wire.LEAVE:
                self._leave()
            case wire.INHERIT:
                self._inherits = self.looker.everywhere = True
            case wire.GUARD:
                number, pid, start, token, tag = fields
                self._guard(
                    Kid(number, pid, tag, None, ("", "", None), (), token, (0, False, 0.0, None), self.began, own=False, start=start)
                )
            case wire.RELEASE:
                kid = self.kids.by_number.get(fields[0])
                if kid is not None:
                    self._gone(kid)

    def _leave(self) -> None:
        """End, if that leaves nobody without a guard. What a child left behind when it ended is somebody, too."""
        if self.kids or self._inherits or not self._childless():
            self._first.tell(wire.STAYS)
        else:
            self._done = True

    def serve(self, path: str) -> None:
        """Answer status questions at a path."""
        from nbprocs.engine.shimlib.status import Status  # noqa: PLC0415 - after the first start, which must be quick

        try:
            self.status = Status(self, path)
        except OSError as error:
            self._first.tell(wire.LOG, f"the status socket {path} can't be opened: {error}")

    def _kernel_gone(self, fd: int) -> None:
        """End everything that descends from here, and what carries the tags of the kernel elsewhere."""
        if not self.kernel_alive:
            return
        self.kernel_alive = False
        stand_back(really=False)
        self.unwatch(fd)
        self.unwatch(self._first.fd)
        for link in (self._first, *self._links.values()):
            self.unwatch(link.fd)
            link.close()
        self._links.clear()
        self._blocked.clear()
        for kid in self.kids:
            self.timers.cancel(kid.timer)
        if not self.kids and not self._inherits and self._childless():
            self._done = True
            return
        self.timers.at(time.monotonic() + GIVE_UP, self._finish)
        self._end_everything(self._own_ended, grace=LAST_GRACE)

    def _end_everything(self, over: Callable[[list[wire.Survivor]], None], *, grace: float, whole_table: bool = False) -> None:
        claim = Claim(base=self.looker.base, everything=True, strays=True)
        self.tending.end(claim, number=signal.SIGTERM, leader_first=False, grace=grace, leader=0, over=over, whole_table=whole_table)

    def _own_ended(self, survivors: list[wire.Survivor]) -> None:
        """What descends from here first: a link of a chain of forks lives for less time than it takes to read the whole table."""
        if survivors or self._childless():
            self._end_everything(lambda _: self._finish(), grace=LAST_GRACE, whole_table=True)
        else:  # the system knows better than any look
            self._end_everything(self._own_ended, grace=0.0)

    def _childless(self) -> bool:
        self.reap()
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    def _finish(self) -> None:
        self._done = True

    # -- a loop's link

    def _link_ready(self, fd: int) -> None:
        link = self._links[fd]
        frames = link.receive()
        if frames is None:
            self.unwatch(fd)
            self._blocked.discard(fd)
            del self._links[fd]
            link.close()
            for kid in self.kids:
                if kid.link is link:
                    kid.link = None  # its loop is gone; it goes on until the kernel's end
            return
        for operation, *fields in frames:
            self._order(link, operation, fields)

    def _order(self, link: ShimLink, operation: int, fields: list[Any]) -> None:
        match operation:
            case wire.START:
                self._start(link, wire.StartOrder._make(fields))
            case wire.STOP:
                self._stop(link, wire.StopOrder._make(fields))
            case wire.ENVIRONMENT:
                link.environments = {fields[0]: fields[1]}
            case wire.SIGNAL:
                self._to_kid(fields[0], lambda kid: self._signal(kid, fields[1]))
            case wire.PAUSE | wire.RESUME | wire.INTERRUPT:
                acts = {wire.PAUSE: self.tending.pause, wire.RESUME: self.tending.resume, wire.INTERRUPT: self.tending.interrupt}
                self._to_kid(fields[0], acts[operation])
            case wire.RENAME:
                self._to_kid(fields[0], lambda kid: kid.rename(fields[1]))
            case wire.TAKE:
                self._take(link, *fields)
            case wire.STRAYS:
                link.tell(
                    wire.STRAYS_ARE, fields[0], tuple((found.pid, found.start, command_of(found.pid)) for found in self.looker.strays())
                )

    def _to_kid(self, number: int, act: Callable[[Kid], object]) -> None:
        self.reap()
        kid = self.kids.by_number.get(number)
        if kid is not None:  # else it has ended, and the kernel will hear so
            act(kid)

    def _signal(self, kid: Kid, number: int) -> None:
        from nbprocs.engine.shimlib.looks import send_signals  # noqa: PLC0415

        with contextlib.suppress(PermissionError):
            send_signals(kid.pid, kid.start, (number,), own=kid.own)

    # -- starting

    def _start(self, link: Link, order: wire.StartOrder) -> None:
        fds: list[int] = []
        try:
            if order.pty or order.inherit or any(place >= 0 for place in order.places):
                try:
                    fds = link.descriptors()
                except OSError as error:
                    raise Refusal("descriptors", error) from error
            pid = launch(order, fds, link.environments[order.environment])
        except Refusal as refusal:
            link.tell(wire.REFUSED, order.number, refusal.step, refusal.number, refusal.text)
            pid = 0
        finally:
            for fd in fds[1:] if order.pty else fds:
                os.close(fd)
        terminal = fds[0] if order.pty and fds else -1
        if not pid:
            if terminal >= 0:
                os.close(terminal)
            return
        now = time.monotonic()
        token = order.token.rpartition(b":")[2].decode("ascii", "replace")
        kid = Kid(order.number, pid, order.tag, link, order.label, order.argv, token, order.stop, now, terminal=terminal)
        if order.stop[3] is not None:
            kid.timer = self.timers.at(now + order.stop[3], lambda: self.out_of_time(kid))
        self.kids.add(kid)
        if order.argv[0] in self._brief:
            kid.untold = self.timers.at(now + HELD, lambda: self._tell_start(kid))
        else:
            link.tell(wire.STARTED, order.number, pid)

    def _tell_start(self, kid: Kid) -> None:
        """Before anything else is told of it."""
        if kid.untold is not None:
            self.timers.cancel(kid.untold)
            kid.untold = None
            if kid.link is not None:
                kid.link.tell(wire.STARTED, kid.number, kid.pid)

    def _take(
        self, link: ShimLink, number: int, pid: int, start: float, tag: int, argv: Any, token: str, stop: Any, remaining: Any, label: Any
    ) -> None:
        """A child of a shim that died."""
        kid = Kid(number, pid, tag, link, label, argv, token, stop, time.monotonic(), own=False, start=start)
        if remaining is not None:
            kid.timer = self.timers.at(time.monotonic() + remaining, lambda: self.out_of_time(kid))
        self._guard(kid)

    def _guard(self, kid: Kid) -> None:
        """Watch a process that is not our child, by its pidfd; what does not carry its tag is not it."""
        self._inherits = True
        self.kids.add(kid)
        try:
            kid.pidfd = os.pidfd_open(kid.pid)
        except (AttributeError, OSError):
            kid.pidfd = -1
        row = read_proc(kid.pid)
        wrong = row is None or row.gone or (kid.start and row.start != kid.start) or (TAGS and kid.tag and tag_of(kid.pid) != kid.tag)
        if wrong or row is None or kid.pidfd < 0:
            self._exited(kid, None, None)
            return
        kid.start = row.start
        self.watch(kid.pidfd, lambda _: self._exited(kid, None, None))

    # -- exits

    def reap(self) -> None:
        """Take in everybody who has ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            kid = self.kids.by_pid.get(pid)
            if kid is not None and kid.own:
                self._exited(kid, status, usage)
            else:
                self.looker.forget(pid)
                self.told_strays.discard(pid)
            self.tending.hurry()

    def _exited(self, kid: Kid, status: int | None, usage: resource.struct_rusage | None) -> None:
        self._note_life(kid)
        self._tell_start(kid)
        self._gone(kid)
        for asker in self.waiting.pop(kid.number, ()):
            asker.say({"v": 1, "ok": True, "status": status})
        if kid.link is not None:
            cpu = None if usage is None else usage.ru_utime + usage.ru_stime
            peak = None if usage is None else self._peak(usage.ru_maxrss)
            blocks = (None, None) if usage is None else (_BLOCK * usage.ru_inblock, _BLOCK * usage.ru_oublock)
            kid.link.tell(wire.EXITED, kid.number, status, time.monotonic(), cpu, peak, *blocks)
        if self._stray_look is None:
            self._stray_look = self.timers.at(time.monotonic() + STRAYS_EVERY, self._look_for_strays)

    def _note_life(self, kid: Kid) -> None:
        """Whose last child ended at once, its next one is likely to: its start and end are told together, and the kernel wakes once."""
        if kid.own and time.monotonic() - kid.started < BRIEF:
            self._brief.add(kid.argv[0])
            if len(self._brief) > MOST_BRIEF:
                self._brief.clear()
        elif kid.argv:
            self._brief.discard(kid.argv[0])

    def _gone(self, kid: Kid) -> None:
        self.kids.remove(kid)
        self.timers.cancel(kid.timer)
        if kid.terminal >= 0:
            os.close(kid.terminal)
            kid.terminal = -1
        if kid.pidfd >= 0:
            self.unwatch(kid.pidfd)
            os.close(kid.pidfd)
            kid.pidfd = -1
        self.tending.hurry()

    def _peak(self, peak: int) -> int | None:
        """The child's peak memory in bytes; None if it can't be told from ours.

        Between vfork and exec a child has our memory, and Linux keeps that in its maximum: what is not above our own peak may be ours.
        """
        if peak <= self._own_peak:
            return None
        self._own_peak = max(self._own_peak, _high_water())
        return peak * _PEAK_UNIT if peak > self._own_peak else None

    def _look_for_strays(self) -> None:
        self._stray_look = None
        if not self.kernel_alive:
            return
        for found in self.looker.strays():
            if found.pid not in self.told_strays:
                self.told_strays.add(found.pid)
                self._first.tell(wire.STRAY, found.pid, found.start, command_of(found.pid))

    # -- endings

    def _stop(self, link: ShimLink, order: wire.StopOrder) -> None:
        kid = None if order.number is None else self.kids.by_number.get(order.number)
        claim = self.looker.claim(number=order.number, manager=order.manager, pid=order.pid, token=order.token, strays=order.strays)
        self.tending.end(
            claim,
            number=order.signal,
            leader_first=order.leader_first,
            grace=order.grace,
            leader=0 if kid is None else kid.pid,
            over=lambda left: link.tell(wire.ENDED, order.key, tuple(tuple(one) for one in left)),
        )

    def out_of_time(self, kid: Kid) -> None:
        """Its timeout is over."""
        self.end_kid(kid, "timeout", grace=kid.stop[2], over=lambda _: None)

    def end_kid(self, kid: Kid, reason: str, *, grace: float, over: Callable[[list[wire.Survivor]], None]) -> None:
        """End a child of which the kernel did not ask it, and tell it so."""
        self._tell_start(kid)
        link = kid.link
        if link is not None:
            link.tell(wire.ENDING, kid.number, reason)

        def ended(left: list[wire.Survivor]) -> None:
            if link is not None:
                link.tell(wire.ENDED, -kid.number, tuple(tuple(one) for one in left))
            over(left)

        number, leader_first = kid.stop[:2]
        self.tending.end(self.tending.claim_of(kid), number=number, leader_first=leader_first, grace=grace, leader=kid.pid, over=ended)


def _nothing(*_: object) -> None:
    """A handler: what is caught here is the default in the children."""


_WORLDLY = frozenset(
    getattr(signal, name)
    for name in ("SIGCHLD", "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGALRM")
    if hasattr(signal, name)
)
