"""Types are checked as a product: tests/typing under mypy, strict, as a user's project would see the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nbprocs

API = sorted((Path(__file__).parents[1] / "typing").glob("*.py"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_public_surface_is_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    cache = os.environ.get("MYPY_CACHE_DIR", str(tmp_path / "cache"))
    env = {**os.environ, "MYPYPATH": str(Path(nbprocs.__file__).parents[1])}
    options = ["--strict", "--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={cache}", "--config-file="]
    done = subprocess.run([sys.executable, "-m", "mypy", *options, *map(str, API)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
