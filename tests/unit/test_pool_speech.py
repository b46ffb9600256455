"""What workers print, log and warn is seen where it was asked for; and what a worker has in common with the kernel."""

import asyncio
import contextlib
import io
import logging
import os
import signal
import sys
import time
import warnings

import pytest

from nbprocs.engine.container import usable_cpus
from nbprocs.errors import CommunicationError
from nbprocs.pool import PoolConfig, ProcessPool, PythonWorker, RemoteError

ONE = PoolConfig(max_processes=1)


def script(source):
    """A function as a notebook would define it."""
    space = {"__name__": "__main__"}
    exec("def f(*args):\n" + "".join(f"    {line}\n" for line in source.splitlines()), space)  # noqa: S102
    return space["f"]


PRINTS = script("import sys\nprint('to stdout', *args)\nprint('to stderr', file=sys.stderr)\nreturn 5")


async def test_prints_are_seen_before_the_result(capsys):
    async with ProcessPool(ONE) as pool:
        assert await pool.run(PRINTS, 1) == 5
        assert capsys.readouterr() == ("to stdout 1\n", "to stderr\n")
        assert [y async for y in pool.map(PRINTS, range(3))] == [5] * 3
        assert capsys.readouterr().out == "to stdout 0\nto stdout 1\nto stdout 2\n"
        with pytest.raises(ValueError, match="no"):
            await pool.run(script("print('before'); raise ValueError('no')"))
        assert capsys.readouterr().out == "before\n"


async def test_prints_of_a_long_call_are_seen_while_it_runs(capsys, tmp_path):
    code = f"import os, time\nprint('one'); print('two')\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.001)"
    async with ProcessPool(ONE) as pool:
        handle = pool.submit(script(code))
        seen = ""
        async with asyncio.timeout(20):
            while seen != "one\ntwo\n":
                await asyncio.sleep(0.005)
                seen += capsys.readouterr().out
        assert not handle.done()
        (tmp_path / "go").touch()
        await handle


async def test_each_text_goes_to_the_context_that_submitted_it():
    """A kernel tells by it which cell an output belongs to."""
    import contextvars

    cell = contextvars.ContextVar("cell", default="none")

    class Routed(io.StringIO):
        def write(self, text):
            return super().write(f"[{cell.get()}] {text}")

    out = Routed()
    async with ProcessPool(ONE) as pool:

        async def run(name):
            cell.set(name)
            await pool.run(PRINTS, name)

        with contextlib.redirect_stdout(out):
            await asyncio.gather(*(run(name) for name in "abc"))
    assert sorted(out.getvalue().splitlines()) == [f"[{name}] to stdout {name}" for name in "abc"]


async def test_a_function_gets_what_is_written():
    seen = []
    async with ProcessPool(ONE, name="speaking", worker=PythonWorker(output=seen.append)) as pool:
        handle = pool.submit(PRINTS)
        await handle
        await pool.run(script("import logging; logging.getLogger('a.b').warning('look %d', 5)"))
    assert [(item.stream, item.text) for item in seen] == [
        ("stdout", "to stdout\n"),
        ("stderr", "to stderr\n"),
        ("log", "WARNING:a.b:look 5\n"),
    ]
    assert {item.worker for item in seen} == {"speaking-worker-1"}
    assert seen[0].task == handle.id


async def test_a_function_that_exits_stops_nothing(caplog):
    async with ProcessPool(ONE, worker=PythonWorker(output=lambda item: sys.exit(3))) as pool:
        assert await pool.run(PRINTS) == 5
    assert "showing the output of" in caplog.text


async def test_only_the_workers_own_log(capsys):
    async with ProcessPool(ONE, worker=PythonWorker(output="log")) as pool:
        assert await pool.run(PRINTS) == 5
        assert capsys.readouterr() == ("", "")
        (process,) = pool.manager.processes()
        async with asyncio.timeout(20):
            assert await process.receive_output() == "to stdout"


