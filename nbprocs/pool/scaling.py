"""When a pool starts workers, replaces them and lets them go. Pure functions of figures; the times are given, in seconds."""

from dataclasses import dataclass

from nbprocs.pool.model import PoolConfig

__all__ = ["Brake", "Health", "hung", "leave_reason", "missing"]

START_COST = 0.05  # seconds: what a new worker costs in start-up; less work than that is not worth one
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 30.0  # seconds between starts when workers die before they did anything
_KILLED = 1 / 16  # of a death
_FREE_DEATHS = 3  # in a row that are replaced at once


def missing(config: PoolConfig, *, target: int, workers: int, starting: int, queued: int, mean: float | None, waiting: float) -> int:
    """How many workers to start now.

    ``target`` is the least number wanted (the minimum, or what resize() asked for), ``workers`` those that work or start, ``mean`` the
    duration of a task (None if not known), ``waiting`` how long the oldest queued task has waited.

    >>> missing(PoolConfig(max_processes=4), target=1, workers=1, starting=0, queued=10, mean=1.0, waiting=0.0)
    3
    >>> missing(PoolConfig(max_processes=4), target=1, workers=1, starting=0, queued=10, mean=0.000_01, waiting=0.0)
    0
    """
    least = max(0, target - workers)
    room = config.most - workers
    if not queued or room <= least:
        return least
    if workers and waiting < START_COST and (mean is None or queued * mean / workers < START_COST):
        return least
    return max(least, min(room, queued - starting))


def leave_reason(
    config: PoolConfig,
    *,
    workers: int,
    target: int,
    idle_for: float | None,
    age: float,
    budget: int | None,
    growth: int,
    stale_code: bool,
) -> str | None:
    """Why a worker should leave as soon as it is free, or None. ``idle_for`` is None while it is busy.

    >>> leave_reason(PoolConfig(max_processes=2), workers=2, target=1, idle_for=61.0, age=70.0, budget=None, growth=0, stale_code=False)
    'idle for 61 s'
    """
    if stale_code:
        return "its code is out of date"
    if budget is not None and budget <= 0:
        return f"ran {config.max_tasks_per_worker} tasks"
    if config.max_worker_age is not None and age > config.max_worker_age:
        return f"{age:.3g} s old"
    if config.max_memory_growth is not None and growth > config.max_memory_growth:
        return f"its memory grew by {growth / 1e6:.3g} MB"
    if idle_for is not None and config.idle_timeout is not None and idle_for > config.idle_timeout and workers > target:
        return f"idle for {idle_for:.3g} s"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a health check sees of one worker."""

    pinged: bool  # a ping of the last check is unanswered
    busy: bool
    stopped: bool  # the system says that it is stopped (SIGSTOP, a debugger)
    paused: bool  # we were asked to pause it


def hung(health: Health) -> bool:
    """True for a worker to replace: it did not answer the last ping, and has no excuse.

    The thread that answers pings runs beside a task, so a busy worker answers, too, unless the task is in one long C call that
    holds the interpreter lock: that is work, and for its timeout to judge. A worker that was paused by its owner waits.
    """
    return health.pinged and not health.paused and (health.stopped or not health.busy)


class Brake:
    """Slows the replacement of workers that die before they did anything: a broken initialiser must not become a fork bomb."""

    __slots__ = ("deaths", "last_error")

    def __init__(self) -> None:
        self.deaths: float = 0.0  # in a row; those by a signal from outside count little
        self.last_error: BaseException | None = None

    def useful(self) -> None:
        """A worker became ready or finished a task."""
        self.deaths = 0.0
        self.last_error = None

    def died(self, error: BaseException | None, *, killed: bool = False) -> None:
        """One died without having been of use; ``killed`` if a signal ended it, which is seldom its set-up's fault."""
        self.deaths += _KILLED if killed else 1
        self.last_error = error or self.last_error

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start."""
        over = int(self.deaths) - _FREE_DEATHS
        return 0.0 if over < 0 else min(_LONGEST_DELAY, _FIRST_DELAY * 2**over)
