"""The scheduler's controls: pausing, limits, cancelling by group, joining; and what schedule() needs to know of other tasks."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from os import environ
from typing import TYPE_CHECKING, Any

from nbprocs.engine.home import Home, hops
from nbprocs.errors import Closed, ProcessError, ResourceExhausted
from nbprocs.scheduler.entry import Entry, TaskOptions
from nbprocs.scheduler.handle import TaskHandle
from nbprocs.scheduler.limits import fits
from nbprocs.scheduler.model import After, Condition, Now, SchedulerConfig, SchedulerEvent, SchedulerStatus, TaskEventKind
from nbprocs.scheduler.options import decode, encode
from nbprocs.scheduler.progress import Progress
from nbprocs.scheduler.runner import Runner
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.system import now as system_now
from nbprocs.scheduler.times import every_seconds, following, parse_at

__all__ = ["Control"]

Links = list[tuple[Entry, Condition]]


class Control:
    """Part of TaskScheduler."""

    config: SchedulerConfig
    runner: Runner
    _store: Store | None
    _clock: Callable[[], Now]
    _keys: "itertools.count[int]"
    _last: float

    if TYPE_CHECKING:  # what the other parts have

        @property
        def home(self) -> Home: ...  # noqa: D102
        def _find(self, key: str) -> Entry | None: ...
        def _argv(self, command: Any, args: tuple[Any, ...], *, shell: bool) -> tuple[Any, tuple[Any, ...]]: ...
        def status(self) -> SchedulerStatus: ...  # noqa: D102

    # -- what schedule() and schedule_many() need

    def _closed(self) -> ProcessError:
        return Closed("this scheduler is closed", hint="make a new one; TaskScheduler(store=…) goes on with what a store holds")

    @property
    def keys(self) -> "itertools.count[int]":
        """Where the numbers of tasks come from."""
        return self._keys

    def stamp(self) -> float:
        """The wall clock, but never earlier than for the task before."""
        reading = time.time() if self._clock is system_now else self._clock().wall
        self._last = max(self._last, reading)
        return self._last

    def argv(self, command: Any, args: tuple[Any, ...], *, shell: bool) -> tuple[Any, tuple[Any, ...]]:
        """The command and its arguments, checked."""
        try:
            if command and not shell and "\0".join((command, *args)).count("\0") == len(args):
                return command, args
        except TypeError:  # not all are text: the slow way makes text of them, or says why not
            pass
        return self._argv(command, args, shell=shell)

    def set_time(self, entry: Entry, *, delay: float | timedelta | None, at: datetime | str | float | None, timezone: str | None) -> None:
        """When it may run first. Raises ValueError for two times at once."""
        rule = entry.options.recurrence
        cron = rule is not None and rule.cron is not None
        if (delay is not None) + (at is not None) + cron > 1:
            raise ValueError("give only one of delay, at and cron")
        if delay is not None:
            seconds = every_seconds(delay)
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"delay must be 0 or more seconds, not {delay!r}")
            entry.time += seconds
            entry.due = self._clock().elapsed + seconds
        elif at is not None:
            entry.time = entry.due = parse_at(at, timezone)
            entry.on_wall = True
        elif rule is not None and cron:
            entry.time = entry.due = following(rule, self._clock().wall)
            entry.on_wall = True

    def check_resources(self, options: TaskOptions) -> None:
        """Refuse what can never be met. Raises ValueError or ResourceExhausted."""
        for name, amount in options.resources:
            self.runner.room.declare(name)
            known = {r.name: r.capacity for r in self.runner.queue.resources()}
            if name not in known:
                raise ValueError(f"unknown resource {name!r}: declare it with SchedulerConfig(resources={{{name!r}: …}}) or set_resource()")
            if not fits(amount, known[name]) and not self.runner.queue.elastic:
                hint = "ask for less, or raise the capacity with set_resource()"
                raise ResourceExhausted(f"{amount:g} of resource {name!r} can never be met: there are {known[name]:g}", hint=hint)

    @staticmethod
    def wishes(after: Any) -> list[After]:
        """What ``after=`` says, in one form."""
        if isinstance(after, (str, After, TaskHandle)):
            after = (after,)
        return [item if isinstance(item, After) else After(*item) if isinstance(item, tuple) else After(item) for item in after]

    def links(self, after: Any) -> Links:
        """The entries that ``after=`` names. Raises ValueError for one that is not known."""
        found: Links = []
        for wish in self.wishes(after):
            task = wish.task
            if isinstance(task, TaskHandle):
                if task._scheduler is not self:  # noqa: SLF001 - a friend
                    raise ValueError(f"{task!r} belongs to another scheduler; await it instead")
                found.append((task._entry, wish.on))  # noqa: SLF001 - a friend
                continue
            entry = self._find(str(task)) if isinstance(task, str) else None
            if entry is None:
                raise ValueError(f"after: there is no task {task!r}; give a handle, an id or a name")
            found.append((entry, wish.on))
        return found

    # -- one task

    def act(self, action: Callable[[Entry], object], entry: Entry) -> None:
        """Do it now, on the home loop; soon, from another thread."""
        home = self.runner.home
        if home is None or home.here:
            action(entry)
        else:
            home.post(action, entry)

    def hold_entry(self, entry: Entry) -> None:
        """See TaskHandle.hold."""
        if self.runner.queue.hold(entry):
            self._changed(entry)

    def release_entry(self, entry: Entry) -> None:
        """See TaskHandle.release."""
        self.runner.missing.pop(entry.key, None)
        if self.runner.queue.release(entry, self._clock()):
            self._changed(entry)

    def _changed(self, entry: Entry, **columns: Any) -> None:
        self.runner.journal.change(entry, **columns)
        self.runner.journal.flush()
        self.runner.emit(TaskEventKind.CHANGED, entry)
        self.runner.want()

    def reprioritise(self, entry: Entry, priority: int) -> None:
        """See TaskHandle.reprioritise."""
        number = int(priority)

        def act(entry: Entry) -> None:
            self.runner.queue.reprioritise(entry, number, self._clock())
            self._changed(entry, priority=number)

        self.act(act, entry)

    def check_secrets(self, entry: Entry) -> None:
        """Take secrets that were not stored from the environment. Raises ValueError if they are still not there."""
        if entry.key in self.runner.missing:
            options, missing = decode(encode(entry.options), environ)
            if missing:
                raise ValueError(f"{entry.label} needs {', '.join(missing)}, which is not stored; set it in os.environ first")
            entry.options = options

    def depend(self, entry: Entry, wish: After) -> None:
        """See TaskHandle.depend."""
        for other, condition in self.links(wish):
            for skipped in self.runner.queue.depend(entry, other, condition, self._clock()):
                self.runner.settled(skipped, other)
            after = [[o.key, c.value] for o, c in (entry.needs or {}).values()]
            self._changed(entry, after=self.runner.journal.json(after))

    @contextlib.contextmanager
    def watching(self, task_id: str, callback: Callable[[], object]) -> Iterator[None]:
        """Have it called at every event of one task."""
        stop = self.subscribe(lambda event: callback() if event.task_id == task_id else None)
        try:
            yield
        finally:
            stop()

    # -- the queue

    def _do(self, action: Callable[[], object]) -> None:
        def act() -> None:
            action()
            self.runner.emit(TaskEventKind.CHANGED)
            self.runner.want()

        home = self.runner.home
        if home is None or home.here:
            act()
        else:
            home.post(act)

    def pause(self, *, group: str | None = None) -> None:
        """Start nothing more, of one group or at all. What runs goes on (``TaskHandle.pause`` stops a running one)."""
        queue = self.runner.queue
        self._do(lambda: setattr(queue, "paused", True) if group is None else queue.pause_group(group, paused=True))

    def resume(self, *, group: str | None = None) -> None:
        """Undo ``pause``, and a halt."""
        queue = self.runner.queue
        self._do(self.runner.resume if group is None else lambda: queue.pause_group(group, paused=False))

    def set_limit(self, max_concurrent_tasks: int | None) -> None:
        """How many run at a time from now on; 0: none; None: as many as the backend can. What runs goes on."""
        if max_concurrent_tasks is not None and max_concurrent_tasks < 0:
            raise ValueError(f"max_concurrent_tasks must be 0 or more, or None, not {max_concurrent_tasks!r}")
        self._do(lambda: self.runner.room.ask(max_concurrent_tasks))

    def set_group_limit(self, group: str, limit: int | None) -> None:
        """How many of a group run at a time; None: no limit of its own."""
        if limit is not None and limit < 0:
            raise ValueError(f"the limit of a group must be 0 or more, or None, not {limit!r}")
        self._do(lambda: self.runner.queue.limit_group(group, limit))

    def set_resource(self, name: str, capacity: float) -> None:
        """How much there is of a resource from now on; tasks that use it go on."""
        if not capacity >= 0:
            raise ValueError(f"a capacity must be 0 or more, not {capacity!r}")
        self._do(lambda: self.runner.queue.set_resource(name, capacity))

    def cancel(self, *, group: str | None = None) -> None:
        """Cancel all tasks that have not ended, or those of one group; running ones tree and all."""

        def act() -> None:
            for entry in [e for e in self.runner.queue if group is None or e.options.group == group]:
                if entry.key in self.runner.queue.entries:
                    self.runner.cancel(entry, flush=False)
            self.runner.journal.flush()

        self._do(act)

    def subscribe(self, callback: Callable[[SchedulerEvent], object]) -> Callable[[], None]:
        """Call it with every event, on the home loop; it must not block. Returns what ends the subscription."""
        return self.runner.subscribers.add(callback)

    def forget(self, *, older_than: float) -> int:
        """Delete ended tasks from the store whose last attempt ended more than so many seconds ago; returns how many. 0 without a store."""
        return 0 if self._store is None else self._store.forget(time.time() - older_than)

    # -- waiting

    async def join(self, *, progress: bool = False, timeout: float | None = None) -> SchedulerStatus:
        """Wait until nothing is left to do (series are not waited for), and return the status then. Tasks that fail don't make it raise.

        With ``progress`` a bar shows how many have ended, and the interval in which the rest is expected to. Raises Halted when the halt
        policy stopped the queue, ResourceExhausted when all that is left needs more than there will ever be, TimeoutError after
        ``timeout`` seconds, Closed. A paused queue and held tasks are waited for: somebody may resume them.
        """
        async with asyncio.timeout(timeout):
            await self._join(progress=progress)
        return self.status()

    @hops
    async def _join(self, *, progress: bool) -> None:
        if self.runner.closed:
            raise self._closed()
        joined = self.runner.joiners.add()
        if not progress:
            await joined
            return
        with Progress(self.runner, self.status) as bar:
            while not joined.done():
                await asyncio.wait({joined}, timeout=bar.INTERVAL)
                bar.update()
        joined.result()
