"""JupyterLab's panel over the processes of all kernels: rows, orders, output in a tab, notices; with real kernels and real shims."""

import re
import shutil

import pytest
from playwright.async_api import expect

from tests.browser.axe import AXE, violations
from tests.browser.pages import OPEN, NotebookPage

START = "import nbprocs; p = await nbprocs.spawn('sh', '-c', 'echo here it is; exec sleep 1000', name='panel-job'); print(p.pid)"
HIDE = """() => {
  let hidden = true;
  Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });
  Object.defineProperty(document, 'visibilityState', { get: () => (hidden ? 'hidden' : 'visible'), configurable: true });
  window.shown = () => { hidden = false; document.dispatchEvent(new Event('visibilitychange')); };
  document.dispatchEvent(new Event('visibilitychange'));
}"""


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
    if AXE.exists():
        assert await violations(page, ".nbprocs-status") == []
    await row.hover()
    await row.locator(".jp-RunningSessions-itemShutdown").click()
    await expect(row).to_have_count(0)
    await notebook.run(1)
    await expect(notebook.output(1)).to_contain_text("terminated")


async def test_it_works_while_the_kernel_is_blocked(lab):
    looked = lab.server.folder / "looked"
    busy = f"import pathlib, time\nwhile not pathlib.Path({str(looked)!r}).exists(): time.sleep(0.05)\nprint('computed')"
    notebook = await lab.open(cells=[START, busy])
    await notebook.run(0)
    await notebook.start(1)
    row = await opened_panel(notebook.page)
    await row.click(button="right")
    await notebook.page.locator(".lm-Menu-item[data-command='nbprocs:stop']").click()
    await expect(row).to_have_count(0)
    await expect(notebook.output(1)).to_have_text("", use_inner_text=True)
    looked.touch()
    await expect(notebook.output(1)).to_contain_text("computed")


async def test_the_output_opens_in_a_tab(lab):
    notebook = await lab.open(cells=[START])
    await notebook.run(0)
    row = await opened_panel(notebook.page)
    await row.click(button="right")
    await notebook.page.locator(".lm-Menu-item[data-command='nbprocs:output']").click()
    await expect(notebook.page.locator(".nbprocs-output .xterm-accessibility")).to_contain_text("here it is")
    await notebook.shot("panel-output")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_the_panel_reads_well_where_there_is_little_room(lab, dark):
    start = (
        START.replace("panel-job", "a-job-with-a-long-name") + "; import asyncio; await nbprocs.spawn('sleep', '1000', name='panel-job')"
    )
    notebook = await lab.open(cells=[start], dark=dark, width=560)
    await notebook.run(0)
    page = notebook.page
    await page.evaluate("() => window.jupyterapp.commands.execute('nbprocs:panel')")  # the status bar has no room for all of its items
    row = page.locator(".jp-RunningSessions-item.nbprocs-item", has_text="panel-job")
    await expect(row).to_be_visible(timeout=60_000)
    await notebook.shot(f"panel-560-{'dark' if dark else 'light'}")
    section = row.locator("xpath=ancestor::*[contains(@class, 'jp-RunningSessions-section')]").first
    await expect(section).to_contain_text("a-job-with-a-long-name")
    detail = row.locator(".jp-RunningSessions-itemDetail")
    assert re.match(r"\d+ s", await detail.inner_text())
    await row.click(button="right")
    await page.locator(".lm-Menu-item[data-command='nbprocs:output']").click()
    output = page.locator(".nbprocs-output")
    await expect(output).to_be_visible()
    await expect(output.get_by_role("status")).to_have_text("")  # it has written nothing: no word of a busy kernel
    await notebook.shot(f"panel-output-560-{'dark' if dark else 'light'}")
    if AXE.exists():
        for own in (".nbprocs-output", ".nbprocs-item"):
            assert await violations(page, own) == []


async def test_nothing_is_asked_while_the_page_is_hidden(lab):
    notebook = await lab.open(cells=[START])
    await notebook.run(0)
    page = notebook.page
    await opened_panel(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "nbprocs/processes" in request.url else None)
    notebook.window.spoiled = True
    await page.evaluate(HIDE)
    asked.clear()
    await page.wait_for_timeout(5000)  # two looks of a panel that is seen
    assert asked == []
    async with page.expect_request(re.compile("nbprocs/processes"), timeout=1500):  # at once, not when the slow look is due
        await page.evaluate("window.shown()")


async def test_notebook_7_has_the_panel_on_its_list_of_what_runs(notebook7):
    notebook = await notebook7.open(cells=[START, "1"])
    await notebook.run(0)
    page = await notebook.page.context.new_page()
    await page.goto(notebook7.server.tree())
    await page.get_by_role("tab", name="Running").click()
    row = page.locator(".jp-RunningSessions-item.nbprocs-item", has_text="panel-job")
    await expect(row).to_be_visible(timeout=60_000)
    await page.screenshot(path=str(notebook.shots / "panel-notebook7.png"))
    await row.hover()
    await row.locator(".jp-RunningSessions-itemShutdown").click()
    await expect(row).to_have_count(0)


