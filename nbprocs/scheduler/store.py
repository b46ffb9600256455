"""The durable queue: SQLite in WAL mode, one writer, which holds the file's lock for as long as it lives.

What survives: every commit is a write() to the write-ahead log, which a killed *process* can't take back. With ``synchronous=NORMAL`` it
is not an fsync: a power failure or a crash of the whole machine may lose the last moments (never the consistency of the file). That is the
price of 10,000 durable tasks a second.

The lock is SQLite's own (locking_mode=EXCLUSIVE): the system drops it with the process, however that ends. ``FILE-owner`` only says who
it is.
"""

import contextlib
import itertools
import json
import os
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from nbprocs.engine.home import log
from nbprocs.engine.places import file_at
from nbprocs.scheduler.errors import StoreCorrupt, StoreError, StoreInUse
from nbprocs.scheduler.schema import ATTEMPT, OUTPUT, create, inspect, rewrite, upgrade
from nbprocs.scheduler.system import whole_path

__all__ = ["INSERT", "Store"]

_PLAIN = "INSERT INTO tasks (key, argv, priority, time, folder) VALUES (?, ?, ?, ?, ?)"  # all else at its default: half the time
_COLUMNS = "key, argv, priority, time, folder, clock, state, options, after, name, unique_key"
INSERT = f"INSERT INTO tasks ({_COLUMNS}) VALUES ({', '.join('?' * 11)})"  # noqa: S608 - no text of a user's
_PLAIN_COLUMNS = 5
_ATTEMPT_COLUMNS = f"{ATTEMPT}, {OUTPUT}"
_INSERT_ATTEMPT = f"INSERT INTO attempts ({_ATTEMPT_COLUMNS}) VALUES ({', '.join('?' * len(_ATTEMPT_COLUMNS.split(',')))})"  # noqa: S608 - no text of a user's

_LOOK = 1.0  # seconds between two looks whether the file is still there
_open_here: set[tuple[int, int] | None] = set()  # (device, inode): a second open in this process would drop the POSIX lock of the first
_registry = threading.Lock()


