"""Blows against live processes, from outside of all supervision."""

import asyncio
import contextlib
import fnmatch
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nbprocs.errors import CommunicationError
from nbprocs.model import ProcessStatus
from nbprocs.processes import ProcessManager

__all__ = ["Kill", "chaos"]

_DEADLY = tuple(getattr(signal, name) for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM") if hasattr(signal, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One blow of ``chaos``.

    >>> Kill(at=0.0, name="web", process_id="1", signal=9).signal
    9
    """

    at: float  # time.monotonic()
    name: str
    process_id: str
    signal: int


async def chaos(
    manager: ProcessManager,
    *,
    seconds: float,
    every: float = 0.02,
    pattern: str = "*",
    signals: Sequence[int] = _DEADLY,
    rng: random.Random | None = None,
) -> tuple[Kill, ...]:
    """Send a deadly signal to a random live process of a manager, again and again, from outside of all supervision.

    Args:
        manager: whose processes.
        seconds: how long it goes on; it returns then.
        every: mean seconds between two blows; the pauses are exponentially distributed, so that some fall together.
        pattern: of the names that may be hit (``fnmatch``).
        signals: one of them is taken each time; by default SIGKILL, SIGSEGV, SIGABRT and SIGTERM.
        rng: the source of chance; pass a seeded one to repeat a run.

    Returns every blow, in order.

    >>> async with ProcessManager() as pm:
    ...     proc = await pm.spawn("sleep", "1000")
    ...     kills = await chaos(pm, seconds=0.1, every=0.01)
    ...     result = await proc.wait()
    >>> len(kills) >= 1, result.signal is not None
    (True, True)
    """
    chance = rng or random.Random()  # noqa: S311 - chooses victims, keeps no secret
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    kills = []
    while (left := until - loop.time()) > 0:
        victims = [p for p in manager.processes() if p.status is ProcessStatus.RUNNING and fnmatch.fnmatchcase(p.name, pattern)]
        if victims:
            victim, number = chance.choice(victims), chance.choice(signals)
            with contextlib.suppress(CommunicationError):  # it has ended just now
                victim.send_signal(number)
                kills.append(Kill(at=time.monotonic(), name=victim.name, process_id=victim.id, signal=number))
        await asyncio.sleep(min(left, chance.expovariate(1 / every)))
    return tuple(kills)
