"""A scheduler's store, read as a run history: each attempt of each task is a row. The queue is only read.

A queue is locked by the scheduler that has it. One of this kernel is asked itself; of another kernel's a copy of the files is read, taken
while nothing was folded into the main file: what is in the log behind the last whole transaction SQLite leaves out by itself.
"""

import contextlib
import itertools
import json
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nbprocs.config import ProcessConfig
from nbprocs.engine.table import identify
from nbprocs.model import EventKind, ProcessResult, ProcessStatus
from nbprocs.runs.errors import IsQueue, RunsError
from nbprocs.runs.jobs import JobRun
from nbprocs.runs.rows import Note, RowMaker
from nbprocs.runs.schema import fresh, readable, whole_path
from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.entry import TaskOptions
from nbprocs.scheduler.options import decode
from nbprocs.scheduler.writer import read_text

__all__ = ["opened"]

_TRIES = 5  # at a copy during which nothing was folded
_KEPT = 4  # queues
_COUNT = "SELECT count(*) FROM attempts WHERE rowid <= {}"
_TAIL = 4096  # bytes of each stream's end
_TASK = ("argv", "options", "folder", "key", "name")
_ATTEMPT = (
    "queued", "started", "ended", "outcome", "attempt", "exit_code", "signal", "reason", "execution_time", "peak_rss", "cpu_time", "pid",
    "host", "worker", "stdout", "stderr", "dropped", "error",
)  # fmt: skip
_NAMES = (*_TASK[2:], *_ATTEMPT)
_ATTEMPTS = (
    f"SELECT {', '.join(f't.{name}' for name in _TASK)}, {', '.join(f'a.{name}' for name in _ATTEMPT)}"  # noqa: S608 - our own names
    " FROM attempts a JOIN tasks t USING (key) WHERE a.started IS NOT NULL AND a.rowid > {} AND a.rowid <= {} ORDER BY a.rowid"
)
_OF_TASK = {"queued": "time", "outcome": "'running'"} | {name: name for name in ("started", "pid", "host", "worker")}  # while it runs
_RUNNING = (
    f"SELECT {', '.join(_TASK)}, {', '.join(_OF_TASK.get(name, 'NULL') for name in _ATTEMPT)}"  # noqa: S608 - our own names
    " FROM tasks WHERE state = 'running' AND started IS NOT NULL ORDER BY key"
)
_STATES = {
    "running": ProcessStatus.RUNNING, "succeeded": ProcessStatus.COMPLETED, "failed": ProcessStatus.FAILED,
    "timeout": ProcessStatus.TERMINATED, "cancelled": ProcessStatus.TERMINATED, "interrupted": "lost",
}  # fmt: skip
Query = Callable[[str], list[tuple[Any, ...]]]


def opened(path: Path) -> sqlite3.Connection:
    """A run history, or a queue as one, for reading only. Raises RunsError; it blocks."""
    core = SchedulerCore.of(str(whole_path(path).resolve()))
    if core is not None and core.store is not None and not core.runner.closed:
        return _as_history(path.resolve(), core.store.rows, (socket.gethostname(), os.getpid()))
    try:
        if not Path(f"{path}-owner").exists():
            return readable(path)
    except IsQueue:
        pass
    try:
        with _unlocked(path) as db:
            return _as_history(path.resolve(), lambda query: db.execute(query).fetchall(), _owner(path))
    except (sqlite3.Error, OSError) as error:
        raise RunsError(f"the queue {path} can't be read: {error}", hint="try again; if that does not help, restore a copy") from error


def _owner(path: Path) -> tuple[str, int]:
    """Host and pid of the living kernel that has the queue; pid 0 where nobody has, as far as this host knows."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
        told = json.loads(Path(f"{path}-owner").read_text())
        if told["host"] != socket.gethostname() or abs(psutil.Process(told["pid"]).create_time() - told["start"]) < 1:
            return str(told["host"]), int(told["pid"])
    return socket.gethostname(), 0


@contextlib.contextmanager
def _unlocked(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the queue: who holds the file itself open, if only to read it, keeps its next scheduler from locking it."""
    with tempfile.TemporaryDirectory(prefix="nbprocs-") as folder:
        copy = Path(folder, "queue")
        if not _copy_if_free(path, copy):
            _copy_files(path, copy)
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
            yield db


def _copy_if_free(path: Path, to: Path) -> bool:
    """Whether it could be read: it is not in use by another kernel, nor in a read-only folder."""
    with contextlib.closing(_read_only(path)) as db, contextlib.closing(sqlite3.connect(to)) as copy:
        try:
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on nobody can lock it: a backup would wait for ever
        except sqlite3.OperationalError:
            return False
        db.backup(copy)
    return True


def _copy_files(path: Path, to: Path) -> None:
    """Of a queue that another kernel has locked. Raises OSError where it is written to all the time."""
    for _ in range(_TRIES):
        before = path.stat()
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}-wal", f"{to}-wal")
        shutil.copyfile(path, to)
        after = path.stat()
        if (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size):
            return
    message = "it is being written to all the time"
    raise OSError(message)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=0)


