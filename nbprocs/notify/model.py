"""Values: what is told of an end, and whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from nbprocs.checks import flag, refuse, whole

__all__ = ["Notice", "Notify", "as_notify", "masked", "url_of"]

Level = Literal["success", "warning", "error"]
SCHEMES = ("http", "https", "ntfy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One end, as it is told. Secrets in it are masked by whoever makes it.

    >>> Notice(title="train completed after 3.2 s", level="success", process_id="1").plain()["level"]
    'success'
    """

    title: str  # one line
    level: Level
    process_id: str  # of the process, task or map
    body: str = ""  # the last lines
    name: str = ""
    kind: str = "process"  # or "task", "map", "recovery"
    exit_code: int | None = None
    signal: str | None = None  # its name
    seconds: float | None = None  # it took
    at: float = field(default_factory=time.time)  # seconds since the epoch

    def plain(self) -> dict[str, Any]:
        """As JSON has it: what webhooks and front ends get."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def bad(self) -> bool:
        """Whether it failed; one that its owner stopped did not."""
        return self.level == "error"


Target = str | Callable[[Notice], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Whom to tell, and when; ``notify=`` takes one, or True, a URL, a callable, or a list of these.

    A URL gets a POST: ``https://hooks.slack.com/…`` as Slack has it, ``https://ntfy.sh/topic`` and ``ntfy://own.host/topic`` as ntfy has
    it, any other ``Notice.plain()`` as JSON. A callable, sync or async, gets the Notice.

    >>> Notify(to="https://example.org/hook/secret", failures_only=True)
    Notify(to=('https://example.org/…',), failures_only=True)
    """

    to: tuple[Target, ...] = ()
    notebook: bool = True  # also the notebook's front end
    failures_only: bool = False
    lines: int = 10  # of the output's end

    def __init__(self, *, to: Target | Iterable[Target] = (), notebook: bool = True, failures_only: bool = False, lines: int = 10) -> None:
        """Raises TypeError or ValueError for what can't be told."""
        several = isinstance(to, Iterable) and not isinstance(to, (str, bytes)) and not callable(to)
        targets = tuple(to) if several else (to,)  # type: ignore[arg-type]
        object.__setattr__(self, "to", tuple(_target("to", target) for target in targets))
        object.__setattr__(self, "notebook", flag("notebook", notebook))
        object.__setattr__(self, "failures_only", flag("failures_only", failures_only))
        object.__setattr__(self, "lines", whole("lines", lines, least=0, most=1000))

    def __repr__(self) -> str:
        shown = {"notebook": self.notebook, "failures_only": self.failures_only, "lines": self.lines}
        said = [f"to={tuple(masked(target) if isinstance(target, str) else target for target in self.to)!r}"] if self.to else []
        said += [f"{name}={value!r}" for name, value in shown.items() if value != Notify.__dataclass_fields__[name].default]
        return f"Notify({', '.join(said)})"

    def wants(self, notice: Notice) -> bool:
        """Whether that is to be told."""
        return notice.bad or not self.failures_only

    def stored(self) -> dict[str, Any]:
        """As JSON has it; ``as_notify`` takes it again. Raises TypeError for a callable."""
        if not all(isinstance(target, str) for target in self.to):
            raise TypeError("a callable of notify= can't be stored: no later kernel has it; give a URL or True")
        return {"to": list(self.to), "notebook": self.notebook, "failures_only": self.failures_only, "lines": self.lines}


def masked(url: str) -> str:
    """A webhook's URL without what is secret in it, its path: ``https://hooks.slack.com/…``."""
    from urllib.parse import urlsplit  # noqa: PLC0415 - `import nbprocs` stays light

    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}/…"


def _target(argument: str, value: object) -> Target:
    return value if callable(value) else url_of(argument, value)


def url_of(argument: str, value: object) -> str:
    """A webhook's URL. Raises TypeError or ValueError, which does not show it: its path is a secret."""
    if not isinstance(value, str):
        refuse(TypeError, argument, "a URL, a callable, or a list of these", value)
    from urllib.parse import urlsplit  # noqa: PLC0415

    url = value
    try:
        parts = urlsplit(url)
        known = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0 and url.isascii() and url.isprintable()
    except ValueError:
        known = False
    if not known or " " in url:
        refuse(ValueError, argument, "a URL that begins with http://, https:// or ntfy://", "…" if len(url) > len("https://") else url)
    return url


def as_notify(argument: str, value: object) -> Notify | None:
    """What ``notify=`` stands for: True, a Notify, a URL, a callable, a list of these; None and False are nobody.

    >>> as_notify("notify", True)
    Notify()
    """
    if value is None or value is False:
        return None
    if value is True:
        return Notify()
    if isinstance(value, Notify):
        return value
    if isinstance(value, dict) and value.keys() == Notify.__dataclass_fields__.keys():  # as stored() gave it
        return Notify(**value)
    if callable(value) or isinstance(value, (str, list, tuple)):
        targets = value if isinstance(value, (list, tuple)) else (value,)
        return Notify(to=[_target(argument, target) for target in targets])
    return refuse(TypeError, argument, "True, a URL, a callable, a list of these, or a Notify", value)
