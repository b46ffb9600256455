"""The kernel's default manager, managers(), and what says that an await is missing."""

import asyncio
import gc
import logging
import threading
import warnings

import pytest

import nbprocs
from nbprocs import ProcessFailed, ProcessManager, managers
from nbprocs.engine import owners
from nbprocs.processes.default import default_manager
from nbprocs.processes.manager import manager_core
from tests.children import SLEEPER


@pytest.fixture(autouse=True)
async def closed_behind():
    yield
    await default_manager().aclose()


async def test_run_and_spawn_use_the_default_manager():
    assert (await nbprocs.run("echo", "hello")).text == "hello\n"
    assert (await nbprocs.run("cat", input="x", encoding="latin-1")).text == "x"
    proc = await nbprocs.spawn(*SLEEPER, name="web")
    assert default_manager()["web"] is proc
    assert default_manager() in managers()
    with pytest.raises(ProcessFailed):
        await nbprocs.run("false")
    first = default_manager()
    await first.aclose()
    assert default_manager() is not first
    assert (await nbprocs.run("true")).ok


def test_run_sync_blocks_with_and_without_a_loop():
    assert nbprocs.run_sync("echo", "hello").text == "hello\n"
    with pytest.raises(nbprocs.ExecutionTimeout):
        nbprocs.run_sync("sleep", "100", timeout=0.3)

    async def inside():
        return nbprocs.run_sync("echo", "inside").text

    assert asyncio.run(inside()) == "inside\n"

    async def on_the_background_loop():
        return nbprocs.run_sync("true")

    home = manager_core(default_manager()).home
    with pytest.raises(RuntimeError, match=r"await nbprocs\.run"):
        asyncio.run_coroutine_threadsafe(on_the_background_loop(), home.loop).result()


async def test_names_are_keys():
    async with ProcessManager() as pm:
        web = await pm.spawn(*SLEEPER, name="web")
        assert pm["web"] is web
        assert pm[web.id] is web
        assert "web" in pm
        assert "nobody" not in pm
        assert 5 not in pm
        assert list(pm._ipython_key_completions_()) == ["web"]
        with pytest.raises(KeyError, match="did you mean 'web'"):
            pm["wbe"]


# --- managers() ------------------------------------------------------------------------------------------------------------------


async def test_an_overwritten_manager_is_still_known_and_can_be_closed():
    pm = ProcessManager()
    await pm.spawn(*SLEEPER, name="one")
    first = pm
    pm = ProcessManager()
    await pm.spawn(*SLEEPER, name="two")
    assert [owner for owner in managers() if owner in (first, pm)] == [first, pm]
    assert "1 live" in repr(managers())
    assert "ProcessManager" in managers()._repr_mimebundle_()["text/html"]
    await managers().aclose()
    assert (first.closed, pm.closed) == (True, True)
    assert len(managers()) == 0


async def test_what_is_gone_is_not_kept_alive():
    before = len(managers())
    ProcessManager()
    gc.collect()
    assert len(managers()) == before


async def test_the_cell_that_makes_another_one_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(owners._known, "told", False)
    cell = compile("pm = ProcessManager()", "/tmp/ipykernel_1/2.py", "exec")
    space = {"ProcessManager": ProcessManager}
    exec(cell, space)  # noqa: S102 - as a kernel does
    first = space["pm"]
    exec(cell, space)  # noqa: S102 - as a kernel does
    assert not caplog.records, "the first one has no process: nothing is lost"
    await space["pm"].aclose()
    process = await first.spawn(*SLEEPER)
    for _ in range(2):
        exec(cell, space)  # noqa: S102 - as a kernel does
        await space["pm"].aclose()
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "nbprocs.managers()" in caplog.text
    await first.aclose()
    assert not process.status.live


async def test_a_line_that_makes_several_is_not_one_that_ran_twice(monkeypatch, caplog):
    monkeypatch.setattr(owners._known, "told", False)
    line = "sch = TaskScheduler(); pool, other, pm = ProcessPool(), ProcessPool(), ProcessManager()"
    space = {"ProcessManager": ProcessManager, "TaskScheduler": nbprocs.TaskScheduler, "ProcessPool": nbprocs.ProcessPool}
    exec(compile(line, "/tmp/ipykernel_1/3.py", "exec"), space)  # noqa: S102 - as a kernel does
    assert not caplog.records
    for name in ("sch", "pool", "other", "pm"):
        await space[name].aclose()


# --- a forgotten await -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["run", "spawn", "nbprocs.run"])
async def test_a_forgotten_await_says_so(which):
    def call(pm):
        return (nbprocs.run if which == "nbprocs.run" else getattr(pm, which))("ls", "-la")

    async with ProcessManager() as pm:
        pending = call(pm)
        assert "('ls', '-la') was not awaited" in repr(pending)
        assert "write `await " in repr(pending)
        with pytest.raises(AttributeError, match=r"write `\(await .*\)\.stdout`"):
            _ = pending.stdout
        del pending  # its repr was seen: no warning
        with pytest.warns(RuntimeWarning, match="was not awaited, and nothing was started: write `await"):
            call(pm)
        assert pm.list() == ()


async def test_a_pending_call_is_a_coroutine_for_asyncio():
    async with ProcessManager() as pm:
        call = pm.run("echo", "a")
        assert asyncio.iscoroutine(call)
        assert (await call).text == "a\n"
        with pytest.raises(RuntimeError, match="already awaited"):
            await call
        tasks = [asyncio.create_task(pm.run("echo", "b")), asyncio.ensure_future(pm.run("echo", "c"))]
        assert [r.text for r in await asyncio.gather(*tasks, pm.run("echo", "d"))] == ["b\n", "c\n", "d\n"]
        task = asyncio.create_task(pm.run("sleep", "100"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pm.live == 0
        pending = pm.run("true")
        pending.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del pending


async def test_a_pending_call_can_be_run_from_a_thread():
    async with ProcessManager() as pm:
        found = []
        loop = asyncio.get_running_loop()

        def work():
            found.append(asyncio.run_coroutine_threadsafe(pm.run("echo", "x"), loop).result())

        thread = threading.Thread(target=work)
        thread.start()
        await loop.run_in_executor(None, thread.join)
        assert found[0].text == "x\n"


async def test_managers_lists_pools_schedulers_and_monitors_and_closes_them():
    before = len(nbprocs.managers())
    made = [
        nbprocs.ProcessManager(),
        nbprocs.ProcessPool(nbprocs.PoolConfig(min_processes=0, initial_processes=0)),
        nbprocs.TaskScheduler(nbprocs.SchedulerConfig()),
        nbprocs.ProcessMonitor(interval=None),
    ]
    assert [owner for owner in nbprocs.managers() if any(owner is one for one in made)] == made
    for owner in made:
        await owner.aclose()
    assert all(owner.closed for owner in made)
    assert len(nbprocs.managers()) <= before
