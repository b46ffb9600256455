"""Telling: the notebook at once, a URL from a thread of its own, a callable where the end was noticed."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from nbprocs.guard import attempt, awaitable, finish, told
from nbprocs.notify.channel import publish
from nbprocs.notify.model import Notice, Notify, masked

__all__ = ["deliver", "tell"]

log: logging.Logger = logging.getLogger("nbprocs.notify")
TIMEOUT = 10.0  # seconds of one POST
PAUSES = (1.0, 5.0)  # seconds before the second and the third try
LONGEST = 60.0  # seconds that an async callable may take
AT_EXIT = 2.0  # seconds that the interpreter's end waits for what is under way
MOST = 16  # POSTs under way at once; more are dropped and logged: a server that hangs must not fill the process with threads

Start = Callable[[Coroutine[Any, Any, None]], object]
_under_way: set[threading.Thread] = set()


def tell(notice: Notice, notify: Notify | None, *, start: Start) -> None:
    """Tell everybody whom ``notify`` names. Returns at once, raises nothing; what goes wrong is logged under ``nbprocs.notify``.

    ``start`` starts a coroutine as a task, for an async callable, which gets a minute.
    """
    if notify is None or not notify.wants(notice):
        return
    if notify.notebook:
        publish(notice)
    for target in notify.to:
        if isinstance(target, str):
            _post_soon(target, notice)
            continue
        answer, error = attempt(target, notice)
        if error is not None:
            told(f"notify= of {notice.name or notice.process_id}", error)
        elif awaitable(answer):
            start(_await(answer, notice))


async def _await(answer: Awaitable[object], notice: Notice) -> None:
    _, error = await finish(answer, timeout=LONGEST)
    if error is not None:
        told(f"notify= of {notice.name or notice.process_id}", error)


def deliver(url: str, notice: Notice, *, timeout: float = TIMEOUT, pauses: tuple[float, ...] = PAUSES) -> int:
    """POST it, and again after each pause where that may help; blocks. Returns the status; raises the last Undelivered."""
    from nbprocs.notify.webhook import Undelivered, payload, post  # noqa: PLC0415 - ssl and urllib: `import nbprocs` stays light

    where, message = payload(url, notice)
    for pause in (*pauses, None):
        try:
            return post(where, message, timeout=timeout)
        except Undelivered as error:
            if pause is None or not error.again:
                raise
            time.sleep(pause)
    raise AssertionError  # pragma: no cover - the last pause is None


def _post_soon(url: str, notice: Notice) -> None:
    if len(_under_way) >= MOST:
        log.error("%s is not told of %r: %d messages are under way already", masked(url), notice.title, MOST)
        return
    thread = threading.Thread(target=_work, args=(url, notice), name="nbprocs-notify", daemon=True)
    _under_way.add(thread)
    thread.start()


def _work(url: str, notice: Notice) -> None:
    try:
        deliver(url, notice)
    except OSError as error:
        log.error("%s: %s", notice.title, error)  # noqa: TRY400 - the cause is in the text
    finally:
        _under_way.discard(threading.current_thread())


def _settle() -> None:
    until = time.monotonic() + AT_EXIT
    for thread in list(_under_way):
        thread.join(max(0.0, until - time.monotonic()))


atexit.register(_settle)
