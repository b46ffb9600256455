"""Checks of a built wheel and sdist, for ``.ci/run``: ``python tests/wheel.py DIST``. Exit status 1 with what is wrong.

What the wheel holds is decided here: a file that is neither a module, nor one of the kinds named below, is a mistake of packaging.
"""

import re
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = (
    r"nbprocs/LICENSE",
    r"nbprocs/licenses/[@\w.-]+\.txt",
    r"nbprocs/py\.typed",
    r"nbprocs/server/nbprocs\.json",
    r"nbprocs/widgets/static/\w+\.(js|css)",
    r"nbprocs-[\d.]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|licenses/nbprocs/(LICENSE|licenses/[@\w.-]+\.txt))",
    r"nbprocs-[\d.]+\.data/data/share/jupyter/labextensions/nbprocs/(install\.json|package\.json|static/[\w.-]+\.(js|json|css|txt))",
    r"nbprocs-[\d.]+\.data/data/etc/jupyter/jupyter_server_config\.d/nbprocs\.json",
)


def wrong_in_wheel(path: Path) -> list[str]:
    """What the wheel lacks, and what it should not have."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        [about] = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(about).decode())
        init = wheel.read("nbprocs/__init__.py").decode()
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nbprocs").rglob("*.py") if "node_modules" not in p.parts}
    wrong = [f"the wheel lacks {name}" for name in sorted(modules - names)]
    kinds = re.compile("|".join(f"({kind})" for kind in DATA))
    wrong += [f"the wheel has {name}" for name in sorted(names - modules) if not kinds.fullmatch(name)]
    wrong += [f"no file of the wheel is like {kind}" for kind in DATA[:4] if not any(re.fullmatch(kind, name) for name in names)]
    if f'__version__ = "{metadata["Version"]}"' not in init:
        wrong.append(f"the metadata says version {metadata['Version']}, nbprocs/__init__.py another")
    if metadata["License-Expression"] != "BSD-3-Clause AND MIT":
        wrong.append(f"the licence is {metadata['License-Expression']}")
    wrong += [
        f"the README shows {image} by a relative path"
        for image in re.findall(r"!\[[^\]]*\]\((?!https://)([^)]+)\)", metadata.get_payload())
    ]
    return wrong


def wrong_in_sdist(path: Path) -> list[str]:
    """The sdist can be tested: it has the tests and the notebooks, and nothing that a build leaves behind."""
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wrong = [
        f"the sdist lacks {name}"
        for name in ("pyproject.toml", "README.md", "tests/conftest.py", "notebooks/01-manager.ipynb")
        if name not in names
    ]
    return wrong + [f"the sdist has {name}" for name in sorted(names) if re.search(r"node_modules|__pycache__|\.docs/made|/out/", name)]


def main(folder: Path) -> int:
    """Check the one wheel and the one sdist of a folder."""
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    wrong = wrong_in_wheel(wheel) + wrong_in_sdist(sdist)
    print(*wrong, sep="\n") if wrong else print(f"{wheel.name} and {sdist.name} hold what they should")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
