"""Who is known to a manager, by id and by name, and how many may live at once. Plain state; nothing here starts or stops anything."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator

from nbprocs.checks import refuse, whole
from nbprocs.errors import Closed, NameInUse, ResourceExhausted, UnknownProcess
from nbprocs.processes.core import ProcessCore
from nbprocs.redact import readable

__all__ = ["Registry", "Slots", "tell_name"]

_SPILLED_KEPT = 64  # finished processes whose output is in a file: each holds a descriptor or two


class Slots:
    """How many processes may live at once. First come, first served; a freed slot is handed straight to the longest waiter."""

    def __init__(self, limit: int | None) -> None:
        self.limit: int | None = None if limit is None else whole("max_concurrent", limit, least=1)
        self.taken: int = 0
        self._waiters: dict[asyncio.Future[None], None] = {}  # in the order of arrival

    @property
    def waiting(self) -> int:
        """How many starts wait for a slot."""
        return len(self._waiters)

    async def take(self, *, wait: bool, what: str) -> None:
        """Have a slot: at once, or after waiting for one, or raise ResourceExhausted."""
        if self.limit is None or (self.taken < self.limit and not self._waiters):
            self.taken += 1
            return
        if not wait:
            raise ResourceExhausted(
                f"{what} was not started: {self.taken} processes are live, the most that max_concurrent={self.limit} allows",
                hint="pass wait=True to start it when one ends, stop one, or raise max_concurrent",
            )
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        except BaseException:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.free()  # handed to us at the very moment we were cancelled
            raise

    def free(self) -> None:
        """Give a slot back."""
        self.taken -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiters and (self.limit is None or self.taken < self.limit):
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            if not waiter.done():
                self.taken += 1
                waiter.set_result(None)

    def close(self) -> None:
        """Nobody will be served any more."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(
                    Closed("the manager was closed while this start waited for a slot", hint="create another ProcessManager")
                )


class Registry:
    """All live processes and a bounded history of ended ones."""

    def __init__(self, *, history: int, history_bytes: int) -> None:
        self._live: dict[str, ProcessCore] = {}
        self._ended: OrderedDict[str, ProcessCore] = OrderedDict()  # oldest end first
        self._names: dict[str, ProcessCore] = {}
        self._history = history
        self._history_bytes = history_bytes
        self._bytes = 0
        self._spilled = 0
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[ProcessCore]:
        """Of one moment, for readers on other threads: processes come and go while they look.

        The live ones are taken first, each list in one step of the interpreter: who ends in between is in both, and told once.
        """
        live = list(self._live.values())
        return iter(dict.fromkeys([*self._ended.values(), *live]))

    @property
    def live(self) -> tuple[ProcessCore, ...]:
        """Those that have not ended."""
        return tuple(self._live.values())

    def fresh_name(self, command: str, *, taken: Collection[str] = ()) -> str:
        """A name nobody has, and that is not ``taken`` elsewhere: the command's own, with a number."""
        words = readable(command).split(maxsplit=1)
        base = words[0].replace("\\", "/").rsplit("/", 1)[-1][:32] if words else "process"
        while (name := f"{base}-{next(self._numbers)}") in self._names or name in taken:
            pass
        return name

    def check_free(self, name: str) -> None:
        """Raise NameInUse if a live process has the name."""
        holder = self._names.get(name)
        if holder is not None and holder.status.live:
            raise NameInUse(
                f"a live process is called {name!r} already (pid {holder.pid})",
                process_id=holder.id,
                name=name,
                command=holder.config.display,
                hint=f"choose another name, or `await pm.terminate({name!r})` first; pm.restart and pm.replace keep the name",
            )

    def add(self, process: ProcessCore) -> None:
        """A process that is being started; its name must be free."""
        self._live[process.id] = process
        self._names[process.name] = process

    def discard(self, process: ProcessCore) -> None:
        """A start that failed: no trace stays."""
        process.forget_face()
        self._live.pop(process.id, None)
        if self._names.get(process.name) is process:
            del self._names[process.name]
            if process.predecessor is not None and process.predecessor.id in self._ended:
                self._names[process.name] = process.predecessor

    def rename(self, process: ProcessCore, name: str) -> None:
        """Give it another name, which must be free."""
        self.check_free(name)
        if self._names.get(process.name) is process:
            del self._names[process.name]
        process.name = name
        self._names[name] = process
        tell_name(process)

    def swap(self, old: ProcessCore, new: ProcessCore) -> None:
        """The new one takes the old one's name, and the other way round, in one step."""
        old.name, new.name = new.name, old.name
        self._names[old.name] = old
        self._names[new.name] = new
        tell_name(new)
        tell_name(old)

    def ended(self, process: ProcessCore, *, keep: Callable[[str], bool]) -> list[ProcessCore]:
        """Move it to the history; returns who fell out of the history for it. Nobody falls out for whom ``keep(id)`` says so."""
        del self._live[process.id]
        self._ended[process.id] = process
        self._bytes += _held(process)
        self._spilled += _spills(process)
        gone = []
        while self._too_much() and not (len(self._ended) == 1 and self._history > 0):  # the youngest stays, however much it wrote
            oldest = next((key for key in self._ended if not keep(key)), None)
            if oldest is None:
                break
            gone.append(self._forget(oldest))
        return gone

    def _too_much(self) -> bool:
        return len(self._ended) > self._history or self._bytes > self._history_bytes or self._spilled > _SPILLED_KEPT

    def _forget(self, process_id: str) -> ProcessCore:
        process = self._ended.pop(process_id)
        self._bytes -= _held(process)
        self._spilled -= _spills(process)
        if self._names.get(process.name) is process:
            del self._names[process.name]
        process.predecessor = None  # else a lineage would keep all its ancestors
        process.forget_face()
        return process

    def names(self) -> tuple[str, ...]:
        """All names that somebody has or had."""
        return tuple(self._names)

    def find(self, key: str) -> ProcessCore | None:
        """By id, else by name (the youngest of that name)."""
        return self._live.get(key) or self._ended.get(key) or self._names.get(key)

    def get(self, key: str) -> ProcessCore:
        """The same. Raises UnknownProcess, TypeError."""
        if not isinstance(key, str):
            refuse(TypeError, "key", "a name or an id", key)
        process = self.find(key)
        if process is None:
            import difflib  # noqa: PLC0415 - `import nbprocs` stays light

            known = ", ".join(sorted(self._names)[:10]) or "none"
            close = difflib.get_close_matches(str(key), self._names, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "pm.list() shows all"
            raise UnknownProcess(f"no process with the id or name {key!r}; known names: {known}", hint=hint)
        return process


def tell_name(process: ProcessCore) -> None:
    """Let who asks its shim see the name that it has now, too (ADR 0144)."""
    if process.child is not None:
        with contextlib.suppress(OSError):  # it has ended
            process.child.rename(process.name)


def _held(process: ProcessCore) -> int:
    return process.stdout.in_memory + process.stderr.in_memory + 2048


def _spills(process: ProcessCore) -> int:
    return bool(process.stdout.spilled) + bool(process.stderr.spilled)
