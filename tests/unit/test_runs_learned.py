"""What the past teaches: estimates for a scheduler, regressions, and which script changed while it was queued."""

import asyncio
import math
import statistics
from datetime import UTC, datetime

import pytest

import nbprocs
from nbprocs.runs.learned import Past, Usual, quantile, regressions
from nbprocs.scheduler.learning import resolved
from nbprocs.scheduler.options import memory_bytes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


class Known:
    """A past in which make takes 1 to 20 seconds and 100 MB."""

    def usual(self, argv, *, shell=False):
        return Usual(seconds=tuple(float(n) for n in range(1, 21)), peak_rss=(100_000_000,), exact=True) if argv[0] == "make" else None

    def seconds(self, argv, share, *, shell=False):
        usual = self.usual(argv)
        return None if usual is None else quantile(usual.seconds, share)

    def memory(self, argv, share, *, shell=False):
        return None if self.usual(argv) is None else 100_000_000


def test_words_become_figures():
    known = {"timeout": "p95*3", "memory_gate": "p95", "name": "x"}
    assert resolved(Known(), ("make", "-j"), known, shell=False) == {"timeout": 57.0, "memory_gate": 100_000_000, "name": "x"}
    assert resolved(Known(), ("make",), {"timeout": "p50"}, shell=False) == {"timeout": 10.0}
    assert resolved(Known(), ("make",), {"timeout": "p90 × 1.5"}, shell=False) == {"timeout": 27.0}
    assert resolved(Known(), ("other",), known, shell=False) == {"name": "x"}
    assert resolved(Known(), ("make",), {"resources": "learned"}, shell=False) == {"memory_gate": 100_000_000, "estimated_duration": 10.5}
    assert resolved(Known(), ("other",), {"resources": "learned"}, shell=False) == {}
    assert resolved(Known(), ("make",), {"timeout": "3x", "resources": {"gpu": 1}}, shell=False) == {
        "timeout": "3x",
        "resources": {"gpu": 1},
    }
    for wrong in ("p95*", "p0", "p100", "percent", "p95*3*2"):
        with pytest.raises(ValueError, match="p95"):
            resolved(Known(), ("make",), {"timeout": wrong}, shell=False)


def test_quantiles_are_values_that_were_seen():
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, share) for share in (0.01, 0.5, 0.95, 1.0)] == [1.0, 50.0, 95.0, 100.0]
    assert quantile([7.0], 0.95) == 7.0
    with pytest.raises(ValueError, match="at least one"):
        quantile([], 0.5)


async def test_the_past_of_a_command_and_of_its_family(path):
    async with nbprocs.ProcessManager(runs=path) as pm:
        await pm.run("sh", "-c", "exit 0", "a")
        await pm.run("sh", "-c", "exit 1", "a", check=False)  # a failure teaches nothing about durations
    past = Past(path)
    run = nbprocs.runs(path)[0]
    exact, family = past.usual(("sh", "-c", "exit 0", "a")), past.usual(("sh", "-c", "exit 0", "b"))
    assert (exact.exact, exact.seconds) == (True, (run.seconds,))
    assert (family.exact, family.seconds) == (False, (run.seconds,))
    assert past.usual(("never", "seen")) is None
    assert past.seconds(("sh", "-c", "exit 0", "a"), 0.95) == run.seconds
    assert Past(path.with_name("none.db")).usual(("sh",)) is None


async def test_a_scheduler_learns_from_its_history(path):
    async with nbprocs.TaskScheduler(runs=path) as sch:
        for _ in range(3):
            await sch.schedule("sleep", "0.05", timeout="p95*3")
    usual = Past(path).seconds(("sleep", "0.05"), 0.95)
    async with nbprocs.TaskScheduler(runs=path) as sch:
        one = sch.schedule("sleep", "0.05", timeout="p95*3", resources="learned", hold=True)
        (many,) = sch.schedule_many([("sleep", "0.05")], timeout="p95*3", hold=True)
        for handle in (one, many):
            assert sch._core.find(handle.id).options.timeout == pytest.approx(3 * usual)
        assert sch._core.find(one.id).options.memory_gate == (Past(path).memory(("sleep", "0.05"), 0.95) or 0)
        assert one.task.estimated_duration == pytest.approx(Past(path).usual(("sleep", "0.05")).mean)


