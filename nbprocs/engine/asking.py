"""Asks the shims: one line of JSON to a socket each, one line back, all at once and with one deadline.

::

    ask_all(folder, {"op": "status"})  ──►  every shim-*.sock  ──►  Reply(path, answer | error)

Whoever asks needs no kernel and no daemon: the command line, the server's extension and the doctor use this. What a shim answers is
written down in ``nbprocs.engine.shim_main``. A socket that another user serves is not asked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["VERSION", "Reply", "ask", "ask_all", "connect"]

VERSION = 1
LARGEST = 64 << 20  # bytes of an answer: what is longer is no answer of ours
_SUN_PATH = 100  # bytes that surely fit into a socket's address


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one shim answered, or why there is no answer."""

    path: Path
    answer: Mapping[str, Any] | None = None
    error: str = ""
    gone: bool = False  # nobody serves the socket any more: its shim was killed


def ask(path: Path, request: Mapping[str, Any], *, timeout: float) -> Reply:
    """Ask one shim; blocks at most ``timeout`` seconds, and raises nothing."""
    return _ask([path], request, timeout=timeout)[0]


def ask_all(folder: Path, request: Mapping[str, Any], *, timeout: float = 1.0) -> tuple[Reply, ...]:
    """Ask all shims whose sockets are in a folder, in the order of their names; blocks at most ``timeout`` seconds in all."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".sock")
    except OSError:
        return ()
    return tuple(_ask(paths, request, timeout=timeout))


def _ask(paths: Iterable[Path], request: Mapping[str, Any], *, timeout: float) -> list[Reply]:
    line = json.dumps({"v": VERSION, **request}).encode() + b"\n"
    deadline = time.monotonic() + timeout
    talks = [_Conversation(path, line) for path in paths]
    with selectors.DefaultSelector() as selector:
        for talk in talks:
            if talk.socket is not None:
                selector.register(talk.socket, selectors.EVENT_WRITE, talk)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                talk = key.data
                talk.go_on()
                if talk.reply is not None:
                    selector.unregister(talk.socket)
                elif not talk.unsent:
                    selector.modify(talk.socket, selectors.EVENT_READ, talk)
    return [talk.ended(timeout) for talk in talks]


def connect(path: Path) -> socket.socket:
    """A connected socket that does not block. Raises OSError; PermissionError where another user serves it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        with _address(path) as address:
            made.connect(address)
        _check_owner(made)
    except BaseException:
        made.close()
        raise
    return made


class _Conversation:
    """One question to one socket, without blocking."""

    def __init__(self, path: Path, line: bytes) -> None:
        self.path = path
        self.unsent = line
        self.reply: Reply | None = None
        self._received: list[bytes] = []
        self._size = 0
        self.socket: socket.socket | None = None
        try:
            self.socket = connect(path)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            self.reply = Reply(path=path, error=f"nobody answers: {error.strerror}", gone=True)
        except OSError as error:  # EAGAIN: its backlog is full
            self.reply = Reply(path=path, error=f"can't be asked: {error.strerror}")

    def go_on(self) -> None:
        """Write or read what can be written or read now."""
        assert self.socket is not None  # noqa: S101 - for the type checker
        try:
            if self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
                return
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self.reply = Reply(path=self.path, error=f"broke off: {error.strerror}")
            return
        self._received.append(data)
        self._size += len(data)
        if not data or data.endswith(b"\n") or self._size > LARGEST:
            self.reply = self._parsed()

    def _parsed(self) -> Reply:
        try:
            answer = json.loads(b"".join(self._received))
        except ValueError:
            return Reply(path=self.path, error=f"answered {self._size} bytes that are no answer")
        if not isinstance(answer, dict):
            return Reply(path=self.path, error="answered something else than an object")
        return Reply(path=self.path, answer=answer)

    def ended(self, timeout: float) -> Reply:
        """The reply; where there is none yet, that it took too long."""
        if self.socket is not None:
            self.socket.close()
        return self.reply or Reply(path=self.path, error=f"did not answer within {timeout:g} s")


def _check_owner(connection: socket.socket) -> None:
    """Raise PermissionError if another user serves it; where the system does not tell, the folder's mode has to do."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is not None:
        owner = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, 12))[1]
        if owner != os.getuid():
            raise PermissionError(errno.EPERM, f"belongs to another user (uid {owner}): not asked")


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The path as a socket's address. One that is too long is reached through a descriptor of its folder (Linux)."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
