"""The tables of the durable queue, and telling whether a file is one, before anything opens it for writing."""

import contextlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from nbprocs.scheduler.errors import StoreCorrupt, StoreError, StoreInUse, StoreTooNew

__all__ = ["APPLICATION", "ATTEMPT", "OUTPUT", "VERSION", "create", "inspect", "rewrite", "upgrade"]

APPLICATION = 0x6E627073  # "nbps", in the file's header
VERSION = 2
ATTEMPT = (
    "key, attempt, retry, queued, started, ended, outcome, exit_code, signal, reason, execution_time, peak_rss, cpu_time, "
    "pid, host, slot, worker"
)
OUTPUT = "stdout, stderr, dropped, error"

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (
    key INTEGER PRIMARY KEY,              -- order of arrival; the id is prefix + key
    argv TEXT NOT NULL,                   -- JSON list
    priority INTEGER NOT NULL,
    time REAL NOT NULL,                   -- seconds since the epoch: from when it may run
    clock INTEGER NOT NULL DEFAULT 0,     -- 0: at once, 1: a delay, 2: a date
    state TEXT NOT NULL DEFAULT 'queued',
    options TEXT,                         -- JSON of what differs from the defaults
    after TEXT,                           -- JSON list of [key, condition]
    retries INTEGER NOT NULL DEFAULT 0,
    runs INTEGER NOT NULL DEFAULT 0,
    interruptions INTEGER NOT NULL DEFAULT 0,
    started REAL,                         -- of the attempt under way
    name TEXT,
    error TEXT,                           -- why it was skipped, cancelled or interrupted
    pid INTEGER, host TEXT, worker TEXT,  -- where the attempt under way runs
    folder TEXT,                          -- where it was scheduled
    unique_key TEXT                       -- schedule(key=…)
);
CREATE INDEX named ON tasks (name) WHERE name IS NOT NULL;
CREATE INDEX keyed ON tasks (unique_key) WHERE unique_key IS NOT NULL;
CREATE TABLE attempts (
    key INTEGER NOT NULL, attempt INTEGER NOT NULL, retry INTEGER NOT NULL, queued REAL NOT NULL, started REAL, ended REAL,
    outcome TEXT NOT NULL, exit_code INTEGER, signal INTEGER, reason TEXT, execution_time REAL, peak_rss INTEGER, cpu_time REAL,
    pid INTEGER, host TEXT, slot INTEGER, worker TEXT, stdout BLOB, stderr BLOB, dropped INTEGER, error TEXT
);
CREATE INDEX attempts_of ON attempts (key);
"""

# From version 1 to 2, for a queue that an earlier release wrote.
_UPGRADE = """
ALTER TABLE tasks ADD COLUMN pid INTEGER;
ALTER TABLE tasks ADD COLUMN host TEXT;
ALTER TABLE tasks ADD COLUMN worker TEXT;
ALTER TABLE tasks ADD COLUMN folder TEXT;
ALTER TABLE tasks ADD COLUMN unique_key TEXT;
CREATE INDEX keyed ON tasks (unique_key) WHERE unique_key IS NOT NULL;
ALTER TABLE attempts ADD COLUMN worker TEXT;
"""

# No index on the state: it would more than double what a new task costs, for one scan (0.1 s a million tasks) when a queue is opened.

_HEADER = 100  # bytes
_MAGIC = b"SQLite format 3\0"


def create(path: Path, prefix: str, *, replace: bool = False) -> None:
    """Make an empty queue, readable by its owner alone; ``replace`` an empty file.

    It appears under its name complete or not at all: a kernel may be killed at any line here.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite gives the log beside it the same permissions
        with closing(sqlite3.connect(draft, isolation_level=None)) as db:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.executescript(_SCHEMA)
            db.execute("INSERT INTO meta VALUES ('prefix', ?)", (prefix,))
            db.execute("PRAGMA journal_mode = WAL").fetchone()
        if replace:
            draft.rename(path)
            return
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return  # another kernel was faster: its queue is as good
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"could not create the queue {path}: {error}", hint="check the folder, its permissions and the free space"
        ) from error
    finally:
        _remove(draft)


def rewrite(db: sqlite3.Connection, path: Path) -> None:
    """Write an open queue whose file was removed under its name again, complete or not at all. Raises StoreError, also if there is one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        db.execute("VACUUM INTO ?", (os.fspath(draft),))
        with closing(sqlite3.connect(draft, isolation_level=None)) as made:
            made.execute("PRAGMA journal_mode = WAL").fetchone()
        _remove(path, ("-wal", "-shm", "-journal"))  # of the removed file: SQLite would take them for the new one's
        path.hardlink_to(draft)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"the file of the queue {path} was removed while it was in use, and can't be written again: {error}",
            hint="check the folder, its permissions and the free space",
        ) from error
    finally:
        _remove(draft)


def _remove(path: Path, suffixes: tuple[str, ...] = ("", "-wal", "-shm", "-journal")) -> None:
    for suffix in suffixes:
        with contextlib.suppress(OSError):
            Path(f"{path}{suffix}").unlink()


def upgrade(db: sqlite3.Connection, path: Path) -> None:
    """Give a queue of version 1 the columns of version 2, and its files to their owner alone. Inside a transaction of the caller's."""
    if db.execute("PRAGMA user_version").fetchone()[0] < VERSION:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{path}{suffix}").chmod(0o600)
        for statement in filter(None, map(str.strip, _UPGRADE.split(";"))):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")


def inspect(path: Path) -> None:
    """Refuse a file that is not a sound queue of this version, without changing a byte of it."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if header[:16] != _MAGIC or len(header) < _HEADER:
        raise _corrupt(path, "it is not an SQLite database")
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION:
        raise _corrupt(path, "it is an SQLite database, but not a queue of nbprocs")
    if version > VERSION:
        raise StoreTooNew(
            f"the queue {path} has format {version}; this version of nbprocs reads up to {VERSION}",
            hint="update nbprocs; the file is unchanged",
        )
    try:
        # Read-only: a connection that may write would fold the write-ahead log into the damaged file when it closes.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=0)) as db:
            found = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise StoreInUse(f"the queue {path} is in use") from error
        raise StoreError(f"could not read the queue {path}: {error}", hint="check the folder and its permissions") from error
    except sqlite3.DatabaseError as error:
        raise _corrupt(path, str(error)) from error
    if found != ("ok",):
        raise _corrupt(path, str(found[0]).replace("\n", " ") if found else "unreadable")


def _corrupt(path: Path, why: str) -> StoreCorrupt:
    hint = "the file is unchanged: move it away to start a new queue, or restore a copy; `sqlite3 FILE .recover` saves what can be saved"
    return StoreCorrupt(f"{path} can't be used as a queue: {why}", hint=hint)
