"""What ``schedule()`` was asked for, checked once and made small; and the same as JSON for the store. Pure."""

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path, PurePath
from typing import Any

from nbprocs import checks
from nbprocs.config import UNSET, ProcessConfig
from nbprocs.redact import is_secret_name
from nbprocs.scheduler.entry import DEFAULTS, TaskOptions
from nbprocs.scheduler.keywords import OF_THE_PROCESS, TaskKeywords
from nbprocs.scheduler.model import Interrupted, Misfire
from nbprocs.scheduler.times import Recurrence

__all__ = ["check_argv", "check_name", "check_priority", "decode", "encode", "make_options", "memory_bytes", "timeout_factor"]

_FACTOR = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*x\s*$")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*$", re.IGNORECASE)
_OWN = frozenset(TaskKeywords.__annotations__) - OF_THE_PROCESS - {"input"}
_BLANK = "-"  # the command of a config that stands for any
_MOST = 2**31 - 1
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def timeout_factor(timeout: float | str | None) -> float | None:
    """The factor of a timeout such as ``"3x"``; None for any other. Raises ValueError for other text.

    >>> timeout_factor("2.5x"), timeout_factor(60)
    (2.5, None)
    """
    if not isinstance(timeout, str):
        return None
    found = _FACTOR.match(timeout)
    if found is None or not 0 < float(found[1]) < math.inf:
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
    return int(checks.number("memory_gate", size, least=0, most=2**62, what="0 or more bytes, or text such as '2 GB'"))


def check_argv(command: object, args: Iterable[object]) -> tuple[str, tuple[str, ...]]:
    """The command and its arguments as strings. Raises TypeError or ValueError for what no system could run."""
    if not isinstance(command, (str, bytes, os.PathLike)):
        checks.refuse(TypeError, "command", "text, bytes or a path (its arguments follow one by one)", command)
    found = checks.word("command", command), checks.words("args", tuple(args))
    if not found[0]:
        raise ValueError("the command is empty")
    if any("\0" in word for word in (found[0], *found[1])):
        raise ValueError("a command or an argument can't hold a NUL character")
    return found


def check_priority(value: object) -> int:
    """A TaskPriority, or any whole number that the store can hold."""
    return checks.whole("priority", value, least=-(2**62), most=2**62)


def check_name(argument: str, value: object) -> str | None:
    """A name of a task, a group or a key: any text that is not blank, a file's name that is no valid text, too."""
    if value is None:
        return None
    if not isinstance(value, str):
        checks.refuse(TypeError, argument, "text", value)
    if not value.strip() or "\0" in value:
        checks.refuse(ValueError, argument, "text that is not blank", value)
    return value


def _resources(wanted: object) -> tuple[tuple[str, float], ...]:
    found = (
        wanted.items()
        if isinstance(wanted, Mapping)
        else wanted
        if isinstance(wanted, list)
        else checks.mapping("resources", wanted).items()
    )
    named = ((check_name("a name in resources", name) or "", amount) for name, amount in found)
    return tuple(sorted((name, float(checks.number(f"the amount of resource {name!r}", amount, above=0))) for name, amount in named))


def _timeout(timeout: object) -> float | str | None:
    if timeout is None:
        return None
    if isinstance(timeout, str):
        timeout_factor(timeout)
        return timeout.strip()
    seconds = checks.seconds("timeout", timeout)
    return math.inf if seconds is None else float(seconds)


def _recurrence(given: dict[str, Any]) -> Recurrence | None:
    """Take what makes a series out of the keywords."""
    every, cron, timezone, repeat, misfire = (given.pop(name, None) for name in ("every", "cron", "timezone", "repeat", "misfire"))
    if every is not None or cron is not None:
        seconds = None if every is None else checks.seconds("every", every)
        if every is not None and seconds is None:
            checks.refuse(ValueError, "every", "a positive number of seconds or a timedelta", every)
        return Recurrence(
            every=None if seconds is None else float(seconds),
            cron=None if cron is None else checks.text("cron", cron),
            timezone=None if timezone is None else checks.text("timezone", timezone),
            repeat=None if repeat is None else checks.whole("repeat", repeat, least=1),
            misfire=Misfire.ONCE if misfire is None else Misfire(checks.one_of("misfire", misfire, tuple(Misfire))),
        )
    if repeat is not None or misfire is not None:
        raise ValueError("repeat and misfire are for a series: give every= or cron= as well")
    return None


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


