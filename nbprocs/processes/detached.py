"""Processes that outlive the kernel: started detached, listed, adopted by any later kernel, forgotten.

::

    spawn(…, detach=True) ──► engine.detaching ──► a shim of its own: record, log, socket
                                                        │
    adopt(name) ──► record ──► ManagedProcess ◄──follow─┘      status, output from the first byte, stop, the true exit code
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbprocs.checks import mapping, refuse
from nbprocs.config import ProcessConfig
from nbprocs.engine.child import Spec
from nbprocs.engine.claims import NameClaimed, claimed
from nbprocs.engine.detaching import DetachedChild
from nbprocs.engine.detaching import launch as launch_child
from nbprocs.engine.home import log
from nbprocs.engine.places import state_folder
from nbprocs.engine.recorded import RecordedLog
from nbprocs.engine.records import DetachedRecord, forget_record, records
from nbprocs.engine.shimlib.order import OrderReader, pieces
from nbprocs.engine.shimlib.proc import ON_LINUX, TICK, present
from nbprocs.errors import Closed, NameInUse, StartupFailed, UnknownProcess
from nbprocs.model import EndReason, EventKind, Stream
from nbprocs.processes.core import ProcessCore, ProcessOwner
from nbprocs.processes.registry import tell_name
from nbprocs.redact import is_secret_name, mask_words

if TYPE_CHECKING:
    import pandas as pd

    from nbprocs.policy import RestartPolicy

__all__ = [
    "STALE",
    "adopted",
    "cells_folder",
    "check_whole",
    "config_of",
    "detached",
    "find",
    "forget",
    "launch",
    "leave",
    "live_names",
    "may_be_supervised",
    "naming",
    "policy_of",
    "start",
    "take_up",
]

STALE = 7 * 86400.0  # seconds since anybody looked at it
_CELL_KEPT = 3600.0  # seconds: a cell's file is written before its process has a record that names it
_LOST = "what was masked in its record is lost"
_SAID: set[str] = set()  # ids of the records of which the log says already that their restart policy can't be read


# -- start


def check_name(name: str) -> None:
    """Raise NameInUse if a live detached process has that name, of whatever kernel: it is the key to find it again."""
    for record in records():
        if record.live and record.name == name:
            raise NameInUse(
                f"a detached process named {name!r} lives already (pid {record.pid})",
                name=name,
                hint=f"await nbprocs.adopt({name!r}) takes it up again; or choose another name",
            )


def live_names() -> set[str]:
    """The names of all live detached processes of this user."""
    return {record.name for record in records() if record.live}


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Hold a name while a process gets it. Raises NameInUse if a live detached process has it, or is about to."""
    try:
        with claimed(name):
            check_name(name)
            yield
    except NameClaimed as error:
        raise NameInUse(
            f"another kernel starts a detached process named {name!r} just now", name=name, hint="choose another name"
        ) from error


async def launch(spec: Spec, config: ProcessConfig, *, restart: RestartPolicy | None) -> DetachedRecord:
    """Start it with a shim of its own. Raises as nbprocs.engine.detaching.launch, and NameInUse."""
    name = spec.label.name
    about = {
        "id": spec.label.id,
        "name": name,
        "command": config.display,
        "config": _as_json(config),
        "restart": None if restart is None else _policy_as_json(restart),
    }
    with naming(name):
        return await launch_child(spec, about)


async def start(core: ProcessCore, owner: ProcessOwner) -> None:
    """Start it, detached, and be told of it from then on.

    A start that is cancelled is waited for, and then undone; a manager that closes meanwhile waits for that, too.
    """
    launching = owner.tasks.start(_tried(core), name=f"detach {core.name}", finish=True)
    try:
        await asyncio.wait({launching})
        record = launching.result()
        if isinstance(record, Exception):
            raise record
        if owner.closed:
            raise Closed("its manager was closed while it was being started", name=core.name)  # noqa: TRY301 - undone as a cancelled one
    except (asyncio.CancelledError, Closed):
        undoing = owner.tasks.start(_undone(core, launching), name=f"end {core.name}", finish=True)
        await asyncio.wait({undoing})  # goes on where this is cancelled again
        raise
    take_up(core, record, owner)  # nothing is awaited from here on: what is cancelled now has a process to be stopped
    if core.name != record.name:  # it was renamed meanwhile
        tell_name(core)
    owner.heard(EventKind.STARTED, core)


