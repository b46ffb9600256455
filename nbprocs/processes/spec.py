"""What the engine is told of a start: the Spec of a config."""

from __future__ import annotations

from dataclasses import fields

from nbprocs.config import ProcessConfig
from nbprocs.engine.child import Label, Spec, child_environment, shell_argv

__all__ = ["spec_of"]

_OURS = {
    "command",
    "args",
    "shell",
    "working_dir",
    "env_vars",
    "encoding",
    "errors",
    "timeout",
    "name",
    "title",
    "success_codes",
    "output_limit",
}
_ENGINES = {f.name for f in fields(Spec)}


def spec_of(config: ProcessConfig, *, token: str, label: Label) -> Spec:
    """All that a start needs. Raises ValueError for an option that the engine does not have."""
    wanted = config.changed()
    written = isinstance(config.stdin, bytes)
    wanted["stdin"] = config.takes_input or written
    if config.stdin is not False and not wanted["stdin"]:
        raise ValueError("stdin= from a file is not to be had on this system")
    options = {option: value for option, value in wanted.items() if option not in _OURS}
    for option in options:
        if option not in _ENGINES:
            raise ValueError(f"{option}= is not to be had on this system")
    return Spec(
        argv=shell_argv(config.command) if config.shell else config.argv,
        env=child_environment(config.env_vars),
        cwd=config.working_dir,
        timeout=config.timeout,
        token=token,
        label=label,
        **options,
    )
