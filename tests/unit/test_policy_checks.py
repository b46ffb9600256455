"""Every constructor of policies, thresholds, rules, strategies and monitors refuses at the call what it can't do, and names the argument."""

import asyncio
import datetime as dt
import math
import os
import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbprocs import (
    AlertThresholds,
    CircuitBreaker,
    ErrorHandler,
    NotifyAdmin,
    ProcessManager,
    ReplaceProcess,
    RestartPolicy,
    RestartProcess,
    RetryPolicy,
    Rule,
    ScaleDown,
    ScaleUp,
)
from nbprocs.errors import ProcessFailed
from nbprocs.monitor import ProcessMonitor
from nbprocs.monitor.alerts import QUIET, advance
from nbprocs.monitor.gpu import Gpu
from nbprocs.policy import Fatal, Finished, Life, Restart, decide_restart

NUMBERS = st.one_of(
    st.integers(-10, 10), st.floats(), st.sampled_from([0, -1, 1e308, -math.inf, math.inf, math.nan, 10**400, 2**63, 1.5, True, False])
)
OTHERS = st.sampled_from(
    [
        None,
        "",
        "1",
        "\ud800",
        "x" * 1000,
        b"1",
        [],
        [1],
        (),
        {},
        {1: 2},
        object(),
        1j,
        ...,
        len,
        dt.timedelta(seconds=1),
        {75},
        range(3),
    ]
)
ANYTHING = st.one_of(NUMBERS, OTHERS)

RETRY = list(RetryPolicy.__dataclass_fields__)
RESTART = list(RestartPolicy.__dataclass_fields__)
RULE = list(Rule.__dataclass_fields__)


