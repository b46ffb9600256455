"""Starting a child inside the shim, and saying which step of it failed.

``posix_spawn`` is the fast way: the shim is small and single-threaded, so its own folder, umask and tag may be changed around it and put
back.
Where the child needs more (another user, niceness, limits) it is fork, and each step in the child in the order of subprocess; what fails
there
comes back by a pipe that exec closes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import resource
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from nbprocs.engine.shimlib.proc import ON_LINUX, RLIMIT_LOCKS
from nbprocs.engine.shimlib.wire import StartOrder

__all__ = ["TAGS", "Refusal", "launch", "stand_back"]

TOKEN = b"NBPROCS_TOKEN"
_FRESH = 0.1  # seconds: a thousand starts of one program look along PATH once in a while
_RESET = [number for number in (getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ")) if number is not None]
_HARD = resource.getrlimit(RLIMIT_LOCKS)[1] if ON_LINUX else 0
_UNTAGGED = resource.getrlimit(RLIMIT_LOCKS) if ON_LINUX else (0, 0)
TAGS = ON_LINUX and (_HARD == resource.RLIM_INFINITY or _HARD >= 1 << 62)  # whether the limit can hold a tag of ours

_scheduler: dict[str, Any] = {}  # the policy of scheduling that a child gets, where it is not this process's own


def stand_back(*, really: bool = True) -> None:
    """Let who wakes this process go on first, for the kernel often has more to ask; or, not ``really``, be as every other process again.

    The batch policy: its tasks have their share, and take the processor from nobody when they wake. Children do not get it. A kernel that
    has another policy than the common one has chosen it for its children, too: then nothing is changed.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    with contextlib.suppress(OSError):
        if really and os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            _scheduler["scheduler"] = (os.SCHED_OTHER, os.sched_param(0))
        elif not really and _scheduler:
            os.sched_setscheduler(0, *_scheduler.pop("scheduler"))


class Refusal(Exception):
    """A start that did not come about: the step, the system's number and its text."""

    def __init__(self, step: str, error: OSError | ValueError) -> None:
        super().__init__(step)
        self.step = step
        self.number: int = (error.errno or 0) if isinstance(error, OSError) else 0
        self.text: str = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def launch(order: StartOrder, fds: Sequence[int], environment: Mapping[bytes, bytes]) -> int:
    """Start it and return its pid; raises Refusal, and nothing was left behind. The descriptors stay the caller's."""
    env = environment
    if order.changes:
        env = {name: value for name, value in {**environment, **order.changes}.items() if value is not None}
    if order.token:
        env = {**env, TOKEN: order.token}
    moved: list[int] = []
    try:
        if order.inherit:
            fds = moved = _out_of_the_way(fds, order.inherit)
        with _tagged(order.tag):
            if order.options:
                return _forked(order, fds, env, order.options)
            return _spawned(order, fds, env)
    except OSError as error:
        raise Refusal("descriptors", error) from error
    finally:
        for fd in moved:
            os.close(fd)


class _tagged:  # noqa: N801 - reads as what it does; contextlib's costs five times as much
    def __init__(self, tag: int) -> None:
        self._tag = tag

    def __enter__(self) -> None:
        if TAGS:
            resource.setrlimit(RLIMIT_LOCKS, (self._tag, _HARD))

    def __exit__(self, *_: object) -> None:
        if TAGS:
            resource.setrlimit(RLIMIT_LOCKS, _UNTAGGED)


def _out_of_the_way(fds: Sequence[int], targets: Sequence[int]) -> list[int]:
    """Copies above every number that the child is to have: dup2 to one of those would overwrite another one of ours."""
    least = max(targets) + 1
    made: list[int] = []
    try:
        made.extend(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least) for fd in fds)
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return made


# -- the fast way


def _spawned(order: StartOrder, fds: Sequence[int], env: Mapping[bytes, bytes]) -> int:
    if order.cwd is not None:
        try:
            os.chdir(order.cwd)
        except (OSError, ValueError) as error:
            raise Refusal("cwd", error) from error
    try:
        program = find(order.executable or order.argv[0], env.get(b"PATH"), order.cwd)
        return os.posix_spawn(
            program, order.argv, env, file_actions=_actions(order, fds), setsid=True, setsigmask=(), setsigdef=_RESET, **_scheduler
        )
    except (OSError, ValueError) as error:
        raise Refusal("program", error) from error
    finally:
        if order.cwd is not None:
            os.chdir("/")


