"""The records of detached processes, as anybody reads them: which there are, what each says, and whether it can still be true."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from nbprocs.engine.places import state_folder
from nbprocs.engine.shimlib.record import NAME, SEEN, VERSION, boot_id
from nbprocs.engine.shimlib.segments import segments_of, size_of
from nbprocs.engine.table import read_row

__all__ = ["DetachedRecord", "detached_folder", "forget_record", "records"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachedRecord:
    """What is on disk about one detached process.

    ``state`` is what can be true now:

    - ``running``: its shim lives; ``starting`` for a moment before;
    - ``ended``: with its exit status;
    - ``unguarded``: its shim was killed, it lives on; its output since then is lost, its exit status will be;
    - ``lost``: both are gone, and nobody saw how it ended: killed with its shim, or the machine was restarted (``rebooted``);
    - ``newer``: written by a later version of nbprocs, which alone can read it; ``broken``: nobody can.
    """

    id: str
    folder: Path
    name: str = ""
    command: str = ""  # masked
    state: str = "broken"
    rebooted: bool = False
    pid: int | None = None
    start: float = 0.0  # ticks
    shim_pid: int | None = None
    shim_start: float = 0.0  # ticks
    socket: Path | None = None
    created: float = 0.0  # unix time
    ended: float | None = None
    status: int | None = None  # as wait() gives it
    execution_time: float | None = None
    cpu: float | None = None
    peak: int | None = None
    read: int | None = None  # bytes from disk
    written: int | None = None  # bytes to disk
    reason: str | None = None
    dropped: int = 0
    ends: Mapping[str, Any] = field(default_factory=dict)  # bytes that each stream has written in all, once it has ended
    pty: bool = False
    stdin: bool = False
    seen: float = 0.0  # unix time: when somebody looked last
    config: Mapping[str, Any] = field(default_factory=dict)  # without secrets
    restart: object = None  # fields of a policy, or whatever stands there: who reads it judges it, and the process can be had without
    started_by: int | None = None  # the pid of the kernel

    @property
    def live(self) -> bool:
        """Whether the process is there."""
        return self.state in {"starting", "running", "unguarded"}

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives or where nobody knows."""
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)

    def size(self, stream: str) -> int:
        """How many bytes a stream's log goes up to: what the disk refused at the end counts, too, where its shim could still say so."""
        end = self.ends.get(stream)
        found = end if isinstance(end, int) and 0 <= end < _MOST else 0
        with contextlib.suppress(OSError, IndexError):
            last = segments_of(self.folder, stream)[-1]
            found = max(found, last[0] + size_of(self.folder, last))
        return found


def detached_folder() -> Path:
    """Where the records are; made if it is not there. Raises OSError."""
    folder = state_folder() / "detached"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def records() -> list[DetachedRecord]:
    """All records, the oldest first. A folder that can't be read has none; one that is half written is left out for a moment."""
    try:
        folders = list(detached_folder().iterdir())
    except OSError:
        return []
    boot = boot_id()
    found = [record for folder in folders if (record := read_record(folder, boot=boot)) is not None]
    return sorted(found, key=lambda record: record.created)


def read_record(folder: Path, *, boot: str | None = None) -> DetachedRecord | None:
    """One of them; None where there is none (yet)."""
    boot = boot_id() if boot is None else boot
    record = _read(folder, boot)
    if record is not None and record.state in {"unguarded", "lost"}:
        return _read(folder, boot)  # its shim may have written the end and left between our two looks: what it wrote is final now
    return record


def _read(folder: Path, boot: str) -> DetachedRecord | None:
    try:
        text = (folder / NAME).read_bytes()
    except OSError:
        return None
    seen = _changed(folder / SEEN)  # 0: nobody has looked since it was started
    try:
        fields = json.loads(text)
        if fields["v"] > VERSION:
            return DetachedRecord(
                id=folder.name, folder=folder, name=str(fields.get("name", "")), state="newer", seen=seen or _changed(folder)
            )
        return _judged(folder, fields, seen=seen, boot=boot)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return DetachedRecord(id=folder.name, folder=folder, state="broken", seen=seen or _changed(folder))


def _changed(path: Path) -> float:
    """When it was written last, unix time; 0 where it isn't there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "name", "command", "state"), str),
    **dict.fromkeys(("socket", "reason", "boot"), (str, NoneType)),
    **dict.fromkeys(("pid", "status", "peak", "read", "written", "kernel"), (int, NoneType)),
    **dict.fromkeys(("start", "created"), (int, float)),
    **dict.fromkeys(("ended", "execution_time", "cpu"), (int, float, NoneType)),
    **dict.fromkeys(("config", "dropped", "ends", "shim"), (dict, NoneType)),
}


_MOST = 1 << 60  # far above every pid, size and time; NaN is not below it


def _check(fields: dict[str, Any]) -> None:
    """Raise TypeError or ValueError for what no shim has written: whoever shows or adopts it relies on it."""
    for name, kind in _KINDS.items():
        if name in fields and not isinstance(fields[name], kind):
            raise TypeError(name)
        if isinstance(fields.get(name), (int, float)) and not 0 <= fields[name] < _MOST:
            raise ValueError(name)
    if fields["state"] not in {"starting", "running", "ended"}:
        raise ValueError(fields["state"])


def _judged(folder: Path, fields: dict[str, Any], *, seen: float, boot: str) -> DetachedRecord:
    _check(fields)
    state = fields["state"]
    shim = fields.get("shim") or {}
    rebooted = bool(boot and fields.get("boot") and fields["boot"] != boot)
    if state in {"starting", "running"}:
        if rebooted:
            state = "lost"
        elif not _is_there(shim.get("pid"), shim.get("start", 0.0)):
            state = "unguarded" if _is_there(fields.get("pid"), fields.get("start", 0.0)) else "lost"
    socket = fields.get("socket")
    return DetachedRecord(
        id=fields["id"],
        folder=folder,
        name=fields["name"],
        command=fields["command"],
        state=state,
        rebooted=rebooted,
        pid=fields.get("pid"),
        start=fields.get("start", 0.0),
        shim_pid=shim.get("pid"),
        shim_start=shim.get("start", 0.0),
        socket=Path(socket) if socket else None,
        created=fields.get("created", 0.0),
        ended=fields.get("ended"),
        status=fields.get("status"),
        execution_time=fields.get("execution_time"),
        cpu=fields.get("cpu"),
        peak=fields.get("peak"),
        read=fields.get("read"),
        written=fields.get("written"),
        reason=fields.get("reason"),
        dropped=sum((fields.get("dropped") or {}).values()),
        ends=fields.get("ends") or {},
        pty=bool(fields.get("pty")),
        stdin=bool(fields.get("stdin")),
        seen=seen or fields.get("created", 0.0),
        config=fields.get("config") or {},
        restart=fields.get("restart"),
        started_by=fields.get("kernel"),
    )


def _is_there(pid: int | None, start: float) -> bool:
    """Whether the process with that identity lives: a pid alone may be somebody else's."""
    row = None if pid is None else read_row(pid)
    return row is not None and not row.gone and row.start == start


def forget_record(record: DetachedRecord) -> None:
    """Remove a record and its log. Raises OSError."""
    shutil.rmtree(record.folder)
