"""The notebooks of the repository, live in JupyterLab: each runs top to bottom, and the first one is used with the mouse."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.async_api import expect

from tests.browser.server import ROOT
from tests.browser.test_widgets import row, screen

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blank(path: Path, folder: Path) -> Path:
    """A copy without outputs, so that every output seen is of this run."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    copy = folder / path.name
    nbformat.write(notebook, copy)
    return copy


@pytest.mark.timeout(240)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
async def test_each_notebook_runs_live(lab: Any, path: Path, tmp_path: Path) -> None:
    page = await lab.open(blank(path, tmp_path))
    await page.run_all(timeout=120)
    await page.shot("end")
    page.check()


async def test_the_first_notebook_shows_live_output_and_its_stop_button_stops(lab: Any, tmp_path: Path) -> None:
    copy = blank(ROOT / "notebooks/01-manager.ipynb", tmp_path)
    sources = [cell.source for cell in nbformat.read(copy, as_version=4).cells]
    pane = next(number for number, source in enumerate(sources) if source.endswith("\nweb"))
    table = sources.index("pm")
    page = await lab.open(copy)
    for number in await page.code_cells():
        if number <= table:
            await page.run(number)
    await expect(screen(page.output(pane))).to_contain_text("GET / HTTP")
    await page.cell(pane).scroll_into_view_if_needed()
    await page.shot("live-output")
    web = row(page.output(table).locator(".nb-view"), "web")
    await expect(web).to_contain_text("running")
    await page.cell(table).scroll_into_view_if_needed()
    await page.shot("live-table")
    await web.get_by_role("button", name="Stop").click()
    await expect(web).to_contain_text("terminated")
    await expect(page.output(pane)).to_contain_text(re.compile("terminated|SIGTERM"))
    for number in await page.code_cells():
        if number > table:
            await page.run(number)
    page.check()
