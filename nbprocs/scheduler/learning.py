"""What ``schedule()`` takes from the past: ``timeout="p95*3"``, ``memory_gate="p95"``, ``resources="learned"``.

They become figures when the task is scheduled, by the runs of the same command in the history that ``TaskScheduler(runs=…)`` names, else
the kernel's. Of a command that is not known yet they say nothing: the config's timeout, no gate.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from nbprocs.processes.recording import KnowsRuns

__all__ = ["learns", "learns_many", "resolved"]

P = ParamSpec("P")
T = TypeVar("T")

_LEARNED = re.compile(r"p(\d{1,2}(?:\.\d+)?)(?:\s*[*×x]\s*(\d+(?:\.\d+)?))?")  # noqa: RUF001 - a times sign
_SHORTEST = 0.1  # seconds


class _Learns(Protocol):
    past: KnowsRuns | None


S = TypeVar("S", bound=_Learns)


def learns(schedule: Callable[Concatenate[S, Any, P], T]) -> Callable[Concatenate[S, Any, P], T]:
    """Make ``schedule`` understand the three."""

    @functools.wraps(schedule)
    def learning(self: S, command: Any, /, *args: P.args, **options: P.kwargs) -> T:
        if _asks(options):
            shell = bool(options.get("shell"))
            return schedule(self, command, *args, **resolved(self.past, (command, *args), options, shell=shell))
        return schedule(self, command, *args, **options)

    return learning


def learns_many(schedule_many: Callable[[S, Iterable[Any]], T]) -> Callable[..., T]:
    """The same for ``schedule_many``: each task by its own command."""

    @functools.wraps(schedule_many)
    def learning(self: S, tasks: Iterable[Any], **options: Any) -> T:
        tasks = list(tasks)
        if _asks(options) or any(isinstance(task, Mapping) and _asks(task) for task in tasks):
            tasks, options = [_one(self.past, task, options) for task in tasks], {}
        return schedule_many(self, tasks, **options)

    return learning


def _one(past: KnowsRuns | None, task: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(task, Mapping):
        own = dict(task)
    elif isinstance(task, (str, bytes, os.PathLike)) or callable(task):
        own = {"command": task}
    else:
        words = list(task)
        own = {"command": words[0], "args": words[1:]}
    own = {**options, **own}
    return resolved(past, (own.get("command"), *own.get("args", ())), own, shell=bool(own.get("shell")))


def _asks(options: Mapping[str, Any]) -> bool:
    """Whether one of the options is to be learned. Cheap: most tasks ask for nothing."""
    if not options:
        return False
    return options.get("resources") == "learned" or any(
        isinstance(value := options.get(name), str) and value.lstrip()[:1] == "p" for name in ("timeout", "memory_gate")
    )


def resolved(past: KnowsRuns | None, argv: Iterable[Any], options: Mapping[str, Any], *, shell: bool) -> dict[str, Any]:
    """The options with figures instead of words. Raises ValueError for a word that is none of the three.

    >>> resolved(None, ("make",), {"timeout": "p95*3", "name": "m"}, shell=False)
    {'name': 'm'}
    """
    found = dict(options)
    words = tuple(map(str, argv))
    usual = None if past is None else past.usual(words, shell=shell)
    if found.get("resources") == "learned":
        del found["resources"]
        if usual is not None:
            found.setdefault("memory_gate", past.memory(words, 0.95, shell=shell))  # type: ignore[union-attr]
            found.setdefault("estimated_duration", usual.mean)
    for name in ("timeout", "memory_gate"):
        asked = found.get(name)
        if not isinstance(asked, str) or asked.lstrip()[:1] != "p":
            continue
        told = _LEARNED.fullmatch(asked.strip())
        if told is None or not 0 < float(told[1]) < 100:  # noqa: PLR2004 - a percentage
            raise ValueError(f"{name} must be a figure, or text such as 'p95' or 'p95*3', not {asked!r}")
        del found[name]
        share, factor = float(told[1]) / 100, float(told[2] or 1)
        if past is not None:
            value = past.seconds(words, share, shell=shell) if name == "timeout" else past.memory(words, share, shell=shell)
            if value is not None:
                found[name] = max(value * factor, _SHORTEST) if name == "timeout" else int(value * factor)
    return found
