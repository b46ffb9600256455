"""``nbprocs`` on the command line, also ``python -m nbprocs``: the processes of all kernels and the detached ones. The shims answer.

::

    nbprocs ps [--json]            nbprocs logs [-f] [-n N] [--stderr] NAME      nbprocs stop [--grace S] NAME…
    nbprocs wait NAME              nbprocs attach NAME                           nbprocs run [--detach] [--name NAME] -- COMMAND…
    nbprocs forget [NAME]          nbprocs doctor [--json]

Exit status 0 for success, 1 for a failure that is said on stderr, 2 for wrong words; ``run`` and ``wait`` exit as the process did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from nbprocs.display import bytes_text, duration
from nbprocs.engine.asking import VERSION, ask, ask_all, connect
from nbprocs.engine.both import BothStreams
from nbprocs.engine.child import Exit
from nbprocs.engine.places import runtime_folder
from nbprocs.engine.records import DetachedRecord, records
from nbprocs.engine.shimlib.record import looked_at
from nbprocs.errors import ProcessError, UnknownProcess
from nbprocs.redact import one_line, readable

__all__ = ["main"]

_PATIENCE = 1.0  # seconds for all shims to answer
_MARGIN = 10.0  # seconds beyond the grace until a stop is answered
_LEAVE = b"\x1d"  # Ctrl-], as telnet has it
_SIGNALLED = 128  # a shell's way to say that a signal ended it
_USUAL_LINES = 10
_SCREEN = 200  # lines that are shown again to who attaches
_SCREEN_BYTES = 64 << 10  # of them: one line may be a gigabyte

Row = dict[str, Any]


# -- who is there


def _rows() -> list[Row]:
    """Every live process that a shim knows, and the detached ones that have ended."""
    found: list[Row] = []
    for reply in ask_all(runtime_folder(), {"op": "status"}, timeout=_PATIENCE):
        if reply.answer is None:
            if not reply.gone:
                print(f"nbprocs: {reply.path.name} {reply.error}", file=sys.stderr)
            continue
        shim = reply.answer["shim"]
        common = {"socket": str(reply.path), "detached": shim["detached"], "kernel": shim["kernel_pid"]}
        found += [{**child, **common} for child in reply.answer["children"]]
    known = {row["id"] for row in found}
    found += [_row_of(record) for record in records() if record.id not in known]
    return sorted(found, key=lambda row: row["started"])


def _row_of(record: DetachedRecord) -> Row:
    code = record.exit_code
    return {
        "id": record.id,
        "name": record.name,
        "pid": record.pid,
        "status": record.state if code is None else f"exit {code}",
        "started": record.created,
        "ended": record.ended,
        "cpu": record.cpu,
        "rss": record.peak,
        "command": record.command,
        "detached": True,
        "kernel": record.started_by,
    }


def _one(key: str) -> Row:
    """The process with that id, or the youngest live one of that name, else the youngest. Raises UnknownProcess."""
    fitting = [row for row in _rows() if row["name"] == key or row["id"] == key or (len(key) >= 8 and row["id"].startswith(key))]  # noqa: PLR2004
    if not fitting:
        raise UnknownProcess(f"there is no process {key!r}", hint="`nbprocs ps` lists them all")
    return max(fitting, key=lambda row: ("socket" in row, row["started"]))


def _record(key: str) -> DetachedRecord:
    row = _one(key)
    for record in records():
        if record.id == row["id"]:
            return record
    raise ProcessError(f"{row['name']} belongs to the kernel {row['kernel']}, and so does its output", hint="look at it in its notebook")


# -- commands


def _ps(options: argparse.Namespace) -> int:
    rows = _rows()
    if options.json:
        print(json.dumps([{key: value for key, value in row.items() if key != "socket"} for row in rows], indent=2))
        return 0
    now = time.time()
    head = ("NAME", "ID", "PID", "STATUS", "TIME", "CPU", "MEMORY", "OF", "COMMAND")
    table = [head, *(_columns(row, now) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head) - 1)]
    room = os.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for line in table:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])[:room].rstrip())
    return 0


def _columns(row: Row, now: float) -> tuple[str, ...]:
    status = "paused" if row.get("paused") else row["status"]
    owner = "detached" if row["detached"] else f"kernel {row['kernel']}"
    took = duration((row.get("ended") or now) - row["started"]) if row["started"] else ""  # of a broken record nothing is known
    cpu = "" if row.get("cpu") is None else f"{row['cpu']:.1f} s"
    memory = "" if not row.get("rss") else bytes_text(row["rss"])
    command = one_line(row["command"] or "", limit=200)
    return readable(one_line(row["name"])), row["id"][:8], str(row["pid"] or ""), status, took, cpu, memory, owner, command


def _stop(options: argparse.Namespace) -> int:
    failed = 0
    for key in options.names:
        row = _one(key)
        if "socket" in row:
            request = {"op": "stop", "id": row["id"], "grace": options.grace}
            reply = ask(Path(row["socket"]), request, timeout=options.grace + _MARGIN)
            answer = reply.answer or {"ok": False, "error": reply.error}
        elif (record := _record(key)).live:  # its shim was killed, or stopped
            left = asyncio.run(_ended(record, options.grace))
            answer = {"ok": not left, "error": f"still there after SIGKILL: {left}"}
        else:
            print(f"{row['name']} has ended already ({row['status']})")
            continue
        print(f"stopped {row['name']}" if answer["ok"] else f"nbprocs: {row['name']}: {answer['error']}")
        failed |= not answer["ok"]
    return int(failed)


async def _ended(record: DetachedRecord, grace: float) -> str:
    """End it without asking its shim alone; returns who is left."""
    from nbprocs.engine.detaching import DetachedChild  # noqa: PLC0415 - `ps` need not load it

    return ", ".join(f"pid {one.pid}" for one in await DetachedChild(record, _Listener(lambda _: None)).end_tree(grace=grace))


def _logs(options: argparse.Namespace) -> int:
    record = _record(options.name)
    looked_at(record.folder)
    shown = ("stderr",) if options.stderr else ("stdout", "stderr")
    both = _both(record, shown)
    if dropped := sum(log.dropped for log in both.logs):
        print(f"nbprocs: {bytes_text(dropped)} in the middle were dropped", file=sys.stderr)
    outs = (None, sys.stdout.buffer) if options.stderr else (sys.stdout.buffer, sys.stderr.buffer)
    _copy(both.take_lines(options.lines), outs)
    if options.follow and record.live:
        asyncio.run(_followed(record, lambda ends: _grown(both, {name: ends[name] for name in shown}, outs)))
    return 0


def _both(record: DetachedRecord, streams: Sequence[str] = ("stdout", "stderr")) -> BothStreams:
    both = BothStreams(record.folder)
    both.grown({stream: record.size(stream) for stream in streams})
    return both


def _copy(parts: Iterable[tuple[int, bytes]], outs: tuple[Any, Any]) -> None:
    """Write them to the output of their stream; each is flushed before the other is written to, so that a terminal has them in order."""
    for stream, data in parts:
        outs[stream].write(data)
        outs[stream].flush()


def _grown(both: BothStreams, ends: dict[str, int], outs: tuple[Any, Any]) -> None:
    both.grown(ends)
    _copy(both.take(), outs)


async def _followed(record: DetachedRecord, grown: Callable[[dict[str, int]], None]) -> Any:
    """Follow it until its end; returns how it ended."""
    from nbprocs.engine.detaching import DetachedChild  # noqa: PLC0415 - `ps` need not load it

    child = DetachedChild(record, _Listener(grown))
    await child.follow()
    return child.exit


class _Listener:
    """Hears of output, and of nothing else."""

    def __init__(self, grown: Callable[[dict[str, int]], None]) -> None:
        self.grown = grown

    def _nothing(self, *_: object, **__: object) -> None:
        """Of no interest here."""

    output = exited = drained = ending = tree_ended = changed = because = _nothing


def _wait(options: argparse.Namespace) -> int:
    row = _one(options.name)
    if row["detached"]:
        record = _record(options.name)
        how = asyncio.run(_followed(record, lambda _: None))
        return _code(how.exit_code, how.signal)
    request = {"v": VERSION, "op": "wait", "id": row["id"]}
    with connect(Path(row["socket"])) as shim:
        shim.setblocking(True)
        shim.sendall(json.dumps(request).encode() + b"\n")
        with shim.makefile() as answers:
            said = json.loads(answers.readline() or "{}")  # nothing: it was killed
    if "error" in said:
        raise ProcessError(f"{row['name']} has just ended: {said['error']}")
    if said.get("status") is None:
        return _code(None, None)
    how = Exit.from_code(os.waitstatus_to_exitcode(said["status"]), at=0.0)
    return _code(how.exit_code, how.signal)


def _code(exit_code: int | None, signal: int | None) -> int:
    if exit_code is None and signal is None:
        print("nbprocs: nobody saw how it ended: its shim was killed", file=sys.stderr)
        return 1
    return exit_code if exit_code is not None else _SIGNALLED + (signal or 0)


def _attach(options: argparse.Namespace) -> int:
    record = _record(options.name)
    if not record.live:
        print(f"nbprocs: {record.name} has ended; `nbprocs logs {record.name}` shows its output", file=sys.stderr)
        return 1
    return asyncio.run(_attached(record))


async def _attached(record: DetachedRecord) -> int:
    from nbprocs.engine.detaching import DetachedChild  # noqa: PLC0415 - as above
    from nbprocs.engine.terminal_modes import raw  # noqa: PLC0415

    both, outs, keys = _both(record), (sys.stdout.buffer, sys.stderr.buffer), sys.stdin.fileno()
    _copy(both.take_lines(_SCREEN, most=_SCREEN_BYTES), outs)
    child = DetachedChild(record, _Listener(lambda ends: _grown(both, ends, outs)))
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    with raw(keys) if record.pty else contextlib.nullcontext():
        if record.pty and sys.stdout.isatty():
            columns, rows = os.get_terminal_size()
            child.resize(rows, columns)
        print(f"[attached to {record.name}; Ctrl-] leaves it running]\r", file=sys.stderr)  # only now: what was typed before is discarded

        def read() -> None:
            typed.put_nowait(data := os.read(keys, 4096))
            if not data:  # its end is reported for ever
                loop.remove_reader(keys)

        loop.add_reader(keys, read)
        async with _together(child.follow(), _type(child, typed)) as either:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(keys)
    if child.exit is None:
        print(f"\r\n[{record.name} goes on]", file=sys.stderr)
        return 0
    return _code(child.exit.exit_code, child.exit.signal)


@contextlib.asynccontextmanager
async def _together(*coroutines: Any) -> Any:
    """Run them side by side; those that have not ended at the end are cancelled."""
    from nbprocs.engine.home import Home, Tasks  # noqa: PLC0415 - as above

    tasks = Tasks(Home.current())
    started = [tasks.start(coroutine, name="attach") for coroutine in coroutines]
    try:
        yield started
    finally:
        await tasks.aclose()


async def _type(child: Any, typed: asyncio.Queue[bytes]) -> None:
    """Hand on what is typed, until Ctrl-]."""
    while True:
        data = await typed.get()
        if not data:
            await child.close_stdin()
            await asyncio.get_running_loop().create_future()  # its end is waited for beside
        if _LEAVE in data:
            return
        with contextlib.suppress(BrokenPipeError):
            await child.write(data)


def _run(options: argparse.Namespace) -> int:
    if not options.command:
        print("nbprocs: run needs a command: nbprocs run -- make -j4", file=sys.stderr)
        return 2
    return asyncio.run(_ran(options))


async def _ran(options: argparse.Namespace) -> int:
    from nbprocs.processes import ProcessManager  # noqa: PLC0415 - as above

    program, *args = options.command
    wanted = {"name": options.name, "pty": options.pty or None, "timeout": options.timeout, "working_dir": options.dir}
    given = {name: value for name, value in wanted.items() if value is not None}
    async with ProcessManager() as pm:
        if options.detach:
            process = await pm.spawn(program, *args, detach=True, stdin=options.stdin, **given)
            print(f"{process.name}  {process.id}  pid {process.pid}")
            return 0
        process = await pm.spawn(program, *args, stdin=False, **given)
        outs = _poured(process, "stdout", sys.stdout.buffer), _poured(process, "stderr", sys.stderr.buffer)
        async with _together(*outs) as both:
            result = await process.wait()
            await asyncio.wait(both)
            for error in filter(None, (task.result() for task in both)):
                raise error
    return _code(result.exit_code, result.signal)


async def _poured(process: Any, stream: str, out: Any) -> OSError | None:
    """Write what it writes, as it comes, until its end; where nobody takes that any more, stop it and return why."""
    log = getattr(process, stream)
    position = 0
    while True:
        position, data = log.read(position, 1 << 20)
        if data:
            try:
                out.write(data)
                out.flush()
            except OSError as error:
                await process.stop()
                return error
            position += len(data)
        elif log.closed:
            return None
        else:
            await log.wait(position)


def _forget(options: argparse.Namespace) -> int:
    from nbprocs.processes.detached import forget  # noqa: PLC0415 - as above

    print(f"forgot {forget(options.name)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import nbprocs  # noqa: PLC0415 - as above

    report = nbprocs.doctor()
    print(report.json(indent=2) if options.json else report)
    return int(not report.ok)


# -- words


def _count(word: str) -> int:
    """A number of lines, for argparse."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no number of lines")
    return int(word)