async def _tried(core: ProcessCore) -> DetachedRecord | Exception:
    """Launch it; what the system refuses is raised to the caller, and is no failure of a task."""
    try:
        return await launch(_spec(core), core.config, restart=core.restart_policy)
    except Exception as error:  # noqa: BLE001 - the caller raises it
        return error


async def _undone(core: ProcessCore, launching: asyncio.Task[DetachedRecord | Exception]) -> None:
    await asyncio.wait({launching})
    if not launching.cancelled() and not isinstance(record := launching.result(), Exception):
        await DetachedChild(record, _Follows(core, record.folder)).end_tree(grace=0.0)


def _spec(core: ProcessCore) -> Spec:
    config = core.config
    if config.stdout is not None or config.stderr is not None or not isinstance(config.stdin, (bool, bytes)):
        raise ValueError("a detached process can't have files of this kernel: leave stdin=, stdout=, stderr= away, or let a shell redirect")
    return core.spec({})


def _age(record: DetachedRecord) -> float:
    """Seconds since its start: of one that lives by the clock of its start time, which nobody sets."""
    if record.live and record.start:
        return (present() - record.start) / TICK if ON_LINUX else present() - record.start
    return time.time() - record.created


def take_up(core: ProcessCore, record: DetachedRecord, owner: ProcessOwner) -> DetachedChild:
    """Let it be the process of a record. Once its child is ``met`` what is known was told: its output's length, its end if it has ended."""
    core.created_at = datetime.fromtimestamp(record.created, UTC)
    core.started = time.monotonic() - _age(record)
    for recorded in (core.stdout, core.stderr):
        assert isinstance(recorded, RecordedLog)  # noqa: S101 - its config says detach
        recorded.lie_in(record.folder)
    child = DetachedChild(record, _Follows(core, record.folder))
    core.became(child)
    owner.tasks.start(child.follow(), name=f"follow {core.name}")
    return child


async def adopted(record: DetachedRecord, owner: ProcessOwner, add: Callable[[ProcessCore], None]) -> ProcessCore:
    """The process of a record, taken up again; ``add`` makes it known before its end can be told."""
    core = ProcessCore(config_of(record), name=record.name, owner=owner)
    core.id = record.id
    lost = record.config.get("lost")
    core.lost = ", ".join(map(str, lost)) if isinstance(lost, list) else str(lost or "")
    add(core)
    await take_up(core, record, owner).met()
    core.mark_adopted()
    return core


def leave(core: ProcessCore) -> None:
    """Hear of it no more: its manager closes, and it goes on."""
    if isinstance(core.child, DetachedChild):
        core.child.leave()
    hint = f"await nbprocs.adopt({core.name!r}) takes it up again"
    core.leave_alone(Closed(f"{core.name} goes on without this manager, which was closed", name=core.name, hint=hint))


class _Follows:
    """Tells a core what its detached child tells: the logs grow by themselves, the rest is as of any child."""

    def __init__(self, core: ProcessCore, folder: Path) -> None:
        self._core = core
        self._order = OrderReader(os.fspath(folder))
        self.output = core.output
        self.exited = core.exited
        self.drained = core.drained
        self.ending = core.ending
        self.tree_ended = core.tree_ended
        self.changed = core.changed

    def grown(self, ends: dict[str, int]) -> None:
        """It has written up to there."""
        logs = (self._core.stdout, self._core.stderr)
        before = (logs[0].end, logs[1].end)
        after = (ends.get("stdout", 0), ends.get("stderr", 0))
        for which, begin, end in pieces(self._order.changes(after), before, after):
            self._core.order.add(which, end - begin)
        for stream, recorded, size in zip(Stream, logs, (after[0] - before[0], after[1] - before[1]), strict=True):
            if size > 0 and isinstance(recorded, RecordedLog):
                recorded.grown(recorded.end + size)
                self._core.wrote(stream, size)

    def because(self, reason: str) -> None:
        """It ends for that reason."""
        with contextlib.suppress(ValueError):  # a reason of a later version
            self._core.blame(EndReason(reason))


