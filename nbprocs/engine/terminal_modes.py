"""The terminal that a command of ours runs in: raw while a person types to somebody else's program."""

from __future__ import annotations

import contextlib
import termios
import tty
from collections.abc import Iterator

__all__ = ["raw"]


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Hand every key on as it is typed; the terminal is put back at the end, however that comes. Nothing where it is no terminal."""
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield
        return
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
