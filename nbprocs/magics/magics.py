"""``%load_ext nbprocs``: cells that run in the background, and line magics to look at them and to end them.

::

    %%proc --name web --ready 8000        a shell cell        ─┐
    %%proc python --send model,rows       a Python cell       ─┴─►  one shared background manager  ─►  a live pane, an awaitable handle
    %procs   %output web   %stop web   %restart web

A magic is called without a loop and must not block for long, so what it starts lives on the background loop (``manager()``): it goes on
while cells block the kernel. Each magic answers ``--help``.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import pickle
import re
import shlex
import sys
import tempfile
import threading
import time
import weakref
from argparse import Namespace
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import display

from nbprocs.engine.home import Tasks, hops
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import ProcessError, error_from_result
from nbprocs.model import EventKind, ProcessConfig, ProcessEvent, ProcessResult
from nbprocs.policy import RetryPolicy
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.readiness import LogLine, Port, Ready, Url
from nbprocs.processes.recording import recorder_for

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
    """What all magics of this interpreter share: the manager, and the folder for Python cells. Both are made when first needed."""

    def __init__(self) -> None:
        self.manager: ProcessManager | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)

    def heard(self, event: ProcessEvent) -> None:
        if event.kind is EventKind.CLOSED:
            self.manager = None


_shared = _Shared()


def manager() -> ProcessManager:
    """The background manager of the magics; a new one after that was closed.

    >>> manager() is manager()
    True
    """
    with _shared.lock:
        if _shared.manager is None:
            _shared.manager = ProcessManager(background=True)
            _shared.manager.subscribe(_shared.heard)
        return _shared.manager


def _call(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the manager's and wait for it, from a thread that may have a running loop of its own."""
    return asyncio.run_coroutine_threadsafe(coroutine, manager().home.loop).result()


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


class CellProcess:
    r"""What ``%%proc`` returns: the process of a cell, through its retries and restarts. Await it for the last result.

    ``process`` is the ManagedProcess of the moment, None before the start. Displayed as its live pane.

    >>> handle = CellProcess(manager(), ProcessConfig(command="echo hello", shell=True, name="greeting"))
    >>> (await handle).text
    'hello\n'
    >>> handle.process.name
    'greeting'
    """

    def __init__(
        self,
        pm: ProcessManager,
        config: ProcessConfig,
        *,
        retries: int = 0,
        restart: bool = False,
        ready: Ready | None = None,
        ready_timeout: float = 30.0,
        record: str | None = None,
    ) -> None:
        self._recorder = None if record is None else recorder_for(record)
        self.home = pm.home
        self.config = config
        self.process: ManagedProcess | None = None
        self.started = threading.Event()  # it has a process, or will have none
        self.ended = threading.Event()
        self.result: ProcessResult | None = None
        self.error: ProcessError | None = None
        self._manager = pm
        self._retries = RetryPolicy(max_retries=retries)
        self._spawn = {"restart": restart or None, "ready": ready, "ready_timeout": ready_timeout}
        self._tasks = Tasks(pm.home)
        self._waiters: Waiters[None] = Waiters()
        self._changed = asyncio.Event()  # the manager told something of it
        pm.home.post(self._begin)

    def _begin(self) -> None:
        self._tasks.start(self._live(), name=f"cell {self.config.name}")

    async def _live(self) -> None:
        unsubscribe = self._manager.subscribe(self._heard)
        try:
            self.result = await self._tries()
        except ProcessError as error:  # raised again where the handle is awaited
            self.error = error
        finally:
            unsubscribe()
            self.started.set()
            if self._recorder is not None:
                await self._recorder.aclose()
            self.ended.set()
            self._waiters.wake(None)

    def _heard(self, event: ProcessEvent) -> None:
        if event.name != self.config.name:
            return
        if event.kind is EventKind.STARTED:
            self.process = self._manager.get(event.process_id)
            self.started.set()
        if self._recorder is not None and self.process is not None:
            self._recorder.heard(event.kind, self.process, event.error)
        self._changed.set()

    async def _tries(self) -> ProcessResult:
        attempt = 0
        began = time.monotonic()
        while True:
            attempt += 1
            process = await self._manager.spawn(self.config, wait=True, **self._spawn)  # type: ignore[arg-type]
            result = await self._last_life(process)
            error = error_from_result(result, attempts=attempt)
            delay = None if error is None else self._retries.decide(error, attempt=attempt, elapsed=time.monotonic() - began)
            if delay is None:
                return result
            await asyncio.sleep(delay)

    async def _last_life(self, process: ManagedProcess) -> ProcessResult:
        """The result of a process, or of the last of those that a supervisor made of it."""
        while True:
            result = await process.wait()
            while self._manager.supervisor.supervises(process.id):
                self._changed.clear()
                with contextlib.suppress(TimeoutError):  # a restart that is called off while it waits is no event
                    async with asyncio.timeout(0.5):
                        await self._changed.wait()
            if self.process is None or self.process is process:
                return result
            process = self.process

    @hops
    async def wait(self) -> ProcessResult:
        """Wait for its end: of the last retry, or until it is not restarted any more. Raises what its start raised.

        Cancelling the wait leaves the process alone.
        """
        if not self.ended.is_set():
            await self._waiters.wait()
        if self.error is not None:
            raise self.error
        assert self.result is not None  # noqa: S101 - one of the two is there
        return self.result

    def __await__(self) -> Generator[Any, None, ProcessResult]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        if self.process is not None:
            return repr(self.process)
        return f"<CellProcess {self.config.name}, {'failed to start' if self.error else 'starting'}: {self.config.display}>"

    @property
    def _ipython_display_(self) -> Callable[[], object] | None:
        return None if self.process is None else self.process._ipython_display_

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        if self.process is None:
            return {"text/plain": repr(self)}
        return self.process._repr_mimebundle_(include, exclude)