def _config(given: dict[str, Any], base: ProcessConfig | None) -> ProcessConfig | None:
    """Take the options of the process out of the keywords. Raises TypeError, with the right word, for a keyword that nobody knows."""
    process = {name: given.pop(name) for name in list(given) if name not in _OWN}
    if "input" in process:
        if process.get("stdin"):
            raise ValueError("give either input= or stdin=")
        process["stdin"] = checks.data("input", process.pop("input"))
    if base is not None:
        config = base.replace(command=_BLANK, args=(), timeout=None, name=None, **process)
    else:
        config = ProcessConfig(command=_BLANK, **process)
    return config if len(config.changed()) > 1 else None


def make_options(base: ProcessConfig | None = None, **given: Any) -> TaskOptions:
    """Check all, and share the defaults if nothing differs from them. Raises ValueError or TypeError.

    ``base`` says how the process is to run, as far as no keyword says another thing.

    >>> make_options(ProcessConfig(command="make", nice=5), timeout="3x").config.nice
    5
    """
    if not given and base is None:
        return DEFAULTS
    if base is not None:
        given = {"timeout": base.timeout, "name": base.name, **given}
    given = {name: value for name, value in given.items() if value is not UNSET}
    config = _config(given, base)
    retries, duration, on_interrupted = given.get("max_retries"), given.get("estimated_duration"), given.get("on_interrupted")
    env: Mapping[str, str | None] = {} if config is None else config.env_vars
    options = TaskOptions(
        recurrence=_recurrence(given),
        max_retries=None if retries is None else checks.whole("max_retries", retries, least=0, most=_MOST),
        timeout=_timeout(given.get("timeout")),
        name=check_name("name", given.get("name")),
        group=check_name("group", given.get("group")),
        key=check_name("key", given.get("key")),
        resources=_resources(given.get("resources")),
        memory_gate=memory_bytes(given.get("memory_gate")),
        config=config,
        secrets=tuple(sorted(name for name, value in env.items() if value is not None and is_secret_name(name))),
        estimated_duration=None if duration is None else float(checks.number("estimated_duration", duration, least=0, most=checks.LONGEST)),
        on_interrupted=None if on_interrupted is None else Interrupted(checks.one_of("on_interrupted", on_interrupted, tuple(Interrupted))),
        files=_files(given["files"]) if given.get("files") else (),
    )
    return DEFAULTS if options == DEFAULTS else options


def _stored(config: ProcessConfig, secrets: tuple[str, ...]) -> dict[str, Any]:
    """The options of a process as JSON has them, without the values of secrets. Raises TypeError for an open file."""
    changed = config.changed()
    del changed["command"]
    for name in ("stdin", "stdout", "stderr", "inherit"):
        value = changed.get(name)
        if isinstance(value, bytes):
            changed[name] = {"base64": base64.b64encode(value).decode()}
        elif isinstance(value, Path):
            changed[name] = {"path": str(value)}
        elif value is not None and not isinstance(value, (str, bool)):
            raise TypeError(f"{name}={value!r} can't be stored: no later kernel has that open file; give a path or bytes")
    if config.notify is not None:
        changed["notify"] = config.notify.stored()
    if "env_vars" in changed:
        changed["env_vars"] = {key: value for key, value in changed["env_vars"].items() if key not in secrets}
    return changed


def _restored(process: dict[str, Any]) -> dict[str, Any]:
    stdin = process.get("stdin")
    if isinstance(stdin, dict):
        process["stdin"] = base64.b64decode(stdin["base64"]) if "base64" in stdin else Path(stdin["path"])
    return process


def encode(options: TaskOptions) -> str | None:
    """JSON of what differs from the defaults, without the values of secrets; None if nothing does."""
    if options is DEFAULTS:
        return None
    changed = {f.name: value for f in fields(TaskOptions) if (value := getattr(options, f.name)) != getattr(DEFAULTS, f.name)}
    if options.config is not None:
        changed["config"] = _stored(options.config, options.secrets)
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
    old: dict[str, Any] = {name: raw.pop(name) for name in ("working_dir", "env_vars", "shell") if name in raw}  # as version 1 kept them
    process: dict[str, Any] = {**old, **_restored(dict(raw.pop("config", {})))}
    kept = {key: environ[key] for key in secrets if key in environ}
    if kept or "env_vars" in process:
        process["env_vars"] = {**dict(process.get("env_vars", ())), **kept}
    base = ProcessConfig(command=_BLANK, **process) if process else None
    series = raw.pop("recurrence", None) or {}
    options = make_options(base, **raw, **series)  # checked as at the call
    missing = tuple(key for key in secrets if key not in environ)
    return (replace(options, secrets=secrets) if secrets else options), missing
