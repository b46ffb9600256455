"""The wire between a kernel and its shim: frames on a stream socket, descriptors beside them.

::

    4 bytes: length  |  marshal of a tuple: (operation, fields …)         one frame
    a frame that carries descriptors is one sendmsg with SCM_RIGHTS       so that each received set belongs to the next such frame

Both ends are the same interpreter of the same installation, so marshal (the fastest of the standard library) is understood by both; the
first
frame in each direction is HELLO with the version all the same, since a shim outlives an upgrade of the package under a running kernel. A
stream
and not SEQPACKET: an argument list may be 2 MB, more than a datagram can be, and macOS has no SEQPACKET.

Times are ``time.monotonic()``, which all processes of a system share. A *number* is a child, unique in its kernel; a *key* names a
question.
"""

from __future__ import annotations

import marshal
import os
import struct
from typing import Any, NamedTuple

__all__ = [
    "MANAGERS",
    "VERSION",
    "Exited",
    "StartOrder",
    "StopOrder",
    "Survivor",
    "Unpacker",
    "child_part",
    "is_tag",
    "new_base",
    "pack",
    "parts_of_tag",
    "tag_of_child",
]

VERSION = 1

# kernel → shim
CONNECT = 1  # () and one descriptor: a loop's own connection; on the first socket only
PING = 2  # (serial)
SERVE = 3  # (path): answer status questions there
GUARD = 4  # (number, pid, start, token, tag): a child that this shim did not start
RELEASE = 5  # (number): it has ended
ENVIRONMENT = 6  # (id, mapping): for the orders that follow
START = 7  # StartOrder
STOP = 8  # StopOrder
SIGNAL = 9  # (number, signal): to the child itself
PAUSE = 10  # (number): SIGSTOP to the whole tree
RESUME = 11  # (number): SIGCONT
INTERRUPT = 12  # (number): SIGINT as a terminal's Ctrl-C
TAKE = 13  # (number, pid, start, tag, stop, remaining, label): a child of a shim that died
STRAYS = 14  # (key)
LEAVE = 15  # (): end, if nobody descends from you; else STAYS is the answer
INHERIT = 16  # (): another shim died: what belongs to the kernel may be anywhere
RENAME = 17  # (number, name): what its manager calls it from now on

# shim → kernel
HELLO = 32  # (version, pid, tags)
PONG = 33  # (serial)
STARTED = 34  # (number, pid)
REFUSED = 35  # (number, step, errno, text)
EXITED = 36  # Exited
ENDING = 37  # (number, reason): the shim ends it: its time is up, or somebody asked by the status socket
ENDED = 38  # (key, survivors): an ending that was asked for, or, with key -number, one that ENDING told of
PAUSED = 39  # (number, paused): somebody asked by the status socket
STRAY = 40  # (pid, start, command)
STRAYS_ARE = 41  # (key, ((pid, start, command), …))
LOG = 42  # (text)
STAYS = 43  # (): it was asked to leave, and somebody descends from it

_HEAD = struct.Struct("=I")
_LARGEST = 64 << 20  # bytes: what is longer is no frame of ours

# A tag: 28 bits of a kernel's own, the first of them set, 12 of a manager, 22 of a child. Below 2**62: in Python a resource limit is a
# signed
# number. Two kernels of one host have the same 28 bits once in a hundred million; and then the tags mean something below their shims only.
_CHILD_BITS, _MANAGER_BITS, _BASE_BITS = 22, 12, 28
MANAGERS = 1 << _MANAGER_BITS  # a manager's part is below


class StopOrder(NamedTuple):
    """End one child's tree, or all that a manager started."""

    key: int
    number: int | None  # None: all of the manager
    manager: int
    signal: int
    leader_first: bool
    grace: float  # seconds
    pid: int  # its session, 0: none
    token: str  # what stands in the environment of its descendants, or begins there
    strays: bool  # what nothing ties to anybody goes as well


