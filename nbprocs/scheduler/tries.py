"""How often a task is tried, after which delay, for how long, and which time of a series a run stands for. No state but a cache."""

import itertools

from nbprocs.errors import WorkerLost
from nbprocs.guard import call
from nbprocs.policy import RetryPolicy
from nbprocs.scheduler.entry import Entry
from nbprocs.scheduler.estimate import Durations
from nbprocs.scheduler.model import Interrupted, Now, SchedulerConfig
from nbprocs.scheduler.options import timeout_factor
from nbprocs.scheduler.times import Recurrence, latest_due

__all__ = ["Tries", "base_of"]


class Tries:
    """What the config and a task's own options say about its tries."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._policies: dict[int, RetryPolicy] = {}

    def most(self, entry: Entry) -> int:
        """How often this task is tried again."""
        config, asked = self._config, entry.options.max_retries
        if asked is not None:
            return asked
        return config.max_retries if config.retry is None else config.retry.max_retries

    def delay(self, entry: Entry, error: BaseException, now: Now) -> float | None:
        """Seconds until it is tried again; None: it is not. What a policy of the user's raises is logged, and means no more tries."""
        limit = self.most(entry)
        policy = self._policies.get(limit)
        if policy is None:
            policy = self._policies[limit] = self._config.policy(limit)
        first = entry.outcome.first
        elapsed = now.elapsed - (now.elapsed if first is None else first)
        return call("a retry policy", policy.decide, error, attempt=entry.retries + 1, elapsed=elapsed)

    def delay_after_loss(self, entry: Entry, error: WorkerLost) -> float:
        """Seconds until a task runs again whose worker went on purpose: 0 the first time, then growing."""
        before = reversed(entry.outcome.attempts[:-1])
        losses = sum(1 for _ in itertools.takewhile(lambda attempt: attempt.reason == error.reason, before))
        if not losses:
            return 0.0
        asked = call("a retry policy", self._config.policy(losses).decide, error, attempt=losses, elapsed=0.0)
        return self._config.retry_delay if asked is None else asked

    def marks_interrupted(self, entry: Entry) -> bool:
        """Whether a task whose kernel died while it ran, once more now, is given up."""
        policy = entry.options.on_interrupted or self._config.on_interrupted
        return policy is Interrupted.MARK or entry.interruptions > self._config.max_interruptions

    def timeout(self, entry: Entry, durations: Durations) -> float | None:
        """Seconds this attempt may take; a multiple of a duration that is not known yet is the config's default."""
        timeout = entry.options.timeout
        factor = timeout_factor(timeout)
        if factor is not None:
            usual = durations.mean(entry.argv)
            timeout = self._config.default_timeout if usual is None else max(factor * usual, 0.1)
        elif timeout is None:
            timeout = self._config.default_timeout
        return None if timeout is None or timeout == float("inf") else float(timeout)


def base_of(entry: Entry, rule: Recurrence, now: Now) -> float:
    """Which of its times a run of a series that starts now stands for."""
    reading = now.wall if rule.cron is not None else now.elapsed
    due = entry.due
    if due is not None and entry.on_wall and rule.cron is None:
        due = now.elapsed - (now.wall - due)
    return reading if due is None else latest_due(rule, due, reading)