async def test_the_end_of_a_process_is_told(lab):
    told = "await nbprocs.run('sh', '-c', 'echo reason; exit 3', name='told', notify=True, check=False)"
    notebook = await lab.open(cells=["import nbprocs", told])
    await notebook.run(0)
    await notebook.run(1)
    toast = notebook.page.locator(".Toastify__toast", has_text="told")
    await expect(toast).to_contain_text("reason", timeout=60_000)
    await notebook.shot("panel-toast")


NOTED = """() => {
  const own = window.Notification;
  window.told = [];
  window.Notification = class extends own {
    constructor(title, options) {
      super(title, options);
      window.told.push([title, options.body, own.permission]);
    }
  };
  window.undo = () => {
    delete document.hidden;
    delete document.visibilityState;
    window.Notification = own;
  };
}"""


async def test_who_looks_away_is_told_by_the_browser_and_by_the_title(lab):
    """Each end once, a failure only where that was asked for. A page without a screen is never hidden, so the page is told that it is."""
    asked = {"dull": "nbprocs.Notify(failures_only=True)", "done": "True", "bad": "nbprocs.Notify(failures_only=True)", "late": "True"}
    start = "import nbprocs; pm = nbprocs.ProcessManager()\n" + "\n".join(
        f"{name} = await pm.spawn('sh', '-c', 'read x; echo it was $x; exit $x', name='{name}', stdin=True, notify={how})"
        for name, how in asked.items()
    )
    ends = [
        f"await {name}.send_line('{code}'); _ = await {name}.wait()" for name, code in (("dull", 0), ("done", 0), ("bad", 3), ("late", 0))
    ]
    notebook = await lab.open(cells=[start, "; ".join(ends[:3]), ends[3]])
    page = notebook.page
    await page.context.grant_permissions(["notifications"])
    await notebook.run(0)
    title = await page.title()
    notebook.window.spoiled = True
    await page.evaluate(NOTED)
    await page.evaluate(HIDE)
    await notebook.run(1)
    await expect(page).to_have_title(re.compile(r"^\(2\) bad failed"))
    told = await page.evaluate("told")
    assert [news[0].split()[:2] for news in told] == [["done", "completed"], ["bad", "failed"]], told
    assert [news[1:] for news in told] == [["it was 0", "granted"], ["it was 3", "granted"]], told
    await page.evaluate("shown()")
    await expect(page).to_have_title(title)
    await notebook.run(2)
    await expect(page.locator(".Toastify__toast", has_text="late completed")).to_be_visible(timeout=60_000)
    assert len(await page.evaluate("told")) == 2
    assert await page.title() == title
    await page.evaluate("undo()")
    notebook.window.spoiled = False


async def test_the_bell_of_a_view_is_set_by_keys_and_rings(lab):
    start = "import nbprocs; pm = nbprocs.ProcessManager(); p = await pm.spawn('cat', stdin=True, name='belled'); pm"
    notebook = await lab.open(cells=[start, "p", "await p.close_stdin()"])
    await notebook.run(0)
    await notebook.run(1)
    table, pane = (notebook.output(number).locator(".nb-view") for number in (0, 1))
    await table.locator(".nb-body").focus()
    await notebook.page.keyboard.press("Home")
    await notebook.page.keyboard.press("b")
    bell = pane.get_by_role("button", name="Tell me when it is done")
    await expect(bell).to_have_attribute("aria-pressed", "true")
    await expect(table.locator(".nb-told")).to_be_visible()
    await bell.focus()
    await notebook.page.keyboard.press("Space")
    await expect(bell).to_have_attribute("aria-pressed", "false")
    await notebook.page.keyboard.press("Space")
    await expect(table.locator(".nb-told")).to_be_visible()
    await notebook.shot("bell")
    await notebook.run(2)
    await expect(notebook.page.locator(".Toastify__toast", has_text="belled completed")).to_be_visible(timeout=60_000)
    await expect(bell).to_be_disabled()


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


TOLD = "await nbprocs.run('sh', '-c', 'echo reason', name='{}', notify=True)"
CLOSE_ONE = """(path) => {
  const one = [...jupyterapp.shell.widgets('main')].find((widget) => widget.context?.path === path);
  one.context.model.dirty = false;
  one.dispose();
}"""
OPEN_WITH_KERNEL = """async ([path, id]) => {
  const { commands } = window.jupyterapp;
  const widget = await commands.execute('docmanager:open', { path, factory: 'Notebook', kernel: { id }, options: { mode: 'split-right' } });
  await widget.sessionContext.ready;
}"""


async def test_an_output_tab_leaves_a_notebook_its_widgets(lab):
    """A kernel's comms are those of one connection of the page: a tab of output that took them left none to a notebook opened after it."""
    notebook = await lab.open(cells=[START, "p"])
    await notebook.run(0)
    page = notebook.page
    row = await opened_panel(page)
    await page.evaluate(CLOSE_ONE, notebook.notebook)
    await row.click(button="right")
    await page.locator(".lm-Menu-item[data-command='nbprocs:output']").click()
    await expect(page.locator(".nbprocs-output .xterm-accessibility")).to_contain_text("here it is")
    await page.evaluate(OPEN, notebook.notebook)
    await notebook.ready()
    await notebook.run(1)
    await expect(notebook.output(1).locator(".nb-view .xterm-rows")).to_contain_text("here it is")


