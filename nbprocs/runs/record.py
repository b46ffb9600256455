"""One run, as the history tells it: a value, with what can be done with it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbprocs import checks
from nbprocs.display import Displayable, Html, bytes_text, clock, joined, plain, table, text
from nbprocs.errors import error_from_result
from nbprocs.model import ProcessConfig, ProcessResult, Stream, signal_name
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.recording import annotate
from nbprocs.redact import MASK, one_line
from nbprocs.runs.errors import NotRerunnable
from nbprocs.runs.provenance import Inputs

if TYPE_CHECKING:
    from nbprocs.runs.diff import RunDiff

__all__ = ["RunRecord", "human_bytes", "human_seconds"]

_TAIL = 4_000  # characters of output that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(Displayable):
    r"""A row of the run history. Times are seconds since the epoch; None where something is not known.

    ``state`` is a ProcessStatus by name, or "lost": its kernel ended before it told the run's end.

    >>> async with nbprocs.ProcessManager(runs="example.db") as pm:
    ...     _ = await pm.run("echo", "hello", name="greeting")
    >>> run = nbprocs.runs("example.db")[-1]
    >>> run.name, run.command, run.state, run.stdout
    ('greeting', 'echo hello', 'completed', 'hello\n')
    """

    path: Path = field(repr=False)  # of the history
    key: int = field(repr=False)
    id: str
    name: str
    command: str  # masked
    config: Mapping[str, Any] = field(repr=False)  # what was kept of the ProcessConfig
    state: str
    started: float
    ended: float | None = None
    queued: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    seconds: float | None = None  # by the monotonic clock
    cpu: float | None = None  # seconds
    peak_rss: int | None = None  # bytes
    read_bytes: int | None = None  # from disk, as the kernel accounted it at the exit
    written_bytes: int | None = None
    stdout: str | None = field(default=None, repr=False)  # the end of it
    stderr: str | None = field(default=None, repr=False)
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    dropped: int | None = None
    pid: int | None = None
    cell: str | None = None  # "[12] id"
    error: str | None = None  # why it could not be started
    task: str | None = None  # of a scheduler
    parent: str | None = None  # the run that this one is a rerun of
    host: str = ""  # where it ran
    worker: str | None = None  # of a cluster, which it ran on
    user: str | None = None
    python: str | None = None
    notebook: str | None = None
    folder: str = ""
    env: Mapping[str, str | None] = field(default_factory=dict, repr=False)  # env_vars, masked
    kernel: Mapping[str, str | None] = field(default_factory=dict, repr=False)  # how the kernel's own differed from its beginning
    git: Mapping[str, Any] | None = None  # revision, dirty, diff, root
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # by name: hash, size
    changed: tuple[str, ...] = ()  # inputs that changed between scheduling and start

    @property
    def ok(self) -> bool:
        """True for an end of its own accord with a status that counts as success."""
        return self.state == "completed"

    @property
    def words(self) -> tuple[str, ...]:
        """The command's words, masked; of a very long command the first."""
        return tuple(self.config["words"])

    @property
    def revision(self) -> str | None:
        """The git revision, short, with ``+`` and a hash of the difference where the folder had changes."""
        if not self.git:
            return None
        short = str(self.git["revision"])[:10]
        return f"{short}+{self.git['diff'][:6]}" if self.git.get("dirty") else short

    def output(self, stream: Stream | str = Stream.STDOUT) -> str:
        """The whole output, where the history keeps it (``RunsConfig(output=True)``), else its end; masked. Reads the file."""
        from nbprocs.runs.history import stored_output  # noqa: PLC0415 - the history makes these records

        name = checks.member("stream", stream, Stream).value
        kept = stored_output(self.path, self.key, name)
        return kept if kept is not None else (getattr(self, name) or "")

    def show(self) -> "RunRecord":
        """Itself, for the last line of a cell: displayed it tells all that is known."""
        return self

    def diff(self, other: "RunRecord") -> "RunDiff":
        """What is different in the other run: command, environment, revision, inputs, duration, memory, output."""
        from nbprocs.runs.diff import compare  # noqa: PLC0415 - which needs this class

        return compare(self, checks.instance("other", other, RunRecord, "a RunRecord"))

    # -- again

    def to_config(self, **changes: Any) -> ProcessConfig:
        """The ProcessConfig that runs it again; ``changes`` are fields of it. ``env_vars`` are laid over those of the run.

        Raises NotRerunnable where a secret was masked that neither the changes nor the kernel's environment give, or where something
        could not be kept.
        """
        words = self.words
        left = set(self.config.get("left_out", ())) - changes.keys()
        if "args" in changes:
            left -= {"secrets", "words"}
        elif "secrets" in left and "command" not in changes:
            raise NotRerunnable(f"the command of {self.name} holds a secret, which was not kept: {self.command}", hint="give args=")
        if "words" in left:
            raise NotRerunnable(f"the command of {self.name} was too long to be kept", hint="give args=")
        left -= {"secrets", "words"}
        if left:
            names = ", ".join(sorted(left))
            raise NotRerunnable(f"{names} of {self.name} could not be kept", hint=f"give {names}=")
        env = {**self.env, **changes.pop("env_vars", {})}
        for name, value in env.items():
            if value is not None and MASK in value:
                if name not in os.environ:
                    raise NotRerunnable(f"the value of {name} is a secret, which was not kept", hint=f"give env_vars={{{name!r}: …}}")
                env[name] = os.environ[name]
        kept = {name: value for name, value in self.config.items() if name not in {"words", "left_out", "hash"}}
        made = {"command": words[0], "args": words[1:], "working_dir": self.folder or None, "env_vars": env, "name": self.name, **kept}
        return ProcessConfig(**{**made, **changes})

    async def rerun(self, *, manager: ProcessManager | None = None, check: bool = True, **changes: Any) -> ProcessResult:
        r"""Run it again, with changes (fields of ProcessConfig), and return the result; the new run is a row whose ``parent`` is this one.

        In a manager of its own that records in the same history, or in yours. Raises what ``to_config`` and ``ProcessManager.run`` raise.

        >>> async with nbprocs.ProcessManager(runs="example.db") as pm:
        ...     _ = await pm.run("echo", "hello")
        >>> (await nbprocs.runs("example.db")[-1].rerun(args=("again",))).text
        'again\n'
        """
        config = self.to_config(**changes)
        checks.flag("check", check)
        if manager is None:
            async with ProcessManager(runs=self.path) as own:
                return await self._run(own, config, check=check)
        checks.instance("manager", manager, ProcessManager, "a ProcessManager or None")
        return await self._run(manager, config, check=check)

    async def _run(self, manager: ProcessManager, config: ProcessConfig, *, check: bool) -> ProcessResult:
        process = await manager.spawn(config, wait=True)
        annotate(process, parent=self.id)
        try:
            result = await process.wait()
        except BaseException:
            await process.stop(manager.grace)
            raise
        error = error_from_result(result)
        if check and error is not None:
            raise error
        return result

    def changed_since(self) -> tuple[str, ...]:
        """Which of its input files are different now, or gone. Reads them."""
        now, _ = Inputs().of(list(self.inputs), self.folder, shell=False, began=float("inf"), every=True)
        return tuple(name for name, about in self.inputs.items() if about.get("hash") != now.get(name, {}).get("hash"))

    # -- shown

    def __repr__(self) -> str:
        spent = "" if self.seconds is None else f" in {human_seconds(self.seconds)}"
        return f"<RunRecord {self.name}: {self.state}{self._end()}{spent}, {_moment(self.started)}: {one_line(self.command)}>"

    def _end(self) -> str:
        if self.signal is not None:
            return f" {signal_name(self.signal)}"
        return "" if self.exit_code in (None, 0) else f" exit {self.exit_code}"

    def facts(self) -> dict[str, str]:
        """What is known, as text by title; for show() and diff()."""
        inputs = {f"input {name}": _input(about) for name, about in self.inputs.items()}
        env = {f"env {name}": "(removed)" if value is None else value for name, value in {**self.kernel, **self.env}.items()}
        options = {name: str(value) for name, value in self.config.items() if name not in {"words", "left_out", "hash"}}
        found = {
            "command": self.command, **options, "state": f"{self.state}{self._end()}", "reason": self.reason or self.error,
            "started": _moment(self.started), "duration": None if self.seconds is None else human_seconds(self.seconds),
            "waited": None if self.queued is None else human_seconds(self.started - self.queued),
            "CPU": None if self.cpu is None else human_seconds(self.cpu), "peak memory": human_bytes(self.peak_rss),
            "read": human_bytes(self.read_bytes), "written": human_bytes(self.written_bytes), "folder": self.folder,
            "revision": self.revision, **env, **inputs, "changed while queued": ", ".join(self.changed), "cell": self.cell,
            "notebook": self.notebook, "host": self.host, "worker": self.worker, "rerun of": self.parent, "task": self.task,
        }  # fmt: skip
        return {title: value for title, value in found.items() if value}

    def _html_(self) -> Html:
        rows = [(text(title), text(value, limit=2_000)) for title, value in self.facts().items()]
        tails = (
            Html("<div>{}</div><pre>{}</pre>").format(name, text(plain(tail)[-_TAIL:]))
            for name in ("stdout", "stderr")
            if (tail := getattr(self, name))
        )
        return Html("<div><b>{}</b>{}{}</div>").format(text(self.name), table((), rows), joined(tails))


def _input(about: Mapping[str, Any]) -> str:
    late = " (written to after the start)" if about.get("late") else ""
    return f"{human_bytes(about['size'])} {str(about.get('hash', 'not hashed'))[:12]}{late}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def human_seconds(seconds: float) -> str:
    """``0.32 s``, ``4:05``, ``2:00:31``.

    >>> human_seconds(0.3214), human_seconds(245)
    ('0.321 s', '4:05')
    """
    return f"{seconds:.3g} s" if seconds < 100 else clock(seconds)  # noqa: PLR2004 - three digits


def human_bytes(count: float | None) -> str | None:
    """``512 B``, ``3.2 MiB``; None for None.

    >>> human_bytes(3_355_443)
    '3.2 MiB'
    """
    return None if count is None else bytes_text(count)


def read_context(value: str | None) -> dict[str, Any]:
    """The fields of a RunRecord that a row of contexts gives."""
    raw: dict[str, Any] = json.loads(value) if value else {}
    found: dict[str, Any] = {name: raw[name] for name in ("folder", "env", "kernel", "git", "inputs", "host", "worker") if name in raw}
    return {**found, "changed": tuple(raw.get("changed", ()))}
