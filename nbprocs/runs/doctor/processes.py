"""Processes: who guards them, who was left behind, and what was left of them on disk."""

import ctypes
import gc
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from nbprocs.engine.asking import ask_all
from nbprocs.engine.child import TOKEN
from nbprocs.engine.places import runtime_folder
from nbprocs.engine.records import records as all_records
from nbprocs.engine.table import Row, descendants, environ_value, scan
from nbprocs.processes.detached import STALE
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.recording import kernel_runs
from nbprocs.redact import mask_command, one_line
from nbprocs.runs.doctor.finding import Finding, Verdict
from nbprocs.runs.writer import writing

__all__ = ["guard", "locks", "managers", "orphans", "pidfd", "records", "run_history", "shims", "sockets", "subreaper", "zombies"]

_AREA = "processes"
_SHOWN = 5
_GUARD = re.compile(r"(?:^|/)nbprocs/engine/(?:shim|leash)_main\.py$|_launcher\.py$")
_PATIENCE = 0.8  # seconds for all shims together


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _guards(table: dict[int, Row]) -> dict[int, list[str]]:
    """The living helper processes of all kernels, with their command lines."""
    found = {}
    for pid, row in table.items():
        words = [] if row.gone else _command(pid)
        if any(_GUARD.search(word) for word in words[:8]):
            found[pid] = words
    return found


def guard() -> Iterator[Finding]:
    """Whether this kernel's helper lives, which ends its processes when the kernel is gone."""
    if os.name != "posix":
        return
    table, me = scan(), os.getpid()
    ours = [pid for pid, words in _guards(table).items() if str(me) in words or table[pid].ppid == me]
    if ours:
        yield Finding(area=_AREA, what="guard", state=Verdict.OK, said=f"pid {', '.join(map(str, ours))}: nothing outlives this kernel")
    elif any(manager.live for manager in _all_managers()):
        cure = "start any process with nbprocs: it starts the guard again"
        yield Finding(area=_AREA, what="guard", state=Verdict.BAD, said="processes run, and nothing would end them with it", cure=cure)
    else:
        yield Finding(area=_AREA, what="guard", state=Verdict.OK, said="starts with the first process")


def shims() -> Iterator[Finding]:
    """Whether the helpers of all of this user's kernels answer."""
    replies = ask_all(runtime_folder(), {"op": "status"}, timeout=_PATIENCE)
    silent = [reply for reply in replies if reply.answer is None and not reply.gone]
    answered = sum(reply.answer is not None for reply in replies)
    if silent:
        said = f"{answered} answered; not: {', '.join(f'{reply.path.name} ({reply.error})' for reply in silent[:_SHOWN])}"
        cure = "look at those processes: stopped (SIGSTOP), or on a machine that swaps?"
        yield Finding(area=_AREA, what="helpers", state=Verdict.WARN, said=said, cure=cure)
    elif answered:
        yield Finding(area=_AREA, what="helpers", state=Verdict.OK, said=f"{answered} answered")


def pidfd() -> Iterator[Finding]:
    """Whether an end is told by a descriptor, or has to be waited for in threads."""
    if sys.platform != "linux":
        return
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        cure = "Linux 5.3 or later, and a container whose seccomp profile allows pidfd_open"
        yield Finding(area=_AREA, what="pidfd", state=Verdict.WARN, said=f"not to be had ({error}): ends are noticed later", cure=cure)
    else:
        yield Finding(area=_AREA, what="pidfd", state=Verdict.OK, said="an end is noticed at once")


def subreaper() -> Iterator[Finding]:
    """Whether orphaned descendants can be adopted."""
    if sys.platform != "linux":
        said = "not on this system: what a process leaves behind in sessions of its own may stay"
        yield Finding(area=_AREA, what="subreaper", state=Verdict.OK, said=said)
        return
    is_one = ctypes.c_int()
    if ctypes.CDLL(None).prctl(37, ctypes.byref(is_one), 0, 0, 0) == 0:  # PR_GET_CHILD_SUBREAPER
        yield Finding(area=_AREA, what="subreaper", state=Verdict.OK, said="daemons of processes are found and ended with them")
    else:
        yield Finding(area=_AREA, what="subreaper", state=Verdict.WARN, said="the system refuses it", cure="a container that allows prctl")


def zombies() -> Iterator[Finding]:
    """Children of this kernel that ended and that nobody has waited for."""
    table, me = scan(), os.getpid()
    gone = [row.pid for row in table.values() if row.gone and row.ppid == me]
    if gone:
        said = f"{len(gone)} children of this kernel ended and were not waited for: pid {', '.join(map(str, gone[:_SHOWN]))}"
        cure = "whoever started them must wait for them (subprocess.Popen.wait); they hold a place in the process table until then"
        yield Finding(area=_AREA, what="zombies", state=Verdict.WARN, said=said, cure=cure)
    else:
        yield Finding(area=_AREA, what="zombies", state=Verdict.OK, said="none")


