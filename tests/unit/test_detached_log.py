"""The log of a detached process that writes flat out: its oldest segments are written over, and no reader ever takes the one for the other."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nbprocs
from nbprocs.engine import detaching, recorded, records
from nbprocs.engine.shimlib import segments
from tests.unit.test_detached import home, pm, until  # noqa: F401 - fixtures

ROOT = Path(nbprocs.__file__).parents[1]
SMALL = 64 << 10
BLOCK = 64 << 10

# Each 8 bytes of its output say where they stand: the number of their block of 64 KiB, and their place in it.
WORDS = """
def block_of(number, made=bytearray(b"".join((word * 8).to_bytes(4, "little") + bytes(4) for word in range(8192)))):
    for at, byte in enumerate(number.to_bytes(4, "little"), 4):
        made[at::8] = bytes([byte]) * 8192
    return made
"""
COUNTS = f"""
import itertools, os
{WORDS}
for number in itertools.count():
    view = memoryview(block_of(number))
    while view:
        view = view[os.write(1, view):]
"""
# Small segments, so that there are thousands of them a second; what it has done is to be read from the folder alone.
KEEPS = """
import os, sys
from nbprocs.engine.shimlib import segments
segments.SEGMENT, segments._FAST = int(sys.argv[2]), 1e9
log = segments.Segments(sys.argv[1], "stdout", limit=5 * segments.SEGMENT)
while log.take(0):
    pass
"""
_made: dict[str, Callable[[int], bytearray]] = {}
exec(WORDS, _made)  # noqa: S102 - the same as the writer's
block_of = _made["block_of"]


def check(position: int, data: bytes) -> None:
    """Each byte is what was written at that offset."""
    first = position // BLOCK
    should = b"".join(bytes(block_of(number)) for number in range(first, (position + len(data)) // BLOCK + 1))
    assert data == should[position - first * BLOCK :][: len(data)], f"wrong bytes at {position:,}"


@contextlib.contextmanager
def flat_out(folder: Path):
    """A writer, and a process that keeps what it writes, killed at the end."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        subprocess.Popen([sys.executable, "-c", COUNTS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer,
        subprocess.Popen([sys.executable, "-c", KEEPS, str(folder), str(SMALL)], stdin=writer.stdout, env=environ) as keeper,
    ):
        try:
            yield
        finally:
            keeper.kill()
            writer.kill()


def seen(folder: Path) -> recorded.RecordedLog:
    """The log as somebody sees it who knows nothing but the folder."""
    view = recorded.RecordedLog("stdout")
    view.lie_in(folder)
    view.grown(records.DetachedRecord(id="", folder=folder).size("stdout"))
    return view


def check_all(view: recorded.RecordedLog) -> int:
    """Read all that is kept; returns how much that was. What is missing is counted."""
    position = kept = 0
    while position < view.end:
        position, data = view.read(position, BLOCK)
        check(position, data)
        position += len(data)
        kept += len(data)
    assert kept + view.dropped == view.end
    return kept


@pytest.fixture
def small(monkeypatch):
    """Small segments, and every writer is a fast one."""
    monkeypatch.setattr(segments, "SEGMENT", SMALL)
    monkeypatch.setattr(segments, "_FAST", 1e9)


