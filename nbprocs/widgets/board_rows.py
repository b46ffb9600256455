"""The rows and figures of a board: what a part sends all of once, and then only what is new."""

from collections.abc import Mapping, Sequence
from typing import Any

from nbprocs.display import plain

__all__ = ["BoardRows", "titles"]

_TITLES = 3  # tasks named for each worker


class BoardRows:
    """A row a worker by its name, and figures of them all."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {}
        self.figures: dict[str, Any] = {}
        self._changed: dict[str, list[Any]] = {}
        self._gone: list[str] = []
        self._news = False

    def put(self, rows: dict[str, list[Any]], figures: dict[str, Any], *, news: bool = False) -> bool:
        """What is so now; ``news``: the figures are to be sent though they are the same. True if there is something to send."""
        self._changed |= {key: row for key, row in rows.items() if self.rows.get(key) != row}
        self._gone += [key for key in self.rows if key not in rows]
        self._news = self._news or news or figures != self.figures
        self.rows, self.figures = rows, figures
        return bool(self._news or self._changed or self._gone)

    def all(self, columns: Sequence[str]) -> dict[str, Any]:
        """For a snapshot."""
        return {"columns": columns, "rows": list(self.rows.items()), "figures": self.figures}

    def new(self, *, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """``u`` rows, ``-`` gone rows, ``figures`` with what else goes with them; empty if there is none. It counts as sent."""
        content: dict[str, Any] = {}
        if self._changed:
            content["u"], self._changed = list(self._changed.items()), {}
        if self._gone:
            content["-"], self._gone = self._gone, []
        if self._news:
            self._news = False
            content |= {"figures": self.figures, **(figures or {})}
        return content


def titles(tasks: Sequence[str]) -> str:
    """The names of the first tasks that a worker has."""
    return ", ".join(plain(task, limit=60) for task in tasks[:_TITLES]) + (" …" if len(tasks) > _TITLES else "")
