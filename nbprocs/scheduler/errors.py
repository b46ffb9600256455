"""Errors of the scheduler, below ProcessError of the package's tree.

::

    ProcessError
     ├─ TaskCancelled      somebody cancelled the task: what awaiting it raises
     ├─ DependencyFailed   it never ran, because a task it waited for ended otherwise than it asked for
     ├─ TaskInterrupted    its kernel died while it ran, and the policy says not to run it again
     ├─ Halted             the queue stopped itself because too much failed
     └─ StoreError         the queue's database can't be used as it is; it has not been changed
         ├─ StoreInUse         … a live kernel has it open
         ├─ StoreCorrupt       … it is damaged, or no queue of ours
         └─ StoreTooNew        … a newer version of this package wrote it
"""

from nbprocs.errors import ProcessError

__all__ = [
    "DependencyFailed",
    "Halted",
    "StoreCorrupt",
    "StoreError",
    "StoreInUse",
    "StoreTooNew",
    "TaskCancelled",
    "TaskInterrupted",
]


class TaskCancelled(ProcessError):
    """The task was cancelled, before it started or while it ran; nothing of it runs any more."""


class DependencyFailed(ProcessError):
    """The task was skipped: what it waited for did not end as asked."""


class TaskInterrupted(ProcessError):
    """The kernel died while the task ran; what it did until then is not known."""


class Halted(ProcessError):
    """The halt policy stopped the queue; ``resume()`` goes on."""


class StoreError(ProcessError):
    """The database could not be read or written."""


class StoreInUse(StoreError):
    """Another scheduler that is alive has the database open."""


class StoreCorrupt(StoreError):
    """The file is damaged or is something else."""


class StoreTooNew(StoreError):
    """A newer version of the package wrote the file."""
