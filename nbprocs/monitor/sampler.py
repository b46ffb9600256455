"""The sampler: all watched trees from one look at the process table, as the rows of one moment.

::

      asks (who, with what only the home loop knows)
        │  worker thread
        ▼
      Forest.scan ──► members of each tree ──► CPU, descriptors, I/O      every tick
                                          └──► PSS and USS, ports         seldom, within a time budget
        ▼
      columns: one TREE row a root, a PROCESS row a member of a tree of several, one GROUP row a manager or pool

CPU is a difference of two readings: the first one of a process is NaN, never 0. A tree's CPU holds the work of children that came and went
between two ticks as well: the kernel adds it to the parent that reaped them.
"""

import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from nbprocs.engine.forest import Forest, Member
from nbprocs.engine.handles import listening_inodes
from nbprocs.engine.table import ON_LINUX, TICK, Identity
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.history import COLUMNS
from nbprocs.monitor.limits import Limits, read_limits
from nbprocs.monitor.model import Scope, State

__all__ = ["Ask", "GroupAsk", "Sample", "Sampler"]

NAN = float("nan")
MIB = 1 << 20
EXACT_EVERY = 10.0  # seconds between two readings of a tree's PSS, at least, where it matters: of several processes, or big
EXACT_SMALL = 60.0  # … of one small process, whose PSS is little and whose pages are its own
BIG = 64 << 20
PORTS_EVERY = 60.0  # … of its ports, unless its number of descriptors changed
PORTS_SOON = 2.0
PORTS_PASS = 5.0  # … of two readings of /proc/net/tcp: the kernel walks its whole table of connections for one, milliseconds
LIMITS_EVERY = 30.0
COUNTED = 8 << 20  # bytes of a process's output in which lines are counted, a tick: 2 ms
SHARE = 0.0003  # of the interval: the time that PSS may take in one tick, on average
PORTS_SHARE = 0.002  # … and the ports, in one tick
CREDIT = 0.005  # seconds that PSS may have saved up: the first look at a few processes has theirs
COSTLY = 500  # a tree whose PSS takes t is asked at most every 500 t: a process of many gigabytes takes milliseconds
_LETTERS = {"R": State.RUNNING, "S": State.SLEEPING, "I": State.SLEEPING, "D": State.BLOCKED, "T": State.STOPPED, "t": State.STOPPED}
_LETTERS |= {"Z": State.ZOMBIE, "X": State.ZOMBIE}
_FIELDS = tuple(COLUMNS)[1:]
UNKNOWN = (-1, -1)
NO_GPU = (NAN, NAN)
Seen = tuple[int, float, float, int]  # pid, start, ticks with those of reaped children, parent


class Output(Protocol):
    """What is needed of an OutputLog: its end, and its bytes from an offset."""

    end: int

    def read(self, position: int, size: int) -> tuple[int, bytes]:
        """See nbprocs.engine.output."""


class Ask(NamedTuple):
    """One watched process, with what the home loop counts for it."""

    code: int  # of its series
    identity: Identity
    name: str
    process_id: str
    group: int = -1  # code of the group it belongs to
    restarts: int = 0
    errors: int = 0
    successes: int = 0
    error_rate: float = NAN
    response: float = NAN
    output: tuple[Output, ...] | None = None  # its streams; None: not our child


class GroupAsk(NamedTuple):
    """A manager or a pool."""

    code: int
    name: str
    process_id: str
    errors: int = 0
    successes: int = 0
    error_rate: float = NAN
    throughput: float = NAN
    response: float = NAN


class Sample(NamedTuple):
    """The rows of one moment."""

    columns: dict[str, Any]  # arrays, all but ``time``
    names: list[str]  # as the alerts know the rows
    process_ids: list[str]
    gone: list[Identity]  # asked for, not there any more
    reused: set[Identity]  # … because the pid belongs to another process now


