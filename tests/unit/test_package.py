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

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    p
    for p in (ROOT / "nbprocs").rglob("*.js")
    if {"static", "node_modules", "tests"}.isdisjoint(p.parts) and "js" in p.parts and "src" in p.parts
]
IMPORT = re.compile(r"""^(?:import|export)\s(?:[^"'(;]*?from\s*)?["']((?:@[\w.-]+/)?\w[\w.-]*)(?:/[\w./-]*)?["']""", re.MULTILINE)


def bundled():
    found = {name for script in SCRIPTS for name in IMPORT.findall(script.read_text())}
    return sorted(name for name in found if not name.startswith("@jupyterlab/"))  # those are the front end's own, not bundled


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


def test_the_changes_name_this_version():
    assert re.search(rf"^## {re.escape(nbprocs.__version__)}$", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("way", [(), ("--portable",)], ids=["own", "portable"])
def test_what_is_claimed_for_every_system_holds_here(way):
    """``--portable``: as on Windows, without the modules of POSIX. What a workflow runs there must at least hold here."""
    env = {**os.environ, "PYTHONPATH": str(Path(nbprocs.__file__).parents[1])}
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "smoke.py"), *way], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all held" in done.stdout