def orphans() -> Iterator[Finding]:
    """Processes that kernels of this user started with nbprocs and that nobody guards any more."""
    table = scan()
    guards = _guards(table)
    living = {word for words in guards.values() for word in words}
    guarded = {os.getpid(), *guards, *descendants(table, guards)}  # a detached one's helper does not name its token
    left = []
    for row in table.values():
        tokens = () if row.gone or row.pid in guarded else environ_value(row.pid, TOKEN).split(":")
        heads = {token.partition(".")[0] for token in tokens if token}
        if heads and not heads & living:
            left.append(row)
    if not left:
        yield Finding(area=_AREA, what="orphans", state=Verdict.OK, said="none")
        return
    names = "; ".join(f"{row.pid} {one_line(mask_command(_command(row.pid)), limit=60)}" for row in left[:_SHOWN])
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    cure = f"kill {' '.join(str(row.pid) for row in left)}"
    yield Finding(area=_AREA, what="orphans", state=Verdict.BAD, said=f"left by a kernel that is gone: {names}{more}", cure=cure)


def sockets() -> Iterator[Finding]:
    """Sockets whose helpers are gone."""
    stale = [reply.path for reply in ask_all(runtime_folder(), {"op": "status"}, timeout=_PATIENCE) if reply.gone]
    if stale:
        said = f"{len(stale)} of helpers that are gone: {', '.join(path.name for path in stale[:_SHOWN])}"
        cure = f"delete them: rm {' '.join(str(path) for path in stale[:_SHOWN])}{' …' if len(stale) > _SHOWN else ''}"
        yield Finding(area=_AREA, what="stale sockets", state=Verdict.WARN, said=said, cure=cure)
    else:
        yield Finding(area=_AREA, what="stale sockets", state=Verdict.OK, said="none")


def records() -> Iterator[Finding]:
    """Detached processes: those that nobody has looked at for a week, and records that say nothing."""
    found = all_records()
    unseen = [r for r in found if time.time() - r.seen > STALE and r.state != "broken"]
    groups = (
        ("live, and nobody has looked at them for a week", "nbprocs stop", [r for r in unseen if r.live]),
        ("have ended, and nobody has looked at them for a week", "nbprocs forget", [r for r in unseen if not r.live]),
        ("live without their helper, which was killed", "nbprocs stop", [r for r in found if r.state == "unguarded"]),
        ("can't be read", "rm -r", [r for r in found if r.state == "broken"]),
    )
    bad = [group for group in groups if group[2]]
    for what, cure, those in bad:
        keys = [str(r.folder) if r.state == "broken" else r.id for r in those]
        said = f"{len(those)} {what}: {_some([r.name or r.id for r in those])}"
        yield Finding(area=_AREA, what="detached", state=Verdict.WARN, said=said, cure="; ".join(f"{cure} {key}" for key in keys[:_SHOWN]))
    if not bad:
        live = sum(record.live for record in found)
        yield Finding(area=_AREA, what="detached", state=Verdict.OK, said=f"{live} live, {len(found) - live} ended" if found else "none")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def locks() -> Iterator[Finding]:
    """Task queues in this folder whose owner ended without closing them."""
    stale = []
    for path in Path.cwd().glob("*-owner"):
        try:
            told = json.loads(path.read_text())
            gone = isinstance(told, dict) and "pid" in told and not psutil.pid_exists(told["pid"])
        except (OSError, ValueError, TypeError):
            continue
        if gone:
            stale.append(path)
    if stale:
        names = ", ".join(path.name.removesuffix("-owner") for path in stale)
        cure = f"TaskScheduler(store={str(stale[0].name.removesuffix('-owner'))!r}) goes on with it; the lock itself went with its kernel"
        yield Finding(area=_AREA, what="queues", state=Verdict.WARN, said=f"not closed by their kernels: {names}", cure=cure)


def _all_managers() -> list[ProcessManager]:
    return [thing for thing in gc.get_objects() if type(thing) is ProcessManager]


def managers() -> Iterator[Finding]:
    """Managers with living processes that no variable of the notebook leads to."""
    found = _all_managers()
    busy = [manager for manager in found if manager.live]
    space = vars(sys.modules["__main__"])
    held = {id(value) for value in list(space.values())}
    for value in list(space.values()):
        held |= {id(inner) for inner in (vars(value).values() if hasattr(value, "__dict__") else ())}
    shared = getattr(sys.modules.get("nbprocs.magics.magics"), "_shared", None)
    lost = [manager for manager in busy if id(manager) not in held and getattr(shared, "manager", None) is not manager]
    if lost and "IPython" in sys.modules:
        said = f"{len(lost)} with {sum(manager.live for manager in lost)} living processes, held by no variable of the notebook"
        cure = "keep it in a variable (pm = …), or end it: `async with ProcessManager()`"
        yield Finding(area=_AREA, what="managers", state=Verdict.WARN, said=said, cure=cure)
    else:
        living = sum(manager.live for manager in busy)
        yield Finding(area=_AREA, what="managers", state=Verdict.OK, said=f"{len(found)}, with {living} living processes")


def run_history() -> Iterator[Finding]:
    """Whether runs are recorded, and arrive on disk."""
    runs = kernel_runs()
    if runs is None:
        yield Finding(area=_AREA, what="run history", state=Verdict.OK, said="the kernel records none (nbprocs.set_runs)")
        return
    writer = writing(Path(runs.path))
    if writer is not None and (writer.error or writer.lost):
        said = f"{writer.error or 'writes again'}; {writer.lost} runs were lost"
        yield Finding(area=_AREA, what="run history", state=Verdict.BAD, said=said, cure=f"make room for {runs.path}, or take another path")
    else:
        yield Finding(area=_AREA, what="run history", state=Verdict.OK, said=f"in {runs.path}")
