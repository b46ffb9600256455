"""The view of a cluster's workers, on a real one."""

import asyncio
import os
import sys

import pytest

from nbprocs import Closed, DaskBackend, TaskScheduler, WorkersView
from nbprocs.widgets.workers_view import COLUMNS
from tests.unit.widgets_kit import shown
from tests.waiting import until

BUSY = "print('up', flush=True)\nblob = b'x' * (32 << 20)\nwhile True: pass"


def rows(pairs):
    return [dict(zip(COLUMNS, row, strict=True)) for _, row in pairs]


class Counted(DaskBackend):
    """Counts how often its workers were asked to measure; ``held`` keeps the answers back."""

    looks = 0
    held = False

    async def trees(self):
        self.looks += 1
        if self.held:
            await asyncio.Event().wait()
        return await super().trees()


async def test_it_measures_when_a_page_asks_and_never_else(cluster, monkeypatch):
    monkeypatch.setattr("nbprocs.widgets.workers_view.APART", 0.0)
    backend = Counted(cluster.address)
    with pytest.raises(Closed, match="not been given to a scheduler"):
        WorkersView(backend)
    async with TaskScheduler(backend=backend) as sch:
        task = sch.schedule(sys.executable, "-c", BUSY, name="busy")
        assert await anext(aiter(task.lines())) == "up"
        view = WorkersView(backend)
        with shown(view) as tab:
            (there,) = [row for row in rows((await tab.hello())["workers"]["rows"]) if row["tasks"]]
            assert (there["tasks"], there["host"], there["state"], there["running"]) == ("busy", os.uname().nodename, "joined", 1)
            assert backend.looks == 0 and there["cpu"] is None
            async with asyncio.timeout(30):
                while not any(row["used"] and row["cpu"] for d in tab.deltas("workers") for row in rows(d.get("u", ()))):
                    assert (await tab.call("workers", "look"))["ok"]
            looks = backend.looks
            frame = backend.workers()
            (busy,) = frame[frame["running"] > 0].itertuples()
            assert busy.cpu >= 0 and busy.used > 32 << 20 and busy.Index in view._html_() and "as of " in view._html_()
            await asyncio.gather(*(tab.call("workers", "look") for _ in range(5)))
            assert backend.looks == looks + 1, "pages that ask at once share a look"
            monkeypatch.setattr("nbprocs.widgets.workers_view.APART", 60.0)
            await tab.call("workers", "look")
            assert backend.looks == looks + 1, "and a page that asks too often gets none of its own"
            monkeypatch.setattr("nbprocs.widgets.workers_view.APART", 0.0)
            backend.held = True
            tab.say({"do": "call", "view": "tab", "id": 99, "part": "workers", "op": "look", "args": {}})
            await until(lambda: backend.looks == looks + 2)
        await until(lambda: not len(view.tasks), what="a look that goes on ends with its view")
        assert backend.looks == looks + 2
        task.cancel()
    assert view.parts["workers"].over and "as of " not in view._html_()


async def test_its_record_is_written_again_when_the_cluster_changed(cluster):
    backend = Counted(cluster.address)
    async with TaskScheduler(backend=backend) as sch:
        view = WorkersView(backend)
        (part,) = view.parts.values()
        told, live = [], []
        stops = [part.watch_record(lambda: told.append(1), live=False), part.watch_record(lambda: live.append(1), live=True)]
        with shown(view) as tab:
            await tab.hello()
            await sch.schedule("true")
            await until(lambda: live, what="where the record is all there is, it is measured for that")
            await tab.call("workers", "look")
            assert told and not part.over
            for stop in stops:
                stop()
