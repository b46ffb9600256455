"""The live output of one process, as a terminal shows it.

::

    OutputLog (bytes by offset) ── wait ──►  PaneJournal (who wrote when)  ── budget ──►  segments + raw bytes  ──►  terminal

The log stays the truth: a pane that is shown again, or a tab that is reloaded, is filled from it. Past the byte budget the oldest
waiting bytes are skipped, which is said where they would have been; they can still be read, by paging back or by the download.
"""

import asyncio
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from nbprocs.checks import like
from nbprocs.display import Html, plain
from nbprocs.engine.home import Tasks
from nbprocs.model import Stream
from nbprocs.processes.process import process_core
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.bell import hear, ring, rung
from nbprocs.widgets.python_line import spawn_line
from nbprocs.widgets.record import ending, process_html, status_word
from nbprocs.widgets.wire import Delta, Refused, choice, flag, number, op, text

__all__ = ["Budget", "OutputPane", "PaneJournal", "PanePart"]

RATE = 256_000  # bytes a second to the front ends
BURST = 128_000  # bytes at once after a pause
REFILL = 256_000  # bytes of each stream that a new front end gets
PAGE = 500_000  # bytes of a page, at most: with _ROWS lines, wrapped at 80 columns, the 20,000 rows of the terminal hold it
_ROWS = 10_000  # lines of a page
FILE_PART = 2_000_000  # bytes in one message of a download
FILE_LIMIT = 1 << 30
_LIVE_EVERY = 0.5  # seconds
_RECORD_EVERY = 2.0  # seconds: who writes the record waits longer anyhow
_LINE = 500  # how far a cut may move to fall on a line's end
_AFTER = 2000  # bytes shown below what was found


class Budget:
    """Bytes that may go out now: a bucket filled at a rate, holding no more than a burst."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = 0.0

    def left(self, now: float) -> int:
        """How many bytes may go out at this time."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) if self._at else self._burst
        self._at = now
        return int(self._left)

    def take(self, size: int) -> None:
        """So many went out."""
        self._left -= size


class PaneJournal:
    """In which order the streams wrote: segments ``(stream, start, end)``, as seen; old ones are forgotten."""

    def __init__(self, limit: int = REFILL) -> None:
        self._limit = limit
        self._held = 0
        self.segments: deque[tuple[Stream, int, int]] = deque()

    def add(self, stream: Stream, start: int, end: int) -> None:
        """The stream's log grew from start to end."""
        if end <= start:
            return
        self._held += end - start
        if self.segments and self.segments[-1][0] is stream and self.segments[-1][2] == start:
            start = self.segments.pop()[1]
        self.segments.append((stream, start, end))
        while (oldest := self.segments[0][2] - self.segments[0][1]) <= self._held - self._limit:
            self.segments.popleft()
            self._held -= oldest


def newest(segments: Iterable[tuple[Stream, int, int]], allowed: int) -> tuple[list[tuple[Stream, int, int]], int]:
    """The newest segments of at most ``allowed`` bytes together, in order, and how many bytes were left out.

    >>> newest([(Stream.STDOUT, 0, 100), (Stream.STDERR, 0, 10)], 30)
    ([(<Stream.STDOUT: 'stdout'>, 80, 100), (<Stream.STDERR: 'stderr'>, 0, 10)], 80)
    """
    kept: list[tuple[Stream, int, int]] = []
    skipped = 0
    for stream, start, end in reversed(list(segments)):
        size = min(end - start, max(allowed, 0))
        skipped += end - start - size
        allowed -= size
        if size:
            kept.append((stream, end - size, end))
    return kept[::-1], skipped


def _bytes(log: Any, start: int, end: int) -> tuple[int, bytes]:
    """What the log has of ``[start, end)`` and where that begins; one read gives what lies together, on disk or in memory."""
    position, data = log.read(start, end - start)
    chunks = [data[: max(end - position, 0)]]
    at = position + len(chunks[0])
    while chunks[-1] and at < end:
        _, data = log.read(at, end - at)
        chunks.append(data)
        at += len(data)
    return position, b"".join(chunks)


