"""Ending a worker because of a task that it runs: the task ran out of time, or was cancelled. On the home loop only.

Before it is killed it is asked to give back what it has not started: no other task may start in its last moment.
"""

import time
from collections.abc import Callable

from nbprocs.engine.home import Home
from nbprocs.errors import ExecutionTimeout
from nbprocs.pool.outcome import timed_out
from nbprocs.pool.task import Task
from nbprocs.pool.worker import WorkerHandle
from nbprocs.pool.workers import Workers

__all__ = ["Kills"]

_GRACE = 0.05  # seconds for an answer about withdrawn tasks before a worker is killed


class Kills:
    """Watches the time limits of tasks, and carries out what must be."""

    def __init__(self, home: Home, workers: Workers, *, spared: Callable[[WorkerHandle], None]) -> None:
        """``spared`` is told of a worker whose task ended before it was killed: it takes tasks again."""
        self._home = home
        self._workers = workers
        self._spared = spared

    def watch(self, worker: WorkerHandle) -> None:
        """Some task there has a timeout: look when the first could be over. One timer a worker, since only one task runs."""
        if worker.clock is None:
            limits = [task.timeout for task in worker.window.sent.values() if task.timeout is not None]
            if limits:
                worker.clock = self._home.loop.call_later(min(limits), self._look, worker)

    def _look(self, worker: WorkerHandle) -> None:
        worker.clock = None
        worker.connection.drain()
        if worker.gone:
            return
        now = time.monotonic()
        number, began = worker.connection.claimed()
        sent = worker.window.sent
        task = sent.get(number)
        if task is None or task.timeout is None:
            if task is None and any(t.timeout and now - t.started > t.timeout for t in sent.values()):
                self._workers.suspect(worker)  # it does not even start what it was sent
            self.watch(worker)
            return
        left = began + task.timeout - now
        if left > 0:
            worker.clock = self._home.loop.call_later(left + 0.001, self._look, worker)
        elif task not in worker.kill_for:
            process = worker.process
            error = timed_out(
                task.title,
                seconds=task.timeout,
                worker=worker.name,
                process_id=process.id if process else "",
                last_output=process.tail() if process else "",
            )
            self._kill(worker, task, error)

    def interrupt(self, worker: WorkerHandle, task: Task) -> None:
        """A task there was cancelled: take it back, or end the worker if it runs."""
        claimed, _ = worker.connection.claimed()
        for number, sent in worker.window.sent.items():
            if sent is task:
                if number <= claimed:
                    self._kill(worker, task, None)
                else:
                    worker.withdraw()
                return

    def _kill(self, worker: WorkerHandle, task: Task, error: BaseException | None) -> None:
        worker.kill_for[task] = error
        worker.window.open = False
        claimed, _ = worker.connection.claimed()
        if any(number > claimed for number in worker.window.sent):
            worker.withdraw()
            if worker.grace is None:
                worker.grace = self._home.loop.call_later(_GRACE, self.carry_out, worker)
        else:
            self.carry_out(worker)

    def carry_out(self, worker: WorkerHandle) -> None:
        """Kill it now, unless the task has ended in the meantime."""
        if worker.grace is not None:
            worker.grace.cancel()
            worker.grace = None
        worker.connection.drain()
        if worker.gone:
            return
        if any(task in worker.kill_for for task in worker.window.sent.values()):
            late = any(isinstance(error, ExecutionTimeout) for error in worker.kill_for.values())
            self._workers.end(worker, "a task ran out of time" if late else "a running task was cancelled")
        else:
            worker.kill_for.clear()
            if worker.staying:
                self._spared(worker)

    def returned(self, worker: WorkerHandle) -> None:
        """It gave tasks back, or had none to give."""
        if worker.kill_for:
            self.carry_out(worker)
        for task in [task for task in worker.window.sent.values() if task.dropped and task not in worker.kill_for]:
            self.interrupt(worker, task)
