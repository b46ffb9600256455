"""The seam between *when* and *where*: a scheduler decides when a task runs, a backend runs it.

::

    TaskScheduler ── start(job, report) ──► Backend ──► a process, a pool's worker, a cluster
                  ── cancel(job.id) ──────►    │
                  ◄── report(Started) ─────────┤   at most once
                  ◄── report(Ended) ───────────┘   exactly once, whatever happens

A backend that passes ``check_backend`` (nbprocs.testing.conformance) works with the scheduler.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from nbprocs.engine.home import Home

__all__ = ["Backend", "Ended", "Job", "Report", "Started"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt to run one task.

    >>> Job(id="k-1.1", task_id="k-1", name="list", command="ls").timeout is None
    True
    """

    id: str  # of the attempt
    task_id: str
    name: str
    command: str | Callable[..., Any]
    args: tuple[Any, ...] = ()
    working_dir: str | None = None
    env_vars: dict[str, str | None] = field(default_factory=dict)
    timeout: float | None = None  # seconds; the backend ends the whole tree after it
    shell: bool = False
    named: bool = False  # the name is the task's own, not its command line


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The job runs now.

    >>> Started(pid=42, host="here").pid
    42
    """

    pid: int | None = None
    host: str = ""
    process: Any = None  # what has pause(), resume(), stdout and stderr, where there is such a thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The job has ended; nothing of it runs any more.

    >>> Ended(result=7).error is None
    True
    """

    result: Any = None  # a ProcessResult, or what the callable returned
    error: BaseException | None = None  # why it failed; None for success
    stopped: bool = False  # it ended because of cancel()


Report = Callable[[Started | Ended], None]


class Backend(Protocol):
    """What runs jobs. All methods are called on the scheduler's home loop, and reports are made on it.

    >>> from nbprocs.scheduler import LocalBackend
    >>> LocalBackend().name
    'local'
    """

    name: str

    def bind(self, home: Home) -> None:
        """Called once before anything else, with the scheduler's home."""

    def start(self, job: Job, report: Report) -> None:
        """Start a job; returns at once and never raises. ``report`` gets at most one Started, then exactly one Ended."""

    def cancel(self, job_id: str, *, grace: float) -> None:
        """End a job that was started, its tree and all; returns at once. Idempotent, and nothing for one that has ended."""

    async def aclose(self) -> None:
        """End everything; on return nothing runs. Ended has been reported for every job."""