class StartOrder(NamedTuple):
    """Start a child. The descriptors come with the frame: stdin, stdout, stderr as far as their place is not -1, then those to inherit."""

    number: int
    tag: int
    argv: tuple[bytes, ...]
    executable: bytes | None
    environment: int  # the id of an ENVIRONMENT
    token: bytes  # the value of NBPROCS_TOKEN; empty: none
    cwd: bytes | None
    places: tuple[int, int, int]  # which of the descriptors is stdin, stdout, stderr; -1: /dev/null
    inherit: tuple[int, ...]  # the numbers that the other descriptors get
    pty: bool  # descriptor 0 is the slave of a pseudo-terminal: open it as the controlling one
    options: dict[str, Any] | None  # umask, nice, rlimits, user, group, extra_groups: None where nothing was asked for
    stop: tuple[int, bool, float, float | None]  # signal, leader first, grace, timeout
    label: tuple[str, str, str | None]  # id, name, masked command
    changes: dict[bytes, bytes | None] | None = None  # of the environment, for this start alone; None removes a variable


class Exited(NamedTuple):
    """A child has ended and was reaped; ``status`` as wait() gives it, None where nobody can know it."""

    number: int
    status: int | None
    at: float
    cpu: float | None  # seconds
    peak: int | None  # bytes
    read: int | None = None  # bytes from disk
    written: int | None = None  # bytes to disk


class Survivor(NamedTuple):
    """Who is left after SIGKILL."""

    pid: int
    name: str
    refused: bool  # we may not signal it


def pack(*message: Any) -> bytes:
    """One frame."""
    data = marshal.dumps(message, 2)
    return _HEAD.pack(len(data)) + data


class Unpacker:
    """Takes the stream's bytes as they come and gives whole frames.

    >>> unpacker = Unpacker()
    >>> frame = pack(PING, 7)
    >>> unpacker.feed(frame[:5]), unpacker.feed(frame[5:] + frame)
    ([], [(2, 7), (2, 7)])
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[Any, ...]]:
        """The frames that are complete now. Raises ValueError for what can't be a frame: the stream is of no use from there on."""
        if self._rest:
            data = self._rest + data
        found = []
        place, size = 0, len(data)
        while size - place >= _HEAD.size:
            (length,) = _HEAD.unpack_from(data, place)
            if length > _LARGEST:
                msg = f"a frame of {length} bytes"
                raise ValueError(msg)
            end = place + _HEAD.size + length
            if end > size:
                break
            found.append(marshal.loads(memoryview(data)[place + _HEAD.size : end]))  # noqa: S302 - a private socket pair between parts of one program
            place = end
        self._rest = data[place:]
        return found


def new_base() -> int:
    """A kernel's part of its tags."""
    return (1 << (_BASE_BITS - 1)) | (int.from_bytes(os.urandom(4), "little") & ((1 << (_BASE_BITS - 1)) - 1))


def is_tag(value: int | None) -> bool:
    """Whether a soft limit is a tag, of whatever kernel."""
    return value is not None and value >> (_CHILD_BITS + _MANAGER_BITS + _BASE_BITS - 1) == 1


def child_part(number: int) -> int:
    """What a tag holds of a child's number."""
    return number & ((1 << _CHILD_BITS) - 1)


def tag_of_child(base: int, manager: int, number: int) -> int:
    """The tag of a child; ``base`` is its kernel's."""
    return (base << (_CHILD_BITS + _MANAGER_BITS)) | ((manager & ((1 << _MANAGER_BITS) - 1)) << _CHILD_BITS) | child_part(number)


def parts_of_tag(tag: int) -> tuple[int, int, int]:
    """(base, manager, child) of a tag, the last two cut to their bits.

    >>> parts_of_tag(tag_of_child(5, 2, 77))
    (5, 2, 77)
    """
    return tag >> (_CHILD_BITS + _MANAGER_BITS), (tag >> _CHILD_BITS) & ((1 << _MANAGER_BITS) - 1), tag & ((1 << _CHILD_BITS) - 1)
