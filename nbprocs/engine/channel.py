"""A private socket pair between this process and one child, and a page of memory that both see.

::

    home loop   Channel  ◄──── socket pair ────►  descriptor ``child_fd``, handed on by ``inherit=``
                SharedPage  ◄── one mapping ──►   descriptor ``child_fd``

Never stdio: what a user's code prints can't get in between. Reads go straight into the sink's buffers; one write carries all that is ready.
"""

import contextlib
import mmap
import os
import socket
import tempfile
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nbprocs.engine.shim import above_standard

__all__ = ["Channel", "SharedPage", "Sink"]

_WANTED = 4 << 20  # bytes of socket buffer to ask for; the system gives what its limits allow
_TURN = 4 << 20  # bytes read in a row before others on the loop get their turn
_PIECES = 64  # buffers in one call; far below every system's IOV_MAX

Piece = bytes | memoryview


class Sink(Protocol):
    """Takes what arrives, like asyncio's BufferedProtocol."""

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""

    def received(self, count: int) -> list[Any]:
        """So many have come; the messages that are complete now."""


class Channel:
    """Our end of the pair, non-blocking, on one loop. Only used on that loop's thread."""

    __slots__ = ("_backlog", "_loop", "_on_end", "_on_messages", "_sink", "_socket", "child_fd", "closed")

    def __init__(
        self, loop: AbstractEventLoop, sink: Sink, *, on_messages: Callable[[list[Any]], object], on_end: Callable[[], object]
    ) -> None:
        """Open the pair. Raises OSError when the system has no descriptors left; nothing stays open then.

        ``on_messages`` gets what the sink returns, never an empty list; ``on_end`` is called once, when the child's end is closed or
        the sink raises.
        """
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            undo.callback(theirs.close)
            ours.setblocking(False)
            for end in (ours, theirs):
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WANTED)
            self._socket = ours
            self._loop = loop
            self._sink = sink
            self._on_messages = on_messages
            self._on_end = on_end
            self._backlog: deque[memoryview] = deque()
            self.closed: bool = False
            self.child_fd: int = above_standard(theirs.detach())  # -1 once it is released
            undo.callback(os.close, self.child_fd)
            loop.add_reader(ours, self.read)
            undo.pop_all()

    def release_child(self) -> None:
        """Close our copy of the child's end, once the child has its own: else we should never see the end. Idempotent."""
        if self.child_fd >= 0:
            os.close(self.child_fd)
            self.child_fd = -1

    # -- out

    @property
    def backlog(self) -> bool:
        """True while the system has not taken all that was sent."""
        return bool(self._backlog)

    def send(self, pieces: Sequence[Piece]) -> None:
        """Write now what the system takes, and the rest when it can. What is sent to a closed end is dropped: ``on_end`` tells."""
        if self.closed:
            return
        if not self._backlog and len(pieces) == 1:
            try:
                sent = self._socket.send(pieces[0])
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the reader notices the end, after the last answers have been read
            if sent == len(pieces[0]):
                return
            pieces = [memoryview(pieces[0])[sent:]]
        idle = not self._backlog
        self._backlog.extend(memoryview(piece).cast("B") for piece in pieces if memoryview(piece).nbytes)
        if idle:
            self._write()
            if self._backlog:
                self._loop.add_writer(self._socket, self._write)

    def _write(self) -> None:
        """As much of the backlog as the system takes."""
        backlog = self._backlog
        try:
            while backlog:
                sent = self._socket.sendmsg([backlog[i] for i in range(min(_PIECES, len(backlog)))])
                while backlog and sent >= backlog[0].nbytes:
                    sent -= backlog.popleft().nbytes
                if sent:
                    backlog[0] = backlog[0][sent:]
        except BlockingIOError:
            return
        except OSError:
            backlog.clear()
        self._loop.remove_writer(self._socket)

    # -- in

    def read(self) -> None:
        """Take all that has come (at most a few MB, then others get their turn). Called by the loop; callable at any time."""
        taken = 0
        while not self.closed and taken < _TURN:
            view = self._sink.get_buffer()
            try:
                count = self._socket.recv_into(view)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self._end()
                return
            taken += count
            try:
                messages = self._sink.received(count)
            except Exception:  # noqa: BLE001 - the sink's reason is logged by whoever looks at on_end; the stream can't be trusted
                self._end()
                return
            if messages:
                self._on_messages(messages)
            if count < view.nbytes:
                return

    def _end(self) -> None:
        self._loop.remove_reader(self._socket)
        self._on_end()

    def close(self) -> None:
        """Close our end and give everything back. Idempotent; ``on_end`` is not called any more."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._backlog.clear()
            self._socket.close()
            self.release_child()


class SharedPage:
    """One page of memory shared with a child: what it wrote there can be read even after it was killed."""

    __slots__ = ("_map", "child_fd", "words")

    SIZE = 4096

    def __init__(self) -> None:
        """Raises OSError when the system has no descriptors or memory left."""
        if hasattr(os, "memfd_create"):
            self.child_fd: int = above_standard(os.memfd_create("nbprocs-page", os.MFD_CLOEXEC))
        else:
            with tempfile.TemporaryFile() as file:
                self.child_fd = above_standard(os.dup(file.fileno()))
        try:
            os.ftruncate(self.child_fd, self.SIZE)
            self._map = mmap.mmap(self.child_fd, self.SIZE)
        except BaseException:
            os.close(self.child_fd)
            raise
        self.words: memoryview = memoryview(self._map).cast("Q")

    def release_child(self) -> None:
        """Close our copy of the descriptor; the mapping stays. Idempotent."""
        if self.child_fd >= 0:
            os.close(self.child_fd)
            self.child_fd = -1

    def close(self) -> None:
        """Unmap. Idempotent; ``words`` is released."""
        self.release_child()
        self.words.release()
        self._map.close()
