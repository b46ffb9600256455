"""How objects show themselves: text always, static HTML beside it, and a live view where a front end can carry one.

This is the bottom of the display stack and knows no widget. ``nbprocs/__init__`` installs a *view factory* when it runs in a
kernel with comms; models stay ignorant of their views::

    model  --_repr_mimebundle_-->  {text/plain, text/html}            always, also in a saved notebook
                                   + widget-view+json from the factory  in a live kernel

Everything that comes from outside goes through :func:`text`: names, commands and output may hold markup, ANSI sequences and bidirectional
control characters, which could otherwise make a command read as something that it is not.

What is HTML has the type ``Html`` (markupsafe's Markup), and ``_html_()`` must return it: a plain string in its place is a type error, and
what joins or formats Html escapes every plain string that it is given. ``Html("<b>{}</b>").format(name)``, never an f-string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from markupsafe import Markup as Html
from markupsafe import escape

__all__ = [
    "PALETTE",
    "Displayable",
    "Html",
    "bytes_text",
    "cell",
    "clock",
    "duration",
    "joined",
    "plain",
    "set_view_factory",
    "table",
    "text",
    "view_factory",
]

# Okabe and Ito's colours ("Color Universal Design", 2008): told apart by the colour-blind, too
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, YELLOW, BLACK, GREY = "#e69f00", "#56b4e9", "#f0e442", "#000000", "#999999"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)  # in the order of use; yellow is hard to see as a line
# Colours of words on a light or dark page
GOOD, BAD, CAREFUL, QUIET, ODD = "#1a7f37", "#cf222e", "#9a6700", "#57606a", "#8250df"

ViewFactory = Callable[[Any], dict[str, Any] | None]
Publisher = Callable[[Any], object]

_factory: ViewFactory | None = None
_publisher: Publisher | None = None

# Patterns as text, compiled by re at their first use: importing stays light.
# CSI, OSC (ended by BEL or ST) and the two-byte escapes; what is left of a broken one is caught by _CONTROL
_ANSI = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])"
# C0 and C1 controls, and the characters that reorder or hide text (bidi embeddings, isolates, zero-width, BOM, line separators).
# A joiner between two letters of Persian or Hindi, or two pictures, is a part of the writing; beside a Latin letter it only hides
_CONTROL = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
    "|(?<=[\x00-\u02ff])[\u200c\u200d]|[\u200c\u200d](?=[\x00-\u02ff\u200c\u200d])"
)

# Letters with more marks than any writing has: a run of thousands holds a page's layout up
_MARK = "[\u0300-\u036f\u0483-\u0489\u1160-\u11ff\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f]"
_MARKS = f"({_MARK}{{16}}){_MARK}+"

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_CELL = "padding:2px 10px 2px 0;text-align:left;vertical-align:top;white-space:nowrap"


def plain(value: object, *, limit: int | None = None) -> str:
    r"""Readable characters only: ANSI sequences removed, controls and text-reordering characters made visible as ``U+FFFD``.

    Tabs and newlines stay. With ``limit`` the text is cut to so many characters, the last of them an ellipsis.

    >>> plain("\x1b[31mred\x1b[0m")
    'red'
    >>> plain("a" * 50, limit=5)
    'aaaa…'
    """
    cleaned = re.sub(_CONTROL, "\N{REPLACEMENT CHARACTER}", re.sub(_ANSI, "", str(value)))
    if not cleaned.isascii():
        cleaned = re.sub(_MARKS, r"\1", cleaned)
    if limit is not None and len(cleaned) > limit:
        return cleaned[: max(limit - 1, 0)] + "…"
    return cleaned


def text(value: object, *, limit: int | None = None) -> Html:
    """:func:`plain`, escaped for an HTML text or attribute: nothing in it can end a tag, an attribute or a script.

    >>> text("<script>alert(1)</script>")
    Markup('&lt;script&gt;alert(1)&lt;/script&gt;')
    """
    return escape(plain(value, limit=limit))


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(0.0123), duration(3.21), duration(75), duration(7260), duration(200000)
    ('12 ms', '3.2 s', '1 m 15 s', '2 h 01 m', '2 d 07 h')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} m {whole % _MINUTE:02d} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} m"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02d} h"


def clock(seconds: float) -> str:
    """Seconds as a clock shows them.

    >>> clock(245), clock(7231)
    ('4:05', '2:00:31')
    """
    minutes, rest = divmod(round(seconds), _MINUTE)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bytes_text(size: float) -> str:
    """Bytes as a person says them, in powers of 1024.

    >>> bytes_text(512), bytes_text(1536), bytes_text(3 << 30)
    ('512 B', '1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:  # noqa: PLR2004 - the base of the units
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def joined(parts: Iterable[object], by: str = "") -> Html:
    """Pieces in a row; those that are not Html are escaped.

    >>> joined([Html("<b>a</b>"), "<c>"])
    Markup('<b>a</b>&lt;c&gt;')
    """
    return escape(by).join(map(escape, parts))


def cell(content: object, *, head: bool = False, style: str = "") -> Html:
    """A cell of a table, to the left whatever the page's style says (JupyterLab's and nbconvert's say right).

    A head is a bold cell, no ``<th>``: ``nbconvert --sanitize-html`` knows none and shows the tag.

    >>> cell("<3 MiB", style=";color:red")
    Markup('<td style="padding:2px 10px 2px 0;text-align:left;vertical-align:top;white-space:nowrap;color:red">&lt;3 MiB</td>')
    """
    shown = Html("<b>{}</b>").format(content) if head else content
    return Html('<td style="{}{}">{}</td>').format(_CELL, style, shown)


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> Html:
    """A static table; what is not Html is escaped.

    >>> table(["name"], [["web"], ["db"]]).count("<tr>")
    3
    """
    top = joined(cell(name, head=True) for name in head)
    lines = joined(Html("<tr>{}</tr>").format(joined(cell(content, style=";white-space:normal") for content in row)) for row in rows)
    return Html('<table style="border-collapse:collapse">{}{}</table>').format(Html("<tr>{}</tr>").format(top) if top else "", lines)


def set_view_factory(factory: ViewFactory | None, *, publish: Publisher | None = None) -> None:
    """Install what makes live views, or remove it with None.

    ``factory(model)`` returns a mimebundle with the live view of the model, or None if it has none. It may raise: the static
    forms are shown then, with the reason in them. ``publish(model)``, if given, displays the model itself under a display id,
    so that the static record in the saved notebook can be brought up to date when a process ends.

    >>> set_view_factory(None)
    """
    global _factory, _publisher  # one per interpreter, like the kernel it stands for
    _factory, _publisher = factory, publish


def view_factory() -> ViewFactory | None:
    """The factory in force.

    >>> set_view_factory(None)
    >>> view_factory() is None
    True
    """
    return _factory


class Displayable:
    """Mixin for whatever may be the last line of a cell.

    A class gives ``_html_()``: static, self-contained HTML without ``script`` or ``style`` tags, with everything that is not its own
    put through :func:`text`. It gets ``text/plain`` from its ``repr``, ``text/html`` from the hook, and the live view of the factory.

    >>> class Greeting(Displayable):
    ...     def _html_(self) -> Html:
    ...         return Html("<b>{}</b>").format("a < b")
    >>> Greeting()._repr_mimebundle_()["text/html"]
    '<b>a &lt; b</b>'
    """

    __slots__ = ()

    def _html_(self) -> Html:
        """The static form; the default is the ``repr`` in fixed width."""
        return Html("<pre>{}</pre>").format(text(repr(self)))

    @property
    def _ipython_display_(self) -> Callable[[], object] | None:
        """None, unless a publisher is installed: IPython then goes on to the mimebundle.

        A method here would override every other form for good; a property can step aside.
        """
        publisher = _publisher
        return None if publisher is None else lambda: publisher(self)

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
        """What IPython asks for. Never raises: an object that can't be shown live is shown static, with a word why."""
        bundle: dict[str, Any] = {"text/plain": plain(repr(self)), "text/html": str(self._html_())}
        if _factory is not None:
            try:
                bundle = {**(_factory(self) or {}), **bundle}
            except Exception as error:  # noqa: BLE001 - a broken view must not take the object's own display away
                bundle["text/html"] += f"<div><small>no live view: {text(repr(error), limit=300)}</small></div>"
        return {
            kind: data for kind, data in bundle.items() if (include is None or kind in include) and (exclude is None or kind not in exclude)
        }
