"""Wrong input is refused at the call, by name, and changes nothing; right input is what it was meant to be."""

import inspect
import math
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbprocs
from nbprocs import ProcessConfig, RetryPolicy
from nbprocs.config import Options
from nbprocs.errors import ProcessError
from nbprocs.scheduler import After, Condition, Halt, PoolBackend, SchedulerConfig, TaskHandle, TaskScheduler
from nbprocs.scheduler.keywords import OF_THE_PROCESS, TaskKeywords
from nbprocs.scheduler.options import decode, encode, make_options
from nbprocs.testing.conformance import FakeBackend
from tests.children import python_child
from tests.unit.test_scheduler import World

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300, 2**70, -(2**70), 0, -1, 1.5]),
    st.text(max_size=5),
    st.sampled_from(["", " ", "\0", "\udcff", "3x", "nan", "x" * 300]),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.floats(), max_size=2),
    st.sampled_from(
        [object(), int, [], {}, (), set(), print, timedelta(seconds=5), timedelta(days=10**8), datetime(2026, 1, 1, tzinfo=UTC)]
    ),
)
NAMES = sorted(TaskKeywords.__annotations__)


async def test_a_group_that_is_no_valid_text_is_shown() -> None:
    async with World(gated=False, store=None) as w:
        await w.sch.schedule("x", group="g\udcff")
        assert list(w.sch.tasks_frame()["group"]) == list(w.sch.frame()["group"]) == ["g\N{REPLACEMENT CHARACTER}"]


async def test_every_keyword_takes_anything_or_refuses_it_by_name_and_nothing_hangs() -> None:
    async with World(gated=False, store=None) as w:
        w.sch.pause()

        @given(st.sampled_from(NAMES), ANYTHING)
        def one(name: str, value: object) -> None:
            before = len(w.sch.handles())
            try:
                handle = w.sch.schedule("x", **{name: value})
            except (TypeError, ValueError, ProcessError) as error:
                assert str(error)
                assert len(w.sch.handles()) == before, "nothing is scheduled"
            else:
                repr(handle), repr(handle.task), handle.why(), handle._html_()
                assert (
                    decode(encode(handle._entry.options), {"x": "y"})[0] is not None
                    if name not in ("stdin", "stdout", "stderr", "inherit")
                    else True
                )

        one()
        w.sch.tasks_frame()
        w.sch.status()
        w.sch.resume()
        for handle in w.sch.handles():
            handle.cancel()