async def test_the_queue_tells_what_is_expected_and_what_it_was(path):
    async with nbprocs.TaskScheduler(runs=path) as sch:
        await sch.schedule("sleep", "0.05")
    async with nbprocs.TaskScheduler(runs=path) as sch:
        waiting, done = sch.schedule("sleep", "0.05", hold=True), sch.schedule("sleep", "0.05")
        result = await done
        assert (waiting.task.estimated_duration, waiting.task.execution_time) == (
            pytest.approx(Past(path).usual(("sleep", "0.05")).mean, rel=1),
            None,
        )
        assert done.task.execution_time == pytest.approx(result.execution_time)
        running = sch.schedule("sleep", "100")
        async with asyncio.timeout(10):
            while not (running.task.execution_time or 0.0) > 0:
                await asyncio.sleep(0.01)
        running.cancel()


async def test_an_eta_before_the_first_job_of_a_batch_has_ended(path):
    async with nbprocs.TaskScheduler(runs=path) as sch:
        for _ in range(4):
            await sch.schedule("sleep", "0.05")
    async with nbprocs.TaskScheduler(nbprocs.SchedulerConfig(max_concurrent_tasks=1), runs=path) as sch:
        sch.pause()
        for _ in range(100):
            sch.schedule("sleep", "0.05")
        eta = sch.status().eta
        mean = Past(path).usual(("sleep", "0.05")).mean
        assert eta.middle == pytest.approx(100 * mean, rel=0.2)
        assert eta.low < eta.middle < eta.high < math.inf
        assert sch.tasks()[0].estimated_duration == pytest.approx(mean)
    async with nbprocs.TaskScheduler(runs=False) as sch:
        sch.pause()
        sch.schedule("sleep", "0.05")
        assert sch.status().eta is None


async def test_tasks_are_rows_with_their_task_and_when_they_were_scheduled(path):
    before = datetime.now(UTC).timestamp()
    async with nbprocs.TaskScheduler(runs=path) as sch:
        handle = sch.schedule("echo", "x", name="job", env_vars={"A": "1"})
        await handle
    run = nbprocs.runs(path)[-1]
    assert (run.task, run.name, run.env) == (handle.id, "job", {"A": "1"})
    assert before <= run.queued <= run.started
    assert nbprocs.runs(path).filter(task=handle.id)[0].id == run.id


async def test_a_script_that_changed_between_scheduling_and_start_is_told(path, tmp_path, caplog):
    script, same = tmp_path / "job.sh", tmp_path / "same.sh"
    script.write_text("echo old")
    same.write_text("echo same")
    async with nbprocs.TaskScheduler(runs=path) as sch:
        changed, kept = sch.schedule("sh", str(script), hold=True), sch.schedule("sh", str(same), hold=True)
        assert sch._recorded.flush()
        script.write_text("echo new")
        changed.release()
        kept.release()
        assert ((await changed).text, (await kept).text) == ("new\n", "same\n")
    assert {run.command.split("/")[-1]: run.changed for run in nbprocs.runs(path)} == {"job.sh": (str(script),), "same.sh": ()}
    told = [record.message for record in caplog.records if "changed between scheduling and start" in record.message]
    assert len(told) == 1
    assert "job.sh" in told[0]


# --- as an alert ---------------------------------------------------------------------------------------------------------------


