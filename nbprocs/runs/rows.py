"""Notes of what happened, made into rows. In the writer's thread, except for ``KernelSide``, which looks at the loop's side."""

import dataclasses
import hashlib
import json
import logging
import operator
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from nbprocs.model import EventKind, ProcessConfig
from nbprocs.processes.process import ManagedProcess, process_core
from nbprocs.runs.provenance import Inputs, Repositories
from nbprocs.runs.schema import COLUMNS
from nbprocs.runs.secrets import Scrubber, config_json, secret_values, short_env

__all__ = ["KernelSide", "Note", "RowMaker", "Scheduled", "fingerprint"]

log: logging.Logger = logging.getLogger("nbprocs")

_TASK = "NBPROCS_TASK_ID"
_AT = {name: at for at, name in enumerate(COLUMNS)}
_CACHED = 2_048
_QUEUED = 100_000  # tasks whose input files are remembered until they start
_ERROR = 2_000  # characters
_BEFORE = 1_024  # bytes before the tail that are looked at for secrets
LOG = 16 << 20  # bytes of a stream that are kept where the whole output is asked for
_FIELDS = [f.name for f in dataclasses.fields(ProcessConfig) if f.name not in {"name", "working_dir", "env_vars"}]
_MAPPINGS = [f.name for f in dataclasses.fields(ProcessConfig) if f.name in _FIELDS and "Mapping" in str(f.type)]  # can't be hashed
_what_runs = operator.attrgetter(*(name for name in _FIELDS if name not in _MAPPINGS))

Environ = Mapping[Any, Any]


class Note(NamedTuple):
    """One thing that happened, as it is gathered on the loop: references and numbers only."""

    kind: EventKind
    process: ManagedProcess
    at: float  # seconds since the epoch
    keep: tuple[int, bool]  # bytes of each stream's end, and whether the whole output is kept
    folder: str = ""
    environ: Environ | None = None  # the kernel's, when the process started
    cell: str | None = None
    error: BaseException | None = None


class Scheduled(NamedTuple):
    """A task was scheduled: its input files are looked at, and again when it starts."""

    task: str
    words: tuple[str, ...]
    folder: str
    shell: bool
    at: float  # seconds since the epoch


@dataclasses.dataclass(slots=True)
class _Command:
    about: dict[str, Any]
    display: str
    hidden: list[str]  # the secrets that were taken out of it
    key: int = 0  # once it is among the rows


class KernelSide:
    """The kernel's environment and folder, looked at when a process starts: a microsecond while nothing has changed."""

    def __init__(self) -> None:
        self._seen: Environ = {}

    def environ(self) -> Environ:
        """A copy that is the same object as long as nothing has changed."""
        # The mapping below os.environ: its bytes are compared by identity, where os.environ would decode every one of them.
        now: Environ = getattr(os.environ, "_data", os.environ)
        if now != self._seen:
            self._seen = dict(now)
        return self._seen


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 1


def fingerprint(words: Iterable[str]) -> int:
    """A whole number that stands for a command's words, masked as they are kept."""
    return _hash("\0".join(words))


