"""ProcessConfig: what to run, and how. The one currency: run, spawn, schedule, pool workers, magics, form, cluster and records take it.

An option is declared once, with its check, its help and its label; ``Options`` beside it is for type checkers, and a test holds the two
together. ``config_from`` makes the config of a call::

    spawn("make", "-j4", timeout=60)        words and keywords
    spawn(config, timeout=None)             a config, with keywords that say something else: None takes a timeout back, UNSET says nothing
"""

from __future__ import annotations

import codecs
import enum
import functools
import inspect
import os
import signal as signals
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Protocol, TypedDict, TypeGuard, TypeVar, Unpack

from nbprocs.checks import data, flag, mapping, name, one_of, path, refuse, seconds, text, whole, word, words
from nbprocs.guard import WrongType, WrongValue
from nbprocs.notify.model import Notify, as_notify
from nbprocs.redact import mask_command, mask_env, mask_text, readable

__all__ = [
    "UNSET",
    "Command",
    "CommonOptions",
    "Data",
    "HasDescriptor",
    "Options",
    "ProcessConfig",
    "Unset",
    "Word",
    "config_from",
    "has_descriptor",
    "signal_number",
    "takes_config",
]

_SHOWN = 500  # characters of a command that are ever displayed
_PIPE, _STDOUT, _DEVNULL = -1, -2, -3  # what subprocess calls them
_STDIO = 3  # descriptors below are stdin, stdout and stderr

Data = bytes | bytearray | memoryview | str  # what is written to a stdin; anything with a buffer does
Word = str | bytes | os.PathLike[str] | os.PathLike[bytes]
F = TypeVar("F", bound=Callable[..., Any])


class Unset(enum.Enum):
    """The type of UNSET: a keyword that says nothing, where None says something."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


class HasDescriptor(Protocol):
    """An open file, a socket, the end of a pipe."""

    def fileno(self) -> int:
        """Its descriptor."""


def has_descriptor(value: object) -> TypeGuard[HasDescriptor]:
    """Also what passes everything on to a file, as NamedTemporaryFile's does: to isinstance it is none from Python 3.12 on."""
    return not isinstance(value, type) and callable(getattr(value, "fileno", None))


# --- the checks of single options ----------------------------------------------------------------------------------------


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda argument, value: None if value is None else check(argument, value)


def _command(argument: str, value: object) -> str:
    if not isinstance(value, (str, bytes, os.PathLike)):
        refuse(TypeError, argument, "text, bytes or a path (its arguments follow one by one, or as args)", value)
    return word(argument, value)


def _env_vars(argument: str, value: object) -> Mapping[str, str | None]:
    found = {}
    for key, setting in mapping(argument, value).items():
        variable = word(f"a name in {argument}", key)
        if not variable or "=" in variable:
            refuse(ValueError, f"a name in {argument}", "text without =", key)
        if setting is not None and not isinstance(setting, (str, bytes, os.PathLike)):
            refuse(TypeError, f"{argument}[{variable!r}]", "text, bytes, a path, or None to remove it", setting)
        found[variable] = None if setting is None else word(f"{argument}[{variable!r}]", setting)
    return MappingProxyType(found)


def _stdin(argument: str, value: object) -> object:
    if value is None or isinstance(value, bool) or has_descriptor(value):
        return bool(value) if value is None or isinstance(value, bool) else value
    if type(value) is int and value in {_PIPE, _DEVNULL}:
        return value == _PIPE
    if isinstance(value, os.PathLike):
        from pathlib import Path  # noqa: PLC0415 - `import nbprocs` stays light

        return Path(path(argument, value))  # not text: what is kept is given again, by replace() and by a pickle
    if isinstance(value, (str, int)):
        what = "True (for send), False, bytes, an open file, a Path or DEVNULL"
        refuse(TypeError, argument, f"{what} (text goes as input= of run(), or encoded)", value)
    return data(argument, value)


def _program(argument: str, value: object) -> str:
    return word(argument, value) or refuse(ValueError, argument, "a program by name or path", value)


