"""The spawn form: from an empty field to a running process, with the Python line that does the same."""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nbprocs.config import ProcessConfig
from nbprocs.display import Html, joined, plain
from nbprocs.errors import Closed, NameInUse, NotReady, ProcessError, ResourceExhausted, StartupFailed
from nbprocs.model import EventKind
from nbprocs.processes.manager import manager_core
from nbprocs.processes.readiness import LogLine, Port, Url
from nbprocs.redact import is_secret_name, mask_text
from nbprocs.widgets.base import Host, Part, View
from nbprocs.widgets.record import MONO, MUTED
from nbprocs.widgets.sampling import manager_given
from nbprocs.widgets.wire import Delta, Refused, choice, flag, mapping, op, text

__all__ = ["FormPart", "SpawnForm", "python_line"]

_HISTORY = 50
_OFFERED = 12  # completions at once
_FRESH = 30.0  # seconds that the scan of PATH is believed
_MAX_PORT = 65535
READY_KINDS = ("", "port", "log line", "url")

Fields = dict[str, Any]

# of ProcessConfig, where each is declared once with its check, its label and its help; those with a field of their own are not among them
OFFERED = ("title", "nice", "umask", "user", "group", "executable", "encoding", "stop_signal", "stdout", "stderr", "merge_stderr")

_CHECKS = {
    "command": text(20_000),
    "shell": flag,
    "cwd": text(4096),
    "env": mapping(200),
    "name": text(200),
    "timeout": text(40),
    "restart": flag,
    "ready": choice(*READY_KINDS),
    "ready_value": text(2000),
    "stdin": flag,
    "pty": flag,
    "detach": flag,
    "options": mapping(len(OFFERED), 4096),
}


class Programs:
    """The programs on PATH, scanned when asked for, at most twice a minute."""

    def __init__(self) -> None:
        self._known: list[str] = []
        self._path: str | None = None
        self._until = 0.0

    def starting_with(self, start: str, *, path: str | None = None) -> list[str]:
        """Their names in order."""
        path = os.environ.get("PATH", "") if path is None else path
        if path != self._path or time.monotonic() > self._until:
            self._known = sorted(_scan(path))
            self._path, self._until = path, time.monotonic() + _FRESH
        return [name for name in self._known if name.startswith(start)]


def _scan(path: str) -> set[str]:
    found: set[str] = set()
    for folder in path.split(os.pathsep):
        try:
            with os.scandir(folder or ".") as entries:
                found.update(entry.name for entry in entries if os.access(entry.path, os.X_OK) and not entry.is_dir())
        except OSError:
            continue
    return found


def _files(start: str, folder: str) -> list[str]:
    """Files and folders whose path starts so."""
    head, _, last = start.rpartition("/")
    base = pathlib.Path(folder or ".", pathlib.Path(head + "/" if head or start.startswith("/") else ".").expanduser())
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(base) if entry.name.startswith(last))
    except OSError:
        return []
    return [f"{head}/{name}" if head or start.startswith("/") else name for name in names[:_OFFERED]]


def _words(fields: Fields) -> list[str]:
    """The command line as words; a shell line is one. Raises Refused at the command field."""
    line = fields.get("command", "").strip()
    if not line:
        raise Refused("name a program, or a whole command line", field="command")
    if fields.get("shell"):
        return [line]
    try:
        return shlex.split(line)
    except ValueError as error:
        raise Refused(f"{str(error).lower()}: quotes must come in pairs", field="command") from error


def _seconds(fields: Fields) -> float | None:
    given = fields.get("timeout", "").strip()
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise Refused("a positive number of seconds, or nothing", field="timeout")
    return seconds


def declared() -> list[list[str]]:
    """Name, label, help and kind of each option that is offered, as ProcessConfig declares it."""
    known = {field.name: field for field in dataclasses.fields(ProcessConfig)}
    kinds = {True: "flag", False: "text"}
    return [
        [name, known[name].metadata["label"], known[name].metadata["help"], kinds[isinstance(known[name].default, bool)]]
        for name in OFFERED
    ]


