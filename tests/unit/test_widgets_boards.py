"""Charts, pool view, queue view and dashboard on their real models."""

import asyncio
import sys
import time

from nbprocs import ProcessManager, TaskPriority
from nbprocs.monitor import AlertThresholds, ProcessMonitor
from nbprocs.pool import PoolConfig, ProcessPool
from nbprocs.scheduler import SchedulerConfig, TaskScheduler, TaskState
from nbprocs.widgets import Charts, Dashboard, PoolView, QueueView
from tests.unit.widgets_kit import shown
from tests.waiting import until


async def test_charts_tick_mark_alerts_and_are_refilled() -> None:
    async with ProcessManager() as pm, ProcessMonitor(interval=0.05, thresholds=AlertThresholds(max_memory_mb=1)) as monitor:
        monitor.watch(pm)
        await pm.spawn(sys.executable, "-c", "input()", stdin=True, name="<b>eater</b>")
        with shown(Charts(pm, monitor=monitor)) as tab:
            assert (await tab.hello())["charts"]["lines"] == []
            added = await tab.delta("charts", lambda d: d.get("+"))
            assert added["+"] == [[1, "<b>eater</b>"]]
            tick = await tab.delta("charts", lambda d: d.get("t") and d["t"][0][1][0][2])
            assert tick["t"][0][1][0][2] > 1
            alert = (await tab.delta("charts", lambda d: d.get("a")))["a"][0]
            assert alert[1] == "warning"
            assert alert[6] == "memory_usage"
            snapshot = (await tab.hello())["charts"]
            assert len(snapshot["lines"][0][2]) >= 1
            assert snapshot["alerts"][0][0] == alert[0]
            await until(lambda: len(tab.deltas("charts")) > 5)
            html = tab.view._repr_mimebundle_()["text/html"]
            assert "<polyline" in html
            assert "&lt;b&gt;eater" in html
            assert html.count("eater") >= 2, "in the alert, too"
            assert "<b>eater" not in html


async def test_charts_have_a_record_though_nobody_looked() -> None:
    async with ProcessManager() as pm, ProcessMonitor(interval=0.02, thresholds=AlertThresholds(max_memory_mb=1)) as monitor:
        monitor.watch(pm)
        process = await pm.spawn(sys.executable, "-c", "input()", stdin=True, name="<b>eater</b>")
        view = Charts(pm, monitor=monitor)
        (part,) = view.parts.values()
        assert "no measurements yet" in part.html()
        told: list[str] = []
        stop = part.watch_record(lambda: told.append(part.html()), live=False)
        await until(lambda: told)  # once, when there is a line to show
        assert "<polyline" in told[0]
        assert "&lt;b&gt;eater" in told[0]
        assert "warning" in told[0]
        await process.stop()
        assert len(told) == 2
        assert "&lt;b&gt;eater" in told[1]
        stop()
        assert len(view._repr_mimebundle_()["text/html"]) > 100
        assert part.snapshot().content["lines"] == []  # type: ignore[attr-defined]
        view.close()


async def test_pool_view_shows_workers_and_tasks_and_resizes() -> None:
    async with ProcessPool(PoolConfig(max_processes=2, initial_processes=1)) as pool:
        with shown(PoolView(pool)) as tab:
            snapshot = (await tab.hello())["pool"]
            assert [row[1][0] for row in snapshot["rows"]] == ["idle"]
            waiting = pool.submit(time.sleep, 0.8)
            busy = await tab.delta("pool", lambda d: any(row[0] == "busy" and row[4] for _, row in d.get("u", ())))
            assert busy["u"][0][1][5] == "sleep"
            assert (await tab.call("pool", "resize", workers=2))["ok"]
            await tab.delta("pool", lambda d: d.get("figures", {}).get("workers") == 2)
            await waiting
            done = await tab.delta("pool", lambda d: d.get("figures", {}).get("completed") == 1)
            assert done["figures"]["failed"] == 0
            assert (await tab.call("pool", "renew"))["ok"]


