"""When series run, what commands take, what options mean: pure functions."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.engine.container import available_memory
from nbprocs.scheduler.entry import DEFAULTS
from nbprocs.scheduler.estimate import Durations, eta
from nbprocs.scheduler.model import Condition, Halt, Interrupted, Misfire, SchedulerConfig, TaskState
from nbprocs.scheduler.options import decode, encode, make_options, memory_bytes
from nbprocs.scheduler.plots import layers
from nbprocs.scheduler.slots import Gpus, Numbers, SlotNumbers
from nbprocs.scheduler.system import gpu_devices, now
from nbprocs.scheduler.times import Recurrence, following, latest_due, next_run, parse_at, to_datetime, zone

BERLIN = ZoneInfo("Europe/Berlin")


def at(*fields: int, tz=BERLIN, fold: int = 0) -> float:
    return datetime(*fields, tzinfo=tz, fold=fold).timestamp()


def test_cron_over_the_change_to_summer_time() -> None:
    rule = Recurrence(cron="30 2 * * *", timezone="Europe/Berlin")
    assert following(rule, at(2026, 3, 28, 3)) == at(2026, 3, 29, 3, 0), "02:30 does not exist that day: right after the gap"
    assert following(rule, at(2026, 3, 29, 3, 0)) == at(2026, 3, 30, 2, 30)


def test_cron_over_the_change_back_runs_once() -> None:
    rule = Recurrence(cron="30 2 * * *", timezone="Europe/Berlin")
    first = following(rule, at(2026, 10, 24, 12))
    assert first == at(2026, 10, 25, 2, 30)
    assert following(rule, first) == at(2026, 10, 26, 2, 30)


def test_cron_with_seconds_names_and_last_days() -> None:
    assert following(Recurrence(cron="*/20 * * * * *", timezone="UTC"), 5.0) == 20.0
    assert following(Recurrence(cron="0 0 L * *", timezone="UTC"), at(2026, 2, 5, tz=UTC)) == at(2026, 2, 28, tz=UTC)
    assert following(Recurrence(cron="0 9 * JAN MON#2", timezone="UTC"), at(2026, 1, 1, tz=UTC)) == at(2026, 1, 12, 9, tz=UTC)


@given(every=st.floats(0.5, 1e4), last=st.floats(0, 1e9), late=st.floats(-1e5, 1e6), misfire=st.sampled_from(list(Misfire)))
def test_next_run_never_loses_the_grid_and_never_goes_back(every: float, last: float, late: float, misfire: Misfire) -> None:
    rule = Recurrence(every=every, misfire=misfire)
    reading = last + late
    due, dropped = next_run(rule, last, reading)
    assert due > last or due == pytest.approx(last + every)
    steps = (due - last) / every
    assert steps == pytest.approx(round(steps), abs=1e-3)
    assert dropped >= 0
    if misfire is Misfire.ALL or late < every:
        assert due == last + every
    elif misfire is Misfire.SKIP:
        assert due >= reading - 1e-3
    else:
        assert reading - every - 1e-3 <= due <= reading + 1e-3


def test_missed_cron_times() -> None:
    daily = "0 12 * * *"
    last, late = at(2026, 5, 1, 12, tz=UTC), at(2026, 5, 4, 13, tz=UTC)
    once, skip, every = (Recurrence(cron=daily, timezone="UTC", misfire=m) for m in ("once", "skip", "all"))
    assert next_run(once, last, late) == (at(2026, 5, 4, 12, tz=UTC), 2)
    assert next_run(skip, last, late) == (at(2026, 5, 5, 12, tz=UTC), 3)
    assert next_run(every, last, late) == (at(2026, 5, 2, 12, tz=UTC), 0)
    assert latest_due(once, last, late) == at(2026, 5, 4, 12, tz=UTC)
    assert latest_due(every, last, late) == last


def test_a_clock_set_back_repeats_nothing() -> None:
    rule = Recurrence(cron="0 * * * *", timezone="UTC")
    last = at(2026, 5, 1, 12, tz=UTC)
    assert next_run(rule, last, last - 7200) == (last + 3600, 0)


def test_a_very_long_gap_is_bounded() -> None:
    rule = Recurrence(cron="* * * * *", timezone="UTC")
    due, dropped = next_run(rule, 0.0, 60.0 * 50_000)
    assert due == 60.0 * 50_000
    assert dropped == 9_999


def test_dates() -> None:
    assert parse_at("2026-03-01 12:00", "Europe/Berlin") == at(2026, 3, 1, 12)
    assert parse_at(datetime(2026, 3, 1, 12, tzinfo=UTC), "Europe/Berlin") == at(2026, 3, 1, 12, tz=UTC)
    assert parse_at(5) == 5.0
    assert to_datetime(0).tzinfo is not None
    assert zone(None) is not None
    with pytest.raises(ValueError, match="at must be a date"):
        parse_at(float("nan"))


def test_durations_and_eta() -> None:
    seen = Durations()
    assert seen.guess(("a",)) is None
    assert eta([], slots=2) is None
    for seconds in (8.0, 12.0):
        seen.add(("train", "x.py", str(seconds)), seconds)
    assert seen.mean(("train", "x.py", "new")) == 10.0
    assert seen.mean(("other",)) is None
    assert seen.guess(("other",)) == pytest.approx((10.0, 8.0))
    few = eta([(10.0, 8.0)] * 4, slots=2)
    many = eta([(10.0, 8.0)] * 4, slots=2, scale=10.0)
    assert few is not None
    assert many is not None
    assert few.high - few.low < many.high - many.low < 10 * (few.high - few.low), "the interval grows like the root of the number"
    one = eta([(100.0, 0.0), (1.0, 0.0)], slots=4)
    assert one is not None
    assert one.middle >= 100, "no shorter than the longest"
    assert str(eta([(7200.0, 0.0)], slots=1)) == "2:00:00-2:00:00"


def test_durations_are_bounded() -> None:
    seen = Durations()
    for n in range(11_000):
        seen.add(("cmd", str(n)), 1.0)
    assert len(seen._seen) == 10_000


NAMES = st.text(min_size=1, max_size=5).filter(lambda text: text.strip() and "\0" not in text)

options = st.builds(
    make_options,
    max_retries=st.none() | st.integers(0, 9),
    timeout=st.none() | st.floats(0.1, 1e6) | st.just("2.5x"),
    name=st.none() | NAMES,
    group=st.none() | NAMES,
    key=st.none() | NAMES,
    resources=st.none() | st.dictionaries(NAMES, st.floats(0.1, 9), max_size=2),
    memory_gate=st.none() | st.integers(0, 2**40),
    env_vars=st.none()
    | st.dictionaries(
        st.sampled_from(["A", "MODE", "API_TOKEN", "DB_PASSWORD"]),
        st.none() | st.text(st.characters(codec="utf-8"), max_size=4),
        max_size=4,
    ),
    shell=st.booleans(),
    pty=st.booleans(),
    nice=st.integers(-20, 19),
    rlimits=st.none() | st.just({"AS": (1 << 30, 2 << 30), "NOFILE": 256}),
    success_codes=st.just((0,)) | st.just([0, 3]),
    input=st.binary(max_size=8) | st.text(st.characters(codec="utf-8"), max_size=4),
    stop_signal=st.sampled_from(["SIGINT", 15]),
    cron=st.none() | st.just("5 4 * * *"),
    on_interrupted=st.none() | st.sampled_from(list(Interrupted)),
)


@given(made=options)
def test_options_survive_the_store_but_for_secrets(made) -> None:
    environ = {name: value for name, value in (made.config.env_vars if made.config else {}).items() if name in made.secrets}
    assert decode(encode(made), environ) == (made, ())
    assert decode(encode(made), {})[1] == made.secrets
    assert (made is DEFAULTS) == (encode(made) is None)


def test_a_timedelta_is_a_time() -> None:
    assert make_options(timeout=timedelta(minutes=1)).timeout == 60.0
    made = make_options(every=timedelta(hours=1)).recurrence
    assert made is not None
    assert made.every == 3600.0
    assert memory_bytes("512MiB") == 512 << 20


def test_slots_and_numbers() -> None:
    slots = SlotNumbers()
    slot, units = slots.take((("gpu", 2.0), ("mem", 0.5), ("port", 2.0), ("huge", 1.0)), {"gpu": 2, "mem": 1.0, "port": 2, "huge": 1e6})
    assert units == {"port": [0, 1]}
    assert slots.environment(slot, units) == {"NBPROCS_SLOT": "0", "NBPROCS_SLOT_PORT": "0,1"}
    gpus = Gpus(("GPU-x",))
    assert gpus.take("a", 2.0)["CUDA_VISIBLE_DEVICES"] == "GPU-x,1"
    gpus.give("a")
    assert gpus.take("b", 1.0)["CUDA_VISIBLE_DEVICES"] == "GPU-x"
    slots.give(slot, units)
    numbers = Numbers()
    taken = [numbers.take() for _ in range(5)]
    numbers.give(3)
    numbers.give(1)
    assert taken == [0, 1, 2, 3, 4]
    assert [numbers.take(), numbers.take(), numbers.take()] == [1, 3, 5]


def test_gpus_of_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert gpu_devices() == ("3", "5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(gpu_devices()) >= 1


def test_the_machine_is_read() -> None:
    first, second = now(), now()
    assert second.elapsed >= first.elapsed
    assert available_memory() > 0


def test_values_refuse_nonsense() -> None:
    for wrong in ({"max_concurrent_tasks": 0}, {"default_timeout": -1}, {"groups": {"g": -1}}, {"resources": {"r": 0}}, {"history": -1}):
        with pytest.raises(ValueError, match=r"\w"):
            SchedulerConfig(**wrong)
    for wrong in ({}, {"failures": 0}, {"percent": 101}):
        with pytest.raises(ValueError, match=r"\w"):
            Halt(**wrong)
    assert not Halt(percent=50).reached(failed=1, ended=2), "too few have ended to tell"
    assert not any(Condition.FAILURE.met(s) for s in (TaskState.CANCELLED, TaskState.SKIPPED, TaskState.SUCCEEDED))


def test_layers_of_a_graph_with_a_stranger() -> None:
    assert layers([1, 2, 3], [(1, 3), (9, 2)]) == {1: 0, 2: 0, 3: 1}


def test_nothing_is_left_by_the_time_that_it_is_asked():
    assert eta([(1.0, 0.0)], slots=2, scale=0.0) is None  # the last one ended between two looks of another thread
