"""How the views look and are handled: room for what matters, panes that grow, stderr's gutter, links, full-screen programs, pictures of all."""

import importlib.util
import json
import re
import shutil
from typing import Any

import pytest
from playwright.async_api import expect

from tests.browser.axe import AXE, violations
from tests.browser.test_widgets import CONTRAST, DASHBOARD, START, row, screen

CROWD = f"""{START}import asyncio
train = "import time\\nfor i in range(100000): print(f'epoch {{i}} loss {{1 / (i + 1):.4f}}, validation accuracy {{i / 100000:.3f}}', flush=True); time.sleep(.3)"
await pm.spawn(sys.executable, "-c", train, name="train-resnet50-imagenet")
await pm.spawn(sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", name="web")
for i in range(3): await pm.run("sh", "-c", "echo building the documentation; exit 3", name="docs", check=False)
await pm.run("sh", "-c", "echo ok", name="brief")
stopped = await pm.spawn("sleep", "1000", name="stopped")
_ = await stopped.stop()
pm"""

TERM = "[...globalThis.__nbprocs_made.values()].at(-1)?.root.parts.get('pane').term"

MIXED = """import sys
print('normal line'); print('\\x1b[7m inverse video \\x1b[0m and \\x1b[31mred\\x1b[0m', flush=True)
print('a warning on stderr', file=sys.stderr, flush=True)
print('see http://localhost:1/index.html and src/app.py:12', flush=True)
sys.stdin.readline()
for i in range(40): print('more', i, flush=True)
sys.stdin.readline()
"""


def widths(view: Any) -> Any:
    """Pixels of each column's head."""
    return view.evaluate(
        "(n) => Object.fromEntries([...n.querySelectorAll('.nb-head [data-key]')].map((c) => [c.dataset.key, c.offsetWidth]))"
    )


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (560, False)], ids=["wide", "dark", "narrow"])
async def test_the_table_gives_the_room_to_what_matters(lab: Any, width: int, dark: bool) -> None:
    page = await lab.open(cells=[CROWD], width=width, dark=dark)
    await page.run_all()
    view = page.output(0).locator(".nb-view")
    await expect(row(view, "docs")).to_have_count(1)  # three runs of one name
    await expect(row(view, "train-resnet50-imagenet")).to_contain_text("running")
    await page.page.wait_for_timeout(1500)  # the curves
    await page.shot(f"table-{width}-{'dark' if dark else 'light'}")
    room = await widths(view)
    if width == 1280:
        assert room["name"] + room["line"] > 0.45 * sum(room.values()), room
        assert room["restarts"] == room["ports"] == 0 or room["ports"] > 0, room
        await row(view, "docs").get_by_role("button", name="2 earlier runs of docs").click()
        await expect(row(view, "docs")).to_have_count(3)
        await view.locator(".nb-body").focus()
        await page.page.keyboard.press("?")
        await expect(view.locator(".nb-keys")).to_contain_text("stop, kill, restart")
        await page.shot(f"table-keys-{'dark' if dark else 'light'}")
        await page.page.keyboard.press("?")
        edge = await view.locator("[data-key=status] .nb-edge").bounding_box()
        assert edge is not None
        await page.page.mouse.move(edge["x"] + 3, edge["y"] + 5)
        await page.page.mouse.down()
        await page.page.mouse.move(edge["x"] + 63, edge["y"] + 5, steps=3)
        await page.page.mouse.up()
        assert (await widths(view))["status"] == room["status"] + 60
        await page.page.keyboard.press("c")
        await expect(view.locator(".nb-space .nb-row")).to_have_count(2)
    assert await view.evaluate(CONTRAST) == []
    assert await view.evaluate("(n) => n.scrollWidth <= n.clientWidth + 1")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_a_pane_grows_marks_stderr_and_links(lab: Any, dark: bool) -> None:
    page = await lab.open(
        cells=[f'{START}proc = await pm.spawn(sys.executable, \'-c\', """{MIXED}""", stdin=True, name=\'mixed\')\nproc'], dark=dark
    )
    await page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.run_all()
    view = page.output(0).locator(".nb-view")
    await expect(screen(view)).to_contain_text("src/app.py:12")
    heights = "(n) => new Promise((done) => { const all = []; const look = () => all.push(n.offsetHeight) < 30 ? requestAnimationFrame(look) : done(all); look(); })"
    assert len(set(await view.locator(".nb-screen").evaluate(heights))) == 1  # it does not go on growing by itself
    small = await view.locator(".nb-screen").evaluate("(n) => n.offsetHeight")
    bars = "(n) => [...n.querySelectorAll('.nb-gutter i')].map((i) => i.dataset.stream).slice(0, 4)"
    await expect(view.locator('.nb-gutter i[data-stream="stderr"]')).to_have_count(1)
    assert sorted(await view.evaluate(bars)) == ["stderr", "stdout", "stdout", "stdout"]
    inverse = await view.locator(".xterm-bg-257").first.evaluate("(n) => [getComputedStyle(n).color, getComputedStyle(n).backgroundColor]")
    assert all(tone in ("rgb(255, 255, 255)", "rgb(17, 17, 17)", "rgb(33, 33, 33)") for tone in inverse), inverse
    await page.shot(f"pane-small-{'dark' if dark else 'light'}")
    await view.get_by_label("More").select_option("Copy the same in Python")
    await expect(view.locator(".nb-notice")).to_contain_text("Copied.")
    assert (await page.page.evaluate("navigator.clipboard.readText()")).startswith("proc = await pm.spawn(")
    await view.get_by_label("More").select_option("Copy the output")
    assert "a warning on stderr" in await page.page.evaluate("navigator.clipboard.readText()")
    await view.get_by_label("More").select_option("Show or hide times")
    line = view.get_by_label("Send a line to the process")
    await line.fill("go")
    await line.press("Enter")
    await expect(line).to_have_value("")
    await expect(screen(view)).to_contain_text("more 39")
    await expect(view.locator(".nb-gutter")).to_contain_text(re.compile(r"\d\d:\d\d:\d\d"))
    large = await view.locator(".nb-screen").evaluate("(n) => n.offsetHeight")
    assert small < 120 < large <= 302
    await page.shot(f"pane-grown-{'dark' if dark else 'light'}")
    assert await view.evaluate(CONTRAST) == []


