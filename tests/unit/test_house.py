"""The rules of the house: what is public, what importing costs, how long things are, and that every example runs."""

import ast
import inspect
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import nbprocs
from tests import doctests

PACKAGE = Path(nbprocs.__file__).parent
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "node_modules" not in p.parts)
HEAVY = (
    "psutil",
    "nbprocs.policy",
    "pandas",
    "matplotlib",
    "numpy",
    "ipywidgets",
    "anywidget",
    "IPython",
    "ipykernel",
    "sqlite3",
    "cloudpickle",
    "urllib.request",
    "http",
)


# --- the public surface ---------------------------------------------------------------------------------------------------


def test_exported_names_are_pinned():
    """A name that is added or taken away is a decision: make it in this file, too."""
    pinned = (Path(__file__).with_name("exported.txt")).read_text().split()
    assert sorted(nbprocs.__all__) == pinned
    assert list(nbprocs.__all__) == sorted(nbprocs.__all__), "in order"


@pytest.mark.parametrize("name", nbprocs.__all__)
def test_every_public_name_has_a_docstring_with_an_example(name):
    thing = getattr(nbprocs, name)
    assert thing.__doc__, f"{name} has no docstring"
    if not (inspect.isclass(thing) and issubclass(thing, BaseException)):  # errors are shown where they are raised
        assert ">>>" in thing.__doc__, f"{name} has no example"


@pytest.mark.parametrize("name", nbprocs.__all__)
def test_every_public_method_has_a_docstring(name):
    thing = getattr(nbprocs, name)
    if inspect.isclass(thing) and thing.__module__.startswith("nbprocs"):
        members = {k: getattr(v, "fget", None) or getattr(v, "__func__", v) for k, v in vars(thing).items() if not k.startswith("_")}
        missing = [k for k, v in members.items() if inspect.isfunction(inspect.unwrap(v) if callable(v) else v) and not v.__doc__]
        assert not missing


@pytest.mark.parametrize("item", doctests.documented(), ids=lambda item: item.name)
async def test_example(item, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = await doctests.run(item)
    await nbprocs.managers().aclose()  # those of the kernel, that an example has used
    assert not wrong, "\n\n".join(wrong)


# --- what importing costs ----------------------------------------------------------------------------------------------------


def loaded_by(code):
    """The modules of a fresh interpreter after that code."""
    code = f"import sys, nbprocs; {code}; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return set(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.split())


def test_import_loads_nothing_that_nobody_has_asked_for():
    loaded = loaded_by("pass")
    assert {name for name in loaded if name.startswith("nbprocs")} == {"nbprocs", "nbprocs.seams"}
    assert not loaded & {"asyncio", "dataclasses", "typing"}


def test_rooms_are_attributes_and_nothing_else_is():
    assert {"nbprocs.errors", "nbprocs.policy.restart"} <= loaded_by("nbprocs.errors.ProcessError, nbprocs.policy.restart")
    for name in ("_repr_html_", "no_such_room"):
        with pytest.raises(AttributeError, match=rf"module 'nbprocs' has no attribute '{name}'"):
            getattr(nbprocs, name)


def test_import_is_light():
    assert not loaded_by("nbprocs.ProcessManager, nbprocs.ProcessError") & {*HEAVY, "json", "nbprocs.widgets", "nbprocs.scheduler"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_dashboard_loads_nothing_that_its_first_pixel_does_not_need():
    assert not loaded_by("nbprocs.Dashboard") & {"psutil", "statistics", "pandas", "matplotlib", "sqlite3", "nbprocs.scheduler"}


def test_import_starts_nothing():
    code = "import threading, os, nbprocs; nbprocs.ProcessManager; print(threading.active_count(), len(os.listdir('/proc/self/fd')))"
    plain = "import threading, os; print(threading.active_count(), len(os.listdir('/proc/self/fd')))"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    outs = [subprocess.run([sys.executable, "-c", c], env=env, capture_output=True, text=True, check=True).stdout for c in (code, plain)]
    assert outs[0] == outs[1]


# --- sizes and words -----------------------------------------------------------------------------------------------------------


def test_modules_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert not {str(p): n for p, n in lengths.items() if n > 500}
    assert statistics.median(sum(bool(line.strip()) for line in path.read_text().splitlines()) for path in SOURCES) < 150


def test_functions_are_short():
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _code_lines(node) > 50:
                long.append(f"{path}:{node.lineno} {node.name} {_code_lines(node)}")
    assert not long


def _code_lines(node):
    """Lines of the body, without the docstring: a contract may be long."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return node.end_lineno - body[0].lineno + 1 if body else 0


FORBIDDEN = {
    r"\b(TODO|FIXME|XXX|NotImplementedError)\b": (),
    r"(?i)\bfor now\b|\bsimplified\b|\bplaceholder\b|\bsimulat": (),
    r"except:|except Exception:\s*\n\s*pass": (),
    r"\b(create_task|ensure_future)\(": ("engine/home.py",),
    r"^\s*(import|from) (subprocess|fcntl|pty|termios)\b": ("engine/",),
    r"^\s*(import|from) (ipywidgets|anywidget|IPython)\b": ("widgets/", "magics/"),
    r"nest_asyncio|set_event_loop_policy|get_child_watcher|asyncio\.wait_for|asyncio\.shield": (),
    r"preexec_fn\s*=": (),
}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_words_that_have_no_place(pattern):
    found = []
    for path in SOURCES:
        where = path.relative_to(PACKAGE).as_posix()
        if where.startswith(FORBIDDEN[pattern]) if FORBIDDEN[pattern] else False:
            continue
        text = path.read_text()
        found += [f"{where}:{text[: m.start()].count(chr(10)) + 1} {m[0].strip()}" for m in re.finditer(pattern, text, re.MULTILINE)]
    assert not found


def test_every_module_says_what_lives_there():
    assert not [str(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]


def test_no_class_name_stands_twice():
    places = {}
    for path in SOURCES:
        for name in re.findall(r"^class ([A-Z]\w+)", path.read_text(), re.MULTILINE):
            places.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_every_test_is_run():
    """A test that slipped into another function, or that a later one of its name replaces, looks like a test and is none."""
    functions, lost = (ast.FunctionDef, ast.AsyncFunctionDef), []
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, *functions)):
                tests = [child.name for child in node.body if isinstance(child, functions) and child.name.startswith("test_")]
                lost += tests if isinstance(node, functions) else [name for name in set(tests) if tests.count(name) > 1]
    assert not lost