async def test_each_notebook_of_a_kernel_hears_its_news(lab):
    """The second one has a connection without comms. A thing is told once for all of them, and still by the one that is left."""
    first = await lab.open(cells=["import nbprocs", TOLD.format("both")])
    await first.run(0)
    page, toasts = first.page, first.page.locator(".Toastify__toast")
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    shutil.copy(lab.server.folder / first.notebook, lab.server.folder / "second.ipynb")
    await page.evaluate(OPEN_WITH_KERNEL, ["second.ipynb", lab.server.ask("api/kernels")[0]["id"]])
    second = NotebookPage(lab.server, first.window, "second.ipynb", first.shots)
    async with page.expect_response(re.compile("nbprocs/processes")):
        await page.evaluate("() => jupyterapp.commands.execute('nbprocs:refresh')")
    await first.run(1)
    await expect(toasts.filter(has_text="both completed")).to_have_count(1, timeout=60_000)
    await page.evaluate(CLOSE_ONE, first.notebook)
    await second.run(1)
    await expect(toasts.filter(has_text="both completed")).to_have_count(2, timeout=60_000)
    assert [text for text in errors if re.search("comm|nbprocs", text, re.IGNORECASE)] == []  # JupyterLab has errors of its own


async def test_a_kernel_that_was_killed_is_heard_again(lab):
    notebook = await lab.open(
        cells=["import nbprocs", TOLD.format("before"), "import os; os.kill(os.getpid(), 9)", TOLD.format("killed-and-back")]
    )
    await notebook.run(0)
    await notebook.run(1)
    toasts = notebook.page.locator(".Toastify__toast")
    await expect(toasts.filter(has_text="before")).to_be_visible(timeout=60_000)
    await notebook.start(2)
    await notebook.page.locator(".jp-Dialog .jp-mod-accept").first.click(timeout=60_000)
    await notebook.run(0)
    await notebook.run(3)
    await expect(toasts.filter(has_text="killed-and-back")).to_be_visible(timeout=60_000)


async def test_what_ends_while_a_cell_computes_is_told_meanwhile(lab):
    """All cells are run: the page comes to ask for news when the kernel's main thread has no time for it."""
    computed, end = lab.server.folder / "told-meanwhile", lab.server.folder / "end-now"
    busy = f"import pathlib, time\nwhile not pathlib.Path({str(computed)!r}).exists(): time.sleep(0.01)\nprint('computed')"
    job = f"%%proc --name meanwhile --notify\nuntil [ -e {end} ]; do sleep 0.05; done"
    notebook = await lab.open(cells=["%load_ext nbprocs", job, busy])
    await notebook.page.evaluate("() => void jupyterapp.commands.execute('notebook:run-all-cells')")
    await expect(notebook.output(1).locator(".nb-view")).to_contain_text("meanwhile")
    end.touch()
    await expect(notebook.page.locator(".Toastify__toast", has_text="meanwhile completed")).to_be_visible(timeout=60_000)
    await expect(notebook.output(2)).to_have_text("", use_inner_text=True)
    computed.touch()
    await expect(notebook.output(2)).to_contain_text("computed")


async def test_the_output_of_a_detached_process_comes_when_the_server_is_back(lab):
    start = "import nbprocs; q = await nbprocs.spawn('sh', '-c', 'echo here it is; exec sleep 1000', name='panel-job', detach=True)"
    notebook = await lab.open(cells=[start, "_ = await q.stop(grace=0)"])
    await notebook.run(0)
    page = notebook.page
    row = await opened_panel(page)
    await page.route("**/nbprocs/output*", lambda route: route.abort())
    await row.click(button="right")
    await page.locator(".lm-Menu-item[data-command='nbprocs:output']").click()
    output = page.locator(".nbprocs-output")
    await expect(output.get_by_role("status")).not_to_have_text("")
    await page.unroute("**/nbprocs/output*")
    await expect(output.locator(".xterm-accessibility")).to_contain_text("here it is")
    await expect(output.get_by_role("status")).to_have_text("")
    await page.evaluate(OPEN, notebook.notebook)  # in front of the tab
    await notebook.run(1)


CONSOLE = """async (code) => {
  const { commands } = jupyterapp;
  const panel = await commands.execute('console:create', { path: '', kernelPreference: { name: 'python3' } });
  await panel.sessionContext.ready;
  await panel.console.inject(code);
  await commands.execute('nbprocs:refresh');
}"""


async def test_a_console_hears_the_news_of_its_kernel(lab):
    notebook = await lab.open(cells=["1"])
    page = notebook.page
    await page.evaluate(CONSOLE, "import nbprocs\n" + TOLD.format("of-a-console"))
    await expect(page.locator(".Toastify__toast", has_text="of-a-console completed")).to_be_visible(timeout=60_000)
