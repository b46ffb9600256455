"""Telling somebody: a callback, a logging record, and a webhook. What is sent holds masked commands only."""

import asyncio
import inspect
import json
import logging
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from nbprocs.errors import ProcessError, last_output
from nbprocs.model import ProcessResult, signal_name
from nbprocs.policy import RetryPolicy
from nbprocs.redact import mask_text

__all__ = ["Notification", "announce", "notification", "post", "post_with_retries"]

log = logging.getLogger("nbprocs.admin")
Notification = Mapping[str, Any]
_ANSWER_LIMIT = 1024  # bytes of a webhook's answer that are read


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
        "message": mask_text(getattr(fields, "message", None) or str(error)),
        "last_lines": [mask_text(line) for line in output.splitlines()],
        "attempts": attempts,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def announce(told: Notification) -> None:
    """The logging record: logger ``nbprocs.admin``, level ERROR, with the fields as ``record.nbprocs``."""
    log.error("%s (%s): %s", told["name"] or told["id"], told["command"], told["message"], extra={"nbprocs": dict(told)})


async def call(callback: Callable[[Notification], object], told: Notification, *, timeout: float) -> None:
    """The callback, sync or async; an async one gets ``timeout`` seconds and TimeoutError after that."""
    answer = callback(told)
    if inspect.isawaitable(answer):
        async with asyncio.timeout(timeout):
            await answer


def post(url: str, told: Notification, *, timeout: float) -> int:
    """POST it as JSON; the status of the answer. Blocks for up to ``timeout`` seconds without progress. Raises OSError, ValueError."""
    if not url.startswith(("http://", "https://")):
        msg = f"a webhook must begin with http:// or https://, not {mask_text(url)!r}"
        raise ValueError(msg)
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        url, data=json.dumps(dict(told)).encode(), headers={"Content-Type": "application/json", "User-Agent": "nbprocs"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - the scheme was checked
        answer.read(_ANSWER_LIMIT)
        return int(answer.status)


async def post_with_retries(url: str, told: Notification, *, timeout: float, policy: RetryPolicy) -> int:
    """POST in a thread, and again by the policy; raises the last error. Each try takes at most ``timeout`` seconds."""
    attempt = 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        attempt += 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.to_thread(post, url, told, timeout=timeout)
        except (OSError, TimeoutError) as error:
            delay = policy.decide(error, attempt=attempt, elapsed=loop.time() - began)
            if delay is None:
                raise
            await asyncio.sleep(delay)
