"""The static forms of objects, and the seam where the live ones come in."""

from collections.abc import Iterator

import pytest

from nbprocs import display


class Thing(display.Displayable):
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<Thing {self.name}>"

    def _html_(self) -> str:
        return f"<b>{display.text(self.name)}</b>"


class Bare(display.Displayable):
    def __repr__(self) -> str:
        return "<Bare & bold>"


@pytest.fixture(autouse=True)
def _no_factory() -> Iterator[None]:
    before = display.view_factory()
    display.set_view_factory(None)
    yield
    display.set_view_factory(before)


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\x1b]8;;http://evil\x07click\x1b]8;;\x07",
    "\x1b[2J\x1b[31mred",
    "user\u202egnp.exe",
    "a\u2066b\u2069\u200bc\ufeff",
    "'\"><svg onload=1>",
    "\x00\x07\x9b31m\ud800",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text(hostile: str) -> None:
    shown = display.text(hostile)
    assert "<" not in shown and ">" not in shown and '"' not in shown and "'" not in shown
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u2069\u200b\ufeff\ud800" for c in shown)
    shown.encode()


@pytest.mark.parametrize(
    "written",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f\u200d\U0001f525",
    ],
)
def test_what_joins_letters_or_pictures_is_a_part_of_them(written: str) -> None:
    assert display.plain(written) == written


@pytest.mark.parametrize("hiding", ["r\u200dm", "\u200c-rf", "rm\u200d", "\u0645\u200c\u200c\u0645", "\u0645\u200dm"])
def test_what_joins_nothing_is_shown(hiding: str) -> None:
    assert display.plain(hiding).count("\ufffd") == 1


def test_tabs_and_newlines_survive() -> None:
    assert display.plain("a\tb\nc") == "a\tb\nc"


def test_limit_cuts_before_escaping() -> None:
    assert display.text("<<<<<<", limit=3) == "&lt;&lt;…"


def test_static_bundle() -> None:
    assert Thing("<x>")._repr_mimebundle_() == {"text/plain": "<Thing <x>>", "text/html": "<b>&lt;x&gt;</b>"}
    assert Bare()._repr_mimebundle_()["text/html"] == "<pre>&lt;Bare &amp; bold&gt;</pre>"


def test_include_and_exclude() -> None:
    assert set(Thing("x")._repr_mimebundle_(include={"text/html"})) == {"text/html"}
    assert set(Thing("x")._repr_mimebundle_(exclude={"text/html"})) == {"text/plain"}


def test_factory_adds_the_live_view_and_keeps_the_static_forms() -> None:
    display.set_view_factory(lambda _: {"application/vnd.jupyter.widget-view+json": {"model_id": "7"}, "text/plain": "Widget(...)"})
    bundle = Thing("x")._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"] == {"model_id": "7"}
    assert bundle["text/plain"] == "<Thing x>"
    assert bundle["text/html"] == "<b>x</b>"


def test_factory_may_have_nothing() -> None:
    display.set_view_factory(lambda _: None)
    assert set(Thing("x")._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_broken_factory_leaves_the_static_form_with_the_reason() -> None:
    def broken(_: object) -> None:
        msg = "<no> widgets"
        raise RuntimeError(msg)

    display.set_view_factory(broken)
    bundle = Thing("x")._repr_mimebundle_()
    assert bundle["text/html"].startswith("<b>x</b>")
    assert "&lt;no&gt; widgets" in bundle["text/html"]


def test_own_display_is_asked_for_first_and_only_with_a_publisher() -> None:
    thing = Thing("x")
    assert thing._ipython_display_ is None
    shown: list[object] = []
    display.set_view_factory(lambda _: None, publish=shown.append)
    method = thing._ipython_display_
    assert method is not None
    method()
    assert shown == [thing]
