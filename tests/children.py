"""Real children to test with: small Python programs that say ``ready`` and then do one thing.

Tests wait for that line, never for time.
"""

import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

PRELUDE = """\
import os, signal, sys, time
def ready(text='ready'):
    sys.stdout.write(text + '\\n'); sys.stdout.flush()
def forever():
    while True: signal.pause()
"""


def python_child(code: str, *args: str) -> tuple[str, ...]:
    """The argument vector of a Python program.

    ``os``, ``signal``, ``sys`` and ``time`` are imported, ``ready()`` prints the line to wait for, ``forever()`` sleeps without end. Site packages are
    left out: it starts in about ten milliseconds.
    """
    return (sys.executable, "-I", "-S", "-c", PRELUDE + textwrap.dedent(code), *args)


SLEEPER = python_child("ready(); forever()")  # dies by SIGTERM
STUBBORN = python_child("signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); forever()")
ECHO = python_child("ready()\nfor line in sys.stdin: sys.stdout.write(line); sys.stdout.flush()")


async def until_line(process: Any, text: str = "ready", **options: Any) -> str:
    """Read a process's lines until one contains the text; return it. Fails, with what was written, when the stream ends before."""
    seen = []
    lines: AsyncIterator[str] = process.lines(**options)
    async with aclosing(lines) as reading:  # type: ignore[type-var]
        async for line in reading:
            if text in line:
                return line
            seen.append(line)
    message = f"{process!r} ended without the line {text!r}; it wrote {seen!r}"
    raise AssertionError(message)
