"""The monitor on real processes: managers, single processes, any pid; alerts, callbacks, ends, and what it holds."""

import asyncio
import logging
import math
import os
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

import nbprocs
from nbprocs.engine.table import Identity
from nbprocs.errors import Closed, StartupFailed, UnknownProcess
from nbprocs.monitor import AlertSeverity, AlertThresholds, AlertType, ProcessMonitor, Rule, Scope, State, replay
from nbprocs.monitor.book import Book
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.history import COLUMNS
from nbprocs.monitor.roster import Roster
from nbprocs.policy import RestartPolicy
from nbprocs.testing import FakeClock
from tests.children import ECHO, SLEEPER, python_child, until_line

FAILING = python_child("ready(); sys.exit(3)")


@pytest.fixture
async def pm():
    async with nbprocs.ProcessManager() as manager:
        yield manager


@pytest.fixture
async def make():
    """Monitors that take samples only when told, and are closed at the end."""
    made = []

    def monitor(**options):
        mon = ProcessMonitor(**{"interval": None, "gpu": Gpu(library=None), **options})
        made.append(mon)
        return mon

    yield monitor
    for mon in made:
        await mon.aclose()


async def ticked(mon, condition):
    """Wait for a tick after which the condition holds."""
    done = asyncio.Event()
    end = mon.subscribe(lambda: condition() and done.set())
    async with asyncio.timeout(20):
        await done.wait()
    end()


# -- watching --------------------------------------------------------------------------------------------------------------


async def test_watching_a_manager_ticks_by_itself_and_knows_all_its_processes(pm, make):
    early = await pm.spawn(*SLEEPER, name="early")
    mon = make(interval=0.02)
    mon.watch(pm)
    late = await pm.spawn(*SLEEPER, name="late")
    await until_line(early)  # before, they may be seen between fork and exec, with a megabyte
    await until_line(late)
    await ticked(mon, lambda: {"early", "late"} <= {m.name for m in mon.current().values()})
    await mon.sample()
    frame = mon.frame()
    assert set(frame["name"]) == {"early", "late"}
    assert set(frame["pid"]) == {early.pid, late.pid}
    assert (frame.groupby("name")["memory_usage_mb"].last() > 1).all()
    assert set(mon.current()) == {early.id, late.id, "manager"}


async def test_metrics_of_one_process(pm, make):
    mon = make()
    mon.watch(pm)
    proc = await pm.spawn(*SLEEPER, name="web")
    await until_line(proc)
    await mon.sample()
    await mon.sample()
    found = mon.metrics("web")
    assert found == mon.metrics(proc.id)
    assert (found.name, found.pid, found.process_id) == ("web", proc.pid, proc.id)
    assert found.state in (State.SLEEPING, State.RUNNING)
    assert found.cpu_percent is not None
    assert (found.processes, found.threads, found.restarts, found.error_count, found.success_count) == (1, 1, 0, 0, 0)
    assert found.memory_usage_mb > found.pss_mb > 0
    assert 0 < found.age_seconds < 20
    assert (found.response_time, found.error_rate, found.gpu_memory_mb) == (None, None, None)
    assert abs(found.timestamp - datetime.now(UTC)) < timedelta(seconds=20)
    with pytest.raises(UnknownProcess, match="nobody"):
        mon.metrics("nobody")


async def test_an_end_is_counted_and_told_at_once(pm, make):
    mon = make()
    mon.watch(pm)
    heard = []
    mon.on_alert(heard.append)
    for name, argv in (("good", python_child("pass")), ("bad", FAILING), ("stopped", SLEEPER)):
        proc = await pm.spawn(*argv, name=name)
        await (proc.stop() if name == "stopped" else proc.wait())
    assert [(a.name, a.type, a.severity) for a in heard] == [("bad", AlertType.PROCESS_DOWN, AlertSeverity.CRITICAL)]  # without any tick
    await mon.sample()
    states = {m.name: m.state for m in mon._metrics()}
    assert states == {"good": State.COMPLETED, "bad": State.FAILED, "stopped": State.TERMINATED, "manager": State.UNKNOWN}
    group = mon.metrics("manager")
    assert (group.error_count, group.success_count, group.error_rate) == (1, 1, 0.5)
    assert (mon.metrics("bad").error_count, mon.metrics("good").success_count) == (1, 1)
    assert mon.current().keys() == {"manager"}


