"""Workers that are programs: bc, jq, a small server; and where their answers end."""

import asyncio
import re
import sys

import pytest

from nbprocs.errors import CommunicationError, ExecutionTimeout, ProcessFailed, StartupFailed
from nbprocs.pool import CommandWorker, PoolConfig, ProcessPool
from nbprocs.pool.command import answer_in

ONE = PoolConfig(max_processes=1)
TWO = PoolConfig(min_processes=2, max_processes=2)
SERVER = (
    sys.executable,
    "-u",
    "-c",
    (
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    line = line.strip()\n"
        "    if line == 'die': os._exit(9)\n"
        "    if line == 'hang': continue\n"
        "    if line == 'warn': print('odd question', file=sys.stderr); continue\n"
        "    for i in range(int(line)): print('row', i)\n"
        "    print('END')\n"
    ),
)


async def test_bc():
    async with ProcessPool(TWO, worker=CommandWorker("bc", "-lq")) as pool:
        assert await pool.run("2 + 2") == "4"
        answers = await asyncio.gather(*(pool.submit(f"{i} * {i}") for i in range(50)))
        assert answers == [str(i * i) for i in range(50)]
        assert [y async for y in pool.map(f"{i} + 1" for i in range(20))] == [str(i + 1) for i in range(20)]
        assert pool.metrics().total_processes_created == 2


async def test_bc_errors_are_the_tasks_own():
    async with ProcessPool(ONE, worker=CommandWorker("bc", "-lq", errors=True)) as pool:
        with pytest.raises(CommunicationError, match=r"(?i)divide by zero"):
            await pool.run("1 / 0")
        assert await pool.run("1 + 1") == "2"
        assert pool.metrics().total_processes_created == 2  # nobody knew where the first one stood


async def test_jq():
    worker = CommandWorker("jq", "--unbuffered", "-c", ".a + 1")
    async with ProcessPool(ONE, worker=worker) as pool:
        assert await pool.run('{"a": 41}') == "42"
        assert [y async for y in pool.map(['{"a": 1}', '{"a": 2}'], ordered=False)] == ["2", "3"]
        with pytest.raises(TypeError, match="ordered must be True or False"):
            pool.map(["{}"], ordered=2)


@pytest.mark.parametrize("end", ["END", re.compile("^END$"), lambda lines: lines[-1] == "END"], ids=["a line", "a pattern", "a callable"])
async def test_answers_of_many_lines(end):
    async with ProcessPool(ONE, worker=CommandWorker(*SERVER, end=end)) as pool:
        answer = await pool.run("3")
        assert answer.removesuffix("\nEND") == "row 0\nrow 1\nrow 2"
        assert (await pool.run("0")).removesuffix("END") == ""


async def test_a_line_that_asks_for_the_end():
    worker = CommandWorker("bc", "-lq", end="done", after='print "done\\n"\n')
    async with ProcessPool(ONE, worker=worker) as pool:
        assert await pool.run("for (i = 0; i < 3; i++) i") == "0\n1\n2"
        assert await pool.run("x = 5") == ""
        assert await pool.run("x") == "5"


async def test_death_and_time_end_only_the_task():
    async with ProcessPool(TWO, worker=CommandWorker(*SERVER, end="END")) as pool:
        dying, hanging, well = pool.submit("die"), pool.submit("hang", timeout=0.5), pool.submit("2")
        with pytest.raises(ProcessFailed, match="exit status 9"):
            await dying
        with pytest.raises(ExecutionTimeout):
            await hanging
        assert await well == "row 0\nrow 1"
        assert await pool.run("1") == "row 0"


async def test_an_error_line():
    async with ProcessPool(ONE, worker=CommandWorker(*SERVER, end="END", errors=True)) as pool:
        with pytest.raises(CommunicationError, match="odd question"):
            await pool.run("warn")
        assert await pool.run("1") == "row 0"


async def test_a_program_that_does_not_exist():
    pool = ProcessPool(ONE, worker=CommandWorker("no-such-program-here"))
    with pytest.raises(StartupFailed, match="no-such-program-here"):
        await pool.start()
    pool = ProcessPool(ONE, worker=CommandWorker("no-such-program-here"))
    with pytest.raises(StartupFailed, match="no-such-program-here"):
        await pool.run("1")
    await pool.aclose()


@pytest.mark.parametrize(
    ("question", "error"), [("a\nb", CommunicationError), (7, TypeError), (None, TypeError), (abs, CommunicationError)]
)
async def test_questions_are_single_lines_of_text(question, error):
    async with ProcessPool(ONE, worker=CommandWorker("cat")) as pool:
        with pytest.raises(error):
            await pool.run(question)
        assert await pool.run("é\x00 fine") == "é\x00 fine"


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="name a program"):
        CommandWorker()
    with pytest.raises(ValueError, match="at least one line"):
        CommandWorker("cat", end=0)


def test_passwords_are_masked():
    assert "hunter2" not in repr(CommandWorker("psql", "--password=hunter2"))


@pytest.mark.parametrize(
    ("lines", "end", "answer"),
    [
        ([], 1, None),
        (["a"], 1, ["a"]),
        (["a", "b"], 1, ["a"]),
        (["a"], 2, None),
        (["a", ".", "b"], ".", ["a"]),
        (["."], ".", []),
        (["a", "ok 1"], re.compile("^ok"), ["a", "ok 1"]),
        (["a"], lambda lines: len(lines) == 1, ["a"]),
        (["a"], lambda lines: False, None),
    ],
)
def test_where_an_answer_ends(lines, end, answer):
    assert answer_in(lines, end) == answer
