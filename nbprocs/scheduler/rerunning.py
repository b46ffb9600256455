"""Running ended tasks again: the same tasks, with their ids, and what was skipped behind them."""

import json
from collections.abc import Iterable, Mapping

from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.model import Condition, TaskState

__all__ = ["ended_in", "rerun"]

Links = Mapping[int, str]  # key of what must end -> condition


def ended_in(core: SchedulerCore, states: Iterable[TaskState]) -> list[Entry]:
    """The ended tasks in these states, in the order of their arrival: those of this scheduler, and with a store all that it holds."""
    wanted = frozenset(states)
    found = {entry.key: entry for entry in core.runner.finished.values() if entry.state in wanted}
    if core.store is not None:
        marks = ", ".join("?" * len(wanted))
        for (key,) in core.store.rows(f"SELECT key FROM tasks WHERE state IN ({marks})", *(state.value for state in wanted)):  # noqa: S608
            if key not in found and (entry := core.find_number(key)) is not None and entry.state in wanted:
                found[key] = entry
    return [found[key] for key in sorted(found)]


def rerun(core: SchedulerCore, entries: Iterable[Entry]) -> list[Entry]:
    """Have ended tasks run again, and those that were skipped because of them; returns all of them. On the home loop.

    What has not ended is left alone. One that was asked for by itself no longer waits for what ended otherwise than it wanted.
    """
    asked = {entry.key: entry for entry in entries if entry.state.final}
    chosen = dict(asked)
    skipped = {entry.key: entry for entry in ended_in(core, [TaskState.SKIPPED])} if chosen else {}
    links = {key: _links(core, key) for key in {*chosen, *skipped}}
    found = True
    while found:
        found = False
        for key, entry in skipped.items():
            waits = links[key]
            if key in chosen or chosen.keys().isdisjoint(waits):
                continue
            if all(other in chosen or _can_wait(core, other, condition) for other, condition in waits.items()):
                chosen[key] = entry
                found = True
    done: set[int] = set()
    for key in sorted(chosen):
        _revive(core, key, chosen, links, done)
    core.runner.writer.flush()
    core.runner.want()
    return [chosen[key] for key in sorted(chosen)]


def _links(core: SchedulerCore, key: int) -> Links:
    known = core.runner.edges.get(key)
    if known is None and core.store is not None:
        for (after,) in core.store.rows("SELECT after FROM tasks WHERE key = ?", key):
            known = core.runner.edges[key] = dict(map(tuple, json.loads(after))) if after else {}
    return known or {}


def _can_wait(core: SchedulerCore, key: int, condition: str) -> bool:
    """Whether a task may wait for this one: it has not ended yet, ended as asked, or is not known any more."""
    entry = core.find_number(key)
    return entry is None or not entry.state.final or Condition(condition).met(entry.state)


def _revive(core: SchedulerCore, key: int, chosen: Mapping[int, Entry], links: Mapping[int, Links], done: set[int]) -> None:
    """Put one back, after those of the chosen ones that it waits for."""
    todo = [key]
    while todo:
        current = todo[-1]
        before = [other for other in links[current] if other in chosen and other not in done and other not in todo]
        if before:
            todo.append(before[0])
            continue
        todo.pop()
        if current not in done:
            done.add(current)
            after = []
            for other, condition in links[current].items():
                entry = chosen.get(other) or core.find_number(other)
                if entry is not None and not entry.state.final:
                    after.append((entry, Condition(condition)))
            core.runner.revive(chosen[current], after, core.stamp())
