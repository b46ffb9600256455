"""Helpers for testing code that uses nbprocs: a clock that moves when told, waits that take no time, chaos, and leak checks.

Nothing in the package uses them; its own tests do. What a backend of the scheduler must do is checked by ``nbprocs.testing.conformance``.
"""

from nbprocs.policy.waits import instant_waits
from nbprocs.testing.chaos import Kill, chaos
from nbprocs.testing.clock import FakeClock
from nbprocs.testing.leaks import Snapshot, kept_futures, leaked, leaked_tasks, nothing_left, spare, warm

__all__ = [
    "FakeClock",
    "Kill",
    "Snapshot",
    "chaos",
    "instant_waits",
    "kept_futures",
    "leaked",
    "leaked_tasks",
    "nothing_left",
    "spare",
    "warm",
]
