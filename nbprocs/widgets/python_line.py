"""The line of Python that starts what a config says."""

from nbprocs.config import ProcessConfig
from nbprocs.redact import MASK, is_secret_name

__all__ = ["spawn_line"]

_PLAIN = (str, bytes, int, float, tuple, dict)


def spawn_line(config: ProcessConfig) -> str:
    """The same as a line of Python; empty where the command holds a secret. Values of secret variables are asked for when it runs.

    >>> spawn_line(ProcessConfig(command="sort", args=("-n",), timeout=5.0))
    "proc = await pm.spawn('sort', '-n', timeout=5.0)"
    """
    if MASK in config.display:
        return ""
    options = config.changed()
    options.pop("name", None)  # it is taken while the process is known
    parts = [repr(word) for word in (options.pop("command"), *options.pop("args", ()))]
    if env := options.pop("env_vars", {}):
        shown = (f"{n!r}: " + (f"getpass.getpass({n!r})" if is_secret_name(n) else repr(v)) for n, v in env.items())
        parts.append(f"env_vars={{{', '.join(shown)}}}")
    parts += [f"{option}={value!r}" for option, value in options.items() if isinstance(value, _PLAIN)]
    return f"proc = await pm.spawn({', '.join(parts)})"
