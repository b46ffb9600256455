"""The scheduler with real children: trees end, timeouts kill, output is there, functions of the package draw what happened."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from nbprocs import ProcessManager
from nbprocs.errors import ExecutionTimeout, PermissionDenied, ProcessCrashed, ProcessFailed, ResourceExhausted, StartupFailed
from nbprocs.scheduler import After, SchedulerConfig, TaskCancelled, TaskScheduler, TaskState
from tests.children import SLEEPER, STUBBORN, python_child

FAMILY = python_child(
    """
    import subprocess
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal\\nwhile True: signal.pause()"])
    ready(f"ready {child.pid}")
    forever()
    """
)


async def line_of(handle, text: str = "ready") -> str:
    async for line in handle.lines():
        if text in line:
            return line
    raise AssertionError(handle.output())


def gone(pid: int) -> bool:
    """Ended; a zombie whose parent has not looked yet has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_cancelling_ends_the_whole_tree() -> None:
    async with TaskScheduler() as sch:
        handle = sch.schedule(*FAMILY)
        grandchild = int((await line_of(handle)).split()[1])
        assert not gone(grandchild)
        handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle
        assert gone(grandchild)
        assert handle.attempts[-1].outcome == "cancelled"


async def test_a_timeout_kills_the_tree_and_is_retried() -> None:
    async with TaskScheduler(SchedulerConfig(retry_delay=0.01, grace=0.1)) as sch:
        handle = sch.schedule(*FAMILY, timeout=0.4, max_retries=1)
        with pytest.raises(ExecutionTimeout) as caught:
            await handle
        assert [a.outcome for a in handle.attempts] == ["timeout", "timeout"]
        assert caught.value.attempts == 2
        pids = [int(word) for word in handle.output().decode().split()[1::2]]
        assert all(gone(pid) for pid in pids)


async def test_halting_now_and_closing_end_stubborn_ones() -> None:
    sch = TaskScheduler(SchedulerConfig(grace=0.1))
    handle = sch.schedule(*STUBBORN)
    await line_of(handle)
    pid = handle.process.pid
    await sch.aclose()
    assert gone(pid)


async def test_output_lines_pause_and_resume() -> None:
    async with TaskScheduler() as sch:
        handle = sch.schedule(*python_child("sys.stderr.write('oops\\n'); sys.stderr.flush(); ready(); forever()"))
        assert await line_of(handle) == "ready"
        handle.pause()
        assert handle.process.paused
        handle.resume()
        assert not handle.process.paused
        assert handle.output() == b"ready\n"
        handle.process.send_signal(signal.SIGUSR1)
        with pytest.raises(ProcessCrashed):
            await handle
        assert handle.tail() == "oops"
        assert [line async for line in handle.lines()] == ["ready"]
        assert handle.attempts[-1].signal == signal.SIGUSR1
        waiting = sch.schedule("true", delay=60)
        waiting.pause()
        assert waiting.state is TaskState.HELD


async def test_lines_of_a_task_that_has_not_started() -> None:
    async with TaskScheduler() as sch:
        first = sch.schedule("echo", "1", hold=True)
        reading = asyncio.ensure_future(line_of(first, "1"))
        await asyncio.sleep(0)
        first.release()
        assert await reading == "1"


async def test_the_environment_tells_slot_task_and_attempt(tmp_path: Path) -> None:
    names = ("NBPROCS_SLOT", "NBPROCS_TASK_ID", "NBPROCS_ATTEMPT", "CUDA_VISIBLE_DEVICES", "MINE")
    code = f"print(*(os.environ.get(n) for n in {names!r}), os.getcwd())"
    async with TaskScheduler() as sch:
        handle = sch.schedule(*python_child(code), env_vars={"MINE": "x"}, working_dir=tmp_path, resources={"gpu": 1})
        slot, task, attempt, gpu, mine, cwd = (await handle).text.split()
        assert (slot, task, attempt, mine, cwd) == ("0", handle.id, "1", "x", str(tmp_path))
        assert gpu


async def test_shell_lines_and_bad_commands(tmp_path: Path) -> None:
    script = tmp_path / "not-executable"
    script.write_text("#!/bin/sh\n")
    async with TaskScheduler() as sch:
        assert (await sch.schedule("echo a | tr a b", shell=True)).text == "b\n"
        for command, options, error in (
            ("/no/such/program", {}, StartupFailed),
            (str(script), {}, PermissionDenied),
            (str(tmp_path), {}, PermissionDenied),
            ("true", {"working_dir": tmp_path / "nowhere"}, StartupFailed),
            ("x" * 300_000, {}, StartupFailed),
        ):
            with pytest.raises(error):
                await sch.schedule(command, max_retries=2, **options)
        assert sch.status().retries == 0


async def test_your_own_manager_stays_open() -> None:
    async with ProcessManager() as pm:
        async with TaskScheduler(manager=pm) as sch:
            await sch.schedule("true")
        assert (await pm.run("echo", "still")).text == "still\n"
        with pytest.raises(ValueError, match="either"):
            TaskScheduler(manager=pm, backend=sch._core.runner.backend)


