"""The kernel's default manager, and run, spawn and run_sync on it. The magics use the same one.

It lives on the background loop: what it runs goes on while cells block the kernel, and a script without a loop can use it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Unpack

from nbprocs.config import Command, Data, Options, Word, takes_config
from nbprocs.engine.owners import register
from nbprocs.engine.pending import must_be_awaited
from nbprocs.model import EventKind, ProcessEvent, ProcessResult
from nbprocs.processes.manager import ProcessManager, manager_core

if TYPE_CHECKING:
    from nbprocs.policy import RestartPolicy, RetryPolicy
    from nbprocs.processes.process import ManagedProcess
    from nbprocs.processes.readiness import Ready

__all__ = ["adopt", "default_manager", "run", "run_sync", "spawn"]

_BEAT = 0.2  # seconds; a blocked main thread notices an interrupt when it wakes
_lock = threading.Lock()
_kept: list[ProcessManager] = []  # one, or none before the first use and after its end
_parents: list[ProcessManager] = []  # in a forked child: its parent's, which is nothing to clean up here


def default_manager() -> ProcessManager:
    """The default manager of this kernel; a new one after that was closed.

    >>> default_manager() is default_manager()
    True
    """
    with _lock:
        if not _kept:
            _kept.append(ProcessManager(background=True))
            _kept[0].subscribe(_heard)
            register(_kept[0], always=True)
        return _kept[0]


def _heard(event: ProcessEvent) -> None:
    if event.kind is EventKind.CLOSED:
        _kept.clear()


@takes_config
@must_be_awaited("nbprocs.spawn")
async def spawn(
    command: Command,
    *args: Word,
    ready: Ready | None = None,
    ready_timeout: float = 30.0,
    wait: bool = False,
    restart: RestartPolicy | bool | None = None,
    **options: Unpack[Options],
) -> ManagedProcess:
    r"""ProcessManager.spawn on the kernel's default manager.

    >>> proc = await spawn("echo", "hello")
    >>> (await proc.wait()).text
    'hello\n'
    """
    more: dict[str, Any] = {"ready": ready, "ready_timeout": ready_timeout, "wait": wait, "restart": restart}
    return await default_manager().spawn(command, *args, **more, **options)


@takes_config
@must_be_awaited("nbprocs.run")
async def run(
    command: Command,
    *args: Word,
    input: Data | None = None,  # noqa: A002 - subprocess.run's name for it
    check: bool = True,
    retry: RetryPolicy | None = None,
    wait: bool = True,
    **options: Unpack[Options],
) -> ProcessResult:
    r"""ProcessManager.run on the kernel's default manager.

    >>> (await run("echo", "hello")).text
    'hello\n'
    """
    more: dict[str, Any] = {"input": input, "check": check, "retry": retry, "wait": wait}
    return await default_manager().run(command, *args, **more, **options)


@must_be_awaited("nbprocs.adopt")
async def adopt(key: str, *, restart: RestartPolicy | bool | None = None) -> ManagedProcess:
    """ProcessManager.adopt on the kernel's default manager.

    >>> _ = await spawn("sleep", "1000", name="kept", detach=True)
    >>> kept = await adopt("kept")
    >>> (await kept.stop()).status
    <ProcessStatus.TERMINATED: 'terminated'>
    """
    return await default_manager().adopt(key, restart=restart)


@takes_config
def run_sync(
    command: Command,
    *args: Word,
    input: Data | None = None,  # noqa: A002 - as above
    check: bool = True,
    retry: RetryPolicy | None = None,
    wait: bool = True,
    **options: Unpack[Options],
) -> ProcessResult:
    r"""The same without await: blocks this thread until the process has ended. For scripts, functions and other threads.

    An interrupt stops the process. Raises RuntimeError on the background loop itself, which it would block for ever, and Closed when the
    interpreter is ending (a ``__del__`` of what lives until then), where no other thread runs any more; ``atexit`` is early enough.

    >>> run_sync("echo", "hello").text
    'hello\n'
    """
    manager = default_manager()
    home = manager_core(manager).home
    if home.here:
        raise RuntimeError("run_sync would block the loop that is to run the process; await nbprocs.run() here")
    more: dict[str, Any] = {"input": input, "check": check, "retry": retry, "wait": wait}
    loop = home.reach()
    future = asyncio.run_coroutine_threadsafe(manager.run(command, *args, **more, **options), loop)
    try:
        while True:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                return future.result(_BEAT)
            if future.done():  # its own error is a TimeoutError
                return future.result()
    except BaseException:
        future.cancel()
        raise


def _forked() -> None:
    """In a forked child: the next use makes a manager of its own."""
    global _lock  # noqa: PLW0603 - a thread that is not here may have held it
    _lock = threading.Lock()
    _parents.extend(_kept)
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
