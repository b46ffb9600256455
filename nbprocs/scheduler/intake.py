"""What ``schedule()`` is asked for, checked and made a record; the queue gets it only when all of it is right."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from nbprocs import checks
from nbprocs.config import ProcessConfig
from nbprocs.errors import NameInUse, ResourceExhausted
from nbprocs.scheduler.backend import Adopting
from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.entry import DEFAULTS, Entry, TaskOptions
from nbprocs.scheduler.handle import TaskHandle
from nbprocs.scheduler.keywords import OF_THE_PLACE
from nbprocs.scheduler.limits import fits
from nbprocs.scheduler.local import LocalBackend
from nbprocs.scheduler.model import After, Condition
from nbprocs.scheduler.options import check_argv, check_priority, make_options
from nbprocs.scheduler.system import folder
from nbprocs.scheduler.times import following, parse_at
from nbprocs.scheduler.writer import task_row

__all__ = ["IF_EXISTS", "Links", "admit", "known", "links_to", "make_argv", "options_of", "place_of", "schedule", "set_time", "wishes"]

Links = list[tuple[Entry, Condition]]
IF_EXISTS = ("keep", "replace", "error")
_NORMAL = 1  # TaskPriority.NORMAL, whose value is looked up in a million tasks


def schedule(core: SchedulerCore, command: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Entry:
    """Make a task of it and put it into the queue; see TaskScheduler.schedule."""
    core.check_open()
    core.bind()
    try:  # the common case, in the fewest steps: one C call checks that all are text, another that none holds a NUL
        plain = not options and "\0".join((command, *args)).count("\0") == len(args) and command
    except TypeError:
        plain = False
    if plain:
        entry = Entry(next(core.keys), command, args, _NORMAL, core.stamp(), DEFAULTS, folder())
        if core.store is not None:
            core.store.insert(task_row(entry))
        admit(core, entry)
        return entry
    place = place_of(options)
    made = options_of(core, command, {name: value for name, value in options.items() if name not in OF_THE_PLACE})
    command, args = make_argv(core, command, args, made)
    if made.key is None:
        if "if_exists" in place:
            raise ValueError("if_exists says what to do when a task with the same key is known: give key= as well")
        return _put(core, Entry(next(core.keys), command, args, place.get("priority", _NORMAL), core.stamp(), made, folder()), place)
    with core.lock:  # two threads with one key make one task
        existing = core.find_key(made.key)
        kept = known(core, existing, made.key, place.get("if_exists", "keep"))
        if kept is not None:
            return kept
        entry = Entry(next(core.keys), command, args, place.get("priority", _NORMAL), core.stamp(), made, folder())
        if existing is not None and not existing.state.final:
            place["after"] = [*wishes(place.get("after", ())), After(TaskHandle(core, existing), Condition.ANY)]  # never two at once
        entry = _put(core, entry, place)
        core.runner.keys[made.key] = entry
    if existing is not None:
        core.act(core.runner.cancel, existing)
    return entry


def _put(core: SchedulerCore, entry: Entry, place: Mapping[str, Any]) -> Entry:
    """Give it its time and what it waits for, write it down, and let the queue have it."""
    set_time(core, entry, place)
    links = links_to(core, place["after"]) if "after" in place else []
    held = bool(place.get("hold", False))
    if core.store is not None:
        core.store.insert(task_row(entry, links, held=held))
    admit(core, entry, links, held=held)
    return entry


def admit(core: SchedulerCore, entry: Entry, links: Links | tuple[()] = (), *, held: bool = False) -> None:
    """Into the queue: now, or soon from another thread."""
    if core.here:
        core.runner.admit(entry, links, held=held)
    else:
        core.home.post(lambda: core.runner.admit(entry, links, held=held))


def place_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that say where it goes in the queue, checked. Raises TypeError or ValueError."""
    place = {name: value for name, value in options.items() if name in OF_THE_PLACE and value is not None}
    if options.get("timezone") is not None:
        place["timezone"] = checks.text("timezone", options["timezone"])
    if "priority" in place:
        place["priority"] = check_priority(place["priority"])
    if "hold" in place:
        checks.flag("hold", place["hold"])
    if "if_exists" in place:
        checks.one_of("if_exists", place["if_exists"], IF_EXISTS)
    return place


def known(core: SchedulerCore, existing: Entry | None, key: str, if_exists: str) -> Entry | None:
    """The task that stands for a new one with the same key; None if there is to be a new one. Raises NameInUse."""
    if existing is not None and if_exists == "error":
        hint = "if_exists='keep' gives its handle, 'replace' cancels it if it has not ended"
        raise NameInUse(f"the task {core.runner.task_id(existing)} has the key {key!r} already; it is {existing.state}", hint=hint)
    return existing if if_exists == "keep" else None


