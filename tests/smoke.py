"""What the README claims for every system, in one file that needs nothing but nbprocs: ``python tests/smoke.py [--portable]``.

``--portable`` takes the way that Windows and loops such as uvloop take, also where a better one exists, and hides the modules that only
POSIX has. Exit status 0 means that all of it held; the last line says on what.
"""

import asyncio
import platform
import subprocess
import sys
import time

import psutil

PYTHON = sys.executable
HIDDEN = ("fcntl", "termios", "resource", "pty", "tty", "pwd", "grp")


def take_the_portable_way() -> None:
    """From here on this process looks to nbprocs as one on Windows does: no module of POSIX, a loop with its own subprocess protocol."""
    assert subprocess, psutil  # they have what they need of them by now
    for name in HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]
    from nbprocs.engine import handles
    from nbprocs.engine.shim import shims
    from nbprocs.processes import manager_core

    handles.ON_LINUX = False
    shims.unusable = "there is none on this system"
    manager_core.engine_for = lambda _loop: "portable"  # type: ignore[assignment]


async def processes() -> None:
    """Output, exit status, input, environment, a name, a stop that is prompt, a timeout, an error that says what to do."""
    import nbprocs

    async with nbprocs.ProcessManager(max_concurrent=4) as pm:
        result = await pm.run(PYTHON, "-c", "print('hello')", name="greet")
        assert result.text.split() == ["hello"], result
        result = await pm.run(PYTHON, "-c", "import sys; print(sys.stdin.read()[::-1])", input="abc")
        assert result.text.strip() == "cba", result
        result = await pm.run(PYTHON, "-c", "import os; print(os.environ['SMOKE'])", env_vars={"SMOKE": "1"})
        assert result.text.strip() == "1", result
        try:
            await pm.run(PYTHON, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)")
        except nbprocs.ProcessFailed as error:
            assert error.exit_code == 3
            assert "why" in str(error)
        else:
            raise AssertionError("an exit status of 3 is an error")
        try:
            await pm.run("no-such-program-anywhere")
        except nbprocs.StartupFailed as error:
            assert "no-such-program-anywhere" in str(error)
        else:
            raise AssertionError("a program that does not exist can't be started")
        sleeper = await pm.spawn(PYTHON, "-c", "print('ready', flush=True); import time; time.sleep(600)", name="sleeper")
        async for line in sleeper.lines():
            assert line.strip() == "ready"
            break
        began = time.monotonic()
        await sleeper.stop(grace=5)
        assert time.monotonic() - began < 60
        assert sleeper.status is nbprocs.ProcessStatus.TERMINATED
        try:
            await pm.run(PYTHON, "-c", "import time; time.sleep(600)", timeout=1)
        except nbprocs.ExecutionTimeout:
            pass
        else:
            raise AssertionError("a timeout is an error")
        assert len(pm.frame()) == len(pm.list())


async def scheduling() -> None:
    """Two tasks, one after the other; a queue on disk."""
    import pathlib
    import tempfile

    import nbprocs

    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "queue.db"
        async with nbprocs.TaskScheduler(nbprocs.SchedulerConfig(max_concurrent_tasks=2), store=store) as sch:
            first = sch.schedule(PYTHON, "-c", "print(1)")
            then = sch.schedule(PYTHON, "-c", "print(2)", after=[first])
            assert (await then).text.strip() == "2"
            assert (await first).text.strip() == "1"


async def watching() -> None:
    """Memory of a live process, as a DataFrame."""
    import nbprocs

    async with nbprocs.ProcessManager() as pm:
        process = await pm.spawn(PYTHON, "-c", "print('ready', flush=True); import time; time.sleep(600)", name="watched")
        await process.receive_output()
        async with nbprocs.ProcessMonitor(interval=0.2) as mon:
            mon.watch(pm)
            deadline = time.monotonic() + 60
            while (frame := mon.frame(names=["watched"])).empty and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            assert frame["memory_usage_mb"].max() > 1, frame
        await process.stop()


async def pooling() -> None:
    """A function on a warm worker; a task that fails, and only that one."""
    import nbprocs

    async with nbprocs.ProcessPool(nbprocs.PoolConfig(max_processes=1)) as pool:
        assert await pool.run(sum, [1, 2, 3]) == 6
        try:
            await pool.run(int, "three")
        except ValueError as error:
            assert "three" in str(error)
        else:
            raise AssertionError("what a function raises is raised here")
        assert await pool.run(sum, [4]) == 4


async def everything() -> None:
    """One after the other, each by its name."""
    for part in (processes, scheduling, watching, pooling):
        await part()
        print(f"ok: {part.__name__}")


if __name__ == "__main__":
    if "--portable" in sys.argv:
        take_the_portable_way()
    asyncio.run(everything())
    print(f"all held: {platform.platform()}, Python {platform.python_version()}{', the portable way' if '--portable' in sys.argv else ''}")
