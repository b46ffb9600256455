"""What was said of the queue itself while it ran: paused, halted, other limits. A durable queue keeps it.

A limit that was changed by a call holds for the next scheduler of the store, too, unless its config says another number than the config
did when the call was made: then somebody has thought about it since.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nbprocs.scheduler.model import SchedulerConfig
from nbprocs.scheduler.queue import TaskQueue
from nbprocs.scheduler.room import Room
from nbprocs.scheduler.store import Store

__all__ = ["QueueSettings"]


class QueueSettings:
    """Names and values in the store. Without a store all of it does nothing."""

    def __init__(self, store: Store | None, config: SchedulerConfig) -> None:
        self._store = store
        self._configured: dict[str, Mapping[str, Any]] = {
            "limit": {"": config.max_concurrent_tasks},
            "group": config.groups,
            "resource": config.resources,
        }

    def keep(self, kind: str, name: str = "", value: Any = None) -> None:
        """On disk on return; None takes it back. Raises StoreError."""
        if self._store is not None:
            changed = None if value is None else json.dumps({"value": value, "config": self._config(kind, name)})
            self._store.batch((), (), {self.key(kind, name): changed})

    def keep_limit(self, kind: str, name: str, value: float | None) -> None:
        """As ``keep``, for what None is a value of its own."""
        self.keep(kind, name, [value])

    @staticmethod
    def key(kind: str, name: str = "") -> str:
        """Under which name the store keeps it: text that any name fits into."""
        return json.dumps([kind, name])

    def _config(self, kind: str, name: str) -> Any:
        return self._configured.get(kind, {}).get(name)

    def restore(self, queue: TaskQueue, room: Room) -> str | None:
        """Have all that still holds; returns why the queue was halted, if it was."""
        halted = None
        for kind, name, value in self.kept():
            if kind == "paused" and name:
                queue.pause_group(name, paused=True)
            elif kind == "paused":
                queue.paused = True
            elif kind == "halted":
                halted = str(value)
            elif kind == "limit":
                room.ask(value)
            elif kind == "group":
                queue.limit_group(name, value)
            elif kind == "resource":
                queue.set_resource(name, value or 0.0)
        return halted

    def kept(self) -> Iterator[tuple[str, str, Any]]:
        """Kind, name and value of all that still holds. What can't be read is left out."""
        for key, told in ({} if self._store is None else self._store.settings()).items():
            try:
                kind, name = json.loads(key)
                value, config = told["value"], told["config"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if kind not in self._configured:
                yield kind, name, value
            elif config == self._config(kind, name) and isinstance(value, list) and _is_limit(value):
                yield kind, name, value[0]


def _is_limit(value: list[Any]) -> bool:
    number = value[0] if len(value) == 1 else ""
    return number is None or (isinstance(number, (int, float)) and number >= 0)