def _options(fields: Fields) -> dict[str, Any]:
    """The options that were filled in, checked by ProcessConfig one by one, so that each error is at its field."""
    found: dict[str, Any] = {}
    for name, given in fields.get("options", {}).items():
        if not (text := given.strip()):
            continue
        if name not in OFFERED:
            raise Refused(f"no option {plain(name)}")
        try:
            found[name] = text == "true" if name == "merge_stderr" else int(text, 8) if name == "umask" else _number(text)
            ProcessConfig(command="true", **{name: found[name]})
        except (TypeError, ValueError) as error:
            raise Refused(plain(error).partition("\n")[0], field=name) from error
    return found


def _number(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _probe(fields: Fields) -> tuple[Any, str]:
    """The readiness probe and its text in Python."""
    kind, value = fields.get("ready", ""), fields.get("ready_value", "").strip()
    if not kind:
        return None, ""
    if not value:
        raise Refused(f"say which {kind}", field="ready")
    if kind == "port":
        if not value.isdigit() or not 0 < int(value) <= _MAX_PORT:
            raise Refused("a port is a number from 1 to 65535", field="ready")
        return Port(int(value)), f"nbprocs.Port({int(value)})"
    if kind == "url":
        if not value.startswith(("http://", "https://")):
            raise Refused("an address starts with http:// or https://", field="ready")
        return Url(value), f"nbprocs.Url({value!r})"
    try:
        re.compile(value)
    except re.error as error:
        raise Refused(f"not a pattern: {plain(error)}", field="ready") from error
    return LogLine(value), f"nbprocs.LogLine({value!r})"


def _environment(fields: Fields) -> dict[str, str]:
    env = {name.strip(): value for name, value in fields.get("env", {}).items() if name.strip()}
    for name in env:
        if "=" in name:
            raise Refused(f"{plain(name)}: a name holds no =", field="env")
    return env


def python_line(fields: Mapping[str, Any]) -> str:
    """The line of Python that starts the same; values of secret-looking variables are asked for when it runs, not written in it.

    >>> python_line({"command": "sort -n data.txt", "timeout": "10"})
    "proc = await pm.spawn('sort', '-n', 'data.txt', timeout=10)"

    Raises Refused with the field that is wrong.
    """
    given = dict(fields)
    parts = [repr(word) for word in _words(given)]
    if name := given.get("name", "").strip():
        parts.append(f"name={name!r}")
    if cwd := given.get("cwd", "").strip():
        parts.append(f"working_dir={cwd!r}")
    if env := _environment(given):
        shown = (f"{n!r}: " + (f"getpass.getpass({n!r})" if is_secret_name(n) else repr(v)) for n, v in env.items())
        parts.append(f"env_vars={{{', '.join(shown)}}}")
    parts += [f"{name}=True" for name in ("shell", "stdin", "pty", "detach", "restart") if given.get(name)]
    seconds = _seconds(given)
    if seconds is not None:
        parts.append(f"timeout={seconds:g}")
    parts += [f"{name}={value!r}" for name, value in _options(given).items()]
    _, probe = _probe(given)
    if probe:
        parts.append(f"ready={probe}")
    return f"proc = await pm.spawn({', '.join(parts)})"


class FormPart(Part):
    """Checks what is typed, offers completions, starts what is asked for."""

    kind = "form"

    def __init__(self, manager: Any) -> None:
        self._manager = manager_given(manager)
        self._programs = Programs()
        self._history: list[str] = []
        self._new: list[str] = []
        self._unsubscribe: Callable[[], None] = lambda: None

    def attach(self, host: Host) -> None:
        """Hear when the manager is closed."""
        super().attach(host)
        closed = host.carry(lambda: host.want(self))
        self._unsubscribe = self._manager.subscribe(lambda event: closed() if event.kind is EventKind.CLOSED else None)

    def detach(self) -> None:
        """Unsubscribe."""
        self._unsubscribe()

    def snapshot(self) -> Delta:
        """The history, the kernel's folder, and whether anything can be started."""
        content = {
            "history": self._history,
            "cwd": str(pathlib.Path.cwd()),
            "ready": READY_KINDS,
            "closed": self._manager.closed,
            "options": declared(),
        }
        return Delta(content=content)

    def delta(self) -> Delta | None:
        """``+`` new lines of the history, ``closed``."""
        new, self._new = self._new, []
        content = ({"+": new} if new else {}) | ({"closed": True} if self._manager.closed else {})
        return Delta(content=content) if content else None

    def html(self) -> Html:
        """What ran by it; the form itself is of no use on paper."""
        if not self._history:
            return Html('<div style="{}">a form to start processes</div>').format(MUTED)
        line = Html('<li><code style="{}">{}</code></li>')
        lines = joined(line.format(MONO, plain(mask_text(one), limit=200)) for one in self._history[-10:])
        return Html('<div style="{}">started by form:<ul>{}</ul></div>').format(MUTED, lines)

    @op(text=text(2000), cwd=text(4096))
    def complete(self, text: str, cwd: str = "") -> list[dict[str, str]]:
        """What the command line could become: from the history, programs for its first word, files for the others."""
        offers = [{"kind": "history", "text": line} for line in reversed(self._history) if line.startswith(text) and line != text]
        head, space, last = text.rpartition(" ")
        if not space and "/" not in text:
            found = self._programs.starting_with(text) if text else []
            offers += [{"kind": "program", "text": name, "note": shutil.which(name) or ""} for name in found[:_OFFERED]]
        else:
            offers += [{"kind": "file", "text": f"{head}{space}{name}"} for name in _files(last, cwd)]
        return offers[:_OFFERED]

    @op(text=text(2000))
    def folders(self, text: str) -> list[dict[str, str]]:
        """Folders that the working directory could be."""
        return [{"kind": "folder", "text": name} for name in _files(text, "") if name.endswith("/")][:_OFFERED]

    @op(**_CHECKS)
    def check(self, **fields: Any) -> dict[str, Any]:
        """The Python line, or what is wrong with which field."""
        secret = [name for name in fields.get("env", {}) if is_secret_name(name)]
        try:
            return {"line": python_line(fields), "secret": secret}
        except Refused as error:
            return {"error": plain(error), "field": error.field, "secret": secret}

    @op(**_CHECKS)
    async def run(self, **fields: Any) -> dict[str, Any]:
        """Start it. Raises Refused at the field that is to blame."""
        words = _words(fields)
        probe, _ = _probe(fields)
        cwd = fields.get("cwd", "").strip()
        if cwd and not pathlib.Path(cwd).expanduser().is_dir():  # noqa: ASYNC240 - one stat of a folder that a person just typed
            raise Refused("no such folder", field="cwd")
        seconds, env, options = _seconds(fields), _environment(fields), _options(fields)
        try:
            process = await self._manager.spawn(
                *words,
                name=fields.get("name", "").strip() or None,
                working_dir=str(pathlib.Path(cwd).expanduser()) if cwd else None,  # noqa: ASYNC240 - as above
                env_vars=env or None,
                shell=fields.get("shell", False),
                stdin=fields.get("stdin", False),
                pty=fields.get("pty", False),
                detach=fields.get("detach", False),
                restart=fields.get("restart", False) or None,
                timeout=seconds,
                ready=probe,
                **options,
            )
        except (ProcessError, TypeError, ValueError) as error:
            raise Refused(plain(error), field=_blamed(error)) from error
        self._remember(fields["command"].strip())
        return {"id": process.id, "name": plain(process.name), "pid": process.pid}

    def _remember(self, line: str) -> None:
        if line not in self._history[-1:]:
            self._history = [*self._history[-_HISTORY:], line]
            self._new.append(line)
            self.host.want(self)


def _blamed(error: Exception) -> str:
    """The field that an error of a start belongs to."""
    kinds: Iterable[tuple[type[Exception], str]] = (
        (NotReady, "ready"),
        (NameInUse, "name"),
        (StartupFailed, "command"),
        (ResourceExhausted, ""),
        (Closed, ""),
    )
    return next((field for kind, field in kinds if isinstance(error, kind)), "")


class SpawnForm(View):
    """A form that starts processes of a manager and shows the Python line that does the same.

    >>> async with ProcessManager() as pm:
    ...     SpawnForm(pm).close()
    """

    def __init__(self, manager: Any) -> None:
        super().__init__({"form": FormPart(manager)}, model=manager, home=manager_core(manager).home)
