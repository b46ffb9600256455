"""Values of the process pool: its configuration, its figures, and what is told about tasks and workers. No I/O, no loop, no clock."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from nbprocs import checks
from nbprocs.config import ProcessConfig
from nbprocs.engine.container import usable_cpus
from nbprocs.errors import ProcessError

__all__ = [
    "PoolConfig",
    "PoolMetrics",
    "PoolTaskState",
    "PythonWorker",
    "RemoteError",
    "RemoteTraceback",
    "WorkerInfo",
    "WorkerOutput",
    "WorkerState",
    "process_options",
]


class RemoteTraceback(Exception):
    """The traceback of an exception as it was formatted in the worker; the ``__cause__`` of the exception that arrives here."""

    def __init__(self, text: str) -> None:
        """Keep the text, which is shown as it is."""
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        """The traceback between quotes, so that it is told apart from the local one."""
        return f'\n"""\n{self.text.rstrip()}\n"""'


class RemoteError(ProcessError):
    """A task ended with an exception that can't be raised here as itself; ``kind`` is the name of its type.

    It does not pickle, or it is one that ends interpreters and loops (SystemExit, KeyboardInterrupt, CancelledError, StopIteration).
    """

    kind: str = ""


class PoolTaskState(StrEnum):
    """The life of one task. The last four are final."""

    QUEUED = "queued"  # also while it waits to be tried again
    RUNNING = "running"  # handed to a worker
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True when the task will not change any more."""
        return self not in (PoolTaskState.QUEUED, PoolTaskState.RUNNING)


class WorkerState(StrEnum):
    """The life of one worker.

    >>> WorkerState.LEAVING
    <WorkerState.LEAVING: 'leaving'>
    """

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    LEAVING = "leaving"  # gets no more tasks
    GONE = "gone"


_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


_WORKERS_OWN = (
    "encoding",
    "errors",
    "extra_groups",
    "group",
    "nice",
    "output_limit",
    "rlimits",
    "stop_scope",
    "stop_signal",
    "umask",
    "user",
)


