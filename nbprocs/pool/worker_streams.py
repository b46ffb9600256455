"""The child side of what a worker prints, logs and warns, beside its own stdout and stderr. Loaded by worker_main, from this file.

::

    print ─► Tee ─┬─► the worker's stdout, stderr: its log in the kernel's manager
                  └─► Outbox ─ before the answer of the call, or 20 ms later ─► data socket ─► the cell that submitted
    logging.lastResort ─► Outbox: the record goes to the kernel's logger of the same name

It never waits for the kernel while a call runs: what the socket does not take stays here, and of one call at most 256 Ki characters.
"""

import io
import os
import sys
from _thread import LockType, allocate_lock, get_ident, start_new_thread
from collections import deque
from collections.abc import Callable
from select import select
from time import monotonic, sleep
from typing import Any

SOON = 0.02  # seconds; sooner, only whole blocks go out
BLOCK = 8 << 10  # characters in a message
MOST = 256 << 10  # characters of one call
STDOUT, STDERR, RECORD = range(3)

Send = Callable[[int, int, Any], None]


class Outbox:
    """What waits to be sent, in order: (number of the call, stream, text or log record)."""

    def __init__(self, send: Send, fd: int, current: Callable[[], int]) -> None:
        """``send`` is called by one thread at a time; ``current`` gives the number of the call, or -1 in a forked child."""
        self.wire: LockType = allocate_lock()  # also for the answers of the main thread
        self.interrupted: bool = False  # by SIGINT, while a message was half sent
        self._send = send
        self._fd = fd
        self._current = current
        self._pending: deque[tuple[int, int, Any]] = deque()
        self._holder = 0  # the thread that sends
        self._late = False  # a thread waits to send the rest
        self._sent_at = 0.0
        self._number = 0
        self._size = self._dropped = 0  # characters of this call

    def put(self, stream: int, item: Any, size: int) -> None:
        """Take it, and send it soon."""
        number = self._current()
        if number < 0:
            return
        if number != self._number:
            self._number, self._size, self._dropped = number, 0, 0
        self._size += size
        if self._size > MOST:
            self._dropped += size
            return
        self._pending.append((number, stream, item))
        if size >= BLOCK or ((stream == RECORD or item.endswith("\n")) and monotonic() - self._sent_at >= SOON):
            self.flush(wait=False)
        if self._pending and not self._late:
            self._late = True
            start_new_thread(self._flush_later, ())

    def end(self) -> None:
        """The call ends: everything goes out before its answer."""
        if self._dropped:
            self._pending.append((self._number, STDERR, f"… {self._dropped} more characters are in this worker's own log\n"))
            self._dropped = 0
        if self._pending:
            self.flush(wait=True)

    def _flush_later(self) -> None:
        while self._pending and self._current() >= 0:
            sleep(SOON)
            self.flush(wait=False)
        self._late = False

    @property
    def sending(self) -> bool:
        """True in the thread that sends: a signal handler of it must not tear a message."""
        return self._holder == get_ident()

    def flush(self, *, wait: bool) -> None:
        """Send what waits; with ``wait=False`` only as much as the socket takes."""
        if self.sending:  # a signal handler that prints
            return
        with self.wire:
            self._holder = get_ident()
            try:
                while self._pending and (wait or select((), (self._fd,), (), 0)[1]):
                    self._send(*self._block())
                self._sent_at = monotonic()
            except (OSError, ValueError):  # the parent is gone
                self._pending.clear()
            finally:
                self._holder = 0
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt

    def _block(self) -> tuple[int, int, Any]:
        """The next message: texts of one stream together."""
        pending = self._pending
        number, stream, item = pending.popleft()
        if stream == RECORD:
            return number, stream, item
        texts, size = [item], len(item)
        while pending and pending[0][:2] == (number, stream) and size < BLOCK:
            texts.append(pending.popleft()[2])
            size += len(texts[-1])
        return number, stream, "".join(texts)