def _output(argument: str, value: object) -> object:
    if value is None or has_descriptor(value) or (type(value) is int and value == _PIPE):
        return None if isinstance(value, int) else value
    if type(value) is int and value == _DEVNULL:
        return os.devnull
    if type(value) is int and value == _STDOUT:
        refuse(ValueError, argument, "None, a path, an open file or DEVNULL (merge_stderr=True sends stderr along with stdout)", value)
    if not isinstance(value, (str, bytes, os.PathLike)):
        refuse(TypeError, argument, "None (captured), a path, an open file or DEVNULL", value)
    return path(argument, value)


def _encoding(argument: str, value: object) -> str:
    try:
        "".encode(name(argument, value))  # refuses what is no encoding of text, such as "hex"
        return codecs.lookup(str(value)).name
    except LookupError:
        refuse(ValueError, argument, "the name of an encoding", value)


def _errors(argument: str, value: object) -> str:
    try:
        codecs.lookup_error(name(argument, value))
    except LookupError:
        refuse(ValueError, argument, "'replace', 'strict', 'ignore', 'surrogateescape' or 'backslashreplace'", value)
    return str(value)


def _inherit(argument: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        refuse(TypeError, argument, "a list of descriptors or open files", value)
    found = [item.fileno() if has_descriptor(item) else item for item in value]
    return tuple(whole(f"{argument}[{i}]", item, least=_STDIO) for i, item in enumerate(found))


def _account(argument: str, value: object) -> str | int:
    if isinstance(value, str):
        return name(argument, value)
    return whole(argument, value, least=0, most=2**32 - 2)


def _accounts(argument: str, value: object) -> tuple[str | int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        refuse(TypeError, argument, "a list of names or numbers of groups", value)
    return tuple(_account(f"{argument}[{i}]", item) for i, item in enumerate(value))


def _rlimits(argument: str, value: object) -> Mapping[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for key, limit in mapping(argument, value).items():
        import resource  # noqa: PLC0415 - POSIX only

        kind = text(f"a name in {argument}", key).upper().removeprefix("RLIMIT_")
        if not hasattr(resource, f"RLIMIT_{kind}"):
            known = ", ".join(sorted(item.removeprefix("RLIMIT_") for item in dir(resource) if item.startswith("RLIMIT_")))
            refuse(ValueError, f"a name in {argument}", f"one of {known}", key)
        pair = tuple(limit) if isinstance(limit, (tuple, list)) else (limit, limit)
        if len(pair) != 2:  # noqa: PLR2004 - soft and hard
            refuse(ValueError, f"{argument}[{key!r}]", "a number, or a soft and a hard limit", limit)
        soft, hard = (whole(f"{argument}[{key!r}]", -1 if item is None else item, least=-1) for item in pair)
        if hard >= 0 and not 0 <= soft <= hard:
            refuse(ValueError, f"{argument}[{key!r}]", "a soft limit not above the hard one", limit)
        found[kind] = (soft, hard)
    return MappingProxyType(found)


def signal_number(argument: str, value: object) -> int:
    """A signal by its number, or by its name with or without SIG."""
    if isinstance(value, str):
        known = value.upper() if value.upper().startswith("SIG") else f"SIG{value.upper()}"
        if known not in signals.Signals.__members__:
            refuse(ValueError, argument, "a signal, such as 'SIGINT'", value)
        return signals.Signals[known]
    found = whole(argument, value)
    if found not in signals.valid_signals():
        refuse(ValueError, argument, "a signal, such as 'SIGINT'", value)
    return signals.Signals(found) if found in set(signals.Signals) else found


def _success_codes(argument: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        refuse(TypeError, argument, "a list of exit codes", value)
    found = {whole(f"an exit code in {argument}", item, least=0, most=2**32 - 1) for item in value}
    if not found:
        refuse(ValueError, argument, "a list of at least one exit code", value)
    return tuple(sorted(found))


# ruff: noqa: RUF009 - an option is declared by a function
def _option(default: Any, check: Callable[[str, Any], Any], *, label: str, help: str) -> Any:  # noqa: A002 - argparse's word
    about = {"check": check, "label": label, "help": help}
    return (
        field(default_factory=lambda: default, metadata=about) if isinstance(default, Mapping) else field(default=default, metadata=about)
    )


# --- the config ------------------------------------------------------------------------------------------------------------


class CommonOptions(TypedDict, total=False):
    """The options of ProcessConfig as keywords, for type checkers: the same names, with all that each takes. Those that a task has, too."""

    working_dir: Word | None
    env_vars: Mapping[str, str | None] | None
    stdin: object
    stdout: object
    stderr: object
    merge_stderr: bool
    encoding: str
    errors: str
    executable: Word | None
    title: str | None
    shell: bool
    pty: bool
    inherit: Iterable[int | HasDescriptor]
    user: str | int | None
    extra_groups: Iterable[str | int] | None
    umask: int | None
    nice: int
    rlimits: Mapping[str, int | tuple[int, int] | None] | None
    stop_signal: int | str
    stop_scope: str
    success_codes: Iterable[int]
    output_limit: int | None
    notify: object
    detach: bool


class Options(CommonOptions, total=False):
    """All of them; of a task these three mean more."""

    timeout: float | None
    name: str | None
    group: str | int | None


@dataclass(frozen=True, slots=True, kw_only=True, init=False, repr=False)
class ProcessConfig:
    """What to run, and how. Immutable, so that a restart runs the very same thing. Wrong types and values are refused here.

    With ``shell=True`` the command is a line for ``/bin/sh -c`` (``cmd /c`` on Windows) and ``args`` must be empty. Relative paths are
    made absolute when the config is made.

    >>> ProcessConfig(command="mysql", args=("--password", "secret"), timeout=5)
    ProcessConfig(command='mysql --password •••', timeout=5)
    >>> ProcessConfig(command="make", cwd="src")
    Traceback (most recent call last):
    nbprocs.guard.WrongType: there is no option cwd=; it is working_dir= here
    """

    command: str = _option(MISSING, _command, label="Command", help="a program by name or path, or a shell line with shell=True")
    args: tuple[str, ...] = _option((), words, label="Arguments", help="its arguments: text, bytes or paths")
    working_dir: str | None = _option(
        None, _optional(path), label="Working directory", help="the folder to run in; by default the kernel's own at the start"
    )
    env_vars: Mapping[str, str | None] = _option(
        MappingProxyType({}), _env_vars, label="Environment", help="what to change in the kernel's environment; None removes a variable"
    )
    stdin: Any = _option(
        False, _stdin, label="Input", help="True: open for send(); False: end of file; bytes, an open file or a Path: read from it"
    )
    stdout: Any = _option(None, _output, label="Output", help="None: captured; a path (written anew), an open file or DEVNULL")
    stderr: Any = _option(None, _output, label="Error output", help="as stdout")
    merge_stderr: bool = _option(False, flag, label="Merge stderr", help="stderr goes where stdout goes, in the order written")
    encoding: str = _option("utf-8", _encoding, label="Encoding", help="of its text, in both directions")
    errors: str = _option("replace", _errors, label="Undecodable bytes", help="what becomes of bytes that are not in that encoding")
    executable: str | None = _option(
        None, _optional(_program), label="Executable", help="the program really run, where it is to be called something else"
    )
    timeout: float | None = _option(None, seconds, label="Timeout", help="seconds after which its whole tree is ended")
    name: str | None = _option(
        None, _optional(name), label="Name", help="unique among live processes; by default the program's name and a number"
    )
    title: str | None = _option(None, _optional(text), label="Title", help="what is shown in place of the command")
    shell: bool = _option(False, flag, label="Shell", help="run the command as a line of /bin/sh")
    pty: bool = _option(False, flag, label="Terminal", help="give it a pseudo-terminal; stdout and stderr are one stream then")
    inherit: tuple[int, ...] = _option((), _inherit, label="Descriptors", help="descriptors that it keeps open under the same number")
    user: str | int | None = _option(None, _optional(_account), label="User", help="run as this user; needs the right to")
    group: str | int | None = _option(None, _optional(_account), label="Group", help="run as this group")
    extra_groups: tuple[str | int, ...] | None = _option(None, _optional(_accounts), label="More groups", help="supplementary groups")
    umask: int | None = _option(
        None, _optional(functools.partial(whole, least=0, most=0o777)), label="Umask", help="mask of the files that it makes"
    )
    nice: int = _option(0, functools.partial(whole, least=-20, most=19), label="Niceness", help="added to its priority; 19 is least")
    rlimits: Mapping[str, tuple[int, int]] = _option(
        MappingProxyType({}), _rlimits, label="Limits", help="resource limits by name, such as {'AS': 2 << 30, 'NOFILE': (256, 512)}"
    )
    stop_signal: int = _option(signals.SIGTERM, signal_number, label="Stop signal", help="what asks it to end; SIGKILL follows after grace")
    stop_scope: str = _option(
        "tree",
        functools.partial(one_of, choices=("tree", "leader")),
        label="Who hears the stop signal",
        help="who is sent the stop signal: the whole 'tree' or the 'leader'; what is left at the end of grace is ended in any case",
    )
    success_codes: tuple[int, ...] = _option((0,), _success_codes, label="Success codes", help="exit codes that count as success")
    output_limit: int | None = _option(
        None,
        _optional(functools.partial(whole, least=1)),
        label="Output in memory",
        help="bytes of output kept in memory a stream; more goes to a temporary file; None: the manager's",
    )
    notify: Notify | None = _option(
        None, as_notify, label="Tell me", help="at its end: True (the notebook), a URL (Slack, ntfy, JSON), a callable, or a Notify"
    )
    detach: bool = _option(False, flag, label="Detach", help="it outlives the kernel, and the next one can adopt it")

    def __init__(self, *, command: Word, args: Iterable[Word] = (), **options: Unpack[Options]) -> None:
        """Check and freeze everything. Raises TypeError or ValueError, which name the option and what it takes."""
        given: Mapping[str, Any] = {"command": command, "args": args, **options}
        for option, default, check, put in _checks():
            value = given.get(option, UNSET)
            put(self, default if value is UNSET or value is default else check(option, value))
        if options and not options.keys() <= _NAMES:
            raise _unknown(options.keys() - _NAMES)
        if self.shell and self.args:
            raise WrongValue("with shell=True the command is one line; put the arguments into it (shlex.join helps)")
        if self.merge_stderr and self.stderr is not None:
            raise WrongValue("merge_stderr=True sends stderr where stdout goes; leave stderr= away")
        if self.pty and not (self.stdout is self.stderr is None):
            raise WrongValue("with pty=True the output is the terminal's; leave stdout= and stderr= away")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by what differs from the defaults: a mapping proxy can't be pickled."""
        return _config_of, (self.changed(),)

    def changed(self) -> dict[str, Any]:
        """The command and the options that differ from their defaults, as plain values; ``ProcessConfig(**config.changed())`` is equal.

        >>> ProcessConfig(command="ls", timeout=5).changed()
        {'command': 'ls', 'timeout': 5}
        """
        found = {}
        for option, default, _, _ in _checks():
            value = getattr(self, option)
            if value is not default and value != default:
                found[option] = value
        return {option: dict(value) if isinstance(value, Mapping) else value for option, value in found.items()}

    def replace(self, **options: Any) -> ProcessConfig:
        """The same with other options; UNSET changes nothing. Raises as the constructor."""
        given = {option: value for option, value in options.items() if value is not UNSET}
        return ProcessConfig(**{**{option: getattr(self, option) for option, _, _, _ in _checks()}, **given}) if given else self

    @property
    def argv(self) -> tuple[str, ...]:
        """The argument vector; for a shell line the line itself as the only item."""
        return (self.command, *self.args)

    @property
    def takes_input(self) -> bool:
        """Whether its stdin is open for send()."""
        return self.stdin is True

    @property
    def display(self) -> str:
        """The title, or the command as a person would type it, passwords and tokens masked; a very long one is cut, with what it had."""
        if self.title is not None:
            return readable(mask_text(self.title))[:_SHOWN]
        argv = self.argv
        room, shown = _SHOWN, 0
        while shown < len(argv) and room > 0:
            room -= len(argv[shown])
            shown += 1
        line = mask_command((item[:_SHOWN] for item in argv[:shown]), shell=self.shell)
        if shown == len(argv) and room >= 0:
            return line
        return f"{line[:_SHOWN]}… ({len(argv):,} words, {sum(map(len, argv)):,} characters)"

    def __repr__(self) -> str:
        """Masked: a config is often the last line of a cell."""
        shown = {"command": self.display, **self.changed()}
        shown["command"] = self.display
        shown.pop("args", None)
        shown.pop("title", None)
        if self.env_vars:
            shown["env_vars"] = mask_env(self.env_vars)
        if isinstance(self.stdin, bytes):
            shown["stdin"] = f"<{len(self.stdin):,} bytes>"
        return f"ProcessConfig({', '.join(f'{option}={value!r}' for option, value in shown.items())})"


@functools.cache
def _checks() -> tuple[tuple[str, Any, Callable[[str, Any], Any], Callable[[ProcessConfig, Any], None]], ...]:
    """Of each option its name, its default, its check, and what sets it in an object that is frozen otherwise."""
    return tuple(
        (
            f.name,
            f.default if f.default_factory is MISSING else f.default_factory(),
            f.metadata["check"],
            vars(ProcessConfig)[f.name].__set__,
        )
        for f in fields(ProcessConfig)
    )


_NAMES = frozenset(f.name for f in fields(ProcessConfig))


def _config_of(state: dict[str, Any]) -> ProcessConfig:
    return ProcessConfig(**state)


# --- the config of a call --------------------------------------------------------------------------------------------------

Command = Word | ProcessConfig

_WORDS = {
    "cwd": "it is working_dir= here",
    "env": "it is env_vars= here, and holds only what is to be changed in the kernel's environment",
    "text": "output is kept as bytes; result.text and proc.lines() give text, in encoding=",
    "universal_newlines": "output is kept as bytes; result.text and proc.lines() give text, in encoding=",
    "capture_output": "output is always captured, unless stdout= or stderr= names a file",
    "pass_fds": "it is inherit= here",
    "close_fds": "nothing is handed on but what inherit= lists",
    "start_new_session": "every process gets a session of its own",
    "process_group": "every process gets a session of its own",
    "preexec_fn": "there is user=, group=, umask=, nice=, rlimits= instead",
    "bufsize": "there is nothing to set",
    "input": "it is for run(); stdin=b'…' does the same everywhere",
}


def _unknown(names: Iterable[str]) -> TypeError:
    wrong = min(names)
    hint = _WORDS.get(wrong)
    if hint is None:
        import difflib  # noqa: PLC0415 - `import nbprocs` stays light

        close = difflib.get_close_matches(wrong, _NAMES, n=1)
        hint = f"did you mean {close[0]}=?" if close else f"the options are {', '.join(sorted(_NAMES))}"
    return WrongType(f"there is no option {wrong}=; {hint}")


def config_from(command: Command, args: Iterable[Word] = (), options: Mapping[str, Any] = MappingProxyType({})) -> ProcessConfig:
    """The config of a call: of its words and keywords, or a given one with the keywords that say something else.

    A keyword that is UNSET says nothing. Words behind a config are added to its arguments. Raises TypeError and ValueError as
    ProcessConfig does.

    >>> config = ProcessConfig(command="make", args=["-j4"], timeout=60)
    >>> config_from(config, ["all"], {"timeout": None, "nice": 5})
    ProcessConfig(command='make -j4 all', nice=5)
    """
    given = {option: value for option, value in options.items() if value is not UNSET}
    if not isinstance(command, ProcessConfig):
        return ProcessConfig(command=command, args=args, **given)
    if args:
        given["args"] = (*command.args, *words("args", args))
    return command.replace(**given)


def takes_config(function: F) -> F:
    """For a function with ``**options: Unpack[Options]``: its signature and its docstring (at ``{options}``) get the declared options."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    named = {p.name for p in own}
    options = [f for f in fields(ProcessConfig) if f.name not in {"command", "args", *named}]
    more = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=UNSET, annotation=f.type) for f in options]
    function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    if function.__doc__ is not None and sys.flags.optimize < 2:  # noqa: PLR2004 - -OO has no docstrings
        lines = "\n            ".join(f"{f.name}: {f.metadata['help']}." for f in options)
        function.__doc__ = function.__doc__.replace("{options}", lines)
    return function