async def test_queue_view_follows_the_queue_and_acts_on_it() -> None:
    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=1)) as sch:
        running = sch.schedule("sleep", "1000", name="first", estimated_duration=10)
        waiting = [sch.schedule("sleep", "1000", name=f"w{i}") for i in range(3)]
        with shown(QueueView(sch)) as tab:
            snapshot = (await tab.hello())["queue"]
            assert {row[0] for _, row in snapshot["rows"]} == {"first", "w0", "w1", "w2"}
            await until(lambda: running.state is TaskState.RUNNING)
            assert (await tab.call("queue", "hold", ids=[waiting[0].id]))["ok"]
            await tab.delta("queue", lambda d: any(k == waiting[0].id and row[2] == "held" for k, row in d.get("u", ())))
            assert (await tab.call("queue", "release", ids=[waiting[0].id]))["ok"]
            assert (await tab.call("queue", "reprioritise", ids=[waiting[1].id], priority=int(TaskPriority.CRITICAL)))["ok"]
            await tab.delta("queue", lambda d: any(k == waiting[1].id and row[4] == "CRITICAL" for k, row in d.get("u", ())))
            assert (await tab.call("queue", "pause", on=True))["ok"]
            await tab.delta("queue", lambda d: d.get("status", {}).get("paused"))
            assert (await tab.call("queue", "cancel", ids=[running.id, waiting[2].id]))["ok"]
            ended = await tab.delta("queue", lambda d: any(bar[0] == running.id and bar[2] for bar in d.get("b", ())))
            assert ended["b"][-1][3] == "cancelled"
            assert waiting[1].state is not TaskState.RUNNING
            assert (await tab.call("queue", "set_limit", limit=2))["ok"]
            assert (await tab.call("queue", "pause", on=False))["ok"]
            await until(lambda: waiting[1].state is TaskState.RUNNING)
            assert not (await tab.call("queue", "cancel", ids=["nobody"]))["ok"]
            sch.cancel()
            await tab.delta("queue", lambda d: d.get("status", {}).get("running") == 0 and d["status"]["waiting"] == 0)


async def test_each_try_has_one_bar_which_ends_with_it_also_unseen() -> None:
    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=4)) as sch:
        tasks = [sch.schedule("sleep", "1000") for _ in range(4)]
        await asyncio.sleep(0)  # a turn of the loop, and they run; that they do is told after that
        with shown(QueueView(sch)) as tab:
            bars = (await tab.hello())["queue"]["bars"]
            await until(lambda: all(task.process is not None for task in tasks))
            tasks[0].cancel()
            ended = await tab.delta("queue", lambda d: any(bar[2] for bar in d.get("b", ())))
            starts = {(task, start) for task, start, *_ in bars + [bar for delta in tab.deltas("queue") for bar in delta.get("b", ())]}
            assert sorted(task for task, _ in starts) == sorted(task.id for task in tasks)
            assert next(bar for bar in ended["b"] if bar[2])[0] == tasks[0].id
            tab.bye()
            sch.cancel()
            await until(lambda: all(task.state.final for task in tasks))
            assert [bar[0] for bar in (await tab.hello())["queue"]["bars"] if bar[2] is None] == []


async def test_a_long_queue_sends_its_head_only() -> None:
    async with TaskScheduler(SchedulerConfig(max_concurrent_tasks=1)) as sch:
        sch.pause()
        sch.schedule_many([("true",) for _ in range(2000)])
        with shown(QueueView(sch)) as tab:
            snapshot = (await tab.hello())["queue"]
            assert len(snapshot["rows"]) <= 200
            assert snapshot["status"]["waiting"] == 2000
        sch.cancel()


async def test_a_dashboard_has_all_of_them_in_one_widget() -> None:
    async with ProcessManager() as pm, ProcessPool() as pool, TaskScheduler() as sch:
        view = Dashboard(pm, pool=[pool], scheduler=sch)
        with shown(view) as tab:
            assert list(await tab.hello()) == ["form", "table", "charts", "queue1", "pool1"]
            html = view._repr_mimebundle_()["text/html"]
            assert "<script" not in html
        await until(lambda: len(view.tasks) == 0)
        with shown(Dashboard(pm, form=False)) as tab:
            assert list(await tab.hello()) == ["table", "charts"]
        await asyncio.sleep(0)
