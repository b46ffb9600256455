"""The tables of a run history, and the steps from an older format to this one.

A run's row is narrow: its command, and all that it shares with other runs (folder, environment, revision, inputs), are rows of two other
tables, found by a hash. A million runs of a thousand commands are a few hundred bytes each, and a search by command looks at the thousand.
"""

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from nbprocs.runs.errors import IsQueue, RunsError, RunsTooNew

__all__ = ["APPLICATION", "COLUMNS", "MIGRATIONS", "VERSION", "connect", "fresh", "readable", "upsert"]

APPLICATION = 0x6E627272  # "nbrr", in the file's header
VERSION = 1
BUSY = 5000  # ms that a writer waits for another kernel's

COLUMNS = (
    "key", "id", "session", "parent", "name", "command", "context", "task", "queued", "started", "ended", "state", "exit_code", "signal",
    "reason", "seconds", "cpu", "peak_rss", "read_bytes", "written_bytes", "stdout", "stderr", "stdout_bytes", "stderr_bytes", "dropped",
    "pid", "cell", "error",
)  # fmt: skip

_SCHEMA = """
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: the keys of its runs begin with it
    host TEXT NOT NULL, pid INTEGER NOT NULL, start REAL NOT NULL, began REAL NOT NULL, user TEXT, python TEXT, notebook TEXT, version TEXT
);
CREATE TABLE commands (
    key INTEGER PRIMARY KEY,                -- a hash of the rest: two kernels agree on it without asking
    text TEXT NOT NULL,                     -- as displayed, masked
    config TEXT NOT NULL,                   -- JSON of the ProcessConfig, masked; without name, folder and environment
    fingerprint INTEGER NOT NULL,           -- of all words
    family INTEGER NOT NULL                 -- of the program and its first argument
);
CREATE INDEX commands_fingerprint ON commands (fingerprint);
CREATE INDEX commands_family ON commands (family);
CREATE TABLE contexts (key INTEGER PRIMARY KEY, value TEXT NOT NULL);  -- JSON: folder, env, kernel, git, inputs; the key is its hash
CREATE TABLE runs (
    key INTEGER PRIMARY KEY,                -- session << 32 | number
    id TEXT NOT NULL, session INTEGER NOT NULL, parent TEXT, name TEXT NOT NULL, command INTEGER NOT NULL, context INTEGER,
    task TEXT, queued REAL, started REAL NOT NULL, ended REAL, state TEXT NOT NULL, exit_code INTEGER, signal INTEGER, reason TEXT,
    seconds REAL, cpu REAL, peak_rss INTEGER, read_bytes INTEGER, written_bytes INTEGER, stdout TEXT, stderr TEXT,
    stdout_bytes INTEGER, stderr_bytes INTEGER, dropped INTEGER, pid INTEGER, cell TEXT, error TEXT
);
CREATE INDEX runs_started ON runs (started);
CREATE INDEX runs_name ON runs (name, started);
CREATE INDEX runs_state ON runs (state, started);
CREATE INDEX runs_command ON runs (command, started);
CREATE TABLE outputs (run INTEGER NOT NULL, stream TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (run, stream)) WITHOUT ROWID;
"""

MIGRATIONS: Mapping[int, str] = {1: _SCHEMA}  # what makes format n of format n - 1; 0 is an empty file. Add to it, never change it


def upsert(rows: int) -> str:
    """One statement for so many rows: they go in by one call, during which the interpreter's lock is free.

    ``executemany`` would take and give the lock for each row.
    """
    row = f"({', '.join('?' * len(COLUMNS))})"
    changes = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name != "key")
    return (
        f"INSERT INTO runs ({', '.join(COLUMNS)}) VALUES {', '.join([row] * rows)} "  # noqa: S608 - our own names
        f"ON CONFLICT (key) DO UPDATE SET {changes}"
    )