async def test_a_process_has_the_name_of_its_task_where_that_is_free() -> None:
    async with ProcessManager() as pm, TaskScheduler(manager=pm) as sch:
        handles = [sch.schedule(*SLEEPER, name="train"), sch.schedule(*SLEEPER, name="train"), sch.schedule(*SLEEPER)]
        for handle in handles:
            await line_of(handle)
        names = sorted(info.name for info in pm.list())
        assert names.count("train") == 1
        assert len(set(names)) == 3
        for handle in handles:
            handle.cancel()


async def test_a_manager_at_its_limit_fails_the_start_clearly() -> None:
    async with ProcessManager(max_concurrent=1) as pm, TaskScheduler(SchedulerConfig(max_retries=5, retry_delay=0.01), manager=pm) as sch:
        blocker = await pm.spawn(*SLEEPER)
        retrying = asyncio.Event()
        sch.subscribe(lambda event: retrying.set() if isinstance(event.error, ResourceExhausted) else None)
        handle = sch.schedule("true")
        await retrying.wait()
        assert handle.attempts[0].outcome == "failed"
        await blocker.stop()
        assert (await handle).ok


async def test_on_the_background_loop() -> None:
    sch = TaskScheduler(background=True)
    a = sch.schedule("echo", "from afar")
    assert (await a).text == "from afar\n"
    assert (await sch.join()).succeeded == 1
    await sch.aclose()


async def test_frames_timeline_and_graph() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=2, retry_delay=0.01)) as sch:
        a = sch.schedule("true", name="a", priority=2)
        b = sch.schedule("false", name="b", after=[a], max_retries=1)
        c = sch.schedule("sh", "-c", "true", "--password=hunter2", name="<c>", after=[After(b, "any")])
        d = sch.schedule(*SLEEPER, name="d", after=[a])
        sch.schedule("true", delay=60, name="later")
        await c.wait()
        await line_of(d)
        frame = sch.frame()
        assert list(frame["name"])[:3] == ["a", "b", "b"]
        assert set(frame["outcome"]) == {"succeeded", "failed", "running"}
        assert frame.loc[0, "priority"] == "HIGH"
        assert frame.loc[0, "exit_code"] == 0
        assert frame.loc[2, "retry"] == 1
        assert frame["peak_rss"].isna()[0]  # `true` stays below our own peak: it can't be told
        assert (frame["started"] >= frame["queued"].dt.floor("us")).all()
        tasks = sch.tasks_frame().set_index("name")
        assert tasks.loc["later", "state"] == "scheduled"
        assert tasks.loc["b", "retry_count"] == 1
        for color in ("priority", "outcome", "group"):
            axes = sch.timeline(color=color)
            assert len(axes.patches) == len(frame)
        with pytest.raises(ValueError, match="color"):
            sch.timeline(color="taste")
        axes = sch.graph()
        assert {t.get_text().split("\n")[0] for t in axes.texts if t.get_text()} == {"a", "b", "<c>", "d"}
        plt.close("all")
        html = sch._html_()
        assert "&lt;c&gt;" in html
        assert "<c>" not in html
        assert "hunter2" not in html + repr(c) + str(sch.frame()["command"].tolist()) + c._html_()
        assert "text/html" in sch._repr_mimebundle_()


async def test_an_empty_scheduler_can_be_looked_at() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    async with TaskScheduler() as sch:
        assert len(sch.frame()) == len(sch.tasks_frame()) == 0
        sch.timeline()
        sch.graph()
        plt.close("all")
        assert (await sch.join()).queued_tasks == 0
        assert "0 queued" in sch._html_()


async def test_an_error_keeps_its_evidence() -> None:
    async with TaskScheduler(SchedulerConfig(retry_delay=0.01)) as sch:
        handle = sch.schedule(*python_child("sys.stderr.write('the reason\\n'); sys.exit(7)"), max_retries=1)
        with pytest.raises(ProcessFailed, match="exit status 7") as caught:
            await handle
        assert "the reason" in str(caught.value)
        assert caught.value.attempts == 2
        assert handle.result.exit_code == 7
        assert os.path.basename(sys.executable) in handle.name


async def test_a_policy_object_serves_the_scheduler_too() -> None:
    from nbprocs import RetryPolicy

    policy = RetryPolicy(max_retries=3, initial_delay=0.001, jitter=False, exit_codes={75})
    async with TaskScheduler(SchedulerConfig(retry=policy)) as sch:
        busy = sch.schedule("sh", "-c", "exit 75")
        wrong = sch.schedule("sh", "-c", "exit 2")
        once = sch.schedule("sh", "-c", "exit 75", max_retries=1)
        for task in (busy, wrong, once):
            await task.wait()
        assert [len(task.attempts) for task in (busy, wrong, once)] == [4, 1, 2]
        assert busy.task.max_retries == 3
