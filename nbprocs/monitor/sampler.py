"""The sampler: all watched trees from one look at the process table, as the rows of one moment.

::

      asks (who, with what only the home loop knows)
        │  worker thread
        ▼
      Forest.scan ──► members of each tree ──► CPU, descriptors, I/O      every tick
                                          └──► PSS and USS, ports         seldom, within a time budget
        ▼
      columns: one TREE row a root, a PROCESS row a member of a tree of several, one GROUP row a manager or pool

Rows are written by name; what a row does not name is unknown. The row of a tree that has not run since the look before is not made anew:
the numbers of then are carried over, all of them at once, each as its metric's ``rest`` says.

CPU is a difference of two readings: the first one of a process is NaN, never 0. A tree's CPU holds the work of children that came and went
between two ticks as well: the kernel adds it to the parent that reaped them.
"""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from nbprocs.engine.container import Limits, read_limits
from nbprocs.engine.forest import Forest, Member
from nbprocs.engine.handles import listening_inodes
from nbprocs.engine.table import ON_LINUX, TICK, Identity
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.history import COLUMNS
from nbprocs.monitor.metrics import METRICS, MIB, Fold, Scope, State
from nbprocs.policy.bucket import TokenBucket

__all__ = ["Ask", "GroupAsk", "Sample", "Sampler"]

NAN = float("nan")
EXACT_EVERY = 10.0  # seconds between two readings of a tree's PSS, at least, where it matters: of several processes, or big
EXACT_SMALL = 60.0  # … of one small process, whose PSS is little and whose pages are its own
BIG = 64 << 20
PORTS_EVERY = 60.0  # … of its ports, unless its number of descriptors changed
PORTS_SOON = 2.0
PORTS_PASS = 5.0  # … of two readings of /proc/net/tcp: the kernel walks its whole table of connections for one, milliseconds
LIMITS_EVERY = 30.0
COUNTED_BYTES = 8 << 20  # bytes of a process's output in which lines are counted, a tick: 2 ms
SHARE = 0.0003  # of the time: what PSS may take on average
PORTS_SHARE = 0.002  # … and the ports, in one tick
CREDIT = 0.005  # seconds that PSS may have saved up: the first look at a few processes has theirs
COSTLY = 500  # a tree whose PSS takes t is asked at most every 500 t: a process of many gigabytes takes milliseconds
_LETTERS = {"R": State.RUNNING, "S": State.SLEEPING, "I": State.SLEEPING, "D": State.BLOCKED, "T": State.STOPPED, "t": State.STOPPED}
_LETTERS |= {"Z": State.ZOMBIE, "X": State.ZOMBIE}
FIELDS = {name: dtype for name, dtype in COLUMNS.items() if name != "time"}
FOLDED = {name: metric for name, metric in METRICS.items() if metric.fold is not Fold.OWN}
CPU = METRICS["cpu_percent"]
NOT_COUNTED = {"restarts": 0, "error_count": 0, "success_count": 0}  # of one process of a tree
UNKNOWN = (-1, -1)
NO_GPU = (NAN, NAN)
Seen = tuple[int, float, float, int]  # pid, start, ticks with those of reaped children, parent


class Output(Protocol):
    """What is needed of an OutputLog: its end, and its bytes from an offset."""

    end: int

    def read(self, position: int, size: int) -> tuple[int, bytes]:
        """See nbprocs.engine.output."""


class Ask(NamedTuple):
    """One watched process, with what the home loop counts for it, under the names of the metrics."""

    code: int  # of its series
    identity: Identity
    name: str
    process_id: str
    group: int = -1  # code of the group it belongs to
    restarts: int = 0
    error_count: int = 0
    success_count: int = 0
    error_rate: float = NAN
    response_time: float = NAN
    output: tuple[Output, ...] | None = None  # its streams; None: not our child
    usual: float = NAN  # seconds that its command used to take


class GroupAsk(NamedTuple):
    """A manager or a pool; the same."""

    code: int
    name: str
    process_id: str
    restarts: int = 0
    error_count: int = 0
    success_count: int = 0
    error_rate: float = NAN
    throughput: float = NAN
    response_time: float = NAN


COUNTED = tuple(name for name in Ask._fields if name in METRICS)  # by the home loop


class Sample(NamedTuple):
    """The rows of one moment."""

    columns: dict[str, Any]  # arrays, all but ``time``
    names: list[str]  # as the alerts know the rows
    process_ids: list[str]
    gone: list[Identity]  # asked for, not there any more
    reused: set[Identity]  # … because the pid belongs to another process now


Row = dict[str, Any]  # by the name of the column


