"""The inside of a scheduler: what its face and its handles hold. It puts the runner and the store together and knows neither of them.

::

    TaskScheduler ─┐
                   ├──► SchedulerCore ──► Runner ──► queue, writer, backend
    TaskHandle ────┘       └───► Store
"""

import asyncio
import contextlib
import itertools
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from os import PathLike, environ
from typing import Any

from nbprocs.engine.home import Home, Tasks, hops
from nbprocs.errors import Closed, ProcessError
from nbprocs.scheduler.backend import Backend
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.model import Condition, Now, SchedulerConfig, SchedulerEvent, SchedulerStatus, TaskEventKind
from nbprocs.scheduler.options import decode, encode
from nbprocs.scheduler.progress import Progress
from nbprocs.scheduler.resume import load, lookup
from nbprocs.scheduler.runner import Runner
from nbprocs.scheduler.store import Store
from nbprocs.scheduler.system import now as system_now
from nbprocs.scheduler.writer import StoreWriter, stored_text

__all__ = ["SchedulerCore"]

_open: "weakref.WeakValueDictionary[str, SchedulerCore]" = (
    weakref.WeakValueDictionary()
)  # path of a store -> who has it open in this process


class SchedulerCore:
    """Everything of one scheduler but its face. Its state is touched on the home loop only; ``act`` and ``do`` bring an action there."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        store: str | PathLike[str] | None,
        backend: Backend,
        calls: Backend | None,
        clock: Callable[[], Now],
    ) -> None:
        self.config = config
        self.clock = clock
        prefix = f"{secrets.token_hex(3)}-"
        self.store: Store | None = None if store is None else Store(store, prefix=prefix)
        prefix = prefix if self.store is None else self.store.prefix
        writer = StoreWriter(self.store, limit=config.store_output)
        self.runner: Runner = Runner(config, writer=writer, prefix=prefix, backend=backend, calls=calls, clock=clock)
        self.runner.inside = self  # whoever holds the runner, its backend or a timer of its loop, holds all of it
        self.lock: threading.Lock = threading.Lock()  # around what decides by a key whether a task is new
        self._last = 0.0  # the time of the last task, so that a clock set back does not put later tasks before earlier ones
        self._leaving: Tasks | None = None
        self._closing: asyncio.Task[None] | None = None
        last = 0
        if self.store is not None:
            try:
                last = self._load(self.store)
            except BaseException:
                self.store.close()
                raise
            _open[str(self.store.path)] = self
        self.keys: itertools.count[int] = itertools.count(last + 1)

    def _load(self, store: Store) -> int:
        """Take over what the store holds; returns its last key."""
        runner = self.runner
        last = store.last_key()
        found = load(store, runner.queue, runner.writer, self.config, self.clock(), host=socket.gethostname())
        for key, links in found.links.items():
            runner.edges[key] = dict(map(tuple, links))
        for entry in found.entries:
            options = entry.options
            runner.series += options.recurrence is not None
            if options.name is not None:
                runner.names[options.name] = entry
            if options.key is not None:
                runner.keys[options.key] = entry
            for name, _ in options.resources:
                runner.room.declare(name)
        runner.missing = found.missing
        runner.adoptees = {key: (runner.queue.entries[key], started) for key, started in found.running.items()}
        runner.restore()
        return last

    @classmethod
    def of(cls, path: str) -> "SchedulerCore | None":
        """Who has the store at this path open in this process."""
        return _open.get(path)

    # -- where it lives

    def bind(self) -> None:
        """Live on the running loop, if one runs here and this is the first use."""
        if self.runner.home is None:
            with contextlib.suppress(RuntimeError):  # none runs here: the first use on one comes later
                self.runner.bind(Home.current())

    def bind_background(self) -> None:
        """Live on the loop in a thread of its own."""
        home = Home.background()
        home.post(self.runner.bind, home)
        self.runner.home = home

    @property
    def home(self) -> Home:
        """The loop it lives on; the running one, if it has not been used yet."""
        if self.runner.home is None:
            self.runner.bind(Home.current())
        home = self.runner.home
        assert home is not None  # noqa: S101 - for the type checker
        return home

    @property
    def here(self) -> bool:
        """Whether the caller may touch the state."""
        home = self.runner.home
        return home is None or home.here

    def act(self, action: Callable[[Entry], object], entry: Entry) -> None:
        """Do it now, on the home loop; soon, from another thread."""
        if self.here:
            action(entry)
        else:
            self.home.post(action, entry)

    def do(self, action: Callable[[], object]) -> None:
        """The same for the queue as a whole. What the next kernel is to know of it is on disk already."""

        def act() -> None:
            action()
            self.runner.emit(TaskEventKind.CHANGED)
            self.runner.want()

        if self.here:
            act()
        else:
            self.home.post(act)

    def check_open(self) -> None:
        """Raise Closed if it is."""
        if self.runner.closed:
            raise Closed("this scheduler is closed", hint="make a new one; TaskScheduler(store=…) goes on with what a store holds")

    def stamp(self) -> float:
        """The wall clock, but never earlier than for the task before."""
        reading = time.time() if self.clock is system_now else self.clock().wall
        self._last = max(self._last, reading)
        return self._last

    # -- finding

    def find(self, key: str) -> Entry | None:
        """A task by id or name; of several with one name the latest. None if nothing is known of it. Raises StoreCorrupt for a bad row."""
        runner = self.runner
        number = key.removeprefix(runner.prefix)
        if number != key and number.isdecimal():
            return self.find_number(int(number))
        if key in runner.names:
            return runner.names[key]
        return self._stored("name", key)

    def find_number(self, number: int) -> Entry | None:
        """A task by the number in its id."""
        runner = self.runner
        found = runner.queue.entries.get(number) or runner.finished.get(number)
        if found is None and self.store is not None and not runner.closed:
            found = lookup(self.store, number, f"{runner.prefix}{number}")
        return found

    def find_key(self, key: str) -> Entry | None:
        """The latest task that was scheduled with this key."""
        return self.runner.keys.get(key) or self._stored("unique_key", key)

    def _stored(self, column: str, value: str) -> Entry | None:
        if self.store is None or self.runner.closed:
            return None
        [(number,)] = self.store.rows(f"SELECT max(key) FROM tasks WHERE {column} = ?", stored_text(value))  # noqa: S608 - our own names
        return None if number is None else self.find_number(number)

    # -- one task

    def hold(self, entry: Entry) -> None:
        """See TaskHandle.hold."""
        if self.runner.queue.hold(entry):
            self._changed(entry)

    def release(self, entry: Entry) -> None:
        """See TaskHandle.release."""
        self.runner.missing.pop(entry.key, None)
        if self.runner.queue.release(entry, self.clock()):
            self._changed(entry)

    def _changed(self, entry: Entry, **columns: Any) -> None:
        self.runner.writer.change(entry, **columns)
        self.runner.writer.flush()
        self.runner.emit(TaskEventKind.CHANGED, entry)
        self.runner.want()

    def reprioritise(self, entry: Entry, priority: int) -> None:
        """See TaskHandle.reprioritise."""

        def act(entry: Entry) -> None:
            self.runner.queue.reprioritise(entry, priority, self.clock())
            self._changed(entry, priority=priority)

        self.act(act, entry)

    def cancel_all(self, group: str | None) -> None:
        """Cancel all that have not ended, or those of one group; see TaskScheduler.cancel."""
        runner = self.runner
        for entry in [e for e in runner.queue if group is None or e.options.group == group]:
            if entry.key in runner.queue.entries:
                runner.cancel(entry, flush=False)
        runner.writer.flush()

    def check_secrets(self, entry: Entry) -> None:
        """Take secrets that were not stored from the environment. Raises ValueError if they are still not there."""
        if entry.key in self.runner.missing:
            options, missing = decode(encode(entry.options), environ)
            if missing:
                raise ValueError(f"{entry.label} needs {', '.join(missing)}, which is not stored; set it in os.environ first")
            entry.options = options

    def depend(self, entry: Entry, other: Entry, condition: Condition) -> None:
        """See TaskHandle.depend."""
        for skipped in self.runner.queue.depend(entry, other, condition, self.clock()):
            self.runner.settled(skipped, other)
        self.runner.edges.setdefault(entry.key, {})[other.key] = condition.value
        after = [list(link) for link in self.runner.edges[entry.key].items()]
        self._changed(entry, after=self.runner.writer.json(after))

    @contextlib.contextmanager
    def watching(self, task_id: str, callback: Callable[[], object]) -> Iterator[None]:
        """Have it called at every event of one task."""

        def told(event: SchedulerEvent) -> None:
            if event.task_id == task_id:
                callback()

        stop = self.runner.subscribers.add(told)
        try:
            yield
        finally:
            stop()

    # -- ends

    @hops
    async def join(self, *, status: Callable[[], SchedulerStatus] | None) -> None:
        """See TaskScheduler.join; with ``status`` a bar is shown."""
        self.check_open()
        runner = self.runner
        if runner.settled_all:
            return None
        runner.want()  # the look whether it can ever end
        if status is None:
            return await runner.joiners.wait()
        with Progress(runner, status) as bar:
            while True:
                try:
                    async with asyncio.timeout(bar.INTERVAL) as clock:
                        return await runner.joiners.wait()
                except TimeoutError:
                    if not clock.expired():
                        raise
                    bar.update()

    async def aclose(self) -> None:
        """See TaskScheduler.aclose. On the home loop. It goes on when a waiting caller is cancelled, and all callers wait for one end."""
        if self._closing is None:
            self._closing = Tasks(self.home).start(self._close(), name="close the scheduler")
        await asyncio.wait({self._closing})
        self._closing.result()

    async def _close(self) -> None:
        if self.runner.closed:  # nobody held it any more
            return
        try:
            await self.runner.close()
            if self.runner.recorder is not None:
                await self.runner.recorder.aclose()
        finally:
            if self.store is not None:
                self.store.close()

    def watch(self, face: object) -> None:
        """Notice when this face is gone. Nothing that does so holds the core: an error in it holds the frames that hold the face."""
        weakref.finalize(face, _abandoned, weakref.ref(self), self.store).atexit = False

    def abandoned(self) -> None:
        """The last face is gone: what is under way goes on, then the store is let go of. On whatever thread the collector runs."""
        if self.store is None or self.runner.closed:
            return
        try:
            home = self.runner.home
            if home is not None:
                home.post(self._leave_at_rest)
                return
        except ProcessError:  # its loop is closed
            pass
        self.runner.closed = True
        self.store.close()

    def _leave_at_rest(self) -> None:
        self.runner.at_rest = self._leave
        self.runner.want()

    def _leave(self) -> None:
        self._leaving = Tasks(self.home)
        self._leaving.start(self.aclose(), name="the end of a scheduler that nobody has any more")

    def taken_up(self) -> None:
        """Somebody has a face of it again."""
        self.runner.at_rest = None


def _abandoned(core: "weakref.ref[SchedulerCore]", store: Store | None) -> None:
    inside = core()
    if inside is not None:
        inside.abandoned()
    elif store is not None:  # all of it was collected at once: nothing ran
        store.close()
