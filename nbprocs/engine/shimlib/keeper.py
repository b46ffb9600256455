"""The shim of one detached process: outlives the kernel that started it, holds its pipes, writes its log and its record, answers.

::

    launcher ──order on stdin──► double fork, own session ──► Keeper ──► child
        ▲ {"pid"} or {"refused"} ◄──────────────────────────────┘ │
                                                                  ├──► <state folder>/detached/<id>/  record.json, stdout.…, stderr.…
    any kernel, the command line, the panel ◄── status socket ────┘

It speaks what every shim speaks (nbprocs.engine.shimlib.status), and besides, each with ``"v": 1``:

``{"op": "follow"}`` → ``{"ok": true, …}`` and then, on the same connection, a line for each event: ``{"event": "output", "stdout": end,
    "stderr": end}``, ``{"event": "paused", "paused": bool}``, ``{"event": "ending", "reason"}``, ``{"event": "tree_ended", "survivors"}``,
    ``{"event": "exited", "report": [as in wire.Exited], "reason"}`` and, last of all, ``{"event": "ended"}``.
``{"op": "output", "stream": "stdout", "offset": n, "size": n}`` → ``{"ok", "offset", "data" (base64), "end", "ended"}``; without
    "stream" both, in the order in which they came, and the offsets count both
``{"op": "write", "data" (base64)}`` → ``{"ok": true}`` when all of it is in the pipe; ``{"op": "close_stdin"}``
``{"op": "end", "grace": seconds, "reason"}`` → ``{"ok", "survivors"}``: the whole tree, also where the process itself has ended
``{"op": "signal", "number"}``, ``{"op": "resize", "rows", "columns"}``
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

from nbprocs.engine.shimlib import wire
from nbprocs.engine.shimlib.links import ShimLink
from nbprocs.engine.shimlib.order import OrderWriter, read_both
from nbprocs.engine.shimlib.record import Record, looked_at
from nbprocs.engine.shimlib.segments import READ, Segments, read_segment, segments_of
from nbprocs.engine.shimlib.server import Server

__all__ = ["Keeper"]

DRAIN = 0.1  # seconds that a pipe may stay open after the process has gone
QUIET = 0.01  # seconds between two words to a follower about output
TURNS = 8  # reads of one descriptor before others get their turn
_PIPE = 1 << 20  # bytes
WHOLE = _PIPE // READ + 1  # reads that empty a pipe, whatever goes on being written
_LARGEST = 4 << 20  # bytes of output in one answer
NUMBER = 1  # there is one child
STREAMS = ("stdout", "stderr")


class Keeper(Server):
    """See the module's text. ``order`` is what nbprocs.engine.detaching sent; ``reply`` tells the starter once."""

    detached = True

    def __init__(self, order: dict[str, Any], reply: Callable[[dict[str, Any]], None]) -> None:
        base = wire.new_base()
        token = order["token"]
        nobody, end = socket.socketpair()
        end.close()
        super().__init__(ShimLink(nobody), kernel=order["kernel"], base=base, token=token, inherits=False)
        self._order_given = order
        self._start_order = wire.StartOrder._make(order["start"])
        self._reply = reply
        self._logs = {stream: Segments(order["folder"], stream, limit=order["limit"]) for stream in STREAMS}
        self._sequence = OrderWriter(order["folder"])
        self._readers: dict[int, str] = {}
        self._stdin = -1
        self._unwritten: list[tuple[memoryview, Any]] = []  # with who wants to know; an empty one closes it
        self._last_byte = b"\n"
        self._followers: list[Any] = []
        self._telling: Any = None
        self._told = 0.0
        self._exit: wire.Exited | None = None
        self._endings = 0
        self._over = False
        self._reason: str | None = None
        self.fd = -1
        self.environments: dict[int, Any] = {0: order["environment"]}
        self.record: Record = Record(order["folder"], order["about"])
        self.operations: dict[str, Callable[[dict[str, Any], Any], None]] = {
            name: getattr(self, f"_op_{name}") for name in ("follow", "output", "write", "close_stdin", "end", "signal", "resize", "rename")
        }

    # -- start

    def meet_kernel(self) -> None:
        """Instead of a kernel there is an order."""
        order = self._order_given
        os.mkdir(order["folder"], 0o700)
        self.record.write(
            state="starting", shim={"pid": os.getpid(), "start": _start_of(os.getpid())}, socket=order["socket"], created=time.time()
        )
        self.serve(order["socket"])
        fields = self._start_order
        self._theirs, places = self._open_terminal(order) if fields.pty else self._open_pipes(order)
        self._start(self, fields._replace(tag=wire.tag_of_child(self.looker.base, 1, NUMBER), places=places))

    def _open_pipes(self, order: dict[str, Any]) -> tuple[list[int], tuple[int, int, int]]:
        theirs: list[int] = []
        inp = -1
        if order["stdin"]:
            other, self._stdin = os.pipe()
            os.set_blocking(self._stdin, False)
            theirs.append(other)
            inp = 0
        for stream in STREAMS[: 1 if order["merge_stderr"] else 2]:
            ours, other = os.pipe()
            os.set_blocking(ours, False)
            with contextlib.suppress(OSError, AttributeError):  # over the quota: the default size does as well
                fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIPE)
            self._readers[ours] = stream
            theirs.append(other)
        return theirs, (inp, inp + 1, len(theirs) - 1)

    def _open_terminal(self, order: dict[str, Any]) -> tuple[list[int], tuple[int, int, int]]:
        master, slave = os.openpty()
        os.set_blocking(master, False)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._readers[master] = "stdout"
        if order["stdin"]:
            self._stdin = os.dup(master)
        return [slave], (0 if order["stdin"] else -1, 0, 0)

    # -- what the server tells whom it takes for a link

    def descriptors(self) -> list[int]:
        """For the child."""
        return self._theirs

    def tell(self, *message: Any) -> None:
        """Something happened to the child."""
        match message:
            case (wire.STARTED, _, pid):
                self._child_started(pid)
            case (wire.REFUSED, _, step, number, text):
                self._child_refused(step, number, text)
            case (wire.EXITED, *report):
                self._child_ended(wire.Exited._make(report))
            case (wire.ENDING, _, reason):
                self._endings += 1
                self._blame(reason)
                self._announce({"event": "ending", "reason": reason})
            case (wire.ENDED, _, survivors):
                self._announce({"event": "tree_ended", "survivors": survivors})
                self._one_ending_less()
            case (wire.PAUSED, _, paused):
                self._announce({"event": "paused", "paused": paused})

    def _child_started(self, pid: int) -> None:
        self.record.write(state="running", pid=pid, start=_start_of(pid), started=time.time())
        self._reply({"pid": pid, "start": self.record.fields["start"], "error": self.record.error})
        for fd in self._readers:
            self.watch(fd, self._readable)

    def _child_refused(self, step: str, number: int, text: str) -> None:
        if self.status is not None:
            self.status.close()
            self.status: Any = None
        folder = self._order_given["folder"]
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)
        self._reply({"refused": (step, number, text)})
        self._done = True

    def _blame(self, reason: str) -> None:
        if self._reason is None and self._exit is None:
            self._reason = reason

    # -- output

    def _readable(self, fd: int, turns: int = TURNS) -> None:
        stream = self._readers[fd]
        log = self._logs[stream]
        self._sequence.turn(int(stream == "stderr"), self._logs["stdout" if stream == "stderr" else "stderr"].end)
        for _ in range(turns):
            try:
                moved = log.take(fd)
            except (BlockingIOError, InterruptedError):
                break
            if not moved:
                self._close_reader(fd)
                break
        self._tell_of_output()

    def _close_reader(self, fd: int) -> None:
        self.unwatch(fd)
        del self._readers[fd]
        os.close(fd)
        if not self._readers and self._exit is not None:
            self._drained()

    def _tell_of_output(self) -> None:
        """At once if nothing was said lately, so that a prompt is seen; else a moment later, for all that comes until then."""
        if not self._followers or self._telling is not None:
            return
        now = time.monotonic()
        if now - self._told >= QUIET:
            self._say_ends()
        else:
            self._telling = self.timers.at(self._told + QUIET, self._say_ends)

    def _say_ends(self) -> None:
        self._telling = None
        self._told = time.monotonic()
        self._announce({"event": "output", **self._ends()})

    def _ends(self) -> dict[str, int]:
        return {stream: log.end for stream, log in self._logs.items()}

    # -- the end

    def _child_ended(self, report: wire.Exited) -> None:
        self._exit = report
        self._close_input()
        if not self._readers:
            self._drained()
            return
        for fd in list(self._readers):  # what the process itself wrote is in the pipes by now
            self._readable(fd, WHOLE)
        if self._readers:
            self.timers.at(time.monotonic() + DRAIN, self._late)

    def _late(self) -> None:
        """Somebody else holds its pipes still. This may come late: what has come is read before they are closed."""
        for fd in list(self._readers):
            self._readable(fd, WHOLE)
        for fd in list(self._readers):
            self._close_reader(fd)

    def _drained(self) -> None:
        for log in self._logs.values():
            log.close()
        self._sequence.close()
        report = self._exit or wire.Exited(NUMBER, None, time.monotonic(), None, None)
        self.record.write(
            state="ended",
            **{name: value for name, value in report._asdict().items() if name not in {"number", "at"}},
            ended=time.time(),
            execution_time=report.at - self.began,
            reason=self._reason,
            dropped={stream: log.dropped for stream, log in self._logs.items()},
            ends=self._ends(),
        )
        self._say_ends()
        self._announce(self._exit_event())
        self._one_ending_less(0)

    def _exit_event(self) -> dict[str, Any]:
        return {"event": "exited", "report": self._exit, "reason": self._reason}

    def _one_ending_less(self, less: int = 1) -> None:
        """The result waits for endings under way: a wait must not return before the tree is gone."""
        self._endings -= less
        if self._exit is not None and not self._readers and self._endings <= 0 and not self._over:
            self._over = True
            self._announce({"event": "ended"})

    def _complain(self, error: Exception) -> None:
        """Say it in the record: nobody else may be there to hear it."""
        import traceback  # noqa: PLC0415 - only in trouble

        self.record.write(trouble="".join(traceback.format_exception(error)))
        time.sleep(0.01)

    def after_turn(self) -> None:
        """Leave when there is nothing to look after any more: the record tells the rest."""
        if self._over and not self.tending.next() and self._childless() and not any(asker.unsent for asker in self._followers):
            if self.record.error:
                self.record.write()  # the disk may have room again
            self._done = True

    # -- input

    def _op_write(self, request: dict[str, Any], reply: Any) -> None:
        data = base64.b64decode(request.get("data", ""))
        if self._stdin < 0:
            reply.say(_refusal("its stdin is closed"))
            return
        self._unwritten.append((memoryview(data), reply))
        self._write()

    def _op_close_stdin(self, _: dict[str, Any], reply: Any) -> None:
        if self._stdin < 0:
            reply.say(_OK)
            return
        self._unwritten.append((memoryview(b""), reply))
        self._write()

    def _write(self, _: int = -1) -> None:
        while self._unwritten and self._stdin >= 0:
            view, reply = self._unwritten[0]
            try:
                if view:
                    sent = os.write(self._stdin, view)
                    self._last_byte = bytes(view[sent - 1 : sent])
                    if sent < len(view):
                        self._unwritten[0] = (view[sent:], reply)
                        continue
                else:
                    self._end_input()  # answers all who wait, this one too
                    return
            except (BlockingIOError, InterruptedError):
                self.watch_once(self._stdin, self._write, select.POLLOUT)
                return
            except OSError as error:
                self._unwritten.pop(0)
                reply.say(_refusal(f"it does not read its stdin any more: {error.strerror}"))
                continue
            self._unwritten.pop(0)
            reply.say(_OK)
        if self._stdin >= 0:
            self.unwatch(self._stdin)

    def _end_input(self) -> None:
        """A terminal is sent its end-of-file character, twice in the middle of a line, if it reads lines."""
        if self._order_given["pty"]:
            with contextlib.suppress(OSError, termios.error):
                settings = termios.tcgetattr(self._stdin)
                if settings[3] & termios.ICANON:
                    end = settings[6][termios.VEOF]
                    os.write(self._stdin, end if self._last_byte in (b"\n", end) else end * 2)
        self._close_input()

    def _close_input(self) -> None:
        if self._stdin >= 0:
            self.unwatch(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
        waiting, self._unwritten = self._unwritten, []
        for view, reply in waiting:
            reply.say(_refusal("it has ended") if view else _OK)

    def watch_once(self, fd: int, handler: Callable[[int], object], events: int) -> None:
        """Call it when the descriptor is ready; asking again while it waits changes nothing."""
        self.unwatch(fd)
        self.watch(fd, handler, events)

    # -- other operations

    def _op_follow(self, _: dict[str, Any], reply: Any) -> None:
        looked_at(self._order_given["folder"])  # before the answer: who has it may look
        self._followers = [asker for asker in self._followers if asker.open]
        kid = self.kids.by_number.get(NUMBER)
        reply.say({**_OK, **self._ends(), "paused": kid is not None and kid.paused})
        self._followers.append(reply)
        if self._exit is not None and not self._readers:
            reply.say(self._exit_event())
        if self._over:
            reply.say({"event": "ended"})

    def _announce(self, event: dict[str, Any]) -> None:
        for asker in self._followers:
            if not (event["event"] == "output" and asker.unsent):  # who does not read hears the later number
                asker.say(event)
        self._followers = [asker for asker in self._followers if asker.open]

    def _op_output(self, request: dict[str, Any], reply: Any) -> None:
        stream, offset, size = request.get("stream"), request.get("offset", 0), request.get("size", 1 << 20)
        if stream not in (None, *STREAMS) or not isinstance(offset, int) or offset < 0 or not isinstance(size, int) or size <= 0:
            reply.say(_refusal("output is asked for by stream, offset and size"))
            return
        looked_at(self._order_given["folder"])
        folder, size, ends = self._order_given["folder"], min(size, _LARGEST), self._ends()
        if stream is None:
            position, data = read_both(
                folder, offset, size, (ends["stdout"], ends["stderr"]), lambda which, *place: read_segments(folder, STREAMS[which], *place)
            )
        else:
            position, data = read_segments(folder, stream, offset, size)
        end = sum(ends.values()) if stream is None else ends[stream]
        ended = self._exit is not None and not self._readers
        reply.say({**_OK, "offset": position, "data": base64.b64encode(data).decode(), "end": end, "ended": ended})

    def _op_end(self, request: dict[str, Any], reply: Any) -> None:
        grace = request.get("grace", 5.0)
        if not isinstance(grace, (int, float)) or not 0 <= grace < 1e9:  # noqa: PLR2004 - thirty years
            reply.say(_refusal(f"grace={grace!r}: it is a number of seconds"))
            return
        self.reap()
        kid = self.kids.by_number.get(NUMBER)
        number, leader_first = self._start_order.stop[:2]
        claim = self.looker.claim(number=NUMBER, manager=1, pid=self.record.fields.get("pid", 0), token=self.looker.token, strays=True)
        self._blame(str(request.get("reason", "stopped")))
        self._endings += 1

        def over(left: list[wire.Survivor]) -> None:
            self.tell(wire.ENDED, NUMBER, tuple(tuple(one) for one in left))
            reply.say({**_OK, "survivors": [tuple(one) for one in left]})

        self._announce({"event": "ending", "reason": self._reason or "stopped", "by": request.get("by")})
        self.tending.end(claim, number=number, leader_first=leader_first, grace=grace, leader=kid.pid if kid else 0, over=over)

    def _op_signal(self, request: dict[str, Any], reply: Any) -> None:
        kid, number = self.kids.by_number.get(NUMBER), request.get("number")
        if kid is None or number not in set(signal.valid_signals()):
            reply.say(_refusal("it has ended" if kid is None else f"{number!r} is no signal"))
            return
        self._signal(kid, int(number))
        reply.say(_OK)

    def _op_rename(self, request: dict[str, Any], reply: Any) -> None:
        name, kid = request.get("name"), self.kids.by_number.get(NUMBER)
        if kid is None or not isinstance(name, str):
            reply.say(_refusal("it has ended" if kid is None else f"{name!r} is no name"))
            return
        kid.rename(name)
        self.record.write(name=name)
        reply.say(_OK)

    def _op_resize(self, request: dict[str, Any], reply: Any) -> None:
        rows, columns = request.get("rows"), request.get("columns")
        master = next(iter(self._readers), -1)
        if self._order_given["pty"] and master >= 0:
            with contextlib.suppress(OSError, struct.error):
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        reply.say(_OK)


_OK = {"v": 1, "ok": True}


def _refusal(why: str) -> dict[str, Any]:
    return {"v": 1, "ok": False, "error": why}


def _start_of(pid: int) -> float:
    from nbprocs.engine.shimlib.proc import read_proc  # noqa: PLC0415 - the package is known only now

    row = read_proc(pid)
    return 0.0 if row is None else row.start


def read_segments(folder: str, stream: str, offset: int, size: int) -> tuple[int, bytes]:
    """Up to ``size`` bytes of a stream's log from an offset on, with the offset where they really begin: past dropped ones a later one."""
    found = segments_of(folder, stream)
    for segment in [one for one in found if one[0] <= offset][-1:] + [one for one in found if one[0] > offset]:
        at = max(offset, segment[0])
        with contextlib.suppress(OSError), open(os.path.join(folder, segment[1]), "rb", buffering=0) as file:
            if data := read_segment(file.fileno(), segment, at, size):
                return at, data
    return offset, b""


def main(become_subreaper: Callable[[], None]) -> None:
    """Run by shim_main: the order comes on stdin; the answer goes to stdout. Both are given back before anything else happens."""
    import marshal  # noqa: PLC0415

    with open(0, "rb", closefd=False) as file:
        try:
            order = marshal.load(file)  # noqa: S302 - from the kernel that started us
        except (EOFError, ValueError, TypeError):  # the kernel was killed before it had said all of it: there is nothing to start
            os._exit(0)
    if os.fork():
        os._exit(0)
    os.setsid()
    become_subreaper()
    answer = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)  # no number that is given away below: a kernel may have no stderr
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:  # noqa: PLR2004 - the standard ones
        os.close(null)
    os.chdir("/")

    def reply(said: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the kernel has gone meanwhile: the record tells
            os.write(answer, marshal.dumps(said))
        with contextlib.suppress(OSError):
            os.close(answer)

    try:
        Keeper(order, reply).run()
    except BaseException as error:
        reply({"refused": ("shim", getattr(error, "errno", 0) or 0, f"its shim could not be made: {error}")})
        raise