class PanePart(Part):
    """One process's output, status and stdin."""

    kind = "pane"

    def __init__(self, process: Any) -> None:
        self._process = like("process", process, ("config", "stdout", "stderr", "status"), "a ManagedProcess")
        self._journal = PaneJournal()
        self._waiting: deque[tuple[Stream, int, int]] = deque()
        self._budget = Budget()
        self._seen = dict.fromkeys(Stream, 0)
        self._watchers: list[Any] = []
        self._head: dict[str, Any] = {}
        self._line = spawn_line(process.config)

    def _log(self, stream: Stream) -> Any:
        return self._process.stdout if stream is Stream.STDOUT else self._process.stderr

    # -- models

    def attach(self, host: Host) -> None:
        """Watch both logs and the end."""
        super().attach(host)
        self._waiting.clear()
        self._catch_up()
        self._head = self._header()
        self._watchers = [host.tasks.start(self._watch(stream), name=f"pane {stream}") for stream in Stream]
        self._watchers.append(host.tasks.start(self._watch_end(), name="pane end"))
        hear(self, on=True)

    def _catch_up(self) -> None:
        """Take in what came before anybody looked: the youngest runs in the order in which they came, what is before them by stream."""
        ends = (self._process.stdout.end, self._process.stderr.end)
        known = [(list(Stream)[which], begin, end) for which, begin, end in process_core(self._process).order.runs(ends)]
        for stream in Stream:
            log = self._log(stream)
            if self._seen[stream] == 0:
                self._seen[stream] = max(log.start, log.end - REFILL)
            self._journal.add(stream, self._seen[stream], next((begin for of, begin, _ in known if of is stream), log.end))
        for stream, begin, end in known:
            self._journal.add(stream, max(begin, self._seen[stream]), end)
        self._seen = dict(zip(Stream, ends, strict=True))

    def detach(self) -> None:
        """Stop watching."""
        hear(self, on=False)
        for task in self._watchers:
            task.cancel()
        self._watchers = []

    def bell_changed(self, process_id: str) -> None:
        """The bell of that process was set or taken back, perhaps by another view."""
        self.host.carry(self._on_bell)(process_id)

    def _on_bell(self, process_id: str) -> None:
        if process_id == self._process.id:
            self.host.want(self)

    async def _watch(self, stream: Stream) -> None:
        log = self._log(stream)
        while True:
            await log.wait(self._seen[stream])
            if log.end == self._seen[stream]:  # closed, and all of it seen
                self.host.want(self)
                return
            start, self._seen[stream] = self._seen[stream], log.end
            self._journal.add(stream, start, log.end)
            self._waiting.append((stream, start, log.end))
            self.host.want(self)

    async def _watch_end(self) -> None:
        await self._process.wait()
        self.host.want(self)

    # -- what the front ends get

    def _header(self) -> dict[str, Any]:
        info = self._process.info
        return {
            "id": info.id,
            "name": plain(info.name, limit=120),
            "cmd": plain(info.config.display, limit=400),
            "status": status_word(info),
            "pid": info.pid,
            "start": round(info.created_at.timestamp(), 2),
            "took": None if info.status.live else round(info.execution_time, 3),
            "end": plain(ending(info)),
            "stdin": info.config.stdin is True and info.status.live,
            "pty": bool(info.config.pty),
            "cwd": str(pathlib.Path(info.config.working_dir or ".").absolute()),
            "py": self._line,
            "dropped": info.dropped_bytes,
            "told": rung(info),
        }

    def _segments(self, segments: Iterable[tuple[Stream, int, int]]) -> tuple[list[list[Any]], tuple[bytes, ...], int]:
        """``[stream, bytes, lost before it]`` by segment, with all the bytes in one buffer."""
        listed: list[list[Any]] = []
        chunks: list[bytes] = []
        for stream, start, end in segments:
            position, data = _bytes(self._log(stream), start, end)
            lost = min(position, end) - start
            if data or lost:
                listed.append([stream.value, len(data), lost])
                chunks.append(data)
        whole = b"".join(chunks)
        return listed, (whole,) if whole else (), len(whole)

    def snapshot(self) -> Delta:
        """The last of both streams, in the order in which they were written as far as it was seen."""
        # what still waits for the budget comes with the next deltas, to this front end as well
        sent = self._seen | {stream: start for stream, start, _ in reversed(self._waiting)}
        known = [(stream, start, min(end, sent[stream])) for stream, start, end in self._journal.segments if start < sent[stream]]
        segments, _ = newest(known, REFILL)
        earlier = {stream.value: next((start for s, start, _ in segments if s is stream), self._log(stream).start) for stream in Stream}
        listed, buffers, size = self._segments(segments)
        more = any(earlier[stream.value] > self._log(stream).start for stream in Stream)
        content = {"head": self._head, "now": time.time(), "out": listed, "more": more, "ends": {s.value: self._log(s).end for s in Stream}}
        return Delta(content=content, buffers=buffers, size=500 + size)

    def delta(self) -> Delta | None:
        """``out`` segments, ``skip`` bytes left out before them, ``head`` when it changed."""
        content: dict[str, Any] = {}
        buffers: tuple[bytes, ...] = ()
        size = 0
        if self._waiting:
            segments, skipped = newest(self._waiting, self._budget.left(time.monotonic()))
            if segments:
                self._waiting.clear()
                content["out"], buffers, size = self._segments(segments)
                self._budget.take(size)
                if skipped:
                    content["skip"] = skipped
            else:
                self.host.want(self, after=0.1)
        head = self._header()
        if head != self._head:
            self._head = content["head"] = head
        return Delta(content=content, buffers=buffers, size=250 + size) if content else None

    @property
    def over(self) -> bool:  # type: ignore[override]
        """The process has ended."""
        return not self._process.status.live

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """The process lives."""
        return not self.over

    def html(self) -> Html:
        """The static record."""
        return process_html(self._process.info, output=self._process.tail(10))

    def watch_record(self, changed: Callable[[], None], *, live: bool) -> Callable[[], None]:
        """After the process has ended, and now and then while it writes."""
        tasks = Tasks(process_core(self._process).home)
        every = _LIVE_EVERY if live else _RECORD_EVERY

        async def follow() -> None:
            seen = 0
            while self._process.status.live:
                await process_core(self._process).more_output(seen)
                seen = self._process.stdout.end + self._process.stderr.end
                changed()
                await asyncio.sleep(every)

        async def end() -> None:
            await self._process.wait()
            following.cancel()  # it may rest for seconds yet
            changed()

        following = tasks.start(follow(), name="record of a pane")
        ending = tasks.start(end(), name="record of a pane's end")

        def stop() -> None:
            following.cancel()
            ending.cancel()

        return stop

    # -- what the front ends may do

    @op(text=text(1_000_000), newline=flag)
    async def send(self, text: str, *, newline: bool = True) -> None:
        """Write to its stdin."""
        await (self._process.send_line(text) if newline else self._process.send(text))

    @op(rows=number(2, 500), columns=number(10, 1000))
    def resize(self, rows: float, columns: float) -> None:
        """Tell a program on a pseudo-terminal how large it is."""
        if self._process.config.pty and self._process.status.live:
            self._process.resize(int(rows), int(columns))

    @op(on=flag)
    def bell(self, *, on: bool) -> None:
        """Tell of its end, or not."""
        ring(self._process, on=on)

    @op()
    async def close_stdin(self) -> None:
        """End its stdin."""
        await self._process.close_stdin()

    @op()
    async def stop(self) -> None:
        """SIGTERM, grace, SIGKILL."""
        await self._process.stop()

    @op(stream=choice(*(s.value for s in Stream)), position=number(0, 2**53))
    def file(self, stream: str, position: float = 0) -> Delta:
        """The next part of the whole log: bytes from a position on, and where the log ends."""
        log = self._log(Stream(stream))
        if log.end - log.start > FILE_LIMIT:
            msg = f"{log.end - log.start:,} bytes are too many for a browser; read them with proc.{stream}.read() in a cell"
            raise Refused(msg)
        start = max(int(position), log.start)
        at, data = _bytes(log, start, min(start + FILE_PART, log.end))
        return Delta(content={"at": at, "next": at + len(data), "end": log.end}, buffers=(data,))

    @op(stream=choice(*(s.value for s in Stream)), before=number(0, 2**53))
    def page(self, stream: str, before: float) -> Delta:
        """The part of the log that ends at a position, cut at a line's end, and no more than the terminal can hold."""
        log = self._log(Stream(stream))
        until = max(min(int(before), log.end), log.start)
        at, data = _bytes(log, max(until - PAGE, log.start), until)
        if at > log.start and (cut := data.find(b"\n", 0, _LINE)) >= 0:
            at, data = at + cut + 1, data[cut + 1 :]
        if data.count(b"\n") > _ROWS:
            cut = len(data.rsplit(b"\n", _ROWS + 1)[0]) + 1
            at, data = at + cut, data[cut:]
        return Delta(content={"at": at, "end": until, "first": log.start, "last": log.end}, buffers=(data,))

    @op(stream=choice(*(s.value for s in Stream)), text=text(1000), before=number(0, 2**53), exact=flag)
    async def find(self, stream: str, text: str, before: float = 2**53, *, exact: bool = False) -> Delta:
        """The page around the last place before a position where the log has a text; without a buffer where there is none.

        The terminal holds the last lines only; this looks through all of the log, a page a turn of the loop. Without ``exact`` the
        case of ASCII letters does not matter.
        """
        log, wanted = self._log(Stream(stream)), text.encode() if exact else text.encode().lower()
        end = min(int(before), log.end)
        while wanted and end > log.start:
            begin = max(end - PAGE, log.start)
            at, data = _bytes(log, begin, end)
            if (found := (data if exact else data.lower()).rfind(wanted)) >= 0:
                place = at + found + len(wanted)
                _, below = _bytes(log, place, min(place + _AFTER, log.end))
                return self.page(stream, place + (below.rfind(b"\n") + 1 or len(below)))
            if begin == log.start:
                break
            end = begin + len(wanted) - 1  # it may lie across two pages
            await asyncio.sleep(0)
        return Delta(content={"at": 0, "end": 0, "first": log.start, "last": log.end})


class OutputPane(View):
    """A terminal with the output of one process: follows, searches the whole log, wraps or not, sends to stdin, downloads the log.

    >>> async with ProcessManager() as pm:
    ...     OutputPane(await pm.spawn("cat", stdin=True), height=200).close()
    """

    def __init__(self, process: Any, *, height: int = 300) -> None:
        super().__init__({"pane": PanePart(process)}, model=process, home=process_core(process).home, height=height)
