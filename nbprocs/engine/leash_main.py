"""The leash process itself: run by nbprocs.engine.leash with ``python -I -S -E``; standard library only, imported by nobody.

Arguments: the pipe, the table of records, the kernel's pid, the kernel's token.
"""

import contextlib
import os
import select
import signal
import struct
import sys
import time

GRACE = 0.7  # seconds between SIGTERM and SIGKILL: all must be over within two seconds
QUIET = 2  # empty looks in a row: a fork may have been under way during the first
GIVE_UP = 20.0  # seconds after which only what the system itself holds can be left
RECORD = struct.Struct("=qd")


def wait_for_the_end(pipe: int, kernel: int) -> None:
    """Return when the kernel is gone: its pipe closed, or its pidfd readable."""
    waiting = [pipe]
    with contextlib.suppress(AttributeError, OSError):  # not on this system, or it is gone already: the pipe tells then
        waiting.append(os.pidfd_open(kernel))
    if os.getppid() == kernel:
        select.select(waiting, [], [])


def records(table: int) -> "dict[int, float]":
    """The sessions that were alive when the kernel ended."""
    size = os.fstat(table).st_size
    data = os.pread(table, size, 0)
    return {pid: start for pid, start in RECORD.iter_unpack(data[: size - size % RECORD.size]) if pid}


def rows() -> "dict[int, tuple[int, int, str, float]]":
    """Every process: parent, session, state, start. From /proc, else from ps, which every POSIX system has."""
    found = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        names = []
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    data = file.read()
                fields = data[data.rindex(b")") + 2 :].split()
                found[int(name)] = (int(fields[1]), int(fields[3]), chr(fields[0][0]), float(fields[19]))
            except (OSError, ValueError):
                continue
    if not found:
        for line in os.popen("ps -A -o pid= -o ppid= -o pgid= -o stat="):  # noqa: S605 - a constant
            pid, parent, group, state = line.split()[:4]
            found[int(pid)] = (int(parent), int(group), state[0], 0.0)
    return found


def carries(pid: int, token: bytes) -> bool:
    """Whether a process was started with our token in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return token in file.read()
    except OSError:
        return False


def targets(held: "dict[int, float]", token: bytes) -> "list[int]":
    """Who must go: members of held sessions, carriers of the token, and the descendants of both."""
    table = rows()
    me = os.getpid()
    started = {pid: start for pid, start in held.items() if pid not in table or table[pid][3] in (start, 0.0)}
    chosen = {
        pid
        for pid, (_, session, state, _start) in table.items()
        if state not in "ZX" and pid != me and (pid in started or session in started or carries(pid, token))
    }
    grew = True
    while grew:
        more = {pid for pid, (parent, _, state, _start) in table.items() if parent in chosen and state not in "ZX"} - chosen
        chosen |= more
        grew = bool(more)
    return sorted(chosen)


def send(pids: "list[int]", *numbers: int) -> None:
    """Signals to each; those that have gone meanwhile are what we want."""
    for pid in pids:
        for number in numbers:
            try:
                os.kill(pid, number)
            except OSError:
                break


def main() -> None:
    """Wait, then end everything."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    pipe, table, kernel, token = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
    wait_for_the_end(pipe, kernel)
    held = records(table)
    began = time.monotonic()
    told: set[int] = set()
    quiet = 0
    while quiet < QUIET and time.monotonic() - began < GIVE_UP:
        left = targets(held, token)
        quiet = 0 if left else quiet + 1
        if time.monotonic() - began < GRACE:
            send([pid for pid in left if pid not in told], signal.SIGTERM, signal.SIGCONT)
            told.update(left)
        else:
            send(left, signal.SIGKILL)
        time.sleep(0.02 if left else 0.05)


if __name__ == "__main__":
    main()