async def test_a_line_of_output_is_copied_by_ctrl_c(lab: Any) -> None:
    page = await lab.open(cells=[f"{START}proc = await pm.spawn('sh', '-c', 'echo copied-word; exec sleep 1000')\nproc"])
    await page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.run_all()
    view = page.output(0).locator(".nb-view")
    await expect(screen(view)).to_contain_text("copied-word")
    box = await screen(view).locator("div").first.bounding_box()
    assert box is not None
    await page.page.mouse.dblclick(box["x"] + 20, box["y"] + 8)
    await page.page.keyboard.press("Control+c")
    assert await page.page.evaluate("navigator.clipboard.readText()") == "copied-word"


async def point_at(page: Any, view: Any, address: str) -> tuple[float, float]:
    """Where a link is in a pane, with the mouse over it."""
    line = screen(view).locator("div", has_text=address)
    box, text, columns = await line.bounding_box(), await line.inner_text(), await page.evaluate(f"{TERM}.cols")
    x, y = box["x"] + (text.index(address) + 5.5) * box["width"] / columns, box["y"] + box["height"] / 2
    await page.mouse.move(x - 2, y)
    await page.mouse.move(x, y)
    await view.locator(".xterm-cursor-pointer").wait_for()
    return x, y


async def test_a_link_is_opened_by_a_click_and_by_nothing_else(lab: Any) -> None:
    """A port of the kernel's machine through jupyter-server-proxy, where that is installed."""
    proxied = importlib.util.find_spec("jupyter_server_proxy") is not None
    (lab.server.folder / "served.txt").write_text("served by the process")
    serve = "proc = await pm.spawn('sh', '-c', 'echo http://example.invalid/x; exec \"$0\" -u -m http.server 0 --bind 127.0.0.1', sys.executable)"
    page = await lab.open(cells=[f"{START}{serve}\nproc"])
    await page.run_all()
    view = page.output(0).locator(".nb-view")
    await expect(screen(view)).to_contain_text("Serving HTTP")
    page.window.spoiled = True
    await page.page.evaluate(
        "() => { window.opened = []; window.own = window.open; window.open = (...args) => (window.opened.push(args), null); }"
    )
    await point_at(page.page, view, "http://example.invalid/x")
    assert await page.page.evaluate("window.opened") == []
    local = re.search(r"http://127\.0\.0\.1:(\d+)/", await screen(view).inner_text())
    assert local is not None
    for address in ("http://example.invalid/x", local[0]):
        await page.page.mouse.click(*await point_at(page.page, view, address))
    await page.page.wait_for_function("() => window.opened.length === 2")
    first, second = await page.page.evaluate("window.opened")
    assert first[:2] == ["http://example.invalid/x", "_blank"]
    assert second[0] == (f"/proxy/{local[1]}/" if proxied else local[0])
    assert (
        not proxied
        or await page.page.evaluate(f"fetch('{second[0]}served.txt').then((answer) => answer.text())") == "served by the process"
    )
    await page.page.evaluate("window.open = window.own")
    page.window.spoiled = False


