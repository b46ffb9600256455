"""The rules: exact times on a clock of our own, one alert an episode, and replay equal to the live run."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.monitor import Alert, AlertSeverity, AlertThresholds, AlertType, Rule, Scope, State, replay
from nbprocs.monitor.alerts import Batch, Change, Episodes, Phase, advance

SECOND = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def batch(at, values, *, metric="memory_usage_mb", state=State.RUNNING, scope=Scope.TREE):
    """Samples of one metric by name, at a time in seconds."""
    names = list(values)
    states = state if isinstance(state, dict) else dict.fromkeys(names, state)
    return Batch(
        round(at * SECOND),
        names,
        names,
        np.full(len(names), int(scope)),
        np.array([int(states[name]) for name in names]),
        {metric: np.array([values[name] for name in names], "f4")},
    )


def run(rules, samples, **options):
    """(time, change, type, severity) of a run over (time, values) of one process."""
    episodes = Episodes(rules)
    found = []
    for at, value in samples:
        found += [(at, t.change, t.alert.type, t.alert.severity) for t in episodes.step(batch(at, {"p": value}, **options))]
    return episodes, found


def test_fires_when_it_has_held_for_the_time_and_resolves_below_the_clear_level():
    rule = Rule(metric="memory_usage_mb", above=500, clear=450, for_seconds=3)
    values = [(0, 400), (1, 600), (2, 600), (3, 600), (4, 600), (5, 480), (6, 451), (7, 450), (8, 600)]
    episodes, found = run([rule], values)
    assert [(at, change) for at, change, _, _ in found] == [(4, Change.FIRED), (7, Change.RESOLVED)]
    (alert,) = episodes.all
    assert alert.timestamp == EPOCH + timedelta(seconds=4)
    assert alert.resolved_at == EPOCH + timedelta(seconds=7)
    assert (alert.resolved, alert.duration, alert.value, alert.peak, alert.limit) == (True, 3.0, 600, 600, 500)


def test_a_dip_below_the_limit_starts_the_time_anew():
    rule = Rule(metric="memory_usage_mb", above=500, for_seconds=2)
    _, found = run([rule], [(0, 600), (1, 600), (1.5, 400), (2, 600), (3, 600), (3.999, 600), (4, 600)])
    assert [(at, change) for at, change, _, _ in found] == [(4, Change.FIRED)]


def test_one_alert_an_episode_and_a_new_one_for_the_next():
    rule = Rule(metric="memory_usage_mb", above=500)
    episodes, found = run([rule], [(t, 600 if t % 4 < 2 else 100) for t in range(12)])
    assert [change for _, change, _, _ in found] == [Change.FIRED, Change.RESOLVED] * 3
    assert len({alert.id for alert in episodes.all}) == 3


def test_a_worse_rule_makes_the_same_alert_worse():
    rules = [
        Rule(metric="memory_usage_mb", above=500),
        Rule(metric="memory_usage_mb", above=800, severity=AlertSeverity.CRITICAL),
        Rule(metric="memory_usage_mb", above=1000, severity=AlertSeverity.EMERGENCY),
    ]
    episodes, found = run(rules, [(0, 600), (1, 900), (2, 1200), (3, 700), (4, 100)])
    assert [(at, change, severity.name) for at, change, _, severity in found] == [
        (0, Change.FIRED, "WARNING"),
        (1, Change.ESCALATED, "CRITICAL"),
        (2, Change.ESCALATED, "EMERGENCY"),
        (4, Change.RESOLVED, "EMERGENCY"),
    ]
    assert len(episodes.all) == 1
    assert episodes.all[0].peak == 1200


def test_no_news_changes_nothing():
    rule = Rule(metric="response_time", above=1.0, for_seconds=2)
    nan = math.nan
    _, found = run([rule], [(0, 2.0), (1, nan), (2, 2.0), (3, nan), (4, 0.5), (5, nan)], metric="response_time")
    assert [(at, change) for at, change, _, _ in found] == [(2, Change.FIRED), (4, Change.RESOLVED)]


def test_an_end_resolves_what_it_ends_and_raises_process_down():
    episodes = Episodes(AlertThresholds(max_memory_mb=500).rules())
    episodes.step(batch(0, {"p": 600}))
    changes = episodes.step(batch(1, {"p": math.nan}, state=State.FAILED))
    assert [(t.change, t.alert.type) for t in changes] == [
        (Change.FIRED, AlertType.PROCESS_DOWN),
        (Change.RESOLVED, AlertType.MEMORY_USAGE),
    ]
    assert changes[0].alert.severity is AlertSeverity.CRITICAL
    (up_again,) = episodes.step(batch(2, {"p": 100}))
    assert (up_again.change, up_again.alert.type) == (Change.RESOLVED, AlertType.PROCESS_DOWN)
    assert episodes.open == ()


@pytest.mark.parametrize(
    ("state", "severity"),
    [
        (State.COMPLETED, None),
        (State.TERMINATED, None),
        (State.FAILED, AlertSeverity.CRITICAL),
        (State.GONE, AlertSeverity.CRITICAL),
        (State.FATAL, AlertSeverity.EMERGENCY),
    ],
)
def test_which_ends_are_alarming(state, severity):
    episodes = Episodes(AlertThresholds().rules())
    episodes.step(batch(0, {"p": math.nan}, state=state))
    assert max((alert.severity for alert in episodes.all), default=None) == severity


def test_a_forgotten_process_has_no_open_alert():
    episodes = Episodes(AlertThresholds().rules())
    episodes.step(batch(0, {"p": math.nan}, state=State.FAILED))
    episodes.step(batch(1, {"p": math.nan}, state=State.FORGOTTEN))
    assert episodes.open == ()
    assert not episodes.pending("p")


@pytest.mark.parametrize(
    ("thresholds", "metric", "value", "kind"),
    [
        (AlertThresholds(max_memory_mb=10), "memory_usage_mb", 11, AlertType.MEMORY_USAGE),
        (AlertThresholds(max_cpu_percent=90), "cpu_percent", 99, AlertType.CPU_USAGE),
        (AlertThresholds(max_response_time=1), "response_time", math.inf, AlertType.RESPONSE_TIME),
        (AlertThresholds(max_error_rate=0.5), "error_rate", 0.6, AlertType.ERROR_RATE),
        (AlertThresholds(max_idle_time=30), "idle_seconds", 31, AlertType.PROCESS_HUNG),
    ],
)
def test_each_threshold_has_its_type(thresholds, metric, value, kind):
    _, found = run(thresholds.rules(), [(0, 0), (1, value)], metric=metric)
    assert [(at, change, t) for at, change, t, _ in found] == [(1, Change.FIRED, kind)]


def test_silence_and_activity():
    rules = [Rule.silence(5), Rule.activity(5)]
    silence = [0, 3, 6, 7, 0.5, 2, 6, 0]
    _, found = run(rules, list(enumerate(silence)), metric="silence_seconds")
    assert [(at, str(change), str(kind)) for at, change, kind, _ in found] == [
        (2, "fired", "silence"),
        (4, "resolved", "silence"),
        (4, "fired", "activity"),
        (6, "fired", "silence"),
        (6, "resolved", "activity"),
        (7, "resolved", "silence"),
        (7, "fired", "activity"),
    ]


def test_rules_look_at_their_scope_and_their_names_only():
    rules = [Rule(metric="memory_usage_mb", above=1, process="web*")]
    episodes = Episodes(rules)
    episodes.step(batch(0, {"web-1": 5, "db": 5}))
    episodes.step(batch(1, {"web-2": 5}, scope=Scope.GROUP))
    assert [alert.name for alert in episodes.all] == ["web-1"]


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "cpu_percent"},
        {"metric": "cpu_percent", "above": 1, "below": 2},
        {"metric": "cpu_percent", "above": math.nan},
        {"metric": "cpu_percent", "above": 1, "for_seconds": -1},
        {"metric": "cpu_percent", "above": 1, "clear": 2},
        {"metric": "cpu_percent", "below": 1, "clear": 0.5},
        {"metric": "threads", "above": 10},
    ],
)
def test_a_rule_that_could_never_work_is_refused(options):
    with pytest.raises(ValueError, match=f"{options['metric']}|above must|for_seconds must"):
        Rule(**options)


def test_messages_are_for_people():
    thresholds = AlertThresholds(max_memory_mb=500)
    episodes, _ = run(thresholds.rules(), [(0, 612.3)])
    assert episodes.all[0].message == "p: memory 612.3 MiB (above 500)"
    assert "warning memory_usage" in repr(episodes.all[0])


# -- properties ------------------------------------------------------------------------------------------------------------

values = st.one_of(st.just(math.nan), st.floats(0, 100, width=32))
rules = st.builds(
    lambda above, gap, hold, severity, kind: Rule(
        metric="memory_usage_mb", above=above, clear=above - gap, for_seconds=hold, severity=severity, type=kind
    ),
    above=st.integers(10, 90),
    gap=st.integers(0, 10),
    hold=st.sampled_from([0, 1, 2.5]),
    severity=st.sampled_from(AlertSeverity),
    kind=st.sampled_from([AlertType.MEMORY_USAGE, AlertType.CPU_USAGE]),
)
states = st.sampled_from([State.RUNNING] * 6 + [State.FAILED, State.COMPLETED, State.FORGOTTEN])
moments = st.lists(st.dictionaries(st.sampled_from("abc"), st.tuples(values, states), min_size=1), max_size=40)


@given(rules=st.lists(rules, max_size=5), moments=moments)
def test_never_two_open_alerts_of_one_type_and_process(rules, moments):
    episodes = Episodes([*rules, *AlertThresholds().rules()])
    fired, resolved = [], []
    for at, samples in enumerate(moments):
        given_values = {name: value for name, (value, _) in samples.items()}
        for transition in episodes.step(batch(at, given_values, state={name: state for name, (_, state) in samples.items()})):
            {Change.FIRED: fired, Change.RESOLVED: resolved, Change.ESCALATED: []}[transition.change].append(transition.alert)
        keys = [(alert.type, alert.name) for alert in episodes.open]
        assert len(keys) == len(set(keys))
        assert not any(alert.resolved for alert in episodes.open)
    assert len({alert.id for alert in fired}) == len(fired)
    assert len({alert.id for alert in resolved}) == len(resolved)  # at most one resolve for a fire
    assert {alert.id for alert in resolved} <= {alert.id for alert in fired}
    assert len(fired) == len(resolved) + len(episodes.open) == len(episodes.all)
    for alert in episodes.all:
        assert alert.resolved_at is None or alert.resolved_at > alert.timestamp


@given(rules=st.lists(rules, max_size=4), moments=moments)
def test_replay_of_the_frame_gives_the_same_alerts(rules, moments):
    everything = (*rules, *AlertThresholds().rules())
    episodes = Episodes(everything)
    rows = []
    for at, samples in enumerate(moments):
        given_values = {name: np.float32(value) for name, (value, _) in samples.items()}
        episodes.step(batch(at, given_values, state={name: state for name, (_, state) in samples.items()}))
        rows += [(EPOCH + timedelta(seconds=at), name, np.float32(value), str(state)) for name, (value, state) in samples.items()]
    frame = pd.DataFrame(rows, columns=["timestamp", "name", "memory_usage_mb", "state"])
    assert replay(frame, everything) == episodes.all


@given(rule=rules, samples=st.lists(st.floats(0, 100, width=32), max_size=50))
def test_one_rule_against_the_plain_definition(rule, samples):
    phase, active, since = Phase(), False, None
    for at, value in enumerate(samples):
        phase = advance(rule, phase, value, at * SECOND)
        if active:
            active = value > rule.clear
            since = None
        elif value > rule.above:
            since = at if since is None else since
            active = at - since >= rule.for_seconds
        else:
            since = None
        assert phase.active == active


# -- replay ----------------------------------------------------------------------------------------------------------------


def test_replay_needs_only_time_name_and_the_metric_and_any_order():
    times = pd.date_range("2026-01-01", periods=5, freq="s")
    frame = pd.DataFrame({"timestamp": times, "name": "job", "cpu_percent": [1.0, 99.0, 99.0, 1.0, 1.0]}).iloc[::-1]
    (alert,) = replay(frame, Rule(metric="cpu_percent", above=90))
    assert isinstance(alert, Alert)
    assert alert.timestamp == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert alert.duration == 2.0


def test_replay_of_nothing_is_nothing():
    assert replay(pd.DataFrame({"timestamp": [], "name": []}), AlertThresholds()) == ()


def test_another_threshold_gives_other_alerts_and_changes_nothing():
    times = pd.date_range("2026-01-01", periods=100, freq="s", tz="UTC")
    frame = pd.DataFrame({"timestamp": times, "name": "leak", "memory_usage_mb": np.linspace(0, 990, 100)})
    before = frame.copy()
    starts = [replay(frame, AlertThresholds(max_memory_mb=limit))[0].timestamp.second for limit in (100, 200, 300)]
    assert starts == [11, 21, 31]
    pd.testing.assert_frame_equal(frame, before)
