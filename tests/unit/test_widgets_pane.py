"""The output pane: what it sends, in which order, and how much."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import ProcessConfig, ProcessManager, Stream
from nbprocs.processes.process import process_core
from nbprocs.widgets import OutputPane
from nbprocs.widgets.output_pane import BURST, FILE_PART, PAGE, RATE, Budget, PaneJournal, newest
from nbprocs.widgets.python_line import spawn_line
from tests.unit.widgets_kit import shown
from tests.waiting import until

segments = st.lists(st.tuples(st.sampled_from(Stream), st.integers(1, 50)), max_size=20)


def placed(sizes: list[tuple[Stream, int]]) -> list[tuple[Stream, int, int]]:
    at = dict.fromkeys(Stream, 0)
    found = []
    for stream, size in sizes:
        found.append((stream, at[stream], at[stream] + size))
        at[stream] += size
    return found


@given(segments, st.integers(0, 300))
def test_newest_keeps_the_end_in_order(sizes: list[tuple[Stream, int]], allowed: int) -> None:
    given_ = placed(sizes)
    kept, skipped = newest(given_, allowed)
    total = sum(size for _, size in sizes)
    assert sum(end - start for _, start, end in kept) == min(total, allowed)
    assert skipped == max(total - allowed, 0)
    if kept:
        assert kept == [(kept[0][0], kept[0][1], kept[0][2]), *given_[len(given_) - len(kept) + 1 :]]


@given(segments, st.integers(1, 200))
def test_the_journal_holds_the_newest_and_merges(sizes: list[tuple[Stream, int]], limit: int) -> None:
    journal = PaneJournal(limit)
    for segment in placed(sizes):
        journal.add(*segment)
    held = sum(end - start for _, start, end in journal.segments)
    assert held == journal._held
    total = sum(size for _, size in sizes)
    assert held >= min(total, limit)
    assert all(a[0] is not b[0] for a, b in zip(journal.segments, list(journal.segments)[1:], strict=False))


def test_the_budget_fills_at_its_rate() -> None:
    budget = Budget()
    assert budget.left(100.0) == BURST
    budget.take(BURST)
    assert budget.left(100.0) == 0
    assert budget.left(100.1) == pytest.approx(RATE / 10, abs=2)
    assert budget.left(200.0) == BURST


async def test_output_is_shown_as_it_comes_and_again_from_the_log() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True)
        await process.send_line("before")
        assert await process.receive_output() == "before"
        with shown(OutputPane(process)) as tab:
            head = (await tab.hello())["pane"]["head"]
            assert (head["status"], head["stdin"]) == ("running", True)
            assert tab.output() == b"before\n"
            await tab.call("pane", "send", text="after")
            await tab.delta("pane", lambda d: d.get("out"))
            assert tab.output() == b"before\nafter\n"
            tab.buffers.clear()
            tab.heard.clear()
            await tab.hello()
            assert tab.output() == b"before\nafter\n"
            await tab.call("pane", "close_stdin")
            end = await tab.delta("pane", lambda d: d.get("head", {}).get("took") is not None)
            assert end["head"]["status"] == "completed"
            assert not end["head"]["stdin"]
            assert "stdin" in (await tab.call("pane", "send", text="late"))["error"]


async def test_streams_keep_their_order() -> None:
    code = "import sys\nfor line in sys.stdin:\n print(line.strip(), file=sys.stderr if line[0] == 'e' else sys.stdout, flush=True)"
    async with ProcessManager() as pm:
        process = await pm.spawn(sys.executable, "-c", code, stdin=True)
        with shown(OutputPane(process)) as tab:
            await tab.hello()
            for line in ("out1", "err1", "out2"):
                await process.send_line(line)
                await until(lambda line=line: line.encode() in tab.output())
            with shown(OutputPane(process)) as late:
                await late.hello()
                assert late.output() == b"out1\nerr1\nout2\n", "one that begins to look later has them in order, too"
            tab.heard.clear()
            tab.buffers.clear()
            out = (await tab.hello())["pane"]["out"]
            assert [stream for stream, _, _ in out] == ["stdout", "stderr", "stdout"]
            assert tab.output() == b"out1\nerr1\nout2\n"


async def test_a_flood_is_cut_to_the_budget_and_its_end_is_shown() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn(
            sys.executable,
            "-c",
            "import sys; sys.stdin.readline(); print('x' * 79 + '\\n' * 1); [sys.stdout.write('y' * 79 + '\\n') for _ in range(200_000)]; print('the end')",
            stdin=True,
        )
        with shown(OutputPane(process)) as tab:
            await tab.hello()
            await process.send_line("go")
            await until(lambda: tab.output().endswith(b"the end\n"))
            deltas = tab.deltas("pane")
            skipped = sum(d.get("skip", 0) for d in deltas)
            sent = sum(size for d in deltas for _, size, _ in d.get("out", ()))
            assert sent + skipped == process.stdout.end
            assert skipped > 0
            assert sent < BURST + RATE * 20


async def test_the_whole_log_can_be_fetched_and_paged() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn(sys.executable, "-c", "for i in range(300_000): print(i)")
        await process.wait()
        with shown(OutputPane(process)) as tab:
            assert (await tab.hello())["pane"]["more"]
            got, position = b"", 0
            while True:
                reply = await tab.call("pane", "file", stream="stdout", position=position)
                data = reply["data"]
                chunk = tab.buffers[tab.heard.index(reply)][0]
                assert len(chunk) <= FILE_PART
                got, position = got + chunk, data["next"]
                if position >= data["end"]:
                    break
            assert got == process.stdout.getvalue()
            page = await tab.call("pane", "page", stream="stdout", before=1_500_000)
            chunk = tab.buffers[tab.heard.index(page)][0]
            assert got[page["data"]["at"] : page["data"]["end"]] == chunk
            assert got[page["data"]["at"] - 1 : page["data"]["at"]] == b"\n"
            first = await tab.call("pane", "page", stream="stdout", before=10)
            assert first["data"]["at"] == 0


async def test_the_whole_log_can_be_searched_from_its_end() -> None:
    async with ProcessManager() as pm:
        code = "for i in range(300_000): print('Needle' if i in (7, 250_000) else i)"
        process = await pm.spawn(sys.executable, "-c", code)
        await process.wait()
        log = process.stdout.getvalue()
        with shown(OutputPane(process)) as tab:
            await tab.hello()

            async def find(**args: object) -> tuple[dict[str, int], bytes]:
                reply = await tab.call("pane", "find", **args)
                assert reply["ok"], reply
                buffers = tab.buffers[tab.heard.index(reply)]
                return reply["data"], buffers[0] if buffers else b""

            last, page = await find(stream="stdout", text="needle")
            assert log[last["at"] : last["end"]] == page
            assert page.rfind(b"Needle") > len(page) - 2100
            assert log[: last["end"]].rfind(b"Needle") == log.rfind(b"Needle")
            first, page = await find(stream="stdout", text="Needle", exact=True, before=last["at"])
            assert first["at"] == 0 < last["at"]
            assert page.count(b"\n") <= 10_001
            assert page.startswith(b"0\n1\n2\n3\n4\n5\n6\nNeedle\n8\n")
            assert (await find(stream="stdout", text="needle", exact=True))[1] == b""
            assert (await find(stream="stderr", text="needle"))[1] == b""
            assert (await find(stream="stdout", text=""))[1] == b""
            across = log[len(log) - PAGE - 9 : len(log) - PAGE + 9]
            found, page = await find(stream="stdout", text=across.decode())
            assert across in page
            assert found["end"] < len(log)


async def test_nothing_is_left_when_it_is_closed_while_the_process_lives() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn("sleep", "1000")
        view = OutputPane(process)
        with shown(view) as tab:
            await tab.hello()
            assert len(view.tasks) == 3
        await until(lambda: len(view.tasks) == 0)
        assert not len(process_core(process)._waiters)
        assert not process_core(process)._callbacks
        assert not process.stdout._waiters


async def test_a_program_on_a_terminal_hears_of_its_size_and_gets_keys() -> None:
    async with ProcessManager() as pm:
        code = "import os, signal, sys\nprint('ready', flush=True)\nsys.stdin.readline()\nprint(os.get_terminal_size())"
        process = await pm.spawn(sys.executable, "-c", code, pty=True, stdin=True)
        with shown(OutputPane(process)) as tab:
            head = (await tab.hello())["pane"]["head"]
            assert (head["pty"], head["stdin"]) == (True, True)
            assert (await tab.call("pane", "resize", rows=7, columns=33))["ok"]
            assert not (await tab.call("pane", "resize", rows=0, columns=33))["ok"]
            await tab.call("pane", "send", text="\r", newline=False)
            await process.wait()
            assert "columns=33, lines=7" in process.tail()
            assert (await tab.call("pane", "resize", rows=7, columns=33))["ok"]  # it has ended meanwhile: nothing happens


def test_the_line_that_starts_the_same() -> None:
    config = ProcessConfig(command="sort", args=("-n",), env_vars={"A": "b", "API_TOKEN": "s3cret"}, timeout=5.0, pty=True)
    line = spawn_line(config)
    assert line.startswith("proc = await pm.spawn('sort', '-n', env_vars={'A': 'b', 'API_TOKEN': getpass.getpass('API_TOKEN')}, ")
    assert "timeout=5.0" in line
    assert "pty=True" in line
    assert spawn_line(ProcessConfig(command="login", args=("--password", "s3cret"))) == ""


async def test_invalid_text_and_split_characters_travel_as_bytes() -> None:
    async with ProcessManager() as pm:
        process = await pm.spawn(sys.executable, "-c", "import os; os.write(1, b'\\xe2\\x82'); os.write(1, b'\\xac\\xff\\x00<script>')")
        await process.wait()
        with shown(OutputPane(process)) as tab:
            await tab.hello()
            assert tab.output() == "€".encode() + b"\xff\x00<script>"
            html = tab.view._repr_mimebundle_()["text/html"]
            assert "<script" not in html
            assert "€" in html
