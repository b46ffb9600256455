"""Notes of what happened, made into rows. In the writer's thread, except for ``KernelSide``, which looks at the loop's side."""

import dataclasses
import hashlib
import json
import logging
import operator
import os
import socket
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nbprocs.model import EventKind, ProcessConfig
from nbprocs.processes.process import ManagedProcess, process_core
from nbprocs.redact import one_line
from nbprocs.runs.provenance import Inputs, Repositories, has_names
from nbprocs.runs.schema import COLUMNS, upsert
from nbprocs.runs.secrets import Scrubber, config_json, secret_values, short_env

if TYPE_CHECKING:
    from nbprocs.runs.jobs import JobRun

__all__ = ["KernelSide", "Note", "RowMaker", "Scheduled", "fingerprint"]

log: logging.Logger = logging.getLogger("nbprocs")

_TASK = "NBPROCS_TASK_ID"
_ENDS = frozenset(COLUMNS[COLUMNS.index("ended") : COLUMNS.index("pid")]) | {"name", "error"}  # what is known at the end only
_UPSERTS = {rows: upsert(rows) for rows in (64, 16, 4, 1)}  # so few statements are prepared once
_EMPTY: Mapping[str, Any] = dict.fromkeys(COLUMNS)
_CACHED = 2_048
_QUEUED = 100_000  # tasks whose input files are remembered until they start
_ERROR = 2_000  # characters
_BEFORE = 1_024  # bytes before the tail that are looked at for secrets
LOG = 16 << 20  # bytes of a stream that are kept where the whole output is asked for
_FIELDS = [f.name for f in dataclasses.fields(ProcessConfig) if f.name not in {"name", "working_dir", "env_vars"}]
_MAPPINGS = [f.name for f in dataclasses.fields(ProcessConfig) if f.name in _FIELDS and "Mapping" in str(f.type)]  # can't be hashed
_what_runs = operator.attrgetter(*(name for name in _FIELDS if name not in _MAPPINGS))

Environ = Mapping[Any, Any]


class Note(NamedTuple):
    """One thing that happened, as it is gathered on the loop: references and numbers only."""

    kind: EventKind
    process: "ManagedProcess | JobRun"
    at: float  # seconds since the epoch
    keep: tuple[int, bool]  # bytes of each stream's end, and whether the whole output is kept
    folder: str = ""
    environ: Environ | None = None  # the kernel's, when the process started
    cell: str | None = None
    error: BaseException | None = None


class Scheduled(NamedTuple):
    """A task was scheduled: its input files are looked at, and again when it starts."""

    task: str
    words: tuple[str, ...]
    folder: str
    shell: bool
    at: float  # seconds since the epoch


@dataclasses.dataclass(slots=True)
class _Command:
    about: dict[str, Any]
    display: str
    hidden: list[str]  # the secrets that were taken out of it
    files: bool  # whether any of its words can be the name of a file
    key: int = 0  # once it is among the rows
    clean: Scrubber | None = None  # of whose secrets none is in it


class _Around(NamedTuple):
    """The kernel's environment at one moment."""

    environ: Environ
    difference: dict[str, str | None]  # from that at the beginning, masked
    secrets: list[str]
    scrub: Scrubber


class _Plain(NamedTuple):
    """A context that tells the folder, its revision and the kernel's environment alone; known by the objects themselves."""

    folder: str
    git: Any
    around: _Around | None
    key: int


class KernelSide:
    """The kernel's environment and folder, looked at when a process starts: a microsecond while nothing has changed."""

    def __init__(self) -> None:
        self._seen: Environ = {}

    def environ(self) -> Environ:
        """A copy that is the same object as long as nothing has changed."""
        # The mapping below os.environ: its bytes are compared by identity, where os.environ would decode every one of them.
        now: Environ = getattr(os.environ, "_data", os.environ)
        if now != self._seen:
            self._seen = dict(now)
        return self._seen


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 1


def fingerprint(words: Iterable[str]) -> int:
    """A whole number that stands for a command's words, masked as they are kept."""
    return _hash("\0".join(words))


