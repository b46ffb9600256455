"""The line of Python that starts what a config says."""

import dataclasses
from typing import Any

from nbprocs.model import ProcessConfig
from nbprocs.redact import MASK, is_secret_name

__all__ = ["spawn_line"]

_PLAIN = (str, bytes, int, float, bool, tuple, type(None))
_APART = {"command", "args", "env_vars", "name"}  # the name is taken while the process is known


def spawn_line(config: ProcessConfig) -> str:
    """The same as a line of Python; empty where the command holds a secret. Values of secret variables are asked for when it runs.

    >>> spawn_line(ProcessConfig(command="sort", args=("-n",), timeout=5.0))
    "proc = await pm.spawn('sort', '-n', timeout=5.0)"
    """
    if MASK in config.display:
        return ""
    parts = [repr(word) for word in (config.command, *config.args)]
    if config.env_vars:
        shown = (f"{n!r}: " + (f"getpass.getpass({n!r})" if is_secret_name(n) else repr(v)) for n, v in config.env_vars.items())
        parts.append(f"env_vars={{{', '.join(shown)}}}")
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        if field.name not in _APART and isinstance(value, _PLAIN) and value != _default(field):
            parts.append(f"{field.name}={value!r}")
    return f"proc = await pm.spawn({', '.join(parts)})"


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
