"""The parent's side of one Python worker: its sockets, its page, what it was told already."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nbprocs.engine.channel import Channel, SharedPage
from nbprocs.model import ProcessConfig
from nbprocs.pool import worker_main as child
from nbprocs.pool.codec import Codec
from nbprocs.pool.connection import ConnectionEvents, Sent
from nbprocs.pool.dispatch import DEEPEST
from nbprocs.pool.following import KernelFollower
from nbprocs.pool.model import PythonWorker
from nbprocs.pool.wire import Decoder, frame
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess

__all__ = ["PythonConnection"]

# The child's sys.modules gets worker_main.py under a private name, and its __main__ stays empty, as it is in a fresh interpreter.
_BOOT = (
    "import sys;from importlib.util import module_from_spec as m,spec_from_file_location as f;"
    "p,*a=sys.argv[1:];s=f('nbprocs_worker',p);w=m(s);sys.modules[s.name]=w;s.loader.exec_module(w);sys.argv[1:]=[];w.main(*map(int,a))"
)
_OUTPUT = 1 << 20  # bytes of a worker's output kept in memory, a stream


class PythonConnection:
    """The parent's end of what nbprocs.pool.worker_main draws."""

    deepest = DEEPEST
    tells_begin = True

    def __init__(self, kind: PythonWorker, codec: Codec, events: ConnectionEvents, *, setup: bytes | None, most: int) -> None:
        """``setup`` is the pickled (initialiser, arguments), or None; ``most`` the number of workers that share the CPUs."""
        self._most = most
        self._kind = kind
        self._codec = codec
        self._events = events
        self._setup = setup
        self._known: set[int] = set()
        self._settings = KernelFollower(follow=kind.follow)
        self._data: Channel | None = None
        self._control: Channel | None = None
        self._page: SharedPage | None = None
        self._last = (0, 0.0)  # what the page said when it was closed

    async def open(self, manager: ProcessManager, name: str) -> ManagedProcess:
        """Start the interpreter and send it what it needs; it says READY (or BROKEN) when it has done so."""
        loop, events = manager_core(manager).home.loop, self._events
        try:
            self._data = Channel(loop, Decoder(), on_messages=events.answers, on_end=events.hung_up)
            self._control = Channel(loop, Decoder(4096), on_messages=self._controlled, on_end=_nothing)
            self._page = SharedPage()
            ends = (self._data.child_fd, self._control.child_fd, self._page.child_fd)
            config = ProcessConfig(
                command=sys.executable,
                args=("-P", "-c", _BOOT, str(Path(child.__file__)), *map(str, ends)),
                env_vars=self._kind.environment(self._most),
                working_dir=self._kind.working_dir,
                name=name,
                **{"output_limit": _OUTPUT, **(self._kind.process or {})},  # type: ignore[dict-item]  # a mapping since it was made
            )
            speak = self._kind.output != "log"
            options = {**self._settings.news(), "preload": list(self._kind.preload), "initializer": self._setup, "speak": speak}
            process = await manager.spawn(config, inherit=ends, wait=False)
        except BaseException:
            self.close()
            raise
        for end in (self._data, self._control, self._page):
            end.release_child()
        self._data.send(frame([(child.SETUP, options)]))
        return process

    def _controlled(self, messages: list[Any]) -> None:
        for kind, payload in messages:
            if kind == child.PING:
                self._events.pong()
            else:
                self._events.returned(payload)

    # -- tasks

    def dispatch(self, sent: Iterable[Sent]) -> None:
        """One write for all of them, except that a task with large buffers has a frame of its own."""
        if self._data is None:
            return
        messages: list[tuple[Any, ...]] = self._news()
        for number, task in sent:
            function = task.function
            if function is not None and function.number not in self._known:
                self._known.add(function.number)
                messages.append((child.DEFINE, function.number, function.blob))
            key = 0 if function is None else function.number
            if task.star is None:
                message: tuple[Any, ...] = (child.TASK, number, key, task.payload)
            else:
                message = (child.CHUNK, number, key, task.payload, task.star)
            if task.buffers:
                if messages:
                    self._data.send(frame(messages))
                    messages = []
                self._data.send(frame([message], task.buffers))
            else:
                messages.append(message)
        if messages:
            self._data.send(frame(messages))

    def _news(self) -> list[tuple[Any, ...]]:
        """What changed here since the last time: settings, and functions that nobody can call any more."""
        found: list[tuple[Any, ...]] = []
        if settings := self._settings.news():
            found.append((child.SETTINGS, settings))
        if self._codec.retired and (gone := self._known & self._codec.retired):
            self._known -= gone
            found += [(child.FORGET, number) for number in gone]
        return found

    def withdraw(self, numbers: list[int]) -> None:
        """Over the control socket: its thread answers while the main thread computes."""
        if self._control is not None:
            self._control.send(frame((child.WITHDRAW, numbers)))

    def claimed(self) -> tuple[int, float]:
        """From the shared page. The worker writes the time first: at worst an older number comes with a newer time, never the reverse."""
        if self._page is None:
            return self._last
        number = self._page.words[child.CLAIMED]
        return number, self._page.words[child.STARTED] * 1e-9

    # -- life

    def ping(self) -> None:
        """A stopped worker does not read: then what is unsent stays one ping."""
        if self._control is not None and not self._control.backlog:
            self._control.send(frame((child.PING, 0)))

    def drain(self) -> None:
        """Read both sockets until nothing is there."""
        for channel in (self._data, self._control):
            if channel is not None and not channel.closed:
                channel.read()

    def quit(self) -> None:
        """It ends like any program, its exit handlers included."""
        if self._data is not None:
            self._data.send(frame([(child.QUIT,)]))

    def close(self) -> None:
        """Sockets and page."""
        self._last = self.claimed()
        if self._page is not None:
            self._page.close()
            self._page = None
        for channel in (self._data, self._control):
            if channel is not None:
                channel.close()


def _nothing() -> None:
    """The data socket tells."""