def _actions(order: StartOrder, fds: Sequence[int]) -> list[tuple[Any, ...]]:
    if order.pty:
        # The first terminal that a session leader opens becomes its controlling one.
        name = os.ttyname(fds[0])
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 1, name, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 1, 2)]
        actions.append((os.POSIX_SPAWN_OPEN, 0, b"/dev/null", os.O_RDONLY, 0) if order.places[0] < 0 else (os.POSIX_SPAWN_DUP2, 1, 0))
        used = 1
    else:
        actions = [
            (os.POSIX_SPAWN_OPEN, target, b"/dev/null", os.O_RDWR, 0) if place < 0 else (os.POSIX_SPAWN_DUP2, fds[place], target)
            for target, place in enumerate(order.places)
        ]
        used = len({place for place in order.places if place >= 0})
    actions += [(os.POSIX_SPAWN_DUP2, fd, target) for fd, target in zip(fds[used:], order.inherit, strict=True)]
    return actions


_found: dict[tuple[bytes, bytes | None, bytes | None], tuple[bytes, float]] = {}  # the last program found, and until when that counts


def find(command: bytes, path: bytes | None, cwd: bytes | None = None) -> bytes:
    """The program that exec would find, looked for from the current folder along the child's PATH. Raises OSError as exec would."""
    if b"/" in command:
        if os.path.isdir(command):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), command)
        os.stat(command)  # says itself that it is not there
        if not os.access(command, os.X_OK, effective_ids=_BY_EFFECT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), command)
        return command
    known = _found.get((command, path, cwd))
    if known is not None and known[1] > time.monotonic():
        return known[0]
    folders = [folder or b"." for folder in (os.fsencode(os.defpath) if path is None else path).split(b":")]
    for folder in folders:
        full = folder + b"/" + command
        if os.access(full, os.X_OK, effective_ids=_BY_EFFECT) and not os.path.isdir(full):
            _found.clear()
            _found[command, path, cwd] = full, time.monotonic() + _FRESH
            return full
    number = errno.EACCES if any(os.path.isfile(folder + b"/" + command) for folder in folders) else errno.ENOENT
    raise OSError(number, os.strerror(number), command)


_BY_EFFECT = os.access in os.supports_effective_ids


# -- the way with every option


def _forked(order: StartOrder, fds: Sequence[int], env: Mapping[bytes, bytes], options: dict[str, Any]) -> int:
    heard, said = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(heard)
        os.close(said)
        raise Refusal("fork", error) from error
    if pid == 0:
        _become(order, fds, env, options, said)
    os.close(said)
    data = b""
    while piece := os.read(heard, 4096):  # until exec closes it
        data += piece
    os.close(heard)
    if not data:
        return pid
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    step, number, text = marshal.loads(data)  # noqa: S302 - from our own fork
    raise Refusal(step, OSError(number, text) if number else ValueError(text))


def _become(order: StartOrder, fds: Sequence[int], env: Mapping[bytes, bytes], options: dict[str, Any], said: int) -> NoReturn:
    """In the child: every step in the order of subprocess, then exec. Never returns."""
    step = ["session"]
    try:
        said = fcntl.fcntl(said, fcntl.F_DUPFD_CLOEXEC, max((2, *order.inherit)) + 1)
        _prepare(order, fds, options, step)
        step[0] = "program"
        os.execve(find(order.executable or order.argv[0], env.get(b"PATH")), order.argv, env)  # noqa: S606 - without a shell is the point
    except (OSError, ValueError, OverflowError) as error:
        number, text = ((error.errno or 0), error.strerror or str(error)) if isinstance(error, OSError) else (0, str(error))
        os.write(said, marshal.dumps((step[0], number, text)))
    finally:
        os._exit(255)


def _prepare(order: StartOrder, fds: Sequence[int], options: dict[str, Any], step: list[str]) -> None:
    os.setsid()
    if _scheduler:
        os.sched_setscheduler(0, *_scheduler["scheduler"])
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    step[0] = "descriptors"
    for action in _actions(order, fds):
        if action[0] == os.POSIX_SPAWN_OPEN:
            fd = os.open(action[2], action[3])
            os.dup2(fd, action[1])
            if fd != action[1]:
                os.close(fd)
        else:
            os.dup2(action[1], action[2])
    if order.cwd is not None:
        step[0] = "cwd"
        os.chdir(order.cwd)
    for name, apply in _OPTIONS:
        if name in options:
            step[0] = name
            apply(options[name])


def _limit(wanted: Mapping[int, tuple[int, int]]) -> None:
    for number, pair in wanted.items():
        resource.setrlimit(number, pair)


# Limits and niceness while we still may, the user last: after it nothing of this is allowed any more.
_OPTIONS = (
    ("umask", os.umask),
    ("nice", os.nice),
    ("rlimits", _limit),
    ("extra_groups", os.setgroups),
    ("group", lambda number: os.setregid(number, number)),
    ("user", lambda number: os.setreuid(number, number)),
)
