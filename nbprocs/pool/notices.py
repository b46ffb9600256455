"""The notice of a map's end: told where the iteration ends, by the bar that counts its results."""

import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from nbprocs.display import duration
from nbprocs.engine.home import Home, Tasks
from nbprocs.guard import guarded, text_of
from nbprocs.notify import Notice, Notify, tell
from nbprocs.redact import mask_text, one_line

__all__ = ["told_at_the_end"]


def told_at_the_end(bar: Callable[[], Any], notify: Notify | None, *, title: str) -> Callable[[], Any]:
    """The maker of a bar that tells ``notify`` when it is closed; the maker itself where nobody is to be told."""
    return bar if notify is None else lambda: _Told(bar(), notify, title)


class _Told:
    """A bar as ``mapped`` needs it, round another one or None."""

    def __init__(self, bar: Any, notify: Notify, title: str) -> None:
        self._bar = bar
        self._notify = notify
        self._title = title
        self._began = time.monotonic()
        self._results = 0

    def update(self, results: int) -> None:
        """So many more."""
        self._results += results
        if self._bar is not None:
            self._bar.update(results)

    def close(self) -> None:
        """The map has ended: well, by the exception on its way, or because nobody wants more of it."""
        if self._bar is not None:
            self._bar.close()
        with guarded(f"notify= of map of {self._title}"):
            home = Home.current()
            tell(self._notice(sys.exception()), self._notify, start=lambda work: Tasks(home).start(work, name=f"notify of {self._title}"))

    def _notice(self, error: BaseException | None) -> Notice:
        seconds = time.monotonic() - self._began
        left = isinstance(error, GeneratorExit)  # the loop over it was left, or its task cancelled
        how = "completed" if error is None else "was left early" if left else "failed"
        return Notice(
            title=f"map of {self._title} {how} after {duration(seconds)}: {self._results:,} results",
            body="" if error is None or left or not self._notify.lines else one_line(mask_text(text_of(error)), limit=500),
            level="success" if error is None else "warning" if left else "error",
            process_id=f"map-{uuid.uuid4().hex}",
            name=self._title,
            kind="map",
            seconds=seconds,
        )
