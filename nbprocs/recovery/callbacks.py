"""The user's callbacks: called for every error, never able to stop, slow down or crash a recovery.

A sync callback runs on the home loop and must be quick. An async one runs in a task of its own with a time limit. An error that a callback
itself causes (it spawns something that fails) calls it again, but only to a depth of three: the context variable goes along with
everything that a callback starts.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from typing import Any

from nbprocs.engine.home import Tasks, log
from nbprocs.recovery.journal import Journal
from nbprocs.recovery.model import Step, StepKind
from nbprocs.recovery.rules import matches

__all__ = ["Callbacks"]

DEEPEST = 3
_depth: contextvars.ContextVar[int] = contextvars.ContextVar("nbprocs_callback_depth", default=0)
Callback = Callable[[BaseException], object]


class Callbacks:
    """Who wants to hear of errors."""

    def __init__(self, *, tasks: Tasks, journal: Journal, timeout: float) -> None:
        """``timeout`` seconds are what an async callback gets."""
        self._tasks = tasks
        self._journal = journal
        self._timeout = timeout
        self._callbacks: dict[int, tuple[str, Callback]] = {}
        self._count = 0

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
        depth = _depth.get()
        if depth >= DEEPEST:
            self._note(name, process_id, f"not called: this error comes from a callback of a callback, {depth} deep")
            return
        for callback in wanted:
            context = contextvars.copy_context()
            context.run(_depth.set, depth + 1)
            context.run(self._call, callback, error, name, process_id)

    def _call(self, callback: Callback, error: BaseException, name: str, process_id: str) -> None:
        try:
            answer = callback(error)
        except Exception as problem:  # noqa: BLE001 - logged and in the record; a callback must not stop a recovery
            log.exception("an error callback failed for %s", name)
            self._note(name, process_id, f"raised {problem!r}")
            return
        if inspect.isawaitable(answer):
            task = self._tasks.start(self._finish(answer, name, process_id), name=f"error callback for {name}")
            if inspect.iscoroutine(answer):
                task.add_done_callback(lambda _: answer.close())  # a task cancelled before it began has not awaited it

    async def _finish(self, answer: Any, name: str, process_id: str) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await answer
        except TimeoutError as problem:
            log.error("an error callback for %s was cancelled after %g s: %r", name, self._timeout, problem)
            self._note(name, process_id, f"did not end within {self._timeout:g} s and was cancelled")
        except Exception as problem:  # noqa: BLE001 - as above
            log.exception("an error callback failed for %s", name)
            self._note(name, process_id, f"raised {problem!r}")

    def _note(self, name: str, process_id: str, what: str) -> None:
        self._journal.add(Step(kind=StepKind.CALLBACK, name=name, process_id=process_id, what=what, ok=False))
