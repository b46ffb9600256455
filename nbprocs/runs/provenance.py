"""Where a run came from: the git revision of its folder, and what is in the files that its command names. Off the loop; it blocks.

Git is asked at most for a few percent of the time: a repository that was looked at a moment ago is taken as it was then, unless one of the
run's own input files has changed since. The content of those is hashed for each run, or known by its (inode, size, time of change).
"""

import hashlib
import os
import shlex
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nbprocs.engine.query import output_of

__all__ = ["Inputs", "Repositories", "content_hash", "has_names"]

FILES = 16  # of a command that are hashed
LARGEST = 64 << 20  # bytes; of a larger file only size and time are noted
_APART = 1.0  # seconds between two looks at a repository, at the least
_SHARE = 20  # and so many times as long as the last look took
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_KEPT = 4_096


class Repositories:
    """What git says of folders, remembered for a moment."""

    def __init__(self) -> None:
        self._roots: dict[str, str | None] = {}
        self._known: dict[str, tuple[float, dict[str, Any] | None]] = {}  # root -> (good until, answer)

    def state(self, folder: str, *, anew: bool = False) -> dict[str, Any] | None:
        """``revision``, ``dirty`` and ``diff`` (a hash of the difference to that revision); None outside of a repository."""
        if folder not in self._roots:
            if len(self._roots) > _KEPT:
                self._roots.clear()
            self._roots[folder] = next((str(at) for at in (Path(folder), *Path(folder).parents) if (at / ".git").exists()), None)
        root = self._roots[folder]
        if root is None:
            return None
        until, answer = self._known.get(root, (0.0, None))
        began = time.monotonic()
        if anew or began >= until:
            answer = _look(root)
            now = time.monotonic()
            self._known[root] = (now + max(_APART, _SHARE * (now - began)), answer)
        return answer


def _look(root: str) -> dict[str, Any] | None:
    revision = output_of([*_GIT, "rev-parse", "HEAD"], cwd=root, env=_QUIET)
    if revision is None:  # no commit yet, or git isn't there
        return None
    difference = output_of([*_GIT, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color"], cwd=root, env=_QUIET)
    found: dict[str, Any] = {"revision": revision.decode("ascii", "replace").strip(), "root": root}
    if difference is not None:
        found["dirty"] = bool(difference)
        found["diff"] = hashlib.sha256(difference).hexdigest()[:16] if difference else None
    return found


def content_hash(path: str) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Inputs:
    """The files that commands name, by content."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int, int, int], str] = OrderedDict()
        self._latest: dict[str, int] = {}  # path -> time of change, when last seen

    def of(
        self, words: Sequence[str], folder: str, *, shell: bool, began: float, every: bool = False
    ) -> tuple[dict[str, dict[str, Any]], bool]:
        """By name as given: ``hash``, ``size``; ``late`` where it was written to after the start. And whether one has changed meanwhile.

        ``every`` takes each word for a file, not those alone that a command's words can be.
        """
        found: dict[str, dict[str, Any]] = {}
        fresh = False
        for word in words if every else _candidates(words, shell=shell):
            path = os.path.join(folder, word)  # noqa: PTH118 - many words, few of them files
            try:
                status = os.stat(path)  # noqa: PTH116
            except (OSError, ValueError):
                continue
            if not stat.S_ISREG(status.st_mode) or word in found:
                continue
            fresh |= self._latest.get(path) != status.st_mtime_ns
            self._latest[path] = status.st_mtime_ns
            found[word] = self._describe(path, status, began)
            if len(found) == FILES:
                break
        if len(self._latest) > _KEPT:
            self._latest.clear()
        return found, fresh

    def _describe(self, path: str, status: os.stat_result, began: float) -> dict[str, Any]:
        about: dict[str, Any] = {"size": status.st_size}
        if status.st_mtime > began:
            about["late"] = True  # perhaps it is an output
        if status.st_size > LARGEST:
            about["time"] = status.st_mtime
            return about
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._known:
            try:
                self._known[key] = content_hash(path)
            except OSError as error:
                return {**about, "unreadable": error.strerror or type(error).__name__}
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return {**about, "hash": self._known[key]}


def has_names(words: Sequence[str], *, shell: bool) -> bool:
    """Whether any of a command's words can be the name of a file: of a bare program, none can."""
    return next(_candidates(words, shell=shell), None) is not None


def _candidates(words: Sequence[str], *, shell: bool) -> Iterator[str]:
    """Words that may be names of files: arguments, the values of ``--option=value``, and a command that is a path."""
    if shell:
        try:
            words = ("", *shlex.split(words[0][:4096]))
        except ValueError:
            words = ("", *words[0][:4096].split())
    for at, word in enumerate(words[:256]):
        if at == 0 and "/" not in word:
            continue  # a program of the system
        yield from (word, word.partition("=")[2]) if word.startswith("-") and "=" in word else (word,)