class Fed:
    """A log that a test feeds, a block at a time."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.log = segments.Segments(str(folder), "stdout", limit=limit)
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._number = 0

    def feed(self, blocks: int = 1) -> None:
        """So many blocks more."""
        for _ in range(blocks):
            os.write(self._write, block_of(self._number))
            self._number += 1
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.log.take(self._read)

    def close(self) -> None:
        """No more."""
        os.close(self._read)
        os.close(self._write)
        self.log.close()


@pytest.fixture
def fed(tmp_path, small):
    """A log of a head and four more segments."""
    made = Fed(tmp_path, 5 * SMALL)
    yield made
    made.close()


@pytest.mark.parametrize("spliced", [True, False])
def test_the_files_of_the_oldest_are_used_again(tmp_path, fed, monkeypatch, spliced):
    monkeypatch.setattr(fed.log, "_pipes", spliced)
    fed.feed(6)
    before = {path.stat().st_ino for path in tmp_path.iterdir()}
    fed.feed(20)
    assert {path.stat().st_ino for path in tmp_path.iterdir()} == before
    view = seen(tmp_path)
    assert (view.end, view.dropped, check_all(view)) == (26 * BLOCK, fed.log.dropped, 5 * SMALL)


def test_what_comes_slowly_lies_in_files_of_its_own(tmp_path, fed, monkeypatch):
    """They tell by their size what is valid of them, on disk too: a machine that fails leaves nothing wrong."""
    fed.feed(8)
    assert sum("~" in path.name for path in tmp_path.iterdir()) == 4
    monkeypatch.setattr(segments, "_FAST", 0.0)
    fed.feed(8)
    assert {path.stat().st_size for path in tmp_path.iterdir() if "~" not in path.name} == {SMALL}
    assert not any("~" in path.name for path in tmp_path.iterdir())
    assert check_all(seen(tmp_path)) == 5 * SMALL


def test_after_a_restart_of_the_machine_they_count_as_dropped(tmp_path, fed, monkeypatch):
    """Which of their names and bytes had reached the disk nobody knows."""
    fed.feed(26)
    view, _ = seen(tmp_path), monkeypatch.setattr(segments, "_this_boot", lambda: "another")
    assert (view.read(0, 8), view.read(SMALL, 8)) == ((0, bytes(8)), (view.end, b""))
    later = seen(tmp_path)
    assert check_all(later) == SMALL
    assert later.dropped == later.end - SMALL > 0


def test_a_segment_that_is_written_over_while_it_is_read_gives_nothing(tmp_path, fed, monkeypatch):
    fed.feed(6)
    view = seen(tmp_path)
    view.read(view.end - BLOCK, 8)
    pread = os.pread

    def overtaken(fd: int, size: int, offset: int) -> bytes:
        if size == BLOCK:  # the end was looked at, the bytes were not yet
            fed.feed(3 + 4)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", overtaken)
    place = view.end - BLOCK
    assert view.read(place, BLOCK) == (view.end, b"")
    monkeypatch.setattr(os, "pread", pread)
    assert check_all(seen(tmp_path)) == 5 * SMALL


def test_only_what_was_written_is_read_from_one_that_is_being_written_over(tmp_path, fed, monkeypatch):
    """Behind the end old bytes lie; that the end moves on while they are read makes them no better."""
    fed.feed(6)
    os.write(fed._write, bytes(block_of(6))[:100])
    fed.log.take(fed._read)
    assert seen(tmp_path).end == 6 * BLOCK + 100
    begin, name = segments.segments_of(tmp_path, "stdout")[-1]
    pread = os.pread

    def moves_on(fd: int, size: int, offset: int) -> bytes:
        data = pread(fd, size, offset)
        if size != 8:
            os.write(fed._write, bytes(block_of(6))[100:])
            fed.log.take(fed._read)
        return data

    monkeypatch.setattr(os, "pread", moves_on)
    with open(tmp_path / name, "rb") as file:
        data = segments.read_segment(file.fileno(), (begin, name), begin, BLOCK)
    assert data == bytes(block_of(6))[:100]


@pytest.mark.slow
def test_a_killed_keeper_leaves_only_right_bytes(tmp_path, small):
    chance = random.Random(int(os.environ.get("NBPROCS_TEST_SEED", "7")))
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        least = chance.randrange(2 << 20, 8 << 20)
        with flat_out(folder):
            while records.DetachedRecord(id="", folder=folder).size("stdout") < least:
                pass
        view = seen(folder)
        assert check_all(view) > 3 * SMALL
        assert view.end >= least


def test_a_reader_whom_the_writer_laps_reads_only_right_bytes(tmp_path, small):
    position = gaps = 0
    view = recorded.RecordedLog("stdout")
    view.lie_in(tmp_path)
    record = records.DetachedRecord(id="", folder=tmp_path)
    with flat_out(tmp_path):
        while gaps < 100:
            view.grown(record.size("stdout"))
            at, data = view.read(position, 5000)
            check(at, data)
            gaps += at > position
            position = at + len(data)
    check_all(seen(tmp_path))


async def test_a_shim_that_is_killed_while_its_child_writes_flat_out_leaves_only_right_bytes(home, pm, monkeypatch):  # noqa: F811
    """With segments of the true size."""
    monkeypatch.setitem(detaching.launch.__kwdefaults__, "limit", 3 * segments.SEGMENT)
    job = await pm.spawn(sys.executable, "-c", COUNTS, name="job", detach=True)
    await until(lambda: job.stdout.end > 5 * segments.SEGMENT)
    [record] = records.records()
    os.kill(record.shim_pid, 9)
    await job.wait(60)
    assert check_all(seen(record.folder)) > segments.SEGMENT
