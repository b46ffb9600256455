"""Keeps secrets out of what is written: names that read like one, and the values themselves wherever they turn up in text."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from nbprocs.model import ProcessConfig
from nbprocs.redact import MASK, is_secret_name, mask_env, mask_text, mask_words

__all__ = ["Scrubber", "config_json", "short_env"]

_TELLING = frozenset(" \t\n=:@")
_SHORTEST = 4  # characters of a value that is looked for in text: "1" would be found everywhere
WORDS = 256  # of a command that are kept
CHARACTERS = 32_768  # of a command, and of an environment's difference
_VALUE = 1_000  # characters of one value of the environment
_APART = frozenset({"name", "working_dir", "env_vars", "command", "args"})


class Scrubber:
    """Replaces known secret values in text.

    >>> Scrubber(["hunter2"]).clean("login with hunter2 and --token abc")
    'login with ••• and --token •••'
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._values = sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)

    def knows(self, text: str) -> bool:
        """Whether one of them is in it."""
        return any(value in text for value in self._values)

    def clean(self, text: str) -> str:
        """The text without them, and without what reads like a secret by itself."""
        for value in self._values:
            if value in text:
                text = text.replace(value, MASK)
        # A word that stands alone holds no option, assignment, header or login: most names need none of the patterns.
        return mask_text(text) if _TELLING.intersection(text) else text


def secret_values(env: Mapping[str, str | None]) -> list[str]:
    """The values that the names of an environment call secret, and the passwords in its URLs."""
    found = [value for name, value in env.items() if value and is_secret_name(name)]
    for value in env.values():
        if value and "://" in value and "@" in value:
            login = value.partition("://")[2].partition("@")[0]
            found.append(login.partition(":")[2])
    return found


def hidden_words(argv: tuple[str, ...], shown: tuple[str, ...]) -> list[str]:
    """What masking took out of a command's words."""
    found = []
    for word, masked in zip(argv, shown, strict=True):
        if word != masked:
            head, _, tail = masked.partition(MASK)
            value = word.removeprefix(head).removesuffix(tail.rpartition(MASK)[2])
            found += [value, *value.replace("'", " ").replace('"', " ").split()]
    return found


def short_env(env: Mapping[str, str | None]) -> dict[str, str | None]:
    """A difference of environments, masked, and bounded: a long value is cut and says so, and past 32,768 characters names are counted."""
    kept: dict[str, str | None] = {}
    room = CHARACTERS
    for at, (name, value) in enumerate(env.items()):
        if room <= 0:
            kept["…"] = f"{len(env) - at:,} more variables"
            break
        masked = mask_env({name: value if value is None else value[: 4 * _VALUE]})[name]
        if masked is not None and masked != MASK and value is not None and len(value) > _VALUE:
            digest = hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=8).hexdigest()
            masked = f"{masked[:_VALUE]}… ({len(value):,} characters, {digest})"
        kept[name[:_VALUE]] = masked
        room -= len(name) + len(masked or "")
    return kept


def config_json(config: ProcessConfig) -> tuple[dict[str, Any], list[str]]:
    """The config as what JSON can tell, without name, folder and environment, and the secrets that were left out of it.

    What can't be told by JSON, and bytes for stdin, are named under ``left_out``: a rerun asks for them.
    """
    argv = tuple(word if isinstance(word, str) else os.fsdecode(word) for word in config.argv)
    words = mask_words(argv, shell=config.shell)
    kept: dict[str, Any] = {}
    left: list[str] = []
    if words != argv:
        left.append("secrets")
    if len(words) > WORDS or sum(map(len, words)) > CHARACTERS:
        left.append("words")
        cut, room = [], CHARACTERS
        for word in words[:WORDS]:
            cut.append(word[: max(room, 0)])
            room -= len(word)
        kept["words"] = cut
        kept["hash"] = hashlib.blake2b("\0".join(argv).encode("utf-8", "replace"), digest_size=16).hexdigest()
    else:
        kept["words"] = list(words)
    for field in dataclasses.fields(config):
        if field.name in _APART:
            continue
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is None or value == default:
            continue
        try:
            kept[field.name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            left.append(field.name)
    if left:
        kept["left_out"] = left
    return kept, hidden_words(argv, words)
