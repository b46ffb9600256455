"""Attempts and tasks as DataFrames. pandas is imported only when one is asked for."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from nbprocs.display import plain
from nbprocs.redact import mask_command
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.model import Attempt, ScheduledTask, priority_name
from nbprocs.scheduler.options import decode
from nbprocs.scheduler.schema import ATTEMPT
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.writer import read_attempt

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["attempts_frame", "stored_rows", "tasks_frame"]

_TIMES = ("queued", "started", "ended")
_INTEGERS = ("exit_code", "signal", "peak_rss", "pid", "slot")


def attempts_frame(attempts: Sequence[Attempt]) -> "pd.DataFrame":
    """One row an attempt; times as datetimes in UTC, whole numbers that may be missing as Int64."""
    import pandas as pd  # noqa: PLC0415 - import nbprocs stays light

    names = [field.name for field in fields(Attempt)]
    text = ("name", "command", "group")  # an argument need not be valid text, a column must
    cells = [[_text(getattr(a, name)) if name in text else getattr(a, name) for name in names] for a in attempts]
    table = pd.DataFrame(cells, columns=names)
    for name in _TIMES:
        table[name] = pd.to_datetime(table[name].astype("float64"), unit="s", utc=True)
    for name in _INTEGERS:
        table[name] = table[name].astype("Int64")
    for name in ("execution_time", "cpu_time"):
        table[name] = table[name].astype("float64")
    table["priority"] = [priority_name(p) for p in table["priority"]]
    table["waited"] = (table["started"] - table["queued"]).dt.total_seconds()
    return table


def _text(given: str | None) -> str | None:
    return None if given is None else plain(given)


def tasks_frame(tasks: Sequence[ScheduledTask]) -> "pd.DataFrame":
    """One row a task."""
    import pandas as pd  # noqa: PLC0415 - import nbprocs stays light

    columns = [
        "id",
        "name",
        "command",
        "state",
        "priority",
        "scheduled_time",
        "retry_count",
        "max_retries",
        "estimated_duration",
        "execution_time",
        "group",
        "runs",
        "host",
        "worker",
    ]
    rows = [
        (
            t.id,
            _text(t.name),
            plain(t.display or mask_command((t.command, *t.args))),
            t.state.value,
            priority_name(t.priority),
            t.scheduled_time,
            t.retry_count,
            t.max_retries,
            t.estimated_duration,
            t.execution_time,
            _text(t.group),
            t.runs,
            t.host,
            t.worker,
        )
        for t in tasks
    ]
    table = pd.DataFrame(rows, columns=columns)
    table["scheduled_time"] = pd.to_datetime(table["scheduled_time"], utc=True)
    return table


def stored_rows(store: Store, prefix: str) -> list[Attempt]:
    """Every attempt in a store, first to last."""
    columns = ", ".join(f"a.{name}" for name in ATTEMPT.split(", "))
    query = f"SELECT t.argv, t.priority, t.time, t.options, {columns} FROM attempts a JOIN tasks t USING (key) ORDER BY a.rowid"  # noqa: S608
    found = []
    for argv, priority, time, options, *row in store.rows(query):
        with contextlib.suppress(
            ValueError, TypeError, RecursionError, AttributeError
        ):  # a row that can't be read was told of at the opening
            command, *args = json.loads(argv)
            entry = Entry(row[0], command, tuple(args), priority, time, decode(options, {})[0])
            found.append(read_attempt(entry, tuple(row), f"{prefix}{row[0]}"))
    return found
