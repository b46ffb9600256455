"""The comm target ``nbprocs.panel``: JupyterLab's panel asks a kernel for the output of one of its processes.

::

    {"op": "output", "id": process id}  ──►  messages {"stream", "offset", "ended"} with the bytes as a buffer, until it ends
                                             {"unknown": true} for a process that no manager of this kernel knows

The first message has the last MiB of each stream; what follows comes as it is written. A log that was cut says so by its offset.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nbprocs.engine.home import Tasks
from nbprocs.engine.output import OutputLog
from nbprocs.engine.owners import managers
from nbprocs.errors import UnknownProcess
from nbprocs.model import Stream
from nbprocs.processes.manager import ProcessManager
from nbprocs.processes.process import ManagedProcess, process_core
from nbprocs.widgets.wire import answer_where_asked

__all__ = ["asked"]

FIRST = 1 << 20  # bytes of each stream that were written before
CHUNK = 64 << 10  # bytes of a message
PAUSE = 0.05  # seconds between two messages of a stream: a person reads it


def asked(comm: Any, message: Any) -> None:
    """The front end wants something; for the only thing there is, the output begins to flow."""
    wanted = message["content"]["data"]
    process = _find(str(wanted.get("id"))) if wanted.get("op") == "output" else None
    if process is None:
        comm.send({"unknown": True})
        comm.close()
        return
    answer_where_asked(comm)
    core = process_core(process)
    tasks = Tasks(core.home)
    streams = {Stream.STDOUT: core.stdout, Stream.STDERR: core.stderr}

    flows: list[asyncio.Task[None]] = []

    def begin() -> None:
        flows.extend(tasks.start(_flow(comm, stream, log), name=f"panel: {stream} of {core.name}") for stream, log in streams.items())

    def end() -> None:
        for flow in flows:
            flow.cancel()

    comm.on_close(lambda _message: core.home.post(end))
    core.home.post(begin)


def _find(key: str) -> ManagedProcess | None:
    for manager in managers():
        if isinstance(manager, ProcessManager):
            try:
                return manager.get(key)
            except UnknownProcess:
                continue
    return None


async def _flow(comm: Any, stream: Stream, log: OutputLog) -> None:
    """Send what a log has and gets, a chunk at a time, until it is closed and read."""
    position = max(log.start, log.end - FIRST)
    comm.send({"stream": stream.value, "offset": position, "ended": False})  # the kernel answers, also where nothing was written yet
    while True:
        position, data = log.read(position, CHUNK)
        if data:
            comm.send({"stream": stream.value, "offset": position, "ended": False}, buffers=[data])
            position += len(data)
            await asyncio.sleep(PAUSE if position >= log.end else 0)
        elif log.closed:
            comm.send({"stream": stream.value, "offset": position, "ended": True})
            return
        else:
            await log.wait(position)
