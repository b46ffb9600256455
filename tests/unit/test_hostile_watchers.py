"""What users hand to a monitor and an error handler may do anything; neither loses an alert, a recovery or its loop by it."""

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import pytest

import nbprocs
from nbprocs.cluster.usage import Usage
from nbprocs.monitor.history import Series
from nbprocs.monitor.metrics import METRICS, Scope, State
from nbprocs.monitor.prometheus import exposition
from nbprocs.monitor.targets import known_home
from nbprocs.recovery.strategies import NotifyAdmin


class Unshowable(Exception):
    """As some libraries' errors are: nothing of it can be looked at."""

    name = "job"

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__

    def add_note(self, note):
        raise AttributeError("no notes")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    name: str


class Speechless:
    """A strategy without a name or a repr."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __getattr__(self, name):
        raise KeyError(name)

    def __call__(self, _incident):
        sys.exit(3)


class Odd:
    """An answer that is nothing that can be asked what it is."""

    @property
    def __class__(self):
        raise RuntimeError("no class")

    def __bool__(self):
        raise RuntimeError("neither true nor false")


class Nameless:
    """A callback that can't be named, and raises."""

    def __init__(self, raises):
        self.raises = raises

    def __repr__(self):
        raise RuntimeError("no repr")

    def __getattr__(self, name):
        raise KeyError(name)

    def __call__(self, _):
        raise self.raises


# --- recovery ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unshowable(), Frozen("job")], ids=["unshowable", "frozen"])
async def test_an_error_that_can_not_be_shown_is_recovered_all_the_same(error):
    done = []
    async with nbprocs.ProcessManager() as pm, nbprocs.ErrorHandler(pm, automatic=False) as handler:
        with pytest.raises(type(error)):
            await handler.handle_error(error)  # nothing is set for its name, and no note can be made of that
        handler.set_recovery_strategy("job", lambda incident: done.append(incident.told()["error"]) or "done")
        report = await handler.handle_error(error)
        assert done == [type(error).__name__]
        assert [action.detail for action in report.actions] == ["done"]
        for thing in (handler, report):
            assert thing._repr_mimebundle_()["text/html"]
        assert len(handler.frame())
        assert handler.story("job")


async def test_whatever_a_strategy_does_the_others_are_carried_out():
    done = []
    strategies = [Speechless(), lambda _: Odd(), lambda _: (_ for _ in ()).throw(Unshowable()), lambda _: done.append(1)]
    async with nbprocs.ProcessManager() as pm, nbprocs.ErrorHandler(pm, automatic=False) as handler:
        handler.set_recovery_strategy("job", strategies)
        proc = await pm.spawn("false", name="job")
        await proc.wait()
        report = await handler.handle_error(proc)
        assert done == [1]
        assert report.actions[0].ok is False
        assert len(report.actions) == 4
        assert report._repr_mimebundle_()["text/html"]
        assert len(handler.frame())


@pytest.mark.parametrize(
    "raises", [SystemExit(3), KeyboardInterrupt(), Unshowable(), asyncio.CancelledError()], ids=lambda e: type(e).__name__
)
async def test_whatever_an_error_callback_raises_the_next_one_is_called(raises, caplog):
    heard = []
    async with nbprocs.ProcessManager() as pm, nbprocs.ErrorHandler(pm) as handler:
        handler.on_error(Nameless(raises))
        handler.on_error(lambda _: Odd())
        handler.on_error(heard.append)
        proc = await pm.spawn("false", name="job")
        await proc.wait()
        assert [type(error).__name__ for error in heard] == ["ProcessFailed"]
        assert "callback" in {str(kind) for kind in handler.frame()["kind"]}


@pytest.mark.parametrize("raises", [SystemExit(3), Unshowable()], ids=lambda e: type(e).__name__)
async def test_a_retry_policy_that_raises_ends_the_tries_and_not_the_recovery(raises, caplog):
    def when(_):
        raise raises

    async with nbprocs.ProcessManager() as pm, nbprocs.ErrorHandler(pm, automatic=False) as handler:
        handler.set_retry_policy("job", nbprocs.RetryPolicy(when=when))
        handler.set_recovery_strategy("job", lambda _: "done")
        proc = await pm.spawn("false", name="job")
        await proc.wait()
        report = await handler.handle_error(proc)
        assert [action.detail for action in report.actions] == ["done"]
        assert "the retry policy for job" in caplog.text


