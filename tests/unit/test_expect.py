"""expect(): text as it comes; lines() of programs that only write carriage returns; blocks()."""

import asyncio
import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import CommunicationError, ExpectTimeout, ProcessConfig, ProcessManager
from nbprocs.engine.output import LineReader, OutputLog
from nbprocs.processes.window import TextWindow
from tests.children import SLEEPER, python_child

TALKER = """
import sys
def ask(what, where=sys.stdout):
    where.write(what); where.flush()
    return sys.stdin.readline().strip()
name = ask('name? ')
age = ask(f'age of {name}? ', sys.stderr)
print(f'{name} is {age}')
ask('more? ')
"""


@pytest.mark.parametrize("background", [False, True])
async def test_a_dialogue_of_prompts(background):
    async with ProcessManager(background=background) as pm:
        proc = await pm.spawn(*python_child(TALKER), stdin=True)
        await proc.expect("name[?] $")
        await proc.send_line("Ada")
        assert (await proc.expect(re.compile(r"age of (\w+)"), stream="stderr"))[1] == "Ada"
        await proc.send_line("36")
        assert (await proc.expect(r"is (\d+)\n"))[1] == "36"
        await proc.expect("more")
        await proc.close_stdin()
        with pytest.raises(CommunicationError, match="ended without output that matches 'name'"):
            await proc.expect("name")
        assert [line async for line in proc.lines()] == ["name? Ada is 36", "more? "]


async def test_what_does_not_come_in_time_is_a_timeout_with_the_last_lines():
    async with ProcessManager() as pm:
        proc = await pm.spawn(*python_child("ready('still loading'); forever()"), name="web")
        with pytest.raises(ExpectTimeout, match=r"web wrote nothing that matches 'up' within 0\.3 s") as caught:
            await proc.expect("up", timeout=0.3)
        assert caught.value.last_output == "still loading"
        assert (await proc.expect("still (.*)"))[1] == "loading", "what did not match is looked at again"
        with pytest.raises(ExpectTimeout):
            await proc.expect("still", timeout=0)


@pytest.mark.parametrize("wrong", [{"pattern": "("}, {"pattern": 5}, {"pattern": re.compile(b"x")}, {"timeout": -1}, {"timeout": "5"}])
async def test_wrong_expectations_are_refused(wrong):
    async with ProcessManager() as pm:
        proc = await pm.spawn(*SLEEPER)
        with pytest.raises((TypeError, ValueError)):
            await proc.expect(**{"pattern": "x", **wrong})


async def test_an_expectation_that_is_cancelled_loses_nothing():
    async with ProcessManager(background=True) as pm:
        proc = await pm.spawn(*python_child("[ready(str(n)) for n in range(200)]; forever()"))
        for _ in range(50):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.0005):
                    await proc.expect("nothing", timeout=None)
        for number in range(200):
            assert (await proc.expect(r"(\d+)\n"))[1] == str(number)


@given(
    st.text(alphabet="aé€😀\n\r? ", max_size=60),
    st.sampled_from(["utf-8", "utf-16", "latin-1", "shift_jis"]),
    st.lists(st.integers(0, 200), max_size=6),
    st.text(alphabet="aé€😀?", min_size=1, max_size=2),
)
def test_where_the_next_search_begins_does_not_depend_on_the_chunks(text, encoding, cuts, wanted):
    """All matches, one after the other, are those of the whole text."""
    raw = text.encode(encoding, "ignore")
    whole = raw.decode(encoding)
    config = ProcessConfig(command="x", encoding=encoding)
    log = OutputLog()
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(raw)], strict=True):
        if raw[begin:end]:
            log.feed(raw[begin:end])
    pattern = re.compile(re.escape(wanted))
    found, position = [], 0
    if encoding == "utf-16":  # its first characters say the order of bytes: a second window can't know it
        window = TextWindow(log, 0, config)
        first = window.search(pattern)
        assert (first is None) == (pattern.search(whole) is None)
        return
    while True:
        window = TextWindow(log, position, config)
        match = window.search(pattern)
        if match is None:
            break
        found.append(match[0])
        assert window.behind(match) > position
        position = window.behind(match)
    assert found == pattern.findall(whole)


