"""JupyterLab's panel over the processes of all kernels: rows, orders, output in a tab, notices; with real kernels and real shims."""

import re

from playwright.async_api import expect

START = "import nbprocs; p = await nbprocs.spawn('sh', '-c', 'echo here it is; exec sleep 1000', name='panel-job'); print(p.pid)"


async def opened_panel(page):
    await expect(page.locator(".nbprocs-status")).to_be_visible(timeout=60_000)
    await page.locator(".nbprocs-status").click()
    row = page.locator(".jp-RunningSessions-item.nbprocs-item", has_text="panel-job")
    await expect(row).to_be_visible()
    return row


async def test_a_process_is_seen_and_stopped(lab):
    notebook = await lab.open(cells=[START, "print(p.status)"])
    await notebook.run(0)
    page = notebook.page
    row = await opened_panel(page)
    await expect(page.locator(".nbprocs-status")).to_have_text(re.compile(r"\d+ running"))
    await notebook.shot("panel")
    await row.hover()
    await row.locator(".jp-RunningSessions-itemShutdown").click()
    await expect(row).to_have_count(0)
    await notebook.run(1)
    await expect(notebook.output(1)).to_contain_text("terminated")


async def test_it_works_while_the_kernel_is_blocked(lab):
    notebook = await lab.open(cells=[START, "import time; time.sleep(12); print(p.pid, 'slept')"])
    await notebook.run(0)
    await notebook.start(1)
    row = await opened_panel(notebook.page)
    await row.click(button="right")
    await notebook.page.locator(".lm-Menu-item[data-command='nbprocs:stop']").click()
    await expect(row).to_have_count(0)
    await expect(notebook.output(1)).to_have_text("", use_inner_text=True)  # the cell still computes


async def test_the_output_opens_in_a_tab(lab):
    notebook = await lab.open(cells=[START])
    await notebook.run(0)
    row = await opened_panel(notebook.page)
    await row.click(button="right")
    await notebook.page.locator(".lm-Menu-item[data-command='nbprocs:output']").click()
    await expect(notebook.page.locator(".nbprocs-output .xterm-accessibility")).to_contain_text("here it is")
    await notebook.shot("panel-output")


async def test_the_end_of_a_process_is_told(lab):
    told = "await nbprocs.run('sh', '-c', 'echo reason; exit 3', name='told', notify=True, check=False)"
    notebook = await lab.open(cells=["import nbprocs", told])
    await notebook.run(0)
    await notebook.run(1)
    toast = notebook.page.locator(".Toastify__toast", has_text="told")
    await expect(toast).to_contain_text("reason", timeout=60_000)
    await notebook.shot("panel-toast")


async def test_a_detached_process_outlives_a_restart_and_is_adopted(lab):
    """It is in the live table, marked, before and after; the panel has it all the time."""
    name = "detached-job"
    begin = "import nbprocs; pm = nbprocs.ProcessManager()"
    start = f"{begin}; q = await pm.spawn('sh', '-c', 'echo begun; read x; exit $x', name='{name}', detach=True, stdin=True); pm"
    adopt = f"{begin}; q = await pm.adopt('{name}'); pm"
    end = "await q.send_line('6'); print((await q.wait()).exit_code)"
    notebook = await lab.open(cells=[start, adopt, end])
    await notebook.run(0)
    page = notebook.page
    row = page.locator(".jp-RunningSessions-item.nbprocs-item", has_text=name)
    await expect(page.locator(".nbprocs-status")).to_be_visible(timeout=60_000)
    await page.locator(".nbprocs-status").click()
    await expect(row).to_contain_text("detached")
    line = notebook.output(0).locator(".nb-space .nb-row", has_text=name)
    await expect(line.locator(".nb-mark")).to_be_visible()
    await expect(line).to_contain_text("running")
    await notebook.shot("detached-before")
    await notebook.cell(0).locator(".jp-InputPrompt").first.click()
    for key in ("Escape", "0", "0"):
        await page.keyboard.press(key)
    await page.locator(".jp-Dialog .jp-mod-accept").first.click()
    await expect(row).to_contain_text("detached")
    await notebook.run(1)
    line = notebook.output(1).locator(".nb-space .nb-row", has_text=name)
    await expect(line.locator(".nb-mark")).to_be_visible()
    await expect(line).to_contain_text("running")
    await notebook.shot("detached-after")
    await notebook.run(2)
    await expect(notebook.output(2)).to_contain_text("6")
    await expect(line).to_contain_text("failed")