# -- what a record says of its config


def _as_json(config: ProcessConfig) -> dict[str, Any]:
    """The options as JSON, secrets taken out: what is missing is named under ``"lost"``."""
    found = config.changed()
    lost = []
    words = mask_words(config.argv, shell=config.shell)
    if words != tuple(config.argv):
        lost.append("command")
    found["command"], found["args"] = words[0], list(words[1:])
    variables = dict(config.env_vars)
    secret = sorted(name for name, value in variables.items() if value is not None and is_secret_name(name))
    lost += [f"env_vars[{name!r}]" for name in secret]
    found["env_vars"] = {name: value for name, value in variables.items() if name not in secret}
    if isinstance(found.get("stdin"), bytes):
        lost.append("stdin")
        found["stdin"] = False
    if config.notify is not None:  # a callable belongs to its kernel, and a webhook's URL is a secret: only the front end can be told later
        found["notify"] = dataclasses.replace(config.notify, to=()).stored()
    return {**{name: _plain(value) for name, value in found.items()}, "lost": lost}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # a signal is an enum
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def config_of(record: DetachedRecord) -> ProcessConfig:
    """Its config, as far as the record has it; secrets are masked in it."""
    if record.state in {"newer", "broken"}:
        raise _unreadable(record)
    options = {name: value for name, value in record.config.items() if name != "lost"}
    known = {"command": record.command or record.name or "?", **options, "name": record.name or None, "detach": True}
    try:
        return ProcessConfig(**known)
    except (TypeError, ValueError) as error:
        raise _unreadable(record) from error


def _unreadable(record: DetachedRecord) -> StartupFailed:
    why = "was written by a later version of nbprocs" if record.state == "newer" else f"in {record.folder} can't be read"
    return StartupFailed(
        f"the record of {record.name or record.id} {why}", name=record.name, hint="update nbprocs, or forget() a broken one"
    )


def check_whole(core: ProcessCore) -> None:
    """Raise StartupFailed if it was adopted from a record that can't say how it is to be started again."""
    if core.lost:
        raise StartupFailed(
            f"{core.name} can't be started again from its record: {core.lost} held a secret or an input, and {_LOST}",
            name=core.name,
            command=core.config.display,
            hint="spawn it again with what is missing",
        )


def may_be_supervised(core: ProcessCore) -> bool:
    """Whether its supervisor could start it again; said in the log if not."""
    try:
        check_whole(core)
    except StartupFailed as error:
        log.warning("%s is not supervised: %s", core.name, error)
    return not core.lost


def _policy_as_json(policy: RestartPolicy) -> dict[str, Any]:
    """The policy as JSON. Its source of random numbers belongs to its kernel, and so does what its breaker has seen."""
    fields = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy) if field.init and field.name != "rng"}
    if policy.exit_codes is not None:
        fields["exit_codes"] = sorted(policy.exit_codes)
    if policy.breaker is not None:
        fields["breaker"] = {name: _number(getattr(policy.breaker, name)) for name in ("failures", "window", "open_for")}
    return {name: _number(value) for name, value in fields.items()}


def _number(value: Any) -> Any:
    """A number of another library as one of Python's; anything else as it is."""
    return value if isinstance(value, (int, str, list, dict)) or value is None else float(value)


def policy_of(record: DetachedRecord) -> RestartPolicy | None:
    """The restart policy that it was started with, if there was one; a damaged one is said in the log, once, and is none.

    The process can be looked after without a policy: a damaged one is no reason to leave it alone.
    """
    if record.restart is None:
        return None
    from nbprocs.policy import CircuitBreaker, RestartPolicy  # noqa: PLC0415 - most processes have none

    try:
        fields: dict[str, Any] = dict(mapping("restart", record.restart))
        if isinstance(breaker := fields.get("breaker"), dict):
            fields["breaker"] = CircuitBreaker(**breaker)
        return RestartPolicy(**fields)
    except (TypeError, ValueError) as error:
        if record.id not in _SAID:
            _SAID.add(record.id)
            log.warning(
                "the restart policy in the record of %s can't be read, and it is not supervised: %s; adopt(%r, restart=…) gives it another",
                record.name,
                str(error)[:300],
                record.name,
            )
        return None


