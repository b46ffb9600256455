"""The shim's end of a connection with one loop of the kernel: frames in, with the descriptors that belong to them, and frames out."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from collections import deque
from typing import Any, Protocol

from nbprocs.engine.shimlib.wire import Unpacker, pack

__all__ = ["MOST_DESCRIPTORS", "Link", "ShimLink"]

MOST_DESCRIPTORS = 250  # in one frame; the system's own limit is 253
_READ = 64 << 10
_SPACE = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_CUT = int(socket.MSG_CTRUNC)  # as itself it makes an object for each question


class Link(Protocol):
    """What a server needs of whoever it serves: orders come from it, reports go to it."""

    fd: int
    environments: dict[int, dict[bytes, bytes]]

    def descriptors(self) -> list[int]:
        """Those of the order that is being handled; its owner closes them. Raises OSError."""

    def tell(self, *message: Any) -> None:
        """Report, with the next ``flush`` at the latest."""


class ShimLink:
    """Never blocks: what the kernel does not read (a cell may compute for an hour) is kept until it does."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd: int = sock.fileno()
        self.closed: bool = False
        self.environments: dict[int, dict[bytes, bytes]] = {}
        self._unpacker = Unpacker()
        self._sets: deque[list[int] | OSError] = deque()
        self._now: list[bytes] = []
        self._later: deque[memoryview] = deque()

    # -- in

    def receive(self) -> list[tuple[Any, ...]] | None:
        """The frames that have come; None at the end of the stream."""
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(_READ, _SPACE, _CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if flags & _CUT:  # no descriptors left here: what did come is of no use without the rest
            for fd in fds:
                os.close(fd)
            self._sets.append(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        elif fds:
            self._sets.append(list(fds))
        if not data:
            return None
        try:
            return self._unpacker.feed(data)
        except (ValueError, EOFError, TypeError):
            return None

    def descriptors(self) -> list[int]:
        """Those of the frame that is being handled; its owner closes them. Raises OSError where the system could not hand them over."""
        found = self._sets.popleft() if self._sets else OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if isinstance(found, OSError):
            raise found
        return found

    # -- out

    def tell(self, *message: Any) -> None:
        """Say it with the next ``flush``."""
        if not self.closed:
            self._now.append(pack(*message))

    def flush(self) -> bool:
        """Send what was said; False while the kernel has not taken all of it."""
        if self._now:
            self._later.append(memoryview(b"".join(self._now)))
            self._now.clear()
        while self._later:
            try:
                sent = self.sock.send(self._later[0])
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:  # nobody listens any more
                self._later.clear()
                return True
            if sent == len(self._later[0]):
                self._later.popleft()
            else:
                self._later[0] = self._later[0][sent:]
        return True

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self.closed = True
        for fds in self._sets:
            for fd in () if isinstance(fds, OSError) else fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._sets.clear()
        self._now.clear()
        self._later.clear()
        self.sock.close()