class _Reading(NamedTuple):
    """One process now."""

    cpu: float
    memory: int
    threads: int
    descriptors: int
    read: int
    written: int
    ticks: float
    gpu_memory: float
    gpu: float


class _Past:
    """What has to be known of a tree from one tick to the next."""

    __slots__ = (
        "active",
        "at",
        "bytes",
        "descriptors",
        "exact_at",
        "exact_cost",
        "io",
        "members",
        "places",
        "ports_at",
        "reaped",
        "row",
        "spoke",
        "ticks",
    )

    def __init__(self) -> None:
        self.at: float | None = None
        self.ticks = self.reaped = 0.0
        self.members: list[Seen] = []
        self.row: tuple[Any, ...] | None = None  # the latest, of a tree of one process
        self.io = self.bytes = self.descriptors = -1
        self.places: list[int] = []  # of the counted lines, a stream
        self.active = self.spoke = self.exact_cost = 0.0
        self.exact_at = self.ports_at = -math.inf


class Sampler:
    """Owned by one thread at a time. Holds descriptors until ``close``."""

    def __init__(self, *, interval: float = 1.0, portable: bool = not ON_LINUX, gpu: Gpu | None = None, members: bool = True) -> None:
        self.interval = interval
        self.forest = Forest(portable=portable)
        self.ports: dict[int, tuple[int, ...]] = {}  # series -> TCP ports, of the whole tree
        self.exact: dict[int, tuple[float, float]] = {}  # series -> the latest PSS and USS, MiB
        self.limits: Limits | None = None
        self._gpu = Gpu() if gpu is None else gpu
        self._members = members
        self._limits_at = self._ports_at = -math.inf
        self._credit = CREDIT
        self._past: dict[int, _Past] = {}
        self._codes: dict[tuple[int, Identity], int] = {}  # series of members

    def sample(self, asks: Sequence[Ask], groups: Sequence[GroupAsk] = (), *, register: Any = None) -> Sample:
        """Look once. ``register(process_id, name, pid)`` gives the number of a new series, for the members of trees."""
        started = time.perf_counter()
        if started - self._limits_at > LIMITS_EVERY:
            self.limits, self._limits_at = read_limits(), started
        trees = self.forest.scan([ask.identity for ask in asks])
        load = self._gpu.read()
        rows: list[tuple[Any, ...]] = []
        names: list[str] = []
        ids: list[str] = []
        gone: list[Identity] = []
        due: list[tuple[float, int, int]] = []
        codes: dict[tuple[int, Identity], int] = {}
        for ask in asks:
            members = trees.get(ask.identity)
            if members is None:
                gone.append(ask.identity)
                continue
            past = self._past.get(ask.code) or self._past.setdefault(ask.code, _Past())
            due.append((past.exact_at, ask.code, len(rows)))
            if (
                past.row is not None
                and members[0].handle.rested
                and len(members) == 1
                and (row := self._rested(ask, past, members[0], load))
            ):
                rows.append(row)
                names.append(ask.name)
                ids.append(ask.process_id)
                continue
            found = [self._read(member, load) for member in members]
            rows.append(self._tree(ask, past, members, found))
            names.append(ask.name)
            ids.append(ask.process_id)
            if len(members) > 1 and self._members and register is not None:
                for member, reading in zip(members, found, strict=True):
                    key = ask.code, member.row.identity
                    code = codes[key] = self._codes.get(key, -1)
                    if code < 0:
                        code = codes[key] = register(process_id=ask.process_id, name=ask.name, pid=member.row.pid).code
                    rows.append(self._member(code, member, reading))
                    names.append(f"{ask.name}/{member.row.pid}")
                    ids.append(ask.process_id)
        self._codes = codes
        self._exact(asks, trees, due, rows)
        self._look_for_ports(asks, trees)
        self._groups(asks, groups, rows, names, ids)
        self._prune(asks)
        return Sample(_columns(rows), names, ids, gone, self.forest.reused)

    def _read(self, member: Member, load: dict[int, tuple[float, float]]) -> _Reading:
        row, handle, before, at = member.row, member.handle, member.before, member.at
        if before is not None and before[1] == at:
            known: _Reading = member.reading  # in two trees: read already
            return known
        ticks = row.utime + row.stime
        ran = handle.run_time()
        member.before = ticks, at, ran
        percent = NAN
        if before is not None:
            used = (ticks - before[0]) / TICK if ran is None or before[2] is None else (ran - before[2]) / 1e9
            percent = used / (at - before[1]) * 100.0
        if row.state in "ZX":  # it holds nothing any more
            reading = _Reading(percent, 0, 0, 0, 0, 0, ticks, NAN, NAN)
        else:
            descriptors, io = handle.descriptors(), handle.io() or UNKNOWN
            gpu = load.get(row.pid, NO_GPU) if load else NO_GPU
            reading = _Reading(percent, row.rss, row.threads, -1 if descriptors is None else descriptors, *io, ticks, *gpu)
        member.reading = reading
        return reading

    def _tree(self, ask: Ask, past: _Past, members: list[Member], found: list[_Reading]) -> tuple[Any, ...]:
        root = members[0]
        whole = found[0] if len(found) == 1 else _total(found)
        written, lines = self._output(ask, past)
        at = root.at
        elapsed = at - past.at if past.at is not None else 0.0
        percent = self._tree_cpu(past, members, found, elapsed)
        if past.at is None:
            past.active = past.spoke = at
        if whole.ticks != past.ticks or whole.read + whole.written != past.io or written != past.bytes:
            past.active = at
        if written != past.bytes:
            past.spoke = at
        first = past.at is None
        rate = lines / elapsed if elapsed else NAN
        volume = (written - past.bytes) / elapsed if elapsed and past.bytes >= 0 else NAN
        past.at, past.ticks, past.io, past.bytes = at, whole.ticks, whole.read + whole.written, written
        if whole.descriptors != past.descriptors:
            past.descriptors = whole.descriptors
            past.ports_at = min(past.ports_at, at - PORTS_EVERY + PORTS_SOON) if past.ports_at > -math.inf else past.ports_at
        memory = whole.memory / MIB
        row = (
            ask.code, Scope.TREE, _LETTERS.get(root.row.state, State.UNKNOWN), memory, NAN, NAN, self._share(memory), percent,
            whole.threads, whole.descriptors, len(members), min(ask.restarts, 32767), ask.errors, ask.successes, whole.read, whole.written,
            self._age(root), ask.response, ask.error_rate, rate, volume, NAN if first else at - past.active,
            NAN if written < 0 else at - past.spoke,
            whole.gpu_memory, whole.gpu,
        )  # fmt: skip
        past.row = row if len(members) == 1 and not first else None
        return row

    def _rested(self, ask: Ask, past: _Past, member: Member, load: dict[int, tuple[float, float]]) -> tuple[Any, ...] | None:
        """The row of a process that has not run since the look before, nor been heard; None if it must be looked at after all."""
        row, before, at = past.row, past.at, member.at
        if row is None or before is None or member.before is None or load or self.forest.nested:
            return None
        written = -1 if ask.output is None else sum(log.end for log in ask.output)
        if written != past.bytes:
            return None
        member.before, past.at = (member.before[0], at, member.before[2]), at
        none = NAN if written < 0 else 0.0
        past.row = row = (
            *row[:7], 0.0, *row[8:11], min(ask.restarts, 32767), ask.errors, ask.successes, *row[14:16], row[16] + at - before,
            ask.response, ask.error_rate, none, none, at - past.active, NAN if written < 0 else at - past.spoke, NAN, NAN,
        )  # fmt: skip
        return row

    def _output(self, ask: Ask, past: _Past) -> tuple[int, float]:
        """Bytes written so far, and lines since the last look; NaN lines if some had gone, or came faster than can be counted aside."""
        if ask.output is None:
            return -1, NAN
        written, lines, budget, lost = 0, 0, COUNTED, False
        for number, log in enumerate(ask.output):
            end = log.end
            written += end
            position = past.places[number] if number < len(past.places) else 0
            while position < end and budget > 0:
                at, data = log.read(position, min(budget, end - position, 1 << 18))
                lost |= at > position
                if not data:
                    break
                lines += data.count(b"\n")
                budget -= len(data)
                position = at + len(data)
            lost |= position < end
            past.places[number : number + 1] = [end]
        return written, NAN if lost else float(lines)

    def _tree_cpu(self, past: _Past, members: list[Member], found: list[_Reading], elapsed: float) -> float:
        """From the ticks of all members and of the children that they reaped meanwhile."""
        rows = [member.row for member in members]
        now = [(row.pid, row.start, reading.ticks + row.reaped, row.ppid) for row, reading in zip(rows, found, strict=True)]
        reaped = math.fsum(row.reaped for row in rows)
        before, same = past.members, reaped == past.reaped and len(now) == len(past.members)
        past.members, past.reaped = now, reaped
        if same and all(one[:2] == two[:2] for one, two in zip(before, now, strict=True)):
            return _sum_known([reading.cpu for reading in found])  # nobody came or went: the sum, to the last digit
        if not elapsed:
            return NAN
        return max(_used(before, now) / TICK / elapsed * 100.0, _sum_known([reading.cpu for reading in found]))

    def _age(self, member: Member) -> float:
        if self.forest.portable:
            return time.time() - member.row.start
        return time.clock_gettime(time.CLOCK_BOOTTIME) - member.row.start / TICK

    def _share(self, memory: float) -> float:
        return self.limits.percent(memory) if self.limits else NAN

    def _member(self, code: int, member: Member, reading: _Reading) -> tuple[Any, ...]:
        memory = reading.memory / MIB
        return (
            code, Scope.PROCESS, _LETTERS.get(member.row.state, State.UNKNOWN), memory, NAN, NAN, self._share(memory), reading.cpu,
            reading.threads, reading.descriptors, 1, 0, 0, 0, reading.read, reading.written, self._age(member),
            NAN, NAN, NAN, NAN, NAN, NAN, reading.gpu_memory, reading.gpu,
        )  # fmt: skip

    def _exact(self, asks: Sequence[Ask], trees: dict[Identity, list[Member]], due: list[tuple[float, int, int]], rows: list[Any]) -> None:
        """PSS and USS of the trees that have waited longest, as many as the budget allows."""
        self._credit = min(self._credit + SHARE * self.interval, CREDIT)
        if self._credit <= 0:
            return
        identities = {ask.code: ask.identity for ask in asks}
        now = time.perf_counter()
        for exact_at, code, place in sorted(due):
            if self._credit <= 0:
                break
            past = self._past[code]
            members = trees[identities[code]]
            every = EXACT_EVERY if len(members) > 1 or members[0].row.rss > BIG else EXACT_SMALL
            if now - exact_at < max(every, COSTLY * past.exact_cost):
                continue
            answers = [m.handle.exact_memory() for m in members if m.row.state not in "ZX"]
            done = time.perf_counter()
            past.exact_at, past.exact_cost = done, done - now
            self._credit -= done - now
            now = done
            pss, uss = (
                (sum(part) / MIB if part and None not in part else NAN for part in zip(*answers, strict=True)) if answers else (NAN, NAN)
            )
            self.exact[code] = pss, uss
            rows[place] = (*rows[place][:4], pss, uss, *rows[place][6:])

    def _look_for_ports(self, asks: Sequence[Ask], trees: dict[Identity, list[Member]]) -> None:
        began = time.perf_counter()
        if began - self._ports_at < min(PORTS_PASS, 5 * self.interval):
            return

        @functools.cache
        def inodes() -> dict[int, int]:
            self._ports_at = began
            return listening_inodes()

        for ask in asks:
            members, past = trees.get(ask.identity), self._past.get(ask.code)
            if members is None or past is None or began - past.ports_at < PORTS_EVERY:
                continue
            past.ports_at = began
            found = {port for member in members for port in member.handle.ports(inodes) or ()}
            self.ports[ask.code] = tuple(sorted(found))
            if time.perf_counter() - began > PORTS_SHARE * self.interval:
                return

    def _groups(
        self, asks: Sequence[Ask], groups: Sequence[GroupAsk], rows: list[tuple[Any, ...]], names: list[str], ids: list[str]
    ) -> None:
        if not groups:
            return
        belongs = {ask.code: ask.group for ask in asks}
        sums: dict[int, list[tuple[Any, ...]]] = {}
        for row in rows:
            if row[1] == Scope.TREE:
                sums.setdefault(belongs[row[0]], []).append(row)
        for group in groups:
            mine = sums.get(group.code, [])
            memory = math.fsum(row[3] for row in mine)
            cpus = [row[7] for row in mine if row[7] == row[7]]
            whole = [sum(values) if min(values, default=0) >= 0 else -1 for values in ([row[i] for row in mine] for i in (8, 9, 14, 15))]
            rows.append((
                group.code, Scope.GROUP, State.UNKNOWN, memory, NAN, NAN, self._share(memory), math.fsum(cpus) if cpus or not mine else NAN,
                whole[0], whole[1], sum(row[10] for row in mine), 0, group.errors, group.successes, whole[2], whole[3], NAN,
                group.response, group.error_rate, group.throughput, NAN, NAN, NAN, NAN, NAN,
            ))  # fmt: skip
            names.append(group.name)
            ids.append(group.process_id)

    def _prune(self, asks: Sequence[Ask]) -> None:
        if len(self._past) > 2 * len(asks) + 16:
            wanted = {ask.code for ask in asks}
            for code in self._past.keys() - wanted:
                del self._past[code]
                self.ports.pop(code, None)
                self.exact.pop(code, None)

    def close(self) -> None:
        """Give back every descriptor and the GPU's library. Idempotent."""
        self.forest.close()
        self._gpu.close()