async def test_an_admin_is_told_of_an_error_that_can_not_be_shown(caplog):
    told = []
    async with nbprocs.ProcessManager() as pm, nbprocs.ErrorHandler(pm, automatic=False) as handler:
        handler.set_recovery_strategy("job", NotifyAdmin(callback=told.append))
        report = await handler.handle_error(Unshowable())
        assert report.actions[0].ok, report
    assert told[0]["error"] == "Unshowable"
    assert "job" in caplog.text


async def test_no_secret_of_an_error_is_in_the_record():
    class Leaky(Exception):
        name = "job"

    async with nbprocs.ProcessManager() as pm, nbprocs.ErrorHandler(pm, automatic=False) as handler:

        def leak(_):
            raise RuntimeError("login failed: password=planted-callback")

        handler.on_error(leak)
        handler.set_recovery_strategy("job", leak)
        report = await handler.handle_error(Leaky("could not connect: --token planted-error"))
        shown = handler.frame().to_csv() + handler.story("job") + repr(report) + repr(handler)
        shown += report._repr_mimebundle_()["text/html"] + handler._repr_mimebundle_()["text/html"]
    assert "planted" not in shown


async def test_names_that_are_no_text_are_told_everywhere(tmp_path):
    script = tmp_path / os.fsdecode(b"job-\xff")  # its name becomes the process's
    script.write_text("#!/bin/sh\nexec sleep 100\n")
    script.chmod(0o700)
    async with nbprocs.ProcessManager() as pm, nbprocs.ErrorHandler(pm) as handler:
        rules = [nbprocs.Rule(metric="cpu_percent", above=-1)]
        async with nbprocs.ProcessMonitor(interval=None, rules=rules) as mon:
            mon.watch(pm)
            proc = await pm.spawn(str(script))
            await mon.sample()
            text = mon.export_prometheus()
            assert "_up{name=" in text
            text.encode()
            mon.frame().to_csv(tmp_path / "frame.csv")
            mon.summary().to_csv(tmp_path / "summary.csv")
            nbprocs.replay(mon.frame(scope=None), rules)
            for frame in (mon.frame(), mon.summary(), mon.frame(wide="cpu_percent")):
                frame._repr_html_()
                repr(frame)
            repr(mon.alerts())
            mon._repr_mimebundle_()["text/html"].encode()
            await proc.stop()
        handler.frame().to_csv(tmp_path / "steps.csv")
        handler.story(proc.name).encode()
        handler._repr_mimebundle_()["text/html"].encode()


# --- monitor -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raises", [SystemExit(3), KeyboardInterrupt(), Unshowable(), asyncio.CancelledError()], ids=lambda e: type(e).__name__
)
async def test_whatever_an_alert_callback_raises_the_next_one_is_called(raises):
    heard = []
    async with (
        nbprocs.ProcessManager() as pm,
        nbprocs.ProcessMonitor(interval=None, rules=[nbprocs.Rule(metric="memory_usage_mb", above=0)]) as mon,
    ):
        mon.on_alert(Nameless(raises))
        mon.on_alert(lambda _: Odd())
        mon.on_alert(lambda alert: heard.append(alert.name))
        mon.watch(pm)
        await pm.spawn("sleep", "100", name="job")
        await mon.sample()
        assert heard == ["job"]
        assert mon.callback_failures
        await mon.sample()


def test_a_label_can_not_leave_its_quotes():
    unknown = {name: metric.unknown for name, metric in METRICS.items()}
    row = {**unknown, "scope": Scope.TREE, "state": State.RUNNING}
    series = Series(name='x"} 1\nevil{a="\\', pid=1, code=1, process_id="1")
    text = exposition([(series, row)])
    assert all(line.startswith(("#", "nbprocs_")) for line in text.splitlines())
    assert 'name="x\\"} 1\\nevil{a=\\"\\\\"' in text


class Unreachable:
    async def trees(self):
        raise OSError("nobody answers")

    def how_ended(self, _tree_id):
        return State.GONE


async def test_two_sources_that_can_not_be_reached_are_told_by_the_first():
    """Of the second nothing is left that was never awaited."""
    async with nbprocs.ProcessMonitor(interval=None) as mon:
        sources = [Unreachable(), Unreachable()]
        for source in sources:
            mon.watch(source)
        with pytest.raises(OSError, match="nobody answers"):
            await mon.sample()


def test_what_merely_has_something_called_home_is_no_home():
    assert known_home(Path("x")) is None


def test_a_look_that_comes_after_the_session_leaves_nothing_open():
    usage = Usage()
    usage.close()
    assert usage.look([]) == {}
    assert usage._sampler is None
