"""The workers of a cluster as a DataFrame."""

from typing import TYPE_CHECKING, Any

from nbprocs.cluster.fleet import Fleet

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["workers_frame"]

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
