"""The record of one task: what the queue keeps a million of. Slots only, and everything rare behind one shared default."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbprocs.redact import mask_command
from nbprocs.scheduler.model import Condition, Interrupted, TaskState
from nbprocs.scheduler.times import Recurrence

if TYPE_CHECKING:
    from nbprocs.scheduler.lanes import Lane

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
    working_dir: str | None = None
    env_vars: tuple[tuple[str, str | None], ...] = ()
    secrets: tuple[str, ...] = ()  # names of env_vars whose values are not on disk
    estimated_duration: float | None = None
    shell: bool = False
    recurrence: Recurrence | None = None
    on_interrupted: Interrupted | None = None  # None: the config's
    files: tuple[tuple[str, str], ...] = ()  # (name as the task sees it, absolute path here), for backends on other machines

    @property
    def track(self) -> tuple[object, ...]:
        """What decides whether it may start now, apart from its place in the order: equal ones are blocked together."""
        return (self.group, self.resources, self.memory_gate)


DEFAULTS = TaskOptions()


class Entry:
    """One task in the queue. Only the queue changes ``state``, ``ticket``, ``lane``, ``waiting`` and ``dependents``."""

    __slots__ = (
        "args",
        "command",
        "dependents",
        "due",
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
        self, key: int, command: str | Callable[..., Any], args: tuple[Any, ...], priority: int, time: float, options: TaskOptions
    ) -> None:
        self.key = key  # the order of arrival
        self.command = command
        self.args = args
        self.priority = priority
        self.time = time  # wall clock, seconds: from when it may run; orders equal priorities
        self.options = options
        self.due: float | None = None  # on the clock that on_wall names; None: at once
        self.on_wall = False
        self.state = TaskState.QUEUED
        self.ticket = 0  # goes up whenever its place in a heap becomes void
        self.lane: Lane | None = None
        self.needs: dict[int, tuple[Entry, Condition]] | None = None  # what it still waits for
        self.dependents: dict[int, Entry] | None = None
        self.retries = 0
        self.runs = 0
        self.interruptions = 0
        self.run: Any = None  # the attempt under way
        self.outcome: Any = None  # the last attempt's
        self.waiters: list[Callable[[], object]] | None = None

    @property
    def order(self) -> tuple[int, float, int]:
        """Its place: higher priority first, then earlier time, then arrival."""
        return (-self.priority, self.time, self.key)

    @property
    def display(self) -> str:
        """The command line, masked."""
        if callable(self.command):
            return f"{getattr(self.command, '__qualname__', repr(self.command))}(…)"
        return mask_command((self.command, *self.args), shell=self.options.shell)

    @property
    def label(self) -> str:
        """Its name, or its command line."""
        return self.options.name or self.display

    def __repr__(self) -> str:
        return f"<Entry {self.key} {self.state} {self.label}>"