def read(member: Member, load: Mapping[int, tuple[float, float]]) -> Row:
    """What one process has now: the readings of all metrics that each process of a tree has."""
    row, handle = member.row, member.handle
    descriptors, io = handle.descriptors(), handle.io() or UNKNOWN
    gpu = load.get(row.pid, NO_GPU) if load else NO_GPU
    return {
        "memory_usage_mb": row.rss / MIB,
        "threads": row.threads,
        "file_descriptors": -1 if descriptors is None else descriptors,
        "processes": 1,
        "read_bytes": io[0],
        "write_bytes": io[1],
        "gpu_memory_mb": gpu[0],
        "gpu_percent": gpu[1],
    }


# a zombie
HOLDS_NOTHING: Row = {
    "memory_usage_mb": 0.0, "threads": 0, "file_descriptors": 0, "processes": 1, "read_bytes": 0, "write_bytes": 0,
}  # fmt: skip


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
        "look",
        "members",
        "place",
        "places",
        "ports_at",
        "reaped",
        "spoke",
        "ticks",
    )

    def __init__(self) -> None:
        self.at: float | None = None
        self.ticks = self.reaped = 0.0
        self.members: list[Seen] = []
        self.place = self.look = -1  # where its row is in the sample of that look, if it may be carried over
        self.io = self.bytes = self.descriptors = -1
        self.places: list[int] = []  # of the counted lines, a stream
        self.active = self.spoke = self.exact_cost = 0.0
        self.exact_at = self.ports_at = -math.inf


