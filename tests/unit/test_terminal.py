"""What is shown of an output: as a terminal shows it, both streams in their order, harmless."""

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbprocs
from nbprocs import ProcessConfig, ProcessFailed, ProcessManager, ProcessResult, TaskScheduler
from nbprocs.terminal import Interleaved, clipped, shown, tail_text
from tests.children import python_child


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("10%\r20%\r", ["20%"]),
        ("10%\r20%\rdone\n", ["done"]),
        ("abcdef\rxy\n", ["xycdef"]),
        ("abcdef\r\x1b[Kxy\n", ["xy"]),
        ("abcdef\r\x1b[2Kxy", ["xy"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x1b\\", ["red link"]),
        ("abc\b\bX\n", ["aX"]),
        ("bell\x07", ["bell"]),
        ("\x1b[2J\x1b[Hhome", ["home"]),
        ("\x00\x1b", ["\\x00\\x1b"]),
        ("", []),
        ("\n", [""]),
    ],
)
def test_a_row_stands_as_it_would_on_a_screen(written, seen):
    assert shown(written) == seen


@given(st.text(alphabet=st.sampled_from("ab\r\n\b\x1b[K31m;]\x07\x9b é"), max_size=40))
def test_nothing_that_a_terminal_obeys_is_left(text):
    for row in shown(text):
        assert row.isprintable() or "\x9b" not in row
        assert not set(row) & {"\x1b", "\r", "\n", "\b", "\x07", "\x9b"}


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=5)), max_size=300))
def test_interleaving_keeps_lines_whole_and_loses_nothing_of_the_last_runs(runs):
    order, streams = Interleaved(), [b"", b""]
    for stream, data in runs:
        order.add(stream, len(data))
        streams[stream] += data
    merged = order.tail(*streams)
    if len(runs) < 100:
        assert sorted(merged.replace(b"\n", b"")) == sorted(b"".join(streams).replace(b"\n", b""))


def test_lines_of_two_streams_stand_in_their_order():
    order = Interleaved()
    for stream, data in ((0, b"one\ntw"), (1, b"warning\n"), (0, b"o\n"), (1, b"no end")):
        order.add(stream, len(data))
    assert order.tail(b"one\ntwo\n", b"warning\nno end") == b"one\nwarning\ntwo\nno end"


def test_frames_of_a_bar_count_as_one_line():
    bar = "".join(f"\r{n}%" for n in range(100))
    assert tail_text(f"why it failed\n{bar}\nend\n".encode(), lines=3) == "why it failed\n99%\nend"


def test_the_middle_of_much_is_left_out():
    text = clipped("\n".join(map(str, range(1000))), lines=10)
    assert text.split("\n") == ["0", "1", "2", "3", "4", "… 990 lines …", "995", "996", "997", "998", "999"]
    assert len(clipped("x" * 100_000)) < 20_100


# --- in errors, results and snapshots -----------------------------------------------------------------------------------------


async def test_the_reason_on_stdout_is_shown_behind_a_warning_on_stderr():
    """pytest, make and mypy say why on stdout; one byte on stderr must not hide it."""
    code = "sys.stdout.write('FAILED test_a\\n'); sys.stdout.flush(); time.sleep(0.05); sys.stderr.write('warning\\n'); sys.exit(1)"
    async with ProcessManager() as pm:
        with pytest.raises(ProcessFailed) as caught:
            await pm.run(*python_child(code), name="tests")
        assert caught.value.last_output == "FAILED test_a\nwarning"
        assert pm.get("tests").tail() == "FAILED test_a\nwarning"
        assert pm.get("tests").info.last_line == "warning"


async def test_an_error_carries_what_was_written():
    async with ProcessManager() as pm:
        with pytest.raises(ProcessFailed) as caught:
            await pm.run("sh", "-c", "echo out; echo err >&2; exit 3")
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.stdout, error.stderr, error.result.exit_code) == (b"out\n", b"err\n", 3)
        with pytest.raises(nbprocs.ExecutionTimeout) as late:
            await pm.run("sh", "-c", "echo out; sleep 100", timeout=0.3)
        assert late.value.stdout == b"out\n"
    assert ProcessFailed("x").stdout == b""


async def test_errors_and_frames_are_harmless():
    async with ProcessManager() as pm:
        with pytest.raises(ProcessFailed) as caught:
            await pm.run("sh", "-c", "printf '\\033[31mred\\033[0m\\n'; exit 1", "\x1b[2J", name="\x1b[31mname")
        assert "\x1b" not in str(caught.value)
        assert caught.value.last_output == "red"
        frame = pm.frame()
        assert "\x1b" not in frame["command"].iloc[0] + frame["last_line"].iloc[0]


async def test_a_name_that_is_not_utf8_can_be_shown(tmp_path):
    program = bytes(tmp_path) + b"/caf\xe9"
    with open(program, "w") as file:
        file.write("#!/bin/sh\necho hello\n")
    os.chmod(program, 0o755)
    async with ProcessManager() as pm:
        result = await pm.run(program, b"\xff")
        assert result.text == "hello\n"
        pm.frame().to_csv().encode()
        for text in (repr(result), str(result), repr(pm), pm.list()[0].name, pm._repr_mimebundle_()["text/html"]):
            text.encode()


async def test_a_result_shows_what_was_written():
    async with ProcessManager() as pm:
        result = await pm.run("sh", "-c", "printf '10%%\\r20%%\\r\\033[32mdone\\033[0m\\n<b>'")
        bundle = result._repr_mimebundle_()
        assert bundle["text/plain"] == str(result)
        assert str(result).split("\n")[1:] == ["done", "<b>"]
        assert "&lt;b&gt;" in bundle["text/html"]
        assert "\n" not in repr(result)
        big = await pm.run("seq", "1000000")
        assert len(str(big)) < 30_000
        assert str(big).endswith("\n1000000")


def test_a_result_without_an_order_shows_both_streams():
    result = ProcessResult(process_id="1", name="x", command="x", exit_code=1, stdout_source=b"out\n", stderr_source=b"err\n")
    assert result.tail() == "out\nerr"


def test_the_unknown_exit_status_is_explained():
    result = ProcessResult(process_id="1", name="x", command="x", exit_code=None, status=nbprocs.ProcessStatus.FAILED)
    assert "the helper process that waits for the children was killed" in str(nbprocs.errors.error_from_result(result))


def test_a_config_shows_itself_harmless():
    assert "\x1b" not in repr(ProcessConfig(command="x", args=["\x1b[2J"], name="n"))


async def test_names_are_harmless_where_they_are_shown() -> None:
    async with ProcessManager() as pm, TaskScheduler() as sch:
        process = await pm.spawn("true", name="a\x1b[31m\nb")
        result = await process.wait()
        task = sch.schedule("true", name="a\x1b[31m")
        await task
        for shown in (repr(process), repr(result), str(result), repr(task)):
            assert "\x1b" not in shown
            assert "\\x1b[31m" in shown