FULL = """import curses
def main(screen):
    key = ''
    while key != ord('q'):
        rows, columns = screen.getmaxyx()
        screen.erase(); screen.addstr(0, 0, f'size {rows}x{columns} key {key}'); screen.refresh()
        key = screen.getch()
curses.wrapper(main)
print('left the screen')
"""


async def test_a_full_screen_program_knows_its_size_and_gets_keys(lab: Any) -> None:
    spawn = f"proc = await pm.spawn(sys.executable, '-c', {json.dumps(FULL)}, pty=True, stdin=True, name='full', env_vars={{'TERM': 'xterm-256color'}})"
    page = await lab.open(cells=[f"{START}{spawn}\nproc"])
    await page.run_all()
    view = page.output(0).locator(".nb-view")
    await expect(screen(view)).to_contain_text(re.compile(r"size \d+x\d+"))
    told = "document.querySelector('.xterm-rows').textContent.includes(`${rows}x${cols}`)"
    await page.page.wait_for_function(f"() => {{ const {{ rows, cols }} = {TERM} ?? {{}}; return {told}; }}")
    await view.get_by_role("button", name=re.compile("^Type into the program")).click()
    await page.page.keyboard.press("x")
    await expect(screen(view)).to_contain_text(f"key {ord('x')}")
    await page.page.keyboard.press("ArrowUp")
    await expect(screen(view)).to_contain_text("key 259")
    await page.page.keyboard.press("Control+k")
    await expect(screen(view)).to_contain_text("key 11")
    await page.shot("pane-full-screen")
    await expect(page.page.locator(".jp-Notebook .jp-Cell")).to_have_count(1)
    await page.page.keyboard.press("Shift+Escape")
    await page.cell(0).locator(".jp-InputPrompt").first.click()
    await page.save()
    await page.reload()
    await expect(screen(page.output(0).locator(".nb-view"))).to_contain_text(re.compile(r"size \d+x\d+"))
    await page.output(0).get_by_role("button", name=re.compile("^Type into the program")).click()
    await page.page.keyboard.press("q")
    await expect(screen(page.output(0).locator(".nb-view"))).to_contain_text("left the screen")


class Editor:
    """A file is opened, typed into, and written. ``shows``: what the first screen says, here and below how large the program takes it for."""

    command = ("vim", "-u", "NONE", "-i", "NONE", "-N", "-n", "-c", "set laststatus=2 statusline=%{&lines}x%{&columns}", "text.txt")
    shows = "${rows}x${cols}"

    @staticmethod
    async def use(keys: Any, expected: Any) -> None:
        for key in ("Shift+G", "o"):
            await keys.press(key)
        await keys.type("typed here")
        await expected("typed here")
        await keys.press("Escape")
        await keys.type(":wq")
        await keys.press("Enter")


class Pager:
    """A long file is paged, searched, and left."""

    command = ("less", "-M", "text.txt")
    shows = "1-${rows - 1}/300"

    @staticmethod
    async def use(keys: Any, expected: Any) -> None:
        await keys.press("Space")
        await expected("line 30")
        await keys.press("Shift+G")
        await expected("line 300")
        await keys.type("?line 123")
        await keys.press("Enter")
        await expected("line 123")
        await keys.press("q")


class Monitor:
    """It paints by itself, shows its help, and is left."""

    command = ("top", "-d", "1")
    shows = "average"

    @staticmethod
    async def use(keys: Any, expected: Any) -> None:
        await keys.press("h")
        await expected("Type 'q' or <Esc> to continue")
        await keys.press("Escape")
        await expected("load average")
        await keys.press("q")