class Tee(io.TextIOWrapper):
    """A standard stream whose text also goes into the outbox."""

    @classmethod
    def instead_of(cls, stream: Any, outbox: Outbox, number: int) -> "Tee | None":
        """Takes over the stream's buffer; None where there is none."""
        if stream is None:
            return None
        options = {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through")}
        tee = cls(stream.detach(), **options)
        tee.mode = "w"
        tee._outbox, tee._number = outbox, number
        return tee

    def write(self, text: str) -> int:
        """As the base's."""
        count = super().write(text)
        self._outbox.put(self._number, str(text), len(text))
        return count

    _outbox: Outbox
    _number: int
    mode: str


def tee(outbox: Outbox) -> None:
    """Let both standard streams pass through the outbox."""
    sys.stdout = sys.__stdout__ = Tee.instead_of(sys.stdout, outbox, STDOUT)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = Tee.instead_of(sys.stderr, outbox, STDERR)  # type: ignore[misc]


# -- logging


class Logging:
    """The parent's levels, and records that nobody in the worker handles: to the parent. Does nothing until something imports logging."""

    def __init__(self, outbox: "Outbox | None") -> None:
        self._outbox = outbox
        self._levels: dict[str, int] = {}
        self._disabled = 0
        if "logging" in sys.modules:
            self._arrived()
        else:
            sys.meta_path.insert(0, self)

    def set_levels(self, levels: dict[str, int], disabled: int) -> None:
        """By name, that of the root under an empty one; what was set before and is not any more is unset."""
        gone = dict.fromkeys(self._levels, 0)
        self._levels, self._disabled = levels, disabled
        if "logging" in sys.modules:
            self._apply({**gone, **levels})

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The import system asks: logging is loaded as always, and then made ours."""
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        found = next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, path, target)) is not None), None)
        if found is not None and found.loader is not None:
            load = found.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                self._arrived(module)

            found.loader.exec_module = exec_module  # type: ignore[method-assign]
        return found

    def _arrived(self, module: Any = None) -> None:
        logging: Any = module or sys.modules["logging"]
        self._apply(self._levels, logging)
        if self._outbox is not None:
            logging.lastResort = _forwarder(logging, self._outbox)

    def _apply(self, levels: dict[str, int], module: Any = None) -> None:
        logging = module or sys.modules["logging"]
        for name, level in levels.items():
            logging.getLogger(name or None).setLevel(level)
        logging.disable(self._disabled)


def _forwarder(logging: Any, outbox: Outbox) -> Any:
    class Forward(logging.Handler):  # type: ignore[misc]
        """Handles what no handler of the worker does."""

        def emit(self, record: Any) -> None:
            try:
                text = record.getMessage()
                trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else record.exc_text
                fields = (record.name, record.levelno, record.pathname, record.lineno, text, record.funcName)
                more = (record.created, record.threadName, record.process, trace, record.stack_info)
                outbox.put(RECORD, (*fields, *more), len(text) + 100)
            except Exception:  # noqa: BLE001 - as logging does with a message that can't be formatted
                self.handleError(record)

    return Forward(0)


# -- warnings


class _Kind:
    """A category of warnings by its name: nothing is imported for a filter."""

    def __init__(self, module: str, name: str) -> None:
        self.place = module, name

    def __subclasscheck__(self, kind: type) -> bool:
        return any((base.__module__, base.__qualname__) == self.place for base in kind.__mro__)


class _Pattern:
    """A regular expression that is compiled when it is first asked."""

    def __init__(self, text: str, flags: int) -> None:
        self._text, self._flags = text, flags

    def match(self, text: str) -> Any:
        """As the compiled one's."""
        import re  # noqa: PLC0415 - most workers never warn

        return re.compile(self._text, self._flags).match(text)


def set_filters(filters: list[Any]) -> None:
    """Those of the parent: (action, message, (module, name) of the category, module, line), patterns as (text, flags)."""
    import builtins  # noqa: PLC0415 - only here
    import warnings  # noqa: PLC0415 - only here

    def category(place: tuple[str, str]) -> Any:
        return getattr(builtins, place[1]) if place[0] == "builtins" else _Kind(*place)

    def pattern(found: Any) -> Any:
        return _Pattern(*found) if isinstance(found, tuple) else found

    warnings.resetwarnings()
    warnings.filters[:] = [(action, pattern(text), category(kind), pattern(module), line) for action, text, kind, module, line in filters]  # type: ignore[index]


def follow(folder: str | None, environment: dict[str, str | None]) -> None:
    """The parent's folder and changes of its environment. Raises OSError where there is no such folder any more."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if folder is not None:
        os.chdir(folder)