def _used(before: list[Seen], now: list[Seen]) -> float:
    """Ticks that a tree used between two looks, with those of children that came and went, or went: their parents have them now."""
    known = {(pid, start): ticks for pid, start, ticks, _ in before}
    pids = {pid for pid, _, _, _ in now}
    total = math.fsum(ticks - known.pop((pid, start), 0.0) for pid, start, ticks, _ in now)
    parents = {(pid, start): parent for pid, start, _, parent in before}
    return total - math.fsum(ticks for key, ticks in known.items() if parents[key] in pids)


def _total(found: list[_Reading]) -> _Reading:
    """The sum of a tree; a number that one member doesn't tell is unknown for the tree."""
    read, written = [r.read for r in found], [r.written for r in found]
    fds = [r.descriptors for r in found]
    return _Reading(
        NAN,
        sum(r.memory for r in found),
        sum(r.threads for r in found),
        sum(fds) if min(fds) >= 0 else -1,
        sum(read) if min(read) >= 0 else -1,
        sum(written) if min(written) >= 0 else -1,
        sum(r.ticks for r in found),
        _sum_known([r.gpu_memory for r in found]),
        _sum_known([r.gpu for r in found]),
    )


def _sum_known(values: list[float]) -> float:
    known = [value for value in values if value == value]  # noqa: PLR0124 - NaN
    return math.fsum(known) if known else NAN


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - keeps `import nbprocs` light

    if not rows:
        return {name: np.empty(0, COLUMNS[name]) for name in _FIELDS}
    return {name: np.array(values, COLUMNS[name]) for name, values in zip(_FIELDS, zip(*rows, strict=True), strict=True)}