def made(kind, fields):
    """The object, or None where it was refused in the one style: the argument's name is in the text."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        assert any(field in str(error) for field in fields) or "delays never shrink" in str(error), error
        return None


@settings(max_examples=300)
@given(field=st.sampled_from(RETRY), value=ANYTHING, attempt=st.integers(1, 1000))
@example(field="max_retries", value=1.5, attempt=1)
@example(field="initial_delay", value=math.nan, attempt=1)
@example(field="backoff_multiplier", value=0, attempt=1)
@example(field="output", value="(", attempt=1)
def test_a_retry_policy_makes_a_schedule_or_is_refused(field, value, attempt):
    policy = made(RetryPolicy, {field: value})
    if policy is None or field in {"wait", "stop", "when"}:  # what the user's callables do is theirs
        return
    assert all(0 <= delay <= policy.max_delay for delay in policy.delays())
    delay = policy.decide(ProcessFailed("it failed", exit_code=1), attempt=attempt, elapsed=1.0)
    assert delay is None or 0 <= delay <= policy.max_delay
    if field == "max_retries":
        assert policy.decide(ProcessFailed("it failed", exit_code=1), attempt=policy.max_retries + 1, elapsed=0.0) is None


@settings(max_examples=300)
@given(field=st.sampled_from(RESTART), value=ANYTHING, code=st.sampled_from([None, 0, 1, 75]))
@example(field="window", value=math.inf, code=1)
@example(field="max_restarts", value=2**63, code=1)
@example(field="max_restarts", value=None, code=1)
@example(field="exit_codes", value="75", code=1)
def test_a_restart_policy_decides_or_is_refused(field, value, code):
    policy = made(RestartPolicy, {field: value})
    if policy is None:
        return
    assert all(0 <= delay <= policy.max_delay for delay in policy.delays())
    assert policy.memory >= 2
    decision = decide_restart(policy, [Life(started=0, ended=1, failed=code != 0, exit_code=code)], 1.0)
    assert isinstance(decision, (Restart, Finished, Fatal))
    if isinstance(decision, Restart):
        assert 0 <= decision.delay <= policy.max_delay


@given(field=st.sampled_from(["failures", "window", "open_for"]), value=ANYTHING)
def test_a_breaker_can_open_and_close_or_is_refused(field, value):
    breaker = made(CircuitBreaker, {field: value})
    if breaker is not None:
        for _ in range(min(breaker.failures, 100)):
            breaker = breaker.failed(0.0)
        assert breaker.failures > 100 or (not breaker.allows(0.0) and breaker.allows(breaker.open_for + 1))


@settings(max_examples=300)
@given(field=st.sampled_from(list(AlertThresholds.__dataclass_fields__)), value=ANYTHING)
@example(field="max_memory_mb", value=math.nan)
@example(field="max_error_rate", value=1.1)
def test_thresholds_are_limits_or_refused(field, value):
    thresholds = made(AlertThresholds, {field: value})
    if thresholds is not None:
        limits = [rule.limit for rule in thresholds.rules()[2:]]
        assert all(0 <= limit < math.inf for limit in limits)
        assert len(limits) == (getattr(thresholds, field) is not None)


@settings(max_examples=300)
@given(field=st.sampled_from(RULE), value=ANYTHING, sample=st.floats())
@example(field="severity", value=99, sample=1.0)
@example(field="scope", value="tree", sample=1.0)
def test_a_rule_judges_or_is_refused(field, value, sample):
    rule = made(Rule, {"metric": "cpu_percent", "above": 50, field: value})
    if rule is not None:
        phase = advance(rule, QUIET, sample, 0)
        assert rule.matches("web") in (True, False)
        assert rule.kind
        assert phase.active <= (not math.isnan(sample))


@pytest.mark.parametrize("kind", [ScaleUp, ScaleDown])
@given(value=ANYTHING)
def test_scaling_by_a_whole_number(kind, value):
    found = made(kind, {"by": value})
    assert found is None or found.by >= 1


@pytest.mark.parametrize("kind", [RestartProcess, ReplaceProcess])
@pytest.mark.parametrize("field", ["policy", "grace"])
@given(value=ANYTHING)
def test_restarting_strategies(kind, field, value):
    found = made(kind, {field: value})
    assert found is None or found.grace is None or 0 <= found.grace < math.inf


@given(field=st.sampled_from(["timeout", "retry", "webhook", "callback"]), value=ANYTHING)
def test_notify_admin(field, value):
    found = made(NotifyAdmin, {field: value})
    assert found is None or 0 < found.timeout < math.inf


@settings(max_examples=100)
@given(field=st.sampled_from(["interval", "thresholds", "rules", "members", "history_bytes"]), value=ANYTHING)
def test_a_monitor_is_made_or_refused(field, value):
    async def check():
        mon = made(ProcessMonitor, {"interval": None, "gpu": Gpu(library=None), field: value})
        if mon is not None:
            assert mon.interval is None or 0 < mon.interval < math.inf
            assert all(isinstance(rule, Rule) for rule in mon.rules)
            await mon.aclose()

    asyncio.run(check())


@settings(max_examples=100)
@given(value=ANYTHING)
def test_calls_of_a_monitor(value):
    async def check():
        async with ProcessMonitor(interval=None, gpu=Gpu(library=None)) as mon:
            if not isinstance(value, int) or isinstance(value, bool):
                with pytest.raises((TypeError, ValueError), match="pid"):
                    mon.add(value)
            for arguments in ({"name": value}, {"every": value}, {"timeout": value}):
                try:
                    mon.probe(**{"name": "web", "probe": len, **arguments})
                except (TypeError, ValueError) as error:
                    assert re.search("name|every|timeout", str(error))
            try:
                mon.frame(scope=value)
            except (TypeError, ValueError) as error:
                assert "scope" in str(error)

    asyncio.run(check())


@settings(max_examples=100)
@given(field=st.sampled_from(["automatic", "settle", "callback_timeout"]), value=ANYTHING)
def test_an_error_handler_is_made_or_refused(field, value):
    async def check():
        async with ProcessManager() as pm:
            try:
                handler = ErrorHandler(pm, **{field: value})
            except (TypeError, ValueError) as error:
                assert field in str(error)
            else:
                await handler.aclose()

    asyncio.run(check())


@settings(max_examples=100)
@given(value=ANYTHING)
def test_calls_of_an_error_handler(value):
    async def check():
        async with ProcessManager() as pm, ErrorHandler(pm) as handler:
            for call in (
                lambda: handler.set_retry_policy(value, RetryPolicy()),
                lambda: handler.set_retry_policy("web", value),
                lambda: handler.set_retry_policy("web", RetryPolicy(), healthy_after=value),
                lambda: handler.set_retry_policy("web", RetryPolicy(), settle=value),
                lambda: handler.set_recovery_strategy("web", value),
                lambda: handler.on_error(value),
                lambda: handler.on_error(len, pattern=value),
                lambda: handler.watch_liveness("web", len, interval=value),
                lambda: handler.watch_liveness("web", len, timeout=value),
                lambda: handler.watch_liveness("web", len, failures=value),
            ):
                try:
                    call()
                except (TypeError, ValueError):
                    continue
            assert os.getpid()

    asyncio.run(check())


def test_jitter_needs_a_source_of_random_numbers():
    assert RetryPolicy(rng=random.Random(1)).rng
    with pytest.raises(TypeError, match="rng must be"):
        RetryPolicy(rng=4)
