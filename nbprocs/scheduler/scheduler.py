"""TaskScheduler: the public face. All that it shows is for users; the work is done inside."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from nbprocs import checks
from nbprocs.config import ProcessConfig, Word
from nbprocs.display import Displayable, Html
from nbprocs.engine.home import hops
from nbprocs.engine.owners import register
from nbprocs.errors import UnknownProcess
from nbprocs.model import ProcessResult
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.recording import kernel_runs
from nbprocs.scheduler import intake, views
from nbprocs.scheduler.backend import Backend
from nbprocs.scheduler.batch import TaskBatch
from nbprocs.scheduler.calls import Pool, PoolBackend
from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.frames import attempts_frame, tasks_frame
from nbprocs.scheduler.handle import TaskHandle
from nbprocs.scheduler.keywords import TaskKeywords
from nbprocs.scheduler.learning import learned, learned_many, record
from nbprocs.scheduler.local import LocalBackend
from nbprocs.scheduler.model import Attempt, Eta, Now, ScheduledTask, SchedulerConfig, SchedulerEvent, SchedulerStatus, TaskState
from nbprocs.scheduler.options import check_name
from nbprocs.scheduler.rerunning import ended_in, rerun
from nbprocs.scheduler.system import now as system_now
from nbprocs.scheduler.system import whole_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["TaskScheduler"]

T = TypeVar("T")


class TaskScheduler(Displayable):
    r"""Runs commands when their time has come, their dependencies have ended and there is room for them.

    Args:
        config: limits, defaults and policies.
        store: path of an SQLite file. What ``schedule`` returned is in it, and a later scheduler that opens it goes on where this one,
            or its kernel, ended. Raises StoreInUse, StoreCorrupt or StoreTooNew, and leaves the file untouched then. **Opening a queue
            runs the commands in it: open nobody's file that you would not run as a script.**
        manager: the ProcessManager to run commands with; by default one of its own.
        pool: runs tasks that are functions; anything with ``submit(fn, *args)``.
        backend: where commands run instead of this machine's processes.
        runs: the history to record runs in and to learn from: a path or a RunsConfig; None: the kernel's (set_runs), False: none.
        background: True works on a loop in a thread of its own, so that a cell that blocks the kernel blocks nothing here.

    It starts by itself on the loop where it is first used. Higher priority first, then earlier time, then arrival; see
    ``nbprocs.scheduler.queue`` for what that means exactly, also about starvation. One with a store that nobody has any more lets go of
    it once nothing runs and nothing starts by itself.

    >>> async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=2)) as sch:
    ...     first = sch.schedule("echo", "first", priority=TaskPriority.HIGH)
    ...     then = sch.schedule("echo", "then", after=[first])
    ...     (await then).text
    'then\n'
    """

    def __init__(
        self,
        config: SchedulerConfig | None = None,
        *,
        store: Word | None = None,
        manager: ProcessManager | None = None,
        pool: Pool | None = None,
        backend: Backend | None = None,
        background: bool = False,
        runs: object = None,
        clock: Callable[[], Now] = system_now,
    ) -> None:
        if backend is not None and manager is not None:
            raise ValueError("give either manager= or backend=: a backend has its own way to run commands")
        if config is not None and not isinstance(config, SchedulerConfig):
            checks.refuse(TypeError, "config", "a SchedulerConfig or None", config)
        if manager is not None and not isinstance(manager, ProcessManager):
            checks.refuse(TypeError, "manager", "a ProcessManager or None", manager)
        if backend is not None and not all(callable(getattr(backend, name, None)) for name in ("start", "cancel", "capacity", "bind")):
            checks.refuse(TypeError, "backend", "a backend, such as LocalBackend() or DaskBackend()", backend)
        checks.flag("background", background)
        _check_apart(store, kernel_runs() if runs is None or runs is True else runs)
        self._core = SchedulerCore(
            config or SchedulerConfig(),
            store=None if store is None else checks.path("store", store),
            backend=backend or LocalBackend(manager, runs=runs),
            calls=None if pool is None else PoolBackend(pool),
            clock=checks.function("clock", clock),
        )
        self._core.watch(self)
        self._recorded = record(self._core, runs if manager is None else False)
        if background:
            self._core.bind_background()
        else:
            self._core.bind()
        register(self)

    @property
    def closed(self) -> bool:
        """True once ``aclose()`` was called."""
        return self._core.runner.closed

    @classmethod
    def opened(cls, store: Word) -> Self:
        """The scheduler that has this store open in this kernel, though its variable was overwritten or is out of reach.

        Raises UnknownProcess if none has.

        >>> sch = TaskScheduler(store="queue.db")
        >>> TaskScheduler.opened("queue.db").status().store == sch.status().store
        True
        >>> await sch.aclose()
        """
        path = whole_path(store)
        core = SchedulerCore.of(str(path))
        if core is None or core.runner.closed:
            raise UnknownProcess(f"no scheduler of this kernel has {path} open", hint="TaskScheduler(store=…) opens it")
        core.taken_up()
        found = cls.__new__(cls)
        found._core = core  # noqa: SLF001 - of its own class
        core.watch(found)
        return found

    @property
    def config(self) -> SchedulerConfig:
        """As given."""
        return self._core.config

    # -- scheduling

    @overload
    def schedule(self, command: Word | ProcessConfig, *args: Word, **options: Unpack[TaskKeywords]) -> TaskHandle[ProcessResult]: ...

    @overload
    def schedule(self, command: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Unpack[TaskKeywords]) -> TaskHandle[T]: ...

    @overload
    def schedule(self, command: Callable[..., T], *args: Any, **options: Unpack[TaskKeywords]) -> TaskHandle[T]: ...

    def schedule(self, command: Any, *args: Any, **options: Any) -> TaskHandle[Any]:
        """Put a task into the queue and return its handle at once. May be called from any thread. With a store the task is on disk then.

        Args:
            command: a program, a shell line with ``shell=True``, a ProcessConfig, or a function (needs ``pool=``, can't be stored).
            args: its arguments.
            **options: as follows, and all options of ProcessConfig (``working_dir``, ``env_vars``, ``pty``, ``nice`` …) and ``input``.

                - priority: a TaskPriority or any whole number; higher first.
                - max_retries: how often it is tried again after a failure, with growing delays; None: the config's.
                - timeout: seconds an attempt may take, or ``"3x"`` for three times what this command took on average so far (the config's
                  default until that is known); past it the whole tree is killed. ``inf``: none. ``"p95*3"``
                  is three times what 95 % of its recorded runs (``runs=``) did not exceed.
                - after: tasks that must end first: handles, ids or names; ``After(task, "failure")`` or ``"any"`` for other ends.
                - delay: seconds before it may start, on a clock that is never set back.
                - at: a date before which it does not start: a datetime, an ISO text, or seconds since the epoch.
                - every: repeat every so many seconds, the first run at once (or after ``delay`` or ``at``). Runs never overlap.
                - cron: repeat by a cron line of five fields, or of six with the seconds first; ``@daily``, ``@hourly`` and their like.
                - timezone: of ``cron`` and of an ``at`` without one: an IANA name; None: local time.
                - repeat: end the series after so many runs.
                - misfire: what becomes of times that passed meanwhile: "once" (default), "skip" or "all".
                - group: the name of a group; groups have limits of their own and can be paused.
                - resources: how much it takes of each resource while it runs; ``gpu`` also sets CUDA_VISIBLE_DEVICES to its own.
                  "learned" is a memory gate by its recorded runs.
                - memory_gate: bytes (or ``"2 GB"``, or ``"p95"`` of its recorded runs) that must be free for it to start.
                - files: paths that a backend on other machines brings to where it runs.
                - name: for people, for ``get`` and for ``after``; need not be unique.
                - key: what tells this piece of work from others, so that a cell that is run again does not double it. A task with the
                  same key that is known (with a store: that ever was scheduled, and is not forgotten) stands for the new one.
                - if_exists: what to do then: "keep" it and return its handle, however it stands (default); "replace" it: cancel it if it
                  has not ended, and start the new one after that; "error": raise NameInUse.
                - working_dir: by default the kernel's folder at this call, whatever it is when the task starts.
                - env_vars: what to change in the kernel's environment, None removes. The values of secrets are not stored.
                - estimated_duration: seconds, for the ETA; by default what this command took before.
                - hold: don't start it before ``release()``.
                - on_interrupted: "retry" or "mark", if the kernel dies while it runs; None: the config's.

        Raises TypeError or ValueError for what can never run, ResourceExhausted for more of a resource than there is, StoreError when it
        can't be written down, NameInUse, Closed; nothing is scheduled then.
        """
        return TaskHandle(self._core, intake.schedule(self._core, command, args, learned(self._core, command, args, options)))

    def schedule_many(self, tasks: Iterable[Any], **options: Unpack[TaskKeywords]) -> list[TaskHandle[Any]]:
        r"""Schedule many at once: all or, if one of them is refused, none. With a store they are one transaction, and on disk on return.

        Each task is a command, a sequence of command and arguments, a ProcessConfig, or a dict with ``command``, ``args`` and any option
        of ``schedule``; ``options`` are for those that don't say. ``after`` may name other tasks of the same call by their ``name``, in
        any order. Raises as ``schedule``, and ValueError for tasks that would wait for each other, with their names. A million take
        seconds.

        >>> async with TaskScheduler() as sch:
        ...     handles = sch.schedule_many([("echo", str(n)) for n in range(3)], group="echoes")
        ...     [(await handle).text for handle in handles]
        ['0\n', '1\n', '2\n']
        """
        if isinstance(tasks, (str, bytes, dict)) or not isinstance(tasks, Iterable):
            checks.refuse(TypeError, "tasks", "a list of tasks", tasks)
        core = self._core
        core.check_open()
        core.bind()
        with core.lock:
            asked, common = learned_many(core, tasks, options)
            batch = TaskBatch(core, common)
            handed = batch.prepare(asked)
            if core.store is not None:
                core.store.insert_many(batch.rows())
            if core.here:
                batch.admit(core.runner)
            else:
                core.home.post(batch.admit, core.runner)
            core.runner.keys.update((entry.options.key, entry) for entry in handed if entry.options.key is not None)
        return [TaskHandle(core, entry) for entry in handed]

    def rerun(self, *, failed: bool = True, cancelled: bool = False, group: str | None = None) -> list[TaskHandle[Any]]:
        """Run ended tasks again, with what was skipped behind them; returns the handles of all that wait again.

        ``failed``: those that failed or were interrupted; ``cancelled``: those that were cancelled; ``group``: of this group only. They
        keep their ids and past attempts. With a store also those of former kernels. On the home loop only.

        >>> async with TaskScheduler() as sch:
        ...     first = sch.schedule("sh", "-c", "test -e ready")
        ...     then = sch.schedule("echo", "then", after=[first])
        ...     _ = await then.wait()
        ...     open("ready", "w").close()
        ...     _ = sch.rerun(failed=True)
        ...     print((await then).text.strip())
        then
        """
        self._core.check_open()
        checks.flag("failed", failed)
        checks.flag("cancelled", cancelled)
        states = [TaskState.FAILED, TaskState.INTERRUPTED] * failed + [TaskState.CANCELLED] * cancelled
        entries = [e for e in ended_in(self._core, states) if group is None or e.options.group == group] if states else []
        return [TaskHandle(self._core, entry) for entry in rerun(self._core, entries)]

    # -- finding

    def get(self, key: str) -> TaskHandle[Any]:
        """The handle of a task, by id or name (of several with one name the latest). With a store also of tasks of former kernels.

        Raises UnknownProcess.
        """
        if not isinstance(key, str):
            checks.refuse(TypeError, "key", "the id or name of a task", key)
        entry = self._core.find(key)
        if entry is None:
            hint = "sch.handles() lists those that have not ended; ended ones are kept by the store only"
            raise UnknownProcess(f"no task {key!r}", hint=hint)
        return TaskHandle(self._core, entry)

    def handles(self, *, state: TaskState | str | None = None) -> list[TaskHandle[Any]]:
        """All tasks that have not ended, in the order of their arrival; or only those in one state."""
        wanted = None if state is None else TaskState(checks.one_of("state", state, tuple(TaskState)))
        runner = self._core.runner
        # Those that run are few among very many: don't look for them.
        live = runner.running() if wanted is TaskState.RUNNING else views.at_once(lambda: runner.queue)
        entries = sorted(live, key=lambda e: e.key)
        return [TaskHandle(self._core, entry) for entry in entries if wanted is None or entry.state is wanted]

    def why(self, key: str) -> str:
        """In a sentence, why a task does not run now; by its id or name. Raises UnknownProcess.

        >>> async with TaskScheduler() as sch:
        ...     _ = sch.schedule("true", name="later", hold=True)
        ...     sch.why("later")
        'it is held; release() it'
        """
        return self.get(key).why()

    # -- the queue as a whole

    def pause(self, *, group: str | None = None) -> None:
        """Start nothing more, of one group or at all. What runs goes on (``TaskHandle.pause`` stops a running one).

        A durable queue stays paused: in the next kernel, too, until ``resume()``. Limits that were changed by a call are kept as well.
        """
        runner, name = self._core.runner, check_name("group", group)
        runner.settings.keep("paused", name or "", value=True)
        if name is None:
            self._core.do(runner.queue.pause)
        else:
            self._core.do(lambda: runner.queue.pause_group(name, paused=True))

    def resume(self, *, group: str | None = None) -> None:
        """Undo ``pause``, and a halt."""
        runner, name = self._core.runner, check_name("group", group)
        runner.settings.keep("paused", name or "")
        if name is None:
            runner.settings.keep("halted")
            self._core.do(runner.resume)
        else:
            self._core.do(lambda: runner.queue.pause_group(name, paused=False))

    def set_limit(self, max_concurrent_tasks: int | None) -> None:
        """How many run at a time from now on; 0: none; None: as many as the backend can. What runs goes on."""
        limit = max_concurrent_tasks
        if limit is not None:
            limit = checks.whole("max_concurrent_tasks", limit, least=0)
        self._core.runner.settings.keep_limit("limit", "", limit)
        self._core.do(lambda: self._core.runner.room.ask(limit))

    def set_group_limit(self, group: str, limit: int | None) -> None:
        """How many of a group run at a time; None: no limit of its own."""
        name = check_name("group", group) or checks.refuse(TypeError, "group", "the name of a group", group)
        if limit is not None:
            limit = checks.whole("limit", limit, least=0)
        self._core.runner.settings.keep_limit("group", name, limit)
        self._core.do(lambda: self._core.runner.queue.limit_group(name, limit))

    def set_resource(self, name: str, capacity: float) -> None:
        """How much there is of a resource from now on; tasks that use it go on."""
        known = check_name("name", name) or checks.refuse(TypeError, "name", "the name of a resource", name)
        capacity = checks.number("capacity", capacity, least=0)
        self._core.runner.settings.keep_limit("resource", known, capacity)
        self._core.do(lambda: self._core.runner.queue.set_resource(known, capacity))

    def cancel(self, *, group: str | None = None) -> None:
        """Cancel all tasks that have not ended, or those of one group; running ones tree and all."""
        name = check_name("group", group)
        self._core.do(lambda: self._core.cancel_all(name))

    def subscribe(self, callback: Callable[[SchedulerEvent], object]) -> Callable[[], None]:
        """Call it with every event, on the home loop; it must not block. Returns what ends the subscription."""
        if not callable(callback):
            checks.refuse(TypeError, "callback", "a function that takes an event", callback)
        return self._core.runner.subscribers.add(callback)

    def forget(self, *, older_than: float) -> int:
        """Delete ended tasks from the store whose last attempt ended more than so many seconds ago; returns how many. 0 without a store."""
        seconds = checks.number("older_than", older_than, what="a number of seconds")
        return 0 if self._core.store is None else self._core.store.forget(time.time() - seconds)

    async def join(self, *, progress: bool = False, timeout: float | None = None) -> SchedulerStatus:
        """Wait until nothing is left to do (series are not waited for), and return the status then. Tasks that fail don't make it raise.

        With ``progress`` a bar shows how many have ended, and the interval in which the rest is expected to. Raises Halted when the halt
        policy stopped the queue, ResourceExhausted when all that is left needs more than there will ever be, TimeoutError after
        ``timeout`` seconds, Closed. A paused queue and held tasks are waited for: somebody may resume them.
        """
        checks.flag("progress", progress)
        async with asyncio.timeout(checks.seconds("timeout", timeout, zero=True)):
            await self._core.join(status=self.status if progress else None)
        return self.status()

    # -- looking

    def status(self) -> SchedulerStatus:
        """A snapshot; constant time, but for a sample of at most 2,000 tasks for the ETA."""
        return views.status(self._core)

    def eta(self) -> Eta | None:
        """When all that has not ended will have (series apart); None when there is nothing to do, or nothing to judge by."""
        return views.estimated(self._core)

    def tasks(self, *, limit: int | None = None) -> tuple[ScheduledTask, ...]:
        """Snapshots of the tasks that have not ended, in the order of their arrival, then of those that have, latest last."""
        return views.tasks(self._core, limit=_limit(limit))

    def ended(self, *, limit: int | None = None) -> tuple[ScheduledTask, ...]:
        """Snapshots of the tasks that have ended, latest first; of very many the last ``history``."""
        return views.ended(self._core, limit=_limit(limit))

    def attempts(self) -> list[Attempt]:
        """Every attempt that is known, the running ones last: of the store, or the last ones of this scheduler."""
        return views.attempts(self._core)

    def frame(self) -> "pd.DataFrame":
        """One row an attempt: queued, started, ended, outcome, exit code, retry, peak memory, host …; with a store all there ever were."""
        return attempts_frame(self.attempts())

    def tasks_frame(self) -> "pd.DataFrame":
        """One row a task: those that have not ended, and the last ones that have."""
        return tasks_frame(self.tasks())

    def timeline(self, ax: "Axes | None" = None, *, color: str = "priority") -> "Axes":
        """A Gantt chart of the attempts, a row for each slot; ``color`` by "priority", "outcome" or "group"."""
        from nbprocs.scheduler.plots import timeline  # noqa: PLC0415 - matplotlib only when something is drawn

        return timeline(self.attempts(), ax=ax, color=color)

    def graph(self, ax: "Axes | None" = None) -> "Axes":
        """What waits, or waited, for what: tasks as boxes, coloured by their state, from left to right."""
        return views.graph(self._core, ax)

    def _html_(self) -> Html:
        return views.html(self._core)

    # -- life

    @hops
    async def start(self) -> Self:
        """Begin here and now, instead of at the first use."""
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    @hops
    async def aclose(self) -> None:
        """Stop what runs, trees and all, and let go of the store. Idempotent.

        Tasks that have not ended stay in the store, those that ran included: the next scheduler that opens it runs them. Without a
        store they are gone, and awaiting them raises Closed. Takes at most the config's ``grace`` and a few seconds.
        """
        await self._core.aclose()

    def __repr__(self) -> str:
        status = self.status()
        extra = f", {status.halted}" if status.halted else ", paused" if status.paused else ", closed" if status.closed else ""
        return (
            f"<TaskScheduler: {status.queued_tasks:,} queued, {status.running_tasks} of {status.max_concurrent} running, "
            f"{status.succeeded:,} succeeded, {status.failed:,} failed{extra}>"
        )


def _limit(given: int | None) -> int | None:
    return None if given is None else checks.whole("limit", given, least=0)


def _check_apart(store: Word | None, runs: object) -> None:
    """Raise ValueError where the queue and the run history are one file: the queue holds it for itself, and no run could be written."""
    path = getattr(runs, "path", runs)
    if store is not None and isinstance(path, (str, os.PathLike)) and checks.path("runs", path) == checks.path("store", store):
        checks.refuse(ValueError, "runs", "another file than the queue's own (nbprocs.runs(…) reads a queue as it is)", path)
