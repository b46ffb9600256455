"""The thread that writes a run history: one for a file and interpreter, batched, off every loop.

::

    a manager's loop ──put(note)──►  deque  ──(a tenth of a second is gathered)──►  rows  ──one statement──►  SQLite, WAL
                                                                                     ▲ kept and tried again while the disk refuses

A killed kernel loses at most what was gathered; what was committed stays, and the file is consistent at every moment. With
``synchronous=NORMAL`` the machine's own crash may take the last moments too.
"""

import asyncio
import atexit
import contextlib
import functools
import itertools
import logging
import os
import platform
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from nbprocs.engine.places import file_at
from nbprocs.engine.table import identify
from nbprocs.model import EventKind
from nbprocs.runs.cells import notebook_name
from nbprocs.runs.errors import RunsError
from nbprocs.runs.rows import Note, RowMaker, Scheduled
from nbprocs.runs.schema import connect, whole_path

__all__ = ["RunWriter", "writer_for", "writing"]

log: logging.Logger = logging.getLogger("nbprocs")

GATHER = 0.1  # seconds
WAITING = 100_000  # notes; past it the newest are dropped and counted
ROWS = 500  # a transaction
RETRY = 2.0  # seconds until a disk that refused is tried again
LAST_TRY = 2.0  # seconds that the end of a manager waits for a disk that refuses


class RunWriter:
    """Writes what it is given. ``error`` says why it does not at the moment, ``lost`` how many runs were dropped for good."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        self.lost: int = 0
        self.users: int = 0
        self.ended: threading.Event = threading.Event()
        self._notes: deque[Note | Scheduled] = deque()
        self._wanted = threading.Event()
        self._at_once = threading.Event()
        self._after: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None  # which file that is: somebody may put another one there, or none
        self._hopeless = False
        self._maker = RowMaker()
        self._session = 0
        self._numbers = itertools.count(1)
        threading.Thread(target=self._run, name="nbprocs-runs", daemon=True).start()

    # -- from any thread

    def put(self, note: Note | Scheduled) -> None:
        """Take a note, in a few microseconds."""
        if len(self._notes) >= WAITING or self._hopeless:
            self.lost += 1
            return
        self._notes.append(note)
        if not self._wanted.is_set():
            self._wanted.set()

    def after(self, callback: Callable[[], object]) -> None:
        """Call it, in the writer's thread, once what was put so far is written, or was refused."""
        with self._lock:
            if not self.ended.is_set():
                self._after.append(callback)
                self._at_once.set()
                self._wanted.set()
                return
        callback()

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until what was put so far is written; False where the disk refuses or it takes longer than ``timeout`` seconds."""
        done = threading.Event()
        self.after(done.set)
        return done.wait(timeout) and self.error is None

    def leave(self, callback: Callable[[], object]) -> None:
        """One user less; the last one's leaving ends the thread. ``callback`` is called when that one's notes are written, or refused."""
        with _registry_lock, self._lock:  # in one step, or the thread could end before it hears whom to tell
            self.users -= 1
            if not self.users and _writers.get(self.path) is self:
                del _writers[self.path]
            self._after.append(callback)
            self._at_once.set()
            self._wanted.set()

    async def left(self) -> None:
        """Leave, and wait until what was put is on disk, or was refused by it for two seconds."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def arrive() -> None:
            if not written.done():
                written.set_result(None)

        self.leave(functools.partial(loop.call_soon_threadsafe, arrive))
        await written

    # -- in the thread

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._at_once.wait(RETRY if self.error and not self._hopeless else GATHER)
            self._wanted.clear()
            self._at_once.clear()
            with self._lock:
                told, self._after = self._after, []
            self._write_all(patience=0.0 if self.users else LAST_TRY)
            if self.error and self._maker.pending and self.users:
                self._wanted.set()  # again, a little later
            with self._lock:
                over = not self.users and not self._after and not self._notes
                if over:
                    self.ended.set()
            if over:
                self._close()
            for callback in told:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    callback()
            if over:
                return

    def _write_all(self, *, patience: float) -> None:
        until = time.monotonic() + patience
        while self._notes or self._maker.pending:
            if not self._maker.pending or not self.error:
                self._maker.take([self._notes.popleft() for _ in range(min(len(self._notes), ROWS))], self._next_key)
            if self._write() or self._hopeless:
                continue
            if time.monotonic() >= until:
                break
            time.sleep(0.05)
        if self._maker.pending and not self.users:
            self._give_up()
            log.warning("%d runs could not be written to %s: %s", self.lost, self.path, self.error)

    def _next_key(self) -> int:
        return next(self._numbers)

    def _write(self) -> bool:
        try:
            db = self._open()
            with self._transaction(db):
                self._maker.store(db, session=self._session)
        except RunsError as error:
            self._failed(error, hopeless=not isinstance(error.__cause__, (OSError, sqlite3.OperationalError)))
            return False
        except (sqlite3.Error, OSError) as error:
            self._failed(error, hopeless=False)
            return False
        self._maker.written()
        if self.error is not None:
            self.error = None
            log.warning("the run history %s can be written again", self.path)
        return True

    @staticmethod
    @contextlib.contextmanager
    def _transaction(db: sqlite3.Connection) -> Iterator[None]:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        if self._db is not None and file_at(self.path) != self._place:
            log.warning("the run history %s was removed or replaced while it was in use: a new one is begun or continued there", self.path)
            with contextlib.suppress(sqlite3.Error):
                self._maker.carry_over(self._db, session=self._session)
            self._close()
        if self._db is None:
            db = connect(self.path)
            try:
                me = identify(os.getpid())
                about = (
                    socket.gethostname(), os.getpid(), 0.0 if me is None else me.start, time.time(),
                    os.environ.get("USER"), platform.python_version(), notebook_name(),
                )  # fmt: skip
                row = db.execute(
                    "INSERT INTO sessions (host, pid, start, began, user, python, notebook) VALUES (?, ?, ?, ?, ?, ?, ?)", about
                )
                self._session = int(row.lastrowid or 0)
                _mark_lost(db)
            except BaseException:
                db.close()
                raise
            self._db, self._place = db, file_at(self.path)
        return self._db

    def _failed(self, error: Exception, *, hopeless: bool) -> None:
        if self.error is None:
            log.warning("runs are not recorded at the moment: %s", error)
        self.error = str(error)
        if hopeless:
            self._hopeless = True
            self._give_up()

    def _give_up(self) -> None:
        starts = sum(isinstance(note, Note) and note.kind is not EventKind.EXITED for note in self._notes)
        self.lost += len(self._maker.pending) + starts
        self._maker.pending.clear()
        self._notes.clear()

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()