async def test_a_start_that_fails_is_an_error_and_an_alert(pm, make):
    mon = make()
    mon.watch(pm)
    with pytest.raises(StartupFailed):
        await pm.spawn("/no/such/program", name="ghost")
    assert [(a.name, a.type) for a in mon.alerts()] == [("ghost", AlertType.PROCESS_DOWN)]
    await mon.sample()
    assert mon.metrics("manager").error_count == 1


async def test_a_restart_resolves_process_down_and_counts(pm, make):
    mon = make()
    mon.watch(pm)
    proc = await pm.spawn(*SLEEPER, name="web", restart=RestartPolicy(max_restarts=3, initial_delay=0.01))
    await until_line(proc)
    back = asyncio.Event()
    pm.subscribe(lambda e: e.kind is nbprocs.EventKind.STARTED and back.set())
    proc.send_signal(9)
    await back.wait()
    await mon.sample()
    (alert,) = mon.alerts()
    assert alert.type is AlertType.PROCESS_DOWN
    assert alert.resolved
    found = mon.metrics("web")
    assert (found.restarts, found.error_count) == (1, 1)
    assert found.pid == pm.get("web").pid != proc.pid


async def test_a_supervisor_that_gives_up_is_an_emergency(pm, make):
    mon = make()
    mon.watch(pm)
    fatal = asyncio.Event()
    pm.subscribe(lambda e: e.kind is nbprocs.EventKind.FATAL and fatal.set())
    await pm.spawn(*FAILING, name="broken", restart=RestartPolicy(max_restarts=1, initial_delay=0.01))
    await fatal.wait()
    await mon.sample()
    worst = max(mon.alerts(), key=lambda alert: alert.severity)
    assert (worst.type, worst.severity, worst.resolved) == (AlertType.PROCESS_DOWN, AlertSeverity.EMERGENCY, False)
    assert worst.message == "broken is down: fatal"


async def test_one_process_and_any_pid_can_be_watched(pm, make):
    mon = make()
    proc = await pm.spawn(*SLEEPER, name="one")
    await pm.spawn(*SLEEPER, name="other")
    mon.watch(proc)
    mon.add(os.getpid(), name="me")
    mon.watch(os.getppid())
    mon.watch(proc)  # twice is once
    await mon.sample()
    assert len(mon.current()) == 3
    assert mon.metrics("me").pid == os.getpid()
    assert mon.metrics("one").pid == proc.pid
    await proc.stop()
    assert mon.frame(names=["one"])["state"].iloc[-1] == "terminated"
    mon.unwatch(os.getpid())
    await mon.sample()
    assert len(mon.current()) == 1
    with pytest.raises(UnknownProcess):
        mon.add(2**22 + 1)
    with pytest.raises(TypeError, match="target must be a manager, a pool"):
        mon.watch("web")


