"""TaskScheduler: the public face. It checks what is asked for, makes the task's record, and leaves the acting to the runner."""

import itertools
import operator
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nbprocs.engine.home import Home, hops
from nbprocs.errors import UnknownProcess
from nbprocs.model import TaskPriority
from nbprocs.processes.manager import ProcessManager
from nbprocs.scheduler.backend import Backend
from nbprocs.scheduler.batch import Batch
from nbprocs.scheduler.calls import Pool, PoolBackend
from nbprocs.scheduler.control import Control
from nbprocs.scheduler.entry import DEFAULTS, Entry
from nbprocs.scheduler.handle import TaskHandle
from nbprocs.scheduler.journal import Journal, task_row
from nbprocs.scheduler.local import LocalBackend
from nbprocs.scheduler.model import Interrupted, Misfire, Now, SchedulerConfig, TaskState
from nbprocs.scheduler.options import check_argv, make_options
from nbprocs.scheduler.resume import load, lookup
from nbprocs.scheduler.runner import Runner
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.system import now as system_now
from nbprocs.scheduler.views import Views, at_once

if TYPE_CHECKING:
    from _typeshed import StrPath

__all__ = ["TaskScheduler"]

_NORMAL = int(TaskPriority.NORMAL)
_NO_WISHES = (None,) * 11
_NO_SERIES = (None,) * 6