class RowMaker:
    """Makes rows of notes. ``pending`` holds those that are not on disk yet, by number."""

    def __init__(self) -> None:
        self.pending: dict[int, list[Any]] = {}
        self.new_commands: dict[int, tuple[Any, ...]] = {}
        self.new_contexts: dict[int, str] = {}
        self.outputs: list[tuple[int, str, bytes]] = []
        self._live: dict[str, tuple[int, list[Any], Scrubber]] = {}  # by the process's id
        self._repositories = Repositories()
        self._inputs = Inputs()
        self._base: dict[str, str] | None = None  # the kernel's environment when the recording began
        self._environs: OrderedDict[int, tuple[Environ, dict[str, str | None], list[str]]] = OrderedDict()
        self._commands: OrderedDict[Any, _Command] = OrderedDict()
        self._contexts: OrderedDict[str, int] = OrderedDict()
        self._plain: tuple[str, Any, int] = ("\0", None, 0)  # the latest context that tells folder and revision alone
        self._scheduled: OrderedDict[str, tuple[Scheduled, dict[str, dict[str, Any]]]] = OrderedDict()  # by task

    def written(self) -> None:
        """What was pending is on disk."""
        self.pending, self.new_commands, self.new_contexts, self.outputs = {}, {}, {}, []

    def take(self, notes: Iterable[Note | Scheduled], number: Callable[[], int]) -> None:
        """Bring the rows up to date."""
        for note in notes:
            if isinstance(note, Scheduled):
                self._scheduled[note.task] = note, self._inputs.of(note.words, note.folder, shell=note.shell, began=note.at)[0]
                if len(self._scheduled) > _QUEUED:
                    self._scheduled.popitem(last=False)
                continue
            if note.kind in (EventKind.STARTED, EventKind.FAILED):
                self._start(note, number())
            if note.kind in (EventKind.EXITED, EventKind.FAILED):
                self._end(note)

    def _start(self, note: Note, number: int) -> None:
        process, config = note.process, note.process.config
        difference, secrets = self._environ(note.environ or {})
        command, words, scrub = self._command(config, [*secrets, *secret_values(config.env_vars)])
        row: list[Any] = [None] * len(COLUMNS)
        folder = config.working_dir or note.folder
        values = {
            "id": process.id, "name": scrub.clean(process.name), "command": command, "started": note.at, "state": "running",
            "pid": process.pid, "cell": note.cell, "queued": self._queued(config),
            "context": self._context(folder, difference, words, config, note.at, scrub),
        }  # fmt: skip
        for name, value in values.items():
            row[_AT[name]] = value
        self._live[process.id] = number, row, scrub
        self.pending[number] = row

    def _end(self, note: Note) -> None:
        if note.process.id not in self._live:
            return  # it started before the recording
        number, row, scrub = self._live.pop(note.process.id)
        process, result = note.process, note.process.result
        values: dict[str, Any] = {"ended": note.at, "state": str(process.status), **_annotated(process)}
        if result is not None:
            values |= {
                "exit_code": result.exit_code, "signal": result.signal, "reason": result.reason, "seconds": result.execution_time,
                "cpu": result.cpu_time, "peak_rss": result.peak_rss, "dropped": result.dropped_bytes,
                "read_bytes": result.read_bytes, "written_bytes": result.written_bytes,
                "stdout_bytes": process.stdout.end, "stderr_bytes": process.stderr.end,
            }  # fmt: skip
            tail, whole = note.keep
            for stream, log in (("stdout", process.stdout), ("stderr", process.stderr)):
                if log.end:
                    more = log.tail(tail + _BEFORE).decode("utf-8", "replace") if tail else ""  # or half a secret could be left of it
                    values[stream] = scrub.clean(more)[-tail:] if tail else None
                    if whole:
                        text = scrub.clean(log.tail(LOG).decode("utf-8", "replace"))
                        self.outputs.append((number, stream, zlib.compress(text.encode("utf-8", "replace"), 1)))
        if note.error is not None:
            values["error"] = scrub.clean(str(note.error))[:_ERROR]
        for name, value in values.items():
            row[_AT[name]] = value
        self.pending[number] = row

    def _queued(self, config: ProcessConfig) -> float | None:
        known = self._scheduled.get(config.env_vars.get(_TASK) or "")
        return None if known is None else known[0].at

    # -- what many runs share

    def _command(self, config: ProcessConfig, secrets: list[str]) -> tuple[int, list[str], Scrubber]:
        """Its key, its words as kept, and what takes its secrets out of text."""
        asked = _what_runs(config)
        known, kept = None, not any(getattr(config, name) for name in _MAPPINGS)
        try:
            known = self._commands.get(asked) if kept else None
        except TypeError:  # an open file among the options, say
            kept = False
        if known is None:
            about, hidden = config_json(config)
            known = _Command(about, Scrubber(hidden).clean(config.display), hidden)
            if kept:
                self._commands[asked] = known
                if len(self._commands) > _CACHED:
                    self._commands.popitem(last=False)
        scrub = Scrubber([*secrets, *known.hidden])
        if any(scrub.knows(word) for word in known.about["words"]):  # a secret of the environment, written out in the command
            about = _cleaned(known.about, scrub) | {"left_out": [*known.about.get("left_out", ()), "secrets"]}
            known = _Command(about, scrub.clean(config.display), known.hidden)
        if not known.key:
            text, words = json.dumps(known.about), known.about["words"]
            known.key = _hash(text)
            self.new_commands[known.key] = (known.key, known.display, text, fingerprint(words), fingerprint(words[:2]))
        return known.key, known.about["words"], scrub

    def _environ(self, environ: Environ) -> tuple[dict[str, str | None], list[str]]:
        """How the kernel's environment differs from that at the beginning, masked; and its secrets."""
        known = self._environs.get(id(environ))
        if known is None or known[0] is not environ:
            now = {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()}
            if self._base is None:
                self._base = now
            changed: dict[str, str | None] = {name: value for name, value in now.items() if self._base.get(name) != value}
            changed |= dict.fromkeys(self._base.keys() - now.keys())
            known = self._environs[id(environ)] = environ, short_env(changed), secret_values(now)
            if len(self._environs) > 16:  # noqa: PLR2004 - a cache
                self._environs.popitem(last=False)
        return known[1], known[2]

    def _context(
        self, folder: str, kernel: dict[str, str | None], words: list[str], config: ProcessConfig, began: float, scrub: Scrubber
    ) -> int:
        inputs, fresh = self._inputs.of(words, folder, shell=config.shell, began=began)
        git = self._repositories.state(folder, anew=fresh and bool(inputs))
        about: dict[str, Any] = {"folder": folder, "env": short_env(_own(config)), "kernel": kernel, "inputs": inputs, "git": git}
        _, then = self._scheduled.get(config.env_vars.get(_TASK) or "", (None, {}))
        changed = sorted(name for name, known in then.items() if known.get("hash") != inputs.get(name, {}).get("hash"))
        if changed:
            about["changed"] = changed
            log.warning("%s changed between scheduling and start of %s", ", ".join(changed), scrub.clean(config.display))
        if not (inputs or kernel or changed or about["env"]) and git is self._plain[1] and folder == self._plain[0]:
            return self._plain[2]  # the frequent case: nothing but the folder and its revision, as of the run before
        text = json.dumps({name: value for name, value in about.items() if value}, sort_keys=True, ensure_ascii=False)
        known = self._contexts.get(text)
        if known is None:
            clean = json.dumps(_cleaned(json.loads(text), scrub), sort_keys=True)
            known = _hash(clean)
            self.new_contexts[known] = clean
            if len(text) < 10_000:  # noqa: PLR2004 - a cache, which must not hold much
                self._contexts[text] = known
                if len(self._contexts) > _CACHED:
                    self._contexts.popitem(last=False)
        if not (inputs or kernel or changed or about["env"] or scrub.knows(folder)):
            self._plain = folder, git, known
        return known


def _cleaned(value: Any, scrub: Scrubber) -> Any:
    if isinstance(value, str):
        return scrub.clean(value)
    if isinstance(value, dict):
        return {scrub.clean(name): _cleaned(item, scrub) for name, item in value.items()}
    return [_cleaned(item, scrub) for item in value] if isinstance(value, list) else value


def _own(config: ProcessConfig) -> dict[str, str | None]:
    """What the caller changes in the environment: a scheduler's own words for its tasks are no difference of two runs."""
    return {name: value for name, value in config.env_vars.items() if name not in {_TASK, "NBPROCS_ATTEMPT", "NBPROCS_SLOT"}}


def _annotated(process: ManagedProcess) -> dict[str, Any]:
    about = process_core(process).annotations
    found: dict[str, Any] = {name: about[name] for name in ("task", "queued", "parent") if name in about}
    task = process.config.env_vars.get(_TASK)
    return {"task": task, **found} if task else found
