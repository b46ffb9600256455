"""What ``schedule()`` was asked for, checked once and made small; and the same as JSON for the store. Pure."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import PurePath
from typing import Any

from nbprocs import checks
from nbprocs.redact import is_secret_name
from nbprocs.scheduler.entry import DEFAULTS, TaskOptions
from nbprocs.scheduler.model import Interrupted, Misfire
from nbprocs.scheduler.times import Recurrence, every_seconds

__all__ = ["check_argv", "decode", "encode", "make_options", "memory_bytes", "timeout_factor"]

_FACTOR = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*x\s*$")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def timeout_factor(timeout: float | str | None) -> float | None:
    """The factor of a timeout such as ``"3x"``; None for any other. Raises ValueError for other text.

    >>> timeout_factor("2.5x"), timeout_factor(60)
    (2.5, None)
    """
    if not isinstance(timeout, str):
        return None
    found = _FACTOR.match(timeout)
    if found is None or not float(found[1]) > 0:
        raise ValueError(f"timeout must be seconds, or text such as '3x' for three times what the command took before, not {timeout!r}")
    return float(found[1])


def memory_bytes(size: float | str | None) -> int:
    """Bytes of a number or a text with a binary unit.

    >>> memory_bytes("1.5 GB"), memory_bytes(4096), memory_bytes(None)
    (1610612736, 4096, 0)
    """
    if size is None:
        return 0
    if isinstance(size, str):
        found = _SIZE.match(size)
        if found is None:
            raise ValueError(f"memory_gate must be bytes, or text such as '2 GB', not {size!r}")
        return int(float(found[1]) * 1024 ** _POWERS[found[2].lower()])
    if not (math.isfinite(size) and size >= 0):
        raise ValueError(f"memory_gate must be 0 or more bytes, not {size!r}")
    return int(size)


def check_argv(command: object, args: Iterable[object]) -> tuple[str, tuple[str, ...]]:
    """The command and its arguments as strings. Raises TypeError or ValueError for what no system could run."""
    if not isinstance(command, (str, os.PathLike)):
        raise TypeError(f"command must be a string or a path, not {type(command).__name__}; pass arguments one by one")
    found = os.fspath(command), tuple(str(os.fspath(a)) if isinstance(a, os.PathLike) else str(a) for a in args)
    if not isinstance(found[0], str) or not found[0]:
        raise ValueError("the command is empty" if not found[0] else "command must be text, not bytes")
    if any("\0" in word for word in (found[0], *found[1])):
        raise ValueError("a command or an argument can't hold a NUL character")
    return found


def _resources(wanted: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    for name, amount in (wanted or {}).items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not (amount > 0 and math.isfinite(amount)):
            raise ValueError(f"the amount of resource {name!r} must be a positive number, not {amount!r}")
    return tuple(sorted((name, float(amount)) for name, amount in (wanted or {}).items()))


def _timeout(timeout: float | str | timedelta | None) -> float | str | None:
    if timeout is None:
        return None
    if isinstance(timeout, str):
        timeout_factor(timeout)
        return timeout.strip()
    seconds = every_seconds(timeout)
    if not seconds > 0:
        raise ValueError(f"timeout must be a positive number of seconds (inf for none), not {timeout!r}")
    return seconds


def _files(files: Mapping[str, Any] | Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """Pairs of the name that the task sees and the absolute path here. A path below the folder keeps its way from there."""
    if isinstance(files, (str, bytes, os.PathLike)) or not isinstance(files, Iterable):
        checks.refuse(TypeError, "files", "a list of paths, or a mapping of names to paths", files)
    pairs = []
    for item in files.items() if isinstance(files, Mapping) else files:
        told, given = item if isinstance(item, (tuple, list)) else (None, item)
        path = checks.path("files", given)
        inside = os.path.relpath(path)
        name = told if told is not None else os.path.basename(path) if inside.startswith(os.pardir) else inside  # noqa: PTH119 - text
        if not isinstance(name, str) or not name or os.path.isabs(name) or os.pardir in PurePath(name).parts:  # noqa: PTH117 - text
            checks.refuse(ValueError, "files", "names below the task's folder", name)
        pairs.append((name, path))
    return tuple(pairs)


def make_options(
    *,
    max_retries: int | None = None,
    timeout: float | str | timedelta | None = None,
    name: str | None = None,
    group: str | None = None,
    resources: Mapping[str, float] | None = None,
    memory_gate: float | str | None = None,
    working_dir: str | os.PathLike[str] | None = None,
    env_vars: Mapping[str, str | None] | None = None,
    estimated_duration: float | None = None,
    shell: bool = False,
    every: float | timedelta | None = None,
    cron: str | None = None,
    timezone: str | None = None,
    repeat: int | None = None,
    misfire: Misfire | str | None = None,
    on_interrupted: Interrupted | str | None = None,
    files: Mapping[str, Any] | Iterable[Any] = (),
) -> TaskOptions:
    """Check all, and share the defaults if nothing differs from them. Raises ValueError or TypeError."""
    if max_retries is not None and (isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0):
        raise ValueError(f"max_retries must be a whole number, 0 or more, not {max_retries!r}")
    if estimated_duration is not None and not (estimated_duration >= 0 and math.isfinite(estimated_duration)):
        raise ValueError(f"estimated_duration must be 0 or more seconds, not {estimated_duration!r}")
    recurrence = None
    if every is not None or cron is not None:
        seconds = None if every is None else every_seconds(every)
        recurrence = Recurrence(every=seconds, cron=cron, timezone=timezone, repeat=repeat, misfire=Misfire(misfire or Misfire.ONCE))
    elif repeat is not None or misfire is not None:
        raise ValueError("repeat and misfire are for a series: give every= or cron= as well")
    env = tuple(sorted((str(k), None if v is None else str(v)) for k, v in (env_vars or {}).items()))
    options = TaskOptions(
        max_retries=max_retries,
        timeout=_timeout(timeout),
        name=name,
        group=group,
        resources=_resources(resources),
        memory_gate=memory_bytes(memory_gate),
        working_dir=None if working_dir is None else checks.path("working_dir", working_dir),
        env_vars=env,
        secrets=tuple(key for key, value in env if value is not None and is_secret_name(key)),
        estimated_duration=estimated_duration,
        shell=shell,
        recurrence=recurrence,
        on_interrupted=None if on_interrupted is None else Interrupted(on_interrupted),
        files=_files(files) if files else (),
    )
    return DEFAULTS if options == DEFAULTS else options


def encode(options: TaskOptions) -> str | None:
    """JSON of what differs from the defaults, without the values of secrets; None if nothing does."""
    if options is DEFAULTS:
        return None
    changed = {f.name: value for f in fields(TaskOptions) if (value := getattr(options, f.name)) != getattr(DEFAULTS, f.name)}
    if options.secrets:
        changed["env_vars"] = [pair for pair in options.env_vars if pair[0] not in options.secrets]
    if options.recurrence is not None:
        changed["recurrence"] = {f.name: getattr(options.recurrence, f.name) for f in fields(Recurrence)}
    return json.dumps(changed)


def decode(text: str | None, environ: Mapping[str, str]) -> tuple[TaskOptions, tuple[str, ...]]:
    """The options, with secrets from the environment; and the names of those that it does not have.

    >>> made = make_options(env_vars={"API_TOKEN": "abc", "MODE": "fast"})
    >>> "abc" in encode(made)
    False
    >>> decode(encode(made), {})[1]
    ('API_TOKEN',)
    """
    if text is None:
        return DEFAULTS, ()
    raw: dict[str, Any] = dict(json.loads(text))
    secrets = tuple(raw.pop("secrets", ()))
    env = dict(raw.pop("env_vars", ()))
    env.update((key, environ[key]) for key in secrets if key in environ)
    series = raw.pop("recurrence", None) or {}
    resources = dict(raw.pop("resources", ()))
    options = make_options(**raw, **series, resources=resources, env_vars=env)  # checked as at the call: the file may hold anything
    missing = tuple(key for key in secrets if key not in environ)
    return (replace(options, secrets=secrets) if secrets else options), missing
