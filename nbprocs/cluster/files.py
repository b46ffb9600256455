"""Files that a job is given: named by the hash of their contents, sent once to each worker, laid into the attempt's own folder.

::

    kernel: described(path) ──► (name, hash, size, mode) ──put──► worker: missing? ──blob, 1 MiB each──► Shelf ──copy──► scratch
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = ["PART", "Shelf", "described", "parts"]

PART = 1 << 20  # bytes of a file in one message


def described(files: Iterable[tuple[str, str]]) -> tuple[tuple[str, str, int, int], ...]:
    """Read each file once: (name there, SHA-256, size, mode). Blocks; raises OSError."""
    found = []
    for name, path in files:
        with open(path, "rb") as source:  # noqa: PTH123 - text from a Job
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            about = os.fstat(source.fileno())
        found.append((name, digest, about.st_size, about.st_mode & 0o777))
    return tuple(found)


def parts(path: str, offset: int) -> tuple[bytes, bool]:
    """One part of a file and whether it is the last. Blocks; raises OSError."""
    with open(path, "rb") as source:  # noqa: PTH123 - text from a Job
        source.seek(offset)
        data = source.read(PART)
        return data, not source.read(1)


class Shelf:
    """The files that a worker has, by hash, and the scratch folders of its attempts. All of it is in one folder, which ``clear`` removes.

    A file is complete or it is not there: parts go to a second name, and the hash is checked before the first name is given.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, digest: str) -> bool:
        """Whether the whole file is here."""
        return (self.folder / "files" / _checked(digest)).exists()

    def write(self, session: str, digest: str, offset: int, data: bytes, *, last: bool) -> None:
        """Take a part, also one that has come before. Raises OSError, and ValueError where the whole is not what its hash says."""
        if self.has(digest):
            return
        place = self.folder / "files"
        place.mkdir(parents=True, exist_ok=True)
        part = place / f"{_checked(digest)}.{_checked(session)}"
        with part.open("r+b" if part.exists() else "w+b") as target:
            target.seek(offset)
            target.write(data)
            if last:
                target.truncate()
        if last:
            with part.open("rb") as source:
                found = hashlib.file_digest(source, "sha256").hexdigest()
            if found != digest:
                part.unlink()
                raise ValueError("a file came that is not what its hash says: it was changed while it was sent")
            part.rename(place / digest)

    def scratch(self, attempt: str, files: Iterable[tuple[str, str, int, int]]) -> str:
        """A new folder with copies of these files; its path. Raises OSError, and ValueError for a name that leads out of it."""
        folder = self.folder / "attempts" / hashlib.sha256(attempt.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest, _, mode in files:
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise ValueError(f"the file name {name!r} leads out of the attempt's folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            # A copy, not a link: an attempt that writes into its file must not change what the next one is given.
            shutil.copyfile(self.folder / "files" / _checked(digest), target)
            target.chmod(mode)
        return str(folder)

    @staticmethod
    def remove(scratch: str) -> None:
        """An attempt's folder is not needed any more."""
        shutil.rmtree(scratch, ignore_errors=True)

    def clear(self) -> None:
        """Everything goes."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _checked(name: str) -> str:
    if not name.isalnum():
        raise ValueError(f"{name!r} is no hash and no session")
    return name
