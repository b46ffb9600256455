"""The magics, typed into a real IPython shell."""

import asyncio
import atexit
import functools
import os
import signal
import sys
import time

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nbprocs
from nbprocs import LogLine, Port, ProcessFailed, ProcessManager, ProcessStatus, StartupFailed, UnknownProcess, Url, magics
from nbprocs.processes.manager import manager_core
from tests.unit.test_detached import home  # noqa: F401 - a fixture


@pytest.fixture
def shell(monkeypatch, capsys):
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell puts its own there, and empties it in the end
    shell = InteractiveShell.instance(config=config)
    magics.load_ipython_extension(shell)
    yield shell
    pm = magics.manager()
    asyncio.run_coroutine_threadsafe(pm.aclose(grace=1), manager_core(pm).home.loop).result()
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    InteractiveShell.clear_instance()


def run(shell, cell):
    """The value of a cell; its error is raised."""
    result = shell.run_cell(cell)
    result.raise_error()
    return result.result


def done(handle):
    """Wait for a handle from a thread without a loop, as a script would."""

    async def wait():
        async with asyncio.timeout(30):
            return await handle

    return asyncio.run(wait())


def test_a_shell_cell_runs_in_the_background(shell):
    handle = run(shell, "%%proc --name hello\necho one; echo two >&2; exit 3")
    result = done(handle)
    assert (result.stdout, result.stderr, result.exit_code) == (b"one\n", b"two\n", 3)
    assert handle.process.name == "hello"
    assert "hello" in repr(handle)


def test_names_are_made_and_never_twice(shell):
    names = [run(shell, "%%proc\nsleep 1000").process.name for _ in range(3)]
    assert len(set(names)) == 3


def test_options_reach_the_process(shell, tmp_path):
    handle = run(
        shell, f"%%proc -n opts --cwd {tmp_path} --env GREETING='hello you' --env HOME --timeout 50\npwd; echo $GREETING; echo [$HOME]"
    )
    assert done(handle).text.split("\n")[:3] == [str(tmp_path), "hello you", "[]"]
    assert handle.process.config.timeout == 50


async def adopted(name):
    """Take it up in another manager, as the next kernel does, and stop it."""
    async with ProcessManager() as pm:
        return await (await pm.adopt(name)).stop()


@pytest.mark.usefixtures("home")
def test_a_detached_cell_outlives_its_kernel(shell):
    handle = run(shell, "%%proc --detach --name job\necho one; exec sleep 1000")
    assert run(shell, "%%proc --detach\nexec sleep 1000").process.name != run(shell, "%%proc --detach\nexec sleep 1000").process.name
    asyncio.run_coroutine_threadsafe(magics.manager().aclose(), handle.home.loop).result()
    with pytest.raises(nbprocs.ProcessError, match="goes on without"):
        done(handle)
    assert asyncio.run(adopted("job")).status is ProcessStatus.TERMINATED
    taken = nbprocs.detached()["name"]
    assert run(shell, "%%proc --detach\nexec sleep 1000").process.name not in set(taken), "the names of an earlier kernel are taken"


@pytest.mark.usefixtures("home")
def test_a_detached_python_cell_has_its_file_until_it_is_forgotten(shell, home):  # noqa: F811 - the fixture
    shell.user_ns["rows"] = [1, 2]
    handle = run(shell, "%%proc python --detach --name job --send rows\nprint(sum(rows))")
    assert done(handle).text == "3\n"
    asyncio.run_coroutine_threadsafe(magics.manager().aclose(), handle.home.loop).result()

    async def again():
        async with ProcessManager() as pm:
            await pm.adopt("job")
            return await (await pm.restart("job")).wait()

    assert asyncio.run(again()).text == "3\n", "another kernel can start it again"
    cells = home / "state" / "cells"
    assert {path.suffix for path in cells.iterdir()} == {".cell", ".py"}
    for path in cells.iterdir():
        os.utime(path, (0, 0))
    nbprocs.forget(nbprocs.detached()["id"][0])
    assert len(list(cells.iterdir())) == 2, "another record names it"
    nbprocs.forget()
    assert list(cells.iterdir()) == []