class _Draft:
    """The rows of one sample while they are found: new ones by name, carried ones by their place in the sample before."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.ids: list[str] = []
        self.trees: list[tuple[Ask, int]] = []  # with the place of its row
        self.made: list[tuple[Row, int]] = []  # new rows, with their places
        self.carried: list[tuple[Ask, int, int, float]] = []  # place, place in the sample before, seconds since then

    def name(self, name: str, process_id: str) -> int:
        """The place of one more row."""
        self.names.append(name)
        self.ids.append(process_id)
        return len(self.names) - 1


class Sampler:
    """Owned by one thread at a time. Holds descriptors until ``close``."""

    def __init__(self, *, interval: float = 1.0, portable: bool = not ON_LINUX, gpu: Gpu | None = None, members: bool = True) -> None:
        self.interval = interval
        self.forest: Forest = Forest(portable=portable)
        self.ports: dict[int, tuple[int, ...]] = {}  # series -> TCP ports, of the whole tree
        self.exact: dict[int, tuple[float, float]] = {}  # series -> the latest PSS and USS, MiB
        self.limits: Limits | None = None
        self._gpu = Gpu() if gpu is None else gpu
        self._members = members
        self._limits_at = self._ports_at = -math.inf
        self._credit = TokenBucket(burst=CREDIT, per_second=SHARE)
        self._past: dict[int, _Past] = {}
        self._codes: dict[tuple[int, Identity], int] = {}  # series of members
        self._inside: set[tuple[int, Identity]] = set()  # … in this look
        self._columns: dict[str, Any] = {}  # of the latest sample that came to its end
        self._looks, self._seen = 0, -1  # … and the number of that one

    def sample(self, asks: Sequence[Ask], groups: Sequence[GroupAsk] = (), *, register: Any = None) -> Sample:
        """Look once. ``register(process_id, name, pid)`` gives the number of a new series, for the members of trees."""
        started = time.perf_counter()
        if started - self._limits_at > LIMITS_EVERY:
            self.limits, self._limits_at = read_limits(), started
        trees = self.forest.scan([ask.identity for ask in asks])
        load = self._gpu.read()
        draft = _Draft()
        gone: list[Identity] = []
        may_carry = not load and not self.forest.nested
        self._looks += 1
        for ask in asks:
            members = trees.get(ask.identity)
            if members is None:
                gone.append(ask.identity)
                continue
            past = self._past.get(ask.code) or self._past.setdefault(ask.code, _Past())
            place = draft.name(ask.name, ask.process_id)
            draft.trees.append((ask, place))
            if may_carry and len(members) == 1 and past.look == self._seen and members[0].handle.rested and _written(ask) == past.bytes:
                _carry(ask, past, members[0], place, draft)
                past.look = self._looks
            else:
                found = [self._read(member, load) for member in members]
                row, whole = self._tree(ask, past, members, found)
                draft.made.append((row, place))
                past.place, past.look = place, self._looks if whole and len(members) == 1 else -1
                if len(members) > 1 and self._members and register is not None:
                    self._inner(ask, members, found, draft, register)
        columns = self._assemble(draft)
        self._exact(draft, trees, columns)
        self._look_for_ports(asks, trees)
        self._prune(asks)
        self._columns, self._seen = columns, self._looks
        return Sample(_with_groups(columns, draft, groups), draft.names, draft.ids, gone, self.forest.reused)

    def _inner(self, ask: Ask, members: list[Member], found: list[Row], draft: _Draft, register: Any) -> None:
        """The rows of the processes of a tree of several."""
        for member, reading in zip(members, found, strict=True):
            key = ask.code, member.row.identity
            code = self._codes.get(key)
            if code is None:
                code = self._codes[key] = register(process_id=ask.process_id, name=ask.name, pid=member.row.pid).code
            place = draft.name(f"{ask.name}/{member.row.pid}", ask.process_id)
            row = {"series": code, "scope": Scope.PROCESS, "state": _state(member), "age_seconds": self._age(member), **NOT_COUNTED}
            draft.made.append((row | reading, place))
            self._inside.add(key)

    def _read(self, member: Member, load: dict[int, tuple[float, float]]) -> Row:
        row, before, at = member.row, member.before, member.at
        if before is not None and before[1] == at:
            known: Row = member.reading  # in two trees: read already
            return known
        ticks, ran = row.utime + row.stime, member.handle.run_time()
        member.before = ticks, at, ran
        percent = NAN
        if before is not None:
            used = (ticks - before[0]) / TICK if ran is None or before[2] is None else (ran - before[2]) / 1e9
            percent = used / (at - before[1]) * 100.0
        reading = {**(HOLDS_NOTHING if row.gone else read(member, load)), "cpu_percent": percent}
        reading["memory_percent"] = self.limits.percent(reading["memory_usage_mb"]) if self.limits else NAN
        member.reading = reading
        return reading

    def _tree(self, ask: Ask, past: _Past, members: list[Member], found: list[Row]) -> tuple[Row, bool]:
        """The row of a tree; and whether all of it is known, so that it may be carried over."""
        root = members[0]
        row = dict(found[0]) if len(found) == 1 else _total(found)
        written, lines = self._output(ask, past)
        at, first = root.at, past.at is None
        elapsed = at - past.at if past.at is not None else 0.0
        percent = self._tree_cpu(past, members, found, elapsed)
        ticks, io = math.fsum(m.row.utime + m.row.stime for m in members), row["read_bytes"] + row["write_bytes"]
        if first or ticks != past.ticks or io != past.io or written != past.bytes:
            past.active = at
        if first or written != past.bytes:
            past.spoke = at
        row |= {
            "series": ask.code,
            "scope": Scope.TREE,
            "state": _state(root),
            "cpu_percent": percent,
            "age_seconds": self._age(root),
            "slowdown": self._age(root) / ask.usual,
            "throughput": lines / elapsed if elapsed else NAN,
            "output_bytes_per_second": (written - past.bytes) / elapsed if elapsed and past.bytes >= 0 else NAN,
            "idle_seconds": NAN if first else at - past.active,
            "silence_seconds": NAN if written < 0 else at - past.spoke,
            **{name: getattr(ask, name) for name in COUNTED},
        }
        past.at, past.ticks, past.io, past.bytes = at, ticks, io, written
        if row["file_descriptors"] != past.descriptors:
            past.descriptors = row["file_descriptors"]
            past.ports_at = min(past.ports_at, at - PORTS_EVERY + PORTS_SOON) if past.ports_at > -math.inf else past.ports_at
        timed = ask.usual == ask.usual
        return row, not first and not timed and (written < 0 or lines == lines)  # noqa: PLR0124 - NaN

    def _output(self, ask: Ask, past: _Past) -> tuple[int, float]:
        """Bytes written so far, and lines since the last look; NaN lines if some had gone, or came faster than can be counted aside."""
        if ask.output is None:
            return -1, NAN
        written, lines, budget, lost = 0, 0, COUNTED_BYTES, False
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

    def _tree_cpu(self, past: _Past, members: list[Member], found: list[Row], elapsed: float) -> float:
        """From the ticks of all members and of the children that they reaped meanwhile."""
        rows = [member.row for member in members]
        now = [(row.pid, row.start, row.utime + row.stime + row.reaped, row.ppid) for row in rows]
        reaped = math.fsum(row.reaped for row in rows)
        before, same = past.members, reaped == past.reaped and len(now) == len(past.members)
        past.members, past.reaped = now, reaped
        known = CPU.folded([reading["cpu_percent"] for reading in found])
        if same and all(one[:2] == two[:2] for one, two in zip(before, now, strict=True)):
            return known  # nobody came or went: the sum, to the last digit
        return max(_used(before, now) / TICK / elapsed * 100.0, known) if elapsed else NAN

    def _age(self, member: Member) -> float:
        if self.forest.portable:
            return time.time() - member.row.start
        return time.clock_gettime(time.CLOCK_BOOTTIME) - member.row.start / TICK

    def _assemble(self, draft: _Draft) -> dict[str, Any]:
        """All rows as columns."""
        import numpy as np  # noqa: PLC0415 - keeps `import nbprocs` light

        made, carried = [place for _, place in draft.made], [place for _, place, _, _ in draft.carried]
        sources = np.array([source for _, _, source, _ in draft.carried], "i8")
        elapsed = np.array([seconds for _, _, _, seconds in draft.carried], "f8")
        columns: dict[str, Any] = {}
        for name, dtype in FIELDS.items():
            metric = METRICS.get(name)
            unknown = 0 if metric is None else metric.unknown
            column = columns[name] = np.empty(len(draft.names), dtype)
            if made:
                column[made] = [row.get(name, unknown) for row, _ in draft.made]
            if carried and name in COUNTED:
                column[carried] = [getattr(ask, name) for ask, _, _, _ in draft.carried]
            elif carried:
                values = self._columns[name][sources]
                column[carried] = values if metric is None else metric.rested(values, elapsed)
        return columns

    def _exact(self, draft: _Draft, trees: dict[Identity, list[Member]], columns: dict[str, Any]) -> None:
        """PSS and USS of the trees that have waited longest, as many as the budget allows."""
        now = time.perf_counter()
        if self._credit.held(now) <= 0:
            return
        waiting = [
            (past.exact_at, place, ask, past) for ask, place in draft.trees if now - (past := self._past[ask.code]).exact_at >= EXACT_EVERY
        ]
        for exact_at, place, ask, past in sorted(waiting, key=lambda entry: entry[0]):
            if self._credit.held(now) <= 0:
                break
            members = trees[ask.identity]
            every = EXACT_EVERY if len(members) > 1 or members[0].row.rss > BIG else EXACT_SMALL
            if now - exact_at < max(every, COSTLY * past.exact_cost):
                continue
            answers = [m.handle.exact_memory() for m in members if not m.row.gone]
            done = time.perf_counter()
            past.exact_at, past.exact_cost = done, done - now
            self._credit.spend(done, done - now)
            now = done
            pss, uss = (
                (sum(part) / MIB if part and None not in part else NAN for part in zip(*answers, strict=True)) if answers else (NAN, NAN)
            )
            self.exact[ask.code] = pss, uss
            columns["pss_mb"][place], columns["uss_mb"][place] = pss, uss

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

    def _prune(self, asks: Sequence[Ask]) -> None:
        self._codes = {key: code for key, code in self._codes.items() if key in self._inside}
        self._inside.clear()
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


def _state(member: Member) -> State:
    return _LETTERS.get(member.row.state, State.UNKNOWN)


def _written(ask: Ask) -> int:
    """Bytes of output so far; -1 where there is none of ours."""
    return -1 if ask.output is None else sum([log.end for log in ask.output])


def _carry(ask: Ask, past: _Past, member: Member, place: int, draft: _Draft) -> None:
    """The row of a process that has neither run nor written since the look before."""
    at, before = member.at, member.before
    assert past.at is not None  # noqa: S101 - it was looked at
    draft.carried.append((ask, place, past.place, at - past.at))
    past.place, past.at = place, at
    if before is not None:
        member.before = before[0], at, before[2]


def _used(before: list[Seen], now: list[Seen]) -> float:
    """Ticks that a tree used between two looks, with those of children that came and went, or went: their parents have them now."""
    known = {(pid, start): ticks for pid, start, ticks, _ in before}
    pids = {pid for pid, _, _, _ in now}
    total = math.fsum(ticks - known.pop((pid, start), 0.0) for pid, start, ticks, _ in now)
    parents = {(pid, start): parent for pid, start, _, parent in before}
    return total - math.fsum(ticks for key, ticks in known.items() if parents[key] in pids)


def _total(found: list[Row]) -> Row:
    """The readings of a tree from those of its members."""
    return {name: metric.folded([row.get(name, metric.unknown) for row in found]) for name, metric in FOLDED.items()}


def _with_groups(columns: dict[str, Any], draft: _Draft, groups: Sequence[GroupAsk]) -> dict[str, Any]:
    """The columns with a row for each group behind them; names them in the draft."""
    import numpy as np  # noqa: PLC0415 - keeps `import nbprocs` light

    if not groups:
        return columns
    places: dict[int, list[int]] = {group.code: [] for group in groups}
    for ask, place in draft.trees:
        if ask.group in places:
            places[ask.group].append(place)
    rows: list[Row] = []
    for group in groups:
        whole = {name: metric.folded(columns[name][places[group.code]].tolist()) for name, metric in FOLDED.items()}
        own = {name: value for name, value in group._asdict().items() if name in METRICS}
        rows.append({"series": group.code, "scope": Scope.GROUP, "state": State.UNKNOWN, **whole, **own})
        draft.name(group.name, group.process_id)
    return {
        name: np.append(values, np.array([row.get(name, METRICS[name].unknown if name in METRICS else 0) for row in rows], FIELDS[name]))
        for name, values in columns.items()
    }
