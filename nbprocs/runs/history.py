"""The history as it is read: filters that make one query, records, a DataFrame. Reading opens the file for a moment and holds nothing."""

import contextlib
import functools
import gc
import json
import os
import socket
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from nbprocs import checks
from nbprocs.display import Displayable, Html, table, text
from nbprocs.engine.table import identify
from nbprocs.errors import UnknownProcess
from nbprocs.runs.errors import RunsError
from nbprocs.runs.record import RunRecord, human_bytes, human_seconds, read_context
from nbprocs.runs.schema import COLUMNS, readable
from nbprocs.runs.writer import writing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from nbprocs.runs.learned import Regression

__all__ = ["RunHistory", "Where", "stored_output"]

Time = datetime | timedelta | str | float
_TIME = "a datetime, an ISO text, seconds since the epoch, or a timedelta before now"
_SHOWN = 20  # rows of a display
_PLAIN = [name for name in COLUMNS if name not in {"key", "session", "command", "context"}]
_FRAME = ("name", "id", "started", "ended", "state", "exit_code", "signal", "reason", "seconds", "cpu", "peak_rss", "read_bytes",
          "written_bytes", "queued", "task", "parent", "cell")  # fmt: skip
_KINDS = {"exit_code": "Int64", "signal": "Int64", "peak_rss": "Int64", "read_bytes": "Int64", "written_bytes": "Int64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What a run must be like to be among those that are asked for. Pure: it makes SQL, and does not run it."""

    command: str | None = None
    name: str | None = None
    state: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    task: str | None = None

    def sql(self, dead: Sequence[int]) -> tuple[str, list[Any]]:
        """A condition and its values. ``dead`` are the sessions whose kernels have ended."""
        parts: list[str] = []
        values: list[Any] = []
        if self.command is not None:
            how = "text GLOB ?" if set("*?[") & set(self.command) else "instr(text, ?)"
            parts.append(f"command IN (SELECT key FROM commands WHERE {how})")  # noqa: S608 - values are bound
            values.append(self.command)
        if self.name is not None:
            parts.append("name GLOB ?" if set("*?[") & set(self.name) else "name = ?")
            values.append(self.name)
        if self.state:
            parts.append(f"({' OR '.join(_state(state, dead) for state in self.state)})")
            values += self.state
        for condition, value in (("started >= ?", self.since), ("started < ?", self.until), ("task = ?", self.task)):
            if value is not None:
                parts.append(condition)
                values.append(value)
        return " AND ".join(parts) or "true", values


def _state(state: str, dead: Sequence[int]) -> str:
    gone = ", ".join(str(int(key)) for key in dead)
    if state == "lost" and dead:
        return f"state = ? OR (state = 'running' AND session IN ({gone}))"
    if state == "running" and dead:
        return f"state = ? AND session NOT IN ({gone})"
    return "state = ?"


class RunHistory(Displayable):
    r"""The runs in a file, oldest first: index it, iterate it, filter it, take it as a DataFrame.

    >>> async with nbprocs.ProcessManager(runs="example.db") as pm:
    ...     for n in range(3):
    ...         _ = await pm.run("echo", str(n), name=f"echo {n}")
    >>> history = RunHistory("example.db")
    >>> len(history), history[-1].name, history.filter(command="echo 1")[0].stdout
    (3, 'echo 2', '1\n')
    """

    def __init__(self, path: str | os.PathLike[str], where: Where | None = None) -> None:
        """Raises TypeError or ValueError for what is no path; RunsError when it is read and can't be."""
        self.path: Path = Path(checks.path("path", path))
        self.where: Where = where or Where()

    def filter(
        self,
        *,
        command: str | None = None,
        name: str | None = None,
        state: str | Iterable[str] | None = None,
        since: Time | None = None,
        until: Time | None = None,
        task: str | None = None,
    ) -> "RunHistory":
        """Those of them that are like that.

        Args:
            command: a part of the command line as displayed, or a pattern for all of it, with ``*``, ``?`` and ``[]``.
            name: the name, or a pattern.
            state: one or several of running, completed, failed, terminated, lost.
            since: started at that time or later: a datetime, an ISO text, seconds since the epoch, or a timedelta before now.
            until: started before that time.
            task: a scheduler's task id.

        Raises TypeError or ValueError for what is none of these.
        """
        for argument, value in (("command", command), ("name", name), ("task", task)):
            if value is not None:
                checks.text(argument, value)
        states = (state,) if isinstance(state, str) else checks.words("state", state or ())
        given: dict[str, Any] = {
            "command": command, "name": name, "state": tuple(map(str, states)) or None, "since": _seconds("since", since),
            "until": _seconds("until", until), "task": task,
        }  # fmt: skip
        return RunHistory(self.path, replace(self.where, **{key: value for key, value in given.items() if value is not None}))

    # -- reading

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[sqlite3.Connection, str, list[Any], list[int]]]:
        """An open file with the condition and the sessions that are dead; what this interpreter gathered is written first."""
        writer = writing(self.path)
        if writer is not None:
            writer.flush()
        from nbprocs.runs.queues import opened  # noqa: PLC0415 - who records, needs no scheduler

        with contextlib.closing(opened(self.path)) as db:
            try:
                dead = _dead(db)
                yield db, *self.where.sql(dead), dead
            except sqlite3.Error as error:
                raise RunsError(f"the run history {self.path} can't be read: {error}", hint="restore a copy, or start another") from error

    def __len__(self) -> int:
        with self._reading() as (db, condition, values, _):
            return int(db.execute(f"SELECT count(*) FROM runs WHERE {condition}", values).fetchone()[0])  # noqa: S608 - values are bound

    def __bool__(self) -> bool:
        return True

    @overload
    def __getitem__(self, key: int | str) -> RunRecord: ...
    @overload
    def __getitem__(self, key: slice) -> list[RunRecord]: ...
    def __getitem__(self, key: int | str | slice) -> RunRecord | list[RunRecord]:
        """By place (``-1`` is the youngest), by id or its beginning, or by name (the youngest).

        Raises IndexError or UnknownProcess; TypeError for any other key.
        """
        if isinstance(key, str):
            return self.get(key)
        if isinstance(key, slice):
            return self._sliced(key)
        key = checks.whole("the place of a run", key)
        found = self._records("ASC" if key >= 0 else "DESC", 1, key if key >= 0 else -key - 1)
        if not found:
            raise IndexError(f"there is no run number {key} in {self!r}")
        return found[0]

    def _sliced(self, key: slice) -> list[RunRecord]:
        if key.step not in (None, 1):
            return list(self)[key]
        if key.start is not None and key.start < 0 and key.stop is None:
            return self._records("DESC", -key.start)[::-1]
        start, stop, _ = key.indices(len(self))
        return self._records("ASC", max(stop - start, 0), start)

    def get(self, key: str) -> RunRecord:
        """By id, the beginning of an id (at least 6 characters), or name, of which the youngest. Raises UnknownProcess."""
        checks.text("key", key)
        for extra in ("name = ?", "id = ?", "id GLOB ?"):
            value = f"{key}*" if "GLOB" in extra else key
            if "GLOB" in extra and len(key) < 6:  # noqa: PLR2004 - shorter ones are names
                continue
            found = self._records("DESC", 1, extra=(extra, value))
            if found:
                return found[0]
        raise UnknownProcess(f"no run {key!r} in {self.path}", hint="frame() lists them")

    def __iter__(self) -> Iterator[RunRecord]:
        """All, oldest first; a thousand are read at a time."""
        at = 0
        while found := self._records("ASC", 1000, at):
            yield from found
            at += len(found)

    def _records(self, order: str, limit: int, offset: int = 0, extra: tuple[str, Any] | None = None) -> list[RunRecord]:
        with self._reading() as (db, condition, values, dead):
            more = "" if extra is None else f"AND {extra[0]}"
            bound = [*values, *(() if extra is None else (extra[1],)), limit, offset]
            keys = db.execute(
                f"SELECT key FROM runs WHERE {condition} {more} ORDER BY started {order}, key {order} LIMIT ? OFFSET ?",  # noqa: S608
                bound,
            ).fetchall()
            columns = ", ".join(f"runs.{name}" for name in _PLAIN)
            query = (
                f"SELECT runs.key, runs.session, {columns}, commands.text, commands.config, contexts.value, host, user, python, notebook "  # noqa: S608
                "FROM runs JOIN commands ON commands.key = runs.command LEFT JOIN contexts ON contexts.key = runs.context "
                "LEFT JOIN sessions ON sessions.key = runs.session WHERE runs.key = ?"
            )
            return [self._record(db.execute(query, found).fetchone(), set(dead)) for found in keys]

    def _record(self, row: tuple[Any, ...], dead: set[int]) -> RunRecord:
        key, session, *rest = row
        fields = dict(zip(_PLAIN, rest, strict=False))
        if fields["state"] == "running" and session in dead:
            fields["state"], fields["reason"] = "lost", "its kernel ended"
        command, config, context, host, user, python, notebook = rest[len(_PLAIN) :]
        about = {"host": host or "", "user": user, "python": python, "notebook": notebook, **read_context(context)}
        return RunRecord(path=self.path, key=key, command=command, config=json.loads(config), **fields, **about)

    def frame(self, *, limit: int | None = None) -> "pd.DataFrame":
        """A row a run, oldest first (past ``limit`` only the youngest), indexed by name; times in UTC, memory in bytes, commands masked."""
        import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

        with self._reading() as (db, condition, values, dead):
            cut = "" if limit is None else f"LIMIT {checks.whole('limit', limit, least=0)}"
            order = "" if limit is None else "ORDER BY started DESC"
            columns = ", ".join(("session", "command", "context", *_FRAME))
            with _no_collection():
                rows = db.execute(f"SELECT {columns} FROM runs WHERE {condition} {order} {cut}", values).fetchall()  # noqa: S608 - bound
            commands = dict(db.execute("SELECT key, text FROM commands"))
            contexts = _contexts(db, {row[2] for row in rows})
            hosts = {key: (host, notebook) for key, host, notebook in db.execute("SELECT key, host, notebook FROM sessions")}
        given = dict(zip(("session", "command", "context", *_FRAME), zip(*rows, strict=True), strict=True)) if rows else {}
        empty: tuple[Any, ...] = ()
        found = pd.DataFrame({name: given.get(name, empty) for name in _FRAME})
        for name in ("started", "ended", "queued"):
            found[name] = pd.to_datetime(found[name].astype("float64"), unit="s", utc=True)
        about = [contexts.get(key, _NOTHING) for key in given.get("context", empty)]
        for at, name in enumerate(("folder", "revision", "dirty")):
            found[name] = [row[at] for row in about]
        sessions = [hosts.get(key, (None, None)) for key in given.get("session", empty)]
        found["host"] = [row[3] or session[0] for row, session in zip(about, sessions, strict=True)]
        found["worker"] = [row[4] for row in about]
        found["notebook"] = [session[1] for session in sessions]
        found.insert(1, "command", [commands.get(key, "") for key in given.get("command", empty)])
        if dead and len(found):
            gone = (found["state"] == "running") & pd.Series(given["session"]).isin(dead)
            found.loc[gone, "state"] = "lost"
        return found.astype(_KINDS).sort_values("started", kind="stable").set_index("name")

    # -- looking

    def plot(self, name: str | None = None, *, ax: "Sequence[Axes] | None" = None) -> "Sequence[Axes]":
        """Duration and memory over time, of the runs of that name or all of these, with failures marked; two axes of matplotlib."""
        from nbprocs.runs.plots import plot  # noqa: PLC0415 - drawing only

        title = name or self.where.name or self.where.command or ""
        return plot((self if name is None else self.filter(name=name)).frame(), title=title, ax=ax)

    def timeline(self, *, ax: "Axes | None" = None) -> "Axes":
        """What ran when, like a flame graph: bars in as few rows as needed. Of the kernel's session, ``filter(since=…)`` first."""
        from nbprocs.runs.plots import timeline  # noqa: PLC0415 - drawing only

        return timeline(self.frame(), ax=ax)

    def regressions(self, *, factor: float = 2.0, window: int = 20, minimum: int = 5) -> "list[Regression]":
        """Which runs took ``factor`` times the median of the ``window`` successful ones of the same command before them, or more.

        Only where there were ``minimum`` of those.
        """
        from nbprocs.runs.learned import regressions  # noqa: PLC0415 - only when asked for

        return regressions(self.frame(), factor=factor, window=window, minimum=minimum)

    def export(self) -> dict[str, Any]:
        """The runs with their inputs, revisions and agents in the terms of W3C PROV, as PROV-JSON; ``json.dump`` it."""
        from nbprocs.runs.prov import prov_json  # noqa: PLC0415 - only when asked for

        return prov_json(self)

    def __repr__(self) -> str:
        try:
            count = f"{len(self):,} runs"
        except RunsError as error:
            count = str(error).splitlines()[0]
        chosen = {name: value for name in Where.__slots__ if (value := getattr(self.where, name))}
        return f"<RunHistory {self.path.name}: {count}{f', {chosen}' if chosen else ''}>"

    def _html_(self) -> Html:
        try:
            found = self[-_SHOWN:]
        except RunsError:
            return super()._html_()
        rows = (
            (
                text(run.name), text(run.state), text(datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%d %H:%M:%S")),
                "" if run.seconds is None else human_seconds(run.seconds), human_bytes(run.peak_rss) or "", text(run.revision or ""),
                Html("<code>{}</code>").format(text(run.command, limit=100)),
            )
            for run in reversed(found)
        )  # fmt: skip
        head = ("name", "state", "started", "time", "memory", "revision", "command")
        return Html("<div>{}{}</div>").format(text(repr(self)), table(head, rows))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """While very many tuples are made, none of which is garbage, looking for garbage among them would take a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


_NOTHING = ("", None, None, None, None)


def _contexts(db: sqlite3.Connection, wanted: set[Any]) -> dict[int, tuple[Any, ...]]:
    """Folder, revision, dirty mark, host and worker of some contexts."""
    query = (
        "SELECT key, json_extract(value, '$.folder'), json_extract(value, '$.git.revision'), json_extract(value, '$.git.dirty'),"
        " json_extract(value, '$.host'), json_extract(value, '$.worker') FROM contexts WHERE key IN (SELECT value FROM json_each(?))"
    )
    db.text_factory = functools.partial(str, encoding="utf-8", errors="replace")  # a folder's name may be no text
    rows = db.execute(query, (json.dumps([key for key in wanted if key is not None]),)).fetchall()
    db.text_factory = str
    return {key: (folder or "", revision, None if dirty is None else bool(dirty), *place) for key, folder, revision, dirty, *place in rows}


def _dead(db: sqlite3.Connection) -> list[int]:
    """The sessions of this host that had runs when their kernels ended."""
    query = "SELECT key, pid, start FROM sessions WHERE host = ? AND key IN (SELECT session FROM runs WHERE state = 'running')"
    dead = []
    for key, pid, start in db.execute(query, (socket.gethostname(),)):
        alive = identify(pid)
        if alive is None or alive.start != start:
            dead.append(key)
    return dead


def _seconds(argument: str, time: Time | None) -> float | None:
    if time is None:
        return None
    try:
        if isinstance(time, timedelta):
            return (datetime.now(UTC) - time).timestamp()
        moment = datetime.fromisoformat(time) if isinstance(time, str) else time
        if isinstance(moment, datetime):
            return moment.timestamp()  # without a zone it is local time
    except (ValueError, OverflowError):
        checks.refuse(ValueError, argument, _TIME, time)
    return checks.number(argument, time, what=_TIME)


def stored_output(path: Path, key: int, stream: str) -> str | None:
    """The whole output of a run, if it was kept. Raises RunsError."""
    with contextlib.closing(readable(path)) as db:
        found = db.execute("SELECT data FROM outputs WHERE run = ? AND stream = ?", (key, stream)).fetchone()
    return None if found is None else zlib.decompress(found[0]).decode("utf-8", "replace")
