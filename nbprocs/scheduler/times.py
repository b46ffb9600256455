"""When a task of a series runs next: intervals and cron lines. Pure; the clock is an argument.

An interval is counted on the clock that never goes back (a suspended machine's sleep counts), a cron line and a date on the wall clock of
their time zone. The cron rules are those of Debian's cron, by cronsim: five fields (or six, with seconds first), names of months and days,
``L``, ``#``, ``@daily`` and its like; at the change to summer time a job in the missing hour runs right after it, at the change back a job
of the doubled hour runs once.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from nbprocs import checks
from nbprocs.scheduler.model import Misfire

__all__ = ["Recurrence", "every_seconds", "following", "latest_due", "local_zone", "next_run", "parse_at", "to_datetime", "zone"]

_NICKNAMES = {  # those of cron, but for @reboot: no queue knows of one
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_EARLIEST, _LATEST = -6e10, 2.5e11  # seconds since the epoch: the years 69 and 9892; a datetime shows no others
_COUNTED = 10_000  # missed times of a cron line are counted so far and no further


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """A series: ``every`` so many seconds, or by a ``cron`` line in a time zone; ``repeat`` bounds the number of runs."""

    every: float | None = None  # seconds
    cron: str | None = None
    timezone: str | None = None  # an IANA name; None: the machine's local time
    repeat: int | None = None
    misfire: Misfire = Misfire.ONCE

    def __post_init__(self) -> None:
        """Refuse what never runs. Raises ValueError."""
        if (self.every is None) == (self.cron is None):
            raise ValueError("a series needs either every= or cron=")
        if self.every is not None and not (self.every > 0 and math.isfinite(self.every)):
            raise ValueError(f"every must be a positive number of seconds or a timedelta, not {self.every!r}")
        if self.repeat is not None and self.repeat < 1:
            raise ValueError(f"repeat must be 1 or more, not {self.repeat!r}")
        object.__setattr__(self, "misfire", Misfire(self.misfire))
        if self.cron is not None:
            object.__setattr__(self, "cron", _NICKNAMES.get(self.cron.strip().lower(), self.cron))
        if self.cron is not None:
            following(self, datetime.now(UTC).timestamp())


def every_seconds(value: float | timedelta) -> float:
    """Seconds of a number or a timedelta.

    >>> every_seconds(timedelta(minutes=2))
    120.0
    """
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def local_zone() -> tzinfo:
    """The machine's local time as a rule, so that summer time is known in advance; else its present offset."""
    try:
        return ZoneInfo("localtime")
    except (KeyError, ValueError, OSError):
        local = datetime.now(UTC).astimezone().tzinfo
        return local if local is not None else UTC


def zone(name: str | None) -> tzinfo:
    """The time zone of an IANA name; None is the machine's. Raises ValueError for an unknown one.

    >>> zone("Europe/Berlin").key
    'Europe/Berlin'
    """
    if name is None:
        return local_zone()
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {name!r}; use a name such as Europe/Berlin or UTC") from error


def to_datetime(seconds: float) -> datetime:
    """An aware datetime in local time.

    >>> to_datetime(0).timestamp()
    0.0
    """
    return datetime.fromtimestamp(seconds, UTC).astimezone()


def parse_at(at: datetime | str | float, timezone: str | None = None) -> float:
    """Seconds since the epoch of a date: a datetime (without a zone: in ``timezone``), an ISO text, or seconds since the epoch.

    >>> parse_at("2026-03-01 12:00", "UTC")
    1772366400.0
    """
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError as error:
            raise ValueError(f"at must be a date such as '2026-03-01 12:00', not {at!r}") from error
    if isinstance(at, datetime):
        at = (at if at.tzinfo is not None else at.replace(tzinfo=zone(timezone))).timestamp()
    return float(checks.number("at", at, least=_EARLIEST, most=_LATEST, what="a date: a datetime, ISO text, or seconds since the epoch"))


def following(rule: Recurrence, after: float) -> float:
    """The first time of the rule later than ``after`` (seconds since the epoch). Raises ValueError for a line that has none.

    >>> following(Recurrence(cron="30 2 * * *", timezone="UTC"), 0.0)
    9000.0
    >>> following(Recurrence(every=60), 10.0)
    70.0
    """
    if rule.every is not None:
        return after + rule.every
    try:
        return float(next(CronSim(rule.cron or "", datetime.fromtimestamp(after, zone(rule.timezone)))).timestamp())
    except CronSimError as error:
        raise ValueError(
            f"bad cron line {rule.cron!r}: {error}; five fields: minute hour day month weekday, or @hourly, @daily, @weekly …"
        ) from error
    except (StopIteration, OverflowError) as error:
        raise ValueError(f"the cron line {rule.cron!r} never comes true") from error


def next_run(rule: Recurrence, last: float, now: float) -> tuple[float, int]:
    """When the series runs next, and how many of its times are dropped, after a run that was due at ``last``.

    Times up to ``now`` were missed; the rule's ``misfire`` says what becomes of them. A time at or before ``now`` means: at once.
    After a clock set back, ``now`` may be before ``last``: the series goes on from ``last``, so that no time runs twice.

    >>> next_run(Recurrence(every=10, misfire="once"), 100.0, 135.0)
    (130.0, 2)
    >>> next_run(Recurrence(every=10, misfire="skip"), 100.0, 135.0)
    (140.0, 3)
    >>> next_run(Recurrence(every=10, misfire="all"), 100.0, 135.0)
    (110.0, 0)
    """
    first = following(rule, last)
    if first > now or rule.misfire is Misfire.ALL:
        return first, 0
    if rule.every is not None:
        missed = max(1, int((now - last) // rule.every))  # one at least, whatever the division rounds to
        latest = last + missed * rule.every
    else:
        missed, latest = _cron_missed(rule, first, now)
    if rule.misfire is Misfire.ONCE:
        return latest, missed - 1
    return following(rule, max(latest, now) if rule.cron else latest), missed


def latest_due(rule: Recurrence, due: float, now: float) -> float:
    """Which of its times a run that starts now stands for: with Misfire.ALL the one it was due at, else the last that has come.

    >>> latest_due(Recurrence(every=60), 0.0, 3601.0)
    3600.0
    """
    if rule.misfire is Misfire.ALL:
        return due
    first = following(rule, due)
    if first > now:
        return due
    if rule.every is not None:
        return due + max(1, (now - due) // rule.every) * rule.every
    return _cron_missed(rule, first, now)[1]


def _cron_missed(rule: Recurrence, first: float, now: float) -> tuple[int, float]:
    """How many times lie from ``first`` up to ``now``, and the last of them (after very many: simply ``now``)."""
    count, latest = 1, first
    while count < _COUNTED:
        candidate = following(rule, latest)
        if candidate > now:
            return count, latest
        count, latest = count + 1, candidate
    return count, now
