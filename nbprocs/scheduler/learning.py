"""What ``schedule()`` takes from the past: ``timeout="p95*3"``, ``memory_gate="p95"``, ``resources="learned"``.

They become figures when the task is scheduled, by the runs of the same command in the history that ``TaskScheduler(runs=…)`` names, else
the kernel's. Of a command that is not known yet they say nothing: the config's timeout, no gate.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nbprocs.config import ProcessConfig
from nbprocs.processes.recording import KnowsRuns, job_recorder_for, past_for, witness
from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.local import LocalBackend

__all__ = ["learned", "learned_many", "record", "resolved"]

_LEARNED = re.compile(r"p(\d{1,2}(?:\.\d+)?)(?:\s*[*×x]\s*(\d+(?:\.\d+)?))?")  # noqa: RUF001 - a times sign
_SHORTEST = 0.1  # seconds


def learned(core: SchedulerCore, command: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of one task, with figures."""
    if not _asks(options):
        return options
    return resolved(core.runner.durations.past, (command, *args), options, shell=bool(options.get("shell")))


def learned_many(core: SchedulerCore, tasks: Iterable[Any], options: Mapping[str, Any]) -> tuple[Iterable[Any], Mapping[str, Any]]:
    """The tasks of one call and their common options: where one of them asks, each by its own command."""
    if not _asks(options):
        tasks = list(tasks)
        if not any(type(task) is dict and _asks(task) for task in tasks):
            return tasks, options
    return [_one(core.runner.durations.past, task, options) for task in tasks], {}


def record(core: SchedulerCore, runs: object) -> object:
    """Learn from that history, and have it noted there when tasks are scheduled; returns what notes it.

    The attempts are noted by the manager that runs them; of a backend with machines of its own they are noted here.
    """
    core.runner.durations.past = past_for(runs)
    if not isinstance(core.runner.backend, LocalBackend):
        core.runner.recorder = job_recorder_for(runs)

    def look(task_id: str) -> tuple[tuple[str, ...], str, bool] | None:
        entry = core.find(task_id)
        if entry is None or callable(entry.command):
            return None
        config = entry.options.config
        folder = (None if config is None else config.working_dir) or entry.folder or ""
        return (entry.command, *map(str, entry.args)), str(folder), config is not None and config.shell

    return witness(runs, core.runner.subscribers.add, look)


def _one(past: KnowsRuns | None, task: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(task, Mapping):
        own = dict(task)
    elif isinstance(task, (str, bytes, os.PathLike, ProcessConfig)) or callable(task):
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
    words = tuple(str(word) for given in argv for word in (given.argv if isinstance(given, ProcessConfig) else (given,)))
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
