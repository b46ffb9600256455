"""Workers that are any program that answers a line with a line: a calculator, a filter, a model server."""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbprocs import checks
from nbprocs.engine.home import Tasks
from nbprocs.engine.table import read_row
from nbprocs.errors import CommunicationError, tail_text
from nbprocs.guard import text_of
from nbprocs.model import ProcessConfig
from nbprocs.pool.connection import ConnectionEvents, Sent
from nbprocs.pool.model import process_options
from nbprocs.pool.worker_main import ERROR, READY, VALUE
from nbprocs.processes.manager import ProcessManager, manager_core
from nbprocs.processes.process import ManagedProcess, process_core
from nbprocs.redact import mask_command

__all__ = ["CommandConnection", "CommandWorker", "End", "answer_in"]

End = int | str | re.Pattern[str] | Callable[[list[str]], bool]
_READ = 1 << 20


@dataclass(frozen=True, slots=True, init=False)
class CommandWorker:
    """A kind of worker: a program that reads questions from its stdin and writes the answers to its stdout.

    Args:
        argv: the program and its arguments.
        end: where an answer ends. A number: after so many lines (1 by default). A string: at the line that equals it, which is not part of
            the answer. A compiled pattern: with the line that matches it. A callable: once it says True of the lines so far.
        after: text sent behind each question, such as a command that prints the end line.
        errors: True makes a line on stderr, written while it answers, the error of that task; the worker is then replaced, for nobody
            knows where it stands.
        pty: a pseudo-terminal, for programs that keep their output back on a pipe.
        env_vars, working_dir: as in ProcessConfig.
        process: a ProcessConfig, or a mapping of its fields, for how the program runs else: nice, rlimits, umask, user …

    >>> CommandWorker("bc", "-lq")
    CommandWorker('bc -lq')
    >>> async with ProcessPool(worker=CommandWorker("bc", "-lq")) as pool:
    ...     answer = await pool.run("2 + 2")
    >>> answer
    '4'
    """

    argv: tuple[str, ...]
    end: End
    after: str
    errors: bool
    pty: bool
    env_vars: Mapping[str, str | None] = field(default_factory=dict)
    working_dir: str | None = None
    process: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        *argv: str,
        end: End = 1,
        after: str = "",
        errors: bool = False,
        pty: bool = False,
        env_vars: Mapping[str, str | None] | None = None,
        working_dir: str | None = None,
        process: ProcessConfig | Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ValueError without a program, or for an answer of no lines."""
        if not argv:
            raise ValueError('name a program, for example CommandWorker("bc", "-lq")')
        if isinstance(end, bool) or not (isinstance(end, (int, str, re.Pattern)) or callable(end)):
            checks.refuse(TypeError, "end", "a number of lines, a line, a pattern or a callable", end)
        if isinstance(end, int) and end < 1:
            raise ValueError("an answer has at least one line; give end=1 or more, a line, a pattern or a callable")
        checks.text("after", after)
        checks.flag("errors", errors)
        place = ProcessConfig(command=argv[0], args=argv[1:], pty=checks.flag("pty", pty), env_vars=env_vars or {}, working_dir=working_dir)
        known = {"argv": (place.command, *place.args), "end": end, "after": after, "errors": errors, "pty": pty}
        place_of = {"env_vars": place.env_vars, "working_dir": place.working_dir, "process": process_options(process)}
        for name, value in {**known, **place_of}.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Masked, as everywhere."""
        return f"CommandWorker({mask_command(self.argv)!r})"


def answer_in(lines: list[str], end: End) -> list[str] | None:
    """The answer, if these lines hold a whole one; else None. Pure.

    >>> answer_in(["1", "2", "ok"], "ok")
    ['1', '2']
    >>> answer_in(["1"], 2) is None
    True
    """
    if isinstance(end, int):
        return lines[:end] if len(lines) >= end else None
    if isinstance(end, str):
        return lines[: lines.index(end)] if end in lines else None
    for count in range(1, len(lines) + 1):
        if end.search(lines[count - 1]) if isinstance(end, re.Pattern) else end(lines[:count]):
            return lines[:count]
    return None


