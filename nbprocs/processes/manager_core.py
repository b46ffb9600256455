"""ManagerCore: the machinery of a ProcessManager.

::

    spawn ─► Slots (max_concurrent) ─► Registry (names) ─► ProcessCore.launch ─► readiness ─► caller
                                                               │
      subscribers ◄── publish(ProcessEvent) ◄── heard / ended ◄┘      monitor, recovery, store, widgets: nobody polls

All state is touched on the home loop only; methods that hop may be awaited anywhere. It deals with cores of
processes; users get their faces.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from typing import TYPE_CHECKING, Literal

from nbprocs.engine.child import Engine, engine_for
from nbprocs.engine.home import Home, Tasks, hops, hops_or_undo
from nbprocs.engine.launcher import Launcher, Stray, launcher_for
from nbprocs.engine.oom import OomWatch
from nbprocs.engine.output import DEFAULT_MEMORY
from nbprocs.engine.tree import check_ended
from nbprocs.errors import Closed, NameInUse, NotReady
from nbprocs.model import EndReason, EventKind, ProcessConfig, ProcessEvent, ProcessResult, Stream
from nbprocs.processes.core import ProcessCore
from nbprocs.processes.events import EventStream
from nbprocs.processes.notices import told_of_the_last
from nbprocs.processes.process import face_of
from nbprocs.processes.recording import RecordsRuns
from nbprocs.processes.registry import Registry, Slots
from nbprocs.processes.starting import PLAIN, Launch, become_ready, before_start, feed, start_error, tries

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbprocs.policy import RestartPolicy, RetryPolicy
    from nbprocs.processes.readiness import Probe
    from nbprocs.processes.supervision import Supervisor

__all__ = ["ManagerCore"]


class ManagerCore:
    """What a manager is made of, for code of ours."""

    def __init__(
        self,
        *,
        slots: Slots,
        registry: Registry,
        background: bool,
        output_limit: int,
        grace: float,
        engine: Engine | Literal["auto"],
        recorder: RecordsRuns | None,
    ) -> None:
        self.recorder = recorder
        self.slots = slots
        self.registry = registry
        home = Home.background() if background else Home.current()
        choice = engine_for(home.loop) if engine == "auto" else engine
        if choice is None:  # a Windows selector loop can't have children: another loop can
            home = Home.background()
            choice = engine_for(home.loop) or "portable"
        self.home = home
        self.engine: Engine = choice
        self.tasks: Tasks = Tasks(home)
        self.oom: OomWatch = OomWatch()
        self.launcher: Launcher = launcher_for(choice, home.loop)
        self.grace = grace
        self.output_limit = output_limit
        self.launches: dict[str, Launch] = {}
        self.stream: EventStream = EventStream(home)
        self.closed: bool = False
        self._closing: asyncio.Task[None] | None = None

    @functools.cached_property
    def supervisor(self) -> Supervisor[ProcessCore]:
        """What keeps supervised processes alive. Loaded when it is first needed: most managers supervise nothing."""
        from nbprocs.processes.supervision import Supervisor  # noqa: PLC0415 - a fifth of the package's import time

        return Supervisor(self)

    # -- start

    def _unwanted(self, process: ProcessCore) -> None:
        self.tasks.start(process.end(EndReason.INTERRUPTED, grace=self.grace), name=f"stop {process.name}")

    @hops_or_undo(_unwanted)
    async def spawn(self, config: ProcessConfig, launch: Launch, *, wait: bool, policy: RestartPolicy | None) -> ProcessCore:
        """See ProcessManager.spawn."""
        process, probe = await self._open(config, launch, wait=wait, policy=policy)
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
        predecessor: ProcessCore | None = None,
        name: str | None = None,
    ) -> ProcessCore:
        kept = None if predecessor is None or not self._supervises(predecessor.id) else self.supervisor.policy(predecessor.id)
        process, probe = await self._open(config, launch, wait=wait, predecessor=predecessor, name=name, policy=kept)
        await self._become_ready(process, probe, launch)
        return process

    async def _become_ready(self, process: ProcessCore, probe: Probe | None, launch: Launch) -> None:
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
        predecessor: ProcessCore | None = None,
        name: str | None = None,
        policy: RestartPolicy | None = None,
    ) -> tuple[ProcessCore, Probe | None]:
        """Start it, and say what it is to be asked before it counts as ready."""
        self._check_open()
        probe = launch.probe()
        wanted = name or config.name
        if wanted:
            self.registry.check_free(wanted)
        await self.slots.take(wait=wait, what=wanted or config.command)
        try:
            self._check_open()
            if probe is not None:
                probe = await before_start(probe)
            process = await self._launch(config, predecessor, name, policy)
        except BaseException:
            self.slots.free()
            raise
        if launch != PLAIN:
            self.launches[process.id] = launch
        if isinstance(config.stdin, bytes):
            self.tasks.start(feed(process, config.stdin), name=f"input of {process.name}")
        return process, probe

    async def _launch(
        self, config: ProcessConfig, predecessor: ProcessCore | None, name: str | None, policy: RestartPolicy | None
    ) -> ProcessCore:
        given = name = name or config.name
        if name is None:
            name = self.registry.fresh_name(config.command, taken=self._detached_names() if config.detach else ())
        else:
            self.registry.check_free(name)  # again: somebody may have taken it while we waited for a slot
        if config.output_limit is None and self.output_limit != DEFAULT_MEMORY:
            config = config.replace(output_limit=self.output_limit)
        process = ProcessCore(config, name=name, owner=self, predecessor=predecessor)
        process.restart_policy = policy
        self.registry.add(process)
        try:
            await self._begin(process)
        except BaseException as cause:
            self.registry.discard(process)
            process.failed_to_start()
            if isinstance(cause, NameInUse) and given is None:  # another kernel came first to a name that nobody asked for
                return await self._launch(config, predecessor, None, policy)
            if not isinstance(cause, (OSError, ValueError)):
                raise
            error = start_error(config, cause, process)
            self.heard(EventKind.FAILED, process, error=error)
            raise error from cause
        if self.closed:  # closed while the loop was starting it
            await process.end(EndReason.MANAGER_CLOSED, grace=self.grace)
            self._check_open()
        return process

    async def _begin(self, process: ProcessCore) -> None:
        if process.config.detach:
            from nbprocs.processes import detached  # noqa: PLC0415 - most processes are not

            await detached.start(process, self)
        else:
            await process.launch()

    @staticmethod
    def _naming(process: ProcessCore, name: str) -> contextlib.AbstractContextManager[None]:
        if not (process.config.detach and process.status.live):
            return contextlib.nullcontext()
        from nbprocs.processes import detached  # noqa: PLC0415 - as above

        return detached.naming(name)

    @staticmethod
    def _detached_names() -> set[str]:
        from nbprocs.processes import detached  # noqa: PLC0415 - as above

        return detached.live_names()

    @hops
    async def adopt(self, key: str, restart: RestartPolicy | Literal["recorded"] | None) -> ProcessCore:
        """See ProcessManager.adopt."""
        from nbprocs.processes import detached  # noqa: PLC0415 - most kernels adopt nothing

        self._check_open()
        record = detached.find(key)
        process = next((known for known in self.registry if known.id == record.id), None)
        if process is None:
            self.registry.check_free(record.name)
            process = await detached.adopted(record, self, self._take_in)
        policy = detached.policy_of(record) if restart == "recorded" else restart
        unsupervised = policy is not None and process.status.live and not self._supervises(process.id)
        if policy is not None and unsupervised and detached.may_be_supervised(process):
            self.supervisor.attach(process, policy)
        return process

    def _take_in(self, process: ProcessCore) -> None:
        self.slots.taken += 1  # it lives already, whatever the limit is
        self.registry.add(process)

    def _leave(self, process: ProcessCore) -> None:
        from nbprocs.processes import detached  # noqa: PLC0415 - as above

        detached.leave(process)

    @hops
    async def run(self, config: ProcessConfig, given: bytes | None, *, wait: bool, retry: RetryPolicy | None, check: bool) -> ProcessResult:
        """See ProcessManager.run; ``given`` is its input."""
        config, told = (config, None) if retry is None else told_of_the_last(config, tasks=self.tasks)
        return await tries(lambda: self._run_once(config, given, wait=wait), retry=retry, check=check, told=told)

    async def _run_once(self, config: ProcessConfig, given: bytes | None, *, wait: bool) -> ProcessResult:
        process = await self._start(config, PLAIN, wait=wait)
        try:
            if given is not None:
                self.tasks.start(feed(process, given), name=f"input of {process.name}")
            if process.child is not None:
                process.child.begin()  # nobody but us knows it: an end that has come already need not wait for the loop's next turn
            return await process.wait() if process.result is None else process.result
        except BaseException:
            self._unwanted(process)
            raise

    # -- by id or name

    @hops
    async def restart(self, key: str, *, grace: float | None = None) -> ProcessCore:
        """See ProcessManager.restart."""
        process = self.registry.get(key)
        self._check_whole(process)  # before it is ended
        held, name = self.supervisor.hold(process.id), process.name
        try:
            if process.status.live:
                await process.end_by_task(EndReason.RESTARTED, grace=self.grace if grace is None else grace)
            self._check_place(process, name)
            new = await self.respawn(process)
        except BaseException as error:
            if held is not None:
                self.supervisor.lose(held, error)
            raise
        if held is not None and not self.supervisor.give(held, new):
            await new.stop(self.grace)
        return new

    @hops
    async def replace(self, key: str, *, config: ProcessConfig | None = None, grace: float | None = None) -> ProcessCore:
        """See ProcessManager.replace."""
        old = self.registry.get(key)
        if config is None:
            self._check_whole(old)
        held, name = self.supervisor.hold(old.id), old.name
        launch, config = self.launches.get(old.id, PLAIN), config or old.config
        next_name = self.registry.fresh_name(f"{old.name}-next", taken=self._detached_names() if config.detach else ())
        try:
            new = await self._start(config, launch, wait=True, predecessor=old, name=next_name)
            try:
                self._check_place(old, name)
            except NameInUse:
                await new.stop(self.grace)
                raise
        except BaseException as error:
            if held is not None:
                self.supervisor.lose(held, error)
            raise
        self.registry.swap(old, new)
        unwanted = held is not None and not self.supervisor.give(held, new)
        if old.status.live:
            await old.end_by_task(EndReason.REPLACED, grace=self.grace if grace is None else grace)
        if unwanted:
            await new.stop(self.grace)
        return new

    def _check_place(self, process: ProcessCore, name: str) -> None:
        """Raise NameInUse if another call has given its place to somebody else meanwhile: then there would be two of them."""
        if process.name != name:
            raise NameInUse(f"{name} was replaced or renamed meanwhile", name=name, hint="it is another process now: look at pm.get(…)")
        if self.registry.find(name) is not process:
            self.registry.check_free(name)

    @hops
    async def rename(self, key: str, name: str) -> None:
        """See ProcessManager.rename."""
        process = self.registry.get(key)
        with self._naming(process, name):
            self.registry.rename(process, name)

    @hops
    async def strays(self) -> tuple[Stray, ...]:
        """See ProcessManager.strays."""
        return tuple(await self.launcher.strays())

    # -- events

    def publish(self, event: ProcessEvent) -> None:
        """Tell the subscribers."""
        self.stream.publish(event)

    # -- what processes and the supervisor ask of it (process.Owner, supervision.Keeper)

    def heard(
        self, kind: EventKind, process: ProcessCore, *, stream: Stream | None = None, size: int = 0, error: BaseException | None = None
    ) -> None:
        """Publish what happened to a process."""
        if self.recorder is not None and kind is not EventKind.OUTPUT:
            self.recorder.heard(kind, face_of(process), error)
        if self.stream.heard_by_nobody(kind):
            return
        info = None if kind is EventKind.OUTPUT else process.info
        now = time.monotonic()
        self.stream.publish(
            ProcessEvent(kind=kind, process_id=process.id, name=process.name, at=now, info=info, stream=stream, size=size, error=error)
        )

    def ended(self, process: ProcessCore) -> None:
        """A process has its final status."""
        self.slots.free()
        gone = self.registry.ended(process, keep=self._supervises)
        self.heard(EventKind.EXITED, process)
        for old in gone:
            self.launches.pop(old.id, None)
            self.heard(EventKind.REMOVED, old)

    def _supervises(self, process_id: str) -> bool:
        return "supervisor" in self.__dict__ and self.supervisor.supervises(process_id)

    def let_go(self, process: ProcessCore) -> None:
        """Its owner wants its end: no restart."""
        if self._supervises(process.id):
            self.supervisor.release(process.id)

    async def respawn(self, process: ProcessCore) -> ProcessCore:
        """Start its config again under its name, as its successor, when nothing of the old one is left."""
        self._check_whole(process)
        await process.end_leftovers(grace=self.grace)
        return await self._start(process.config, self.launches.get(process.id, PLAIN), wait=True, predecessor=process, name=process.name)

    @staticmethod
    def _check_whole(process: ProcessCore) -> None:
        if process.lost:
            from nbprocs.processes import detached  # noqa: PLC0415 - most are not

            detached.check_whole(process)

    def on_end(self, process: ProcessCore, callback: Callable[[ProcessCore], None]) -> None:
        """The supervisor's way to hear of an end."""
        process.add_done_callback(callback)

    # -- end

    def _check_open(self) -> None:
        if self.closed:
            raise Closed("this manager is closed and starts nothing any more", hint="create another ProcessManager")

    @hops
    async def aclose(self, *, grace: float | None = None) -> None:
        """See ProcessManager.aclose."""
        if self._closing is None:
            self.closed = True
            self.slots.close()
            self._closing = self.tasks.start(self._close(self.grace if grace is None else grace), name="close the manager")
        await asyncio.wait({self._closing})
        self._closing.result()

    async def _close(self, grace: float) -> None:
        if "supervisor" in self.__dict__:
            await self.supervisor.aclose()
        detached = [process for process in self.registry.live if process.config.detach]
        live = [process for process in self.registry.live if not process.config.detach]
        for process in live:
            process.blame(EndReason.MANAGER_CLOSED)
        started = [process.child for process in self.registry if process.child is not None and not process.config.detach]
        left = await self.launcher.end_all(started, grace=grace)  # also what ended ones left behind
        for process in () if left else live:
            await process.over()
        for process in detached:
            self._leave(process)
        await self.tasks.aclose()
        if self.recorder is not None:
            await self.recorder.aclose()
        self.launcher.close()
        self.publish(ProcessEvent(kind=EventKind.CLOSED, process_id="", name="", at=time.monotonic()))
        check_ended(left, name="what this manager started")