def _mark_lost(db: sqlite3.Connection) -> None:
    """Runs of kernels of this host that are no more did not end as far as anybody knows."""
    query = "SELECT key, pid, start FROM sessions WHERE host = ? AND key IN (SELECT session FROM runs WHERE state = 'running')"
    for key, pid, start in db.execute(query, (socket.gethostname(),)).fetchall():
        alive = identify(pid)
        if alive is None or alive.start != start:
            db.execute("UPDATE runs SET state = 'lost', reason = 'its kernel ended' WHERE state = 'running' AND session = ?", (key,))


_writers: dict[Path, RunWriter] = {}
_registry_lock = threading.Lock()


def writer_for(path: Path) -> RunWriter:
    """The writer of this file in this interpreter, with one user more. Raises RunsError for a place that can't be written."""
    path = whole_path(path)
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        why = "the folder is not there" if not place.exists() else f"{place} can't be written"
        raise RunsError(f"runs can't be recorded in {path}: {why}", hint="give a path in a folder of yours")
    with _registry_lock:
        writer = _writers.get(path)
        if writer is None:
            writer = _writers[path] = RunWriter(path)
        writer.users += 1
        return writer


def writing(path: Path) -> RunWriter | None:
    """The writer of this file in this interpreter, if it has one."""
    with _registry_lock:
        return _writers.get(path.expanduser().absolute())


def _finish() -> None:
    """At the interpreter's end: what is gathered goes to disk, within a second."""
    with _registry_lock:
        writers = list(_writers.values())
    for writer in writers:
        writer.flush(1.0)


def _forget() -> None:
    """In a forked child there is no thread that writes, and the file is the parent's."""
    _writers.clear()
    if _registry_lock.locked():  # by a thread that this child does not have
        _registry_lock.release()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
