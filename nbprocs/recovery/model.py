"""Values of recovery: the strategies' names, what a strategy is told, what it says it did, and the report of a whole recovery."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from nbprocs.display import Displayable, Html, table, text
from nbprocs.errors import ExecutionTimeout, OutOfMemory, ProcessCrashed, ProcessError, ProcessFailed, RestartsExhausted
from nbprocs.guard import message_of
from nbprocs.model import signal_name
from nbprocs.redact import mask_text

__all__ = ["Outcome", "RecoveryReport", "RecoveryStrategy", "Step", "StepKind", "in_a_word"]


class RecoveryStrategy(StrEnum):
    """What to do about an error that no retry has cured. Each is the default form of a class in ``nbprocs.recovery``, which takes options.

    >>> RecoveryStrategy("restart_process") is RecoveryStrategy.RESTART_PROCESS
    True
    """

    RESTART_PROCESS = "restart_process"  # the same config and name again, with a brake
    REPLACE_PROCESS = "replace_process"  # a new one becomes ready, takes the name, then the old one goes
    SCALE_UP = "scale_up"  # one more worker in the pool
    SCALE_DOWN = "scale_down"  # one worker fewer
    NOTIFY_ADMIN = "notify_admin"  # callback, log, webhook
    DO_NOTHING = "do_nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one try or one strategy did.

    >>> str(Outcome(action="restart_process", ok=True, detail="running as pid 4711"))
    'restart_process: running as pid 4711'
    """

    action: str  # "retry", or the strategy's name
    ok: bool
    detail: str = ""
    process_id: str | None = None  # of the new process, if there is one
    seconds: float = 0.0  # it took
    waited: float = 0.0  # seconds before it began
    error: BaseException | None = field(default=None, repr=False, compare=False)  # what it ended with, if it failed by an exception

    def __str__(self) -> str:
        """One line."""
        return f"{self.action}: {self.detail or ('done' if self.ok else 'failed')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport(Displayable):
    """What was done about one error.

    >>> RecoveryReport(name="web", process_id="1", error=TimeoutError("slow"), recovered=False).actions
    ()
    """

    name: str
    process_id: str  # of the process that failed
    error: BaseException  # the last one: after failed tries it is the error of the last try
    recovered: bool  # the work is done, or a process of that name runs
    attempts: int = 1  # tries in all, the first one included
    actions: tuple[Outcome, ...] = ()
    seconds: float = 0.0  # from the error to the end of the recovery

    @property
    def new_process_id(self) -> str | None:
        """The process that has the name now, if the recovery made one."""
        return next((action.process_id for action in reversed(self.actions) if action.process_id), None)

    def __repr__(self) -> str:
        """What became of it, and by what."""
        end = "recovered" if self.recovered else "not recovered"
        did = "; ".join(str(action) for action in self.actions) or "nothing was done"
        return f"<RecoveryReport {self.name}: {end} after {self.attempts} attempt{'s' * (self.attempts != 1)}: {did}>"

    def _html_(self) -> Html:
        rows = (
            (text(a.action), "ok" if a.ok else "failed", text(a.detail, limit=300), f"{a.waited:.2f} s", f"{a.seconds:.2f} s")
            for a in self.actions
        )
        end = "recovered" if self.recovered else "not recovered"
        why = text(mask_text(message_of(self.error)).partition("\n")[0], limit=300)
        shown = table(("action", "outcome", "detail", "waited", "took"), rows)
        return Html("<div><b>{}</b>: {}, {:.2f} s after: {}</div>{}").format(text(self.name), end, self.seconds, why, shown)


class StepKind(StrEnum):
    """What a row of the record is about.

    >>> StepKind("wait") is StepKind.WAIT
    True
    """

    STARTED = "started"
    RESTARTED = "restarted"
    HEALTHY = "healthy"
    ERROR = "error"  # it crashed, failed, ran out of time, or is not well
    DECISION = "decision"  # what the policy or the rules said
    WAIT = "wait"
    ATTEMPT = "attempt"  # a try by the retry policy
    ACTION = "action"  # a strategy's outcome
    OUTCOME = "outcome"  # the end of a recovery
    COMPLETED = "completed"
    STOPPED = "stopped"
    FATAL = "fatal"
    CALLBACK = "callback"  # one of the user's callbacks failed, hung or went in circles


_WORDS: dict[type, str] = {OutOfMemory: "ran out of memory", ExecutionTimeout: "ran out of time", RestartsExhausted: "given up"}


def in_a_word(error: BaseException, *, name: str = "") -> str:
    """An error as the story tells it.

    >>> in_a_word(ProcessCrashed("it died", signal=11)), in_a_word(ProcessFailed("it failed", exit_code=3))
    ('crashed (SIGSEGV)', 'failed (exit status 3)')
    """
    if type(error) in _WORDS:
        return _WORDS[type(error)]
    match error:
        case ProcessCrashed(signal=int(number)):
            return f"crashed ({signal_name(number)})"
        case ProcessFailed(exit_code=int(code)):
            return f"failed (exit status {code})"
        case ProcessError():
            return error.message.removeprefix(name).strip()
    return mask_text(message_of(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One row of the record.

    >>> Step(kind=StepKind.WAIT, name="web", delay=0.4).delay
    0.4
    """

    kind: StepKind
    name: str
    process_id: str = ""
    what: str = ""
    word: str = ""  # the same in a word or two, for the story
    error: str = ""  # the class of the error
    delay: float | None = None  # seconds, of a wait
    attempt: int | None = None
    ok: bool | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