# -- looking


def find(key: str) -> DetachedRecord:
    """The record with that id, or the live one of that name, else the youngest. Raises UnknownProcess with close matches."""
    if not isinstance(key, str):
        refuse(TypeError, "key", "a name or an id", key)
    known = records()
    fitting = [record for record in known if key in (record.id, record.name)]
    if fitting:
        return max(fitting, key=lambda record: (record.id == key, record.live, record.created))
    close = difflib.get_close_matches(key, [record.name for record in known], n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "nbprocs.detached() lists them all"
    raise UnknownProcess(f"there is no detached process {key!r}", hint=hint)


def detached(*, stale: bool = False) -> pd.DataFrame:
    """All detached processes of this user, live and ended, of every kernel, a row each, the oldest first; commands are masked.

    Args:
        stale: only those that nobody has looked at for a week.

    ``state`` is running, ended, unguarded (its shim was killed, it lives on), lost (both are gone; ``rebooted`` says whether by a restart
    of the machine), newer or broken. Reads one small file each.

    >>> sorted(nbprocs.detached().columns)[:4]
    ['command', 'cpu_time', 'created_at', 'dropped_bytes']
    """
    import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

    now = time.time()
    rows = [
        {
            "id": record.id,
            "name": record.name,
            "state": record.state,
            "pid": record.pid,
            "exit_code": record.exit_code,
            "created_at": _moment(record.created),
            "ended_at": _moment(record.ended),
            "execution_time": record.execution_time if not record.live else now - record.created,
            "cpu_time": record.cpu,
            "peak_rss": record.peak,
            "stdout_bytes": record.size("stdout"),
            "stderr_bytes": record.size("stderr"),
            "dropped_bytes": record.dropped,
            "rebooted": record.rebooted,
            "seen_at": _moment(record.seen),
            "command": record.command,
        }
        for record in records()
        if not stale or now - record.seen > STALE
    ]
    columns = ["id", "name", "state", "pid", "exit_code", "created_at", "ended_at", "execution_time", "cpu_time", "peak_rss"]
    columns += ["stdout_bytes", "stderr_bytes", "dropped_bytes", "rebooted", "seen_at", "command"]
    frame = pd.DataFrame(rows, columns=columns)
    kinds = {"pid": "Int64", "exit_code": "Int64", "peak_rss": "Int64", "execution_time": "float64", "cpu_time": "float64"}
    times = dict.fromkeys(("created_at", "ended_at", "seen_at"), "datetime64[us, UTC]")
    return frame.astype({**kinds, **times})


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def forget(key: str | None = None) -> int:
    """Remove records and logs of detached processes that are not there any more: one by name or id, or all; returns how many.

    Raises UnknownProcess, ValueError for one that lives (stop it first), OSError.

    >>> forget() >= 0
    True
    """
    chosen = [find(key)] if key is not None else [record for record in records() if not record.live and record.state != "newer"]
    for record in chosen:
        if record.live:
            raise ValueError(f"{record.name} lives (pid {record.pid}); stop it before its record is removed")
        forget_record(record)
    _forget_cells()
    return len(chosen)


# -- files that a detached process is started from


def cells_folder() -> Path:
    """Where the Python cells of detached processes are, each with the variables that were sent to it. Raises OSError."""
    folder = state_folder() / "cells"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _forget_cells() -> None:
    """Remove those that no record names any more; none while there is a record that can't be read."""
    known = records()
    if any(record.state in {"newer", "broken"} for record in known):
        return
    named = {word for record in known for word in record.config.get("args", ())}
    with contextlib.suppress(OSError):  # another kernel forgets at the same time
        for cell in cells_folder().glob("*.cell"):
            if str(cell) not in named and time.time() - cell.stat().st_mtime > _CELL_KEPT:
                cell.with_suffix(".py").unlink(missing_ok=True)
                cell.unlink()