def _lenient(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class Store:
    """One open queue database. Methods may be called from any thread; each returns when its change is committed.

    Raises StoreInUse, StoreCorrupt or StoreTooNew, and has then changed nothing.
    """

    def __init__(self, path: str | os.PathLike[str], *, prefix: str) -> None:
        self.path: Path = whole_path(path)  # now: the folder may be another one when it is closed
        self._lock = threading.RLock()
        if not os.path.exists(self.path):  # noqa: PTH110 - pathlib's raises for a name that is too long
            create(self.path, prefix)
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):
            hint = "give the path of a file; it was neither opened nor changed"
            raise StoreCorrupt(f"{self.path} can't be used as a queue: it is not a regular file", hint=hint)
        if status.st_size == 0 and not Path(f"{self.path}-journal").exists():  # as made by touch or mktemp
            create(self.path, prefix, replace=True)
            status = self.path.stat()
        self._identity: tuple[int, int] | None = (status.st_dev, status.st_ino)
        self._look_at = time.monotonic() + _LOOK
        with _registry:
            if self._identity in _open_here:
                raise StoreInUse(
                    f"the queue {self.path} is already open in this kernel",
                    hint="TaskScheduler.opened(…) returns that scheduler; `await sch.aclose()` closes it",
                )
            _open_here.add(self._identity)
        try:
            self.prefix: str
            self._db, self.prefix = self._connect()
        except BaseException:
            with _registry:
                _open_here.discard(self._identity)
            raise
        self._write_owner()

    def _connect(self) -> tuple[sqlite3.Connection, str]:
        """The open queue, locked, and its prefix."""
        try:
            inspect(self.path)
        except StoreInUse as error:
            raise self._in_use() from error
        db = sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False, cached_statements=64)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 4000")
            db.execute("BEGIN IMMEDIATE")
            upgrade(db, self.path)
            db.execute("COMMIT")
            return db, str(db.execute("SELECT value FROM meta WHERE name = 'prefix'").fetchone()[0])
        except sqlite3.Error as error:
            db.close()
            if "locked" in str(error) or "busy" in str(error):
                raise self._in_use() from error
            raise StoreError(
                f"could not open the queue {self.path}: {error}", hint="check the folder and the file's permissions"
            ) from error
        except BaseException:
            db.close()
            raise

    # -- who has it

    @property
    def _owner_file(self) -> Path:
        return Path(f"{self.path}-owner")

    def _write_owner(self) -> None:
        me = {"pid": os.getpid(), "start": psutil.Process().create_time(), "host": socket.gethostname(), "since": time.time()}
        with contextlib.suppress(OSError):  # only information: the lock is SQLite's
            self._owner_file.unlink(missing_ok=True)
            with os.fdopen(os.open(self._owner_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(json.dumps(me))

    def _in_use(self) -> StoreInUse:
        who = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError):
            owner = json.loads(self._owner_file.read_text())
            who = f"process {owner['pid']} on {owner['host']} (since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(owner['since']))})"
        hint = (
            "close that scheduler (await sch.aclose()), shut down that kernel, or use another file; one kernel at a time works on a queue"
        )
        return StoreInUse(f"the queue {self.path} is in use by {who}", hint=hint)

    # -- whether it is still there

    def _see_to_file(self) -> None:
        """Once a second, before something is written: write the file again if somebody has removed it, or nothing would be kept.

        Raises StoreError where that can't be, or where something else is in its place.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        found = file_at(self.path)
        if found is None:
            log.warning("the file of the queue %s was removed while it was in use: it is written again", self.path)
            self._write_again()
        elif found != self._identity:
            raise StoreError(
                f"the file of the queue {self.path} was replaced by another one while it was in use",
                hint="move that one away: this queue is then written there again",
            )
        self._look_at = now + _LOOK

    def _write_again(self) -> None:
        rewrite(self._db, self.path)
        old, (self._db, _) = self._db, self._connect()
        old.close()
        with _registry:
            _open_here.discard(self._identity)
            self._identity = file_at(self.path)
            _open_here.add(self._identity)
        self._write_owner()

    # -- writing

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._see_to_file()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:  # of a full disk SQLite has rolled back by itself
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._failed(error) from error
                raise

    def _failed(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"the queue {self.path} could not be written: {error}", hint="free some disk space, or check the file's permissions"
        )

    def insert(self, row: tuple[Any, ...]) -> None:
        """One new task; see INSERT for the columns. A row of the first five stands for one with nothing special."""
        with self._lock:
            self._see_to_file()
            try:
                self._db.execute(_PLAIN if len(row) == _PLAIN_COLUMNS else INSERT, row)
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def insert_many(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Many new tasks: all or none."""
        with self._transaction() as db:
            for plain, run in itertools.groupby(rows, lambda row: len(row) == _PLAIN_COLUMNS):
                db.executemany(_PLAIN if plain else INSERT, run)

    def batch(
        self, updates: Iterable[tuple[int, dict[str, Any]]], attempts: Iterable[tuple[Any, ...]], settings: Mapping[str, str | None]
    ) -> None:
        """Changes of tasks, ended attempts and what is said of the queue itself, in one transaction."""
        with self._transaction() as db:
            for key, columns in updates:
                names = ", ".join(f"{name} = ?" for name in columns)
                db.execute(f"UPDATE tasks SET {names} WHERE key = ?", (*columns.values(), key))  # noqa: S608 - our own column names
            db.executemany(_INSERT_ATTEMPT, attempts)
            for name, value in settings.items():
                if value is None:
                    db.execute("DELETE FROM meta WHERE name = ?", (name,))
                else:
                    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def forget(self, before: float) -> int:
        """Delete tasks that ended before that time (seconds since the epoch), with their attempts; returns how many."""
        with self._transaction() as db:
            ended = (
                "SELECT key FROM tasks WHERE state NOT IN ('queued', 'held', 'running') AND time < ?"
                " AND key NOT IN (SELECT key FROM attempts WHERE ended >= ?)"
                " AND key < (SELECT max(key) FROM tasks)"  # the next key is counted from the last one
            )
            db.execute(f"DELETE FROM attempts WHERE key IN ({ended})", (before, before))  # noqa: S608 - no text of a user's
            return db.execute(f"DELETE FROM tasks WHERE key IN ({ended})", (before, before)).rowcount  # noqa: S608 - no text of a user's

    # -- reading

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        with self._lock:
            try:
                return list(self._db.execute(query, values))
            except sqlite3.Error as error:
                raise StoreError(f"the queue {self.path} could not be read: {error}", hint="see whether the file is still there") from error

    def last_key(self) -> int:
        """The highest key ever given; 0 in a new queue."""
        return int(self.rows("SELECT coalesce(max(key), 0) FROM tasks")[0][0])

    def each(self, query: str, use: Callable[..., None]) -> None:
        """Call ``use(*row)`` for each row, without holding them all. Text that is none comes as bytes."""
        with self._lock:
            try:
                for row in self._db.execute(query):
                    use(*row)
            except sqlite3.Error as error:
                if "decode" not in str(error):
                    raise StoreError(
                        f"the queue {self.path} could not be read: {error}", hint="see whether the file is still there"
                    ) from error
                self._db.text_factory = _lenient  # one bad row somewhere: all again, slower
                try:
                    for row in self._db.execute(query):
                        use(*row)
                finally:
                    self._db.text_factory = str

    def settings(self) -> dict[str, Any]:
        """What is said of the queue itself. What can't be read is left out."""
        found = {}
        for name, value in self.rows("SELECT name, value FROM meta WHERE name != 'prefix'"):
            with contextlib.suppress(ValueError, RecursionError):
                found[name] = json.loads(value)
        return found

    def close(self) -> None:
        """Fold the log into the file and let go of the lock. Idempotent."""
        with self._lock:
            self._db.close()
        with _registry:
            _open_here.discard(self._identity)
        with contextlib.suppress(OSError):
            self._owner_file.unlink(missing_ok=True)