def connect(path: Path, *, migrations: Mapping[int, str] = MIGRATIONS) -> sqlite3.Connection:
    """Open the history for writing; make it, with mode 0600, or bring it to this format if need be. It blocks.

    Raises RunsTooNew for a newer format and RunsError for what can't be a history; the file is unchanged then.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its -wal and -shm files the same mode
        db = sqlite3.connect(path, isolation_level=None, timeout=BUSY / 1000, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise RunsError(
            f"the run history {path} can't be opened: {error}", hint="check the folder, its permissions and the free space"
        ) from error
    try:
        found = check(db, path, newest=max(migrations))
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("PRAGMA synchronous = NORMAL")
        if found < max(migrations):
            _migrate(db, migrations)
    except sqlite3.Error as error:
        db.close()
        raise RunsError(
            f"the run history {path} can't be used: {error}", hint="the file is unchanged: move it away, or restore a copy"
        ) from error
    except BaseException:
        db.close()
        raise
    return db


def fresh() -> sqlite3.Connection:
    """An empty history in memory."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _migrate(db, MIGRATIONS)
    return db


def _migrate(db: sqlite3.Connection, migrations: Mapping[int, str]) -> None:
    """All steps in one transaction: another kernel, or a kill at any line, sees the old format or the new one."""
    db.execute("BEGIN IMMEDIATE")
    try:
        (found,) = db.execute("PRAGMA user_version").fetchone()  # again, now that nobody else writes
        for version in range(found + 1, max(migrations) + 1):
            for statement in _statements(migrations[version]):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version}")
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # of a full disk SQLite has rolled back by itself
            db.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """One by one: ``executescript`` would commit first."""
    found, rest = [], ""
    for line in script.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            found.append(rest)
            rest = ""
    return found


def check(db: sqlite3.Connection, path: Path, *, newest: int = VERSION) -> int:
    """The format of the file; 0 for an empty one. Raises RunsError or RunsTooNew."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION and (tables or application):
        from nbprocs.scheduler.schema import APPLICATION as QUEUE  # noqa: PLC0415 - who records, needs no scheduler

        if application == QUEUE:
            raise IsQueue(f"{path} is a scheduler's queue", hint="give another path to record runs in; the file is unchanged")
        raise RunsError(f"{path} is an SQLite database, but no run history of nbprocs", hint="give another path; the file is unchanged")
    if version > newest:
        raise RunsTooNew(
            f"the run history {path} has format {version}; this version of nbprocs reads up to {newest}",
            hint="update nbprocs; the file is unchanged",
        )
    return int(version) if tables else 0


def whole_path(path: str | os.PathLike[str]) -> Path:
    """The file of a history, absolute. Raises RunsError for what can be no path of one: too long, a circle of links, with a NUL."""
    try:
        found = Path(path).expanduser().absolute()
        with contextlib.suppress(FileNotFoundError):
            found.stat()  # exists() and resolve() say nothing of some of these, from Python 3.13 on
    except (OSError, RuntimeError, ValueError) as error:
        raise RunsError(f"the run history {path} can't be opened: {error}", hint="give the path of a file") from error
    return found


def readable(path: Path) -> sqlite3.Connection:
    """Open it for reading only. Raises RunsError, also for a file that isn't there; it blocks."""
    if not path.is_file():
        raise RunsError(
            f"there is no run history {path}", hint=f"record one: ProcessManager(runs={str(path)!r}) or nbprocs.set_runs({str(path)!r})"
        )
    try:
        # Plain "ro" needs the -shm file that a reader in a read-only folder can't make; "immutable" reads what is in the file itself.
        for mode in ("mode=ro", "immutable=1"):
            db = sqlite3.connect(
                f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=BUSY / 1000, check_same_thread=False
            )
            try:
                found = check(db, path)
            except sqlite3.OperationalError:
                db.close()
                if mode != "mode=ro":
                    raise
                continue
            except BaseException:
                db.close()
                raise
            if not found:
                db.close()
                raise RunsError(f"{path} is empty: nothing was recorded yet")
            return db
        raise AssertionError  # the loop returns or raises
    except sqlite3.Error as error:
        raise RunsError(
            f"the run history {path} can't be read: {error}", hint="is it an SQLite file? restore a copy, or start another"
        ) from error
