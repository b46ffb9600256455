"""A real IPython kernel to run cells in, to interrupt, restart and kill.

``kernel`` is one that has started; ``start_kernel`` makes more, or with options. All processes that stem from a kernel carry a mark in their
environment: ``kernel.descendants()`` finds them however far they ran (another session, another parent). ::

    async def test_x(kernel):
        cell = await kernel.start("await pm.wait('web')")     # a cell that goes on running
        await kernel.interrupt()
        assert (await cell.done(timeout=5)).error == "CancelledError"
"""

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest
from jupyter_client.manager import AsyncKernelManager

ROOT = Path(__file__).parents[2]
MARK = "NBPROCS_TEST_MARK"
START_TIMEOUT = 60.0


def alive(pids: Collection[int]) -> list[str]:
    """Those that still run (zombies don't), as text for a failure."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{pid} {process.status()}: {' '.join(process.cmdline())[:100]}")
    return found


def descendants_by_token(token: str, *, without: Collection[int] = ()) -> set[int]:
    """The pids of all live processes with the token in their environment."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(folder.name)
            if token.encode() in (folder / "environ").read_bytes() and pid not in without and alive([pid]):
                found.add(pid)
    return found


@dataclass(slots=True, kw_only=True)
class Cell:
    """One execution: its output so far, and its end."""

    message_id: str
    streams: list[tuple[float, str, str]] = field(default_factory=list)  # (arrival, stream's name, text)
    error: str = ""
    traceback: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    finished_at: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        """All that it printed."""
        return "".join(text for _, name, text in self.streams if name == "stdout")

    @property
    def errors(self) -> str:
        """All that it wrote to stderr."""
        return "".join(text for _, name, text in self.streams if name == "stderr")

    def take(self, message: dict[str, Any]) -> None:
        """Note a message of the iopub channel."""
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            self.streams.append((time.monotonic(), content["name"], content["text"]))
        elif kind == "error":
            self.error, self.traceback = content["ename"], "\n".join(content["traceback"])
        elif kind in ("execute_result", "display_data"):
            self.results.append(content["data"])
        elif kind == "status" and content["execution_state"] == "idle":
            self.finished_at = time.monotonic()
        self._changed.set()

    async def _until(self, check: Callable[[], bool], timeout: float, what: str) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not check():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"no {what} within {timeout} s; printed: {self.text!r} {self.errors!r}, error: {self.error} {self.traceback}")

    async def done(self, *, timeout: float = 30) -> "Cell":
        """Wait for its end."""
        await self._until(lambda: bool(self.finished_at), timeout, "end of the cell")
        return self

    async def says(self, text: str, *, timeout: float = 30) -> "Cell":
        """Wait until it has printed a text."""
        await self._until(lambda: text in self.text or bool(self.finished_at), timeout, f"output {text!r}")
        assert text in self.text, f"the cell ended without saying {text!r}: {self.text!r} {self.error} {self.traceback}"
        return self


class Kernel:
    """A started kernel and a client of it."""

    def __init__(self, manager: AsyncKernelManager, mark: str) -> None:
        self.manager = manager
        self.mark = mark
        self.client: Any = None
        self.cells: dict[str, Cell] = {}
        self.messages: list[tuple[float, dict[str, Any]]] = []  # everything on iopub, with its arrival
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The kernel's own process."""
        return self.manager.provisioner.pid

    def descendants(self) -> set[int]:
        """Every live process that stems from it, the kernel and what IPython itself started excepted."""
        return descendants_by_token(self.mark, without={self.pid} if self.manager.has_kernel else ())

    async def connect(self) -> None:
        """Open the channels and wait until the kernel answers."""
        self.client = self.manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=START_TIMEOUT)
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="iopub")

    async def _read(self) -> None:
        while True:
            with suppress(Empty):
                message = await self.client.get_iopub_msg(timeout=1)
                self.messages.append((time.monotonic(), message))
                if cell := self.cells.get(message["parent_header"].get("msg_id")):
                    cell.take(message)

    async def disconnect(self) -> None:
        """Close the channels."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        if self.client is not None:
            self.client.stop_channels()
            self.client = None

    async def start(self, code: str, *, subshell: str | None = None) -> Cell:
        """Send a cell, and return at once."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        message = self.client.session.msg("execute_request", content)
        if subshell:
            message["header"]["subshell_id"] = subshell
        cell = self.cells[message["header"]["msg_id"]] = Cell(message_id=message["header"]["msg_id"])
        self.client.shell_channel.send(message)
        return cell

    async def run(self, code: str, *, timeout: float = 30) -> str:
        """Run a cell to its end; return what it printed. Fails if it raised."""
        cell = await (await self.start(code)).done(timeout=timeout)
        assert not cell.error, f"{code}\n{cell.text}\n{cell.traceback}"
        return cell.text

    async def new_subshell(self) -> str:
        """Start a subshell, as JupyterLab does for comm messages; returns its id."""
        message = self.client.session.msg("create_subshell_request", {})
        self.client.control_channel.send(message)
        return (await self.client.get_control_msg(timeout=10))["content"]["subshell_id"]

    async def interrupt(self) -> None:
        """The Interrupt button: SIGINT to the kernel's process group."""
        await self.manager.interrupt_kernel()

    async def restart(self) -> None:
        """The Restart button."""
        await self.disconnect()
        await self.manager.restart_kernel()
        await self.connect()

    async def shutdown(self) -> None:
        """The Shut down button."""
        await self.disconnect()
        await self.manager.shutdown_kernel()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal to the kernel's process alone, without any notice."""
        os.kill(self.pid, number)

    async def gone(self, *, within: float = 20) -> None:
        """Wait until the kernel's process has ended."""
        async with asyncio.timeout(within):
            while await self.manager.is_alive():
                await asyncio.sleep(0.01)


StartKernel = Callable[..., Awaitable[Kernel]]


@pytest.fixture
async def start_kernel(tmp_path: Path) -> AsyncIterator[StartKernel]:
    """Makes kernels; ends them all, and whatever they left, after the test."""
    async with AsyncExitStack() as stack:

        async def start(**env: str) -> Kernel:
            mark = uuid.uuid4().hex
            manager = AsyncKernelManager(kernel_name="python3", shutdown_wait_time=5)
            spec = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython"), MARK: mark, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
            stack.push_async_callback(_end, kernel := Kernel(manager, mark))
            await manager.start_kernel(
                cwd=str(tmp_path), env={**os.environ, **spec, **env}, extra_arguments=["--HistoryManager.enabled=False"]
            )
            await kernel.connect()
            return kernel

        yield start


@pytest.fixture
async def kernel(start_kernel: StartKernel) -> Kernel:
    """A started kernel."""
    return await start_kernel()


async def _end(kernel: Kernel) -> None:
    await kernel.disconnect()
    if kernel.manager.has_kernel:
        await kernel.manager.shutdown_kernel(now=True)
    kernel.manager.cleanup_connection_file()
    kernel.manager.context.term()
    for pid in descendants_by_token(kernel.mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


PYTHON = sys.executable
