"""Which policy and which strategy hold for a name: pure look-ups."""

import fnmatch
import math
from dataclasses import dataclass, replace
from typing import Any

from nbprocs.checks import LONGEST, instance, number, seconds, text
from nbprocs.policy import RetryPolicy

__all__ = ["Plan", "Rules", "matches"]


def matches(pattern: str, name: str) -> bool:
    """Whether the name is the pattern, or fits it as a shell pattern (``fnmatch``, case-sensitive).

    >>> matches("web-*", "web-3"), matches("a[1]", "a[1]")
    (True, True)
    """
    return pattern == name or fnmatch.fnmatchcase(name, pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What holds for one name."""

    policy: RetryPolicy | None = None
    healthy_after: float | None = None  # seconds of uptime that end an episode; None: only exit status 0 does
    settle: float | None = None  # seconds that a try must live to count as well; None: the handler's; infinite: until it has ended
    strategy: Any = None

    def __bool__(self) -> bool:
        """Whether there is anything to do at all."""
        return self.policy is not None or self.strategy is not None


class Rules:
    """Patterns and what was set for them. The name itself beats every pattern; of several patterns the one set last counts.

    >>> rules = Rules()
    >>> rules.set_strategy("web*", "a"); rules.set_strategy("web1", "b"); rules.set_strategy("w*", "c")
    >>> [rules.plan(name).strategy for name in ("web1", "web2", "other")]
    ['b', 'c', None]
    """

    def __init__(self) -> None:
        self._policies: dict[str, Plan] = {}
        self._strategies: dict[str, Any] = {}

    def set_policy(
        self, pattern: str, policy: RetryPolicy | None, *, healthy_after: float | None = None, settle: float | None = None
    ) -> None:
        """Set it, or take it back with None."""
        text("pattern", pattern)
        if policy is not None:
            instance("policy", policy, RetryPolicy, "a RetryPolicy or None")
        healthy_after = seconds("healthy_after", healthy_after, zero=True)
        if settle is not None and settle != math.inf:
            number("settle", settle, least=0, most=LONGEST, what="a number of seconds, 0 or more, or None")
        self._policies.pop(pattern, None)  # so that setting it again makes it the last one
        if policy is not None:
            self._policies[pattern] = Plan(policy=policy, healthy_after=healthy_after, settle=settle)

    def set_strategy(self, pattern: str, strategy: Any) -> None:
        """Set it, or take it back with None."""
        text("pattern", pattern)
        self._strategies.pop(pattern, None)
        if strategy is not None:
            self._strategies[pattern] = strategy

    def plan(self, name: str) -> Plan:
        """What holds for that name."""
        tries = _pick(self._policies, name) or Plan()
        return replace(tries, strategy=_pick(self._strategies, name))


def _pick(table: dict[str, Any], name: str) -> Any:
    if name in table:
        return table[name]
    return next((table[pattern] for pattern in reversed(table) if matches(pattern, name)), None)
