"""``%load_ext nbprocs``: cells that run in the background, and line magics to look at them and to end them.

::

    %%proc --name web --ready 8000        a shell cell        ─┐
    %%proc python --send model,rows       a Python cell       ─┴─►  one shared background manager  ─►  a live pane, an awaitable handle
    %procs   %output web   %stop web   %restart web

A magic is called without a loop and must not block for long, so what it starts lives on the background loop (``manager()``): it goes on
while cells block the kernel. Each magic answers ``--help``.
"""

import asyncio
import functools
import io
import itertools
import keyword
import pickle
import re
import shlex
import sys
import tempfile
import threading
import weakref
from argparse import Namespace
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import display

from nbprocs.engine.child import new_id
from nbprocs.errors import error_from_result
from nbprocs.magics.handle import CellProcess
from nbprocs.magics.lookup import act, all_managers, find, known
from nbprocs.model import ProcessConfig, ProcessResult
from nbprocs.processes.default import default_manager
from nbprocs.processes.detached import cells_folder, live_names
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.readiness import LogLine, Port, Ready, Url

__all__ = ["CellProcess", "ProcessMagics", "load_ipython_extension", "manager", "parse_ready", "unload_ipython_extension"]

T = TypeVar("T")

SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish"})
START_WAIT = 2.0  # seconds that a cell waits for its process to have started, so that an error appears under the cell
_CELL_MAIN = str(Path(__file__).with_name("cell_main.py"))
_AGAIN = """import importlib.util as util
spec = util.spec_from_file_location("nbprocs_cell_main", {main!r})
module = util.module_from_spec(spec)
spec.loader.exec_module(module)
module.again({cell!r}, globals())
"""
_NAME_MAGICS = ("output", "stop", "restart")


class _Shared:
    """What all magics of this interpreter share: the folder for Python cells, made when it is first needed."""

    def __init__(self) -> None:
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)

    def next_file(self) -> Path:
        """A file for a Python cell; it goes with the kernel."""
        with self.lock:
            if self.folder is None:
                self.folder = tempfile.TemporaryDirectory(prefix="nbprocs-cells-")
        return Path(self.folder.name, f"{next(self.numbers)}.cell")


_shared = _Shared()


def manager() -> ProcessManager:
    """The manager of the magics: the kernel's default one.

    >>> manager() is manager()
    True
    """
    return default_manager()


def parse_ready(text: str) -> Ready:
    """What ``--ready`` says: a port (``8000``, ``host:8000``), a URL, or a regular expression for a line of the output.

    >>> parse_ready("8000")
    Port(port=8000, host='127.0.0.1')
    >>> parse_ready("db.local:5432")
    Port(port=5432, host='db.local')
    >>> parse_ready("http://127.0.0.1:8000/health")
    Url(url='http://127.0.0.1:8000/health')
    >>> parse_ready("listening on")
    LogLine(pattern='listening on', stream=None)
    """
    if text.startswith(("http://", "https://")):
        return Url(text)
    if found := re.fullmatch(r"(?:([\w.-]*):)?(\d{1,5})", text):
        return Port(int(found[2]), host=found[1] or "127.0.0.1")
    try:
        return LogLine(text)
    except ValueError as error:
        msg = f"--ready takes a port, host:port, a URL or a pattern for a line of the output: {error}"
        raise UsageError(msg) from None


# --- what a cell says it wants ---------------------------------------------------------------------------------------------


