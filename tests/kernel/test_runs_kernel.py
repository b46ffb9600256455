"""What a run history knows of cells and kernels, in a real one."""

import json

import nbprocs

RECORDED = """
import asyncio, json, nbprocs
pm = nbprocs.ProcessManager(runs="runs.db", background=%s)
_ = await pm.run("echo", "one", name="first")
"""


async def test_runs_know_their_cell_and_a_killed_kernel_loses_none_that_was_told(kernel, tmp_path):
    await kernel.run("1 + 1")
    await kernel.run(RECORDED % False)
    await kernel.run('_ = await pm.run("echo", "two", name="second")')
    await kernel.run(
        "async def later():\n"
        "    await asyncio.sleep(0.2)\n"
        '    await pm.run("echo", name="in the background")\n'
        "task = asyncio.create_task(later())"
    )
    told = json.loads(
        await kernel.run(
            "await task\n"
            'sleeper = await pm.spawn("sleep", "1000", name="sleeper")\n'
            'print(json.dumps([str(nbprocs.runs("runs.db").path), [[run.name, run.cell] for run in nbprocs.runs("runs.db")]]))'
        )
    )
    path, cells = told[0], dict(told[1])
    assert cells["first"].startswith("[2]")
    assert cells["second"].startswith("[3]")
    assert cells["sleeper"].startswith("[5]")
    assert cells["in the background"] is None or cells["in the background"].startswith("[5]")  # it may start before the next cell runs
    kernel.kill()
    await kernel.gone()
    runs = nbprocs.runs(path)
    assert [run.name for run in runs] == ["first", "second", "in the background", "sleeper"]
    assert [run.state for run in runs] == ["completed", "completed", "completed", "lost"]


async def test_a_manager_of_the_background_loop_is_recorded_and_the_magics_too(kernel):
    await kernel.run(RECORDED % True)
    await kernel.run("%load_ext nbprocs")
    await kernel.run("nbprocs.set_runs('kernel.db')")
    await kernel.run("%%proc --wait --name shell\necho three")
    assert await kernel.run("print([run.name for run in nbprocs.runs('runs.db')])") == "['first']\n"
    assert await kernel.run("print([(run.name, run.stdout) for run in nbprocs.runs()])") == "[('shell', 'three\\n')]\n"
    await kernel.run("await pm.aclose()")
