"""Waiting for what is about to happen: the one kit for it. Generous limits, since the machine may be busy; what fails says what was awaited."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0  # seconds
_PAUSE = 0.005  # seconds between two looks


async def until(look: Callable[[], Any], *, within: float = PATIENCE, what: str = "what was awaited") -> Any:
    """Look until the answer is true, and return it. Fails after ``within`` seconds; the loop goes on meanwhile."""
    deadline = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what} (the last look saw {found!r})"
        await asyncio.sleep(_PAUSE)
    return found


def until_blocking(look: Callable[[], Any], *, within: float = PATIENCE, what: str = "what was awaited") -> Any:
    """``until`` for code without a loop."""
    deadline = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what} (the last look saw {found!r})"
        time.sleep(_PAUSE)
    return found
