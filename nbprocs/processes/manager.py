"""ProcessManager: starts processes, knows them, limits them, tells what happens to them, and ends them.

::

    spawn ─► Slots (max_concurrent) ─► Registry (names) ─► ManagedProcess.launch ─► readiness ─► caller
                                                               │
      subscribers ◄── publish(ProcessEvent) ◄── heard / ended ◄┘      monitor, recovery, store, widgets: nobody polls

All state is touched on the home loop only; async methods may be awaited anywhere.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack

from nbprocs.checks import data, flag, refuse
from nbprocs.config import Command, Data, Options, Word, config_from, takes_config
from nbprocs.display import Displayable, Html
from nbprocs.engine.child import Engine, engine_for
from nbprocs.engine.home import Home, Tasks, hops, hops_or_undo
from nbprocs.engine.launcher import Stray, launcher_for
from nbprocs.engine.oom import OomWatch
from nbprocs.engine.output import DEFAULT_MEMORY
from nbprocs.engine.owners import register
from nbprocs.engine.pending import must_be_awaited
from nbprocs.engine.tree import check_ended
from nbprocs.errors import Closed, NotReady
from nbprocs.model import EndReason, EventKind, ProcessConfig, ProcessEvent, ProcessInfo, ProcessResult, ProcessStatus, Stream
from nbprocs.processes.events import EventStream, Subscriber
from nbprocs.processes.frames import frame_of, table_html
from nbprocs.processes.process import ManagedProcess
from nbprocs.processes.recording import recorder_for
from nbprocs.processes.registry import Registry, Slots
from nbprocs.processes.starting import Launch, become_ready, before_start, feed, start_error, tries

if TYPE_CHECKING:
    import pandas as pd

    from nbprocs.policy import RestartPolicy, RetryPolicy
    from nbprocs.processes.readiness import Probe, Ready
    from nbprocs.processes.supervision import Supervisor

__all__ = ["ProcessManager"]


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
        self.recorder = recorder_for(runs)
        self._slots = Slots(max_concurrent)
        home = Home.background() if background else Home.current()
        choice = engine_for(home.loop) if engine == "auto" else engine
        if choice is None:  # a Windows selector loop can't have children: another loop can
            home = Home.background()
            choice = engine_for(home.loop) or "portable"
        self.home = home
        self.engine: Engine = choice
        self.tasks = Tasks(home)
        self.oom = OomWatch()
        self.launcher = launcher_for(choice, home.loop)
        self.grace = grace
        self.output_limit = output_limit
        self._registry = Registry(history=history, history_bytes=history_bytes)
        self._launches: dict[str, Launch] = {}
        self._events = EventStream(home)
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        register(self)

    @functools.cached_property
    def supervisor(self) -> Supervisor[ManagedProcess]:
        """What keeps supervised processes alive. Loaded when it is first needed: most managers supervise nothing."""
        from nbprocs.processes.supervision import Supervisor  # noqa: PLC0415 - a fifth of the package's import time

        return Supervisor(self)

    # -- start

    def _unwanted(self, process: ManagedProcess) -> None:
        self.tasks.start(process.end(EndReason.INTERRUPTED, grace=self.grace), name=f"stop {process.name}")

    @takes_config
    @must_be_awaited("pm.spawn", skip=1)
    @hops_or_undo(_unwanted)
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
        policy = None if restart is None or restart is False else self.supervisor.policy_for(restart)
        config = config_from(command, args, options)
        launch = Launch(ready=ready, ready_timeout=ready_timeout)
        process, probe = await self._open(config, launch, wait=flag("wait", wait))
        began = time.monotonic()
        if policy is not None:
            self.supervisor.attach(process, policy)
        try:
            await self._become_ready(process, probe, launch)
        except NotReady as error:
            if policy is None:
                raise
            return await self.supervisor.first_ready(process, error, seconds=began + launch.ready_timeout - time.monotonic())
        return process

    async def _start(
        self,
        config: ProcessConfig,
        launch: Launch,
        *,
        wait: bool,
        predecessor: ManagedProcess | None = None,
        name: str | None = None,
    ) -> ManagedProcess:
        process, probe = await self._open(config, launch, wait=wait, predecessor=predecessor, name=name)
        await self._become_ready(process, probe, launch)
        return process

    async def _become_ready(self, process: ManagedProcess, probe: Probe | None, launch: Launch) -> None:
        if probe is None:
            process.mark_ready()
        else:
            await become_ready(process, probe, seconds=launch.ready_timeout, tasks=self.tasks, grace=self.grace)

    async def _open(
        self,
        config: ProcessConfig,
        launch: Launch,
        *,
        wait: bool,
        predecessor: ManagedProcess | None = None,
        name: str | None = None,
    ) -> tuple[ManagedProcess, Probe | None]:
        """Start it, and say what it is to be asked before it counts as ready."""
        self._check_open()
        probe = launch.probe()
        wanted = name or config.name
        if wanted:
            self._registry.check_free(wanted)
        await self._slots.take(wait=wait, what=wanted or config.command)
        try:
            self._check_open()
            if probe is not None:
                probe = await before_start(probe)
            process = await self._launch(config, predecessor, name)
        except BaseException:
            self._slots.free()
            raise
        if launch != Launch():
            self._launches[process.id] = launch
        if isinstance(config.stdin, bytes):
            self.tasks.start(feed(process, config.stdin), name=f"input of {process.name}")
        return process, probe

    async def _launch(self, config: ProcessConfig, predecessor: ManagedProcess | None, name: str | None) -> ManagedProcess:
        name = name or config.name
        if name is None:
            name = self._registry.fresh_name(config.command)
        else:
            self._registry.check_free(name)  # again: somebody may have taken it while we waited for a slot
        if config.output_limit is None and self.output_limit != DEFAULT_MEMORY:
            config = config.replace(output_limit=self.output_limit)
        process = ManagedProcess(config, name=name, owner=self, predecessor=predecessor)
        self._registry.add(process)
        try:
            await process.launch()
        except BaseException as cause:
            self._registry.discard(process)
            process.failed_to_start()
            if not isinstance(cause, (OSError, ValueError)):
                raise
            error = start_error(config, cause, process)
            self.heard(EventKind.FAILED, process, error=error)
            raise error from cause
        if self._closed:  # closed while the loop was starting it
            await process.end(EndReason.MANAGER_CLOSED, grace=self.grace)
            self._check_open()
        return process

    @takes_config
    @must_be_awaited("pm.run", skip=1)
    @hops
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
                raise ValueError("give either input= or stdin=")
            given = data("input", input, encoding=config.encoding, errors=config.errors)
            config = config.replace(stdin=True)
        flag("check", check)
        flag("wait", wait)
        if retry is not None and not callable(getattr(retry, "decide", None)):
            refuse(TypeError, "retry", "a RetryPolicy or None", retry)
        return await tries(lambda: self._run_once(config, given, wait=wait), retry=retry, check=check)

    async def _run_once(self, config: ProcessConfig, given: bytes | None, *, wait: bool) -> ProcessResult:
        process = await self._start(config, Launch(), wait=wait)
        try:
            if given is not None:
                self.tasks.start(feed(process, given), name=f"input of {process.name}")
            return await process.wait()
        except BaseException:
            self._unwanted(process)
            raise

    # -- by id or name

    def get(self, key: str) -> ManagedProcess:
        """The process with that id, or the youngest with that name. Raises UnknownProcess."""
        return self._registry.get(key)

    def status(self, key: str) -> ProcessStatus:
        """Its status now. Raises UnknownProcess."""
        return self.get(key).status

    async def wait(self, key: str, timeout: float | None = None) -> ProcessResult:
        """ManagedProcess.wait of that process. Raises UnknownProcess."""
        return await self.get(key).wait(timeout)

    @hops
    async def terminate(self, key: str, *, grace: float | None = None) -> ProcessResult:
        """ManagedProcess.stop of that process, and no supervised restart any more. Raises UnknownProcess, StopFailed."""
        return await self.get(key).stop(self.grace if grace is None else grace)

    @hops
    async def restart(self, key: str, *, grace: float | None = None) -> ManagedProcess:
        """Stop it, if it lives, and start the same config under the same name; returns the new process.

        Its supervision goes on with the new one. Raises what spawn() and stop() raise.
        """
        process = self.get(key)
        held = self.supervisor.hold(process.id)
        try:
            if process.status.live:
                await process.end_by_task(EndReason.RESTARTED, grace=self.grace if grace is None else grace)
            new = await self.respawn(process)
        except BaseException as error:
            if held is not None:
                self.supervisor.lose(held, error)
            raise
        if held is not None and not self.supervisor.give(held, new):
            await new.stop(self.grace)
        return new

    @hops
    async def replace(self, key: str, *, config: ProcessConfig | None = None, grace: float | None = None) -> ManagedProcess:
        """Start a second one, let it become ready, give it the name, then stop the old one; returns the new process.

        ``config`` makes the new one run something else. On an error the old one goes on as before. Raises what spawn() raises.
        """
        old = self.get(key)
        held = self.supervisor.hold(old.id)
        launch, next_name = self._launches.get(old.id, Launch()), self._registry.fresh_name(f"{old.name}-next")
        try:
            new = await self._start(config or old.config, launch, wait=True, predecessor=old, name=next_name)
        except BaseException as error:
            if held is not None:
                self.supervisor.lose(held, error)
            raise
        self._registry.swap(old, new)
        unwanted = held is not None and not self.supervisor.give(held, new)
        if old.status.live:
            await old.end_by_task(EndReason.REPLACED, grace=self.grace if grace is None else grace)
        if unwanted:
            await new.stop(self.grace)
        return new

    @hops
    async def rename(self, key: str, name: str) -> None:
        """Give a process another name. Raises NameInUse, UnknownProcess."""
        self._registry.rename(self.get(key), name)

    # -- looking

    def processes(self) -> tuple[ManagedProcess, ...]:
        """All that are known: the history, oldest end first, then the live ones. From any thread."""
        return tuple(self._registry)

    def list(self) -> tuple[ProcessInfo, ...]:
        """A snapshot of all that are known, in order of creation. From any thread."""
        return tuple(sorted((process.info for process in self._registry), key=lambda info: info.created_at))

    @property
    def closed(self) -> bool:
        """True once ``aclose()`` was called: it starts nothing any more."""
        return self._closed

    def __getitem__(self, key: str) -> ManagedProcess:
        return self.get(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._registry.find(key) is not None

    def _ipython_key_completions_(self) -> Sequence[str]:
        return self._registry.names()

    @property
    def live(self) -> int:
        """How many processes live now."""
        return len(self._registry.live)

    @property
    def waiting(self) -> int:
        """How many starts wait for a free slot."""
        return self._slots.waiting

    @property
    def max_concurrent(self) -> int | None:
        """How many may live at once."""
        return self._slots.limit

    def frame(self) -> pd.DataFrame:
        """list() as a DataFrame, a row a process, indexed by name; commands are masked.

        >>> async with ProcessManager() as pm:
        ...     _ = await pm.run("true", name="nothing")
        ...     print(pm.frame().loc["nothing", "exit_code"])
        0
        """
        return frame_of(self.list())

    def __repr__(self) -> str:
        ended = sum(not p.status.live for p in self._registry)
        limit = f" of {self.max_concurrent}" if self.max_concurrent else ""
        state = ", closed" if self._closed else ""
        return f"<ProcessManager: {self.live}{limit} live, {ended} ended{state}>"

    def _html_(self) -> Html:
        return table_html(repr(self), self.list())

    @hops
    async def strays(self) -> tuple[Stray, ...]:
        """What descends from processes of this kernel while nothing tells from which: (pid, start, masked command) each.

        Such a process lost its parent and every mark that it had inherited (su and sudo do that to daemons). It is said in the log when
        it is
        found, and ended with the last manager that is closed. Takes a millisecond.
        """
        return tuple(await self.launcher.strays())

    # -- events

    def subscribe(self, callback: Subscriber, *, output: bool = False) -> Callable[[], None]:
        """Call back with every event from now on, on the home loop; OUTPUT events only if asked for. Returns what ends it.

        It must be quick and not block; what it raises is logged and harms nobody.
        """
        return self._events.subscribe(callback, output=output)

    def events(self, *, output: bool = False) -> AsyncIterator[ProcessEvent]:
        """The event stream from now on, until CLOSED. A reader that falls 100,000 events behind loses the oldest."""
        return self._events.stream(output=output)

    def publish(self, event: ProcessEvent) -> None:
        """Tell the subscribers. For code of ours, on the home loop."""
        self._events.publish(event)

    # -- what processes and the supervisor ask of it (process.Owner, supervision.Keeper)

    def heard(
        self, kind: EventKind, process: ManagedProcess, *, stream: Stream | None = None, size: int = 0, error: BaseException | None = None
    ) -> None:
        """Publish what happened to a process."""
        if self.recorder is not None and kind is not EventKind.OUTPUT:
            self.recorder.heard(kind, process, error)
        if self._events.heard_by_nobody(kind):
            return
        info = None if kind is EventKind.OUTPUT else process.info
        now = time.monotonic()
        self._events.publish(
            ProcessEvent(kind=kind, process_id=process.id, name=process.name, at=now, info=info, stream=stream, size=size, error=error)
        )

    def ended(self, process: ManagedProcess) -> None:
        """A process has its final status."""
        self._slots.free()
        gone = self._registry.ended(process, keep=self._supervises)
        self.heard(EventKind.EXITED, process)
        for old in gone:
            self._launches.pop(old.id, None)
            self.heard(EventKind.REMOVED, old)

    def _supervises(self, process_id: str) -> bool:
        return "supervisor" in self.__dict__ and self.supervisor.supervises(process_id)

    def let_go(self, process: ManagedProcess) -> None:
        """Its owner wants its end: no restart."""
        if self._supervises(process.id):
            self.supervisor.release(process.id)

    async def respawn(self, process: ManagedProcess) -> ManagedProcess:
        """Start its config again under its name, as its successor, when nothing of the old one is left."""
        await process.end_leftovers(grace=self.grace)
        return await self._start(
            process.config, self._launches.get(process.id, Launch()), wait=True, predecessor=process, name=process.name
        )

    def on_end(self, process: ManagedProcess, callback: Callable[[ManagedProcess], None]) -> None:
        """The supervisor's way to hear of an end."""
        process.add_done_callback(callback)

    # -- end

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this manager is closed and starts nothing any more", hint="create another ProcessManager")

    @hops
    async def aclose(self, *, grace: float | None = None) -> None:
        """End every live process with its whole tree, all at once, and start nothing any more. Idempotent.

        On return nobody is left; takes at most ``grace`` + 5.1 seconds. Raises StopFailed if somebody survived SIGKILL. Cancelling
        the wait does not call it off.
        """
        if self._closing is None:
            self._closed = True
            self._slots.close()
            self._closing = self.tasks.start(self._close(self.grace if grace is None else grace), name="close the manager")
        await asyncio.wait({self._closing})
        self._closing.result()

    async def _close(self, grace: float) -> None:
        if "supervisor" in self.__dict__:
            await self.supervisor.aclose()
        live = self._registry.live
        for process in live:
            process.blame(EndReason.MANAGER_CLOSED)
        started = [process.child for process in self._registry if process.child is not None]
        left = await self.launcher.end_all(started, grace=grace)  # also what ended ones left behind
        for process in () if left else live:
            await process.wait()
        await self.tasks.aclose()
        if self.recorder is not None:
            await self.recorder.aclose()
        self.launcher.close()
        self.publish(ProcessEvent(kind=EventKind.CLOSED, process_id="", name="", at=time.monotonic()))
        check_ended(left, name="what this manager started")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()