class CommandConnection:
    """The parent's side of one such worker: asks, and reads until the answer is whole. One question at a time."""

    deepest = 1
    tells_begin = False

    def __init__(self, kind: CommandWorker, events: ConnectionEvents, tasks: Tasks) -> None:
        self._kind = kind
        self._events = events
        self._tasks = tasks
        self._process: ManagedProcess | None = None
        self._claimed = (0, 0.0)

    async def open(self, manager: ProcessManager, name: str) -> ManagedProcess:
        """Start the program; it is ready at once: its first question waits in its stdin if need be."""
        kind = self._kind
        config = ProcessConfig(
            command=kind.argv[0],
            args=kind.argv[1:],
            env_vars=kind.env_vars,
            working_dir=kind.working_dir,
            stdin=True,
            pty=kind.pty,
            name=name,
            **kind.process,
        )
        self._process = await manager.spawn(config)
        manager_core(manager).home.post(self._events.answers, [(READY, 0, 0, self._process.pid)])
        return self._process

    def dispatch(self, sent: Iterable[Sent]) -> None:
        """One at most."""
        for number, task in sent:
            self._claimed = (number, time.monotonic())
            self._tasks.start(self._ask(number, task.payload), name=f"question {task.number}")

    async def _ask(self, number: int, question: str) -> None:
        began = time.monotonic_ns()
        try:
            answer: tuple[Any, ...] | None = await self._answer(question)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the user's ``end`` raises is this question's alone
            answer = (ERROR, error if issubclass(type(error), Exception) else CommunicationError(f"the end of an answer: {text_of(error)}"))
        if answer is not None:
            self._events.answers([(answer[0], number, time.monotonic_ns() - began, answer[1])])

    async def _answer(self, question: str) -> tuple[Any, ...] | None:
        """(VALUE, text), (ERROR, exception), or None when the program ended: its end is the pool's to judge."""
        process, kind = self._process, self._kind
        if process is None:
            return None
        out, err = process.stdout, process.stderr
        position, errors_from = out.end, err.end  # whatever it wrote unasked is no answer
        await process.send(f"{question}\n{kind.after}")
        text = b""
        while True:
            seen = out.end + err.end
            while position < out.end:
                position, data = out.read(position, _READ)
                position += len(data)
                text += data
            complete = text[: text.rfind(b"\n") + 1].decode("utf-8", "replace").replace("\r\n", "\n").split("\n")[:-1]
            answer = answer_in(complete, kind.end)
            if kind.errors and b"\n" in (wrote := err.read(errors_from, _READ)[1]):
                said = tail_text(wrote)
                self._events.spent("it answered with an error")
                return ERROR, CommunicationError(
                    f"{process.name} answered {question!r} with an error: {said}", name=process.name, last_output=said
                )
            if answer is not None:
                return VALUE, "\n".join(answer)
            if not process.status.live:
                return None
            await process_core(process).more_output(seen)

    def withdraw(self, numbers: list[int]) -> None:  # noqa: ARG002 - Connection's
        """It never holds more than the one that it answers."""
        self._events.returned([])

    def claimed(self) -> tuple[int, float]:
        """What is sent has started."""
        return self._claimed

    def ping(self) -> None:
        """There is no question that every program answers: alive and not stopped is all that can be known."""
        row = None if self._process is None or self._process.pid is None else read_row(self._process.pid)
        if row is None or row.state not in "Tt":
            self._events.pong()

    def drain(self) -> None:
        """Answers are taken as they come."""

    def quit(self) -> None:
        """End of input."""
        if self._process is not None:
            self._tasks.start(self._process.close_stdin(), name="end of input")

    def close(self) -> None:
        """Nothing of ours is open."""
