"""Masks secrets in commands and environments wherever they are displayed. Pure text; nothing here starts or reads anything.

The rule of thumb of the field (GitHub Actions, supervisord, Airflow's secrets masker): a *name* that reads like a secret hides its value.
A value without a telling name can't be known; pass it by a file or by stdin.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

__all__ = ["MASK", "is_secret_name", "mask_command", "mask_env", "mask_text", "mask_words", "one_line", "readable"]

MASK = "•••"

# Patterns as text: re compiles each at its first use and keeps it; compiling them here would be a tenth of the import time.
_SENSITIVE = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|auth(?:orization)?|cookie|bearer)"
)
_NAME = rf"(?i)(?:^|[-_.]){_SENSITIVE}s?(?:$|[-_.])"
_CAMEL = r"(?<=[a-z0-9])(?=[A-Z])"
_ASSIGN = r"(?s)^(-{0,2}[\w.-]+)([=:])(.+)$"
_URL_LOGIN = r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):([^\s/@]+)@"
_HEADER = rf"(?i)((?:authorization|x-api-key|cookie|{_SENSITIVE})\s*[:=]\s*)(?:(bearer|basic)\s+)?[^\s'\"&;|]+"
_TEXT_OPTION = rf"(?i)(--?[\w-]*{_SENSITIVE}[\w-]*)(\s+|=)(?!-)('[^']*'|\"[^\"]*\"|\S+)"
_TEXT_ASSIGN = rf"(?i)\b(\w*{_SENSITIVE}\w*)=('[^']*'|\"[^\"]*\"|[^\s;&|]+)"

# What must not reach a terminal or a page as it is: controls but tab and newline, surrogates, and what reorders or hides text.
_UNSHOWN = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"


def is_secret_name(name: str) -> bool:
    """True for ``DB_PASSWORD``, ``--token``, ``apiKey``; False for ``PWD`` alone and for ``compass``."""
    if name in {"PWD", "OLDPWD"}:
        return False
    return bool(re.search(_NAME, re.sub(_CAMEL, "_", name.lstrip("-"))))


def mask_text(text: str) -> str:
    """Mask what reads like a secret in free text, such as a shell line."""
    text = re.sub(_URL_LOGIN, rf"\1:{MASK}@", text)
    text = re.sub(_TEXT_OPTION, rf"\1\2{MASK}", text)
    text = re.sub(_TEXT_ASSIGN, rf"\1={MASK}", text)
    return re.sub(_HEADER, lambda m: f"{m[1]}{MASK}", text)


def readable(text: str) -> str:
    r"""The same with escapes for what a terminal would obey, or no file can hold: ``\\x1b``, ``\\xe9`` for a byte that is not UTF-8.

    >>> print(readable("\x1b[31mcaf\udce9"))
    \x1b[31mcaf\xe9
    """
    return re.sub(_UNSHOWN, lambda found: _escaped(ord(found[0])), text)


def _escaped(number: int) -> str:
    if 0xDC80 <= number <= 0xDCFF:  # noqa: PLR2004 - where os.fsdecode puts the bytes that are no text
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"  # noqa: PLR2004 - two digits do


def _quoted(word: str) -> str:
    import shlex  # noqa: PLC0415 - importing stays light

    if re.search(_UNSHOWN, word):
        return f"$'{readable(word.replace(chr(92), chr(92) * 2).replace(chr(39), chr(92) + chr(39)))}'"
    return shlex.quote(word)


def mask_command(argv: Iterable[str], *, shell: bool = False) -> str:
    """The command line quoted for a shell, with the values of secret-looking options masked."""
    return _masked(tuple(argv), shell)


def mask_words(argv: Iterable[str], *, shell: bool = False) -> tuple[str, ...]:
    """The words of a command, not quoted, with the values of secret-looking options masked; a shell line stays one word.

    >>> mask_words(("mysql", "--password", "abc", "--host=db"))
    ('mysql', '--password', '•••', '--host=db')
    """
    return _masked_words(tuple(argv), shell)


@functools.lru_cache(maxsize=512)  # a pool or a queue shows the same few commands again and again
def _masked(words: tuple[str, ...], shell: bool) -> str:  # noqa: FBT001 - private
    if shell:
        return readable(mask_text(" ".join(words)))
    masked = _masked_words(words, shell)
    return " ".join(_quoted(word) if word == shown else readable(shown) for word, shown in zip(words, masked, strict=True))


def _masked_words(words: tuple[str, ...], shell: bool) -> tuple[str, ...]:  # noqa: FBT001 - private
    if shell:
        return tuple(mask_text(word) for word in words)
    shown: list[str] = []
    hide_next = False
    for word in words:
        if hide_next and not word.startswith("-"):
            shown.append(MASK)
            hide_next = False
            continue
        hide_next = word.startswith("-") and "=" not in word and is_secret_name(word)
        assigned = re.match(_ASSIGN, word)
        if assigned and is_secret_name(assigned[1]):
            shown.append(f"{assigned[1]}{assigned[2]}{MASK}")
        else:
            shown.append(re.sub(_HEADER, lambda m: f"{m[1]}{MASK}", re.sub(_URL_LOGIN, rf"\1:{MASK}@", word)))
    return tuple(shown)


def one_line(command: str, *, limit: int = 100) -> str:
    """A command for a line of text: line breaks as spaces, cut to ``limit`` characters."""
    line = " ".join(command.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def mask_env(env: Mapping[str, str | None]) -> dict[str, str | None]:
    """The same mapping with the values of secret-looking names masked, and passwords in URLs."""
    return {
        name: value if value is None else MASK if is_secret_name(name) else re.sub(_URL_LOGIN, rf"\1:{MASK}@", value)
        for name, value in env.items()
    }
