"""TaskHandle: what schedule() returns. Two words of memory beside the task itself; a million of them are no burden."""

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any, Generic, Self, TypeVar, cast

from nbprocs import checks
from nbprocs.display import Displayable, Html, text
from nbprocs.engine.home import hops
from nbprocs.engine.waiting import Waiters
from nbprocs.errors import Closed, CommunicationError, tail_text
from nbprocs.model import ProcessResult, Stream
from nbprocs.redact import readable
from nbprocs.scheduler.backend import JobProcess
from nbprocs.scheduler.core import SchedulerCore
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.model import Attempt, Condition, ScheduledTask, TaskState
from nbprocs.scheduler.options import check_priority
from nbprocs.scheduler.reasons import reason
from nbprocs.scheduler.rerunning import rerun
from nbprocs.scheduler.views import snapshot

__all__ = ["TaskHandle"]

T = TypeVar("T")


class TaskHandle(Displayable, Generic[T]):
    r"""A scheduled task. Await it for its result; it can be awaited often, from any loop, and not awaited at all.

    ``await handle`` returns a ProcessResult (or what the function returned), and raises what the task ended with: ProcessFailed and its
    kind, ExecutionTimeout, StartupFailed, TaskCancelled, DependencyFailed, TaskInterrupted, or Closed. A series ends by its ``repeat`` or
    by ``cancel()``; ``next_result()`` waits for one run of it. Cancelling the await leaves the task alone.

    >>> async with TaskScheduler() as sch:
    ...     handle = sch.schedule("echo", "hello")
    ...     (await handle).text
    'hello\n'
    """

    __slots__ = ("_core", "_entry")

    def __init__(self, core: SchedulerCore, entry: Entry) -> None:
        self._core = core
        self._entry = entry

    # -- looking

    @property
    def id(self) -> str:
        """Unique among all tasks of all schedulers; the same in every kernel that opens the store."""
        return self._core.runner.task_id(self._entry)

    @property
    def name(self) -> str:
        """As given, or its command line, masked."""
        return self._entry.label

    @property
    def state(self) -> TaskState:
        """Where it is now."""
        return self._entry.state

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._entry.state.final

    @property
    def task(self) -> ScheduledTask:
        """A snapshot of all that was asked for."""
        return snapshot(self._core, self._entry)

    @property
    def result(self) -> Any:
        """Of the last attempt that ended: a ProcessResult, or what the function returned; None before."""
        return None if self._entry.outcome is None else self._entry.outcome.result

    @property
    def error(self) -> BaseException | None:
        """Why the last attempt failed, or why there was none; None before, and after a success."""
        return None if self._entry.outcome is None else self._entry.outcome.error

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All ended attempts, first to last (of a long series the last hundred)."""
        return () if self._entry.outcome is None else self._entry.outcome.attempts

    @property
    def process(self) -> JobProcess | None:
        """The process that runs now, a ManagedProcess on this machine; None while none does, and for a function."""
        run = self._entry.run
        return None if run is None or run.seen is None else run.seen.process

    def why(self) -> str:
        """In a sentence, why it does not run now."""
        return reason(self._entry, self._core.runner)

    def output(self, stream: Stream | str = Stream.STDOUT) -> bytes:
        """What the attempt under way, or else the last one, has written so far."""
        name = checks.member("stream", stream, Stream).value
        process = self.process
        if process is not None:
            log = process.stdout if name == "stdout" else process.stderr
            return log.getvalue()
        result = self.result
        return bytes(getattr(result, name)) if isinstance(result, ProcessResult) else b""

    def tail(self, lines: int = 10) -> str:
        """The last lines of its stderr, or of its stdout if that is empty."""
        checks.whole("lines", lines, least=1)
        return tail_text(self.output(Stream.STDERR) or self.output(Stream.STDOUT), lines=lines)

    async def lines(self, stream: Stream | str = Stream.STDOUT) -> AsyncIterator[str]:
        """The lines of the attempt under way as they come; of the next one if none is; of the last one if it has ended."""
        while self.process is None and not self.done:
            await self._change()
        process = self.process
        if process is not None:
            async for line in process.lines(stream):
                yield line
        else:
            for row in self.output(stream).decode("utf-8", "replace").splitlines():
                yield row

    @hops
    async def _change(self) -> None:
        """Wait until something happens to it."""
        changed = asyncio.Event()
        with self._core.watching(self.id, changed.set):
            if self.process is None and not self.done:
                await changed.wait()

    # -- waiting

    def __await__(self) -> Generator[Any, None, T]:
        return self._value().__await__()

    async def _value(self) -> T:
        await self.wait()
        return cast("T", self._given())

    def _given(self) -> Any:
        """The result, or the error raised. The same error object is raised each time: it is what happened."""
        outcome = self._entry.outcome
        if outcome is not None and outcome.error is not None:
            raise outcome.error
        return None if outcome is None else outcome.result

    async def wait(self, timeout: float | None = None) -> TaskState:
        """Wait until it has ended, however that is; never raises for how.

        Raises TimeoutError after ``timeout`` seconds and leaves the task alone; Closed when the scheduler is closed before.
        """
        async with asyncio.timeout(checks.seconds("timeout", timeout, zero=True)):
            await self._ended()
        return self._entry.state

    @hops
    async def _ended(self) -> None:
        runner = self._core.runner
        while not runner.told(self._entry):
            await self._woken()

    async def _woken(self) -> None:
        runner, entry = self._core.runner, self._entry
        if runner.closed:
            hint = "open its store again: TaskScheduler(store=…) goes on with it" if runner.writer.store else ""
            raise Closed(f"the scheduler was closed before {entry.label} ended", command=entry.display, hint=hint)
        if entry.waiters is None:
            entry.waiters = Waiters()
        await entry.waiters.wait()

    async def next_result(self) -> Any:
        """Of a series: the result of the run under way or the next one; raises its error. Of another task: as awaiting it."""
        await self._next()
        return self._given()

    @hops
    async def _next(self) -> None:
        if not self._core.runner.told(self._entry):
            await self._woken()

    # -- control

    def cancel(self) -> None:
        """End it: it never starts, or its whole tree is stopped. Awaiting it then raises TaskCancelled, once nothing of it is left."""
        self._core.act(self._core.runner.cancel, self._entry)

    def rerun(self) -> Self:
        """Have it run again, after it has ended in whatever way, with what was skipped behind it; returns the handle.

        It keeps its id, options and past attempts, and gets its retries anew. Awaiting it waits for the new end. Raises ValueError while
        it has not ended.
        """
        if not self.done:
            raise ValueError(f"{self.name} has not ended: it is {self.state}; only what has ended can run again")
        self._core.check_open()
        self._core.act(lambda entry: rerun(self._core, [entry]), self._entry)
        return self

    def reprioritise(self, priority: int) -> None:
        """Another priority; it takes effect at once if it is waiting. Raises TypeError or ValueError for what is no priority."""
        self._core.reprioritise(self._entry, check_priority(priority))

    def hold(self) -> None:
        """Keep it from starting until release(); nothing if it runs or has ended."""
        self._core.act(self._core.hold, self._entry)

    def release(self) -> None:
        """Undo hold(). Raises ValueError if it needs secrets from the environment that are still not there."""
        self._core.check_secrets(self._entry)
        self._core.act(self._core.release, self._entry)

    def _running(self, what: str) -> JobProcess | None:
        """The process that runs; None for a task that waits or has ended."""
        process, run = self.process, self._entry.run
        if process is None and run is not None:
            told = "it has no process of its own" if run.seen else "it has not started yet"
            raise CommunicationError(f"can't {what} {self.name}: {told}", command=self._entry.display, hint="cancel() ends it")
        return process

    def pause(self) -> None:
        """Stop it where it is: SIGSTOP for a running process, hold() for a waiting task. Its timeout goes on.

        Raises CommunicationError for one that is with its backend without a process: it has not started yet, or is a function.
        """
        if (process := self._running("pause")) is not None:
            process.pause()
        else:
            self.hold()

    def resume(self) -> None:
        """Undo pause()."""
        if (process := self._running("resume")) is not None:
            process.resume()
        elif self._entry.state is TaskState.HELD:
            self.release()

    def depend(self, other: "TaskHandle[Any]", on: Condition | str = Condition.SUCCESS) -> None:
        """Wait for one more task. Raises ValueError for a cycle, naming its members, and once this one runs. On the home loop only."""
        if not isinstance(other, TaskHandle):
            checks.refuse(TypeError, "other", "the handle of a task", other)
        if other._core is not self._core:  # noqa: SLF001 - of its own class
            raise ValueError(f"{other!r} belongs to another scheduler; await it instead")
        self._core.depend(self._entry, other._entry, Condition(checks.one_of("on", on, tuple(Condition))))  # noqa: SLF001 - as above

    # -- display

    def __repr__(self) -> str:
        entry = self._entry
        took = (
            f" in {self.attempts[-1].execution_time:.2f} s"
            if entry.state.final and self.attempts and self.attempts[-1].execution_time
            else ""
        )
        tries = f", attempt {len(self.attempts) + (entry.run is not None)}" if entry.retries else ""
        return f"<TaskHandle {self.id} {readable(entry.label)}: {entry.state}{took}{tries}>"

    def _html_(self) -> Html:
        waits = not self._entry.state.final and self._entry.state is not TaskState.RUNNING
        reason = Html("<div>{}</div>").format(text(self.why())) if waits else ""
        tail = Html("<pre>{}</pre>").format(text(shown, limit=4000)) if (shown := self.tail()) else ""
        return Html("<div><code>{}</code>{}{}</div>").format(text(repr(self)), reason, tail)
