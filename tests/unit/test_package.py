"""The package as a product: licences of what is bundled, one version, one set of addresses."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nbprocs
from nbprocs.scheduler import TaskHandle
from tests.links import wrong_in_repository, wrong_in_site

ROOT = Path(__file__).parents[2]
in_the_repository = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="only the tests are here")
SCRIPTS = [
    p
    for p in (ROOT / "nbprocs").rglob("*.js")
    if {"static", "node_modules", "tests"}.isdisjoint(p.parts) and "js" in p.parts and "src" in p.parts
]
IMPORT = re.compile(r"""^(?:import|export)\s(?:[^"'(;]*?from\s*)?["']((?:@[\w.-]+/)?\w[\w.-]*)(?:/[\w./-]*)?["']""", re.MULTILINE)


def bundled():
    found = {name for script in SCRIPTS for name in IMPORT.findall(script.read_text())}
    return sorted(name for name in found if not name.startswith("@jupyterlab/"))  # those are the front end's own, not bundled


@in_the_repository
def test_the_scripts_are_found():
    assert "uplot" in bundled()
    assert "@xterm/xterm" in bundled()


@pytest.mark.parametrize("name", bundled())
def test_the_licence_of_each_bundled_npm_package_is_in_the_package(name):
    text = (ROOT / "nbprocs" / "licenses" / f"{name.replace('/', '-')}.txt").read_text()
    assert "Copyright" in text
    assert "Permission is hereby granted" in text, "the licence expression of pyproject.toml says MIT"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", nbprocs.__version__)
    for manifest in (ROOT / "nbprocs").rglob("package.json"):
        if "node_modules" not in manifest.parts and "static" not in manifest.parts:
            assert (
                "version" not in json.loads(manifest.read_text()) or json.loads(manifest.read_text())["version"] == nbprocs.__version__
            ), manifest


@in_the_repository
def test_the_changes_name_this_version():
    assert re.search(rf"^## {re.escape(nbprocs.__version__)}$", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.MULTILINE)


@in_the_repository
def test_the_panel_says_what_is_bundled_in_it_under_which_licence():
    [listed] = (ROOT / "nbprocs" / "lab" / "labextension").rglob("third-party-licenses.json")
    packages = json.loads(listed.read_text())["packages"]
    assert packages
    assert {package["licenseId"] for package in packages} == {"MIT"}, "the licence expression of pyproject.toml says MIT"
    assert all("Copyright" in package["extractedText"] for package in packages)


@in_the_repository
def test_links_between_the_repositorys_pages_lead_somewhere():
    assert wrong_in_repository() == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="x">x</h1><a href="b.html">b</a><a href="#y">y</a><a href="#x">x</a><a href="https://e.org">e</a>'
    )
    assert wrong_in_site(tmp_path) == ["a.html: b.html: no such file", "a.html: #y: no such anchor"]
    (tmp_path / "README.md").write_text("# One two\n[a](#one-two) [b](#three) [c](gone.md) `[d](code)`\n```\n[e](block)\n```\n")
    assert wrong_in_repository(tmp_path) == ["README.md: #three: no such heading", "README.md: gone.md: no such file"]


@in_the_repository
def test_the_page_of_errors_explains_every_error():
    page = (ROOT / ".github" / "docs" / "messages.md").read_text()
    errors = {
        name for name in nbprocs.__all__ if isinstance(getattr(nbprocs, name), type) and issubclass(getattr(nbprocs, name), BaseException)
    }
    assert {name for name in errors if f"`{name}`" not in page} == set()


@in_the_repository
def test_what_others_are_told_to_write_here_exists():
    """The tables for those who come from another tool: their right-hand column names what there is."""
    page = (ROOT / ".github" / "docs" / "coming-from.md").read_text()
    kinds = {
        "pm": nbprocs.ProcessManager,
        "pool": nbprocs.ProcessPool,
        "sch": nbprocs.TaskScheduler,
        "proc": nbprocs.ManagedProcess,
        "handle": TaskHandle,
        "result": nbprocs.ProcessResult,
        "nbprocs": nbprocs,
    }
    ours = [line.rpartition(" | ")[2] for line in page.splitlines() if line.startswith("|")]
    named = {found for line in ours for found in re.findall(rf"\b({'|'.join(kinds)})\.(\w+)", line)}
    assert len(named) > 12
    assert {f"{thing}.{name}" for thing, name in named if not hasattr(kinds[thing], name)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("way", [(), ("--portable",)], ids=["own", "portable"])
def test_what_is_claimed_for_every_system_holds_here(way):
    """``--portable``: as on Windows, without the modules of POSIX. What a workflow runs there must at least hold here."""
    env = {**os.environ, "PYTHONPATH": str(Path(nbprocs.__file__).parents[1])}
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "smoke.py"), *way], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all held" in done.stdout
