"""A blocking call of ours on a running loop is an error: everything else on that loop would stand still.

Only calls made by nbprocs itself count, in a coroutine or a callback, and only in a thread whose loop runs at that moment. What is watched
is what a package that runs processes is tempted to do: sleep, wait for a child, join a thread, wait for a future.
"""

import asyncio
import concurrent.futures
import functools
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest


class BlockingCall(AssertionError):
    """nbprocs blocked the loop."""


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _called_by_us() -> str | None:
    """Where in nbprocs the call stands, if a coroutine or a callback of ours made it; a sync method that a user called may block that user."""
    frame = sys._getframe(2)
    place = f"{frame.f_globals.get('__name__', '')}:{frame.f_lineno}"
    awaited, ours = False, False
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "nbprocs":
        ours = True
        awaited = awaited or bool(frame.f_code.co_flags & _ASYNC)
        frame = frame.f_back
    by_loop = frame is not None and frame.f_globals.get("__name__", "").startswith("asyncio.")
    return place if ours and (awaited or by_loop) else None


def _guarded(function: Callable[..., Any], name: str, harmless: Callable[..., bool]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guard(*args: Any, **kwargs: Any) -> Any:
        if asyncio._get_running_loop() is not None and (place := _called_by_us()) and not harmless(*args, **kwargs):
            message = f"{name} blocks the event loop, called at {place}"
            raise BlockingCall(message)
        return function(*args, **kwargs)

    return guard


def _no(*_args: Any, **_kwargs: Any) -> bool:
    return False


def _ended(process: "subprocess.Popen[bytes]", *_args: Any, **_kwargs: Any) -> bool:
    return process.returncode is not None


def watch(patch: pytest.MonkeyPatch) -> None:
    """Guard the calls for as long as the patch lasts."""
    targets: list[tuple[Any, str, Callable[..., bool]]] = [
        (time, "sleep", lambda seconds: seconds == 0),
        (os, "waitpid", lambda _pid, options: bool(options & os.WNOHANG)),
        (os, "system", _no),
        (subprocess.Popen, "wait", _ended),
        (subprocess.Popen, "communicate", _ended),
        (subprocess, "run", _no),
        (threading.Thread, "join", lambda thread, *_a, **_k: not thread.is_alive()),
        (concurrent.futures.Future, "result", lambda future, *_a, **_k: future.done()),
    ]
    if hasattr(os, "waitid"):
        targets.append((os, "waitid", lambda _kind, _id, options: bool(options & os.WNOHANG)))
    for owner, name, harmless in targets:
        patch.setattr(owner, name, _guarded(getattr(owner, name), f"{owner.__name__}.{name}", harmless))
