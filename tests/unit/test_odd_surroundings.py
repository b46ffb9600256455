"""A kernel in odd surroundings: without its standard streams, without descriptors to spare. Each is an interpreter of its own."""

import asyncio
import errno
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nbprocs
from nbprocs.engine import channel, shim

ROOT = Path(__file__).parents[2]

STREAMLESS = """
import asyncio, os, sys
import nbprocs

async def main():
    for fd in map(int, sys.argv[2]):
        os.close(fd)
    async with nbprocs.ProcessManager() as pm, nbprocs.ProcessPool(nbprocs.PoolConfig(max_processes=1)) as pool:
        result = await pm.run("sh", "-c", "echo out; echo err >&2")
        kept = await (await pm.spawn("sh", "-c", "echo out; echo err >&2", detach=True)).wait()
        said = [result.text, result.stderr, kept.text, kept.stderr, await pool.run(sum, [1, 2])]
    from nbprocs.engine.shim import shims
    return repr((said, shims.unusable))

with open(sys.argv[1], "w") as answer:
    answer.write(asyncio.run(main()))
"""

POOR = """
import asyncio, os, resource, threading
import nbprocs
from nbprocs.engine.shim import WATCHER

async def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    used, outcomes = len(os.listdir("/proc/self/fd")), []
    for spare in range(16):
        pm = nbprocs.ProcessManager()
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
        try:
            outcomes.append((await pm.run("echo", "x")).text)
        except nbprocs.ResourceExhausted:
            outcomes.append(None)
        if outcomes[-1] is None:
            await pm.aclose()  # it has nothing to end
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        await pm.aclose()
    assert None in outcomes and set(outcomes) <= {None, "x\\n"}, outcomes
    assert WATCHER in {thread.name for thread in threading.enumerate()}
    async with nbprocs.ProcessManager() as pm:
        print((await pm.run("echo", "fine")).text, end="")

asyncio.run(main())
"""


