"""The documentation site: docstrings as the reference, notebooks as the guides, decisions as the why. Built by ``sphinx-build -W``."""

import inspect
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import nbprocs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MADE = HERE / "made"  # what is copied or written here at each build; git ignores it

project = "nbprocs"
author = "The nbprocs developers"
copyright = "the nbprocs developers"
version = release = nbprocs.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx", "myst_nb", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"nbprocs {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": "https://github.com/nbprocs/nbprocs/",
    "source_branch": "main",
    "source_directory": ".github/docs/",
}
exclude_patterns = ["out", "jupyter_execute"]
nb_execution_mode = "off"  # the saved outputs are what nbval compared
nb_mime_priority_overrides = [("html", "text/html", 0)]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Links between notebooks and to files of the repository; annotations that are named as a field.
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type", "ref.python"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
napoleon_google_docstring = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
intersphinx_mapping = {"python": ("https://docs.python.org/3", None)} if "--online" in sys.argv else {}

GROUPS = {  # title: the package whose public names it shows
    "Processes": ("nbprocs.processes", "nbprocs.model", "nbprocs.kernel"),
    "Readiness": ("nbprocs.processes.readiness",),
    "Errors": ("nbprocs.errors", "nbprocs.scheduler.errors", "nbprocs.pool.report"),
    "Policies": ("nbprocs.policy",),
    "Pool": ("nbprocs.pool",),
    "Scheduler": ("nbprocs.scheduler",),
    "Cluster": ("nbprocs.cluster",),
    "Monitor": ("nbprocs.monitor",),
    "Recovery": ("nbprocs.recovery",),
    "Runs": ("nbprocs.runs",),
    "Views": ("nbprocs.widgets",),
}


def _room(thing: object) -> str:
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return "Errors"
    module = getattr(thing, "__module__", "nbprocs")
    fitting = [(len(prefix), title) for title, prefixes in GROUPS.items() for prefix in prefixes if module.startswith(prefix)]
    return max(fitting)[1] if fitting else "The rest"


def _entry(name: str) -> str:
    thing = getattr(nbprocs, name)
    if inspect.isclass(thing):
        kind = "autoexception" if issubclass(thing, BaseException) else "autoclass"
    else:
        kind = "autofunction" if callable(thing) else "autodata"
    return f"```{{eval-rst}}\n.. {kind}:: nbprocs.{name}\n```\n"


def _index(folder: Path, *, title: str, intro: str, pages: Iterable[str]) -> None:
    tree = "\n".join(pages)
    (folder / "index.md").write_text(f"# {title}\n\n{intro}\n\n```{{toctree}}\n:maxdepth: 1\n\n{tree}\n```\n")


def _reference() -> None:
    """One page for each room, one entry for each public name, so that a name can't be forgotten."""
    folder = MADE / "reference"
    folder.mkdir(parents=True)
    rooms: dict[str, list[str]] = {}
    for name in nbprocs.__all__:
        rooms.setdefault(_room(getattr(nbprocs, name)), []).append(name)
    pages = []
    for title in sorted(rooms, key=[*GROUPS, "The rest"].index):
        pages.append(title.lower().replace(" ", "-"))
        (folder / f"{pages[-1]}.md").write_text("\n".join([f"# {title}\n", *map(_entry, rooms[title])]))
    _index(folder, title="Reference", intro="Every public name, with its contract and an example that the tests run.", pages=pages)


def _copies() -> None:
    guides, why = MADE / "guides", MADE / "why"
    guides.mkdir(parents=True)
    why.mkdir()
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        shutil.copy(notebook, guides)
    _index(guides, title="Guides", intro="Notebooks, with the outputs of their last run.", pages=[n.stem for n in notebooks])
    decisions = sorted((ROOT / ".adr").glob("*.md"))
    for decision in decisions:
        text = re.sub(r"^(Context|Choice|Cost):", r"\n**\1.**", decision.read_text(), flags=re.MULTILINE)
        (why / decision.name).write_text(text)
    _index(why, title="Why it is as it is", intro="Decisions, each with its context and its cost.", pages=[d.stem for d in decisions])
    for name in ("CHANGELOG", "SECURITY", "CONTRIBUTING", "ARCHITECTURE"):
        shutil.copy(ROOT / ".github" / f"{name}.md", MADE / f"{name.lower()}.md")


shutil.rmtree(MADE, ignore_errors=True)
_copies()
_reference()
