"""Home loops: hopping from other loops and threads, owned tasks, the heartbeat."""

import asyncio
import gc
import logging
import threading
import time
import weakref

import pytest

from nbprocs.engine import home as homes
from nbprocs.engine.home import Home, Tasks, hops
from nbprocs.errors import Closed


class Lives:
    """An object with a home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.cancelled = threading.Event()

    @hops
    async def where(self) -> int:
        """The thread it runs on."""
        await asyncio.sleep(0)
        return threading.get_ident()

    @hops
    async def forever(self) -> None:
        """Until cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    @hops
    async def fails(self) -> None:
        """Raise."""
        raise ValueError("mine")


async def test_awaited_from_another_loop_it_runs_at_home() -> None:
    it = Lives(Home.background())
    assert await it.where() == it.home.thread_id != threading.get_ident()


def test_any_thread_with_any_loop_may_await() -> None:
    async def main() -> None:
        it = Lives(Home.current())
        mine = threading.get_ident()
        answer = await asyncio.to_thread(lambda: asyncio.run(it.where()))
        assert answer == mine

    asyncio.run(main())


async def test_cancelling_the_wait_cancels_the_work_there() -> None:
    it = Lives(Home.background())
    task = asyncio.ensure_future(it.forever())
    await it.where()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(it.cancelled.wait, 10)


async def test_errors_come_back_as_they_are() -> None:
    with pytest.raises(ValueError, match="mine"):
        await Lives(Home.background()).fails()


def test_no_running_loop_is_an_error_with_the_cure() -> None:
    with pytest.raises(RuntimeError, match="background=True"):
        Home.current()


def test_a_closed_home_is_an_error_not_a_hang() -> None:
    async def make() -> Lives:
        return Lives(Home.current())

    loop = asyncio.new_event_loop()
    it = loop.run_until_complete(make())
    loop.close()
    with pytest.raises(Closed):
        asyncio.run(it.where())


def test_a_loop_that_is_done_can_be_collected() -> None:
    async def make() -> Home:
        return Home.current()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(make())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None


async def test_owned_tasks_are_cancelled_and_waited_for_and_failures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks(Home.current())
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fails() -> None:
        raise ValueError("seen by somebody")

    tasks.start(waits(), name="one")
    failing = tasks.start(fails(), name="two")
    await asyncio.wait({failing})
    await tasks.aclose()
    assert ended.is_set()
    assert len(tasks) == 0
    assert "seen by somebody" in caplog.text


async def test_the_heart_beats_only_while_somebody_waits() -> None:
    home = Home.current()
    with home:
        assert home._timer is not None
        assert home._timer.when() - home.loop.time() <= 0.25
    for _ in range(3):
        if home._timer is not None:
            due = asyncio.get_running_loop().create_future()
            home.loop.call_at(home._timer.when(), due.set_result, None)
            await due
            await asyncio.sleep(0)
    assert home._timer is None


async def test_a_late_loop_is_reported_once_with_the_cure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(homes, "LATE", 0.05)
    home = Home.current()
    home.watch()
    with caplog.at_level(logging.WARNING, logger="nbprocs"):
        for _ in range(2):
            assert home._timer is not None
            due = home._timer.when()
            while home.loop.time() < due + 0.06:
                time.sleep(0.01)  # the cell that blocks
            beat = asyncio.get_running_loop().create_future()
            home.loop.call_at(home.loop.time(), beat.set_result, None)
            await beat
            await asyncio.sleep(0)
    home.unwatch()
    assert [r.message for r in caplog.records if "background=True" in r.message] == [r.message for r in caplog.records]
    assert len(caplog.records) == 1
    assert home.latest >= 0.05
