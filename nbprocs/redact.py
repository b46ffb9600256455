"""Masks secrets in commands and environments wherever they are displayed. Pure text; nothing here starts or reads anything.

The rule of thumb of the field (GitHub Actions, supervisord, Airflow's secrets masker): a *name* that reads like a secret hides its value.
A value without a telling name can't be known; pass it by a file or by stdin.
"""

import functools
import re
import shlex
from collections.abc import Iterable, Mapping

__all__ = ["MASK", "is_secret_name", "mask_command", "mask_env", "mask_text", "one_line"]

MASK = "•••"

_SENSITIVE = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|auth(?:orization)?|cookie|bearer)"
)
_NAME = re.compile(rf"(?:^|[-_.]){_SENSITIVE}s?(?:$|[-_.])", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGN = re.compile(r"^(-{0,2}[\w.-]+)([=:])(.+)$", re.DOTALL)
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):([^\s/@]+)@", re.IGNORECASE)
_HEADER = re.compile(rf"((?:authorization|x-api-key|cookie|{_SENSITIVE})\s*[:=]\s*)(?:(bearer|basic)\s+)?[^\s'\"&;|]+", re.IGNORECASE)
_TEXT_OPTION = re.compile(rf"(--?[\w-]*{_SENSITIVE}[\w-]*)(\s+|=)(?!-)('[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE)
_TEXT_ASSIGN = re.compile(rf"\b(\w*{_SENSITIVE}\w*)=('[^']*'|\"[^\"]*\"|[^\s;&|]+)", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """True for ``DB_PASSWORD``, ``--token``, ``apiKey``; False for ``PWD`` alone and for ``compass``."""
    if name in {"PWD", "OLDPWD"}:
        return False
    return bool(_NAME.search(_CAMEL.sub("_", name.lstrip("-"))))


def mask_text(text: str) -> str:
    """Mask what reads like a secret in free text, such as a shell line."""
    text = _URL_PASSWORD.sub(rf"\1:{MASK}@", text)
    text = _TEXT_OPTION.sub(rf"\1\2{MASK}", text)
    text = _TEXT_ASSIGN.sub(rf"\1={MASK}", text)
    return _HEADER.sub(lambda m: f"{m[1]}{MASK}", text)


def mask_command(argv: Iterable[str], *, shell: bool = False) -> str:
    """The command line quoted for a shell, with the values of secret-looking options masked."""
    return _masked(tuple(argv), shell)


@functools.lru_cache(maxsize=512)  # a pool or a queue shows the same few commands again and again
def _masked(words: tuple[str, ...], shell: bool) -> str:  # noqa: FBT001 - private
    if shell:
        return mask_text(" ".join(words))
    shown: list[str] = []
    hide_next = False
    for word in words:
        if hide_next and not word.startswith("-"):
            shown.append(MASK)
            hide_next = False
            continue
        hide_next = word.startswith("-") and "=" not in word and is_secret_name(word)
        assigned = _ASSIGN.match(word)
        if assigned and is_secret_name(assigned[1]):
            shown.append(f"{assigned[1]}{assigned[2]}{MASK}")
        else:
            masked = _HEADER.sub(lambda m: f"{m[1]}{MASK}", _URL_PASSWORD.sub(rf"\1:{MASK}@", word))
            shown.append(masked if masked != word else shlex.quote(word))
    return " ".join(shown)


def one_line(command: str, *, limit: int = 100) -> str:
    """A command for a line of text: line breaks as spaces, cut to ``limit`` characters."""
    line = " ".join(command.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def mask_env(env: Mapping[str, str | None]) -> dict[str, str | None]:
    """The same mapping with the values of secret-looking names masked, and passwords in URLs."""
    return {
        name: value if value is None else MASK if is_secret_name(name) else _URL_PASSWORD.sub(rf"\1:{MASK}@", value)
        for name, value in env.items()
    }