async def test_a_pid_of_others_that_ends_or_is_reused_is_visible(pm, make):
    mon = make()
    ends, reused = await pm.spawn(*SLEEPER), await pm.spawn(*SLEEPER)
    mon.add(ends.pid, name="ends")
    mon.add(reused.pid, name="reused")
    await mon.sample()
    await ends.stop()
    target = next(t for t in mon._roster.targets.values() if t.name == "reused")
    target.identity = Identity(reused.pid, target.identity.start - 1)  # as if it had been somebody else's before
    await mon.sample()
    table = mon.latest()
    assert list(table.loc[["ends", "reused"], "state"]) == ["gone", "gone"]
    assert "not our child" in table.loc["ends", "note"]
    assert "belongs to another process" in table.loc["reused", "note"]
    assert {a.name for a in mon.alerts() if a.type is AlertType.PROCESS_DOWN} == {"ends", "reused"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
async def test_a_process_of_another_user_has_a_note(pm, make):
    mon = make()
    proc = await pm.spawn("/usr/bin/env", "setpriv", "--reuid=65534", "sleep", "1000")
    await ticked_user(proc.pid)
    mon.add(proc.pid, name="theirs")
    await mon.sample()
    assert "may not be readable" in mon.latest().loc["theirs", "note"]


async def ticked_user(pid):
    """Until the process has given up its rights."""
    async with asyncio.timeout(10):
        while os.stat(f"/proc/{pid}").st_uid == 0:
            await asyncio.sleep(0)


async def test_renamed_and_replaced_processes_keep_their_samples_under_each_name(pm, make):
    mon = make()
    mon.watch(pm)
    proc = await pm.spawn(*SLEEPER, name="a")
    await mon.sample()
    await pm.rename("a", "b")
    await mon.sample()
    assert list(mon.frame()["name"]) == ["a", "b"]
    assert set(mon.frame()["process_id"]) == {proc.id}


async def test_output_rates_of_a_real_process(pm, make):
    mon = make()
    mon.watch(pm)
    proc = await pm.spawn(*ECHO, name="echo", stdin=True)
    await until_line(proc)
    await mon.sample()
    await proc.send("x\n" * 500)
    while (await proc.receive_output()) == "ready" or proc.stdout.end < len("ready\n") + 1000:
        pass
    await mon.sample()
    found = mon.metrics("echo")
    assert found.output_bytes_per_second / found.throughput == pytest.approx(2)
    assert found.throughput > 0
    assert found.silence_seconds == 0


# -- alerts ----------------------------------------------------------------------------------------------------------------


def test_exact_fire_and_resolve_times_on_a_fake_clock():
    clock = FakeClock(1000.0)
    book = Book([Rule(metric="cpu_percent", above=80, clear=50, for_seconds=2.5)], max_bytes=1 << 20, clock=clock)
    series = book.history.series(process_id="id", name="p", pid=1)
    start = book.now()
    heard = []
    for value in (90, 90, 90, 90, 60, 40, 90):
        columns = {name: np.full(1, np.nan if kind == "f4" else 0, kind) for name, kind in COLUMNS.items()}
        columns |= {"series": np.array([series.code]), "state": np.array([int(State.RUNNING)]), "cpu_percent": np.array([value], "f4")}
        heard += [(str(t.change), t.alert) for t in book.take(columns, ["p"], ["id"])]
        clock.advance(1.0)
    assert [change for change, _ in heard] == ["fired", "resolved"]
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=start)
    assert heard[1][1].timestamp == moment + timedelta(seconds=3)
    assert heard[1][1].resolved_at == moment + timedelta(seconds=5)
    assert replay(book.history.snapshot().frame(scope=None), book.rules) == book.alerts()


async def test_a_live_run_and_its_replay_agree(pm, make):
    thresholds = AlertThresholds(max_memory_mb=40, max_cpu_percent=30, max_error_rate=0.4)
    mon = make(interval=0.02, thresholds=thresholds, rules=[Rule.silence(0.1), Rule.activity(0.1)])
    mon.watch(pm)
    leak = await pm.spawn(*python_child("""
        ready(); sys.stdin.readline()
        held = bytearray(60 << 20); ready('up'); sys.stdin.readline()
        del held; ready('down'); sys.stdin.readline(); sys.exit(7)
    """), name="leak", stdin=True)  # fmt: skip
    await until_line(leak)
    for expected, resolved in (("up", False), ("down", True)):
        await leak.send_line("go")
        await until_line(leak, expected)
        await ticked(mon, lambda r=resolved: [a.resolved for a in mon.alerts() if a.type is AlertType.MEMORY_USAGE] == [r])
    await ticked(mon, lambda: any(a.type is AlertType.SILENCE for a in mon.alerts(open_only=True)))
    await leak.send_line("go")
    await leak.wait()
    await ticked(mon, lambda: any(a.type is AlertType.ERROR_RATE for a in mon.alerts()))
    await mon.aclose()
    assert {AlertType.MEMORY_USAGE, AlertType.SILENCE, AlertType.PROCESS_DOWN, AlertType.ERROR_RATE} <= {a.type for a in mon.alerts()}
    assert mon.replay(mon.rules) == mon.alerts()
    assert replay(mon.frame(scope=None), mon.rules) == mon.alerts()
    assert len(mon.replay(AlertThresholds(max_memory_mb=10_000))) < len(mon.alerts())
    frame = mon.alert_frame()
    assert len(frame) == len(mon.alerts())
    assert str(frame["timestamp"].dtype) == "datetime64[us, UTC]"


