"""What a program of the system answers, for code that runs in a thread of its own: short, bounded, its input empty."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence

__all__ = ["output_of"]


def output_of(
    argv: Sequence[str], *, cwd: str | None = None, timeout: float = 2.0, limit: int = 16 << 20, env: Mapping[str, str] | None = None
) -> bytes | None:
    r"""The standard output of a command, at most ``limit`` bytes of it; None where it fails, is missing or takes longer than ``timeout`` s.

    It blocks: never call it on a loop. ``env`` is added to this process's environment.

    >>> output_of(["echo", "hello"])
    b'hello\n'
    >>> output_of(["no-such-program"])
    """
    try:
        process = subprocess.Popen(
            argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}
        )
    except (OSError, ValueError):
        return None
    timer = threading.Timer(timeout, process.kill)
    timer.daemon = True
    timer.start()
    try:
        with process:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            data = process.stdout.read(limit)
            if len(data) == limit:
                process.kill()
                return data
        return data if process.returncode == 0 else None
    finally:
        timer.cancel()
