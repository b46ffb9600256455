"""schedule_many: many tasks at once, which may depend on each other by name."""

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

from nbprocs import checks
from nbprocs.config import ProcessConfig
from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.entry import Entry, TaskOptions
from nbprocs.scheduler.handle import TaskHandle
from nbprocs.scheduler.intake import Links, known, links_to, make_argv, options_of, place_of, set_time, wishes
from nbprocs.scheduler.keywords import OF_THE_PLACE
from nbprocs.scheduler.model import After, Condition
from nbprocs.scheduler.runner import Runner
from nbprocs.scheduler.system import folder
from nbprocs.scheduler.writer import task_row

__all__ = ["TaskBatch"]

_NORMAL = 1  # TaskPriority.NORMAL


class TaskBatch:
    """The tasks of one call, checked as a whole before any of them is scheduled."""

    def __init__(self, core: SchedulerCore, options: Mapping[str, Any]) -> None:
        self._core = core
        self._common = dict(options)
        self._place, self._shared = self._split(None, self._common)
        self._folder = folder()
        self.handed: list[Entry] = []  # one for each task asked for: a new one, or the one that has its key already
        self._entries: list[Entry] = []
        self._ordered: list[Entry] = []
        self._places: dict[int, dict[str, Any]] = {}  # key -> where it goes, for a task with options of its own
        self._links: dict[int, Links] = {}  # key -> what it waits for
        self._held: set[int] = set()
        self._replaced: list[Entry] = []
        self._keys: dict[str, Entry] = {}

    def _split(self, command: Any, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], TaskOptions]:
        return place_of(wanted), options_of(
            self._core, command, {name: value for name, value in wanted.items() if name not in OF_THE_PLACE}
        )

    def prepare(self, tasks: Iterable[Any]) -> list[Entry]:
        """Make the entries. Raises for the first one that is wrong."""
        core, shared, here = self._core, self._shared, self._folder
        stamp, priority = core.stamp(), self._place.get("priority", _NORMAL)
        if shared.key is not None:
            raise ValueError("a key is for one task: give it in a dict with the task's command")
        for task in tasks:
            if type(task) is not tuple:  # the frequent case first: asking a mapping's abstract class takes longer than all the rest
                if isinstance(task, (Mapping, ProcessConfig)):
                    self._prepare_own({"command": task} if isinstance(task, ProcessConfig) else dict(task), stamp)
                    continue
                alone = isinstance(task, (str, bytes, PathLike)) or callable(task)
                if not alone and not isinstance(task, Iterable):
                    checks.refuse(TypeError, "a task", "a command, a sequence of command and arguments, a ProcessConfig or a dict", task)
                task = (task,) if alone else tuple(task)  # noqa: PLW2901 - in one form
            if not task:
                raise ValueError("an empty command: a task is a command, or a sequence of a command and its arguments")
            command, args = make_argv(core, task[0], task[1:], shared)
            self._entries.append(Entry(next(core.keys), command, args, priority, stamp, shared, here))
            self.handed.append(self._entries[-1])
        for entry in self._entries:
            place = self._places.get(entry.key, self._place)
            set_time(core, entry, place)
            if place.get("hold"):
                self._held.add(entry.key)
        self._connect()
        return self.handed

    def _prepare_own(self, task: dict[str, Any], stamp: float) -> None:
        """A task with options of its own."""
        if "command" not in task:
            raise ValueError("a task that is a dict needs a command: {'command': …, 'args': […]}")
        command, args = task.pop("command"), task.pop("args", ())
        if isinstance(args, (str, bytes)) or not isinstance(args, Iterable):
            checks.refuse(TypeError, "args", "a list of arguments", args)
        place, options = self._split(command, {**self._common, **task})
        command, args = make_argv(self._core, command, tuple(args), options)
        existing = None
        if options.key is not None:
            existing = self._keys.get(options.key) or self._core.find_key(options.key)
            kept = known(self._core, existing, options.key, place.get("if_exists", "keep"))
            if kept is not None:
                self.handed.append(kept)
                return
        entry = Entry(next(self._core.keys), command, args, place.get("priority", _NORMAL), stamp, options, self._folder)
        if options.key is not None:
            self._keys[options.key] = entry
        if existing is not None and not existing.state.final:
            self._replaced.append(existing)
            place["after"] = [*wishes(place.get("after", ())), After(TaskHandle(self._core, existing), Condition.ANY)]  # never two at once
        self._places[entry.key] = place
        self._entries.append(entry)
        self.handed.append(entry)

    def _connect(self) -> None:
        """Resolve what each waits for; names of this call come first."""
        self._ordered = self._entries
        if not self._place.get("after") and not any(place.get("after") for place in self._places.values()):
            return
        names = {entry.options.name: entry for entry in self._entries if entry.options.name is not None}
        for entry in self._entries:
            links: Links = []
            for wish in wishes(self._places.get(entry.key, self._place).get("after", ())):
                inside = names.get(wish.task) if isinstance(wish.task, str) else None
                links += [(inside, wish.on)] if inside is not None else links_to(self._core, wish)
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

    def admit(self, runner: Runner) -> None:
        """Into the queue, each after what it waits for; what is replaced is cancelled."""
        links, held = self._links, self._held
        for entry in self._ordered:
            runner.admit(entry, links.get(entry.key, ()), held=entry.key in held)
        for entry in self._replaced:
            runner.cancel(entry)