async def test_a_run_that_is_slower_than_it_used_to_be_raises_an_alert_while_it_runs(path, tmp_path):
    (tmp_path / "nap").write_text("0.01")
    job = ("sh", "-c", "sleep $(cat nap)")
    async with nbprocs.ProcessManager(runs=path) as pm:
        for _ in range(5):
            await pm.run(*job, working_dir=tmp_path)
        assert len(nbprocs.runs(path)) == 5  # what was gathered is written by now
        rule = nbprocs.Rule.regression(2.4)
        async with nbprocs.ProcessMonitor(interval=None, runs=path, rules=[rule]) as mon:
            mon.watch(pm)
            (tmp_path / "nap").write_text("1000")
            await pm.spawn(*job, working_dir=tmp_path, name="slow")
            await pm.spawn("sleep", "1000", name="unknown")
            async with asyncio.timeout(30):
                while not (alerts := [alert for alert in mon.alerts() if alert.type is nbprocs.AlertType.REGRESSION]):
                    await mon.sample()
                    await asyncio.sleep(0.01)
            assert [(alert.name, alert.limit) for alert in alerts] == [("slow", 2.4)]
            assert alerts[0].message.endswith("\N{MULTIPLICATION SIGN} slower than its last 20 runs")
            assert mon.metrics("slow").slowdown > 2.4
            assert mon.metrics("unknown").slowdown is None
            kept = [alert for alert in nbprocs.replay(mon.frame(scope=None), rule) if alert.type is nbprocs.AlertType.REGRESSION]
            assert [alert.id for alert in kept] == [alert.id for alert in alerts]


@pytest.mark.parametrize("background", [False, True])
async def test_a_short_run_that_was_slower_than_it_used_to_be_is_told_at_its_end(path, tmp_path, background):
    """Nobody samples: all that is known of it is how long it took in all."""
    (tmp_path / "nap").write_text("0")
    job = ("sh", "-c", "sleep $(cat nap)")
    heard = []
    async with nbprocs.ProcessManager(runs=path, background=background) as pm:
        for _ in range(5):
            await pm.run(*job, working_dir=tmp_path)
        usual = statistics.median(run.seconds for run in nbprocs.runs(path))
        async with nbprocs.ProcessMonitor(interval=None, runs=path, rules=[rule := nbprocs.Rule.regression(5)]) as mon:
            mon.on_alert(lambda alert: heard.append((alert.name, alert.resolved)))
            mon.watch(pm)
            (tmp_path / "nap").write_text(str(10 * usual))
            run = await pm.run(*job, working_dir=tmp_path, name="slow")
            async with asyncio.timeout(20):
                while not (alerts := [alert for alert in mon.alerts() if alert.type is nbprocs.AlertType.REGRESSION]):
                    await asyncio.sleep(0.01)
            assert [(alert.name, alert.resolved) for alert in alerts] == [("slow", True)]
            assert alerts[0].value == pytest.approx(run.execution_time / usual, rel=0.01)
            assert f"{alerts[0].value:.1f} \N{MULTIPLICATION SIGN} slower than its last 20 runs" in alerts[0].message
            assert heard[0] == ("slow", False)
            assert list(nbprocs.replay(mon.frame(scope=None), rule)) == alerts


# --- regressions -----------------------------------------------------------------------------------------------------------------


def frame(*runs):
    import pandas as pd

    rows = [
        {"name": name, "id": str(n), "command": name, "started": pd.Timestamp(n, unit="s", tz="UTC"), "seconds": seconds, "state": state}
        for n, (name, seconds, state) in enumerate(runs)
    ]
    return pd.DataFrame(rows).set_index("name")


def test_a_regression_is_told_once_by_what_came_before():
    normal = [("train", 1.0 + 0.01 * n, "completed") for n in range(20)]
    found = regressions(frame(*normal, ("train", 2.64, "completed"), ("train", 1.0, "completed"), ("other", 9.0, "completed")))
    assert [(each.id, each.runs) for each in found] == [("20", 20)]
    assert str(found[0]) == "train: 2.4 \N{MULTIPLICATION SIGN} slower than its last 20"
    assert found[0].ratio == pytest.approx(2.64 / 1.095)


def test_few_runs_and_failures_are_no_measure():
    assert not regressions(frame(("a", 1.0, "completed"), ("a", 9.0, "completed")))
    failed = [("a", 0.01, "failed")] * 10
    assert not regressions(frame(*failed, ("a", 1.0, "completed")))
    with pytest.raises(ValueError, match="factor"):
        regressions(frame(("a", 1.0, "completed")), factor=1)


def test_other_sizes_are_still_sizes():
    assert memory_bytes("2 GB") == 2 << 30