@given(st.dictionaries(st.sampled_from(sorted(SchedulerConfig.__dataclass_fields__)), ANYTHING, min_size=1, max_size=3))
def test_a_config_that_is_made_can_be_worked_with(given: dict[str, object]) -> None:
    try:
        config = SchedulerConfig(**given)
    except (TypeError, ValueError) as error:
        assert str(error)
        return
    delay = config.policy(3).decide(nbprocs.ProcessFailed("no", exit_code=1), attempt=1, elapsed=0.0)
    assert delay is None or 0 <= delay < 1e10
    repr(TaskScheduler(config, backend=FakeBackend()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"retry_delay": -1},
        {"retry_delay": math.nan},
        {"retry_delay": "1"},
        {"backoff_multiplier": 0},
        {"max_retries": 1.5},
        {"max_retries": True},
        {"max_retry_delay": math.inf},
        {"max_concurrent_tasks": math.nan},
        {"max_concurrent_tasks": 0},
        {"groups": {"g": -1}},
        {"groups": {"g": 1.5}},
        {"groups": [1]},
        {"groups": {5: 1}},
        {"resources": {"r": math.nan}},
        {"resources": {"r": 0}},
        {"halt": 3},
        {"retry": 3},
        {"retry_jitter": "sometimes"},
        {"on_interrupted": "forget"},
        {"grace": math.nan},
        {"history": 0.5},
        {"store_output": -1},
        {"default_timeout": 0},
    ],
    ids=str,
)
def test_wrong_configs(wrong: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        SchedulerConfig(**wrong)


@given(st.dictionaries(st.sampled_from(["failures", "percent", "minimum", "now"]), ANYTHING))
def test_halts(given: dict[str, object]) -> None:
    try:
        halt = Halt(**given)
    except (TypeError, ValueError):
        return
    assert halt.reached(failed=0, ended=100) is False
    assert halt.reached(failed=10**12, ended=10**12) or halt.minimum > 10**12 or (halt.failures or 0) > 10**12


async def test_calls_check_all_that_they_take() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", hold=True)
        sch = w.sch
        for wrong in (
            lambda: sch.schedule("x", at=1e300),
            lambda: sch.schedule("x", delay=math.inf),
            lambda: sch.schedule("x", every=1e300),
            lambda: sch.schedule("x", priority=2**70),
            lambda: sch.schedule("x", priority="HIGH"),
            lambda: sch.schedule("x", cwd="/"),
            lambda: sch.schedule("x", env={}),
            lambda: sch.schedule("x", b"\0"),
            lambda: sch.schedule("x", None),
            lambda: sch.schedule("x", ["y"]),
            lambda: sch.schedule("x", 3),
            lambda: sch.schedule("x", after=5),
            lambda: sch.schedule("x", after=[object()]),
            lambda: sch.schedule("x", input=5),
            lambda: sch.schedule("x", input=b"", stdin=True),
            lambda: sch.schedule("x", files={"../a": "/a"}),
            lambda: sch.schedule("x", files="abc"),
            lambda: sch.schedule("x", nonsense=1),
            lambda: sch.schedule("ls -l", "a", shell=True),
            lambda: sch.schedule_many(5),
            lambda: sch.schedule_many([{"args": ["x"]}]),
            lambda: sch.schedule_many([{"command": "x", "args": "abc"}]),
            lambda: sch.schedule_many([5]),
            lambda: sch.schedule_many("echo hi"),
            lambda: sch.schedule_many(None),
            lambda: sch.set_limit(math.nan),
            lambda: sch.set_limit(-1),
            lambda: sch.set_group_limit("g", 1.5),
            lambda: sch.set_group_limit(None, 1),
            lambda: sch.set_resource("r", math.nan),
            lambda: sch.set_resource(5, 1),
            lambda: sch.pause(group=5),
            lambda: sch.cancel(group=""),
            lambda: sch.subscribe("x"),
            lambda: sch.forget(older_than="x"),
            lambda: sch.get(5),
            lambda: sch.handles(state="sleeping"),
            lambda: sch.rerun(failed="yes"),
            lambda: handle.reprioritise("x"),
            lambda: handle.reprioritise(2**70),
            lambda: handle.depend("x"),
            lambda: handle.output("stdwhat"),
            lambda: After("x", "perhaps"),
            lambda: Condition("perhaps"),
            lambda: TaskScheduler(5),
            lambda: TaskScheduler(pool=5),
            lambda: TaskScheduler(backend=5),
            lambda: TaskScheduler(manager=5),
            lambda: TaskScheduler(background="yes"),
        ):
            with pytest.raises((TypeError, ValueError)) as caught:
                wrong()
            assert str(caught.value)
        with pytest.raises((TypeError, ValueError)):
            await sch.join(timeout="x")
        with pytest.raises((TypeError, ValueError)):
            await handle.wait(timeout=math.nan)
        assert [h.id for h in sch.handles()] == [handle.id]


def test_the_keywords_are_those_of_the_config() -> None:
    """The options of a process are declared in ProcessConfig; the typed keywords of schedule() follow."""
    own, options = get_type_hints(TaskKeywords), get_type_hints(Options)
    assert own.keys() >= OF_THE_PROCESS
    for name in OF_THE_PROCESS:
        assert own[name] == options[name], name
    assert set(own) - OF_THE_PROCESS >= {"key", "if_exists", "input", "timeout"}
    for name in own:
        if name not in OF_THE_PROCESS:
            assert name in (TaskScheduler.schedule.__doc__ or ""), name


# --- a config, a terminal, an input ----------------------------------------------------------------------------------------------


async def test_a_config_says_how_a_task_runs(tmp_path: Path) -> None:
    show = python_child("print(sys.stdin.read(), os.isatty(1), os.environ.get('MODE'), os.getcwd(), sys.argv[1:])")
    config = ProcessConfig(
        command=show[0], args=show[1:], working_dir=tmp_path, env_vars={"MODE": "fast"}, stdin=b"given", timeout=60, name="shown"
    )
    async with TaskScheduler() as sch:
        handle = sch.schedule(config, "more", env_vars={"MODE": "slow"}, input="told")
        assert (await handle).text == f"told False slow {tmp_path} ['more']\n"
        assert handle.name == "shown"
        assert handle.task.working_dir == str(tmp_path)
        assert handle._entry.options.timeout == 60
        freed = sch.schedule(config, timeout=None)
        assert freed._entry.options.timeout is None
        await freed
        terminal = sch.schedule("test -t 1 && echo a terminal", shell=True, pty=True)
        assert b"a terminal" in (await terminal).stdout
        [many] = sch.schedule_many([config])
        assert (await many).text == f"given False fast {tmp_path} []\n"
        codes = sch.schedule("sh", "-c", "exit 3", success_codes=[0, 3])
        assert (await codes).exit_code == 3


async def test_a_config_is_kept_by_a_store(tmp_path: Path) -> None:
    made = make_options(
        ProcessConfig(
            command="x", nice=5, group=0, stdin=b"\xff\0", env_vars={"API_TOKEN": "hunter2"}, rlimits={"AS": (1, 2)}, stop_signal="SIGINT"
        ),
        timeout="2x",
    )
    text = encode(made)
    assert text is not None
    assert "hunter2" not in text
    assert decode(text, {"API_TOKEN": "hunter2"}) == (made, ())
    assert made.group is None
    assert made.config is not None
    assert made.config.group == 0
    with (tmp_path / "file").open("w") as file:
        async with World(store=tmp_path / "q.db") as w:
            with pytest.raises(TypeError, match="can't be stored"):
                w.sch.schedule("x", stdout=file)
            assert w.sch.handles() == []


async def test_a_function_has_no_process_of_its_own() -> None:
    class Pool:
        def submit(self, fn, *args):
            raise AssertionError("never")

    async with TaskScheduler(pool=Pool()) as sch:
        with pytest.raises(TypeError, match="no process of its own: nice"):
            sch.schedule(print, nice=5)
    assert PoolBackend(Pool()).capacity().slots == 4


# --- what the user's objects do ----------------------------------------------------------------------------------------------------


class Awkward(Exception):
    """Nothing about it can be asked."""

    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__

    def __getattr__(self, name: str) -> object:
        raise KeyboardInterrupt


async def test_an_error_that_can_not_be_shown_is_an_outcome_like_others(tmp_path: Path) -> None:
    async with World(store=tmp_path / "q.db") as w:
        handle = w.sch.schedule("x", name="t")
        behind = w.sch.schedule("x", name="behind", after=[handle])
        await w.settle()
        await w.finish("t", Awkward())
        with pytest.raises(Awkward):
            await handle
        assert behind.done
        w.sch.frame()


async def test_a_policy_and_a_subscriber_that_exit_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def leave(*_: object) -> bool:
        sys.exit(3)

    policy = RetryPolicy(max_retries=3, when=leave)
    async with World(SchedulerConfig(retry=policy)) as w:
        w.sch.subscribe(leave)
        handle = w.sch.schedule("x", name="t")
        await w.settle()
        await w.finish("t", nbprocs.ProcessFailed("no", exit_code=1))
        with pytest.raises(nbprocs.ProcessFailed):
            await handle
        assert len(handle.attempts) == 1, "a policy that can't say is a no"
    assert "retry policy" in caplog.text


class Shy:
    def __str__(self) -> str:
        raise AssertionError("nobody asked")

    __repr__ = __str__

    def __call__(self, *args: object) -> int:
        return 7


async def test_functions_and_their_arguments_are_shown_without_asking_them() -> None:
    async with TaskScheduler(backend=FakeBackend()) as sch:
        handle = sch.schedule(Shy(), Shy(), 5, hold=True)
        assert handle.task.args == ("<Shy>", "5")
        repr(handle), sch._html_(), sch.tasks_frame(), sch.eta(), repr(handle.task)
        handle.release()
        await handle
        assert handle._entry.argv == (handle._entry.display,)


# --- public faces --------------------------------------------------------------------------------------------------------------


def test_the_face_shows_only_what_a_user_calls() -> None:
    def public(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}

    assert public(TaskScheduler) == {
        *(
            "aclose",
            "attempts",
            "cancel",
            "closed",
            "config",
            "ended",
            "eta",
            "forget",
            "frame",
            "get",
            "graph",
            "handles",
            "join",
            "opened",
        ),
        *("pause", "rerun", "resume", "schedule", "schedule_many", "set_group_limit", "set_limit", "set_resource", "start", "status"),
        *("subscribe", "tasks", "tasks_frame", "timeline", "why"),
    }
    assert public(TaskHandle) == {
        *("attempts", "cancel", "depend", "done", "error", "hold", "id", "lines", "name", "next_result", "output", "pause"),
        *("process", "release", "reprioritise", "rerun", "result", "resume", "state", "tail", "task", "wait", "why"),
    }
    assert not {name for name in vars(TaskScheduler(backend=FakeBackend())) if not name.startswith("_")}


async def test_why_by_name_or_id() -> None:
    async with World() as w:
        handle = w.sch.schedule("x", name="t", hold=True)
        assert w.sch.why("t") == w.sch.why(handle.id) == handle.why() == "it is held; release() it"
        with pytest.raises(nbprocs.UnknownProcess):
            w.sch.why("other")


def test_cron_has_its_nicknames() -> None:
    for name, line in (("@daily", "0 0 * * *"), ("@Hourly ", "0 * * * *"), ("@weekly", "0 0 * * 0"), ("@yearly", "0 0 1 1 *")):
        made = make_options(cron=name).recurrence
        assert made is not None
        assert made.cron == line
    with pytest.raises(ValueError, match="@daily"):
        make_options(cron="@reboot")
