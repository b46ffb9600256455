"""An open notebook as a test handles it: run cells, look at outputs, reload, take pictures.

JupyterLab is loaded once for all tests, since that takes longer than most of them: a ``Window`` is kept from one to the next, and notebooks are opened and
closed in it. A test that leaves something behind in the page's scripts sets ``page.window.spoiled``.
"""

import asyncio
import itertools
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
from playwright.async_api import Browser, Locator, Page, expect
from playwright.async_api import Error as PlaywrightError

from tests.browser.server import ROOT, Kind, Server

expect.set_options(timeout=30_000)  # a loaded machine with two cores; only a failure waits that long
KEY_TRIES = 5
START_LIMIT = 60  # seconds for all of them: a test has 120
SAVE_LOOKS = 400  # every 50 ms
CELL = ".jp-Notebook .jp-Cell"
EXECUTED = re.compile(r"\[\d+\]")
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"  # its mark says so before there is one
ERROR = "[data-mime-type='application/vnd.jupyter.error']"
OPEN = """async (path) => {
  const { jupyterapp } = window;
  await jupyterapp.restored;
  const widget = await jupyterapp.commands.execute('docmanager:open', { path, factory: 'Notebook' });
  await widget.context.ready;
}"""
CLOSE = """() => {
  const { shell } = window.jupyterapp;
  for (const area of ['main', 'down'])
    for (const widget of [...shell.widgets(area)]) {
      if (widget.context?.model) widget.context.model.dirty = false;
      widget.dispose();
    }
  for (const node of document.querySelectorAll('.Toastify__close-button')) node.click();
  shell.collapseLeft();
  return document.querySelectorAll('.jp-Notebook, .jp-Dialog').length;
}"""
UPSTREAM = "Cannot read properties of undefined (reading 'schema')"  # Notebook 7.6 throws it by itself when it loads its settings


class NotebookPage:
    """One notebook in one browser tab."""

    def __init__(self, server: Server, window: "Window", notebook: str, shots: Path) -> None:
        self.server, self.window, self.page, self.notebook, self.shots = server, window, window.page, notebook, shots
        self.page_errors = window.errors

    async def ready(self) -> None:
        """Wait until the kernel is idle (Voilà: until the page has been rendered)."""
        if self.server.kind == "voila":
            await self.page.wait_for_function(
                "() => document.querySelector('#rendered_cells, .jp-Notebook, .jp-OutputArea')", timeout=90_000
            )
            return
        # JupyterLab shows an empty cell before the file has been read.
        count = len(nbformat.read(self.server.folder / self.notebook, as_version=4).cells)
        await expect(self.page.locator(CELL)).to_have_count(count, timeout=90_000)
        await self.page.wait_for_function(IDLE, timeout=90_000)

    def cell(self, number: int) -> Locator:
        """A cell by its number, markdown cells counted."""
        return self.page.locator(CELL).nth(number)

    def output(self, number: int) -> Locator:
        """The output area of a cell."""
        return self.cell(number).locator(".jp-Cell-outputWrapper")

    async def start(self, number: int) -> None:
        """Run a cell, and return when the kernel has it."""
        cell = self.cell(number)
        prompt = cell.locator(".jp-InputPrompt").first
        wrong = f"the page did not answer within {START_LIMIT} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(START_LIMIT):
                before = await prompt.text_content() or ""
                for _ in range(KEY_TRIES):  # a page that is still settling takes the focus away between click and key
                    try:
                        await cell.scroll_into_view_if_needed(timeout=8000)
                        await prompt.click(timeout=8000)
                        await self.page.keyboard.press("Control+Enter")
                        await expect(prompt).not_to_have_text(before, timeout=4000)
                    except (AssertionError, PlaywrightError) as error:
                        wrong = str(error)  # names what lies over it
                    else:
                        return
        self.window.spoiled = True  # whatever it was, the next test does not inherit it
        left = f"cell {number} of {self.notebook} did not start: {wrong}"
        with suppress(TimeoutError, PlaywrightError):
            async with asyncio.timeout(10):
                left += f"; dialogs: {await self.page.locator('.jp-Dialog').all_inner_texts()}"
                left += f"; the window is in {await self.shot('not-started')}"
        raise AssertionError(left)

    async def run(self, number: int, *, timeout: float = 60, check: bool = True) -> None:
        """Run a cell to its end; fails if it raised, unless ``check=False``."""
        await self.start(number)
        await expect(self.cell(number).locator(".jp-InputPrompt").first).to_have_text(EXECUTED, timeout=timeout * 1000)
        error = self.output(number).locator(ERROR)
        if check and await error.count():
            message = f"cell {number} of {self.notebook} raised:\n{await error.first.inner_text()}"
            raise AssertionError(message)

    async def code_cells(self) -> list[int]:
        """The numbers of the code cells."""
        classes = await self.page.locator(CELL).evaluate_all("cells => cells.map(c => c.className)")
        return [number for number, names in enumerate(classes) if "jp-CodeCell" in names]

    async def run_all(self, *, timeout: float = 60) -> None:
        """Run all code cells in order; fails at the first that raises."""
        for number in await self.code_cells():
            await self.run(number, timeout=timeout)

    async def save(self) -> nbformat.NotebookNode:
        """Save, and return what is in the file then."""
        path = self.server.folder / self.notebook
        before = path.stat().st_mtime_ns
        await self.page.keyboard.press("Control+s")
        for _ in range(SAVE_LOOKS):
            await self.page.wait_for_timeout(50)
            with suppress(nbformat.reader.NotJSONError):  # it is being written
                if path.stat().st_mtime_ns != before:
                    return nbformat.read(path, as_version=4)
        message = f"{self.notebook} was not saved; the window is in {await self.shot('not-saved')}"
        raise AssertionError(message)

    async def reload(self) -> None:
        """Reload the tab; the kernel lives on."""
        self.window.spoiled = True  # a while later JupyterLab opens the notebook of its address once more, over that of the next test
        await self.page.reload(wait_until="domcontentloaded")
        await self.ready()

    async def shot(self, name: str) -> Path:
        """A picture of the window."""
        path = self.shots / f"{Path(self.notebook).stem}-{self.server.kind}-{name}.png"
        await self.page.screenshot(path=str(path))
        return path

    def check(self) -> None:
        """Fails if something was thrown in the page."""
        thrown = [text for text in self.page_errors if UPSTREAM not in text or self.server.kind != "notebook"]
        assert not thrown, thrown  # the window's own list is empty by the time that a report shows it


