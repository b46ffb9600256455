"""The kernel itself: Python, the event loop, ipykernel, the front end."""

import asyncio
import contextlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from nbprocs.engine.home import LATE, Home
from nbprocs.runs.cells import notebook_name
from nbprocs.runs.doctor.finding import Finding, Verdict

__all__ = ["event_loop", "front_end", "ipykernel", "python"]

_AREA = "kernel"
_UPDATE = "pip install -U 'ipykernel>=7.4', in the kernel's environment, and restart the kernel"


@dataclass(slots=True)
class _Asked:
    loop: asyncio.AbstractEventLoop | None = None
    home: Home | None = None


_asked = _Asked()
_lock = threading.Lock()


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """While a doctor looks: the loop of who asked."""
    with _lock:
        _asked.loop = asyncio._get_running_loop()  # noqa: SLF001 - None where none runs, without an exception
        _asked.home = None if _asked.loop is None else Home.current()
        try:
            yield
        finally:
            _asked.loop = _asked.home = None


def version(package: str) -> tuple[str, tuple[int, ...]] | None:
    """The installed version of a package, as text and as numbers; None where it is not installed."""
    try:
        told = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = []
    for part in told.split(".")[:3]:
        digits = "".join(char for char in part if char.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return told, tuple(numbers)


def python() -> Iterator[Finding]:
    """The interpreter."""
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "the system's Python"
    yield Finding(area=_AREA, what="python", state=Verdict.OK, said=f"{sys.version.split()[0]} in {where}, {sys.platform}")


def event_loop() -> Iterator[Finding]:
    """Whether one runs, of which make, and how late it was."""
    loop, home = _asked.loop, _asked.home
    if loop is None:
        said = "none runs in this thread"
        yield Finding(area=_AREA, what="event loop", state=Verdict.OK, said=f"{said}: use ProcessManager(background=True) or asyncio.run()")
        return
    name = type(loop).__name__.lstrip("_")
    if sys.platform == "win32" and "Selector" in name:
        cure = f"{_UPDATE}; until then nbprocs works on a background loop of its own"
        yield Finding(area=_AREA, what="event loop", state=Verdict.WARN, said=f"{name} can't start processes on Windows", cure=cure)
    elif loop.get_debug():
        cure = "loop.set_debug(False), and no PYTHONASYNCIODEBUG"
        yield Finding(area=_AREA, what="event loop", state=Verdict.WARN, said=f"{name} in debug mode: everything is slower", cure=cure)
    elif hasattr(asyncio, "_nest_patched"):
        cure = "await instead of nesting loops: top-level await works in every cell"
        yield Finding(area=_AREA, what="event loop", state=Verdict.WARN, said=f"{name}, patched so that loops nest", cure=cure)
    else:
        yield Finding(area=_AREA, what="event loop", state=Verdict.OK, said=name)
    if home is not None and home.latest >= LATE:
        cure = "ProcessManager(background=True), or `await` in cells that compute for long"
        said = f"it was blocked for {home.latest:.1f} s while processes ran"
        yield Finding(area=_AREA, what="late loop", state=Verdict.WARN, said=said, cure=cure)


def ipykernel() -> Iterator[Finding]:
    """Its version, with the troubles that are known of some."""
    found = version("ipykernel")
    if found is None:
        cure = "" if "IPython" not in sys.modules else "pip install 'ipykernel>=7.4'"
        yield Finding(area=_AREA, what="ipykernel", state=Verdict.OK, said="not installed: no notebook here", cure=cure)
        return
    told, numbers = found
    state, said, cure = Verdict.OK, told, ""
    if numbers[:2] == (7, 0):
        state, cure = Verdict.BAD, _UPDATE
        said = f"{told}: output written by background tasks raises LookupError, and buttons are handled in another thread"
    elif (7, 1) <= numbers[:2] < (7, 4):
        state, cure = Verdict.WARN, _UPDATE
        said = f"{told}: buttons of widgets are handled in a subshell's thread, on another loop"
    elif sys.platform == "win32" and numbers < (7, 4):
        state, said, cure = Verdict.WARN, f"{told}: the kernel's loop can't start processes on Windows", _UPDATE
    elif numbers < (6, 30):
        state, said, cure = Verdict.WARN, f"{told}: older than what nbprocs is tested with (6.30)", _UPDATE
    yield Finding(area=_AREA, what="ipykernel", state=state, said=said, cure=cure)


def front_end() -> Iterator[Finding]:
    """Who shows this kernel, where its environment tells."""
    known = {
        "VSCODE_PID": "VS Code",
        "COLAB_RELEASE_TAG": "Colab",
        "JPY_SESSION_NAME": "a Jupyter server",
        "JPY_PARENT_PID": "a Jupyter server",
    }
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        yield Finding(area=_AREA, what="front end", state=Verdict.OK, said="none: this is no kernel")
        return
    who = next((name for variable, name in known.items() if variable in os.environ), "one that does not tell its name")
    name = notebook_name()
    yield Finding(area=_AREA, what="front end", state=Verdict.OK, said=f"{who}{f', {name}' if name else ''}")
