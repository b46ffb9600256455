"""What the scheduler asks the machine for: both clocks, free memory, GPUs. Reads only."""

import contextlib
import os
import time
from pathlib import Path

from nbprocs import checks
from nbprocs.config import Word
from nbprocs.scheduler.errors import StoreError
from nbprocs.scheduler.model import Now

__all__ = ["folder", "gpu_devices", "now", "whole_path"]

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> Now:
    """Both clocks. The elapsed one counts the time a machine sleeps where there is such a clock (Linux); on macOS and Windows it may not.

    >>> now().wall > 0
    True
    """
    return Now(time.time(), time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME))


_folder: str | None = None


def folder() -> str | None:
    """The kernel's folder now, one string for as long as it stays the same; None where it has been deleted."""
    global _folder  # noqa: PLW0603 - a million tasks share one string
    try:
        found = os.getcwd()  # noqa: PTH109 - a name that is not text is kept as it is
    except OSError:
        return None
    if found != _folder:
        _folder = found
    return _folder


def gpu_devices() -> tuple[str, ...]:
    """The GPUs that this kernel may use, as CUDA_VISIBLE_DEVICES names them: from that variable, else by the NVIDIA device files.

    Where none is found one is assumed, "0": code written for a GPU machine then runs here too, one task at a time.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = tuple(part.strip() for part in visible.split(",") if part.strip())
    else:
        numbers = sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit())
        named = tuple(map(str, numbers))
    return named or ("0",)


def whole_path(path: Word) -> Path:
    """The file that a queue is in, links followed. Raises TypeError, ValueError, or StoreError for links that lead nowhere."""
    given = Path(checks.path("store", path))
    try:
        with contextlib.suppress(FileNotFoundError):
            given.stat()  # since Python 3.13 resolve() says nothing of a circle of links
        return given.resolve()
    except (OSError, ValueError) as error:  # a circle of links, a NUL
        raise StoreError(f"could not open the queue {given}: {error}", hint="give the path of a file") from error
