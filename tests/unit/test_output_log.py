"""OutputLog and LineReader: nothing is lost, split or counted wrongly, whatever the chunks."""

import asyncio
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.engine.output import LineReader, OutputLog

CHUNKS = st.lists(st.one_of(st.binary(max_size=40), st.integers(1, 90_000).map(lambda n: bytes(range(256)) * (n // 256 + 1))), max_size=12)


def read_all(log: OutputLog) -> list[tuple[int, bytes]]:
    position, parts = 0, []
    while True:
        position, data = log.read(position, 10_000)
        if not data:
            return parts
        parts.append((position, data))
        position += len(data)


def test_a_system_without_pread_reads_and_spills_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.pread")
    log = OutputLog(memory_limit=100_000)
    pieces = [bytes([n]) * 70_000 for n in range(8)]
    for n, piece in enumerate(pieces):
        log.feed(piece)
        assert b"".join(data for _, data in read_all(log)) == b"".join(pieces[: n + 1])
    assert log.spilled > 0
    assert log.getvalue() == b"".join(pieces)


@given(CHUNKS, st.integers(1, 200_000), st.integers(0, 200_000))
def test_kept_and_dropped_bytes_account_for_everything(chunks: list[bytes], memory: int, spill: int) -> None:
    log = OutputLog(memory_limit=memory, spill_limit=spill)
    for chunk in chunks:
        log.feed(chunk)
    whole = b"".join(chunks)
    assert log.end == len(whole)
    kept = b"".join(data for _, data in read_all(log))
    assert len(kept) + log.dropped == len(whole)
    assert kept == log.getvalue()
    assert all(whole[position : position + len(data)] == data for position, data in read_all(log))
    assert log.in_memory <= memory + (64 << 10)
    assert log.spilled <= spill
    assert whole.endswith(log.tail(1000)[-1:])


@given(st.lists(st.text(alphabet="aé€😀\r \0", max_size=20), max_size=30), st.data())
def test_lines_do_not_depend_on_the_chunks(lines: list[str], data: st.DataObject) -> None:
    raw = "".join(f"{line}\n" for line in lines).encode()
    log = OutputLog()
    reader = LineReader(log)
    seen: list[str] = []
    while raw:
        cut = data.draw(st.integers(1, len(raw)))
        log.feed(raw[:cut])
        raw = raw[cut:]
        seen += reader.take() or []
    log.close()
    while (block := reader.take()) is not None:
        seen += block
    assert seen == [line.removesuffix("\r") for line in lines]


def test_a_last_line_without_newline_and_invalid_utf8_are_lines() -> None:
    log = OutputLog()
    log.feed(b"ok\n\xff\xfe bad\nhalf \xe2\x82")
    reader = LineReader(log)
    assert reader.take() == ["ok", "�� bad"]
    assert reader.take() == []
    log.close()
    assert reader.take() == ["half �"]
    assert reader.take() is None


def test_a_reader_in_the_dropped_part_is_told_how_much_it_missed() -> None:
    log = OutputLog(memory_limit=64 << 10, spill_limit=0)
    for _ in range(4):
        log.feed(b"x" * (64 << 10))
    log.close()
    reader = LineReader(log)
    first = reader.take()
    assert first == [f"[nbprocs: {3 * (64 << 10):,} bytes of output dropped here]"]
    assert log.dropped == 3 * (64 << 10)


def test_a_full_disk_drops_and_counts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    log = OutputLog(memory_limit=64 << 10)

    def full(chunk: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for _ in range(2):
        log.feed(b"a" * (64 << 10))
    assert log.spilled == 64 << 10
    assert log._spill is not None
    real, fake = log._spill, type("Full", (), {"write": staticmethod(full), "fileno": log._spill.fileno})()
    log._spill = fake
    for _ in range(3):
        log.feed(b"b" * (64 << 10))
    assert log.dropped == 3 * (64 << 10)
    assert log.spill_error is not None
    assert "No space left" in caplog.text
    assert log.getvalue() == b"a" * (64 << 10) + b"b" * (64 << 10)
    assert real is not fake


async def test_waiting_readers_are_woken_by_output_and_by_the_end() -> None:
    log = OutputLog()
    first = asyncio.ensure_future(log.wait(0))
    second = asyncio.ensure_future(log.wait(3))
    await asyncio.sleep(0)
    log.feed(b"abc")
    await first
    assert not second.done()
    log.close()
    await second


async def test_a_cancelled_waiter_leaves_nothing() -> None:
    log = OutputLog()
    waiting = asyncio.ensure_future(log.wait(0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(log._waiters) == 0


def test_small_writes_cost_no_object_each() -> None:
    log = OutputLog()
    for _ in range(100_000):
        log.feed(b"x\n")
    assert len(log._chunks) <= 200_000 // (64 << 10) + 1
    assert log.last_line() == "x"