async def test_a_flood_is_cut_and_counted(capsys):
    async with ProcessPool(ONE) as pool:
        assert await pool.run(script("for i in range(20_000): print('x' * 99)\nreturn 1")) == 1
        out, err = capsys.readouterr()
        assert 200_000 < len(out) < 300_000
        cut = int(err.split()[1])
        assert len(out) + cut == 2_000_000
        assert await pool.run(PRINTS) == 5
        assert capsys.readouterr().out == "to stdout\n"


async def test_a_call_that_prints_is_not_held_up_by_a_blocked_loop(tmp_path):
    mark = tmp_path / "mark"
    async with ProcessPool(ONE) as pool:
        await pool.run(int)
        handle = pool.submit(script(f"for i in range(20_000): print('x' * 9)\nopen({str(mark)!r}, 'w').close()"))
        await asyncio.sleep(0)
        deadline = time.monotonic() + 20
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # a cell that does not await
        assert mark.exists()
        await handle


async def test_ctrl_c_while_it_prints_tears_no_message(tmp_path):
    async with ProcessPool(ONE, worker=PythonWorker(output=lambda item: None)) as pool:
        for _ in range(5):
            mark = tmp_path / "mark"
            handle = pool.submit(script(f"open({str(mark)!r}, 'w').close()\nwhile True: print('x' * 9000)"))
            async with asyncio.timeout(20):
                while not mark.exists():
                    await asyncio.sleep(0.001)
            mark.unlink()
            (process,) = pool.manager.processes()
            process.send_signal(signal.SIGINT)
            with pytest.raises(RemoteError, match="interrupted"):
                await handle
        assert await pool.run(os.getpid) == process.pid


async def test_a_forked_child_that_prints_does_not_answer_for_its_parent(capsys):
    code = "import os, warnings\nwarnings.simplefilter('ignore')\npid = os.fork()\nprint('hello')\nif not pid: os._exit(0)\nos.waitpid(pid, 0)\nreturn 1"
    async with ProcessPool(ONE) as pool:
        assert await pool.run(script(code)) == 1
    assert capsys.readouterr().out == "hello\n"


async def test_an_initialiser_that_prints(capsys):
    async with ProcessPool(ONE, worker=PythonWorker(initializer=PRINTS)):
        pass
    assert capsys.readouterr().out == "to stdout\n"


# -- logging and warnings

LOGS = script("import logging\nlog = logging.getLogger('pool.logs')\nlog.debug('fine')\nlog.info('so %s', 'so')\nlog.error('bad')")


async def test_log_records_go_to_the_logger_of_the_same_name(caplog):
    with caplog.at_level(logging.INFO):
        async with ProcessPool(ONE, name="logging") as pool:
            await pool.run(LOGS)
            assert [(r.name, r.levelname, r.getMessage(), r.processName) for r in caplog.records] == [
                ("pool.logs", "INFO", "so so", "logging-worker-1"),
                ("pool.logs", "ERROR", "bad", "logging-worker-1"),
            ]
            caplog.clear()
            caplog.set_level(logging.DEBUG, "pool.logs")  # in a worker that runs already
            await pool.run(LOGS)
            assert [r.getMessage() for r in caplog.records] == ["fine", "so so", "bad"]
            caplog.clear()
            caplog.set_level(logging.ERROR, "pool.logs")
            assert not await pool.run(script("import logging\nreturn logging.getLogger('pool.logs').isEnabledFor(20)"))
            with contextlib.suppress(ZeroDivisionError):
                await pool.run(script("import logging\ntry: 1 / 0\nexcept ZeroDivisionError: logging.getLogger().exception('why')"))
            assert "ZeroDivisionError" in caplog.text