def _python_cell(name: str, source: str, variables: dict[str, Any], *, detach: bool) -> ProcessConfig:
    """The config of a Python cell: its source and the variables go by a file that only this user can read.

    The file of a detached one lies in the state folder, where the next kernel can start it again; ``forget()`` removes it.
    """
    sent = {}
    for key, value in variables.items():
        try:
            sent[key] = cloudpickle.dumps(value)
        except Exception as error:
            msg = f"--send: {key} can't be sent to another interpreter: {error}"
            raise UsageError(msg) from error
    path = cells_folder() / f"{new_id()}.cell" if detach else _shared.next_file()
    path.write_bytes(pickle.dumps((f"<cell {name}>", source, sent)))
    path.with_suffix(".py").write_text(_AGAIN.format(main=_CELL_MAIN, cell=str(path)), encoding="utf-8")
    first = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return ProcessConfig(command=sys.executable, args=("-u", _CELL_MAIN, str(path)), title=f"python: {first}")


def _environment(changes: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not key:
            msg = f"--env takes NAME=value, or NAME to remove it, not {change!r}"
            raise UsageError(msg)
        found[key] = value if equals else None
    return found


def _free_name(*, detach: bool) -> str:
    taken = {info.name for info in manager().list()} | (live_names() if detach else set())
    return next(name for number in itertools.count(1) if (name := f"cell-{number}") not in taken)


def _pick(shell: Any, names: str) -> dict[str, Any]:
    wanted = [name for name in re.split(r"[,\s]+", names) if name]
    missing = [name for name in wanted if name not in shell.user_ns]
    if missing:
        msg = f"--send: no such variable in the notebook: {', '.join(missing)}"
        raise UsageError(msg)
    return {name: shell.user_ns[name] for name in wanted}


def _config(options: Namespace, body: str, shell: Any) -> ProcessConfig:
    program, name = options.program, options.name or _free_name(detach=options.detach)
    if not body.strip():
        msg = "the cell is empty: put the commands below the %%proc line"
        raise UsageError(msg)
    if program == "python":
        config = _python_cell(name, body, _pick(shell, options.send), detach=options.detach)
    elif options.send:
        msg = "--send works with `%%proc python`; a shell cell gets values by --env, or by {braces} in its first line"
        raise UsageError(msg)
    elif program is None:
        config = ProcessConfig(command=body, shell=True)  # noqa: S604 - a cell of shell is what it is
    elif Path(program).name in SHELLS:
        config = ProcessConfig(command=program, args=("-c", body))
    else:
        msg = f"%%proc runs shell cells and `python` cells, not {program!r}; for another program write it into a shell cell"
        raise UsageError(msg)
    return config.replace(
        name=name,
        working_dir=options.cwd,
        env_vars=_environment(options.env),
        timeout=options.timeout,
        pty=options.pty,
        notify=options.notify,
        detach=options.detach,
    )


def _parse(magic: Any, line: str) -> Namespace | None:
    """The options of a magic's line, quoted as in a shell; None when only help was asked for, and has been shown."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        msg = f"{error}: quotes must come in pairs"
        raise UsageError(msg) from None
    if {"--help", "-h"} & set(words):
        print(magic.__doc__)  # noqa: T201 - that is what was asked for
        return None
    options: Namespace = magic.parser.parse_args(words)
    return options


# --- the magics ------------------------------------------------------------------------------------------------------------


@magics_class
class ProcessMagics(Magics):
    """The magics; ``%load_ext nbprocs`` registers them."""

    @magic_arguments()
    @argument("program", nargs="?", help="sh, bash, … or python; by default the system's shell")
    @argument("--name", "-n", help="what to call it: for %%stop, %%output and the table")
    @argument("--timeout", "-t", type=float, help="seconds after which it is killed with its whole tree")
    @argument("--retries", "-r", type=int, default=0, help="how often to try again when it fails, with growing pauses")
    @argument("--restart", action="store_true", help="keep it alive: start it again whenever it fails, with a brake")
    @argument("--ready", help="when it counts as ready: a port, host:port, a URL, or a pattern for a line of its output")
    @argument("--ready-timeout", type=float, default=30.0, help="seconds for that; then it is stopped")
    @argument("--cwd", "-C", help="the folder to run in")
    @argument("--env", "-e", action="append", default=[], help="NAME=value, or NAME to remove it; may be given several times")
    @argument("--pty", action="store_true", help="give it a terminal, for programs that only then show colours or progress")
    @argument("--notify", nargs="?", const=True, metavar="URL", help="tell me at its end: the notebook, or a URL (Slack, ntfy, JSON)")
    @argument("--detach", action="store_true", help="let it outlive the kernel; await nbprocs.adopt(name) takes it up again")
    @argument("--wait", "-w", action="store_true", help="let the cell take as long as the process, and fail if it fails")
    @argument("--send", "-s", default="", help="for python: variables of the notebook to send, as in --send model,rows")
    @argument("--out", "-o", help="a variable that gets the handle")
    @argument("--record", nargs="?", const="", metavar="PATH", help="a run history that gets a row; by default the kernel's, or runs.db")
    @line_cell_magic
    def proc(self, line: str, cell: str | None = None) -> "CellProcess | None":
        """Run this cell, or the rest of this line, as a process in the background, with a live pane.

        It survives interrupts, goes on while other cells compute, and ends with the kernel, unless --detach says otherwise. The value of
        the cell is a handle: ``await _`` (or the variable of --out) gives its result.
        ``%proc --name web python -m http.server`` is a line of the shell.
        """
        if cell is None:
            line, cell = _split_line(self.proc, line)
        options = _parse(self.proc, line)
        if options is None:
            return None
        shell: Any = self.shell
        if options.out is not None and (not options.out.isidentifier() or keyword.iskeyword(options.out)):
            raise UsageError(f"--out takes the name of a variable, not {options.out!r}")
        if not options.ready_timeout > 0:  # nan is no time either
            raise UsageError(f"--ready-timeout takes a positive number of seconds, not {options.ready_timeout}")
        config = _config(options, cell, shell)
        ready = None if options.ready is None else parse_ready(options.ready)
        record = "runs.db" if options.record == "" and manager_core(manager()).recorder is None else options.record or None
        how = {"retries": options.retries, "restart": options.restart, "ready": ready, "ready_timeout": options.ready_timeout}
        handle = CellProcess(manager(), config, **how, record=record)
        handle.started.wait(START_WAIT)
        if options.out:
            shell.user_ns[options.out] = handle
        if handle.process is None and handle.error is not None:
            raise handle.error
        if not options.wait:
            return handle
        display(handle)
        _wait_for(handle)
        return None

    @magic_arguments()
    @line_magic
    def procs(self, line: str) -> ProcessManager | None:
        """Show the processes of every manager of this kernel as live tables. Its value is the default manager."""
        if _parse(self.procs, line) is None:
            return None
        first, *others = all_managers()
        for other in others:
            if other.list():
                display(other)
        return first

    @magic_arguments()
    @argument("name", help="the process")
    @argument("--lines", "-l", type=int, help="print so many of its last lines instead of showing the pane")
    @line_magic
    def output(self, line: str) -> ManagedProcess | None:
        """Show the live output of a process, of whichever manager."""
        options = _parse(self.output, line)
        if options is None:
            return None
        process = find(options.name)[options.name]
        if options.lines is None:
            return process
        print(process.tail(options.lines))  # noqa: T201 - that is what was asked for
        return None

    @magic_arguments()
    @argument("names", nargs="*", help="the processes")
    @argument("--all", "-a", action="store_true", help="all that are alive, of every manager")
    @argument("--grace", "-g", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    @line_magic
    def stop(self, line: str) -> None:
        """Stop processes, each with its whole tree; returns when they are gone.

        Those of a manager on the kernel's own loop end while the next cells run.
        """
        options = _parse(self.stop, line)
        if options is None:
            return
        wanted = [(pm, info.id) for pm, info in known(live=True)] if options.all else [(find(name), name) for name in options.names]
        if not wanted and not options.all:
            msg = "%stop needs the name of a process, or --all; %procs shows them"
            raise UsageError(msg)
        for pm in dict.fromkeys(pm for pm, _ in wanted):
            keys = [key for of, key in wanted if of is pm]
            results = act(pm, functools.partial(_stop_all, pm, keys, options.grace))
            for key in keys if results is None else ():
                print(f"stopping {pm[key].name}: it ends within {options.grace + 5:g} s")  # noqa: T201
            for result in results or ():
                print(repr(result))  # noqa: T201

    @magic_arguments()
    @argument("name", help="the process")
    @line_magic
    def restart(self, line: str) -> ManagedProcess | None:
        """Stop a process, if it lives, and start the same again under the same name. Its value is the new process."""
        options = _parse(self.restart, line)
        if options is None:
            return None
        pm = find(options.name)
        return act(pm, lambda: pm.restart(options.name))


async def _stop_all(pm: ProcessManager, keys: list[str], grace: float) -> list[ProcessResult]:
    return await asyncio.gather(*(pm.terminate(key, grace=grace) for key in keys))


def _split_line(magic: Any, line: str) -> tuple[str, str]:
    """The options in front, and the command behind them as it was typed."""
    source = io.StringIO(line)
    lexer = shlex.shlex(source, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    values = {name: action.nargs != 0 for action in magic.parser._actions for name in action.option_strings}  # noqa: SLF001 - no other way
    at = 0
    try:
        while (word := lexer.get_token()) is not None and word.startswith("-"):
            if values.get(word):
                lexer.get_token()
            at = source.tell()
    except ValueError as error:
        msg = f"{error}: quotes must come in pairs"
        raise UsageError(msg) from None
    return line[:at], line[at:]


def _wait_for(handle: CellProcess) -> None:
    """Until its end, waking often: an interrupt ends the wait, not the process. Raises its error."""
    while not handle.ended.wait(0.2):
        pass
    error = handle.error or (error_from_result(handle.result) if handle.result else None)
    if error is not None:
        raise error


# --- the extension ---------------------------------------------------------------------------------------------------------

_loaded: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _complete_names(_: Any, event: Any) -> list[str]:
    """For the completer: live names, and all known ones for %output and %restart."""
    names = [info.name for _, info in known(live=event.command.lstrip("%") == "stop")]
    return [name for name in dict.fromkeys(names) if name.startswith(event.symbol)]


def _complete_options(_: Any, event: Any) -> list[str]:
    """For the completer: the options of %%proc, and its programs."""
    words = ["python", "bash", "sh", *_OPTIONS]
    return [word for word in words if word.startswith(event.symbol)]


_OPTIONS = sorted(set(re.findall(r"--[a-z-]+", ProcessMagics.proc.__doc__ or "")))


def _help_of_a_cell(lines: list[str]) -> list[str]:
    """``%%proc --help`` without a body: IPython refuses a cell magic whose cell is empty."""
    asks = len(lines) == 1 and re.match(r"%%proc\s.*(?<!\S)(--help|-h)(?!\S)", lines[0])
    return ["%proc --help\n"] if asks else lines


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext nbprocs``. Loading it again changes nothing."""
    if ipython in _loaded:
        return
    _loaded.add(ipython)
    ipython.register_magics(ProcessMagics)
    ipython.input_transformers_cleanup.append(_help_of_a_cell)
    for name in _NAME_MAGICS:
        ipython.set_hook("complete_command", _complete_names, str_key=f"%{name}")
    ipython.set_hook("complete_command", _complete_options, str_key="%%proc")


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext nbprocs``: the magics go, the processes stay."""
    _loaded.discard(ipython)
    if _help_of_a_cell in ipython.input_transformers_cleanup:
        ipython.input_transformers_cleanup.remove(_help_of_a_cell)
    for kind, names in (("line", ("proc", "procs", *_NAME_MAGICS)), ("cell", ("proc",))):
        for name in names:
            ipython.magics_manager.magics[kind].pop(name, None)
