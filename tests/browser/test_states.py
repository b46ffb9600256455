"""One notebook in all its states: live, reloaded, restarted, reopened, trusted or not, without a browser, sanitised. The record or the live view shows."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.async_api import expect

from tests.browser.test_widgets import START, row, screen

CELLS = [
    f"{START}proc = await pm.spawn('sh', '-c', 'echo first words; exec sleep 1000', name='sleeper')\nproc",
    "_ = await pm.run('sh', '-c', 'echo brief words', name='brief')\npm",
]
ERRORS = "Error displaying widget|model not found|Loading widget"


async def records(page: Any) -> None:
    """Both outputs show their records and no live view."""
    assert await page.page.locator(".nb-view").count() == 0
    for number, words in ((0, "first words"), (1, "brief")):
        record = page.output(number).locator("[class^=nb-rec-]")
        await expect(record).to_be_visible()
        await expect(record).to_contain_text(words)
    await expect(page.output(0)).to_contain_text(re.compile(r"as of \d\d:\d\d, \d\d \w+ \d{4}"))
    assert not re.search(ERRORS, await page.page.locator(".jp-Notebook").inner_text())


async def alive(page: Any) -> None:
    """Both outputs show their live views, and no record."""
    await expect(screen(page.output(0))).to_contain_text("first words")
    await expect(row(page.output(1), "sleeper")).to_contain_text("running")
    assert await page.page.locator("[class^=nb-rec-]:visible").count() == 0


async def closed(app: Any, page: Any) -> nbformat.NotebookNode:
    """Save, leave the page, end the kernel: what is in the file then."""
    saved = await page.save()
    await app.leave(page)
    return saved


async def test_reloaded_and_reopened_with_a_new_kernel(app: Any) -> None:
    page = await app.open(cells=CELLS)
    await page.run_all()
    await alive(page)
    await page.shot("live")
    saved = await page.save()
    for cell in saved.cells:
        assert set(cell.outputs[0].data) == {"text/plain", "text/html"}
        assert "<script" not in cell.outputs[0].data["text/html"]
    await page.reload()
    await alive(page)
    name = page.notebook
    await closed(app, page)
    for trust in (True, False):
        again = await app.open_existing(name, trusted=trust)
        await records(again)
        await again.shot(f"reopened-{'trusted' if trust else 'untrusted'}")
        await again.run(0)
        await expect(screen(again.output(0))).to_contain_text("first words")
        await records_of(again, 1)
        await closed(app, again)


async def records_of(page: Any, number: int) -> None:
    """One output shows its record."""
    await expect(page.output(number).locator("[class^=nb-rec-]")).to_be_visible()


async def test_a_kernel_that_was_restarted_leaves_the_record_and_says_so(lab: Any) -> None:
    page = await lab.open(cells=CELLS)
    await page.run_all()
    await alive(page)
    await page.cell(0).locator(".jp-InputPrompt").first.click()
    for key in ("Escape", "0", "0"):
        await page.page.keyboard.press(key)
    await page.page.get_by_role("button", name="Confirm Kernel Restart").or_(page.page.locator(".jp-Dialog .jp-mod-accept")).first.click()
    await expect(page.output(0).get_by_role("status")).to_contain_text("gone; below is its record")
    await records(page)
    await page.shot("restarted")
    await page.run_all()
    await alive(page)


async def test_a_kernel_that_died_leaves_the_record(lab: Any) -> None:
    page = await lab.open(cells=[*CELLS, "import os; os.kill(os.getpid(), 9)"])
    await page.run(0)
    await page.run(1)
    await alive(page)
    await page.start(2)
    await expect(page.output(1).get_by_role("status")).to_contain_text("gone; below is its record")
    await records(page)


async def test_an_output_that_is_deleted_ends_its_view(lab: Any) -> None:
    page = await lab.open(cells=[*CELLS, "len(pm._nbprocs_views[0]._viewers) if '_nbprocs_views' in vars(pm) else 0", "1"])
    await page.run_all()
    await alive(page)
    await expect(page.output(2)).to_contain_text("1")
    await page.cell(1).locator(".jp-InputPrompt").first.click()
    await page.page.keyboard.press("Escape")
    await page.page.keyboard.press("d")
    await page.page.keyboard.press("d")
    await expect(page.page.locator(".jp-Notebook .jp-Cell")).to_have_count(3)
    await page.page.wait_for_function("() => globalThis.__nbprocs_made.size === 1", timeout=30_000)
    await page.run(1)
    await expect(page.output(1)).to_contain_text("0")


@pytest.mark.parametrize("sanitised", [False, True], ids=["plain", "sanitised"])
def test_executed_without_a_browser(tmp_path: Path, sanitised: bool) -> None:
    cells = [*CELLS, "await proc.stop()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    nbformat.write(book, tmp_path / "book.ipynb")
    options = ["--to=html", "--execute", *(["--sanitize-html"] if sanitised else [])]
    subprocess.run([sys.executable, "-m", "nbconvert", *options, str(tmp_path / "book.ipynb")], check=True, capture_output=True)
    page = (tmp_path / "book.html").read_text()
    shown = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert "widget-view+json" not in shown
    for words in ("first words", "terminated", "brief", "2 processes: 1"):
        assert words in shown
    assert not set(re.findall(r"&lt;/?(\w+)", shown)) - {
        "ProcessResult",
        "ProcessManager",
        "tbody",
    }  # html5lib adds a tbody, and bleach knows none
    print(len(page), "bytes")


async def test_voila_shows_live_views(voila: Any) -> None:
    page = await voila.open(cells=CELLS)
    view = page.page.locator(".nb-view")
    await expect(screen(view.nth(0))).to_contain_text("first words", timeout=60_000)
    await expect(row(view.nth(1), "sleeper")).to_contain_text("running")
    assert await page.page.locator("[class^=nb-rec-]:visible").count() == 0
    await page.shot("live")


async def test_a_front_end_that_knows_widgets_only(lab: Any) -> None:
    page = await lab.open(cells=[f"import os; os.environ['NBPROCS_VIEWS'] = 'widgets'\n{CELLS[0]}", CELLS[1]])
    await page.run_all()
    await expect(screen(page.output(0))).to_contain_text("first words")
    await expect(row(page.output(1), "sleeper")).to_contain_text("running")
    saved = await page.save()
    assert "application/vnd.jupyter.widget-view+json" in saved.cells[0].outputs[0].data


async def test_in_a_box_of_widgets(lab: Any) -> None:
    page = await lab.open(cells=[CELLS[0], "import ipywidgets\nipywidgets.VBox([nbprocs.ProcessTable(pm), ipywidgets.Label('below')])"])
    await page.run_all()
    await expect(row(page.output(1), "sleeper")).to_contain_text("running")
    await expect(page.output(1)).to_contain_text("below")


async def test_all_cells_are_run_and_one_computes(lab: Any) -> None:
    """What was said before the page had a thread of the kernel waits for the cell; the rest goes on, and so does the view."""
    go = lab.server.folder / "computed"
    cells = [
        "%load_ext nbprocs",
        "%%proc --name talker\necho first words; exec sleep 1000",
        f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\nprint('computed')",
    ]
    page = await lab.open(cells=cells)
    await page.page.evaluate("() => void jupyterapp.commands.execute('notebook:run-all-cells')")
    await expect(screen(page.output(1))).to_contain_text("first words")
    await page.output(1).get_by_role("button", name="Stop").click()
    await expect(page.output(1).locator(".nb-view")).to_contain_text("terminated")
    await expect(page.output(2)).to_have_text("", use_inner_text=True)
    go.touch()
    await expect(page.output(2)).to_contain_text("computed")
