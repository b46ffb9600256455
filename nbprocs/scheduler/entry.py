"""The record of one task: what the queue keeps a million of. Slots only, and everything rare behind one shared default."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nbprocs.config import ProcessConfig
from nbprocs.engine.waiting import Waiters
from nbprocs.guard import repr_of
from nbprocs.redact import mask_command
from nbprocs.scheduler.model import Condition, Interrupted, TaskState
from nbprocs.scheduler.times import Recurrence

__all__ = ["DEFAULTS", "Entry", "TaskOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What most tasks leave at its default, and then share. Checked by :mod:`nbprocs.scheduler.options`."""

    max_retries: int | None = None  # None: the config's
    timeout: float | str | None = None  # seconds, or "3x" what the command took before; None: the config's; inf: none
    name: str | None = None
    group: str | None = None
    resources: tuple[tuple[str, float], ...] = ()  # sorted by name
    memory_gate: int = 0  # bytes that must be available for it to start
    config: ProcessConfig | None = None  # how its process is to run, with a blank for the command; None: nothing special
    secrets: tuple[str, ...] = ()  # names of env_vars whose values are not on disk
    estimated_duration: float | None = None
    recurrence: Recurrence | None = None
    on_interrupted: Interrupted | None = None  # None: the config's
    files: tuple[tuple[str, str], ...] = ()  # (name as the task sees it, absolute path here), for backends on other machines
    key: str | None = None  # what tells one piece of work from another, whoever schedules it how often

    @property
    def shell(self) -> bool:
        """The command is a line for a shell."""
        return self.config is not None and self.config.shell

    @property
    def detached(self) -> bool:
        """Its process outlives the kernel."""
        return self.config is not None and self.config.detach

    @property
    def track(self) -> tuple[object, ...]:
        """What decides whether it may start now, apart from its place in the order: equal ones are blocked together."""
        return (self.group, self.resources, self.memory_gate)


DEFAULTS = TaskOptions()


class QueuePlace(Protocol):
    """Where an entry waits: a lane of the queue."""

    def drop(self) -> None:
        """One entry in here has become void."""

    def pop(self, entry: "Entry") -> None:
        """Take the entry that is first in here."""


class Entry:
    """One task in the queue. Only the queue changes ``state``, ``ticket``, ``lane``, ``waiting`` and ``dependents``."""

    __slots__ = (
        "args",
        "command",
        "dependents",
        "due",
        "folder",
        "interruptions",
        "key",
        "lane",
        "needs",
        "on_wall",
        "options",
        "outcome",
        "priority",
        "retries",
        "run",
        "runs",
        "state",
        "ticket",
        "time",
        "waiters",
    )

    def __init__(
        self,
        key: int,
        command: str | Callable[..., Any],
        args: tuple[Any, ...],
        priority: int,
        time: float,
        options: TaskOptions,
        folder: str | None = None,
    ) -> None:
        self.key: int = key  # the order of arrival
        self.command: str | Callable[..., Any] = command
        self.args: tuple[Any, ...] = args
        self.priority: int = priority
        self.time: float = time  # wall clock, seconds: from when it may run; orders equal priorities
        self.options: TaskOptions = options
        self.folder: str | None = folder  # where it was scheduled: it runs there, whatever the kernel's folder is by then
        self.due: float | None = None  # on the clock that on_wall names; None: at once
        self.on_wall: bool = False
        self.state: TaskState = TaskState.QUEUED
        self.ticket: int = 0  # goes up whenever its place in a heap becomes void
        self.lane: QueuePlace | None = None
        self.needs: dict[int, tuple[Entry, Condition]] | None = None  # what it still waits for
        self.dependents: dict[int, Entry] | None = None
        self.retries: int = 0
        self.runs: int = 0
        self.interruptions: int = 0
        self.run: Any = None  # the attempt under way
        self.outcome: Any = None  # the last attempt's
        self.waiters: Waiters[None] | None = None

    @property
    def order(self) -> tuple[int, float, int]:
        """Its place: higher priority first, then earlier time, then arrival."""
        return (-self.priority, self.time, self.key)

    @property
    def argv(self) -> tuple[str, ...]:
        """The words by which its duration is known; of a function only its name: its arguments may be anything."""
        return (self.display,) if callable(self.command) else (self.command, *self.args)

    @property
    def display(self) -> str:
        """The command line, masked; or the title that it was given instead."""
        if self.options.config is not None and self.options.config.title is not None:
            return self.options.config.title
        if callable(self.command):
            name = getattr(self.command, "__qualname__", None)
            return f"{name if isinstance(name, str) else repr_of(self.command)}(…)"
        return mask_command((self.command, *self.args), shell=self.options.shell)

    @property
    def label(self) -> str:
        """Its name, or its command line."""
        return self.options.name or self.display

    def path_to(self, goal: "Entry") -> "list[Entry] | None":
        """The chain of dependencies from here to the goal, if this waits for it; None if it does not."""
        back: dict[int, Entry | None] = {self.key: None}
        todo = [self]
        while todo:
            entry = todo.pop()
            if entry is goal:
                chain = [entry]
                while (previous := back[chain[-1].key]) is not None:
                    chain.append(previous)
                return chain[::-1]
            for other, _ in (entry.needs or {}).values():
                if other.key not in back:
                    back[other.key] = entry
                    todo.append(other)
        return None

    def __repr__(self) -> str:
        return f"<Entry {self.key} {self.state} {self.label}>"
