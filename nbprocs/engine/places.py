"""The folders outside of any kernel: where shims answer, and where detached processes keep their records; which file is at a path."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["file_at", "runtime_folder", "state_folder"]


def file_at(path: Path) -> tuple[int, int] | None:
    """What tells the file that is there now from any other; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def runtime_folder() -> Path:
    """The folder of the shims' sockets; made with mode 0700 if it is not there.

    ``$NBPROCS_RUNTIME_DIR``, else ``nbprocs`` in Jupyter's runtime folder, so that a server finds the kernels of every environment; without
    Jupyter, platformdirs' runtime folder. Raises OSError where it can't be made.
    """
    if chosen := os.environ.get("NBPROCS_RUNTIME_DIR"):
        return _private(Path(chosen))
    if jupyter := os.environ.get("JUPYTER_RUNTIME_DIR"):
        return _private(Path(jupyter) / "nbprocs")
    try:
        from jupyter_core.paths import jupyter_runtime_dir  # noqa: PLC0415 - loaded where it is first needed, and only where Jupyter is
    except ImportError:
        import platformdirs  # noqa: PLC0415

        return _private(Path(platformdirs.user_runtime_dir("nbprocs")))
    return _private(Path(jupyter_runtime_dir()) / "nbprocs")


def state_folder() -> Path:
    """The folder of what outlives kernels and reboots; made with mode 0700 if it is not there.

    ``$NBPROCS_STATE_DIR``, else platformdirs' state folder. Raises OSError where it can't be made.
    """
    if chosen := os.environ.get("NBPROCS_STATE_DIR"):
        return _private(Path(chosen))
    import platformdirs  # noqa: PLC0415 - as above

    return _private(Path(platformdirs.user_state_dir("nbprocs")))


def _private(folder: Path) -> Path:
    folder = folder.absolute()  # a shim works in the root folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
