"""What the engine is told of a start: the Spec of a config, and the files that it names."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

from nbprocs.config import ProcessConfig, has_descriptor
from nbprocs.engine.child import Label, Spec, child_environment, shell_argv

__all__ = ["opened", "spec_of"]

_OURS = frozenset(
    [
        "command",
        "args",
        "shell",
        "working_dir",
        "env_vars",
        "stdin",
        "stdout",
        "stderr",
        "rlimits",
        "encoding",
        "errors",
        "timeout",
        "name",
        "title",
        "success_codes",
        "output_limit",
        "detach",
        "notify",
    ]
)
_ENGINES = frozenset(f.name for f in fields(Spec))


def opened(config: ProcessConfig, *, again: bool) -> AbstractContextManager[Mapping[str, int]]:
    """The descriptors of the files that stdin, stdout and stderr name, open for the start. Raises OSError.

    A path is written anew; ``again``, for a restart, adds to it: the output of the life before says why it ended. One path for both is
    one file. Of an open file what Python still holds is written first.
    """
    streams = (("stdin", config.stdin), ("stdout", config.stdout), ("stderr", config.stderr))
    named = [option for option, value in streams if not (value is None or isinstance(value, (bool, bytes)))]
    return _opened(config, named, again=again) if named else _NO_FILES  # most


_NO_FILES: AbstractContextManager[Mapping[str, int]] = contextlib.nullcontext({})


@contextlib.contextmanager
def _opened(config: ProcessConfig, named: Iterable[str], *, again: bool) -> Iterator[Mapping[str, int]]:
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for option in named:
            try:
                found[option] = _descriptor(config, option, found, stack, again=again)
            except OSError as error:
                error.step = option  # type: ignore[attr-defined]  # what it is about
                raise
        yield found


def _descriptor(config: ProcessConfig, option: str, found: Mapping[str, int], stack: contextlib.ExitStack, *, again: bool) -> int:
    value = getattr(config, option)
    if has_descriptor(value):
        flush = getattr(value, "flush", None)
        if option != "stdin" and callable(flush):
            flush()
        return value.fileno()
    if option == "stderr" and value == config.stdout:
        return found["stdout"]
    fd = _open(os.fspath(value), write=option != "stdin", again=again)
    stack.callback(os.close, fd)
    return fd


def _open(path: str, *, write: bool, again: bool) -> int:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116 - `import nbprocs` stays light
            raise ValueError(f"{path} is a FIFO, which may not open for hours: open it yourself, and give the open file")
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if again else os.O_TRUNC) if write else os.O_RDONLY
    return os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)


def spec_of(config: ProcessConfig, files: Mapping[str, int], *, token: str, label: Label) -> Spec:
    """All that a start needs. Raises ValueError for an option that the engine does not have."""
    options: dict[str, Any] = {option: value for option, value in config.changed().items() if option not in _OURS}
    for option in options:
        if option not in _ENGINES:
            raise ValueError(f"{option}= is not to be had on this system")
    if config.rlimits:
        import resource  # noqa: PLC0415 - POSIX only

        options["rlimits"] = {getattr(resource, f"RLIMIT_{name}"): limits for name, limits in config.rlimits.items()}
    options["stdin"] = config.takes_input or isinstance(config.stdin, bytes)
    return Spec(
        argv=shell_argv(config.command, config.executable) if config.shell else config.argv,
        env=child_environment(config.env_vars),
        cwd=config.working_dir,
        timeout=config.timeout,
        token=token,
        label=label,
        **{**options, **files},
    )
