"""What is done about errors: retries by policy, strategies that act, and a record of it all."""

from nbprocs.recovery.handler import ErrorHandler
from nbprocs.recovery.journal import Journal
from nbprocs.recovery.model import Outcome, RecoveryReport, RecoveryStrategy, Step, StepKind
from nbprocs.recovery.strategies import (
    DoNothing,
    FirstOf,
    Incident,
    NotifyAdmin,
    ReplaceProcess,
    RestartProcess,
    ScaleDown,
    ScaleUp,
    Sequence,
)

__all__ = [
    "DoNothing",
    "ErrorHandler",
    "FirstOf",
    "Incident",
    "Journal",
    "NotifyAdmin",
    "Outcome",
    "RecoveryReport",
    "RecoveryStrategy",
    "ReplaceProcess",
    "RestartProcess",
    "ScaleDown",
    "ScaleUp",
    "Sequence",
    "Step",
    "StepKind",
]
