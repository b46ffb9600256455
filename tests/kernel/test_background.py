"""What goes on while a cell blocks the kernel, and what is said when nothing can."""

import itertools
import json
import re
import textwrap

import pytest

from tests.waiting import until

SETUP = """
import asyncio, json, pathlib, sys, time, nbprocs
PRELUDE = "import pathlib, sys, time\\ndef note(name): pathlib.Path(name).write_text(str(time.time()))\\n"
def child(code):
    return [sys.executable, "-I", "-S", "-c", PRELUDE + code]
"""

BLOCKED = """
pm = nbprocs.ProcessManager(background=True, max_concurrent=3)
# 1. writes more than any pipe holds, and tells when it could
loud = await pm.spawn(*child("time.sleep(1); sys.stdout.write('x' * 50_000_000); sys.stdout.flush(); note('drained'); time.sleep(1000)"), name="loud")
# 2. is killed by its timeout
slow = await pm.spawn(*child("time.sleep(1000)"), name="slow", timeout=2)
# 3. ends by itself; then somebody who waits for a slot can start
short = await pm.spawn(*child("time.sleep(3)"), name="short")
async def next_one():
    return await pm.spawn(*child("note('started'); print('hello', flush=True); time.sleep(1000)"), name="waiting", wait=True)
waiting = asyncio.get_running_loop().create_task(next_one())
await asyncio.sleep(0)  # let it ask before the kernel blocks
"""

BLOCK = """
began = time.time()
print("blocking")
time.sleep(10)
ended = time.time()
print(json.dumps({
    "began": began, "ended": ended,
    "drained": float(pathlib.Path("drained").read_text()), "started": float(pathlib.Path("started").read_text()),
    "read": loud.stdout.end, "slow": slow.result.reason, "slow_took": slow.result.execution_time,
}))
"""


@pytest.mark.slow
async def test_everything_goes_on_while_a_cell_blocks(kernel):
    await kernel.run(SETUP)
    await kernel.run(BLOCKED)
    cell = await kernel.start(BLOCK)
    await cell.done(timeout=60)
    assert not cell.error, cell.traceback
    facts = json.loads(cell.text.splitlines()[-1])
    assert facts["ended"] - facts["began"] >= 10
    assert facts["drained"] < facts["ended"] - 5, "output was read while the cell blocked"
    assert facts["read"] == 50_000_000
    assert facts["slow"] == "timeout"
    assert facts["slow_took"] < 5, "the timeout fired while the cell blocked"
    assert facts["started"] < facts["ended"] - 3, "the spawn that waited for a slot started while the cell blocked"
    assert "hello" in await kernel.run("print((await waiting).tail()); await pm.aclose()")


@pytest.mark.slow
async def test_views_move_while_a_cell_blocks(kernel):
    await kernel.run(SETUP)
    # a view says hello as a front end would: without one it has nobody to tell
    code = """
    pm = nbprocs.ProcessManager(background=True)
    display(pm)
    ticker = await pm.spawn(*child("while True: print(time.time(), flush=True); time.sleep(0.1)"), name="ticker")
    display(ticker)
    """
    await kernel.run(code.replace("\n    ", "\n"))
    comms = [m["content"]["comm_id"] for _, m in kernel.messages if m["msg_type"] == "comm_open"]
    pages = [m["content"]["data"].get("text/html", "") for _, m in kernel.messages if m["msg_type"] == "display_data"]
    views = [found[1] for page in pages if (found := re.search(r"nb-hole-(\w+)", page))]
    assert comms, "the display of a manager is a live view"
    assert len(views) == 2
    for comm, view in itertools.product(comms, views):  # one of the comms is the hub's
        message = kernel.client.session.msg(
            "comm_msg", {"comm_id": comm, "data": {"method": "custom", "content": {"do": "hello", "view": "a-test", "v": view}}}
        )
        kernel.client.shell_channel.send(message)
    cell = await kernel.start("print('blocking'); time.sleep(6); print('over')")
    await cell.says("blocking")
    began = next(at for at, _, text in cell.streams if "blocking" in text)
    await cell.done(timeout=30)
    during = [at - began for at, m in kernel.messages if m["msg_type"] == "comm_msg" and began < at < cell.finished_at - 0.5]
    assert len(during) >= 3, "the table and the pane went on moving"
    assert max(during) > 3
    await kernel.run("await pm.aclose()")


