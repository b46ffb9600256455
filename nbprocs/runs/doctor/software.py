"""What is installed beside nbprocs: widgets, JupyterLab and its extension, Dask, git."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from nbprocs.runs.doctor.finding import Finding, Verdict
from nbprocs.runs.doctor.kernel import version

__all__ = ["dask", "extension", "git", "jupyterlab", "widgets"]

_AREA = "software"
_LEAST = {"anywidget": (0, 9, 18), "ipywidgets": (8, 1)}
_LAB = (4, 4)


def widgets() -> Iterator[Finding]:
    """The packages that live views need."""
    found = {package: version(package) for package in _LEAST}
    told = ", ".join(f"{package} {known[0] if known else 'missing'}" for package, known in found.items())
    if all(known is not None and known[1] >= _LEAST[package] for package, known in found.items()):
        yield Finding(area=_AREA, what="widgets", state=Verdict.OK, said=told)
    else:
        cure = "pip install -U 'anywidget>=0.9.18' 'ipywidgets>=8.1', in the kernel's and the server's environment"
        yield Finding(area=_AREA, what="widgets", state=Verdict.WARN, said=f"{told}: objects are shown as static tables", cure=cure)


def jupyterlab() -> Iterator[Finding]:
    """Its version, where it is installed in the kernel's environment."""
    known = version("jupyterlab")
    if known is None:
        yield Finding(area=_AREA, what="JupyterLab", state=Verdict.OK, said="not in this environment: the server's is another")
    elif known[1] < _LAB:
        said = f"{known[0]}: tested with 4.4 and later"
        yield Finding(area=_AREA, what="JupyterLab", state=Verdict.WARN, said=said, cure="pip install -U 'jupyterlab>=4.4'")
    else:
        yield Finding(area=_AREA, what="JupyterLab", state=Verdict.OK, said=known[0])


def extension() -> Iterator[Finding]:
    """JupyterLab's panel of all kernels' processes: installed, and of this version."""
    if version("jupyterlab") is None:
        return
    from jupyter_core.paths import jupyter_path  # noqa: PLC0415 - comes with JupyterLab

    for folder in jupyter_path("labextensions"):
        package = Path(folder, "nbprocs", "package.json")
        if package.is_file():
            told = str(json.loads(package.read_text()).get("version", "?"))
            ours = known[0] if (known := version("nbprocs")) else "?"
            if told == ours:
                yield Finding(area=_AREA, what="extension", state=Verdict.OK, said=f"{told}")
            else:
                said = f"{told}, with nbprocs {ours}"
                cure = "pip install --force-reinstall nbprocs in the server's environment, and reload the page"
                yield Finding(area=_AREA, what="extension", state=Verdict.WARN, said=said, cure=cure)
            return
    cure = "pip install nbprocs in the server's environment gives JupyterLab its panel of processes"
    yield Finding(area=_AREA, what="extension", state=Verdict.OK, said="not installed in this environment", cure=cure)


def dask() -> Iterator[Finding]:
    """Dask's version, where it is installed."""
    known = version("distributed")
    if known is not None:
        loaded = " (in use)" if "distributed" in sys.modules else ""
        yield Finding(area=_AREA, what="Dask", state=Verdict.OK, said=f"distributed {known[0]}{loaded}")


def git() -> Iterator[Finding]:
    """Whether a run's revision can be told."""
    if shutil.which("git") is None:
        yield Finding(area=_AREA, what="git", state=Verdict.OK, said="not installed: runs are recorded without a revision")
    else:
        yield Finding(area=_AREA, what="git", state=Verdict.OK, said="runs are recorded with their revision")
