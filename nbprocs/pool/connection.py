"""What the pool asks of a worker, whatever its kind, and what it hears from one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from nbprocs.engine.home import Tasks
from nbprocs.pool.task import Task
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess

__all__ = ["Connection", "ConnectionEvents", "MakeConnection", "Sent"]

Sent = tuple[int, Task]  # a task with its number in the worker's window


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEvents:
    """What is called when a worker says something; always on the home loop."""

    answers: Callable[[list[Any]], None]  # (kind, number, nanoseconds, payload[, buffers]) each, kinds as in nbprocs.pool.worker_main
    returned: Callable[[list[int]], None]  # these were withdrawn unstarted
    pong: Callable[[], None]  # it answered a ping
    spent: Callable[[str], None]  # it should get no more tasks, and why
    hung_up: Callable[[], None]  # it closed its socket, or sent what is no frame


class Connection(Protocol):
    """The way to one worker."""

    deepest: int  # tasks that it can hold at once
    tells_begin: bool  # claimed() is what the worker says; False: what was sent counts as begun

    async def open(self, manager: ProcessManager, name: str) -> ManagedProcess:
        """Start it. Raises what ``manager.spawn`` raises; nothing is left open then."""

    def dispatch(self, sent: Iterable[Sent]) -> None:
        """Hand tasks over, with their numbers in the window."""

    def withdraw(self, numbers: list[int]) -> None:
        """Ask for those back that have not started; ``returned`` tells."""

    def claimed(self) -> tuple[int, float]:
        """Number of the task that it started last, and when (time.monotonic()); known also when it is dead."""

    def ping(self) -> None:
        """Ask for a sign of life; ``pong`` tells."""

    def drain(self) -> None:
        """Deliver now what it has answered already."""

    def quit(self) -> None:
        """Ask it to leave by itself."""

    def close(self) -> None:
        """Give everything back. Idempotent. The process is somebody else's business."""


MakeConnection = Callable[[ConnectionEvents, Tasks], Connection]  # with the owner of the asyncio tasks that it may need