def _seconds(word: str) -> float:
    """A time, for argparse."""
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(word)) and seconds >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{word!r} is no number of seconds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nbprocs", description="The processes of all kernels, and the detached ones.")
    commands = parser.add_subparsers(dest="command_name", required=True, metavar="COMMAND")

    def add(name: str, act: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        return made

    ps = add("ps", _ps, "list all processes")
    ps.add_argument("--json", action="store_true", help="for programs")
    logs = add("logs", _logs, "show the output of a detached process, both streams in the order in which they came, each where it belongs")
    logs.add_argument("name", help="its name or id")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    logs.add_argument("-n", "--lines", type=_count, help=f"the last N lines, say {_USUAL_LINES}; all by default")
    logs.add_argument("--stderr", action="store_true", help="its standard error only, on standard output")
    stop = add("stop", _stop, "end processes with all that they started")
    stop.add_argument("names", nargs="+", metavar="NAME", help="name or id")
    stop.add_argument("--grace", type=_seconds, default=5.0, help="seconds between SIGTERM and SIGKILL (5)")
    wait = add("wait", _wait, "wait for the end of a process, and exit as it did")
    wait.add_argument("name", help="its name or id")
    attach = add("attach", _attach, "type to a detached process and see its output; Ctrl-] leaves it running")
    attach.add_argument("name", help="its name or id")
    run = add("run", _run, "run a command here, or detached")
    run.add_argument("--detach", action="store_true", help="let it go on by itself; adopt it from a notebook, or attach")
    run.add_argument("--name", help="by default the program's name and a number")
    run.add_argument("--pty", action="store_true", help="give it a terminal")
    run.add_argument("--stdin", action="store_true", help="with --detach: keep its stdin open for attach")
    run.add_argument("--timeout", type=_seconds, help="seconds after which it is ended")
    run.add_argument("--dir", help="its working directory")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")
    forget = add("forget", _forget, "remove the records and logs of detached processes that have ended")
    forget.add_argument("name", nargs="?", help="only this one")
    doctor = add("doctor", _doctor, "look for what is wrong here, and say how to mend it")
    doctor.add_argument("--json", action="store_true", help="for programs")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Carry out one command line; returns the exit status."""
    options = _parser().parse_args(words)
    if getattr(options, "command", None) and options.command[0] == "--":
        options.command = options.command[1:]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.open(os.devnull, os.O_WRONLY), "w", closefd=False))  # noqa: SIM115 - for good
        with contextlib.suppress(AttributeError):  # a test's
            getattr(sys, name).reconfigure(errors="replace")  # names and commands are in any alphabet
    try:
        status: int = options.act(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has enough; what is flushed at the exit must not say so again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + signal.SIGPIPE
    except (ProcessError, ValueError, OSError) as error:
        print(f"nbprocs: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
