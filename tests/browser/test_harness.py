"""The harness itself."""

from playwright.async_api import expect


async def test_cells_run(app):
    page = await app.open(cells=["print(6 * 7)", "await __import__('asyncio').sleep(0.1); 'two'"])
    await page.run_all()
    await expect(page.output(0)).to_contain_text("42")
    await expect(page.output(1)).to_contain_text("two")
    saved = await page.save()
    assert saved.cells[0].outputs[0].text == "42\n"
    await page.reload()
    await expect(page.output(1)).to_contain_text("two")


async def test_dark(lab):
    page = await lab.open(cells=["1"], dark=True)
    await expect(page.page.locator("body")).to_have_attribute("data-jp-theme-light", "false")


async def test_voila_shows_outputs(voila):
    page = await voila.open(cells=["print('from a cell')"])
    await expect(page.page.get_by_text("from a cell")).to_be_visible()
