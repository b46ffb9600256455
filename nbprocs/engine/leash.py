"""The leash: one small process per kernel that ends what is left when the kernel is gone, however it went.

::

    kernel ──pipe (never written)────────────►  leash_main.py, own session, SIGINT and SIGTERM ignored
       └──── table: one record a live child ─►  (an unlinked file both hold; read only when the kernel is gone)

The kernel writes a record at each start and clears it at each end: one ``pwrite``, and the leash does not even wake. When the pipe
closes, or the kernel's pidfd tells its end (a forked worker of somebody else may hold the pipe open), the leash ends every session in the
table and every process that carries the kernel's token in its environment: SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading

from nbprocs.engine.home import log
from nbprocs.engine.table import Identity

__all__ = ["Leash", "leash"]

RECORD = struct.Struct("=qd")  # pid (0: free), start
_SCRIPT = os.path.join(os.path.dirname(__file__), "leash_main.py")


class Leash:
    """This process's leash. Made at the first child; replaced if somebody killed it."""

    def __init__(self) -> None:
        self.token = os.urandom(16).hex()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._table: int | None = None
        self._pipe: int | None = None
        self._free: list[int] = []
        self._size = 0

    @property
    def pid(self) -> int | None:
        """The leash process, None before the first child."""
        return None if self._process is None else self._process.pid

    def ensure(self) -> None:
        """Have a living leash. A millisecond the first time; a check of its pulse after that."""
        if os.name != "posix":
            return
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def _start(self) -> None:
        if self._table is None:
            self._table = _anonymous_file()
        if self._pipe is not None:
            os.close(self._pipe)
        theirs, self._pipe = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-E", _SCRIPT, str(theirs), str(self._table), str(os.getpid()), self.token],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},  # not even an outer kernel's token: an outer leash must not end this one before its work is done
                start_new_session=True,
                pass_fds=(theirs, self._table),
            )
        except OSError as error:
            log.error("the leash could not be started (%s): if this kernel is killed, its children will stay", error)
            os.close(self._pipe)
            self._pipe = None
        finally:
            os.close(theirs)

    @property
    def descriptors(self) -> set[int]:
        """What it keeps open in this process."""
        return {fd for fd in (self._pipe, self._table) if fd is not None}

    def hold(self, identity: Identity) -> int:
        """Put a child on the leash; returns its place for release()."""
        with self._lock:
            slot = self._free.pop() if self._free else self._size
            self._size = max(self._size, slot + 1)
            self._write(slot, RECORD.pack(identity.pid, identity.start))
            return slot

    def release(self, slot: int) -> None:
        """The child is gone and reaped: its pid may be somebody else's from now on."""
        with self._lock:
            self._write(slot, RECORD.pack(0, 0.0))
            self._free.append(slot)

    def _write(self, slot: int, record: bytes) -> None:
        if self._table is not None:
            os.pwrite(self._table, record, slot * RECORD.size)

    def forget(self) -> None:
        """In a forked child: the children are the parent's affair, and the pipe must close with the parent."""
        for fd in (self._pipe, self._table):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        if self._process is not None:
            self._process.returncode = 0  # not this process's child: nobody must wait for it here
        self.__init__()  # type: ignore[misc]  # start over as in a new interpreter


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nbprocs-leash")
    import tempfile  # noqa: PLC0415 - only where there is no memfd

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


leash = Leash()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leash.forget)
