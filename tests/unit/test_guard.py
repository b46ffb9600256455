"""No end of the user's code is ours: sys.exit(), an interrupt and errors that can't be shown, in every place where it is called."""

import asyncio
import contextlib
import gc

import pytest

from nbprocs import DoNothing, ErrorHandler, FirstOf, ProcessManager, RecoveryStrategy
from nbprocs.guard import attempt, call, finish, message_of, repr_of, text_of
from nbprocs.monitor import ProcessMonitor
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.probes import as_question, ask
from nbprocs.recovery.strategies import Incident, carry_out
from tests.children import python_child
from tests.unit.recovery_kit import until

FAILING = python_child("ready(); sys.exit(3)")


class Unshowable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Nameless(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")


class OfANamelessKind(Unshowable, metaclass=Nameless):
    pass


def test_what_a_metaclass_answers_is_not_asked():
    error = OfANamelessKind()
    assert all("OfANamelessKind" in say(error) for say in (text_of, message_of, repr_of))


ENDS = [SystemExit, KeyboardInterrupt, Unshowable, StopIteration, asyncio.CancelledError, GeneratorExit]
every_end = pytest.mark.parametrize("end", ENDS)


def raiser(end):
    def sync(*_):
        raise end(2)

    return sync


def async_raiser(end):
    async def later(*_):
        await asyncio.sleep(0)
        raise end(2)

    return later


@every_end
async def test_a_call_and_an_await_end_in_a_value(end):
    assert call("it", raiser(end)) is None
    assert type(attempt(raiser(end))[1]) is end
    value, error = await finish(async_raiser(end)(), timeout=10)
    assert value is None
    assert type(error) in (end, RuntimeError)  # a coroutine turns StopIteration into RuntimeError
    assert text_of(error)


async def test_only_the_callers_own_end_goes_through():
    started = asyncio.Event()

    async def hangs():
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(finish(hangs()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert type((await finish(hangs(), timeout=0.01))[1]) is TimeoutError


@every_end
@pytest.mark.parametrize("background", [False, True])
async def test_every_callback_of_a_failing_process(end, background):
    """A subscriber, a done callback, an error callback, an alert callback and a tick's listener, sync and async: all go on."""
    heard = []
    async with contextlib.AsyncExitStack() as stack:
        pm = await stack.enter_async_context(ProcessManager(background=background))
        handler = await stack.enter_async_context(ErrorHandler(pm, automatic=False))
        mon = await stack.enter_async_context(ProcessMonitor(interval=None, gpu=Gpu(library=None), background=background))
        mon.watch(pm)
        for make in (raiser, async_raiser):
            handler.on_error(make(end))
            mon.on_alert(make(end))
        pm.subscribe(raiser(end))
        mon.subscribe(raiser(end))
        pm.subscribe(heard.append)
        handler.on_error(heard.append)
        mon.on_alert(heard.append)
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        mon.on_alert(lambda _: loop.call_soon_threadsafe(told.set))
        process = await pm.spawn(*FAILING, name="bad")
        process.add_done_callback(raiser(end))
        result = await process.wait()
        await mon.sample()
        async with asyncio.timeout(10):
            await told.wait()
        assert result.exit_code == 3
        assert (await pm.run("true")).ok
        assert {type(one).__name__ for one in heard} == {"ProcessEvent", "ProcessFailed", "Alert"}
        await until(handler, lambda: "callback" in handler.journal.frame()["kind"].tolist())
        failures = {type(one.error) for one in mon.callback_failures}
        assert failures <= {end, RuntimeError}
        assert failures


@every_end
async def test_a_strategy_is_a_failed_outcome_and_the_next_is_tried(end):
    async with ProcessManager() as pm:
        incident = Incident(name="web", error=TimeoutError("slow"), process=None, manager=pm)
        for make in (raiser, async_raiser):
            first, second = await carry_out(FirstOf(make(end), DoNothing()), incident)
            assert (first.ok, second.ok, second.action) == (False, True, RecoveryStrategy.DO_NOTHING)


@every_end
async def test_a_probe_is_no_answer(end):
    for make in (raiser, async_raiser):
        seconds, why = await ask(as_question(make(end)), timeout=10)
        assert seconds == float("inf")
        assert why
    gc.collect()