@dataclass(slots=True)
class _Read:
    """What was read of a queue: its ended attempts stay as they are, so only later ones are made into rows."""

    prefix: str
    db: sqlite3.Connection
    maker: RowMaker
    numbers: Iterator[int]
    last: int = 0  # rowid
    count: int = 0


_read: OrderedDict[Path, _Read] = OrderedDict()  # the latest few
_reading = threading.Lock()


def _as_history(path: Path, query: Query, owner: tuple[str, int]) -> sqlite3.Connection:
    """The attempts as the rows of a history in memory. The first look at a queue takes a quarter of a millisecond an attempt."""
    prefix = str(query("SELECT value FROM meta WHERE name = 'prefix'")[0][0])
    with _reading, contextlib.ExitStack() as failed:
        known = _read.pop(path, None)
        if known is not None and (known.prefix != prefix or query(_COUNT.format(known.last))[0][0] != known.count):  # some were forgotten
            known.db.close()
            known = None
        if known is None:
            known = _Read(prefix, fresh(), RowMaker(past=True), itertools.count(1))
        failed.callback(known.db.close)
        last = int(query("SELECT coalesce(max(rowid), 0) FROM attempts")[0][0])
        _put(known.db, known.maker, known.numbers, _notes(query(_ATTEMPTS.format(known.last, last)), prefix))
        known.last, known.count = last, int(query(_COUNT.format(last))[0][0])
        failed.pop_all()
        _read[path] = known  # only now: half of a look is no beginning for the next one
        if len(_read) > _KEPT:
            _read.popitem(last=False)[1].db.close()
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        failed.callback(db.close)
        known.db.backup(db)
        host, pid = owner
        alive = identify(pid) if pid and host == socket.gethostname() else None
        session = "INSERT INTO sessions (key, host, pid, start, began) VALUES (1, ?, ?, ?, 0)"
        db.execute(session, (host, pid, 0.0 if alive is None else alive.start))
        _put(db, RowMaker(past=True), itertools.count(1 << 31), _notes(query(_RUNNING), prefix))
        failed.pop_all()
    return db


def _put(db: sqlite3.Connection, maker: RowMaker, numbers: Iterator[int], notes: Iterator[tuple[Note, ...]]) -> None:
    maker.take(itertools.chain.from_iterable(notes), numbers.__next__)
    maker.store(db, session=1)
    maker.written()


def _notes(rows: Iterable[tuple[Any, ...]], prefix: str) -> Iterator[tuple[Note, ...]]:
    """A start and an end for each attempt; a start for what runs. What can't be read is left out: the queue itself tells."""
    environ = dict(os.environ)
    for argv, options, *columns in rows:
        row = dict(zip(_NAMES, columns, strict=True))
        with contextlib.suppress(ValueError, TypeError, RecursionError, AttributeError):
            asked = decode(options, {})[0]
            run = _run(json.loads(argv), asked, row, f"{prefix}{row['key']}")
            keep = _TAIL, False
            started = Note(EventKind.STARTED, run, row["started"], keep, row["folder"] or "", environ)
            if row["outcome"] == "running":
                yield (started,)
                continue
            error = RuntimeError(_message(row["error"])) if row["error"] else None
            yield started, Note(EventKind.EXITED, run, row["ended"] or row["started"], keep, error=error)


def _run(words: list[str], options: TaskOptions, row: dict[str, Any], task: str) -> JobRun:
    command, *args = words
    base = ProcessConfig(command=command) if options.config is None else options.config.replace(command=command)
    config = base.replace(args=tuple(args), name=read_text(row["name"]), working_dir=base.working_dir or read_text(row["folder"]))
    run = JobRun(
        id=task if row["attempt"] is None else f"{task}.{row['attempt']}", name=config.name or config.display, config=config,
        host=row["host"] or "", worker=row["worker"] or "", pid=row["pid"], annotations={"task": task, "queued": row["queued"]},
    )  # fmt: skip
    if row["outcome"] == "running":
        return run
    status = _STATES.get(row["outcome"], ProcessStatus.FAILED)
    result = ProcessResult(
        process_id=run.id, name=run.name, command=config.display, exit_code=row["exit_code"], signal=row["signal"],
        stdout_source=row["stdout"] or b"", stderr_source=row["stderr"] or b"", execution_time=row["execution_time"],
        dropped_bytes=row["dropped"] or 0, peak_rss=row["peak_rss"], cpu_time=row["cpu_time"], reason=row["reason"],
    )  # fmt: skip
    run.ended(result, status)
    return run


def _message(error: str) -> str:
    """What a failed attempt's error said."""
    try:
        return str(json.loads(error)["message"])
    except (ValueError, TypeError, KeyError):
        return "its error can't be read"
