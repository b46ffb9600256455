"""The kernel's side of Dask: the tasks that hold its slots, and the way to a worker."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from distributed.comm.addressing import get_address_host_port
from distributed.comm.core import CommClosedError

from nbprocs.cluster.link import LinkDown, Sign
from nbprocs.cluster.station import HANDLER

__all__ = ["Carriers", "DaskLink"]

_EXTRA = 64  # carriers that may wait in Dask beyond the slots that there are: what an adaptive cluster sees as demand
_PROBE = 1.0  # seconds
_ASK = 2.0
_ON_PURPOSE = frozenset({"retired", "retire-workers"})


async def _carrier(key: str, session: str, prefix: str, since: float) -> str:
    """The Dask task. It travels by value, so that nobody but the worker that runs it needs nbprocs; the scheduler unpickles it, too."""
    from nbprocs.cluster.station import carry  # noqa: PLC0415 - there

    return await carry(key, session, prefix, since)


_carrier.__module__ = "__main__"  # what pickle can't import it sends by value


class Carriers:
    """The tasks that hold slots; on the home loop only.

    They have a lower priority than the user's own Dask work, so that a thread that becomes free is the user's first.
    """

    def __init__(self, client: Any, *, session: str, since: float) -> None:
        self._client = client
        self._session = session
        self._since = since
        self._numbers = itertools.count(1)
        self._futures: dict[str, Any] = {}
        self.places: dict[str, str] = {}  # key -> address, of those that have started

    def started(self, key: str, address: str) -> None:
        """A carrier runs there."""
        if key in self._futures:
            self.places[key] = address

    def tend(self, wanted: int, *, slots: int, prefix: str, spare: Callable[[str], bool]) -> list[BaseException]:
        """Have so many, some beyond the slots that there are. ``spare(address)`` takes a free slot of a worker out of use, if it has one.

        Returns the errors of those that failed since the last time, which are replaced the next time.
        """
        failed = self._sweep()
        missing = self.missing(wanted, slots=slots)
        if not failed:
            for _ in range(missing):
                self._submit(prefix)
        if missing < 0:
            self._release(-missing, spare)
        return failed

    def missing(self, wanted: int, *, slots: int) -> int:
        """How many more there should be; below 0: how many fewer."""
        return min(wanted, slots + max(_EXTRA, slots)) - len(self._futures)

    def _submit(self, prefix: str) -> None:
        key = f"nbprocs-{self._session}-{next(self._numbers)}"
        self._futures[key] = self._client.submit(
            _carrier, key, self._session, prefix, self._since, key=key, pure=False, priority=-1, fifo_timeout="0s"
        )

    def _release(self, count: int, spare: Callable[[str], bool]) -> None:
        """First those that have not started, then those on workers with a free slot; none that a job stands on."""
        waiting = [key for key in self._futures if key not in self.places]
        for key in [*reversed(waiting), *reversed(self.places)]:
            if count <= 0:
                return
            if key not in self.places or spare(self.places[key]):
                self._forget(key).release()
                count -= 1

    def _sweep(self) -> list[BaseException]:
        """Forget those that are over: released by a restart of the cluster, failed, or refused."""
        failed: list[BaseException] = []
        for key, future in list(self._futures.items()):
            if future.status == "pending":
                continue
            if future.status == "error":
                error = future._state.exception  # noqa: SLF001 - the public way to it is a coroutine
                failed.append(error if isinstance(error, BaseException) else RuntimeError(str(error)))
            self._forget(key)
        return failed

    def _forget(self, key: str) -> Any:
        self.places.pop(key, None)
        return self._futures.pop(key)

    def close(self) -> None:
        """Release all."""
        for key in list(self._futures):
            self._forget(key).release()

    def __len__(self) -> int:
        return len(self._futures)


class DaskLink:
    """Calls to the handler of a worker: directly, or by way of the scheduler where the worker can't be reached from here."""

    def __init__(self, client: Any, address: str, *, proxy: bool | None) -> None:
        self._client = client
        self._address = address
        self._rpc = client.rpc(address)
        self._proxied = bool(proxy)
        self._may_change = proxy is None
        self._answered = False

    async def call(self, op: str, *, limit: float, **given: Any) -> dict[str, Any]:
        """One operation and its answer. Raises LinkDown."""
        direct = not self._proxied
        try:
            async with asyncio.timeout(_ASK if direct and self._may_change and not self._answered else limit):
                if direct:
                    answer = await getattr(self._rpc, HANDLER)(do=op, **given)
                else:
                    answer = await self._client.scheduler.proxy(worker=self._address, msg={"op": HANDLER, "do": op, **given})
        except (OSError, CommClosedError, TimeoutError, RuntimeError, AttributeError, KeyError) as error:  # also those of a closed client
            if direct and self._may_change and not self._answered:
                self._proxied = True
            raise LinkDown(f"{op} got no answer: {error!r}") from error
        if not isinstance(answer, dict):
            raise LinkDown(f"{op} got {answer!r}")
        self._answered = True
        return answer

    async def look(self) -> tuple[Sign, bool]:
        """A connection to its port, and the scheduler's list."""
        return await self._sign(), await self._listed()

    async def _sign(self) -> Sign:
        try:
            host, port = get_address_host_port(self._address)
            async with asyncio.timeout(_PROBE):
                _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            return Sign.REFUSED
        except (OSError, TimeoutError, ValueError):
            return Sign.SILENT
        writer.close()
        return Sign.LISTENS

    async def _listed(self) -> bool:
        try:
            async with asyncio.timeout(_ASK):
                known = await self._client.scheduler.identity()
        except (OSError, CommClosedError, TimeoutError, RuntimeError, AttributeError):
            return False
        return self._address in known["workers"]

    async def expected(self) -> str | None:
        """What the scheduler has noted of its end."""
        try:
            async with asyncio.timeout(_ASK):
                events = await self._client.get_events(self._address)
        except (OSError, CommClosedError, TimeoutError, RuntimeError, AttributeError):
            return None
        actions = [event.get("action") for _, event in events or () if isinstance(event, dict)]
        return "it was taken away" if _ON_PURPOSE & set(actions[-8:]) else None

    async def aclose(self) -> None:
        """Close its connections that are not in use."""
        if self._client.status == "running":
            self._client.rpc.remove(self._address, reason="nbprocs has left this worker")