async def test_a_rule_with_a_duration_fires_for_a_process_that_stays_down(pm, make):
    mon = make(interval=0.02, rules=[Rule(metric="down", above=0.5, for_seconds=0.1, severity=AlertSeverity.EMERGENCY)])
    mon.watch(pm)
    proc = await pm.spawn(*FAILING, name="bad")
    await proc.wait()
    await ticked(mon, lambda: [a.severity for a in mon.alerts()] == [AlertSeverity.EMERGENCY])
    await mon.sample()  # one more: it need not be looked at any longer
    await mon.aclose()
    assert mon.replay(mon.rules) == mon.alerts()
    assert mon._roster._waiting == {}


async def test_callbacks_may_fail_or_hang_and_harm_nobody(pm, make, caplog):
    mon = make()
    heard, started = [], asyncio.Event()

    def broken(alert):
        raise ValueError("a bug of the user")

    async def broken_too(alert):
        raise KeyError("another")

    async def hangs(alert):
        started.set()
        await asyncio.Event().wait()

    async def good(alert):
        heard.append(alert)

    for callback in (broken, broken_too, hangs, good):
        mon.on_alert(callback)
    stop = mon.on_alert(lambda alert: heard.append("late"))
    stop()
    mon.watch(pm)
    with caplog.at_level(logging.ERROR):
        await (await pm.spawn(*FAILING, name="bad")).wait()
        await started.wait()
        await mon.sample()
    assert [alert.name for alert in heard] == ["bad"]
    assert [str(f.error) for f in mon.callback_failures] == ["a bug of the user", "'another'"]
    assert "broken" in caplog.text
    with pytest.raises(TypeError):
        mon.on_alert("not callable")


async def test_callbacks_are_called_at_a_bounded_rate_and_nothing_is_lost(pm, make, caplog):
    clock = FakeClock()
    mon = make(clock=clock)
    mon.watch(pm)
    heard = []
    mon.on_alert(heard.append)
    for number in range(60):
        with pytest.raises(StartupFailed):
            await pm.spawn("/no/such/program", name=f"job-{number}")
    assert len(heard) == 50
    assert mon.suppressed == 10
    assert len(mon.alerts()) == 60
    assert caplog.text.count("come too fast") == 1
    clock.advance(2.0)
    with pytest.raises(StartupFailed):
        await pm.spawn("/no/such/program", name="later")
    assert len(heard) == 51


async def test_unwatching_ends_open_alerts(pm, make):
    mon = make(thresholds=AlertThresholds(max_memory_mb=0.1))
    mon.watch(pm)
    await until_line(await pm.spawn(*SLEEPER, name="p"))
    await mon.sample()
    assert len(mon.alerts(open_only=True)) == 1
    mon.unwatch(pm)
    assert mon.alerts(open_only=True) == ()
    await mon.sample()
    assert mon.current() == {}


async def test_a_process_that_falls_out_of_the_managers_history_has_no_open_alert(make):
    mon = make()
    async with nbprocs.ProcessManager(history=1) as pm:
        mon.watch(pm)
        for name in ("first", "second"):
            await (await pm.spawn(*FAILING, name=name)).wait()
        assert [a.name for a in mon.alerts(open_only=True)] == ["second"]


# -- what it holds ---------------------------------------------------------------------------------------------------------


async def test_a_thousand_short_lived_processes_leave_no_growth(make):
    mon = make(interval=0.05)
    async with nbprocs.ProcessManager(max_concurrent=8, history=50) as pm:
        mon.watch(pm)
        for _ in range(10):
            await asyncio.gather(*(pm.run("/bin/true", wait=True) for _ in range(100)))
        await mon.sample()
        roster = mon._roster
        assert mon.metrics("manager").success_count == 1000
        assert (len(roster.targets), len(roster._names), len(roster._waiting)) == (0, 0, 0)
        assert len(roster.tallies) <= 2000
        assert len(mon._sampler._past) <= 16
        assert len(mon._sampler.forest.members) == 0
        assert mon._sampler.forest._kept == 0
        assert mon._book._episodes._phases == [{}, {}]
        assert mon._book.history.nbytes < 1 << 20


