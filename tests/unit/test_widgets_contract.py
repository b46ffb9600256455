"""The wire's contract: messages of real views, kept as a file that the browser's tests read. ``python -m tests.unit.test_widgets_contract`` writes it.

What is compared is the shape: which keys there are, and of what type each value is. A key that comes, goes or changes its type fails here until the
file is written again, and then fails in vitest until the front end knows it.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nbprocs import PoolConfig, ProcessManager, ProcessMonitor, ProcessPool, SchedulerConfig, TaskScheduler
from nbprocs.widgets import Dashboard
from nbprocs.widgets.base import View
from nbprocs.widgets.workers_view import WorkersPart
from tests.unit.cluster_kit import LoopbackBackend
from tests.unit.widgets_kit import Tab
from tests.waiting import until

FILE = Path(__file__).parents[2] / "nbprocs/widgets/js/tests/contract.json"
_OPTIONAL = ("skip",)


@asynccontextmanager
async def _dashboard() -> AsyncIterator[tuple[Dashboard, ProcessManager, TaskScheduler]]:
    async with (
        ProcessManager() as pm,
        ProcessMonitor(interval=0.05) as monitor,
        ProcessPool(PoolConfig(min_processes=1, max_processes=1)) as pool,
        TaskScheduler(SchedulerConfig(max_concurrent_tasks=1)) as scheduler,
    ):
        monitor.watch(pm)
        await pm.spawn("cat", stdin=True, name="reader")
        await pool.start()
        scheduler.schedule("sleep", "1000", name="long")
        scheduler.schedule("true", name="next")
        view = Dashboard(pm, monitor=monitor, pool=pool, scheduler=scheduler)
        try:
            yield view, pm, scheduler
        finally:
            view.close()


async def messages() -> dict[str, Any]:
    """A snapshot and some deltas of every kind of part, a reply, a refusal, and what the hub says."""
    async with _dashboard() as (view, pm, scheduler):
        tab = Tab(view)
        await tab.hello()
        reader = pm.get("reader")
        name = (await tab.call("table", "show", id=reader.id))["data"]
        await tab.call("view", "snapshot", part=name, view="tab")
        await tab.until(lambda m: name in m.get("s", {}))
        await tab.call(name, "send", text="words")
        await tab.delta(name, lambda d: d.get("out"))
        await tab.delta("charts", lambda d: d.get("t") and any(point[2] for point in d["t"][0][1]))
        await tab.call("form", "run", command="true")
        refused = await tab.call("form", "run", command="no-such-program-anywhere")
        await tab.delta("table", lambda d: d.get("+"))
        await tab.call("queue1", "cancel", ids=[task.id for task in scheduler.tasks() if task.name == "long"])
        await tab.delta("queue1", lambda d: d.get("b"))
        await tab.delta("form", lambda d: d.get("+"))
        found: dict[str, Any] = {"parts": {"workers": await _workers()}, "refusal": refused}
        for message, buffers in zip(tab.heard, tab.buffers, strict=True):
            for kind in ("s", "p"):
                for part, content in message.get(kind, {}).items():
                    if not part:
                        continue
                    first, count = message[kind].get("", {}).get(part, [0, 0])
                    label = "pane" if part == name else part.rstrip("1")
                    bucket = found["parts"].setdefault(label, {"snapshot": None, "deltas": []})
                    piece = {"content": content, "buffers": [b.decode("latin-1") for b in buffers[first : first + count]]}
                    if kind == "s":
                        bucket["snapshot"] = bucket["snapshot"] or piece
                    else:
                        bucket["deltas"].append(piece)
        return found


async def _workers() -> dict[str, Any]:
    """The messages of the view of a cluster's workers."""
    with TemporaryDirectory() as folder:
        cluster = LoopbackBackend(Path(folder))
        scheduler = TaskScheduler(backend=cluster)
        tasks = [scheduler.schedule("sleep", "1000", name=f"far {i}") for i in range(3)]
        await until(lambda: all(task.process is not None for task in tasks))
        view = View({"workers": WorkersPart(cluster)}, model=cluster, home=cluster.home)
        tab = Tab(view)
        pieces: dict[str, Any] = {"snapshot": {"content": (await tab.hello())["workers"], "buffers": []}, "deltas": []}
        assert (await tab.call("workers", "look"))["ok"]
        await tab.delta("workers", lambda d: d.get("u"))
        scheduler.cancel()
        await scheduler.join()
        view.parts["workers"]._looked = float("-inf")
        assert (await tab.call("workers", "look"))["ok"]
        await tab.delta("workers", lambda d: d.get("figures"))
        pieces["deltas"] = [{"content": content, "buffers": []} for content in tab.deltas("workers")]
        view.close()
        await scheduler.aclose()
        return pieces


def keys(found: dict[str, Any]) -> dict[str, Any]:
    """What the contract says: of each part the keys of its snapshot with their types' names, its columns, and all keys of its deltas."""
    told = {}
    for part, pieces in found["parts"].items():
        snapshot = pieces["snapshot"]["content"]
        told[part] = {
            "snapshot": {key: type(value).__name__.replace("tuple", "list") for key, value in snapshot.items()},
            "columns": list(snapshot.get("columns", ())),
            "deltas": sorted({key for piece in pieces["deltas"] for key in piece["content"]} - set(_OPTIONAL)),
        }
    return told


async def test_the_file_says_what_the_views_say() -> None:
    kept, now = keys(json.loads(FILE.read_text("utf-8"))), keys(json.loads(json.dumps(await messages())))
    assert {part: {k: v for k, v in told.items() if k != "deltas"} for part, told in now.items()} == {
        part: {k: v for k, v in told.items() if k != "deltas"} for part, told in kept.items()
    }
    for part, told in now.items():  # which deltas come in so short a time differs a little
        assert set(told["deltas"]) & set(kept[part]["deltas"]) or not told["deltas"], part


if __name__ == "__main__":
    text = json.dumps(asyncio.run(messages()), indent=1, ensure_ascii=False)
    text = text.replace(str(Path.cwd()), "/project").replace(f'"{socket.gethostname()}"', '"here"')
    FILE.write_text(text + "\n", "utf-8")