async def test_a_worker_that_configures_its_logging_has_it_its_way(caplog, capsys):
    code = "import logging\nlogging.basicConfig(format='mine: %(message)s')\nlogging.warning('x')"
    async with ProcessPool(ONE) as pool:
        await pool.run(script(code))
    assert not caplog.records
    assert capsys.readouterr().err == "mine: x\n"


WARNS = script("import warnings\nwarnings.warn('old', DeprecationWarning)\nwarnings.warn('odd', UserWarning)\nreturn 1")


async def test_warning_filters_go_along(capsys):
    async with ProcessPool(ONE) as pool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert await pool.run(WARNS) == 1
            assert capsys.readouterr().err == ""
            warnings.filterwarnings("error", message="od+", category=UserWarning)
            with pytest.raises(UserWarning, match="odd"):
                await pool.run(WARNS)
            warnings.resetwarnings()
            warnings.simplefilter("always")
            assert await pool.run(WARNS) == 1
            err = capsys.readouterr().err
            assert "DeprecationWarning: old" in err
            assert "UserWarning: odd" in err


class Own(UserWarning):
    pass


async def test_a_filter_of_a_category_of_ones_own_imports_nothing(capsys):
    async with ProcessPool(ONE) as pool:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("ignore", Own)
            loaded = script("import sys\nreturn 'tests.unit.test_pool_speech' in sys.modules")
            assert await pool.run(loaded) is False
            await pool.run(warnings.warn, Own("seen?"))
    assert capsys.readouterr().err == ""


# -- threads, folder, environment


async def test_numerical_threads_are_shared_out(monkeypatch):
    look = script("import os\nreturn [os.environ.get(n) for n in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')]")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    share = str(max(1, usable_cpus() // 2))
    cases = [
        (PythonWorker(), [share, share]),
        (PythonWorker(threads=3), ["3", "3"]),
        (PythonWorker(threads="all"), [None, None]),
        (PythonWorker(env_vars={"OMP_NUM_THREADS": "7"}), ["7", share]),
    ]
    for worker, wanted in cases:
        async with ProcessPool(PoolConfig(max_processes=2), worker=worker) as pool:
            assert await pool.run(look) == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    async with ProcessPool(PoolConfig(max_processes=2)) as pool:
        assert await pool.run(look) == ["5", share]


async def test_folder_and_environment_follow_when_asked(monkeypatch, tmp_path):
    look = script("import os\nreturn os.getcwd(), os.environ.get('POOL_FOLLOW')")
    before = os.getcwd()
    monkeypatch.chdir(before)
    async with (
        ProcessPool(ONE, worker=PythonWorker(follow=True, env_vars={"POOL_OWN": "1"})) as following,
        ProcessPool(ONE) as staying,
    ):
        assert await following.run(look) == await staying.run(look) == (before, None)
        monkeypatch.setenv("POOL_FOLLOW", "yes")
        monkeypatch.chdir(tmp_path)
        assert await following.run(look) == (str(tmp_path), "yes")
        assert await staying.run(look) == (before, None)
        monkeypatch.delenv("POOL_FOLLOW")
        assert await following.run(look) == (str(tmp_path), None)
        assert await following.run(os.getenv, "POOL_OWN") == "1"


async def test_a_folder_that_is_gone_fails_the_call_instead_of_another_folder(monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    async with ProcessPool(ONE, worker=PythonWorker(follow=True)) as pool:
        await pool.run(int)
        monkeypatch.setattr(os, "getcwd", lambda: str(gone))
        gone.rmdir()
        with pytest.raises(CommunicationError, match="gone"):
            await pool.run(int)
        monkeypatch.undo()
        assert await pool.run(int) == 0


async def test_a_kernel_whose_own_folder_is_gone_goes_on_calling(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    async with ProcessPool(ONE, worker=PythonWorker(follow=True, working_dir=str(tmp_path))) as pool, asyncio.timeout(60):
        await pool.run(int)
        (tmp_path / "gone").rmdir()
        assert await pool.run(abs, -3) == 3