async def test_a_closed_monitor_can_be_read_but_not_used(pm):
    mon = ProcessMonitor(interval=0.01, gpu=Gpu(library=None))
    mon.watch(pm)
    await pm.spawn(*SLEEPER, name="p")
    await ticked(mon, lambda: len(mon.frame()) > 0)
    threads = {t.name for t in threading.enumerate()}
    assert any(name.startswith("nbprocs-monitor") for name in threads)
    await asyncio.gather(mon.aclose(), mon.aclose())
    await mon.aclose()
    assert not any(t.name.startswith("nbprocs-monitor") for t in threading.enumerate())
    assert len(mon.frame()) > 0
    assert "closed" in repr(mon)
    for use in (lambda: mon.watch(pm), lambda: mon.add(1), mon.start, lambda: mon.probe("p", print)):
        with pytest.raises(Closed):
            use()
    with pytest.raises(Closed):
        await mon.sample()


async def test_closing_in_the_middle_of_a_tick_waits_for_it(pm):
    mon = ProcessMonitor(interval=None, gpu=Gpu(library=None))
    mon.watch(pm)
    entered, go = threading.Event(), threading.Event()
    real = mon._sampler.sample

    def gated(*args, **options):
        entered.set()
        go.wait(10)
        return real(*args, **options)

    mon._sampler.sample = gated
    tick = asyncio.create_task(mon.sample())
    await asyncio.to_thread(entered.wait, 10)
    tick.cancel()
    closing = asyncio.create_task(mon.aclose())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert tick.cancelled() or tick.done()


async def test_a_defect_in_one_tick_does_not_end_the_watch(pm, make, caplog):
    mon = make(interval=0.01)
    real, calls = mon._sampler.sample, []

    def sometimes(*args, **options):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a defect")
        return real(*args, **options)

    mon._sampler.sample = sometimes
    mon.watch(pm)
    await pm.spawn(*SLEEPER, name="p")
    await ticked(mon, lambda: len(mon.frame()) > 0)
    assert caplog.text.count("a tick of the monitor failed") == 1


async def test_the_end_is_the_last_word_also_when_it_comes_during_a_tick(pm, make):
    mon = make()
    mon.watch(pm)
    proc = await pm.spawn(*SLEEPER, name="p")
    await until_line(proc)
    await mon.sample()
    looked, go = threading.Event(), threading.Event()
    real = mon._sampler.sample

    def gated(*args, **options):
        sample = real(*args, **options)
        looked.set()
        go.wait(10)
        return sample

    mon._sampler.sample = gated
    tick = asyncio.create_task(mon.sample())
    await asyncio.to_thread(looked.wait, 10)
    await proc.kill()
    go.set()
    await tick
    frame = mon.frame()
    assert frame["state"].iloc[-1] == "terminated"
    assert frame["timestamp"].is_monotonic_increasing


# -- from other threads and loops ------------------------------------------------------------------------------------------


async def test_a_monitor_of_a_background_manager_works_from_here():
    async with nbprocs.ProcessManager(background=True) as pm, ProcessMonitor(interval=None, gpu=Gpu(library=None)) as mon:
        mon.watch(pm)
        await pm.spawn(*SLEEPER, name="p")
        await mon.sample()
        assert mon.metrics("p").memory_usage_mb > 0
        await (await pm.spawn(*FAILING, name="bad")).wait()
        async with asyncio.timeout(10):
            while not mon.alerts():
                await asyncio.sleep(0)


async def test_a_background_monitor_ticks_while_this_loop_is_blocked(pm):
    mon = ProcessMonitor(interval=0.02, background=True, gpu=Gpu(library=None))
    mon.watch(pm)
    await pm.spawn(*SLEEPER, name="p")
    await mon.sample()
    before = len(mon.frame())
    deadline = time.monotonic() + 10
    while len(mon.frame()) < before + 3 and time.monotonic() < deadline:  # no await: this loop stands still
        pass
    assert len(mon.frame()) >= before + 3
    await mon.aclose()


def test_made_and_used_without_a_loop():
    mon = ProcessMonitor(interval=None, gpu=Gpu(library=None))
    mon.add(os.getpid(), name="me")

    async def look():
        await mon.sample()
        await mon.aclose()

    asyncio.run(look())
    assert mon.frame()["name"].tolist() == ["me"]


