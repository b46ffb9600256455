"""Types are checked as a product: tests/typing under mypy and pyright, strict, as a user's project would see the package, and how much is typed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nbprocs

API = sorted((Path(__file__).parents[1] / "typing").glob("*.py"))
LEAST = 0.98  # of what a user's type checker meets, by pyright's count

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
needs_pyright = pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")


def pyright(*options):
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *map(str, options)]
    env = {**os.environ, "PYTHONPATH": str(Path(nbprocs.__file__).parents[1]), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_the_public_surface_is_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    cache = os.environ.get("MYPY_CACHE_DIR", str(tmp_path / "cache"))
    env = {**os.environ, "MYPYPATH": str(Path(nbprocs.__file__).parents[1])}
    options = [
        "--strict",
        "--warn-unused-ignores",
        "--follow-imports=silent",
        "--ignore-missing-imports",
        f"--cache-dir={cache}",
        "--config-file=",
    ]
    done = subprocess.run([sys.executable, "-m", "mypy", *options, *map(str, API)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_pyright
def test_pyright_reads_the_public_surface_as_mypy_does() -> None:
    done = pyright("-p", API[0].parent)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_pyright
def test_what_a_user_meets_is_typed() -> None:
    """Types that are inferred do not count: another checker, or the next version, may infer something else."""
    done = pyright("--ignoreexternal", "--outputjson", "--verifytypes", "nbprocs")
    found = json.loads(done.stdout[done.stdout.index("{") :])["typeCompleteness"]
    assert Path(found["packageRootDirectory"]) == Path(nbprocs.__file__).parent
    untyped = [f"{symbol['name']}: {said['message']}" for symbol in found["symbols"] for said in symbol["diagnostics"]]
    assert found["completenessScore"] >= LEAST, "\n".join(untyped)