class Window:
    """A tab of the browser, on one server."""

    def __init__(self, server: Server, page: Page, *, dark: bool = False) -> None:
        self.server, self.page, self.dark = server, page, dark
        self.fresh = True  # nothing is loaded
        self.spoiled = False  # not to be used by another test
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))

    async def show(self, notebook: str) -> None:
        """Bring a notebook into it: by its address, or in JupyterLab through its own command."""
        if self.fresh or self.server.kind != "lab":
            await self.page.goto(self.server.url(notebook, dark=self.dark), wait_until="domcontentloaded", timeout=90_000)
            self.fresh = False
        else:
            await self.page.evaluate(OPEN, notebook)

    async def clear(self) -> bool:
        """Close what is open in it; False where it can't be used again."""
        self.errors.clear()
        if self.spoiled or self.page.is_closed():
            return False
        await self.page.context.clear_permissions()
        if self.server.kind != "lab":
            await self.page.goto("about:blank")
            return True
        try:
            return await self.page.evaluate(CLOSE) == 0
        except PlaywrightError:  # it was being loaded
            return False


class App:
    """A server and a browser: opens notebooks."""

    def __init__(self, server: Server, browser: Browser, windows: dict[Kind, Window], shots: Path) -> None:
        self.server, self.browser, self.windows, self.shots = server, browser, windows, shots
        self.pages: list[NotebookPage] = []

    async def open(
        self,
        notebook: str | Path | None = None,
        *,
        cells: list[str] | None = None,
        dark: bool = False,
        width: int = 1280,
        height: int = 900,
    ) -> NotebookPage:
        """Open a copy of a notebook (a path from the repository's root), or a new one of code cells, in a window of its own."""
        name = self._place(notebook, cells)
        window = await self._window(dark=dark, width=width, height=height)
        return await self._show(name, window)

    async def open_existing(self, name: str, *, trusted: bool) -> NotebookPage:
        """A notebook of the folder again, after it was left: signed, as JupyterLab signs what a person ran, or not."""
        self.server.trust(name, signed=trusted)
        return await self._show(name, await self._window())

    async def second_tab(self, first: NotebookPage) -> NotebookPage:
        """The same notebook in another tab: one kernel, two front ends."""
        return await self._show(first.notebook, Window(self.server, await first.page.context.new_page()))

    async def leave(self, page: NotebookPage) -> None:
        """Close the notebook, then end its kernel."""
        page.check()
        if not await page.window.clear():
            await self._drop()
        self.server.end_kernels()

    async def renew(self) -> None:
        """Load JupyterLab anew with the next notebook: it knows the kernels that were there when it was loaded."""
        await self._drop()

    async def _window(self, *, dark: bool = False, width: int = 1280, height: int = 900) -> Window:
        window = self.windows.get(self.server.kind)
        if window is not None and window.dark is not dark:
            await self._drop()
            window = None
        if window is None:
            self.server.theme(dark=dark)
            context = await self.browser.new_context(color_scheme="dark" if dark else "light")
            window = self.windows[self.server.kind] = Window(self.server, await context.new_page(), dark=dark)
        await window.page.set_viewport_size({"width": width, "height": height})
        return window

    async def _drop(self) -> None:
        if (window := self.windows.pop(self.server.kind, None)) is not None:
            await window.page.context.close()

    async def clean(self) -> None:
        """After a test: no notebook is open, no other tab is there, no kernel runs."""
        window = self.windows.get(self.server.kind)
        if window is not None and not await window.clear():
            await self._drop()
        for context in self.browser.contexts:
            for page in context.pages:
                if page not in [kept.page for kept in self.windows.values()]:
                    await page.close()
        self.server.end_kernels()

    async def _show(self, name: str, window: Window) -> NotebookPage:
        found = NotebookPage(self.server, window, name, self.shots)
        self.pages.append(found)
        await window.show(name)
        await found.ready()
        if self.server.kind == "lab":
            await window.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")  # the room is the notebook's
        return found

    def _place(self, notebook: str | Path | None, cells: list[str] | None) -> str:
        number = next(_numbers)
        if notebook is not None:
            source = ROOT / notebook
            folder = self.server.folder / f"{number}"
            folder.mkdir()
            shutil.copy(source, folder)
            return f"{number}/{source.name}"
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells or []])
        made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, self.server.folder / f"test-{number}.ipynb")
        return f"test-{number}.ipynb"


_numbers = itertools.count(1)


@asynccontextmanager
async def opened(server: Server, browser: Browser | Any, windows: dict[Kind, Window], shots: Path) -> AsyncIterator[App]:
    """An App for one test; afterwards its notebooks are closed, its kernels ended, and what was thrown in a page fails the test."""
    app = App(server, browser, windows, shots)
    try:
        yield app
        for page in app.pages:
            page.check()
    finally:
        await app.clean()