def process_options(given: object) -> Mapping[str, Any]:
    """The options of ProcessConfig that a worker's process can have beside those that its pool sets. Raises as ProcessConfig does.

    Of a ProcessConfig those that differ from their defaults, whatever its command is.
    """
    found = given.changed() if isinstance(given, ProcessConfig) else dict(checks.mapping("process", given))
    for option in found:
        if option not in _WORKERS_OWN and not (isinstance(given, ProcessConfig) and option in ("command", "args")):
            checks.refuse(ValueError, "process", f"a ProcessConfig, or a mapping, with any of {', '.join(_WORKERS_OWN)}", option)
    config = ProcessConfig(command="worker", **{option: found[option] for option in _WORKERS_OWN if option in found})
    return MappingProxyType({option: value for option, value in config.changed().items() if option != "command"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonWorker:
    """The default kind of worker: a fresh Python interpreter that runs callables.

    ``output`` says where what it prints, logs and warns is shown: ``"cell"``, in the cell that submitted the call (log records go to the
    logger of the same name here); ``"log"``, only in the worker's own log, where panes find it; a function gets each WorkerOutput. The
    log has it in any case. Logging levels and warning filters are as they are here, and follow changes.

    >>> PythonWorker(preload=("json",), threads=1).threads
    1
    """

    initializer: Callable[..., object] | None = None  # called once in each new worker, before it counts as ready
    initargs: tuple[Any, ...] = ()
    preload: tuple[str, ...] = ()  # modules to import before it counts as ready, so that no task pays for them
    env_vars: Mapping[str, str | None] = field(default_factory=dict)  # a diff on the kernel's environment; None removes
    working_dir: str | None = None  # None: the kernel's, at the time of the worker's start
    output: Literal["cell", "log"] | Callable[["WorkerOutput"], object] = "cell"
    threads: int | Literal["share", "all"] = "share"  # of BLAS and OpenMP; "share": usable CPUs / max_processes; "all": their default
    follow: bool = False  # True: before each call the folder and the environment are made as they are in the kernel then
    process: ProcessConfig | Mapping[str, Any] | None = None  # how its process runs else: nice, rlimits, umask, user …

    def __post_init__(self) -> None:
        """Refuse what makes no worker: TypeError for a wrong type, ValueError for an impossible value."""
        if self.initializer is not None and not callable(self.initializer):
            checks.refuse(TypeError, "initializer", "a callable or None", self.initializer)
        arguments: object = self.initargs
        if not isinstance(arguments, Sequence) or isinstance(arguments, (str, bytes)):
            checks.refuse(TypeError, "initargs", "a tuple", arguments)
        given: object = self.preload
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            checks.refuse(TypeError, "preload", "a tuple of names of modules", given)
        preload = tuple(checks.name(f"preload[{i}]", module) for i, module in enumerate(given))
        if not callable(self.output):
            checks.one_of("output", self.output, ("cell", "log"))
        if not isinstance(self.threads, str):
            checks.whole("threads", self.threads, least=1)
        elif self.threads not in ("share", "all"):
            checks.refuse(ValueError, "threads", "a whole number, 1 or more, 'share' or 'all'", self.threads)
        checks.flag("follow", self.follow)
        place = ProcessConfig(command="python", env_vars=self.env_vars, working_dir=self.working_dir)
        known = {"initargs": tuple(arguments), "preload": preload, "env_vars": place.env_vars, "working_dir": place.working_dir}
        for name, value in {**known, "process": process_options(self.process)}.items():
            object.__setattr__(self, name, value)

    def environment(self, most: int) -> dict[str, str | None]:
        """``env_vars`` with the limits of numerical threads in a pool of ``most`` workers; what was set by hand stays."""
        if self.threads == "all":
            return dict(self.env_vars)
        count = str(max(1, usable_cpus() // most) if self.threads == "share" else self.threads)
        return {**{name: count for name in _THREAD_VARIABLES if name not in os.environ or self.threads != "share"}, **self.env_vars}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOutput:
    """Some text that a worker wrote: whole lines, as a rule.

    >>> WorkerOutput(worker="pool-1-worker-1", task=3, stream="stdout", text="hello").text
    'hello'
    """

    worker: str  # its name
    task: int  # number of the call, as in ``pool.frame()``; 0 for the initialiser, and after the call has ended
    stream: Literal["stdout", "stderr", "log"]
    text: str


def _number(*, zero: bool = False) -> Callable[[str, object], Any]:
    what = "0 or more seconds" if zero else "a positive number of seconds"
    return lambda name, value: checks.number(
        name, value, least=0 if zero else None, above=None if zero else 0, most=checks.LONGEST, what=what
    )


def _whole(least: int, *, none: bool = False, most: int | None = None) -> Callable[[str, object], Any]:
    return lambda name, value: None if none and value is None else checks.whole(name, value, least=least, most=most)


_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "min_processes": _whole(0),
    "max_processes": _whole(1, none=True),
    "initial_processes": _whole(0, none=True),
    "idle_timeout": checks.seconds,
    "health_check_interval": _number(),
    "task_timeout": checks.seconds,
    "max_retries": _whole(0),
    "retry_delay": _number(zero=True),
    "start_timeout": _number(),
    "max_tasks_per_worker": _whole(1, none=True),
    "max_worker_age": checks.seconds,
    "max_memory_growth": _whole(1, none=True),
    "history": _whole(0, most=10**9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """How many workers a pool has, when they come and go, and how tasks are treated.

    ``max_processes=None`` means the CPUs that this process may really use. Raises ValueError for what makes no pool.

    >>> PoolConfig(min_processes=1, max_processes=4).initial
    1
    """

    min_processes: int = 1  # never fewer, once started
    max_processes: int | None = None  # never more
    initial_processes: int | None = None  # started by start(); None: min_processes
    idle_timeout: float | None = 60.0  # seconds; a worker idle for longer leaves, down to the minimum; None: never
    health_check_interval: float = 5.0  # seconds between pings; a worker that misses one and is stopped or idle is replaced
    task_timeout: float | None = None  # seconds from the start of a task in its worker; past it the worker's tree is killed
    max_retries: int = 0  # tries after the first; 0, because only you know whether a task may run twice
    retry_delay: float = 0.1  # seconds before the second try; doubled for each further one, up to 30
    start_timeout: float = 30.0  # seconds for a new worker to become ready, its initialiser included
    max_tasks_per_worker: int | None = None  # a worker that has run so many is replaced
    max_worker_age: float | None = None  # seconds; an older one is replaced
    max_memory_growth: int | None = None  # bytes of resident memory above what it had when it was ready; past it it is replaced
    history: int = 10_000  # ended tasks that frame() remembers

    def __post_init__(self) -> None:
        """Refuse what makes no pool, before anything is started: TypeError for a wrong type, ValueError for an impossible value."""
        known = {name: check(name, getattr(self, name)) for name, check in _CHECKS.items()}
        if known["max_processes"] is None:
            known["max_processes"] = max(usable_cpus(), known["min_processes"], known["initial_processes"] or 1)
        most, least, first = known["max_processes"], known["min_processes"], known["initial_processes"]
        if least > most:
            checks.refuse(ValueError, "min_processes", f"from 0 to max_processes ({most})", least)
        if first is not None and not least <= first <= most:
            checks.refuse(ValueError, "initial_processes", f"from min_processes ({least}) to max_processes ({most})", first)
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @property
    def most(self) -> int:
        """max_processes, resolved."""
        return self.max_processes or 0

    @property
    def initial(self) -> int:
        """initial_processes, resolved."""
        return self.min_processes if self.initial_processes is None else self.initial_processes


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMetrics:
    """A snapshot of a pool's figures; every one is counted, none estimated.

    >>> async with ProcessPool() as pool:
    ...     _ = await pool.run(abs, -1)
    ...     figures = pool.metrics()
    >>> figures.total_tasks_completed, figures.total_processes_created
    (1, 1)
    """

    total_tasks_completed: int
    total_tasks_failed: int  # timed out ones included, cancelled ones not
    total_tasks_cancelled: int
    total_retries: int
    average_execution_time: float  # seconds in the worker, over all completed tasks; 0.0 before the first
    total_processes_created: int
    total_processes_destroyed: int
    total_processes_crashed: int  # of the destroyed ones those that we did not end
    current_active_processes: int  # ready to work, or working
    current_starting_processes: int
    current_busy_processes: int
    current_queued_tasks: int  # not yet handed to a worker
    current_running_tasks: int  # handed to a worker


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A snapshot of one worker of a pool; it never changes afterwards.

    >>> async with ProcessPool(PoolConfig(initial_processes=1)) as pool:
    ...     _ = await pool.run(abs, -1)
    ...     (worker,) = pool.workers()
    >>> worker.state, worker.done, worker.tasks
    (<WorkerState.IDLE: 'idle'>, 1, ())
    """

    name: str  # its process has the same in the pool's manager
    pid: int | None  # None while it is being started
    state: WorkerState
    created_at: datetime  # timezone-aware, as the others
    ready_at: datetime | None
    ended_at: datetime | None
    done: int  # tasks that it has answered
    tasks: tuple[str, ...]  # what it was given and has not answered, in order: it runs the first
    memory: int | None  # bytes resident at the last health check; None before the first
    reason: str | None  # why it leaves or left