async def test_a_program_that_only_writes_carriage_returns_is_read_frame_by_frame():
    """ffmpeg, rsync, git, curl: a bar that grows, and no newline for minutes."""
    code = r"""
    for n in (10, 20, 30):
        sys.stdout.write(f'{n}%\r'); sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write('100%\r\ndone\n')
    """
    async with ProcessManager() as pm:
        proc = await pm.spawn(*python_child(code), stdin=True)
        async with contextlib.aclosing(proc.lines()) as lines:
            assert [await anext(lines) for _ in range(3)] == ["10%", "20%", "30%"]
            await proc.send_line("")
            assert [line async for line in lines] == ["100%", "done"]


def test_frames_and_the_rest_of_a_line():
    log = OutputLog()
    reader = LineReader(log)
    log.feed(b"\r10%\r20%\r30")
    assert reader.take() == []
    assert reader.frames() == ["10%", "20%"]
    assert reader.frames() == []
    log.feed(b"%\r")
    assert (reader.take(), reader.frames()) == ([], ["30%"])
    log.feed(b"\n\nend\n")
    assert reader.take() == ["", "end"], "the newline behind the last frame is no line; the next is one"


def test_a_line_without_end_comes_in_pieces():
    log = OutputLog()
    reader = LineReader(log, limit=1000)
    pieces = []
    for _ in range(10):
        log.feed("é".encode() * 150)
        pieces += reader.take() or []
    log.feed(b"\n")
    log.close()
    while (block := reader.take()) is not None:
        pieces += block
    assert "".join(pieces) == "é" * 1500
    assert max(map(len, pieces)) < 1000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "latin-1", "shift_jis"])
def test_lines_of_other_encodings(encoding):
    raw = "one\ntwo ä\r\nthree".encode(encoding, "replace")
    log = OutputLog()
    reader = LineReader(log, encoding=encoding)
    seen = []
    for byte in raw:
        log.feed(bytes([byte]))
        seen += reader.take() or []
    log.close()
    while (block := reader.take()) is not None:
        seen += block
    assert "\n".join(seen) == raw.decode(encoding).replace("\r\n", "\n")


async def test_blocks_are_the_lines_in_lists():
    async with ProcessManager() as pm:
        proc = await pm.spawn("seq", "50000")
        blocks = [block async for block in proc.blocks()]
        assert [line for block in blocks for line in block] == [str(n) for n in range(1, 50001)]
        assert len(blocks) < 1000
        assert [line async for line in proc.lines(longest=2)][:3] == ["1", "2", "3"]
        with pytest.raises((TypeError, ValueError), match="longest"):
            await anext(proc.lines(longest=0))


async def test_text_is_decoded_as_asked():
    async with ProcessManager() as pm:
        proc = await pm.spawn("printf", r"caf\351\n", encoding="latin-1")
        assert [line async for line in proc.lines()] == ["café"]
        assert (await proc.wait()).text == "café\n"


@pytest.mark.parametrize("longest", [1, 10, 1000, 1 << 20])
async def test_no_piece_of_a_line_is_longer_than_asked(longest):
    text = "é日🙂" * (400_000 if longest > 1000 else 2000)
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=text.encode())
        await process.wait()  # all is written: no piece may end inside a character for that
        pieces = [piece async for piece in process.lines(longest=longest)]
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= max(longest, 8)
    assert all(pieces)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-le"])
async def test_what_is_carried_over_may_be_longer_than_a_line_may_be(encoding):
    """It is kept as UTF-8, which can take half as much again as what was read; reading goes on by the byte then, and does not stop."""
    text = "\n" + "漢字仮名" * 50
    code = f"sys.stdout.buffer.write({text!r}.encode({encoding!r}))"
    async with ProcessManager() as pm, asyncio.timeout(60):
        process = await pm.spawn(*python_child(code), encoding=encoding)
        assert "".join([piece async for piece in process.lines(longest=8)]) == text.strip()
