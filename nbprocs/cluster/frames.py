"""The workers of a cluster, and what runs there: as rows, and as DataFrames."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbprocs.cluster.fleet import Fleet
from nbprocs.cluster.remote import RemoteProcess
from nbprocs.scheduler.backend import Job

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SeenWorker", "processes_frame", "seen_workers", "workers_frame"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenWorker:
    """A worker that has joined, as it was last seen; None: not known."""

    address: str
    name: str | None
    host: str | None
    slots: int
    tasks: tuple[str, ...]  # names of what it has; at most ``slots``, and the few that were handed over ahead
    cpu: float | None  # percent of a core that these take with their trees, at the last look
    used: int | None  # bytes of memory, likewise
    memory: int | None  # bytes that it may use
    gpus: int | None
    pid: int | None
    state: str  # joining, joined, silent, leaving
    nbprocs: str | None  # the version there


def seen_workers(fleet: Fleet | None) -> list[SeenWorker]:
    """All that have joined. Measures nothing: ``fleet.look()`` does."""
    return [] if fleet is None else [_seen(fleet, address) for address in fleet.peers]


def _seen(fleet: Fleet, address: str) -> SeenWorker:
    peer, place = fleet.peers[address], fleet.ledger.places.get(address)
    facts, jobs = peer.facts, fleet.jobs_at(address)
    rows = [process.row for _, process in jobs if process is not None]
    return SeenWorker(
        address=address,
        name=facts.name if facts else None,
        host=facts.host if facts else None,
        slots=place.slots if place else 0,
        tasks=tuple(job.name for job, _ in jobs),
        cpu=_sum(row.get("cpu_percent") for row in rows),
        used=_bytes(_sum(row.get("memory_usage_mb") for row in rows)),
        memory=facts.memory or None if facts else None,
        gpus=facts.gpus if facts else None,
        pid=facts.pid if facts else None,
        state=peer.state,
        nbprocs=facts.version if facts else None,
    )


_KINDS = {
    "name": "string", "host": "string", "slots": "Int64", "running": "Int64", "cpu": "Float64", "used": "Int64", "memory": "Int64",
    "gpus": "Int64", "pid": "Int64", "state": "string", "nbprocs": "string",
}  # fmt: skip


def workers_frame(fleet: Fleet | None) -> "pd.DataFrame":
    """A row a worker that has joined."""
    import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

    seen = seen_workers(fleet)
    rows = [(w.name, w.host, w.slots, len(w.tasks), w.cpu, w.used, w.memory, w.gpus, w.pid, w.state, w.nbprocs) for w in seen]
    index = pd.Index([worker.address for worker in seen], name="worker", dtype="string")
    return pd.DataFrame(rows, columns=list(_KINDS), index=index).astype(_KINDS)


_RUNNING = {
    "name": "string", "worker": "string", "host": "string", "pid": "Int64", "memory": "Int64", "cpu": "float64",
    "started": "datetime64[us, UTC]",
}  # fmt: skip


def processes_frame(running: Sequence[tuple[Job, RemoteProcess]]) -> "pd.DataFrame":
    """A row a process."""
    import pandas as pd  # noqa: PLC0415 - as above

    rows = [
        (job.name, p.worker, p.host, p.pid, _bytes(p.row.get("memory_usage_mb")), p.row.get("cpu_percent"), p.created_at)
        for job, p in running
    ]
    index = pd.Index([job.task_id for job, _ in running], name="task", dtype="string")
    return pd.DataFrame(rows, columns=list(_RUNNING), index=index).astype(_RUNNING)


def _sum(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) if known else None


def _bytes(mib: float | None) -> int | None:
    return None if mib is None or math.isnan(mib) else round(mib * _MIB)
