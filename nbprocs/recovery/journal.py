"""The record of every error, decision, attempt and outcome: a bounded list of rows, a DataFrame, and the story of a process."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from nbprocs.display import BAD, GOOD, Html, joined, table, text
from nbprocs.processes.events import Subscribers
from nbprocs.recovery.model import Step, StepKind

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Journal"]

COLUMNS = ("at", "name", "process_id", "kind", "what", "error", "delay", "attempt", "ok")
_COLOUR = {StepKind.ERROR: BAD, StepKind.FATAL: BAD, StepKind.HEALTHY: GOOD, StepKind.COMPLETED: GOOD}
_SHOWN = 12  # steps of one process in the rich display
_TOLD = (
    StepKind.STARTED,
    StepKind.RESTARTED,
    StepKind.HEALTHY,
    StepKind.ERROR,
    StepKind.WAIT,
    StepKind.ACTION,
    StepKind.COMPLETED,
    StepKind.STOPPED,
    StepKind.FATAL,
)


class Journal:
    """The last rows, oldest first.

    >>> journal = Journal(limit=2)
    >>> for kind in (StepKind.STARTED, StepKind.ERROR, StepKind.RESTARTED):
    ...     journal.add(Step(kind=kind, name="web", what="crashed" if kind is StepKind.ERROR else ""))
    >>> journal.story("web")
    'crashed → restarted'
    """

    def __init__(self, *, limit: int = 10_000) -> None:
        """``limit`` rows are kept."""
        self._steps: deque[Step] = deque(maxlen=limit)
        self._listeners: Subscribers[[Step]] = Subscribers("the recovery record")

    def add(self, step: Step) -> None:
        """One more row; the listeners hear of it."""
        self._steps.append(step)
        self._listeners.tell(step)

    def listen(self, listener: Callable[[Step], object]) -> Callable[[], None]:
        """Call it with every new row, on the home loop; returns what ends that. For live views."""
        return self._listeners.add(listener)

    def __iter__(self) -> Iterator[Step]:
        return iter(tuple(self._steps))

    def __len__(self) -> int:
        return len(self._steps)

    def frame(self) -> "pd.DataFrame":
        """All rows, a column for each field of Step."""
        import pandas as pd  # noqa: PLC0415 - `import nbprocs` must stay light

        rows = [asdict(step) for step in self]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        frame["kind"] = frame["kind"].astype(str)
        frame["at"] = pd.to_datetime(frame["at"], utc=True)
        return frame.astype({"delay": "float64", "attempt": "Int64", "ok": "boolean"})

    def story(self, name: str) -> str:
        """The life of one name in one line: started → crashed → waited 0.4 s → restarted → healthy."""
        return " → ".join(_word(step) for step in self._told(name))

    def names(self) -> tuple[str, ...]:
        """All names in the record, in the order of their first rows."""
        return tuple(dict.fromkeys(step.name for step in self))

    def html(self) -> Html:
        """The stories as a static table."""
        rows = [(Html("<b>{}</b>").format(text(name)), _html(self._told(name))) for name in self.names()]
        return table((), rows) if rows else Html("<div>nothing has happened yet</div>")

    def _told(self, name: str) -> list[Step]:
        return [step for step in self if step.name == name and step.kind in _TOLD]


def _word(step: Step) -> str:
    if step.kind is StepKind.WAIT:
        delay = step.delay or 0.0
        return f"waited {delay:.1f} s" if delay >= 0.1 else f"waited {delay * 1000:.0f} ms"  # noqa: PLR2004 - where a tenth begins
    if step.kind in (StepKind.ERROR, StepKind.ACTION, StepKind.FATAL):
        return step.word or step.what or str(step.kind)
    return str(step.kind)


def _html(steps: Iterable[Step]) -> Html:
    told = list(steps)
    more = [Html("<i>{} earlier</i>").format(len(told) - _SHOWN)] if len(told) > _SHOWN else []
    word = Html('<span style="color:{}">{}</span>')
    return joined(more + [word.format(_COLOUR.get(step.kind, "inherit"), text(_word(step), limit=120)) for step in told[-_SHOWN:]], " → ")
