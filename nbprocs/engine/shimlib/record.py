"""The record of a detached process: one JSON file, replaced whole at each change, so that a reader never sees half of one."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["NAME", "SEEN", "VERSION", "Record", "boot_id", "looked_at"]

NAME = "record.json"
SEEN = "seen"  # an empty file, as old as the last look at the process
VERSION = 1


def boot_id() -> str:
    """What tells one boot of this machine from another; empty where the system does not say."""
    if sys.platform != "linux":
        return ""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def looked_at(folder: str | os.PathLike[str]) -> None:
    """Note that somebody looks at the process now; nothing where that can't be written."""
    try:
        os.close(os.open(os.path.join(folder, SEEN), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.utime(os.path.join(folder, SEEN))
    except OSError:
        return


class Record:
    """Writes it. What can't be written at the moment is kept, and written with the next change."""

    def __init__(self, folder: str, about: dict[str, Any]) -> None:
        self.fields: dict[str, Any] = {"v": VERSION, "boot": boot_id(), **about}
        self.error: str = ""
        self._path = os.path.join(folder, NAME)

    def write(self, **changes: Any) -> None:
        """Change fields, on disk if that can be."""
        import json  # noqa: PLC0415 - only a detached process has a record: `nbprocs.ProcessManager` stays light

        self.fields.update(changes)
        draft = f"{self._path}.new"
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(json.dumps(self.fields).encode("ascii", "backslashreplace"))
            os.replace(draft, self._path)
        except OSError as error:
            self.error = f"the record can't be written: {error.strerror}"
        else:
            self.error = ""
