"""Retry and restart decisions: pure functions of (policy, history, now). Nothing here sleeps, starts or reads a clock.

``retry`` decides about one task that failed, ``restart`` about a supervised process that ended, ``breaker`` about all
processes of one command. Waits and stops are tenacity's, so that any tenacity ``wait_*`` or ``stop_*`` can be given instead.
"""

from nbprocs.policy.breaker import BreakerState, CircuitBreaker
from nbprocs.policy.restart import Decision, Fatal, Finished, Life, Restart, RestartPolicy, decide_restart, restart_policy
from nbprocs.policy.retry import RetryPolicy

__all__ = [
    "BreakerState",
    "CircuitBreaker",
    "Decision",
    "Fatal",
    "Finished",
    "Life",
    "Restart",
    "RestartPolicy",
    "RetryPolicy",
    "decide_restart",
    "restart_policy",
]
