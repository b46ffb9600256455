"""A front end for tests: says hello, calls, and collects what a view sends, as a browser tab would."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 15.0  # seconds; only a failure waits that long


class Tab:
    """One browser tab that looks at a view."""

    def __init__(self, view: Any, name: str = "tab") -> None:
        self.view = view
        self.name = name
        self.heard: list[dict[str, Any]] = []
        self.buffers: list[list[bytes]] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._calls = 0
        view.outlets.append(self._outlet)

    def _outlet(self, content: dict[str, Any], buffers: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hear, content, list(buffers or []))

    def _hear(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        if content.get("to", self.name) == self.name:
            self.heard.append(content)
            self.buffers.append(buffers)
            self._news.set()

    def say(self, message: Any) -> None:
        """A message of the front end, as the kernel's comm hands it over."""
        self.view.receive(message)

    async def until(self, found: Callable[[dict[str, Any]], Any], *, after: int = 0) -> dict[str, Any]:
        """The first message, from number ``after`` on, that is as wanted; waits for it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for message in self.heard[after:]:
                    if found(message):
                        return message
                self._news.clear()
                await self._news.wait()

    async def hello(self) -> dict[str, Any]:
        """Say hello; returns the snapshots by part."""
        after = len(self.heard)
        self.say({"do": "hello", "view": self.name})
        return (await self.until(lambda m: "s" in m, after=after))["s"]

    def bye(self) -> None:
        self.say({"do": "bye", "view": self.name})

    async def call(self, part: str, op: str, /, **args: Any) -> dict[str, Any]:
        """Call an operation; returns the whole reply."""
        self._calls += 1
        number = self._calls
        self.say({"do": "call", "view": self.name, "id": number, "part": part, "op": op, "args": args})
        return await self.until(lambda m: m.get("re") == number)

    async def delta(self, part: str, found: Callable[[Any], Any] = bool) -> Any:
        """The first delta of a part that is as wanted."""
        return (await self.until(lambda m: part in m.get("p", {}) and found(m["p"][part])))["p"][part]

    def deltas(self, part: str) -> list[Any]:
        """All deltas of a part so far."""
        return [m["p"][part] for m in self.heard if part in m.get("p", {})]

    def output(self) -> bytes:
        """All bytes of snapshots and deltas, in order."""
        return b"".join(b"".join(b) for m, b in zip(self.heard, self.buffers, strict=True) if "p" in m or "s" in m)


@contextmanager
def shown(view: Any) -> Iterator[Tab]:
    """A view with one tab; closed at the end."""
    tab = Tab(view)
    try:
        yield tab
    finally:
        view.close()
