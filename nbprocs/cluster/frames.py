"""The workers of a cluster, and what runs there, as DataFrames."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbprocs.cluster.fleet import Fleet
from nbprocs.cluster.remote import RemoteProcess
from nbprocs.scheduler.backend import Job

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["processes_frame", "workers_frame"]

_KINDS = {
    "name": "string", "host": "string", "slots": "Int64", "running": "Int64", "memory": "Int64", "gpus": "Int64", "pid": "Int64",
    "state": "string", "nbprocs": "string",
}  # fmt: skip


def workers_frame(fleet: Fleet | None) -> "pd.DataFrame":
    """A row a worker that has joined."""
    import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

    peers = [] if fleet is None else list(fleet.peers.values())
    rows: list[dict[str, Any]] = []
    for peer in peers:
        place = fleet.ledger.places.get(peer.address) if fleet is not None else None
        facts = peer.facts
        rows.append(
            {
                "name": facts.name if facts else None,
                "host": facts.host if facts else None,
                "slots": place.slots if place else 0,
                "running": len(place.jobs) if place else 0,
                "memory": facts.memory or None if facts else None,
                "gpus": facts.gpus if facts else None,
                "pid": facts.pid if facts else None,
                "state": peer.state,
                "nbprocs": facts.version if facts else None,
            }
        )
    frame = pd.DataFrame(rows, columns=list(_KINDS), index=pd.Index([peer.address for peer in peers], name="worker", dtype="string"))
    return frame.astype(_KINDS)


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


def _bytes(mib: float | None) -> int | None:
    return None if mib is None or math.isnan(mib) else round(mib * (1 << 20))
