"""When, in which order and how often commands run; a queue that survives the kernel.

Layers inside: model, errors < times, estimate < entry < options, lanes < limits < queue (all pure) < store < journal < outcome, with
backend beside it < runner, resume < handle, reasons < control, views, batch < scheduler. The queue knows no clock, the runner no public
face, the store no task.
"""

from nbprocs.scheduler.backend import Backend, Capacity, Elastic, Ended, Fenced, Job, JobProcess, Shape, Started
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
