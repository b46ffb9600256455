"""Runs in the terms of W3C PROV, as PROV-JSON (https://www.w3.org/submissions/prov-json/): who used what, when, and what came of it.

An *activity* is a run; *entities* are the command as a plan, the input files by content, the revision of the code, and the output; the
*agent* is the user, for whom the notebook's kernel acted.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from nbprocs.runs.record import RunRecord

__all__ = ["prov_json"]

_PREFIXES = {
    "nbprocs": "urn:nbprocs:",
    "run": "urn:uuid:",
    "sha256": "urn:sha-256:",
    "git": "urn:git:",
    "prov": "http://www.w3.org/ns/prov#",
}


def prov_json(runs: Iterable[RunRecord]) -> dict[str, Any]:
    """One PROV document of all of them."""
    document: dict[str, Any] = {"prefix": _PREFIXES}
    for run in runs:
        for kind, found in _of(run).items():
            document.setdefault(kind, {}).update(found)
    return document


def _of(run: RunRecord) -> dict[str, dict[str, Any]]:
    me = f"run:{run.id}"
    activity: dict[str, Any] = {"prov:label": run.name, "prov:startTime": _time(run.started), "nbprocs:state": run.state}
    if run.ended is not None:
        activity["prov:endTime"] = _time(run.ended)
    for name in ("exit_code", "signal", "reason", "seconds", "cpu", "peak_rss", "host", "notebook", "cell", "folder"):
        if (value := getattr(run, name)) not in (None, ""):
            activity[f"nbprocs:{name}"] = value
    plan = f"nbprocs:command-{run.id}"
    entities: dict[str, Any] = {plan: {"prov:type": "prov:Plan", "prov:value": run.command}}
    used: dict[str, Any] = {}
    for name, about in run.inputs.items():
        entity = f"sha256:{about['hash']}" if "hash" in about else f"nbprocs:file-{run.id}-{len(used)}"
        entities[entity] = {"prov:label": name, "prov:type": "nbprocs:File", "nbprocs:size": about["size"]}
        used[f"_:{run.id}-u{len(used)}"] = {"prov:activity": me, "prov:entity": entity, "prov:role": "input"}
    if run.git:
        entity = f"git:{run.git['revision']}"
        entities[entity] = {"prov:type": "nbprocs:Revision"}
        if run.git.get("dirty"):
            entity, clean = f"{entity}-{run.git['diff']}", entity
            entities[entity] = {"prov:type": "nbprocs:Revision", "nbprocs:diff": run.git["diff"]}
            used[f"_:{run.id}-u{len(used)}"] = {"prov:activity": me, "prov:entity": clean}
        used[f"_:{run.id}-u{len(used)}"] = {"prov:activity": me, "prov:entity": entity, "prov:role": "code"}
    found: dict[str, dict[str, Any]] = {"activity": {me: activity}, "entity": entities, "used": used}
    generated = {}
    for stream in ("stdout", "stderr"):
        if getattr(run, f"{stream}_bytes"):
            output = f"nbprocs:{stream}-{run.id}"
            entities[output] = {"prov:label": stream, "nbprocs:size": getattr(run, f"{stream}_bytes")}
            generated[f"_:{run.id}-{stream}"] = {"prov:entity": output, "prov:activity": me}
    agent = f"nbprocs:user-{run.user or 'unknown'}"
    found["wasGeneratedBy"] = generated
    found["agent"] = {agent: {"prov:type": "prov:Person", "prov:label": run.user or "unknown"}}
    found["wasAssociatedWith"] = {f"_:{run.id}-a": {"prov:activity": me, "prov:agent": agent, "prov:plan": plan}}
    if run.parent:
        found["wasInformedBy"] = {f"_:{run.id}-p": {"prov:informed": me, "prov:informant": f"run:{run.parent}"}}
    return {kind: things for kind, things in found.items() if things}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
