"""Real JupyterLab, Notebook 7 and Voilà in a real Chromium.

``lab``, ``notebook7`` and ``voila`` are servers (one each a session, with settings of their own, never the user's); ``app`` is each of the first two in turn.
``await lab.open(…)`` opens a copy of a notebook, or a new one made of cells, and gives a ``NotebookPage``. Its kernel is shut down after
the test, and a page error (an exception in the front end) fails the test. JupyterLab is loaded once a session, and used as a person does who has
one window all day: the tests open and close notebooks in it. All tests share one event loop, that of the browser. ::

    async def test_stop(app):
        page = await app.open(cells=["import nbprocs; pm = nbprocs.ProcessManager(); await pm.spawn('sleep', '1000'); pm"])
        await page.run_all()
        await page.output(0).get_by_role("button", name="Stop").click()

``--shots=DIR`` keeps a picture of each ``page.shot(name)``. Without Chromium or Playwright this whole folder is skipped, or fails where ``CI`` is set.
"""

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.browser.server import CHROMIUM, FLAGS, Kind, Server, missing, serve

HERE = Path(__file__).parent
MISSING = missing("playwright", "notebook", "voila")


class Unavailable(pytest.Module):
    """A test module that can't run here, and says what is missing."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: one skip for the whole module, or one failure in CI."""
        reason = f"browser tests need {', '.join(MISSING)}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Unavailable.from_parent(parent, path=module_path) if MISSING and HERE in module_path.parents else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser is one for all, and belongs to the loop that started it."""
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(autouse=True)
def leaked_tasks() -> None:
    """Not here: the loop is the browser's, and what nbprocs does is done in kernels."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shots", default=None, help="folder for pictures of the browser tests")


class Servers:
    """The session's servers; each is started when it is first asked for."""

    def __init__(self, stack: ExitStack, folders: pytest.TempPathFactory) -> None:
        self.started: dict[Kind, Server] = {}
        self._stack, self._folders = stack, folders

    def get(self, kind: Kind) -> Server:
        """The server of a kind."""
        if kind not in self.started:
            self.started[kind] = self._stack.enter_context(serve(kind, self._folders.mktemp(kind)))
        return self.started[kind]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The session's servers."""
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory)


@pytest.fixture(autouse=True)
def leaks(servers: Servers) -> Iterator[None]:
    """Fails when a server has a kernel, or a child of one, after the test. The browser's own processes come and go."""
    yield
    until = time.monotonic() + 20
    while left := [child for server in servers.started.values() for child in psutil.Process(server.process.pid).children(recursive=True)]:
        for server in servers.started.values():
            server.end_kernels()  # a page that was reloaded may just have asked for one
        if time.monotonic() > until:
            pytest.fail(f"left behind: {[child.cmdline() for child in left]}", pytrace=False)
        time.sleep(0.02)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[object]:
    """A started browser."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def windows() -> dict[Kind, object]:
    """The session's window on each server."""
    return {}


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where pictures go."""
    folder = Path(request.config.getoption("shots", default=None) or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def opened(servers: Servers, chromium: object, windows: dict[Kind, object], shots: Path) -> Callable[[Kind], Any]:
    """Gives an App of a kind, as a context."""
    from tests.browser.pages import opened  # needs Playwright

    return lambda kind: opened(servers.get(kind), chromium, windows, shots)


@pytest_asyncio.fixture(loop_scope="session")
async def lab(opened: Callable[[Kind], Any]) -> AsyncIterator[object]:
    """JupyterLab."""
    async with opened("lab") as app:
        yield app


@pytest_asyncio.fixture(loop_scope="session")
async def notebook7(opened: Callable[[Kind], Any]) -> AsyncIterator[object]:
    """Notebook 7."""
    async with opened("notebook") as app:
        yield app


@pytest_asyncio.fixture(loop_scope="session")
async def voila(opened: Callable[[Kind], Any]) -> AsyncIterator[object]:
    """Voilà."""
    async with opened("voila") as app:
        yield app


@pytest_asyncio.fixture(params=["lab", "notebook"], loop_scope="session")
async def app(request: pytest.FixtureRequest, opened: Callable[[Kind], Any]) -> AsyncIterator[object]:
    """JupyterLab and Notebook 7, one after the other."""
    async with opened(request.param) as app:
        yield app
