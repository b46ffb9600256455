"""Response times, really measured: a port, a URL, a pool's ping, or a callable of yours is asked and the answer timed.

Each probe is asked again ``every`` seconds, one question at a time; a question without an answer within its timeout counts as infinite.
Nothing is asked of a process without a probe: its response time is absent.
"""

import asyncio
import functools
import inspect
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from nbprocs.checks import LONGEST, number
from nbprocs.engine.home import Home, log
from nbprocs.guard import attempt, awaitable, finish, repr_of, text_of
from nbprocs.processes.readiness import Port, Url

__all__ = ["Prober", "as_question", "ask"]

Question = Callable[[], Awaitable[object]]


def as_question(probe: Any) -> Question:
    """A probe of any kind as an async callable. It fails by raising or by answering False.

    ``Port``, ``Url`` or another value with ``check``; a URL as a string; an object with ``ping``, such as a pool; a callable, async or not:
    one that is not runs in a thread of its own. TypeError for anything else.
    """
    if isinstance(probe, str):
        probe = Url(probe)
    if isinstance(probe, Url):
        return functools.partial(in_thread, functools.partial(_get, probe))
    if isinstance(probe, Port):
        return functools.partial(_connect, probe)
    if callable(getattr(probe, "check", None)):
        return functools.partial(_maybe_await, probe.check, None)
    if callable(getattr(probe, "ping", None)):
        return functools.partial(_maybe_await, probe.ping)
    if inspect.iscoroutinefunction(probe) or inspect.iscoroutinefunction(getattr(probe, "__call__", None)):  # noqa: B004 - an async __call__
        return functools.partial(_maybe_await, probe)
    if callable(probe):
        return functools.partial(_call_aside, probe)
    msg = f"a probe is a Port, a Url, a URL, a pool or a callable, not {repr_of(probe)}"
    raise TypeError(msg)


async def _connect(port: Port) -> bool:
    _, writer = await asyncio.open_connection(port.host, port.port)
    writer.close()
    return True


def _get(url: Url) -> bool:
    return url.get()  # the blocking half of its check: here it runs in a thread of ours


async def _maybe_await(function: Callable[..., Any], *args: Any) -> object:
    answer = function(*args)
    return await answer if awaitable(answer) else answer


async def _call_aside(function: Callable[[], Any]) -> object:
    answer = await in_thread(function)
    return await answer if awaitable(answer) else answer


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run it in a daemon thread: one that hangs for ever costs a thread, never the end of the kernel."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(answer: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(answer)
        else:  # a future can't carry what ends generators
            done.set_exception(RuntimeError(text_of(error)) if isinstance(error, (StopIteration, GeneratorExit)) else error)

    def work() -> None:
        answer, failure = attempt(function)
        try:
            loop.call_soon_threadsafe(tell, answer, failure)
        except RuntimeError:  # the loop closed meanwhile; nobody waits
            log.debug("an answer of a probe came after its loop had closed")

    threading.Thread(target=work, name="nbprocs-probe", daemon=True).start()
    return await done


async def ask(question: Question, *, timeout: float) -> tuple[float, str]:
    """Ask once. Returns (seconds, ""), or (inf, why not)."""
    began = time.perf_counter()
    answer, error = await finish(question(), timeout=timeout)
    if isinstance(error, TimeoutError) and time.perf_counter() - began >= timeout:
        return math.inf, f"no answer within {timeout:g} s"
    if error is not None:  # whatever it was, it is no answer; the text is kept and shown
        return math.inf, text_of(error)
    if answer is False:
        return math.inf, "it answered False"
    return time.perf_counter() - began, ""


class Prober:
    """One probe with its rhythm. ``take()`` gives the newest answer once: between two answers a response time is absent, not repeated."""

    def __init__(self, probe: Any, *, every: float, timeout: float) -> None:
        """Raises TypeError for what is no probe, ValueError for times that are not positive."""
        self.question: Question = as_question(probe)
        self.every: float = number("every", every, above=0, most=LONGEST, what="a positive number of seconds")
        self.timeout: float = number("timeout", timeout, above=0, most=LONGEST, what="a positive number of seconds")
        self.seconds: float = math.nan
        self.last: float = math.nan
        self.error: str = ""  # why the latest question had no answer

    async def run(self, home: Home, wanted: Callable[[], bool]) -> None:
        """Ask until cancelled, while it is wanted."""
        while True:
            due = home.loop.time() + self.every
            if wanted():
                self.seconds, self.error = await ask(self.question, timeout=self.timeout)
                self.last = self.seconds
            await asyncio.sleep(max(due - home.loop.time(), 0.001))

    def take(self) -> float:
        """Seconds of the newest answer, inf for none in time; NaN if there is no new one."""
        seconds, self.seconds = self.seconds, math.nan
        return seconds