class TaskScheduler(Control, Views):
    r"""Runs commands when their time has come, their dependencies have ended and there is room for them.

    Args:
        config: limits, defaults and policies.
        store: path of an SQLite file. What ``schedule`` returned is in it, and a later scheduler that opens it goes on where this one,
            or its kernel, ended. Raises StoreInUse, StoreCorrupt or StoreTooNew, and leaves the file untouched then.
        manager: the ProcessManager to run commands with; by default one of its own.
        pool: runs tasks that are functions; anything with ``submit(fn, *args)``.
        backend: where commands run instead of this machine's processes.
        background: True works on a loop in a thread of its own, so that a cell that blocks the kernel blocks nothing here.

    It starts by itself on the loop where it is first used. Higher priority first, then earlier time, then arrival; see
    ``nbprocs.scheduler.queue`` for what that means exactly, also about starvation.

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
        store: "StrPath | None" = None,
        manager: ProcessManager | None = None,
        pool: Pool | None = None,
        backend: Backend | None = None,
        background: bool = False,
        clock: Callable[[], Now] = system_now,
    ) -> None:
        if backend is not None and manager is not None:
            raise ValueError("give either manager= or backend=: a backend has its own way to run commands")
        self.config = config or SchedulerConfig()
        prefix = f"{secrets.token_hex(3)}-"
        self._store = None if store is None else Store(store, prefix=prefix)
        prefix = prefix if self._store is None else self._store.prefix
        self.runner = Runner(
            self.config,
            journal=Journal(self._store, limit=self.config.store_output),
            prefix=prefix,
            backend=backend or LocalBackend(manager),
            calls=None if pool is None else PoolBackend(pool),
            clock=clock,
        )
        self._clock = clock
        self._last = 0.0  # the time of the last task, so that a clock set back does not put later tasks before earlier ones
        last = 0
        if self._store is not None:
            try:
                last = self._open(self._store)
            except BaseException:
                self._store.close()
                raise
        self._keys = itertools.count(last + 1)
        if background:
            home = Home.background()
            home.post(self.runner.bind, home)
            self.runner.home = home
        else:
            self._bind()

    def _open(self, store: Store) -> int:
        """Take over what the store holds; returns its last key."""
        runner = self.runner
        last = store.last_key()
        found = load(store, runner.queue, runner.journal, self.config, self._clock(), host=socket.gethostname())
        for key, links in found.links.items():
            runner.edges[key] = dict(map(tuple, links))
        for entry in found.entries:
            runner.series += entry.options.recurrence is not None
            if entry.options.name is not None:
                runner.names[entry.options.name] = entry
            for name, _ in entry.options.resources:
                runner.room.declare(name)
        runner.missing = found.missing
        return last

    def _bind(self) -> None:
        """Live on the running loop, if one runs here and this is the first use."""
        if self.runner.home is None:
            try:
                home = Home.current()
            except RuntimeError:  # none runs here: the first use on one comes later
                return
            self.runner.bind(home)

    @property
    def home(self) -> Home:
        """The loop it lives on; the running one, if it has not been used yet."""
        if self.runner.home is None:
            self.runner.bind(Home.current())
        home = self.runner.home
        assert home is not None  # noqa: S101 - for the type checker
        return home

    @property
    def _here(self) -> bool:
        home = self.runner.home
        return home is None or home.thread_id == threading.get_ident()

    # -- scheduling

    def schedule(
        self,
        command: "StrPath | Callable[..., Any]",
        *args: Any,
        priority: int = _NORMAL,
        max_retries: int | None = None,
        timeout: float | str | timedelta | None = None,
        after: Iterable[Any] | Any = (),
        delay: float | timedelta | None = None,
        at: datetime | str | float | None = None,
        every: float | timedelta | None = None,
        cron: str | None = None,
        timezone: str | None = None,
        repeat: int | None = None,
        misfire: Misfire | str | None = None,
        group: str | None = None,
        resources: Mapping[str, float] | None = None,
        memory_gate: float | str | None = None,
        name: str | None = None,
        working_dir: "StrPath | None" = None,
        env_vars: Mapping[str, str | None] | None = None,
        cwd: "StrPath | None" = None,
        env: Mapping[str, str | None] | None = None,
        estimated_duration: float | None = None,
        shell: bool = False,
        hold: bool = False,
        on_interrupted: Interrupted | str | None = None,
    ) -> TaskHandle:
        """Put a task into the queue and return its handle at once. May be called from any thread. With a store the task is on disk then.

        Args:
            command: a program, a shell line with ``shell=True``, or a function (which needs ``pool=`` and can't be stored).
            args: its arguments.
            priority: a TaskPriority or any whole number; higher first.
            max_retries: how often it is tried again after a failure, with growing delays; None: the config's.
            timeout: seconds an attempt may take, or ``"3x"`` for three times what this command took on average so far (the config's
                default until that is known); past it the whole tree is killed. ``inf``: none.
            after: tasks that must end first: handles, ids or names; ``After(task, "failure")`` or ``"any"`` for other ends than success.
            delay: seconds before it may start, on a clock that is never set back.
            at: a date before which it does not start: a datetime, an ISO text, or seconds since the epoch.
            every: repeat every so many seconds, the first run at once (or after ``delay`` or ``at``). Runs never overlap.
            cron: repeat by a cron line of five fields, or of six with the seconds first.
            timezone: of ``cron`` and of an ``at`` without one: an IANA name; None: local time.
            repeat: end the series after so many runs.
            misfire: what becomes of times that passed meanwhile: "once" (default), "skip" or "all".
            group: the name of a group; groups have limits of their own and can be paused.
            resources: how much it takes of each resource while it runs; ``gpu`` also sets CUDA_VISIBLE_DEVICES to its own.
            memory_gate: bytes (or ``"2 GB"``) that must be free for it to start.
            name: for people, for ``get`` and for ``after``; need not be unique.
            working_dir: by default the kernel's own.
            env_vars: what to change in the kernel's environment, None removes. The values of secrets are not stored.
            cwd: the short name of ``working_dir``.
            env: the short name of ``env_vars``.
            estimated_duration: seconds, for the ETA; by default what this command took before.
            shell: the command is a line for ``/bin/sh``.
            hold: don't start it before ``release()``.
            on_interrupted: "retry" or "mark", if the kernel dies while it runs; None: the config's.

        Raises TypeError or ValueError for what can never run, ResourceExhausted for more of a resource than there is, StoreError when it
        can't be written down, Closed; nothing is scheduled then.
        """
        runner = self.runner
        if runner.closed:
            raise self._closed()
        if runner.home is None:
            self._bind()
        priority = operator.index(priority)
        try:  # the common case, in the fewest steps: one C call checks that all are text, another that none holds a NUL
            plain = "\0".join((command, *args)).count("\0") == len(args) and command  # type: ignore[arg-type]
        except TypeError:
            plain = False
        if not plain or shell:
            command, args = self._argv(command, args, shell=shell)
        wishes = (max_retries, timeout, name, group, resources, memory_gate, working_dir, env_vars, cwd, env, estimated_duration)
        series = (every, cron, timezone, repeat, misfire, on_interrupted)
        if wishes == _NO_WISHES and series == _NO_SERIES and not shell:
            options = DEFAULTS
        else:
            options = make_options(
                max_retries=max_retries,
                timeout=timeout,
                name=name,
                group=group,
                resources=resources,
                memory_gate=memory_gate,
                working_dir=working_dir if cwd is None else cwd,
                env_vars=env_vars if env is None else env,
                estimated_duration=estimated_duration,
                shell=shell,
                every=every,
                cron=cron,
                timezone=timezone,
                repeat=repeat,
                misfire=misfire,
                on_interrupted=on_interrupted,
            )
            self.check_resources(options)
        stamp = self.stamp()
        entry = Entry(next(self._keys), command, args, priority, stamp, options)  # type: ignore[arg-type]
        if delay is not None or at is not None or cron is not None:
            self.set_time(entry, delay=delay, at=at, timezone=timezone)
        links = self.links(after) if after else ()
        if self._store is not None:
            self._store.insert(task_row(entry, links, held=hold))
        if self._here:
            runner.admit(entry, links, held=hold)
        else:
            self.home.post(lambda: runner.admit(entry, links, held=hold))
        return TaskHandle(self, entry)

    def schedule_many(self, tasks: Iterable[Any], **options: Any) -> list[TaskHandle]:
        r"""Schedule many at once: all or, if one of them is refused, none. With a store they are one transaction, and on disk on return.

        Each task is a command, a sequence of command and arguments, or a dict with ``command``, ``args`` and any option of ``schedule``;
        ``options`` are for those that don't say. ``after`` may name other tasks of the same call by their ``name``, in any order.
        Raises as ``schedule``, and ValueError for tasks that would wait for each other, with their names. A million take seconds.

        >>> async with TaskScheduler() as sch:
        ...     handles = sch.schedule_many([("echo", n) for n in range(3)], group="echoes")
        ...     [(await handle).text for handle in handles]
        ['0\n', '1\n', '2\n']
        """
        runner = self.runner
        if runner.closed:
            raise self._closed()
        self._bind()
        batch = Batch(self, options)
        ready = batch.prepare(tasks)
        if self._store is not None:
            self._store.insert_many(batch.rows())
        if self._here:
            batch.admit(runner)
        else:
            self.home.post(batch.admit, runner)
        return [TaskHandle(self, entry) for entry in ready]

    def _argv(self, command: Any, args: tuple[Any, ...], *, shell: bool) -> tuple[Any, tuple[Any, ...]]:
        if callable(command) and not isinstance(command, (str, os.PathLike)):
            if self.runner.calls is None and isinstance(self.runner.backend, LocalBackend):
                raise TypeError("a function needs a pool to run it: TaskScheduler(pool=…)")
            if self._store is not None:
                raise TypeError("a function can't be stored; schedule a command, or use a scheduler without store=")
            return command, args
        if shell and args:
            raise ValueError("with shell=True the command is one line; put the arguments into it (shlex.join helps)")
        return check_argv(command, args)

    # -- finding

    def get(self, key: str) -> TaskHandle:
        """The handle of a task, by id or name (of several with one name the latest). With a store also of tasks of former kernels.

        Raises UnknownProcess.
        """
        entry = self._find(key)
        if entry is None:
            raise UnknownProcess(
                f"no task {key!r}", hint="sch.handles() lists those that have not ended; ended ones are kept by the store only"
            )
        return TaskHandle(self, entry)

    def _find(self, key: str) -> Entry | None:
        runner = self.runner
        number = key.removeprefix(runner.prefix)
        if number != key and number.isdecimal():
            found = runner.queue.entries.get(int(number)) or runner.finished.get(int(number))
            if found is None and self._store is not None:
                found = lookup(self._store, int(number), key)
            return found
        if key in runner.names:
            return runner.names[key]
        if self._store is not None:
            for (stored,) in self._store.rows("SELECT max(key) FROM tasks WHERE name = ?", key):
                return None if stored is None else self._find(f"{runner.prefix}{stored}")
        return None

    def handles(self, *, state: TaskState | str | None = None) -> list[TaskHandle]:
        """All tasks that have not ended, in the order of their arrival; or only those in one state."""
        wanted = None if state is None else TaskState(state)
        # Those that run are few among very many: don't look for them.
        live = self.runner.running() if wanted is TaskState.RUNNING else at_once(lambda: self.runner.queue)
        entries = sorted(live, key=lambda e: e.key)
        return [TaskHandle(self, entry) for entry in entries if wanted is None or entry.state is wanted]

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
        if not self.runner.closed:
            await self.runner.close()
            if self._store is not None:
                self._store.close()

    def __repr__(self) -> str:
        status = self.status()
        extra = f", {status.halted}" if status.halted else ", paused" if status.paused else ", closed" if status.closed else ""
        return (
            f"<TaskScheduler: {status.queued_tasks:,} queued, {status.running_tasks} of {status.max_concurrent} running, "
            f"{status.succeeded:,} succeeded, {status.failed:,} failed{extra}>"
        )
