"""Telling somebody: a callback, a logging record, and a webhook. What is sent holds masked commands only."""

import asyncio
import functools
import itertools
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nbprocs.errors import ProcessError, last_output
from nbprocs.guard import message_of
from nbprocs.model import ProcessResult, signal_name
from nbprocs.monitor.probes import in_thread
from nbprocs.notify import Notice
from nbprocs.policy import RetryPolicy
from nbprocs.redact import mask_text, one_line

__all__ = ["Notification", "announce", "as_notice", "notification", "post_with_retries"]

log: logging.Logger = logging.getLogger("nbprocs.admin")
Notification = Mapping[str, Any]


def notification(
    error: BaseException, *, process_id: str = "", name: str = "", command: str = "", result: ProcessResult | None = None, attempts: int = 1
) -> dict[str, Any]:
    """What is told about an error: plain values, ready for JSON, in the terms of pueue's callbacks.

    >>> told = notification(ProcessError("it failed", exit_code=3), name="train", attempts=2)
    >>> told["name"], told["exit_code"], told["attempts"]
    ('train', 3, 2)
    """
    fields = error if isinstance(error, ProcessError) else None
    exit_code = result.exit_code if result else getattr(fields, "exit_code", None)
    signal = result.signal if result else getattr(fields, "signal", None)
    output = last_output(result) if result else getattr(fields, "last_output", "")
    return {
        "id": process_id or getattr(fields, "process_id", None) or "",
        "name": name or getattr(fields, "name", None) or "",
        "command": (result.command if result else command) or getattr(fields, "command", None) or "",
        "exit_code": exit_code,
        "signal": None if signal is None else signal_name(signal),
        "duration": round(result.execution_time, 3) if result else None,
        "error": type(error).__name__,
        "message": mask_text(getattr(fields, "message", None) or message_of(error)),
        "last_lines": [mask_text(line) for line in output.splitlines()],
        "attempts": attempts,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def announce(told: Notification) -> None:
    """The logging record: logger ``nbprocs.admin``, level ERROR, with the fields as ``record.nbprocs``."""
    log.error("%s (%s): %s", told["name"] or told["id"], told["command"], told["message"], extra={"nbprocs": dict(told)})


def as_notice(told: Notification) -> Notice:
    """The same as the notebook, Slack and ntfy are told."""
    return Notice(
        title=one_line(f"{told['name'] or told['id']}: {told['message']}", limit=200),
        body="\n".join(told["last_lines"]),
        level="error",
        process_id=told["id"],
        name=told["name"],
        kind="recovery",
        exit_code=told["exit_code"],
        signal=told["signal"],
        seconds=told["duration"],
    )


async def post_with_retries(url: str, told: Notification, *, timeout: float, policy: RetryPolicy) -> int:
    """POST in a thread of its own, and again by the policy; raises the last Undelivered. Each try takes at most ``timeout`` seconds."""
    from nbprocs.notify.webhook import Undelivered, payload, post  # noqa: PLC0415 - ssl and urllib: `import nbprocs` stays light

    where, message = payload(url, as_notice(told), plain=told)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for attempt in itertools.count(1):
        try:
            async with asyncio.timeout(2 * timeout):  # a name look-up has no deadline of its own
                return int(await in_thread(functools.partial(post, where, message, timeout=timeout)))
        except (Undelivered, TimeoutError) as error:
            delay = policy.decide(error, attempt=attempt, elapsed=loop.time() - began)
            if delay is None or not getattr(error, "again", True):
                raise
        await asyncio.sleep(delay)
    raise AssertionError  # pragma: no cover - the policy ends it
