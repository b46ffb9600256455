"""ProcessManager: what a user holds of a manager, and only that. The machinery is its core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from nbprocs.checks import data, flag, function, instance, one_of, refuse, whole
from nbprocs.checks import grace as grace_of
from nbprocs.checks import name as name_of
from nbprocs.config import Command, Data, Options, Word, config_from, takes_config
from nbprocs.display import Displayable, Html
from nbprocs.engine.child import ENGINES, Engine
from nbprocs.engine.launcher import Stray
from nbprocs.engine.output import DEFAULT_MEMORY
from nbprocs.engine.owners import register
from nbprocs.engine.pending import must_be_awaited
from nbprocs.guard import WrongValue
from nbprocs.model import ProcessConfig, ProcessEvent, ProcessInfo, ProcessResult, ProcessStatus
from nbprocs.processes.events import Subscriber
from nbprocs.processes.frames import frame_of, table_html
from nbprocs.processes.manager_core import ManagerCore
from nbprocs.processes.process import ManagedProcess, face_of
from nbprocs.processes.recording import recorder_for
from nbprocs.processes.registry import Registry, Slots
from nbprocs.processes.starting import Launch

if TYPE_CHECKING:
    import pandas as pd

    from nbprocs.policy import RestartPolicy, RetryPolicy
    from nbprocs.processes.readiness import Ready

__all__ = ["ProcessManager", "manager_core"]


class ProcessManager(Displayable):
    r"""Runs processes on the event loop it is made on, or, with ``background=True``, on a loop in a thread of its own.

    Args:
        max_concurrent: how many processes may live at once; None: no limit of ours.
        background: True keeps everything going while a cell blocks the kernel.
        history: how many ended processes stay readable.
        history_bytes: how much memory their output may take together; the oldest go first.
        output_limit: bytes of output of a live process kept in memory, a stream; more goes to a temporary file.
        grace: seconds between SIGTERM and SIGKILL where a call doesn't say.
        engine: how children are made; "auto" takes the fastest that the loop can have.
        runs: the history in which every run becomes a row: a path or a RunsConfig; None: the kernel's (set_runs), False: none.

    Raises RuntimeError where no event loop runs and ``background`` is False.

    >>> async with ProcessManager(max_concurrent=4) as pm:
    ...     result = await pm.run("sort", "-n", input=b"3\n1\n")
    >>> result.stdout
    b'1\n3\n'
    """

    def __init__(
        self,
        *,
        max_concurrent: int | None = None,
        background: bool = False,
        history: int = 1000,
        history_bytes: int = 64 << 20,
        output_limit: int = DEFAULT_MEMORY,
        grace: float = 5.0,
        engine: Engine | Literal["auto"] = "auto",
        runs: object = None,
    ) -> None:
        limit = whole("output_limit", output_limit, least=1)
        self._core = ManagerCore(
            slots=Slots(max_concurrent),
            registry=Registry(history=whole("history", history, least=0), history_bytes=whole("history_bytes", history_bytes, least=0)),
            background=flag("background", background),
            output_limit=limit,
            grace=_grace(grace, 0.0),
            engine=one_of("engine", engine, ENGINES),  # type: ignore[arg-type]
            recorder=recorder_for(runs),
        )
        register(self)

    # -- start

    @takes_config
    @must_be_awaited("pm.spawn", skip=1)
    async def spawn(
        self,
        command: Command,
        *args: Word,
        ready: Ready | None = None,
        ready_timeout: float = 30.0,
        wait: bool = False,
        restart: RestartPolicy | bool | None = None,
        **options: Unpack[Options],
    ) -> ManagedProcess:
        """Start a process and return it, running (and ready, if ``ready`` says what that means).

        Args:
            command: a program by name or path, a shell line with ``shell=True``, or a ProcessConfig, which the keywords change.
            args: its arguments.
            ready: Port, LogLine, Url, or a callable; awaited before this returns.
            ready_timeout: seconds for that; then it is stopped and NotReady raised, with its last lines.
            wait: at max_concurrent wait for a free slot instead of raising ResourceExhausted.
            restart: True or a RestartPolicy: start it again when it fails.
            {options}

        Raises StartupFailed, PermissionDenied, ResourceExhausted, NameInUse, NotReady or Closed; then nothing was left running.
        Takes a millisecond or so without ``wait`` and ``ready``.
        """
        config, launch = config_from(command, args, options), Launch(ready=ready, ready_timeout=ready_timeout)
        process = await self._core.spawn(config, launch, wait=flag("wait", wait), policy=_policy(restart))
        return face_of(process)

    @must_be_awaited("pm.adopt", skip=1)
    async def adopt(self, key: str, *, restart: RestartPolicy | bool | None = None) -> ManagedProcess:
        """Take up a detached process again, by name or id: of an earlier kernel, or of one that looks at it, too.

        It is a ManagedProcess like any other: status, output from the first byte, send, stop, pause; ``wait`` gives the true exit code
        also where it ended while no kernel was there. ``restart``: None goes on with the policy that it was started with, False with
        none; a recorded policy that can't be read is said in the log, and the process is adopted without one. A process that is here
        already is returned as it is. The exit status is None where its shim was killed.

        Raises UnknownProcess, NameInUse, StartupFailed for a record that can't be read here, Closed. Takes some milliseconds, whatever it
        has written.
        """
        return face_of(await self._core.adopt(key, "recorded" if restart is None else _policy(restart)))

    @takes_config
    @must_be_awaited("pm.run", skip=1)
    async def run(
        self,
        command: Command,
        *args: Word,
        input: Data | None = None,  # noqa: A002 - subprocess.run's name for it
        check: bool = True,
        retry: RetryPolicy | None = None,
        wait: bool = True,
        **options: Unpack[Options],
    ) -> ProcessResult:
        """Start a process, wait for its end and return its result.

        As spawn(), and: ``input`` is written to its stdin; ``check=False`` returns the result of a failure instead of raising;
        ``retry`` tries again by that policy; at max_concurrent it waits for a free slot, unless ``wait=False``.
        Raises ProcessFailed (ProcessCrashed, OutOfMemory, ExecutionTimeout) with the exit status and the last lines. When the wait is
        cancelled, by an interrupt of the cell say, the process is stopped: nobody else knows it.
        """
        config = config_from(command, args, options)
        given = None
        if input is not None:
            if config.stdin is not False:
                raise WrongValue("give either input= or stdin=")
            given = data("input", input, encoding=config.encoding, errors=config.errors)
            config = config.replace(stdin=True)
        if retry is not None and not callable(getattr(retry, "decide", None)):
            refuse(TypeError, "retry", "a RetryPolicy or None", retry)
        return await self._core.run(config, given, wait=flag("wait", wait), retry=retry, check=flag("check", check))

    # -- by id or name

    def get(self, key: str) -> ManagedProcess:
        """The process with that id, or the youngest with that name. Raises UnknownProcess. ``pm[key]`` is the same."""
        return face_of(self._core.registry.get(key))

    def __getitem__(self, key: str) -> ManagedProcess:
        return self.get(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._core.registry.find(key) is not None

    def _ipython_key_completions_(self) -> Sequence[str]:
        return self._core.registry.names()

    def status(self, key: str) -> ProcessStatus:
        """Its status now. Raises UnknownProcess."""
        return self.get(key).status

    async def wait(self, key: str, timeout: float | None = None) -> ProcessResult:
        """ManagedProcess.wait of that process. Raises UnknownProcess."""
        return await self.get(key).wait(timeout)

    async def terminate(self, key: str, *, grace: float | None = None) -> ProcessResult:
        """ManagedProcess.stop of that process, and no supervised restart any more. Raises UnknownProcess, StopFailed."""
        return await self.get(key).stop(_grace(grace, self._core.grace))

    async def restart(self, key: str, *, grace: float | None = None) -> ManagedProcess:
        """Stop it, if it lives, and start the same config under the same name; returns the new process.

        Its supervision goes on with the new one. Raises what spawn() and stop() raise.
        """
        return face_of(await self._core.restart(key, grace=_grace(grace, self._core.grace)))

    async def replace(self, key: str, *, config: ProcessConfig | None = None, grace: float | None = None) -> ManagedProcess:
        """Start a second one, let it become ready, give it the name, then stop the old one; returns the new process.

        ``config`` makes the new one run something else. On an error the old one goes on as before. Raises what spawn() raises.
        """
        if config is not None:
            instance("config", config, ProcessConfig, "a ProcessConfig or None")
        return face_of(await self._core.replace(key, config=config, grace=_grace(grace, self._core.grace)))

    async def rename(self, key: str, name: str) -> None:
        """Give a process another name. Raises NameInUse, UnknownProcess."""
        await self._core.rename(key, name_of("name", name))

    # -- looking

    def processes(self) -> tuple[ManagedProcess, ...]:
        """All that are known: the history, oldest end first, then the live ones. From any thread."""
        return tuple(face_of(process) for process in self._core.registry)

    def list(self) -> tuple[ProcessInfo, ...]:
        """A snapshot of all that are known, in order of creation. From any thread."""
        return tuple(sorted((process.info for process in self._core.registry), key=lambda info: info.created_at))

    @property
    def live(self) -> int:
        """How many processes live now."""
        return len(self._core.registry.live)

    @property
    def waiting(self) -> int:
        """How many starts wait for a free slot."""
        return self._core.slots.waiting

    @property
    def max_concurrent(self) -> int | None:
        """How many may live at once."""
        return self._core.slots.limit

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL where a call doesn't say."""
        return self._core.grace

    @property
    def closed(self) -> bool:
        """True once ``aclose()`` was called: it starts nothing any more."""
        return self._core.closed

    def frame(self) -> pd.DataFrame:
        """list() as a DataFrame, a row a process, indexed by name; commands are masked.

        >>> async with ProcessManager() as pm:
        ...     _ = await pm.run("true", name="nothing")
        ...     print(pm.frame().loc["nothing", "exit_code"])
        0
        """
        return frame_of(self.list())

    async def strays(self) -> tuple[Stray, ...]:
        """What descends from processes of this kernel while nothing tells from which: (pid, start, masked command) each.

        Such a process lost its parent and every mark that it had inherited (su and sudo do that to daemons). It is said in the log when
        it is found, and ended with the last manager that is closed. Takes a millisecond.
        """
        return await self._core.strays()

    def __repr__(self) -> str:
        ended = sum(not p.status.live for p in self._core.registry)
        limit = f" of {self.max_concurrent}" if self.max_concurrent else ""
        state = ", closed" if self.closed else ""
        return f"<ProcessManager: {self.live}{limit} live, {ended} ended{state}>"

    def _html_(self) -> Html:
        return table_html(repr(self), self.list())

    # -- events

    def subscribe(self, callback: Subscriber, *, output: bool = False) -> Callable[[], None]:
        """Call back with every event from now on, on the home loop; OUTPUT events only if asked for. Returns what ends it.

        It must be quick and not block; what it raises is logged and harms nobody.
        """
        return self._core.stream.subscribe(function("callback", callback), output=flag("output", output))

    def events(self, *, output: bool = False) -> AsyncIterator[ProcessEvent]:
        """The event stream from now on, until CLOSED. A reader that falls 100,000 events behind loses the oldest."""
        return self._core.stream.stream(output=flag("output", output))

    # -- end

    async def aclose(self, *, grace: float | None = None) -> None:
        """End every live process with its whole tree, all at once, and start nothing any more. Idempotent.

        On return nobody is left; takes at most ``grace`` + 5.1 seconds. Raises StopFailed if somebody survived SIGKILL. Cancelling
        the wait does not call it off.
        """
        await self._core.aclose(grace=_grace(grace, self._core.grace))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


def _grace(given: float | None, usual: float) -> float:
    return usual if given is None else grace_of("grace", given)


def manager_core(manager: ProcessManager) -> ManagerCore:
    """The machinery behind a manager, for other rooms of nbprocs; a stand-in is its own."""
    core: Any = manager
    found: ManagerCore = getattr(core, "_core", core)
    return found


def _policy(restart: object) -> RestartPolicy | None:
    """What ``restart=`` stands for. Raises TypeError."""
    if restart is None or restart is False:  # most processes: the policies need not be loaded for them
        return None
    from nbprocs.policy import restart_policy  # noqa: PLC0415 - `import nbprocs` stays light

    return restart_policy(restart)
