"""When, in which order and how often commands run; a queue that survives the kernel.

::

    scheduler                  the public face: nothing but what a user calls
    batch, intake, handle      what is asked for, checked; what is handed back
    core                       the inside that face and handles share
    runner, resume             acts: starts, hears ends, waits for times; what a new kernel finds
    queue    writer, store     decides, pure: which task may start now    |    what is on disk, and in which order
    backend                    the seam to where tasks run: local, calls (a pool), nbprocs.cluster

Each module imports only from below; import-linter holds it. The queue knows no clock, the runner no face, the store no task.
"""

from nbprocs.scheduler.backend import Adopting, Backend, Capacity, Elastic, Ended, Fenced, Job, JobProcess, Shape, Started
from nbprocs.scheduler.calls import PoolBackend
from nbprocs.scheduler.errors import (
    DependencyFailed,
    Halted,
    StoreCorrupt,
    StoreError,
    StoreInUse,
    StoreTooNew,
    TaskCancelled,
    TaskInterrupted,
)
from nbprocs.scheduler.handle import TaskHandle
from nbprocs.scheduler.local import LocalBackend
from nbprocs.scheduler.model import (
    After,
    Attempt,
    Condition,
    Eta,
    GroupStatus,
    Halt,
    Interrupted,
    Misfire,
    Now,
    ResourceStatus,
    ScheduledTask,
    SchedulerConfig,
    SchedulerEvent,
    SchedulerStatus,
    TaskEventKind,
    TaskState,
)
from nbprocs.scheduler.scheduler import TaskScheduler

__all__ = [
    "Adopting",
    "After",
    "Attempt",
    "Backend",
    "Capacity",
    "Condition",
    "DependencyFailed",
    "Elastic",
    "Ended",
    "Eta",
    "Fenced",
    "GroupStatus",
    "Halt",
    "Halted",
    "Interrupted",
    "Job",
    "JobProcess",
    "LocalBackend",
    "Misfire",
    "Now",
    "PoolBackend",
    "ResourceStatus",
    "ScheduledTask",
    "SchedulerConfig",
    "SchedulerEvent",
    "SchedulerStatus",
    "Shape",
    "Started",
    "StoreCorrupt",
    "StoreError",
    "StoreInUse",
    "StoreTooNew",
    "TaskCancelled",
    "TaskEventKind",
    "TaskHandle",
    "TaskInterrupted",
    "TaskScheduler",
    "TaskState",
]