def kernel(code: str, *args: str, state: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "NBPROCS_STATE_DIR": str(state)}
    return subprocess.run([sys.executable, "-c", code, *args], env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("closed", ["2", "12", "012"])
def test_a_kernel_without_standard_streams_has_all_that_others_have(closed, tmp_path):
    done = kernel(STREAMLESS, str(tmp_path / "answer"), closed, state=tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answer").read_text() == repr((["out\n", b"err\n", "out\n", b"err\n", 3], ""))


@pytest.mark.skipif(sys.platform != "linux", reason="it counts its descriptors in /proc")
def test_a_kernel_short_of_descriptors_says_so_and_goes_on(tmp_path):
    done = kernel(POOR, state=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


POOR_AT_FIRST = """
import asyncio, errno, os, sys
import nbprocs
from nbprocs.engine import places

real, left = places.runtime_folder, [1, 2]

def runtime_folder():
    if left:
        left.pop()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return real()

places.runtime_folder = runtime_folder

async def main():
    async with nbprocs.ProcessManager() as pm:
        await pm.spawn("sleep", "1000")
        async with asyncio.timeout(30):
            while not os.path.isdir(sys.argv[1]) or not os.listdir(sys.argv[1]):
                await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_a_shim_answers_once_there_is_a_descriptor_for_that(tmp_path, monkeypatch):
    monkeypatch.setenv("NBPROCS_RUNTIME_DIR", str(tmp_path / "run"))
    done = kernel(POOR_AT_FIRST, str(tmp_path / "run"), state=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


UVLOOP = """
import asyncio, uvloop
import nbprocs

async def main():
    async with nbprocs.ProcessManager() as pm, nbprocs.ProcessPool(nbprocs.PoolConfig(max_processes=1)) as pool:
        print((await pm.run("cat", input=b"x" * 100_000)).stdout == b"x" * 100_000, await pool.run(sum, [1, 2]), flush=True)
        process = await pm.spawn("sleep", "1000")
        print((await process.stop()).reason)

uvloop.run(main())
"""


@pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="uvloop is not installed")
def test_uvloop_starts_what_asks_for_nothing_that_it_has_not(tmp_path):
    done = kernel(UVLOOP, state=tmp_path)
    assert (done.returncode, done.stdout) == (0, "True 3\nstopped\n"), done.stderr


FORKING = """
import asyncio, os, sys, warnings
import nbprocs

warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: it has threads

def caught(function):
    try:
        return function()
    except Exception as error:
        return type(error).__name__

pool = nbprocs.ProcessPool(nbprocs.PoolConfig(max_processes=1), background=True)
executor, manager = pool.executor(), nbprocs.ProcessManager(background=True)
print(nbprocs.run_sync("echo", "parent").text, executor.submit(abs, -1).result(), flush=True)
pending = executor.submit(__import__("time").sleep, 600)
child = os.fork()
if not child:
    print(nbprocs.run_sync("echo", "child").text, pending.cancel() in (True, False), caught(lambda: executor.submit(abs, -1)))
    print(caught(lambda: asyncio.run(manager.run("true"))), caught(lambda: asyncio.run(pool.run(abs, -1))), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(nbprocs.run_sync("echo", "still").text, asyncio.run(manager.run("echo", "there")).text)
asyncio.run(pool.aclose())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own_and_waits_for_nothing_of_its_parents(tmp_path):
    """As a worker of multiprocessing has it, which is a fork by default before Python 3.14."""
    done = kernel(FORKING, state=tmp_path)
    said = ["parent", "1", "child", "True", "RuntimeError", "Closed", "Closed", "still", "there"]
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, said, "")


ENDING = """
import atexit, builtins, concurrent.futures, time
import nbprocs

class Last:
    def __init__(self, act):
        self.act = act
    def __del__(self):
        try:
            print(self.act())
        except Exception as error:
            print(type(error).__name__)

nbprocs.run_sync("true")
pool = nbprocs.ProcessPool(nbprocs.PoolConfig(max_processes=2), background=True)
executor = pool.executor()
atexit.register(lambda: print(executor.submit(abs, -1).result(), nbprocs.run_sync("echo", "2").text))
future = executor.submit(time.sleep, 600)
while not future.running():
    time.sleep(0.001)
acts = [
    lambda: nbprocs.run_sync("true"),
    lambda: executor.submit(abs, -1).result(),
    future.result,
    lambda: concurrent.futures.wait([future]),
    executor.shutdown,
]
builtins.kept = [Last(act) for act in acts]  # they live until no thread but this one runs
"""


def test_what_the_interpreters_end_calls_does_not_wait_for_ever(tmp_path):
    done = kernel(ENDING, state=tmp_path)
    assert (done.returncode, sorted(done.stdout.split()), done.stderr) == (0, ["1", "2"] + ["Closed"] * 4 + ["RuntimeError"], "")


OTHER_POLICY = """
import asyncio

def another_kind():
    raise NotImplementedError("for a main thread with a window system")

asyncio.new_event_loop = another_kind  # as an event loop policy would have it
import nbprocs
print(nbprocs.run_sync("sh", "-c", "test -t 1 && echo terminal", pty=True).text)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_the_background_loop_is_asyncios_own_whatever_the_policy_makes(tmp_path):
    """Under uvloop.install() it was uvloop's, without the shim and pseudo-terminals; a policy that fails there was waited for forever."""
    done = kernel(OTHER_POLICY, state=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["terminal"]), done.stderr


async def test_the_loops_own_way_is_asked_for_no_more_than_was_wanted(monkeypatch):
    loop, seen = asyncio.get_running_loop(), []
    usual = loop.subprocess_exec
    monkeypatch.setattr(loop, "subprocess_exec", lambda *args, **options: seen.append(set(options)) or usual(*args, **options))
    async with nbprocs.ProcessManager(engine="portable") as pm:
        await pm.run("true")
    known_by_uvloop = {"stdin", "stdout", "stderr", "cwd", "env", "executable", "start_new_session", "pass_fds", "close_fds", "preexec_fn"}
    assert seen[0] <= known_by_uvloop


async def test_what_can_not_be_handed_on_leaves_nothing_open(monkeypatch):
    def refused(fd):
        os.close(fd)
        raise OSError(errno.EMFILE, "no descriptors are left")

    for room in (channel, shim):
        monkeypatch.setattr(room, "above_standard", refused)
    before = sorted(os.listdir("/proc/self/fd"))
    loop = asyncio.get_running_loop()
    with pytest.raises(OSError, match="no descriptors"):
        channel.Channel(loop, None, on_messages=print, on_end=print)
    with pytest.raises(OSError, match="no descriptors"):
        shim.Shim(ambient=(), base=1, token="t", inherits=False)
    assert sorted(os.listdir("/proc/self/fd")) == before