# --- what a cell says it wants ---------------------------------------------------------------------------------------------


def _python_cell(name: str, source: str, variables: dict[str, Any]) -> ProcessConfig:
    """The config of a Python cell: its source and the variables go by a file that only this user can read."""
    sent = {}
    for key, value in variables.items():
        try:
            sent[key] = cloudpickle.dumps(value)
        except Exception as error:
            msg = f"--send: {key} can't be sent to another interpreter: {error}"
            raise UsageError(msg) from error
    with _shared.lock:
        if _shared.folder is None:
            _shared.folder = tempfile.TemporaryDirectory(prefix="nbprocs-cells-")
    path = Path(_shared.folder.name, f"{next(_shared.numbers)}.cell")
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


def _free_name() -> str:
    taken = {info.name for info in manager().list()}
    return next(name for number in itertools.count(1) if (name := f"cell-{number}") not in taken)


def _pick(shell: Any, names: str) -> dict[str, Any]:
    wanted = [name for name in re.split(r"[,\s]+", names) if name]
    missing = [name for name in wanted if name not in shell.user_ns]
    if missing:
        msg = f"--send: no such variable in the notebook: {', '.join(missing)}"
        raise UsageError(msg)
    return {name: shell.user_ns[name] for name in wanted}


def _config(options: Namespace, body: str, shell: Any) -> ProcessConfig:
    program, name = options.program, options.name or _free_name()
    if not body.strip():
        msg = "the cell is empty: put the commands below the %%proc line"
        raise UsageError(msg)
    if program == "python":
        config = _python_cell(name, body, _pick(shell, options.send))
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
    return dataclasses.replace(
        config,
        name=name,
        working_dir=options.cwd,
        env_vars=_environment(options.env),
        timeout=options.timeout,
        pty=options.pty,
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
    @argument("--wait", "-w", action="store_true", help="let the cell take as long as the process, and fail if it fails")
    @argument("--send", "-s", default="", help="for python: variables of the notebook to send, as in --send model,rows")
    @argument("--out", "-o", help="a variable that gets the handle")
    @argument("--record", nargs="?", const="", metavar="PATH", help="a run history that gets a row; by default the kernel's, or runs.db")
    @cell_magic
    def proc(self, line: str, cell: str) -> "CellProcess | None":
        """Run this cell as a process in the background, with a live pane.

        It survives interrupts, goes on while other cells compute, and ends with the kernel. The value of the cell is a handle:
        ``await _`` (or the variable of --out) gives its result.
        """
        options = _parse(self.proc, line)
        if options is None:
            return None
        shell: Any = self.shell
        config = _config(options, cell, shell)
        ready = None if options.ready is None else parse_ready(options.ready)
        record = "runs.db" if options.record == "" and manager().recorder is None else options.record or None
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
        """Show the processes of the magics as a live table. Its value is their manager."""
        return None if _parse(self.procs, line) is None else manager()

    @magic_arguments()
    @argument("name", help="the process")
    @argument("--lines", "-l", type=int, help="print so many of its last lines instead of showing the pane")
    @line_magic
    def output(self, line: str) -> ManagedProcess | None:
        """Show the live output of a process."""
        options = _parse(self.output, line)
        if options is None:
            return None
        process = manager().get(options.name)
        if options.lines is None:
            return process
        print(process.tail(options.lines))  # noqa: T201 - that is what was asked for
        return None

    @magic_arguments()
    @argument("names", nargs="*", help="the processes")
    @argument("--all", "-a", action="store_true", help="all that are alive")
    @argument("--grace", "-g", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    @line_magic
    def stop(self, line: str) -> None:
        """Stop processes, each with its whole tree; returns when they are gone."""
        options = _parse(self.stop, line)
        if options is None:
            return
        pm = manager()
        names = [info.name for info in pm.list() if info.status.live] if options.all else options.names
        if not names and not options.all:
            msg = "%stop needs the name of a process, or --all; %procs shows them"
            raise UsageError(msg)

        async def stop_all() -> list[ProcessResult]:
            return await asyncio.gather(*(pm.terminate(name, grace=options.grace) for name in names))

        for result in _call(stop_all()):
            print(result)  # noqa: T201

    @magic_arguments()
    @argument("name", help="the process")
    @line_magic
    def restart(self, line: str) -> ManagedProcess | None:
        """Stop a process, if it lives, and start the same again under the same name. Its value is the new process."""
        options = _parse(self.restart, line)
        if options is None:
            return None
        return _call(manager().restart(options.name))


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
    only_live = event.command.lstrip("%") == "stop"
    names = [info.name for info in manager().list() if info.status.live or not only_live]
    return [name for name in dict.fromkeys(names) if name.startswith(event.symbol)]


def _complete_options(_: Any, event: Any) -> list[str]:
    """For the completer: the options of %%proc, and its programs."""
    words = ["python", "bash", "sh", *_OPTIONS]
    return [word for word in words if word.startswith(event.symbol)]


_OPTIONS = sorted(set(re.findall(r"--[a-z-]+", ProcessMagics.proc.__doc__ or "")))


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext nbprocs``. Loading it again changes nothing."""
    if ipython in _loaded:
        return
    _loaded.add(ipython)
    ipython.register_magics(ProcessMagics)
    for name in _NAME_MAGICS:
        ipython.set_hook("complete_command", _complete_names, str_key=f"%{name}")
    ipython.set_hook("complete_command", _complete_options, str_key="%%proc")


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext nbprocs``: the magics go, the processes stay."""
    _loaded.discard(ipython)
    for kind, names in (("line", ("procs", *_NAME_MAGICS)), ("cell", ("proc",))):
        for name in names:
            ipython.magics_manager.magics[kind].pop(name, None)