async def test_a_view_answers_a_page_while_a_cell_blocks(kernel, tmp_path):
    """A page speaks through a subshell. The comm spoke last for the cell that showed the view, and ipykernel 7.4 sends what is said on it after that."""
    await kernel.run(SETUP)
    await kernel.run("pm = nbprocs.ProcessManager(background=True); p = await pm.spawn('sleep', '1000', name='stopped'); display(p)")
    (hub,) = {m["content"]["comm_id"] for _, m in kernel.messages if m["msg_type"] == "comm_msg"}
    (view,) = {found for _, m in kernel.messages for found in re.findall(r"nb-hole-(\w+)", str(m["content"]))}
    subshell = await kernel.new_subshell()
    cell = await kernel.start("print('blocking')\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint(p.status)")
    await cell.says("blocking")
    for what in ({"do": "hello"}, {"do": "call", "id": 1, "part": "pane", "op": "stop", "args": {}}):
        data = {"method": "custom", "content": {**what, "view": "a-page", "v": view}}
        message = kernel.client.session.msg("comm_msg", {"comm_id": hub, "data": data})
        message["header"]["subshell_id"] = subshell
        kernel.client.shell_channel.send(message)

    def answers():
        said = [m["content"]["data"].get("content", {}) for _, m in kernel.messages if m["msg_type"] == "comm_msg"]
        return any(one.get("s") for one in said) and any(one.get("re") == 1 and one["ok"] for one in said)

    await until(answers, within=30, what="the view has sent what it shows and stopped its process")
    assert not cell.finished_at
    (tmp_path / "go").touch()
    await cell.done()
    assert "terminated" in cell.text
    await kernel.run("await pm.aclose()")


async def test_a_blocked_kernel_loop_is_reported_once_with_the_cure(kernel):
    await kernel.run(SETUP + "import nbprocs.engine.home as home; home.LATE = 0.5")
    await kernel.run("pm = nbprocs.ProcessManager(); sleeper = await pm.spawn('sleep', '1000')")
    for _ in range(2):
        await kernel.run("time.sleep(0.8)")
        await kernel.run("await asyncio.sleep(0.3)")
    said = "".join(m["content"]["text"] for _, m in kernel.messages if m["msg_type"] == "stream")
    assert said.count("background=True") == 1, said
    assert await kernel.run("await pm.aclose(); print('closed')") == "closed\n"


async def test_no_report_with_a_background_manager(kernel):
    await kernel.run(SETUP + "import nbprocs.engine.home as home; home.LATE = 0.5")
    await kernel.run("pm = nbprocs.ProcessManager(background=True); sleeper = await pm.spawn('sleep', '1000')")
    await kernel.run("time.sleep(0.8)")
    await kernel.run("await asyncio.sleep(0.3); await pm.aclose()")
    said = "".join(m["content"]["text"] for _, m in kernel.messages if m["msg_type"] == "stream")
    assert "blocked" not in said


@pytest.mark.parametrize("background", [False, True], ids=["kernel-loop", "background"])
async def test_a_manager_answers_on_a_subshell(kernel, background):
    """ipykernel 7 runs subshells in threads with loops of their own; JupyterLab sends comm messages there."""
    await kernel.run(f"import nbprocs; pm = nbprocs.ProcessManager(background={background})")
    subshell = await kernel.new_subshell()
    code = """
    import threading
    result = await pm.run("echo", "from a subshell")
    proc = await pm.spawn("sleep", "1000")
    print(result.text, threading.current_thread() is threading.main_thread())
    """
    cell = await (await kernel.start(textwrap.dedent(code), subshell=subshell)).done()
    assert not cell.error, cell.traceback
    assert cell.text.split() == ["from", "a", "subshell", "False"]
    assert "terminated" in await kernel.run("print((await proc.stop()).status); await pm.aclose()")
    await until(lambda: not kernel.descendants(), within=2, what="nothing left behind")
