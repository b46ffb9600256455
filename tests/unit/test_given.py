"""What a view, a monitor, a handler or a history is made of: a wrong object, and an empty path, are refused where they are given."""

import functools
import inspect
from datetime import UTC, datetime, timedelta

import pytest

import nbprocs
from nbprocs import (
    Charts,
    CommandWorker,
    Dashboard,
    ErrorHandler,
    LogLine,
    OutputPane,
    PoolView,
    ProcessConfig,
    ProcessManager,
    ProcessMonitor,
    ProcessPool,
    ProcessTable,
    PythonWorker,
    QueueView,
    RunHistory,
    RunsConfig,
    SpawnForm,
    TaskScheduler,
    WorkersView,
)
from nbprocs.guard import WrongType, WrongValue
from nbprocs.scheduler.calls import PoolBackend
from nbprocs.scheduler.local import LocalBackend


class Odd:
    """Of no use to anybody."""


async def test_a_wrong_object_is_refused_where_it_is_given():
    async with ProcessManager() as pm, ProcessMonitor() as monitor, ProcessPool() as pool, TaskScheduler() as sch:
        process = await pm.spawn("sleep", "1000")
        result = await pm.run("true")
        ours = {"manager": pm, "monitor": monitor, "pool": pool, "scheduler": sch, "process": process}
        wrong = {**ours, "none": None, "number": 5, "text": "web", "list": [pm], "class": ProcessManager, "odd": Odd(), "result": result}
        takers = [  # what is called, the name of the argument, and what it takes
            *[(view, "manager", {"manager"}) for view in (Charts, Dashboard, ProcessTable, SpawnForm)],
            *[(functools.partial(view, pm), "monitor", {"monitor", "none"}) for view in (Charts, Dashboard, ProcessTable)],
            (PoolView, "pool", {"pool"}),
            (functools.partial(Dashboard, pm), "pool", {"pool", "none"}),
            (QueueView, "scheduler", {"scheduler"}),
            (functools.partial(Dashboard, pm), "scheduler", {"scheduler", "none"}),
            (OutputPane, "process", {"process"}),
            (WorkersView, "backend", set()),
            (ErrorHandler, "manager", {"manager"}),
            (functools.partial(ErrorHandler, pm), "pool", {"pool", "none"}),
            (monitor.watch, "target", {"manager", "pool", "process", "number"}),
            (LocalBackend, "manager", {"manager", "none"}),
            (PoolBackend, "pool", {"pool"}),
            (functools.partial(nbprocs.replay, rules=()), "frame", set()),
        ]
        for take, argument, right in takers:
            for kind, thing in wrong.items():
                if kind not in right:
                    with pytest.raises(WrongType, match=rf"^{argument} must be "):
                        take(**{argument: thing})


@pytest.mark.parametrize(
    ("make", "argument", "wrong"),
    [
        (ProcessMonitor, "clock", 5),
        (ProcessMonitor, "background", 1),
        (ProcessMonitor, "portable", "no"),
        (ProcessMonitor, "spill", 5),
        (TaskScheduler, "clock", 5),
        (TaskScheduler, "runs", 5),
        (ProcessManager, "runs", 5),
        (ProcessMonitor, "runs", 5),
        (RunHistory, "path", 5),
        (RunsConfig, "path", 5),
        (functools.partial(RunsConfig, path="x.db"), "tail", "x"),
        (functools.partial(RunsConfig, path="x.db"), "output", 1),
        (functools.partial(LogLine, "x"), "stream", []),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_where_it_is_given(make, argument, wrong):
    with pytest.raises(WrongType, match=rf"^{argument} must be "):
        make(**{argument: wrong})


async def test_options_of_views_and_handlers_are_refused_where_they_are_given():
    async with ProcessManager() as pm:
        for view in (Charts, Dashboard, ProcessTable):
            for height in ("300", None, [], 2.5):
                with pytest.raises(WrongType, match=r"^height must be a whole number"):
                    view(pm, height=height)
            with pytest.raises(WrongValue, match=r"^height must be a whole number"):
                view(pm, height=0)
        with pytest.raises(WrongType, match=r"^form must be True or False"):
            Dashboard(pm, form="yes")
        for name in ("clock", "sleep"):
            with pytest.raises(WrongType, match=rf"^{name} must be a callable"):
                ErrorHandler(pm, **{name: 5})


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (ProcessManager, "runs"),
        (TaskScheduler, "runs"),
        (ProcessMonitor, "runs"),
        (nbprocs.set_runs, "runs"),
        (RunsConfig, "path"),
        (RunHistory, "path"),
        (nbprocs.runs, "path"),
        (TaskScheduler, "store"),
        (TaskScheduler.opened, "store"),
        (ProcessMonitor, "spill"),
        (functools.partial(ProcessConfig, command="true"), "working_dir"),
        (functools.partial(ProcessConfig, command="true"), "stdout"),
        (functools.partial(ProcessConfig, command="true"), "stderr"),
        (functools.partial(ProcessConfig, command="true"), "executable"),
        (PythonWorker, "working_dir"),
        (functools.partial(CommandWorker, "bc"), "working_dir"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(make, argument):
    with pytest.raises(WrongValue, match=rf"^{argument} must be a (path|program by name or path), not ''"):
        make(**{argument: ""})


async def test_an_empty_folder_or_file_of_a_task_is_refused():
    async with TaskScheduler() as sch:
        for options in ({"working_dir": ""}, {"files": [""]}):
            with pytest.raises(WrongValue, match=r"must be a path, not ''"):
                sch.schedule("true", **options)


async def test_where_runs_are_kept_is_the_same_file_wherever_the_kernel_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunsConfig(path="runs.db")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    async with ProcessManager(runs=config) as pm:
        await pm.run("true")
    assert len(nbprocs.runs(tmp_path / "runs.db")) == 1
    assert not (tmp_path / "below" / "runs.db").exists()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"command": b"x"}, WrongType),
        ({"name": 5}, WrongType),
        ({"task": 5}, WrongType),
        ({"state": 5}, WrongType),
        ({"state": [5]}, WrongType),
        ({"since": []}, WrongType),
        ({"since": True}, WrongType),
        ({"since": "yesterday"}, WrongValue),
        ({"until": float("nan")}, WrongValue),
        ({"until": timedelta.max}, WrongValue),
    ],
    ids=repr,
)
def test_what_no_run_can_be_like_is_refused(tmp_path, wrong, error):
    with pytest.raises(error, match=rf"^{next(iter(wrong))}\S* must be "):
        RunHistory(tmp_path / "runs.db").filter(**wrong)


