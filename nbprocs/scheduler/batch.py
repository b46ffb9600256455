"""schedule_many: many tasks at once, which may depend on each other by name."""

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from nbprocs.model import TaskPriority
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.journal import task_row
from nbprocs.scheduler.model import Condition
from nbprocs.scheduler.options import make_options
from nbprocs.scheduler.system import folder

if TYPE_CHECKING:
    from nbprocs.scheduler.control import Control
    from nbprocs.scheduler.runner import Runner

__all__ = ["Batch"]

_TIMES = ("delay", "at")
_OWN = ("priority", "after", "hold", *_TIMES)
_ALIASES = {"cwd": "working_dir", "env": "env_vars"}

Links = list[tuple[Entry, Condition]]


class Batch:
    """The tasks of one call, checked as a whole before any of them is scheduled."""

    def __init__(self, scheduler: "Control", options: Mapping[str, Any]) -> None:
        self._scheduler = scheduler
        self._common = {_ALIASES.get(name, name): value for name, value in options.items()}
        self._shared = self._options(self._common)
        self._priority = int(self._common.get("priority", TaskPriority.NORMAL))
        self._plain = not any(self._common.get(name) for name in ("after", "hold", "delay", "at", "cron"))
        self._folder = folder()
        self._entries: list[Entry] = []
        self._wishes: dict[int, dict[str, Any]] = {}  # index -> its options, where a task has its own
        self._links: dict[int, Links] = {}  # key -> what it waits for
        self._held: set[int] = set()

    def _options(self, wishes: Mapping[str, Any]) -> Any:
        made = make_options(**{name: value for name, value in wishes.items() if name not in _OWN})
        self._scheduler.check_resources(made)
        return made

    def prepare(self, tasks: Iterable[Any]) -> list[Entry]:
        """Make the entries. Raises for the first one that is wrong."""
        stamp, keys = self._scheduler.stamp(), self._scheduler.keys
        shared, priority, shell, here = self._shared, self._priority, self._shared.shell, self._folder
        checked = self._scheduler.argv
        for task in tasks:
            if type(task) is not tuple:  # the frequent case first: asking a mapping's abstract class takes longer than all the rest
                if isinstance(task, Mapping):
                    self._prepare_own(dict(task), stamp)
                    continue
                task = (task,) if isinstance(task, (str, PathLike)) or callable(task) else tuple(task)  # noqa: PLW2901 - in one form
            if not task:
                raise ValueError("an empty command: a task is a command, or a sequence of a command and its arguments")
            command, args = checked(task[0], task[1:], shell=shell)
            self._entries.append(Entry(next(keys), command, args, priority, stamp, shared, here))
        self._set_times()
        self._connect()
        return self._entries

    def _prepare_own(self, task: dict[str, Any], stamp: float) -> None:
        """A task with options of its own."""
        command, args = task.pop("command"), tuple(task.pop("args", ()))
        wishes = {**self._common, **{_ALIASES.get(name, name): value for name, value in task.items()}}
        options = self._options(wishes)
        command, args = self._scheduler.argv(command, args, shell=options.shell)
        self._wishes[len(self._entries)] = wishes
        priority = int(wishes.get("priority", TaskPriority.NORMAL))
        self._entries.append(Entry(next(self._scheduler.keys), command, args, priority, stamp, options, self._folder))

    def _set_times(self) -> None:
        if self._plain and not self._wishes:
            return
        for index, entry in enumerate(self._entries):
            wishes = self._wishes.get(index, self._common)
            if any(wishes.get(name) is not None for name in (*_TIMES, "cron")):
                self._scheduler.set_time(entry, delay=wishes.get("delay"), at=wishes.get("at"), timezone=wishes.get("timezone"))
            if wishes.get("hold"):
                self._held.add(entry.key)

    def _connect(self) -> None:
        """Resolve what each waits for; names of this call come first."""
        if self._plain and not any(wishes.get("after") for wishes in self._wishes.values()):
            return
        names = {entry.options.name: entry for entry in self._entries if entry.options.name is not None}
        for index, entry in enumerate(self._entries):
            after = self._wishes.get(index, self._common).get("after") or ()
            links: Links = []
            for wish in self._scheduler.wishes(after):
                inside = names.get(wish.task) if isinstance(wish.task, str) else None
                links += [(inside, wish.on)] if inside is not None else self._scheduler.links(wish)
            if links:
                self._links[entry.key] = links
        self._order()

    def _order(self) -> None:
        """Sort so that each comes after what it waits for. Raises ValueError, naming the members, for a circle."""
        mine = {entry.key: entry for entry in self._entries}
        done: set[int] = set()
        ordered: list[Entry] = []
        for root in self._entries:
            path: list[Entry] = [root]
            while path:
                entry = path[-1]
                if entry.key in done:
                    path.pop()
                    continue
                following = next((o for o, _ in self._links.get(entry.key, ()) if o.key in mine and o.key not in done), None)
                if following is None:
                    done.add(entry.key)
                    ordered.append(entry)
                    path.pop()
                elif following in path:
                    circle = [*path[path.index(following) :], following]
                    raise ValueError("these tasks would wait for each other: " + " → ".join(e.label for e in circle))
                else:
                    path.append(following)
        self._ordered = ordered

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """For the store."""
        for entry in self._entries:
            yield task_row(entry, self._links.get(entry.key, ()), held=entry.key in self._held)

    def admit(self, runner: "Runner") -> None:
        """Into the queue, each after what it waits for."""
        links, held = self._links, self._held
        for entry in self._ordered if links else self._entries:
            runner.admit(entry, links.get(entry.key, ()), held=entry.key in held)
