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
_NAME = rf"(?i)(?:^|[-_.]){_SENSITIVE}s?(?:$|[-_.])|(?:password|passwd|passphrase|apikey|secret|token)$"
_COUNT = r"(?i)(?:^|[-_.])(?:max|min|num|n)[-_.](?:\w+[-_.])?tokens$"  # how many tokens a language model may write is no secret
_CAMEL = r"(?<=[a-z0-9])(?=[A-Z])"
_ASSIGN = r"(?s)^(-{0,2}[\w.-]+)([=:])(.+)$"
_VALUE = r"'[^']*'|\"(?:[^\"\\]|\\.)*\"|[^\s;&|]+"
_HEADER = rf"(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]*(?:{_SENSITIVE}|key)[\w-]*|private-token|api-?key"

_URL_LOGIN = r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*):([^\s/@]+)@"
_RULES = (  # what is found, and what of it stays
    (_URL_LOGIN, rf"\1:{MASK}@"),
    (r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/:@'\"]{16,}@", rf"\1{MASK}@"),  # a token alone in front of the host
    (rf"(?i)([?&](?:[\w.-]*{_SENSITIVE}[\w.-]*|key|sig|signature|x-amz-\w+)=)[^&\s'\"#]+", rf"\1{MASK}"),
    (r"(?i)(hooks\.slack\.com/services/|/api/webhooks/|api\.telegram\.org/bot)[^\s'\"]+", rf"\1{MASK}"),
    (
        r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|hf_|pypi-)[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
        MASK,
    ),
    (rf"(?i)((\\?[\"'])\w*{_SENSITIVE}\w*\2\s*:\s*)(\\?[\"'])(?:(?!\3).)*\3", rf"\1\3{MASK}\3"),  # JSON
    (rf"(?i)([\"']\w*{_SENSITIVE}\w*[\"']\s*:\s*)(?![\"'\\])[^\s,}}\]]+", rf"\1{MASK}"),
)
_QUOTED_HEADER = rf"(?i)([\"'])({_HEADER})(\s*:\s*)(?:(?!\1).)*\1"
_BARE_HEADER = rf"(?i)(?<![\w-])({_HEADER})(\s*:\s*)[^\n'\"|&;]+"
_TEXT_OPTION = rf"(?i)(?<![\w-])(--?[\w-]*{_SENSITIVE}[\w-]*)(\s+|=)(?!--|-\w(?:\s|$))({_VALUE})"
_TEXT_ASSIGN = rf"(?i)\b(\w*{_SENSITIVE}\w*)(=|:\s*)(?!//)({_VALUE})"
_TEXT_LOGIN = r"(?<!\S)(-u|-U|--user|--proxy-user)(\s+|=)(?!\d+:\d+(?:\s|$))(['\"]?[^\s:'\"]+):[^\s'\"]+"
_LOGINS = ("-u", "-U", "--user", "--proxy-user", "--login")
_ATTACHED = dict.fromkeys(("mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "sshpass", "7z", "7za"), "-p")
_FOLLOWING = {"sshpass": ("-p",), "curl": ("-b",), "redis-cli": ("-a",), "ldapsearch": ("-w",), "zip": ("-P",)}

# What must not reach a terminal or a page as it is: controls but tab and newline, surrogates, and what reorders or hides text.
_UNSHOWN = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"


def is_secret_name(name: str) -> bool:
    """True for ``DB_PASSWORD``, ``PGPASSWORD``, ``--token``, ``apiKey``; False for ``PWD`` alone, ``compass`` and ``max_tokens``."""
    if name in {"PWD", "OLDPWD"}:
        return False
    words = re.sub(_CAMEL, "_", name.lstrip("-"))
    return bool(re.search(_NAME, words)) and not re.search(_COUNT, words)


def mask_text(text: str) -> str:
    """Mask what reads like a secret in free text, such as a shell line, a URL, a JSON body or a header."""
    text = _known(text)
    text = re.sub(_QUOTED_HEADER, rf"\1\2\3{MASK}\1", text)
    text = re.sub(_BARE_HEADER, rf"\1\2{MASK}", text)
    text = re.sub(_TEXT_LOGIN, rf"\1\2\3:{MASK}", text)
    text = re.sub(_TEXT_OPTION, lambda m: f"{m[1]}{m[2]}{MASK}" if is_secret_name(m[1]) else m[0], text)
    return re.sub(_TEXT_ASSIGN, lambda m: f"{m[1]}{m[2]}{MASK}" if is_secret_name(m[1]) else m[0], text)


def _known(text: str) -> str:
    """Mask what is a secret by its shape: logins and tokens in URLs, JSON values, tokens of well-known services."""
    for found, kept in _RULES:
        text = re.sub(found, kept, text)
    return text


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
    program = words[0].rsplit("/", 1)[-1] if words else ""
    before = ""
    for word in words:
        shown.append(_masked_word(word, before, program))
        before = word
    return tuple(shown)


def _masked_word(word: str, before: str, program: str) -> str:
    """One word, behind another."""
    asked = before.startswith("-") and "=" not in before and (is_secret_name(before) or before in _FOLLOWING.get(program, ()))
    if asked and not re.match(r"--\w|-\w$", word):
        return MASK
    attached = _ATTACHED.get(program)
    if attached and word.startswith(attached) and len(word) > len(attached):
        return f"{attached}{MASK}"
    login = re.match(r"(?s)((?:--(?:proxy-)?user=|-u)?[^:\s]+):(.+)$", word)
    if login and (before in _LOGINS or re.match("--(?:proxy-)?user=|-u[^-]", word)) and not re.match(r"[\d:]+$", word):
        return f"{login[1]}:{MASK}"
    assigned = re.match(_ASSIGN, word)
    if assigned and is_secret_name(assigned[1]) and not assigned[3].startswith("//"):
        return f"{assigned[1]}{assigned[2]}{MASK}"
    masked = _known(word)
    masked = re.sub(rf"(?is)^({_HEADER})(\s*:\s*).+$", rf"\1\2{MASK}", masked)
    return mask_text(masked) if any(mark in masked for mark in " \n&;") else masked


def one_line(command: str, *, limit: int = 100) -> str:
    """A command for a line of text: line breaks as spaces, cut to ``limit`` characters."""
    line = " ".join(command.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def mask_env(env: Mapping[str, str | None]) -> dict[str, str | None]:
    """The same mapping with the values of secret-looking names masked, and what is a secret by its shape, such as logins in URLs."""
    return {name: value if value is None else MASK if is_secret_name(name) else _known(value) for name, value in env.items()}
