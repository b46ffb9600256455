"""What can go wrong with a run history."""

from nbprocs.errors import ProcessError

__all__ = ["NotRerunnable", "RunsError", "RunsTooNew"]


class RunsError(ProcessError):
    """A run history can't be made, read or written. Recording itself never raises it into a process's life: that is logged."""


class IsQueue(RunsError):
    """The file is a scheduler's store. For inner use: such a file is read another way."""


class RunsTooNew(RunsError):
    """The file was written by a newer nbprocs. It is left unchanged."""


class NotRerunnable(RunsError):
    """A run can't be started again from what was kept of it: a secret was masked, or the command was too long."""
