"""Many processes at a glance: as a DataFrame and as a static HTML table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nbprocs.display import Html, table, text
from nbprocs.model import ProcessInfo

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame_of", "table_html"]

_KINDS = {
    "status": "string",
    "command": "string",
    "pid": "Int64",
    "exit_code": "Int64",
    "signal": "Int64",
    "peak_rss": "Int64",
    "created_at": "datetime64[us, UTC]",
    "ended_at": "datetime64[us, UTC]",
}
_ROWS = 50  # of a static table: a saved notebook is read by people


def frame_of(infos: Iterable[ProcessInfo]) -> pd.DataFrame:
    """A row a process, indexed by name; commands are masked."""
    import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

    infos = list(infos)
    columns = [field.name for field in dataclasses.fields(ProcessInfo) if field.name not in {"config", "name"}]
    frame = pd.DataFrame([{column: getattr(info, column) for column in columns} for info in infos], columns=columns)
    frame.insert(1, "command", [info.config.display for info in infos])
    frame.index = pd.Index([info.name for info in infos], name="name")
    return frame.astype(_KINDS)


def table_html(title: str, infos: Iterable[ProcessInfo]) -> Html:
    """The youngest fifty as a table, everything escaped."""
    rows = (
        (
            text(info.name), str(info.status), str(info.pid), f"{info.execution_time:.1f} s",
            Html("<code>{}</code>").format(text(info.config.display, limit=120)), text(info.last_line, limit=80),
        )
        for info in list(infos)[-_ROWS:]
    )  # fmt: skip
    head = ("name", "status", "pid", "time", "command", "last line")
    return Html("<div>{}{}</div>").format(text(title), table(head, rows))
