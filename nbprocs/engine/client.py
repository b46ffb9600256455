"""One loop's connection to one shim: orders out, reports in.

Only the loop's own thread uses it, but for ``post``, ``prune`` and ``forget``. It never blocks; what the shim does not take
yet waits here, with the
descriptors that belong to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nbprocs.engine.poller import poller_of
from nbprocs.engine.shimlib import wire

if TYPE_CHECKING:
    from nbprocs.engine.shim import Shim, Shims

__all__ = ["ShimChild", "ShimClient", "start_error"]

_TRIES, _SOON = 20, 0.01  # looks, and seconds between them, until it is known why a shim ended that never said a word
_FEW = 24  # variables that a start may have of its own beside the environment that the shim knows
_IDLE = 0.5  # seconds
_READ = 4 << 10  # bytes at once: some sixty reports, then others on the loop get their turn
LOST = "the process that starts and guards the children was killed meanwhile; try again"


class ShimChild(Protocol):
    """What a client tells a child."""

    number: int

    def born(self, pid: int) -> None:
        """It runs."""

    def refused(self, error: OSError | ValueError) -> None:
        """It could not be started."""

    def died(self, report: wire.Exited) -> None:
        """It has ended and was reaped."""

    def ending(self, reason: str) -> None:
        """The shim has begun to end its tree."""

    def tree_ended(self, survivors: tuple[wire.Survivor, ...]) -> None:
        """What ``ending`` told of is over."""

    def changed(self, *, paused: bool) -> None:
        """Somebody else had it paused or resumed."""

    def taken_over(self) -> tuple[Any, ...] | None:
        """The fields of TAKE behind the number, for another shim; None when there is nothing to take over."""

    def moved(self, client: ShimClient) -> None:
        """Another shim looks after it from now on."""


class ShimClient:
    """See the module's text. ``children`` and ``waiting`` hold those that live and those that are being started."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shim: Shim, owner: Shims) -> None:
        """Connect; costs a socket pair. Raises OSError."""
        self._loop = weakref.ref(loop)
        self._owner = owner
        self.shim = shim
        self.children: dict[int, ShimChild] = {}
        self.waiting: dict[int, ShimChild] = {}
        self.asked: dict[int, tuple[asyncio.Future[Any], wire.StopOrder | None, float]] = {}
        self.closed: bool = False
        self._unpacker = wire.Unpacker()
        self._closing: asyncio.TimerHandle | None = None
        self._sent = 0  # orders so far
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._gathered: list[bytes] | None = None  # orders to end of this turn of the loop, behind the first
        self._environment: Mapping[Any, Any] | None = None
        self._environments = 0
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        try:
            shim.say(wire.CONNECT, fds=(theirs.fileno(),))
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._poller = poller_of(loop)
        self._fd = self._socket.fileno()
        try:
            loop.add_reader(self._fd, self._readable)  # not by the poller: there is one for thousands of children
        except BaseException:
            self._socket.close()
            raise

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it is that loop's, and open."""
        return self._loop() is loop and not self.closed

    # -- out

    def start(self, child: ShimChild, order: Callable[[int], wire.StartOrder], env: Mapping[Any, Any], fds: Sequence[int]) -> None:
        """Have it started; ``born`` or ``refused`` tells. The descriptors are copied or kept: the caller closes its own."""
        frame = b""
        changes = None if env is self._environment else _changes(self._environment, env)
        if changes is None and env is not self._environment:
            self._environments += 1
            frame = wire.pack(wire.ENVIRONMENT, self._environments, _as_bytes(env))
            self._environment = env
        started = order(self._environments)
        frame += wire.pack(wire.START, *(started._replace(changes=changes) if changes else started))
        self._send(frame, tuple(fds))
        self.waiting[child.number] = child

    def say(self, *message: Any) -> None:
        """An order without an answer."""
        self._send(wire.pack(*message))

    def request_end(self, order: wire.StopOrder) -> asyncio.Future[tuple[wire.Survivor, ...]]:
        """Have trees ended; the future gives who survived. A shim that dies meanwhile is replaced, and the other one goes on."""
        future: asyncio.Future[tuple[wire.Survivor, ...]] = asyncio.get_running_loop().create_future()
        self.asked[order.key] = (future, order, time.monotonic())
        frame = wire.pack(wire.STOP, *order)
        if self._gathered is None:
            self._send(frame)
            self._gathered = []
            future.get_loop().call_soon(self._send_gathered)
        else:  # a thousand stops at once are two messages: each wakes the shim, which then takes the processor from the loop
            self._gathered.append(frame)
        return future

    def _send_gathered(self) -> None:
        frames, self._gathered = self._gathered, None
        if frames and not self.closed:
            self._send(b"".join(frames))

    async def end(self, order: wire.StopOrder) -> tuple[wire.Survivor, ...]:
        """The same, awaited."""
        return await self.request_end(order)

    async def ask(self, operation: int, key: int) -> Any:
        """A question with an answer."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked[key] = (future, None, time.monotonic())
        self.say(operation, key)
        return await future

    def _send(self, frame: bytes, fds: tuple[int, ...] = ()) -> None:
        if self.closed:
            raise OSError(0, LOST)
        self._sent += 1
        if self._gathered:  # what was ordered before goes before
            frame, self._gathered = b"".join((*self._gathered, frame)), []
        view = memoryview(frame)
        if not self._queue:
            try:
                sent = socket.send_fds(self._socket, [view], list(fds)) if fds else self._socket.send(view)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except (BrokenPipeError, ConnectionResetError):
                return  # its end is noticed where we read, and answered for everybody who waits
            if sent == len(view):
                return
            if sent:
                fds = ()
            view = view[sent:]
        loop = self._loop()
        if not self._queue and loop is not None:
            loop.add_writer(self._fd, self._write)
        self._queue.append((view, tuple(os.dup(fd) for fd in fds)))

    def _write(self) -> None:
        while self._queue:
            view, fds = self._queue[0]
            try:
                sent = socket.send_fds(self._socket, [view], list(fds)) if fds else self._socket.send(view)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._drop_queue()
                break
            for fd in fds:
                os.close(fd)
            if sent < len(view):
                self._queue[0] = (view[sent:], ())
                return
            self._queue.popleft()
        loop = self._loop()
        if loop is not None:
            loop.remove_writer(self._fd)

    def _drop_queue(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()

    # -- in

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.lost()
            return
        for message in self._unpacker.feed(data):
            self._hear(message)

    def _hear(self, message: tuple[Any, ...]) -> None:
        operation = message[0]
        if operation == wire.STARTED:
            child = self.waiting.pop(message[1], None)
            if child is not None:
                self.children[message[1]] = child
                child.born(message[2])
        elif operation == wire.EXITED:
            child = self.children.pop(message[1], None)
            if child is not None:
                child.died(wire.Exited._make(message[1:]))
                self.maybe_close()
        elif operation == wire.ENDED:
            self._settle(message[1], tuple(wire.Survivor._make(one) for one in message[2]))
        elif operation == wire.REFUSED:
            child = self.waiting.pop(message[1], None)
            if child is not None:
                child.refused(start_error(*message[2:]))
                self.maybe_close()
        else:
            self._hear_rarer(operation, message[1], message[2])

    def _hear_rarer(self, operation: int, number: int, value: Any) -> None:
        child = self.children.get(number)
        if operation == wire.STRAYS_ARE:
            self._settle(number, value)
        elif child is not None and operation == wire.ENDING:
            child.ending(value)
            self.asked[-number] = (_Told(child), None, time.monotonic())  # type: ignore[assignment]  # it takes a result, too
        elif child is not None and operation == wire.PAUSED:
            child.changed(paused=value)

    def _settle(self, key: int, value: Any) -> None:
        found = self.asked.pop(key, None)
        if found is not None and not found[0].done():
            found[0].set_result(value)
        self.maybe_close()

    # -- ends

    def lost(self) -> None:
        """The shim is gone: its children live on, another one looks after them."""
        if not self.closed:
            self._close()
            self._hand_over(_TRIES)

    def _hand_over(self, tries: int) -> None:
        loop = self._loop()
        if loop is None:
            return
        if tries and not self._owner.judged(self.shim):
            loop.call_later(_SOON, self._hand_over, tries - 1)
            return
        waiting, children, asked = self.waiting, self.children, self.asked
        self.waiting, self.children, self.asked = {}, {}, {}
        if not waiting and not children and not asked:
            return
        try:
            heir = None if self._owner.unusable else self._owner.instead_of(self.shim, loop)
        except OSError:
            heir = None
        for child in waiting.values():  # whether it was started is not known: nobody knows it, so it goes
            child.refused(start_error("shim", 0, self._owner.unusable or LOST))
        if heir is None:
            self._give_up(children, asked)
            return
        for number, child in children.items():
            fields = child.taken_over()
            if fields is None:
                continue
            heir.children[number] = child
            child.moved(heir)
            heir.say(wire.TAKE, number, *fields)
        heir.inherit(waiting, asked)

    def inherit(self, unknown: Mapping[int, ShimChild], asked: Mapping[int, Any]) -> None:
        """From one that was lost: starts of which nobody knows how they went are ended by their tag, endings are asked for again."""
        for child in unknown.values():
            order = getattr(child, "unwanted", None)
            if order is not None:
                self.say(wire.STOP, *order())
        for key, (future, order, since) in asked.items():
            if order is not None and not future.done():
                self.asked[key] = (future, order, since)
                self.say(wire.STOP, *order._replace(grace=max(0.0, order.grace - (time.monotonic() - since))))
            elif not future.done():
                future.set_result(())

    def _give_up(self, children: Mapping[int, ShimChild], asked: Mapping[int, Any]) -> None:
        for number, child in children.items():
            child.died(wire.Exited(number, None, time.monotonic(), None, None))
        for future, _, _ in asked.values():
            if not future.done():
                future.set_exception(OSError(0, LOST))

    def maybe_close(self) -> None:
        """An idle loop holds nothing of ours: at once without a manager, else when nothing was asked of it for a while."""
        loop = self._loop()
        if loop is None or self.children or self.waiting or self.asked or self.closed:
            return
        if not self._owner.is_held(loop):
            self._close()
        elif self._closing is None:
            self._closing = loop.call_later(_IDLE, self._close_if_idle, self._sent)

    def _close_if_idle(self, sent: int) -> None:
        self._closing = None
        if sent != self._sent:
            self.maybe_close()
        elif not (self.children or self.waiting or self.asked):
            self._close()

    def prune(self) -> None:
        """Close it if its loop is gone. From any thread."""
        loop = self._loop()
        if not self.closed and (loop is None or loop.is_closed()):
            self.closed = True
            self._owner.forget_client(None, self)
            self._socket.close()
            self._poller.abandon()

    def post(self, callback: Callable[[], object]) -> None:
        """On the loop, soon. From any thread; nothing where the loop is closed."""
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(callback)

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        loop = self._loop()
        if loop is not None:
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
        if self._closing is not None:
            self._closing.cancel()
        self._drop_queue()
        self._socket.close()
        self._owner.forget_client(loop, self)

    def forget(self) -> None:
        """In a forked child: close the copy."""
        with contextlib.suppress(OSError):
            self._socket.close()


class _Told:
    """Takes the end of an ending that the shim began by itself."""

    def __init__(self, child: ShimChild) -> None:
        self._child = child
        self._over = False

    def done(self) -> bool:
        return self._over

    def set_result(self, survivors: tuple[wire.Survivor, ...]) -> None:
        self._over = True
        self._child.tree_ended(survivors)

    def set_exception(self, _: BaseException) -> None:
        self.set_result(())


def _changes(base: Mapping[Any, Any] | None, env: Mapping[Any, Any]) -> dict[bytes, bytes | None] | None:
    """What is other in the second than in the first, if that is little: most starts differ in a few variables, and have a hundred."""
    if base is None:
        return None
    changed = {name: value for name, value in env.items() if base.get(name) != value}
    gone = base.keys() - env.keys()
    if len(changed) + len(gone) > _FEW:
        return None
    return {**_as_bytes(changed), **dict.fromkeys(map(os.fsencode, gone))}


def _as_bytes(env: Mapping[Any, Any]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in env.items()}


def start_error(step: str, number: int, text: str) -> OSError | ValueError:
    """What the system said, as it would say it to us; ``step`` tells which part of the start it was about."""
    error: OSError | ValueError = OSError(number, text) if number or step == "shim" else ValueError(text)
    error.step = step  # type: ignore[union-attr]
    return error