def test_a_cell_can_be_recorded(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done(run(shell, "%%proc --name seen --record mine.db\necho one"))
    done(run(shell, "%%proc --name default --record\necho two"))
    done(run(shell, "%%proc --name unseen\necho three"))
    assert [(run.name, run.stdout) for run in nbprocs.runs("mine.db")] == [("seen", "one\n")]
    assert [(run.name, run.stdout) for run in nbprocs.runs("runs.db")] == [("default", "two\n")]


def test_a_timeout_ends_it(shell):
    result = done(run(shell, "%%proc --timeout 0.2\nsleep 1000"))
    assert (result.status, result.reason) == (ProcessStatus.TERMINATED, "timeout")


def test_a_pty(shell):
    assert b"terminal" in done(run(shell, "%%proc --pty\ntest -t 1 && echo a terminal")).stdout


def test_another_shell(shell):
    assert done(run(shell, "%%proc bash\necho ${BASH_VERSION:+bash}")).stdout == b"bash\n"


def test_a_python_cell_has_an_interpreter_of_its_own_and_gets_variables(shell):
    run(shell, "import os; rows = [1, 2, 3]\ndef double(x): return [2 * y for y in x]")
    handle = run(shell, "%%proc python --send rows,double\nimport os\nprint(double(rows), os.getpid())\nrows.append(4)")
    text = done(handle).text
    assert text.startswith("[2, 4, 6]")
    assert int(text.split()[-1]) == handle.process.pid
    assert run(shell, "rows") == [1, 2, 3]


def test_a_python_cell_can_await_and_is_main(shell):
    code = "%%proc python\nimport asyncio\nawait asyncio.sleep(0.01)\nprint(__name__, 'x' in globals())"
    assert done(run(shell, code)).text == "__main__ False\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_of_multiprocessing_find_the_cells_functions_and_variables(shell, method):
    """spawn and forkserver run the file of __main__ again: without one they hung."""
    shell.user_ns["base"] = 10
    code = f"""%%proc python --send base --timeout 60
import multiprocessing as mp
def shifted(x):
    return base + x
if __name__ == "__main__":
    with mp.get_context("{method}").Pool(1) as pool:
        print(pool.map(shifted, [1, 2]))
"""
    assert done(run(shell, code)).text == "[11, 12]\n"


def test_a_line_runs_the_rest_as_it_was_typed(shell):
    handle = run(shell, "%proc --name line -t 50 echo 'a b' | tr a-z A-Z; echo $((1 + 2))")
    assert done(handle).text == "A B\n3\n"
    assert (handle.process.name, handle.process.config.timeout) == ("line", 50)
    with pytest.raises(UsageError):
        run(shell, "%proc --name")


@pytest.mark.parametrize("line", ["%%proc --help", "%%proc -h", "%proc --help", "%%proc --help\necho never"])
def test_help_works_without_a_body(shell, line, capsys):
    assert run(shell, line) is None
    assert "--ready-timeout" in capsys.readouterr().out


def test_other_managers_are_known(shell, capsys):
    """What a cell started on a manager of its own is shown, completed and stopped by the magics."""

    async def work():
        async with ProcessManager(background=True) as pm:
            process = await pm.spawn("sleep", "1000", name="elsewhere")
            run_here = functools.partial(asyncio.get_running_loop().run_in_executor, None)
            assert await run_here(run, shell, "%output elsewhere") is process
            assert completed(shell, "%stop elsew") == {"elsewhere"}
            await run_here(run, shell, "%stop elsewhere")
            assert process.status is ProcessStatus.TERMINATED
        async with ProcessManager() as pm:
            process = await pm.spawn("sleep", "1000", name="here")
            run(shell, "%stop here")
            await process.wait()
        with pytest.raises(UsageError, match="no process is called 'elsewhere'"):
            run(shell, "%stop elsewhere")

    asyncio.run(work())
    out = capsys.readouterr().out
    assert "elsewhere: terminated" in out
    assert "stopping here: it ends within 10 s" in out


def test_a_python_cell_is_titled_by_its_first_line(shell):
    handle = run(shell, "%%proc python -n titled\n\nimport this_is_not_a_module")
    assert done(handle).command == "python: import this_is_not_a_module"


def test_a_bad_pattern_of_ready_is_a_usage_error(shell):
    with pytest.raises(UsageError, match=r"--ready takes .*regular expression"):
        run(shell, "%%proc --ready ( \ntrue")


def test_a_python_cell_that_raises_shows_its_own_lines_only(shell):
    result = done(run(shell, "%%proc python -n bad\ndef f():\n    return 1 / 0\nf()"))
    error = result.stderr.decode()
    assert result.exit_code == 1
    assert "return 1 / 0" in error
    assert '"<cell bad>", line 3' in error.replace("'", '"')
    assert "cell_main" not in error


def test_a_cell_that_is_no_python_shows_where(shell):
    result = done(run(shell, "%%proc python -n bad\nx = 1\ndef f(:"))
    error = result.stderr.decode()
    assert result.exit_code == 1
    assert error.lstrip().startswith('File "<cell bad>", line 2')
    assert "def f(:" in error
    assert "cell_main" not in error


def test_a_python_cell_may_exit_and_has_the_notebooks_folder_in_its_path(shell, tmp_path):
    (tmp_path / "helper.py").write_text("answer = 42")
    result = done(run(shell, f"%%proc python --cwd {tmp_path}\nimport helper, sys\nsys.exit(helper.answer)"))
    assert result.exit_code == 42


def test_what_can_not_be_sent_is_named(shell):
    run(shell, "import threading; lock = threading.Lock()")
    for line, says in (("lock", "lock can't be sent"), ("nothing", "no such variable in the notebook: nothing")):
        with pytest.raises(UsageError, match=says):
            run(shell, f"%%proc python --send {line}\npass")
    with pytest.raises(UsageError, match="--send works with"):
        run(shell, "%%proc --send lock\ntrue")


@pytest.mark.parametrize(
    "line", ["--out 5x", "--out a.b", "--out class", "--ready-timeout 0", "--ready-timeout nan", "--timeout -1", "--retries -1"]
)
def test_a_wrong_option_fails_the_cell_before_anything_starts(shell, line):
    with pytest.raises((UsageError, ValueError)):
        run(shell, f"%%proc {line}\ntrue")
    assert magics.manager().list() == ()


@pytest.mark.parametrize(
    ("cell", "says"),
    [("%%proc\n   \n", "empty"), ("%%proc perl\nprint 1", "perl"), ("%%proc --env =x\ntrue", "NAME=value"), ("%stop", "name of a process")],
)
def test_mistakes_are_explained(shell, cell, says):
    with pytest.raises(UsageError, match=says):
        run(shell, cell)


def test_a_start_that_fails_fails_the_cell(shell):
    with pytest.raises(StartupFailed, match="does not exist"):
        run(shell, "%%proc --cwd /no/such/folder\ntrue")


def test_retries_until_it_works(shell, tmp_path):
    flaky = f"cd {tmp_path}; echo x >> tries; test $(wc -l < tries) -ge 3"
    handle = run(shell, f"%%proc --name flaky --retries 3\n{flaky}")
    assert done(handle).ok
    assert (tmp_path / "tries").read_text() == "x\n" * 3


def test_wait_makes_the_cell_fail_when_the_process_does(shell):
    assert run(shell, "%%proc --wait --out handle\necho hi") is None
    assert run(shell, "handle.result.stdout") == b"hi\n"
    with pytest.raises(ProcessFailed, match="exit status 7"):
        run(shell, "%%proc --wait\nexit 7")


def test_out_keeps_the_handle(shell):
    handle = run(shell, "%%proc --out web\nsleep 1000")
    assert run(shell, "web") is handle


def test_ready_is_awaited_in_the_background(shell):
    began = time.monotonic()
    handle = run(shell, "%%proc --name srv --ready listening\nsleep 0.3; echo listening; sleep 1000")
    assert time.monotonic() - began < 2
    assert handle.process.name == "srv"


def test_not_ready_in_time_is_told_where_it_is_awaited(shell):
    handle = run(shell, "%%proc --ready never --ready-timeout 0.2\necho starting; sleep 1000")
    with pytest.raises(StartupFailed, match="starting"):
        done(handle)


def test_restart_keeps_it_alive_and_stop_ends_it(shell):
    handle = run(shell, "%%proc --name phoenix --restart\necho up; exec sleep 1000")
    first = handle.process
    first.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while handle.process is first and time.monotonic() < deadline:
        time.sleep(0.01)
    assert handle.process is not first
    assert handle.process.name == "phoenix"
    run(shell, "%stop phoenix")
    assert done(handle).status is ProcessStatus.TERMINATED


def test_the_line_magics(shell, capsys):
    run(shell, "%%proc --name web\necho serving; sleep 1000")
    assert run(shell, "%procs") is magics.manager()
    process = run(shell, "%output web")
    assert process.name == "web"
    deadline = time.monotonic() + 10
    while "serving" not in process.tail() and time.monotonic() < deadline:
        time.sleep(0.01)
    run(shell, "%output web --lines 1")
    assert "serving" in capsys.readouterr().out
    again = run(shell, "%restart web")
    assert (again.name, again.pid != process.pid) == ("web", True)
    run(shell, "%stop web --grace 2")
    assert "terminated" in capsys.readouterr().out
    with pytest.raises(UnknownProcess):
        run(shell, "%output nobody")
    run(shell, "%%proc\nsleep 1000")
    run(shell, "%stop --all")
    assert magics.manager().live == 0
    run(shell, "%stop --all")


@pytest.mark.parametrize("name", ["procs", "output", "stop", "restart"])
def test_help_of_line_magics(shell, capsys, name):
    run(shell, f"%{name} --help")
    assert f"%{name}" in capsys.readouterr().out


def test_help_of_proc(shell, capsys):
    run(shell, "%%proc --help\ntrue")
    assert "--retries" in capsys.readouterr().out
    assert magics.manager().list() == ()


def completed(shell, text):
    with provisionalcompleter():
        return {found.text for found in shell.Completer.completions(text, len(text))}


def test_completion(shell):
    run(shell, "%%proc --name web-one\nsleep 1000")
    done(run(shell, "%%proc --name web-two\ntrue"))
    assert completed(shell, "%stop we") == {"web-one"}
    assert completed(shell, "%output we") == {"web-one", "web-two"}
    assert "--retries" in completed(shell, "%%proc --ret")


def test_loading_twice_and_unloading(shell):
    before = dict(shell.magics_manager.magics["line"])
    magics.load_ipython_extension(shell)
    assert shell.magics_manager.magics["line"] == before
    magics.unload_ipython_extension(shell)
    assert shell.find_cell_magic("proc") is None
    assert shell.find_line_magic("procs") is None
    magics.load_ipython_extension(shell)
    assert shell.find_cell_magic("proc")


def test_load_ext_by_the_packages_name(shell):
    magics.unload_ipython_extension(shell)
    run(shell, "%load_ext nbprocs")
    assert shell.find_cell_magic("proc")


def test_a_closed_manager_is_replaced(shell):
    pm = magics.manager()
    asyncio.run_coroutine_threadsafe(pm.aclose(), manager_core(pm).home.loop).result()
    assert magics.manager() is not pm
    assert done(run(shell, "%%proc\necho again")).stdout == b"again\n"


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("80", Port(80)),
        (":80", Port(80)),
        ("a.b:80", Port(80, host="a.b")),
        ("http://x/y", Url("http://x/y")),
        ("up at .*", LogLine("up at .*")),
    ],
)
def test_ready(text, probe):
    assert magics.parse_ready(text) == probe
