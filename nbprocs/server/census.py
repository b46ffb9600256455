"""What all shims of this user say, as one table for the panel."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbprocs.engine.asking import Reply, ask, ask_all

__all__ = ["ORDERS", "Notebook", "census", "order", "output"]

ORDERS = frozenset({"stop", "pause", "resume", "interrupt"})
_SOCKET = re.compile(r"[\w.-]+\.sock", re.ASCII)
_PATIENCE = 1.0  # seconds for all shims together to tell their status
_MARGIN = 10.0  # seconds beyond the grace until a stop is answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """Where a kernel is seen."""

    kernel: str  # its id
    path: str = ""  # of the notebook or console, "" where no session shows it
    kind: str = ""  # "notebook", "console", …


def census(folder: Path, *, notebooks: Mapping[int, Notebook]) -> dict[str, Any]:
    """Ask all shims once; blocks at most a second. ``notebooks`` says by a kernel's pid where it is seen.

    ``"kernels"`` are the ids of those that have loaded nbprocs.
    A shim that does not answer is named under ``"silent"``; one whose socket nobody serves any more is left out.
    """
    replies = [reply for reply in ask_all(folder, {"op": "status"}, timeout=_PATIENCE) if not reply.gone]
    rows = [row for reply in replies if reply.answer is not None for row in _rows(reply, notebooks)]
    kernels = sorted({row.kernel for row in map(_seen(notebooks), replies) if row.kernel})
    silent = [{"socket": reply.path.name, "error": reply.error} for reply in replies if reply.answer is None]
    return {"at": time.time(), "processes": rows, "kernels": kernels, "silent": silent}


def _seen(notebooks: Mapping[int, Notebook]) -> Callable[[Reply], Notebook]:
    return lambda reply: notebooks.get((reply.answer or {}).get("shim", {}).get("kernel_pid"), Notebook(kernel=""))


def _rows(reply: Reply, notebooks: Mapping[int, Notebook]) -> Iterable[dict[str, Any]]:
    answer = reply.answer or {}
    shim = answer.get("shim", {})
    seen = _seen(notebooks)(reply)
    common = {
        "socket": reply.path.name,
        "detached": bool(shim.get("detached")),
        "kernel_alive": bool(shim.get("kernel_alive")),
        "kernel_pid": shim.get("kernel_pid"),
        "kernel": seen.kernel,
        "path": seen.path,
        "kind": seen.kind,
    }
    for child in answer.get("children", ()):
        yield {**child, **common}
    for stray in answer.get("strays", ()):
        yield {"status": "stray", "name": "stray", **stray, **common}


def order(folder: Path, *, socket: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Carry an order to one shim and wait for its answer; blocks at most 10 s beyond a stop's grace.

    Raises ValueError for a socket name that is a path, or an operation that is no order: nothing else can be asked for here.
    """
    if not _SOCKET.fullmatch(socket):
        raise ValueError(f"{socket!r} is no name of a socket")
    wanted = request.get("op")
    if not isinstance(wanted, str) or wanted not in ORDERS:
        raise ValueError(f"{wanted!r} is none of {', '.join(sorted(ORDERS))}")
    grace = request.get("grace", 5.0)
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not 0 <= grace <= 3600:  # noqa: PLR2004 - an hour
        raise ValueError("grace is a number of seconds between 0 and 3600")
    reply = ask(folder / socket, {**request, "grace": grace}, timeout=grace + _MARGIN)
    return dict(reply.answer) if reply.answer is not None else {"ok": False, "error": reply.error}


def output(folder: Path, *, socket: str, process: str, offset: int) -> dict[str, Any]:
    """A part of a detached process's log from an offset on, at most a MiB; blocks at most a second.

    Raises ValueError for a socket name that is a path, or a negative offset.
    """
    if not _SOCKET.fullmatch(socket) or offset < 0:
        raise ValueError("a log is asked for by the name of a socket and an offset that is not negative")
    reply = ask(folder / socket, {"op": "output", "id": process, "offset": offset, "size": 1 << 20}, timeout=_PATIENCE)
    return dict(reply.answer) if reply.answer is not None else {"ok": False, "error": reply.error}