def options_of(core: SchedulerCore, command: Any, given: Mapping[str, Any]) -> TaskOptions:
    """The options, checked; raises as ``schedule``."""
    made = make_options(command if isinstance(command, ProcessConfig) else None, **given)
    if made.config is not None and _is_function(command) and (wrong := made.config.changed().keys() - {"command", "notify"}):
        raise TypeError(f"a function has no process of its own: {', '.join(sorted(wrong))} can't be set")
    if made.detached and (core.store is None or not isinstance(core.runner.backend, Adopting)):
        raise ValueError("detach=True needs a store= for the next kernel to find the task in, and this machine's processes, which go on")
    room, queue = core.runner.room, core.runner.queue
    for name, amount in made.resources:
        room.declare(name)
        capacity = {r.name: r.capacity for r in queue.resources()}.get(name)
        if capacity is None:
            raise ValueError(f"unknown resource {name!r}: declare it with SchedulerConfig(resources={{{name!r}: …}}) or set_resource()")
        if not fits(amount, capacity) and not queue.elastic:
            hint = "ask for less, or raise the capacity with set_resource()"
            raise ResourceExhausted(f"{amount:g} of resource {name!r} can never be met: there are {capacity:g}", hint=hint)
    return made


def _is_function(command: object) -> bool:
    return callable(command) and not isinstance(command, (str, bytes, os.PathLike, ProcessConfig))


def make_argv(core: SchedulerCore, command: Any, args: tuple[Any, ...], options: TaskOptions) -> tuple[Any, tuple[Any, ...]]:
    """The command and its arguments, checked; raises as ``schedule``."""
    try:
        if command and not options.shell and "\0".join((command, *args)).count("\0") == len(args):
            return command, args
    except TypeError:  # not all are text: the slow way makes text of them, or says why not
        pass
    if isinstance(command, ProcessConfig):
        command, args = command.command, (*command.args, *args)
    elif _is_function(command):
        if core.runner.calls is None and isinstance(core.runner.backend, LocalBackend):
            raise TypeError("a function needs a pool to run it: TaskScheduler(pool=…)")
        if core.store is not None:
            raise TypeError("a function can't be stored; schedule a command, or use a scheduler without store=")
        return command, args
    if options.shell and args:
        raise ValueError("with shell=True the command is one line; put the arguments into it (shlex.join helps)")
    return check_argv(command, args)


def set_time(core: SchedulerCore, entry: Entry, place: Mapping[str, Any]) -> None:
    """When it may run first. Raises ValueError for two times at once."""
    rule = entry.options.recurrence
    cron = rule if rule is not None and rule.cron is not None else None
    delay, at = place.get("delay"), place.get("at")
    if (delay is not None) + (at is not None) + (cron is not None) > 1:
        raise ValueError("give only one of delay, at and cron")
    if delay is not None:
        seconds = checks.seconds("delay", delay, zero=True)
        if seconds is None:
            checks.refuse(ValueError, "delay", "0 or more seconds, or a timedelta", delay)
        entry.time += seconds
        entry.due = core.clock().elapsed + seconds
    elif at is not None:
        entry.time = entry.due = parse_at(at, place.get("timezone"))
        entry.on_wall = True
    elif cron is not None:
        entry.time = entry.due = following(cron, core.clock().wall)
        entry.on_wall = True


def wishes(after: Any) -> list[After]:
    """What ``after=`` says, in one form. Raises TypeError for what names no task."""
    if isinstance(after, (str, After, TaskHandle)):
        after = (after,)
    if not isinstance(after, Iterable):
        checks.refuse(TypeError, "after", "a task, or a list of tasks: handles, ids, names or After(…)", after)
    return [item if isinstance(item, After) else After(*item) if isinstance(item, tuple) else After(item) for item in after]


def links_to(core: SchedulerCore, after: Any) -> Links:
    """The entries that ``after=`` names. Raises ValueError for one that is not known."""
    found: Links = []
    for wish in wishes(after):
        task = wish.task
        if isinstance(task, TaskHandle):
            if task._core is not core:  # noqa: SLF001 - a friend
                raise ValueError(f"{task!r} belongs to another scheduler; await it instead")
            found.append((task._entry, wish.on))  # noqa: SLF001 - a friend
            continue
        entry = core.find(task) if isinstance(task, str) else None
        if entry is None:
            raise ValueError(f"after: there is no task {task!r}; give a handle, an id or a name")
        found.append((entry, wish.on))
    return found
