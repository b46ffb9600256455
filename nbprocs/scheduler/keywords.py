"""The keywords of ``schedule()``, once: for type checkers, for help(), and for telling those of the queue from those of the process."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from nbprocs.config import CommonOptions, Data, ProcessConfig, Word
from nbprocs.scheduler.model import Interrupted, Misfire

__all__ = ["OF_THE_PLACE", "OF_THE_PROCESS", "TaskKeywords"]


class TaskKeywords(CommonOptions, total=False):
    """What ``schedule()`` takes beside the command and its arguments; the options of its process are those of ProcessConfig."""

    priority: int
    max_retries: int | None
    timeout: float | str | timedelta | None
    after: Any
    delay: float | timedelta | None
    at: datetime | str | float | None
    every: float | timedelta | None
    cron: str | None
    timezone: str | None
    repeat: int | None
    misfire: Misfire | str | None
    group: str | None
    resources: Mapping[str, float] | str | None
    memory_gate: float | str | None
    files: Mapping[str, Word] | Iterable[Word]
    name: str | None
    key: str | None
    if_exists: str
    estimated_duration: float | None
    hold: bool
    on_interrupted: Interrupted | str | None
    input: Data


OF_THE_PROCESS = frozenset(f.name for f in fields(ProcessConfig)) - {"command", "args", "timeout", "name", "group"}
OF_THE_PLACE = frozenset({"priority", "after", "delay", "at", "hold", "if_exists"})  # where it goes in the queue; not kept
