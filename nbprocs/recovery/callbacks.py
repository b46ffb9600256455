"""The user's callbacks: called for every error, never able to stop, slow down or crash a recovery.

A sync callback runs on the home loop and must be quick. An async one runs in a task of its own with a time limit. An error that a callback
itself causes (it spawns something that fails) calls it again, but only to a depth of three: the context variable goes along with
everything that a callback starts. How deep a process is, is settled by who started it; its end is told from any context.
"""

import asyncio
import contextvars
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from nbprocs.engine.home import Tasks, log
from nbprocs.guard import attempt, awaitable, finish, repr_of, told
from nbprocs.recovery.journal import Journal
from nbprocs.recovery.model import Step, StepKind
from nbprocs.recovery.rules import matches
from nbprocs.redact import mask_text

__all__ = ["ErrorCallbacks"]

DEEPEST = 3
KEPT = 10_000  # processes whose depth is remembered
_depth: contextvars.ContextVar[int] = contextvars.ContextVar("nbprocs_callback_depth", default=0)
Callback = Callable[[BaseException], object]


class ErrorCallbacks:
    """Who wants to hear of errors."""

    def __init__(self, *, tasks: Tasks, journal: Journal, timeout: float) -> None:
        """``timeout`` seconds are what an async callback gets."""
        self._tasks = tasks
        self._journal = journal
        self._timeout = timeout
        self._callbacks: dict[int, tuple[str, Callback]] = {}
        self._count = 0
        self._depths: OrderedDict[str, int] = OrderedDict()

    def started(self, process_id: str) -> None:
        """A process has started, in the context of whoever wanted it."""
        self._depths[process_id] = _depth.get()
        if len(self._depths) > KEPT:
            self._depths.popitem(last=False)

    def add(self, callback: Callback, pattern: str) -> Callable[[], None]:
        """Call it for errors of names that fit; returns what ends it."""
        self._count += 1
        key = self._count
        self._callbacks = {**self._callbacks, key: (pattern, callback)}  # replaced, not changed: a call may be going through it

        def remove() -> None:
            self._callbacks = {k: v for k, v in self._callbacks.items() if k != key}

        return remove

    def tell(self, error: BaseException, *, name: str, process_id: str) -> None:
        """Call all whose pattern fits. Returns at once; raises nothing. On the home loop."""
        wanted = [callback for pattern, callback in self._callbacks.values() if matches(pattern, name)]
        if not wanted:
            return
        depth = self._depths.get(process_id, _depth.get())  # the latter for one that could not be started
        if depth >= DEEPEST:
            self._note(name, process_id, f"not called: this error comes from a callback of a callback, {depth} deep")
            return
        for callback in wanted:
            context = contextvars.copy_context()
            context.run(_depth.set, depth + 1)
            context.run(self._call, callback, error, name, process_id)

    def _call(self, callback: Callback, error: BaseException, name: str, process_id: str) -> None:
        answer, problem = attempt(callback, error)
        if problem is not None:
            self._failed(name, process_id, problem)
        elif awaitable(answer):
            task = self._tasks.start(self._finish(answer, name, process_id), name=f"error callback for {name}")
            if inspect.iscoroutine(answer):
                task.add_done_callback(lambda _: answer.close())  # a task cancelled before it began has not awaited it

    async def _finish(self, answer: Awaitable[object], name: str, process_id: str) -> None:
        began = asyncio.get_running_loop().time()
        _, problem = await finish(answer, timeout=self._timeout)
        if isinstance(problem, TimeoutError) and asyncio.get_running_loop().time() - began >= self._timeout:
            log.error("an error callback for %s was cancelled after %g s", name, self._timeout)
            self._note(name, process_id, f"did not end within {self._timeout:g} s and was cancelled")
        elif problem is not None:
            self._failed(name, process_id, problem)

    def _failed(self, name: str, process_id: str, problem: BaseException) -> None:
        told(f"an error callback for {name}", problem)
        self._note(name, process_id, f"raised {mask_text(repr_of(problem))}")

    def _note(self, name: str, process_id: str, what: str) -> None:
        self._journal.add(Step(kind=StepKind.CALLBACK, name=name, process_id=process_id, what=what, ok=False))
