"""What a person reads in the views and in the panel stands in one table of each, and nowhere else in their source."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbprocs

PACKAGE = Path(nbprocs.__file__).parent
VIEWS, PANEL = PACKAGE / "widgets/js/src", PACKAGE / "lab/src"
pytestmark = pytest.mark.skipif(not VIEWS.exists(), reason="the sources are not a part of the wheel")

REGEX = re.compile(r"(?<=[(=,:!&|?\[{])\s*/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/[a-z]*")
TOKEN = re.compile(
    r"""(?P<skip>//[^\n]*|/\*.*?\*/|^import\b[^\n]*|^export \{[^\n]*)|"(?P<double>(?:[^"\\\n]|\\.)*)"|'(?P<single>(?:[^'\\\n]|\\.)*)'|`(?P<template>[^`]*)`""",
    re.DOTALL | re.MULTILINE,
)
KEYS = {"Enter", "Escape", "Home", "End", "Tab", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "PageUp", "PageDown"}
UNITS = {"KiB", "MiB", "GiB"}
NO_WORDS = [  # what only a program reads
    re.compile(r"(nb|nbprocs)-[\w-]*( (nb|nbprocs)-[\w-]*)*"),  # classes
    re.compile(r"(\d+px )?[\w-]+(-family|-monospace|system-ui|monospace)?(, [\w-]+)*"),  # fonts
    re.compile(r"var\(--.*|minmax\(.*"),
    re.compile(r"(\\x1b\[[\d;]*m|\\r|… |\s)*"),  # a line's colours
    re.compile(r"log line"),  # a kind of readiness, on the wire
    re.compile(r"(button|input|select)(, (button|input|select))+"),
    re.compile(r"Shift\+Arrow.*"),
    re.compile(r"import nbprocs .*", re.DOTALL),  # a cell of Python
]
SELECTOR = re.compile(r"[.#\[][\w-]+.*|[a-z]+[.#\[:][\w-]+.*")
PATHS = re.compile(r"[MmLlHhVvCcAaZz\d\s.,-]+")
# of JupyterLab: events, ids, the names of its own things
FOREIGN = {"Content-Type", "Notification", "Terminal", "POST", "Notebook"}
NO_LANGUAGE = (
    "The processes of all kernels",
    "output that the terminal could not show",
)  # the plugin's description, a word for the console


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Its strings, with their lines; expressions in templates are taken out."""
    source = REGEX.sub(lambda match: " " * len(match[0]), path.read_text("utf-8"))
    for match in TOKEN.finditer(source):
        if match["skip"] is not None:
            continue
        text = next(part for part in (match["double"], match["single"], match["template"]) if part is not None)
        if match["template"] is not None:
            text = re.sub(r"\$\{(?:[^{}]|\{[^{}]*\})*\}", "", text)
        yield source.count("\n", 0, match.start()) + 1, text


def readable(text: str) -> bool:
    """Whether it looks as if a person would read it: a word in capitals' style, or two words."""
    text = text.replace("\\n", " ").strip()
    if text in KEYS | UNITS | FOREIGN or PATHS.fullmatch(text) or SELECTOR.fullmatch(text) or any(no.fullmatch(text) for no in NO_WORDS):
        return False
    return bool(re.match(r"[A-Z][a-z]{2,}$|[A-Z][a-z]+ ", text) or re.search(r"[A-Za-z]{2,}[,;:.]? [A-Za-z]{2,}|…", text))


def sources(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.js")) if path.name not in ("texts.js", "terminal.js", "plot.js")]


def test_the_search_finds_a_text_that_is_not_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "view.js"
    path.write_text(
        'h("div.nb-bar", { title: "Stop the process", d: "M3 3h10" }, `${n} tasks are left`, "nb-a nb-b", t("pane.stop")) // Not this'
    )
    assert [text for _, text in literals(path) if readable(text)] == ["Stop the process", " tasks are left"]


@pytest.mark.parametrize(
    "path", [*sources(VIEWS), *sources(PANEL)] if VIEWS.exists() else [], ids=lambda path: f"{path.parts[-3]}-{path.name}"
)
def test_no_text_is_outside_the_table(path: Path) -> None:
    found = [f"{path.name}:{line}: {text!r}" for line, text in literals(path) if readable(text) and not text.startswith(NO_LANGUAGE)]
    assert found == []


def test_each_text_is_used_and_each_key_has_a_text() -> None:
    table = dict(re.findall(r'^  "([\w.]+)":\s+(.*),$', (VIEWS / "texts.js").read_text("utf-8"), re.MULTILINE))
    source = "\n".join(path.read_text("utf-8") for path in sources(VIEWS))
    asked = set(re.findall(r'"((?:[a-z]\w*\.)+\w+)"', source))
    families = tuple(re.findall(r"`((?:[a-z]\w*\.)+)\$\{", source))
    keys = {key for key in asked if key.split(".")[0] in {known.split(".")[0] for known in table}}
    assert sorted(keys - table.keys()) == []
    assert sorted(key for key in table.keys() - keys if not key.startswith(families)) == []


def test_the_panel_uses_each_of_its_texts() -> None:
    table = set(re.findall(r"^  (\w+): ", (PANEL / "texts.js").read_text("utf-8"), re.MULTILINE))
    used = set(re.findall(r"TEXTS\.(\w+)", "\n".join(path.read_text("utf-8") for path in sources(PANEL))))
    assert used == table