# -- tables ----------------------------------------------------------------------------------------------------------------


async def test_tables_are_dataframes_ready_to_use(pm, make):
    mon = make()
    mon.watch(pm)
    await pm.spawn(*SLEEPER, name="a")
    await pm.spawn("sh", "-c", "sleep 1000 & wait", name="b")
    for _ in range(3):
        await mon.sample()
    wide = mon.frame(wide="memory_usage_mb")
    assert list(wide.columns) == ["a", "b"]
    assert len(wide) == 3
    assert str(wide.index.dtype) == "datetime64[us, UTC]"
    with pytest.raises(ValueError, match="memory_usage_mb"):
        mon.frame(wide="nonsense")
    summary = mon.summary()
    assert list(summary.index) == ["a", "b"]
    assert list(summary["samples"]) == [3, 3]
    assert summary.loc["b", "processes_max"] == 2
    latest = mon.latest()
    assert set(latest.index) == {"a", "b", "manager"}
    assert latest["pid"].dtype == "Int64"
    assert latest["cpu_percent"].dtype == "float64"
    members = mon.frame(scope="process")
    assert members.groupby("name", observed=True)["pid"].nunique().to_dict() == {"a": 1, "b": 2}
    whole = mon.frame(scope=None)
    assert set(whole["scope"]) == {"tree", "process", "group"}
    assert len(mon.frame(scope=Scope.GROUP)) == 3
    assert len(mon.frame(since=datetime.now(UTC) + timedelta(hours=1))) == 0
    assert isinstance(whole, pd.DataFrame)


async def test_the_static_table_escapes_what_is_not_ours(pm, make):
    mon = make(thresholds=AlertThresholds(max_memory_mb=0.1))
    mon.watch(pm)
    process = await pm.spawn(*SLEEPER, name="<script>alert(1)</script>")
    await until_line(process)
    await mon.sample()
    assert "<script" in mon.alerts(open_only=True)[0].message
    shown = mon._html_()
    assert shown.count("&lt;script&gt;") >= 2, "the row and the alert"
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert repr(mon).startswith("<ProcessMonitor: 1 watched")


async def test_wrong_intervals_are_refused():
    for interval in (0, -1, math.nan):
        with pytest.raises(ValueError, match="interval"):
            ProcessMonitor(interval=interval)


async def test_samples_that_leave_memory_are_spilled(pm, tmp_path):
    path = tmp_path / "run.csv"
    async with ProcessMonitor(interval=None, history_bytes=0, spill=str(path), gpu=Gpu(library=None)) as mon:
        mon.watch(pm)
        for name in "abc":
            await pm.spawn(*SLEEPER, name=name)
        while not mon.dropped:
            await mon.sample()
        held = len(mon.frame(scope=None))
    back = pd.read_csv(path)
    assert len(back) == held + mon.dropped
    assert mon.spill_lost == 0


async def test_a_full_disk_is_told_once_and_what_is_lost_is_counted(pm, caplog, monkeypatch, tmp_path):
    mon = ProcessMonitor(interval=None, history_bytes=0, spill=str(tmp_path / "x.csv"), gpu=Gpu(library=None))

    def full(snapshot):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mon._spill, "write", full)
    mon.add(os.getpid(), name="me")
    await mon.sample()
    await mon.aclose()
    assert mon.spill_lost == len(mon.frame(scope=None)) >= 1
    assert caplog.text.count("can't be spilled") == 1


async def test_a_manager_on_another_loop_is_heard_on_the_monitors_own(monkeypatch):
    heard, usual = set(), Roster.heard

    def spy(roster, group, event):
        heard.add(threading.get_ident())
        usual(roster, group, event)

    monkeypatch.setattr(Roster, "heard", spy)
    async with ProcessMonitor(interval=None, gpu=Gpu(library=None)) as mon:
        await mon.sample()  # it lives here from now on
        async with nbprocs.ProcessManager(background=True) as pm:
            mon.watch(pm)
            await pm.run("true")
        async with asyncio.timeout(20):
            while not heard:
                await asyncio.sleep(0.01)
    assert heard == {threading.get_ident()}