def _go_on(db: sqlite3.Connection, row: dict[str, Any]) -> bool:
    """Write the end of a run into the row that an earlier kernel began, if it did; False where there is none."""
    known = db.execute("SELECT key, state FROM runs WHERE id = ?", (row["id"],)).fetchone()
    if known is not None and known[1] in ("running", "lost"):
        told = {name: _text(value) if isinstance(value, str) else value for name, value in row.items() if name in _ENDS}
        names = ", ".join(f"{name} = ?" for name in told)
        db.execute(f"UPDATE runs SET {names} WHERE key = ?", (*told.values(), known[0]))  # noqa: S608 - our own names
    return known is not None


class RowMaker:
    """Makes rows of notes. ``pending`` holds those that are not on disk yet, by number."""

    def __init__(self, *, past: bool = False) -> None:
        self._past = past  # of long ago: its input files and its revision are not what they are now
        self.pending: dict[int, dict[str, Any]] = {}  # each in the order of COLUMNS
        self.new_commands: dict[int, tuple[Any, ...]] = {}
        self.new_contexts: dict[int, str] = {}
        self.outputs: list[tuple[int, str, bytes]] = []
        self._live: dict[str, tuple[int, dict[str, Any], Scrubber]] = {}  # by the process's id
        self._adopted: set[int] = set()  # rows of processes that an earlier kernel started, and perhaps recorded
        self._repositories = Repositories()
        self._inputs = Inputs()
        self._base: dict[str, str] | None = None  # the kernel's environment when the recording began
        self._environs: OrderedDict[int, _Around] = OrderedDict()
        self._commands: OrderedDict[Any, _Command] = OrderedDict()
        self._contexts: OrderedDict[str, int] = OrderedDict()
        self._plain = _Plain("\0", None, None, 0)  # the latest of its kind
        self._host = socket.gethostname()
        self._scheduled: OrderedDict[str, tuple[Scheduled, dict[str, dict[str, Any]]]] = OrderedDict()  # by task

    def store(self, db: sqlite3.Connection, *, session: int) -> None:
        """Put what is pending into a history, in the caller's transaction."""
        db.executemany("INSERT OR IGNORE INTO commands VALUES (?, ?, ?, ?, ?)", self.new_commands.values())
        db.executemany("INSERT OR IGNORE INTO contexts VALUES (?, ?)", self.new_contexts.items())
        base = session << 32
        keys = {number: base | number for number in self.pending}
        for number, row in self.pending.items():
            row["key"], row["session"] = base | number, session
            if number in self._adopted and _go_on(db, row):
                del keys[number]
        rows, at = [list(self.pending[number].values()) for number in keys], 0
        for size, statement in _UPSERTS.items():
            while len(rows) - at >= size:
                values = [value for row in rows[at : at + size] for value in row]
                at += size
                try:
                    db.execute(statement, values)
                except UnicodeEncodeError:  # bytes that are no text become question marks
                    db.execute(statement, [_text(value) if isinstance(value, str) else value for value in values])
        outputs = ((keys[number], stream, data) for number, stream, data in self.outputs if number in keys)
        db.executemany("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?)", outputs)

    def carry_over(self, db: sqlite3.Connection, *, session: int) -> None:
        """Have what rows to come may refer to stored again: they go to another file than those of the session so far."""
        query = "SELECT * FROM {0}s WHERE key IN (SELECT {0} FROM runs WHERE session = ?)"
        for row in db.execute(query.format("command"), (session,)):
            self.new_commands.setdefault(row[0], row)
        for key, value in db.execute(query.format("context"), (session,)):
            self.new_contexts.setdefault(key, value)

    def written(self) -> None:
        """What was pending is on disk."""
        self._adopted -= self.pending.keys()
        self.pending, self.new_commands, self.new_contexts, self.outputs = {}, {}, {}, []

    def take(self, notes: Iterable[Note | Scheduled], number: Callable[[], int]) -> None:
        """Bring the rows up to date."""
        for note in notes:
            if isinstance(note, Scheduled):
                self._scheduled[note.task] = note, self._inputs.of(note.words, note.folder, shell=note.shell, began=note.at)[0]
                if len(self._scheduled) > _QUEUED:
                    self._scheduled.popitem(last=False)
                continue
            if note.kind in (EventKind.STARTED, EventKind.FAILED):
                self._start(note, number())
            if note.kind is EventKind.ADOPTED and note.process.id not in self._live:
                self._adopt(note, number())
            if note.kind in (EventKind.EXITED, EventKind.FAILED):
                self._end(note)

    def _start(self, note: Note, number: int) -> None:
        process, config = note.process, note.process.config
        around = self._environ(note.environ or {})
        command, scrub = self._command(config, around)
        row = {
            **_EMPTY, "id": process.id, "name": scrub.clean(process.name), "command": command.key, "started": note.at, "state": "running",
            "pid": process.pid, "cell": note.cell, "queued": self._queued(config),
            "context": self._context(note, around, command, scrub),
        }  # fmt: skip
        self._live[process.id] = number, row, scrub
        self.pending[number] = row

    def _adopt(self, note: Note, number: int) -> None:
        """Nothing is written before its end: an earlier kernel may have recorded its start in the same file."""
        self._start(note, number)
        del self.pending[number]
        self._adopted.add(number)
        process: Any = note.process  # of a manager: jobs elsewhere are not adopted
        self._live[process.id][1].update(started=process.created_at.timestamp(), cell=None)
        if not process.status.live:
            self._end(note)

    def _end(self, note: Note) -> None:
        if note.process.id not in self._live:
            return  # it started before the recording
        number, row, scrub = self._live.pop(note.process.id)
        process, result = note.process, note.process.result
        values: dict[str, Any] = {"ended": note.at, "state": str(process.status), **_annotated(process)}
        if result is not None and number in self._adopted:  # perhaps it ended while no kernel was there
            values["ended"] = row["started"] + result.execution_time
        if result is not None:
            values |= {
                "exit_code": result.exit_code, "signal": result.signal, "reason": result.reason, "seconds": result.execution_time,
                "cpu": result.cpu_time, "peak_rss": result.peak_rss, "dropped": result.dropped_bytes,
                "read_bytes": result.read_bytes, "written_bytes": result.written_bytes,
                "stdout_bytes": process.stdout.end, "stderr_bytes": process.stderr.end,
            }  # fmt: skip
            tail, whole = note.keep
            for stream, log in (("stdout", process.stdout), ("stderr", process.stderr)):
                if log.end:
                    more = log.tail(tail + _BEFORE).decode("utf-8", "replace") if tail else ""  # or half a secret could be left of it
                    values[stream] = scrub.clean(more)[-tail:] if tail else None
                    if whole:
                        text = scrub.clean(log.tail(LOG).decode("utf-8", "replace"))
                        self.outputs.append((number, stream, zlib.compress(text.encode("utf-8", "replace"), 1)))
        if note.error is not None:
            values["error"] = scrub.clean(str(note.error))[:_ERROR]
        row.update(values)
        self.pending[number] = row

    def _place(self, process: "ManagedProcess | JobRun") -> dict[str, str]:
        """Where it ran, where that is not here."""
        worker = getattr(process, "worker", "")
        return {"host": process.host, "worker": worker} if worker or process.host not in {"", self._host} else {}

    def _queued(self, config: ProcessConfig) -> float | None:
        known = self._scheduled.get(config.env_vars.get(_TASK) or "")
        return None if known is None else known[0].at

    # -- what many runs share

    def _command(self, config: ProcessConfig, around: _Around) -> tuple[_Command, Scrubber]:
        """As it is kept, and what takes its secrets out of text."""
        asked = _what_runs(config)
        known, kept = None, not any(getattr(config, name) for name in _MAPPINGS)
        try:
            known = self._commands.get(asked) if kept else None
        except TypeError:  # an open file among the options, say
            kept = False
        if known is None:
            about, hidden = config_json(config)
            known = _Command(about, Scrubber(hidden).clean(config.display), hidden, has_names(about["words"], shell=config.shell))
            if kept:
                self._commands[asked] = known
                if len(self._commands) > _CACHED:
                    self._commands.popitem(last=False)
        scrub = around.scrub
        if known.hidden or config.env_vars:
            scrub = Scrubber([*around.secrets, *secret_values(config.env_vars), *known.hidden])
        if scrub is not known.clean:
            if any(scrub.knows(word) for word in known.about["words"]):  # a secret of the environment, written out in the command
                about = _cleaned(known.about, scrub) | {"left_out": [*known.about.get("left_out", ()), "secrets"]}
                known = _Command(about, scrub.clean(config.display), known.hidden, known.files)
            known.clean = scrub
        if not known.key:
            text, words = json.dumps(known.about), known.about["words"]
            known.key = _hash(text)
            self.new_commands[known.key] = (known.key, known.display, text, fingerprint(words), fingerprint(words[:2]))
        return known, scrub

    def _environ(self, environ: Environ) -> _Around:
        """How the kernel's environment differs from that at the beginning, masked; and its secrets."""
        known = self._environs.get(id(environ))
        if known is None or known.environ is not environ:
            now = {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()}
            if self._base is None:
                self._base = now
            changed: dict[str, str | None] = {name: value for name, value in now.items() if self._base.get(name) != value}
            changed |= dict.fromkeys(self._base.keys() - now.keys())
            secrets = secret_values(now)
            known = self._environs[id(environ)] = _Around(environ, short_env(changed), secrets, Scrubber(secrets))
            if len(self._environs) > 16:  # noqa: PLR2004 - a cache
                self._environs.popitem(last=False)
        return known

    def _context(self, note: Note, around: _Around, command: _Command, scrub: Scrubber) -> int:
        config = note.process.config
        inputs: dict[str, dict[str, Any]] = {}
        folder, fresh = config.working_dir or note.folder, False
        plain = not (command.files or config.env_vars or hasattr(note.process, "worker"))
        if not (plain or self._past):
            inputs, fresh = self._inputs.of(command.about["words"], folder, shell=config.shell, began=note.at)
        git = None if self._past else self._repositories.state(folder, anew=fresh and bool(inputs))
        if plain and git is self._plain.git and around is self._plain.around and folder == self._plain.folder:
            return self._plain.key  # the frequent case: as of the run before
        about: dict[str, Any] = {
            **self._place(note.process), "folder": folder, "env": short_env(_own(config)), "kernel": around.difference, "inputs": inputs,
            "git": git,
        }  # fmt: skip
        _, then = self._scheduled.get(config.env_vars.get(_TASK) or "", (None, {}))
        changed = sorted(name for name, known in then.items() if known.get("hash") != inputs.get(name, {}).get("hash"))
        if changed:
            about["changed"] = changed
            names = one_line(scrub.clean(", ".join(changed)))
            log.warning("%s changed between scheduling and start of %s", names, scrub.clean(config.display))
        text = json.dumps({name: value for name, value in about.items() if value}, sort_keys=True, ensure_ascii=False)
        known = self._contexts.get(text)
        if known is None:
            clean = json.dumps(_cleaned(json.loads(text), scrub), sort_keys=True)
            known = _hash(clean)
            self.new_contexts[known] = clean
            if len(text) < 10_000:  # noqa: PLR2004 - a cache, which must not hold much
                self._contexts[text] = known
                if len(self._contexts) > _CACHED:
                    self._contexts.popitem(last=False)
        if plain and scrub is around.scrub:
            self._plain = _Plain(folder, git, around, known)
        return known


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()


def _cleaned(value: Any, scrub: Scrubber) -> Any:
    if isinstance(value, str):
        return scrub.clean(value)
    if isinstance(value, dict):
        return {scrub.clean(name): _cleaned(item, scrub) for name, item in value.items()}
    return [_cleaned(item, scrub) for item in value] if isinstance(value, list) else value


def _own(config: ProcessConfig) -> dict[str, str | None]:
    """What the caller changes in the environment: a scheduler's own words for its tasks are no difference of two runs."""
    return {name: value for name, value in config.env_vars.items() if name not in {_TASK, "NBPROCS_ATTEMPT", "NBPROCS_SLOT"}}


def _annotated(process: "ManagedProcess | JobRun") -> dict[str, Any]:
    about = process_core(cast("ManagedProcess", process)).annotations  # a JobRun has its own
    found: dict[str, Any] = {name: about[name] for name in ("task", "queued", "parent") if name in about}
    task = process.config.env_vars.get(_TASK)
    return {"task": task, **found} if task else found
