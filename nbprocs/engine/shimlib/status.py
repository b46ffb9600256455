"""What a shim answers to others: a unix socket, a line of JSON for a line of JSON. It answers while the kernel is blocked.

It can start nothing. The socket is ``<runtime folder>/shim-<kernel pid>-<random>.sock`` (see nbprocs.engine.places), mode 0600, and
the peer must be the same user. Requests, one a line, each with ``"v": 1``:

``{"op": "status"}``
    → ``{"v": 1, "shim": {…}, "children": [{…}], "strays": [{"pid", "start", "command"}]}``.
    A shim has "pid", "kernel_pid", "version", "started", "uptime", "detached" and "kernel_alive"; a child "id", "name", "pid", "start",
    "command" (masked), "status", "paused", "started", "cpu", "rss" and "threads". Times are seconds since the epoch, ``uptime`` and
    ``cpu`` seconds, ``rss`` bytes of the whole tree, ``start`` ticks since boot.
``{"op": "stop", "id": …, "grace": seconds}``
    → ``{"v": 1, "ok": true}`` when nobody of the tree is left, else ``"ok": false`` with the ``error`` and the ``survivors``.
``{"op": "pause" | "resume" | "interrupt", "id": …}``
    → ``{"v": 1, "ok": true}`` when it was carried out.
``{"op": "wait", "id": …}``
    → ``{"v": 1, "ok": true, "status": …}`` when it has ended, as wait() gives it; null where its shim could not see that.

What can't be answered: ``{"v": 1, "ok": false, "error": …}``.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from nbprocs.engine.shimlib import wire
from nbprocs.engine.shimlib.kids import Kid
from nbprocs.engine.shimlib.proc import TICK, command_of, read_proc

if TYPE_CHECKING:
    from nbprocs.engine.shimlib.server import Server

__all__ = ["Status"]

VERSION = 1
_MOST = 64  # connections at once: who waits for an end holds one
_LONGEST = 64 << 10  # bytes of a request
_DEFAULT_GRACE = 5.0
_SUN_PATH = 100  # bytes that surely fit into a socket's address


class Status:
    """The socket and its connections."""

    def __init__(self, server: Server, path: str) -> None:
        """Listen. Raises OSError."""
        self._server = server
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(self._listener, path)
            self._listener.listen(_MOST)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._asking: dict[int, _Asker] = {}
        server.watch(self._listener.fileno(), self._knock)

    def _knock(self, _: int) -> None:
        with contextlib.suppress(OSError):
            sock, _address = self._listener.accept()
            if len(self._asking) >= _MOST or not _same_user(sock):
                sock.close()
                return
            sock.setblocking(False)
            asker = _Asker(self, sock)
            self._asking[sock.fileno()] = asker
            self._server.watch(sock.fileno(), asker.ready)

    def leave(self, asker: _Asker) -> None:
        """It hung up."""
        fd = asker.sock.fileno()
        if self._asking.pop(fd, None) is not None:
            self._server.unwatch(fd)
            asker.sock.close()

    def watch(self, asker: _Asker, events: int) -> None:
        """Change what is waited for."""
        fd = asker.sock.fileno()
        self._server.unwatch(fd)
        self._server.watch(fd, asker.ready, events)

    def close(self) -> None:
        """End it, and take the socket's name away."""
        for asker in list(self._asking.values()):
            self.leave(asker)
        self._server.unwatch(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    # -- answers

    def answer(self, line: bytes, reply: _Asker) -> None:
        """Carry out a request; the answer may come later."""
        import json  # noqa: PLC0415 - half a megabyte: only where somebody asks

        try:
            request = json.loads(line)
            version, operation = request["v"], request["op"]
        except (ValueError, TypeError, KeyError):
            reply.say(_refusal('a request is a line of JSON like {"v": 1, "op": "status"}'))
            return
        if version != VERSION:
            reply.say(_refusal(f"version {version!r} is not spoken here, only {VERSION}"))
        elif operation == "status":
            reply.say(self._status())
        elif operation in self._server.operations:
            self._server.operations[operation](request, reply)
        elif operation in ("stop", "pause", "resume", "interrupt", "wait"):
            self._act(operation, request, reply)
        else:
            reply.say(_refusal(f"unknown operation {operation!r}; there are status, stop, wait, pause, resume and interrupt"))

    def _act(self, operation: str, request: dict[str, Any], reply: _Asker) -> None:
        server = self._server
        server.reap()
        kid = server.kids.of_id(str(request.get("id")))
        if kid is None:
            reply.say(_refusal(f"no live process with the id {request.get('id')!r}"))
            return
        if operation == "stop":
            grace = request.get("grace", _DEFAULT_GRACE)
            if not isinstance(grace, (int, float)) or isinstance(grace, bool) or not 0 <= grace < 1e9:  # noqa: PLR2004 - thirty years
                reply.say(_refusal(f"grace={grace!r}: it is a number of seconds"))
                return
            server.end_kid(kid, "stopped", grace=float(grace), over=lambda left: reply.say(_outcome(left)))
            return
        if operation == "wait":
            server.waiting.setdefault(kid.number, []).append(reply)
            return
        tending = server.tending
        {"pause": tending.pause, "resume": tending.resume, "interrupt": tending.interrupt}[operation](kid)
        if operation != "interrupt" and kid.link is not None:
            kid.link.tell(wire.PAUSED, kid.number, kid.paused)
        reply.say({"v": VERSION, "ok": True})

    def _status(self) -> dict[str, Any]:
        server = self._server
        server.reap()
        now, real = time.monotonic(), time.time()
        kids = tuple(server.kids)
        trees = server.looker.look([server.tending.claim_of(kid) for kid in kids])  # one look for all: there may be thousands
        return {
            "v": VERSION,
            "shim": {
                "pid": os.getpid(),
                "kernel_pid": server.kernel,
                "version": wire.VERSION,
                "started": server.started,
                "uptime": now - server.began,
                "detached": server.detached,
                "kernel_alive": server.kernel_alive,
            },
            "children": [self._child(kid, members, now, real) for kid, members in zip(kids, trees, strict=True)],
            "strays": [
                {"pid": found.pid, "start": found.start, "command": _masked(command_of(found.pid))} for found in server.looker.strays()
            ],
        }

    @staticmethod
    def _child(kid: Kid, members: dict[int, float], now: float, real: float) -> dict[str, Any]:
        row = read_proc(kid.pid)
        tree = [found for pid in members if (found := read_proc(pid)) is not None]
        return {
            "id": kid.label[0],
            "name": kid.label[1],
            "pid": kid.pid,
            "start": None if row is None else row.start,
            "command": kid.label[2] if kid.label[2] is not None else _masked(tuple(os.fsdecode(word) for word in kid.argv)),
            "status": "running",
            "paused": kid.paused,
            "started": real - (now - kid.started),
            "cpu": sum(found.utime + found.stime + found.reaped for found in tree) / TICK,
            "rss": sum(found.rss for found in tree),
            "threads": sum(found.threads for found in tree),
        }


class _Asker:
    """One connection."""

    def __init__(self, status: Status, sock: socket.socket) -> None:
        self._status = status
        self.sock = sock
        self._data = b""
        self.unsent: bytes = b""

    @property
    def open(self) -> bool:
        """Whether the other side has not hung up."""
        return self.sock.fileno() >= 0

    def ready(self, _: int) -> None:
        """Something came, or something can go."""
        if self.unsent:
            self._send()
            return
        try:
            data = self.sock.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._data += data
        if not data or len(self._data) > _LONGEST:
            self._status.leave(self)
            return
        *lines, self._data = self._data.split(b"\n")
        for line in lines:
            if line.strip():
                self._status.answer(line, self)

    def say(self, answer: dict[str, Any]) -> None:
        """One line; dropped if the other side has hung up."""
        import json  # noqa: PLC0415 - as above

        if self.open:
            self.unsent += json.dumps(answer).encode("ascii", "backslashreplace") + b"\n"
            self._send()

    def _send(self) -> None:
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except (BlockingIOError, InterruptedError):
            self._status.watch(self, select.POLLOUT)
            return
        except OSError:
            self.unsent = b""
            self._status.leave(self)
            return
        self._status.watch(self, select.POLLIN)


def _bind(sock: socket.socket, path: str) -> None:
    """Bind it for us alone, mode 0600. A path too long for a socket's address is reached through a descriptor of its folder."""
    before = os.umask(0o177)
    try:
        if len(os.fsencode(path)) <= _SUN_PATH:
            sock.bind(path)
            return
        folder, name = os.path.split(path)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sock.bind(f"/proc/self/fd/{fd}/{name}")
        finally:
            os.close(fd)
    finally:
        os.umask(before)


def _same_user(sock: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):  # the folder and the socket are for its owner alone
        return True
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(uid == os.geteuid())


def _refusal(why: str) -> dict[str, Any]:
    return {"v": VERSION, "ok": False, "error": why}


def _outcome(left: list[wire.Survivor]) -> dict[str, Any]:
    if not left:
        return {"v": VERSION, "ok": True}
    named = ", ".join(f"{one.name} (pid {one.pid})" for one in left)
    return {**_refusal(f"still there after SIGKILL: {named}"), "survivors": [{"pid": one.pid, "name": one.name} for one in left]}


def _masked(argv: tuple[str, ...]) -> str:
    from nbprocs.redact import mask_command  # noqa: PLC0415 - regular expressions: only where somebody asks

    if argv[:2] == ("/bin/sh", "-c") and len(argv) == 3:  # noqa: PLR2004
        return mask_command((argv[2],), shell=True)  # noqa: S604 - how it is shown
    return mask_command(argv)
