"""Real JupyterLab, Notebook 7 and Voilà in a real Chromium.

``lab``, ``notebook7`` and ``voila`` are servers (one each a session, with settings of their own, never the user's); ``app`` is each of the first two in turn.
``await lab.open(…)`` opens a copy of a notebook, or a new one made of cells, in a fresh page, and gives a ``NotebookPage``. Its kernel is shut down after
the test, and a page error (an exception in the front end) fails the test. ::

    async def test_stop(app):
        page = await app.open(cells=["import nbprocs; pm = nbprocs.ProcessManager(); await pm.spawn('sleep', '1000'); pm"])
        await page.run_all()
        await page.output(0).get_by_role("button", name="Stop").click()

``--shots=DIR`` keeps a picture of each ``page.shot(name)``. Without Chromium or Playwright this whole folder is skipped, or fails where ``CI`` is set.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nbprocs.testing import spare
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shots", default=None, help="folder for pictures of the browser tests")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Kind], Server]]:
    """Gives the session's server of a kind; each is started when it is first asked for."""
    started: dict[Kind, Server] = {}
    with ExitStack() as stack:

        def get(kind: Kind) -> Server:
            if kind not in started:
                started[kind] = stack.enter_context(serve(kind, tmp_path_factory.mktemp(kind)))
                spare(started[kind].process.pid)
            return started[kind]

        yield get


@pytest.fixture
async def chromium(leaked_tasks: None) -> AsyncIterator[object]:
    """A started browser."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where pictures go."""
    folder = Path(request.config.getoption("shots", default=None) or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _opened(kind: Kind, servers: Callable[[Kind], Server], chromium: object, shots: Path) -> AsyncIterator[object]:
    from tests.browser.pages import opened  # needs Playwright

    async with opened(servers(kind), chromium, shots) as app:
        yield app


@pytest.fixture
async def lab(servers: Callable[[Kind], Server], chromium: object, shots: Path) -> AsyncIterator[object]:
    """JupyterLab."""
    async for app in _opened("lab", servers, chromium, shots):
        yield app


@pytest.fixture
async def notebook7(servers: Callable[[Kind], Server], chromium: object, shots: Path) -> AsyncIterator[object]:
    """Notebook 7."""
    async for app in _opened("notebook", servers, chromium, shots):
        yield app


@pytest.fixture
async def voila(servers: Callable[[Kind], Server], chromium: object, shots: Path) -> AsyncIterator[object]:
    """Voilà."""
    async for app in _opened("voila", servers, chromium, shots):
        yield app


@pytest.fixture(params=["lab", "notebook"])
async def app(request: pytest.FixtureRequest, servers: Callable[[Kind], Server], chromium: object, shots: Path) -> AsyncIterator[object]:
    """JupyterLab and Notebook 7, one after the other."""
    async for found in _opened(request.param, servers, chromium, shots):
        yield found