@pytest.mark.parametrize("program", [Editor, Pager, Monitor], ids=lambda program: program.command[0])
async def test_programs_that_take_all_of_the_screen(lab: Any, program: Any) -> None:
    command = program.command
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    text = lab.server.folder / "text.txt"
    text.write_text("".join(f"line {i}\n" for i in range(1, 301)))
    options = "pty=True, stdin=True, name='full', env_vars={'TERM': 'xterm-256color', 'LESS': ''}"
    page = await lab.open(cells=[f"{START}proc = await pm.spawn(*{command!r}, {options})\nproc"])
    await page.run(0)
    view = page.output(0).locator(".nb-view")

    async def expected(words: str) -> None:
        await expect(screen(view)).to_contain_text(words)

    buffer = "normal" if program is Monitor else "alternate"
    told = f"buffer?.active.type === '{buffer}' && document.querySelector('.xterm-rows').textContent.includes(`{program.shows}`)"
    await page.page.wait_for_function(f"() => {{ const {{ rows, cols, buffer }} = {TERM} ?? {{}}; return {told}; }}")
    await page.shot(f"full-{command[0]}")
    await view.get_by_role("button", name=re.compile("^Type into the program")).click()
    await program.use(page.page.keyboard, expected)
    await expect(view.locator(".nb-facts")).to_contain_text("completed")
    await page.page.wait_for_function(
        f"() => {TERM}.buffer.active.type === 'normal' && document.activeElement === document.body"
    )  # for late keys
    assert (text.read_text().splitlines()[-1] == "typed here") is (program is Editor)
    await page.shot(f"full-{command[0]}-left")
    await expect(page.output(0).locator("[class^=nb-rec-]")).to_contain_text("completed")
    record = await page.output(0).locator("[class^=nb-rec-]").inner_html()
    assert "exit 0" in record
    assert "\x1b" not in record


async def test_letters_reach_the_program_in_the_order_in_which_they_were_typed(lab: Any) -> None:
    """ipykernel hands the messages of a comm to the main thread and to a subshell's by turns."""
    heard = lab.server.folder / "heard.txt"
    echo = (
        "import os, tty; tty.setraw(0); os.write(1, b'ready')\n"
        f"with open({str(heard)!r}, 'wb', buffering=0) as f:\n"
        "    while (data := os.read(0, 1000)) and f.write(data) and not data.endswith(b'!'): os.write(1, b'.')"
    )
    page = await lab.open(cells=[f"{START}proc = await pm.spawn(sys.executable, '-c', {echo!r}, pty=True, stdin=True, name='raw')\nproc"])
    await page.run(0)
    view = page.output(0).locator(".nb-view")
    await expect(screen(view)).to_contain_text("ready")
    await view.get_by_role("button", name=re.compile("^Type into the program")).click()
    text = "".join(f"{i:02d} the quick brown fox jumps over the lazy dog; " for i in range(15)) + "!"
    await page.page.keyboard.type(text)
    await expect(view.locator(".nb-facts")).to_contain_text("completed")
    assert heard.read_text() == text


@pytest.mark.skipif(not AXE.exists(), reason="axe comes with: npm ci in nbprocs/widgets/js")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_axe_finds_nothing(lab: Any, dark: bool) -> None:
    page = await lab.open(cells=[DASHBOARD, "proc = pm.get('worker')\nproc"], dark=dark, height=1600)
    await page.run_all()
    view = page.output(0).locator(".nb-view")
    await expect(row(view, "worker")).to_contain_text("running")
    await expect(view.locator(".nb-g-pool .nb-row").nth(1)).to_contain_text("worker-1")
    await row(view, "worker").get_by_role("button", name="Show output").click()
    await expect(screen(view)).to_contain_text("working")
    await page.shot(f"axe-{'dark' if dark else 'light'}")
    assert await violations(page.page, ".nb-view") == []
    await view.locator(".nb-table .nb-body").focus()
    for key in ("Control+a", "k", "?"):
        await page.page.keyboard.press(key)
    await expect(view.get_by_role("alertdialog")).to_be_visible()
    await view.get_by_text("Options", exact=True).click()
    await page.shot(f"axe-open-{'dark' if dark else 'light'}")
    assert await violations(page.page, ".nb-view") == []
    await view.locator(".nb-form").get_by_role("combobox", name="Command").click()
    await page.page.keyboard.type("slee")
    await expect(view.locator(".nb-form").get_by_role("option", name=re.compile("^sleep"))).to_be_visible()
    await page.shot(f"axe-completions-{'dark' if dark else 'light'}")
    assert await violations(page.page, ".nb-view") == []