async def test_a_run_is_asked_for_by_place_name_or_id(tmp_path):
    async with ProcessManager(runs=tmp_path / "runs.db") as pm:
        await pm.run("true", name="one")
    history = nbprocs.runs(tmp_path / "runs.db")
    for key in (1.5, None, True, b"one", []):
        with pytest.raises(WrongType, match=r"^the place of a run must be a whole number"):
            history[key]
    for key in (5, None):
        with pytest.raises(WrongType, match=r"^key must be text"):
            history.get(key)
    for limit, error in ((-1, WrongValue), ("5", WrongType), (1.5, WrongType)):
        with pytest.raises(error, match=r"^limit must be a whole number, 0 or more"):
            history.frame(limit=limit)
    assert (history["one"].id, len(history.filter(since=datetime.now(UTC) - timedelta(hours=1), until=2e9))) == (history[0].id, 1)


@pytest.mark.parametrize("kernel", [False, True])
def test_a_queue_and_a_run_history_are_two_files(tmp_path, monkeypatch, kernel):
    monkeypatch.chdir(tmp_path)
    runs = RunsConfig(path=tmp_path / "one.db")
    try:
        nbprocs.set_runs(runs if kernel else None)
        with pytest.raises(WrongValue, match=r"^runs must be another file than the queue's own"):
            TaskScheduler(store="one.db", runs=None if kernel else runs)
    finally:
        nbprocs.set_runs(None)
    assert list(tmp_path.iterdir()) == []


async def test_what_methods_are_given_is_refused_at_the_call(tmp_path):
    async with (
        ProcessManager(runs=tmp_path / "runs.db") as pm,
        ProcessMonitor() as monitor,
        TaskScheduler() as sch,
        ErrorHandler(pm) as handler,
    ):
        process = await pm.spawn("cat", stdin=True)
        await pm.run("true", name="one")
        monitor.watch(pm)
        await monitor.sample()
        task = sch.schedule("true")
        await task
        run = nbprocs.runs(tmp_path / "runs.db")["one"]
        calls = [
            (functools.partial(handler.recover_on_alert, pm), r"^monitor must be a ProcessMonitor"),
            (functools.partial(handler.handle_error, 5), r"^error must be an exception, a ManagedProcess, its name or its id"),
            (functools.partial(handler.leave_alone, []), r"^name must be text"),
            (functools.partial(monitor.frame, since=5), r"^since must be a datetime"),
            (functools.partial(monitor.frame, names="web"), r"^names must be a list of text"),
            (functools.partial(run.rerun, manager=pm._core), r"^manager must be a ProcessManager"),
            (functools.partial(run.rerun, check=1), r"^check must be True or False"),
            (functools.partial(run.output, []), r"^stream must be a Stream"),
            (functools.partial(task.output, []), r"^stream must be a Stream"),
            (functools.partial(process.lines, stream=[]), r"^stream must be a Stream"),
            (functools.partial(process.send_line, b"x"), r"^line must be text"),
            (functools.partial(task.tail, 1.5), r"^lines must be a whole number"),
            (functools.partial(sch.tasks, limit=1.5), r"^limit must be a whole number, 0 or more"),
            (functools.partial(sch.ended, limit="x"), r"^limit must be a whole number, 0 or more"),
            (functools.partial(pm.get, []), r"^key must be a name or an id"),
            (functools.partial(pm.rename, 5, "x"), r"^key must be a name or an id"),
            (functools.partial(nbprocs.runs(tmp_path / "runs.db").regressions, window="x"), r"^window must be a whole number, 1 or more"),
        ]
        for call, match in calls:
            with pytest.raises(WrongType, match=match):
                answer = call()
                if inspect.isawaitable(answer):
                    await answer
                await anext(answer)
