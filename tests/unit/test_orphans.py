"""Nothing that descends from a process outlives it, whatever it did: each kind of orphan at stop(), at aclose() and at kill -9 of the kernel."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from nbprocs import ProcessManager
from nbprocs.engine.child import Spec
from nbprocs.engine.launcher import launcher_for
from nbprocs.engine.shim import shims
from nbprocs.engine.shimlib import wire
from nbprocs.engine.shimlib.proc import read_proc
from nbprocs.processes.manager import manager_core
from nbprocs.processes.process import process_core
from tests.children import python_child
from tests.kernel.conftest import alive
from tests.unit.test_child import Heard
from tests.waiting import until

ROOT = Path(__file__).parents[2]
CHAIN = "while True:\n    if os.fork(): os._exit(0)\n    open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep({0})"
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], 'w').write(str(os.getpid())); forever()
    os._exit(0)
os.wait(); forever()
"""
CLEARED = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve('/bin/sh', ['sh', '-c', 'echo $$ > $0; exec sleep 1000', sys.argv[1]], {})
    os._exit(0)
os.wait()
"""
PERL = "use POSIX; exit if fork; POSIX::setsid(); exit if fork; open F, '>', $ARGV[0]; print F $$; close F; $0 = 'x' x 80; sleep 1000"


def shell(line):
    return lambda place: ("sh", "-c", line.replace("FILE", str(place)), str(place))


def python(code):
    return lambda place: python_child(code, str(place))


def redis(place):
    return (
        "redis-server",
        "--daemonize",
        "yes",
        "--pidfile",
        str(place),
        "--port",
        "0",
        "--unixsocket",
        f"{place}.sock",
        "--dir",
        str(place.parent),
        "--save",
        "",
    )


def nginx(place):
    settings = place.parent / "nginx.conf"
    settings.write_text(f"pid {place}; error_log stderr; events {{}} http {{ access_log off; server {{ listen unix:{place}.sock; }} }}")
    return ("nginx", "-c", str(settings), "-p", str(place.parent))


STARTED = "echo $$ > FILE; exec sleep 1000"
KINDS = {
    "setsid": ("setsid", shell(f"setsid sh -c '{STARTED}' FILE & wait")),
    "double fork": ("sh", python(DAEMON)),
    "the leader has gone": ("sh", shell(f"sh -c '{STARTED}' FILE &")),
    "a cleared environment": ("env", shell(f"env -i setsid sh -c '{STARTED}' FILE & wait")),
    "a daemon with a cleared environment": ("sh", python(CLEARED)),
    "an overwritten title": ("perl", lambda place: ("perl", "-e", PERL, str(place))),
    "redis": ("redis-server", redis),
    "nginx": ("nginx", nginx),
    "start-stop-daemon": (
        "start-stop-daemon",
        shell("start-stop-daemon --start --background --make-pidfile --pidfile FILE --exec /bin/sleep -- 1000"),
    ),
    "deaf to SIGTERM": ("sh", shell("trap '' TERM; echo $$ > FILE; while :; do sleep 1000; done")),
    "stopped": ("sh", python("open(sys.argv[1], 'w').write(str(os.getpid())); os.kill(os.getpid(), signal.SIGSTOP); forever()")),
    "a chain of forks every 1 ms": ("sh", python(CHAIN.format(0.001))),
    "a chain of forks every 5 ms": ("sh", python(CHAIN.format(0.005))),
    "a chain of forks every 20 ms": ("sh", python("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHAIN.format(0.02))),
    "another uid": ("setpriv", shell(f"setpriv --reuid=65534 --clear-groups setsid sh -c '{STARTED}' FILE")),
    "another pid namespace": ("unshare", shell("unshare -p -f --kill-child setsid sleep 1000 & echo $! > FILE; wait")),
}
NEEDS_ROOT = {"another uid", "another pid namespace", "nginx"}


def members(place):
    """Who is left: by the mark in its command line, or by the pid file."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(place).encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    text = place.read_text().strip() if place.exists() else ""  # read once: a chain of forks writes it anew all the time
    if text:
        found.add(int(text))
    return alive(found - {os.getpid()})


@pytest.fixture
def nearby():
    """A folder with a short name, since a socket's path has 107 bytes at most, that another user may read."""
    with tempfile.TemporaryDirectory(prefix="nb-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(params=KINDS)
def kind(request, nearby):
    program, make = KINDS[request.param]
    if shutil.which(program) is None or (os.getuid() and request.param in NEEDS_ROOT):
        pytest.skip(f"needs {program}, or root")
    place = nearby / uuid.uuid4().hex
    if request.param == "another uid":
        place.touch()
        place.chmod(0o666)
    yield make(place), place
    while left := members(place):
        for line in left:
            with contextlib.suppress(ProcessLookupError):  # a chain of forks is somebody else by now
                os.kill(int(line.split()[0]), signal.SIGKILL)


async def begun(place):
    await until(lambda: place.exists() and place.read_text().strip() and members(place), within=20, what="the orphan runs")


async def test_stop_ends_it_and_nobody_else(kind):
    argv, place = kind
    async with ProcessManager() as pm:
        other = await pm.spawn("setsid sleep 1000 & wait", shell=True)
        proc = await pm.spawn(*argv)
        await begun(place)
        await proc.stop(grace=0.3)
        assert members(place) == []
        assert other.status.live
        assert len(process_core(other).child.root.token) > 10
        assert len(alive(await descendants(other))) == 1, "a neighbour's daemon was left alone"


async def descendants(process):
    async with asyncio.timeout(10):
        while not (found := {int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}):
            await asyncio.sleep(0.01)
    return found


async def test_aclose_ends_it(kind):
    argv, place = kind
    async with ProcessManager(grace=0.3) as pm:
        await pm.spawn(*argv)
        await begun(place)
    assert members(place) == []


KERNEL = """
import asyncio, sys, nbprocs
async def main():
    pm = nbprocs.ProcessManager()
    await pm.spawn(*sys.argv[1:])
    print("spawned", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_the_end_of_the_kernel_ends_it(kind):
    argv, place = kind
    with subprocess.Popen(
        [sys.executable, "-c", KERNEL, *argv], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as kernel:
        await begun(place)
        kernel.kill()
    await until(lambda: not members(place), within=3, what="nobody is left")


# --- later, when the loop's connection to the shim was closed for want of anything to say ---------------------------------

LEFT = shell(f"sh -c '{STARTED}' FILE & until [ -s FILE ]; do sleep 0.01; done")
BARE = """
if os.fork() == 0:
    import resource
    resource.setrlimit(10, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.execve('/bin/sh', ['sh', '-c', 'echo $$ > $0; exec sleep 1000', sys.argv[1]], {})
while not os.path.exists(sys.argv[1]) or not os.path.getsize(sys.argv[1]): time.sleep(0.01)
"""


def left_by(place):
    """The pid of the process that was left behind, as a list; an empty one when it has gone."""
    return alive([int(place.read_text())])


async def quiet(loop=None):
    """No loop of ours is connected to any shim: what ``_IDLE`` seconds without an order lead to."""
    loop = loop or asyncio.get_running_loop()
    await until(lambda: not shims.clients(loop), within=5, what="the connection is closed")


async def leave_one(pm, place, make=LEFT):
    proc = await pm.spawn(*make(place))
    await proc.wait()
    assert left_by(place)
    return proc


@pytest.mark.parametrize("make", [LEFT, python(BARE)], ids=["tagged", "known by its session only"])
async def test_aclose_ends_later_what_an_ended_child_had_left(tmp_path, make):
    async with ProcessManager() as other:
        await leave_one(other, tmp_path / "other")
        async with ProcessManager() as pm:
            await leave_one(pm, tmp_path / "one", make)
            await quiet()
        assert not left_by(tmp_path / "one")
        assert left_by(tmp_path / "other"), "another manager's on the same loop"
        await quiet()
    assert not left_by(tmp_path / "other")


async def test_aclose_ends_it_later_with_a_shell(tmp_path):
    async with ProcessManager() as pm:
        result = await (await pm.spawn("sleep 1000 & echo $!", shell=True)).wait()
        await quiet()
    assert not alive([int(result.stdout)])


async def test_aclose_ends_it_later_on_the_background_loop(tmp_path):
    async with ProcessManager(background=True) as pm:
        await leave_one(pm, tmp_path / "one")
        await quiet(manager_core(pm).home.loop)
    assert not left_by(tmp_path / "one")


@pytest.mark.parametrize("how", ["stop", "restart"])
async def test_what_is_left_is_ended_later_by(tmp_path, how):
    place = tmp_path / "one"
    async with ProcessManager() as pm:
        proc = await leave_one(pm, place)
        (first,) = left_by(place)
        await quiet()
        if how == "stop":
            await proc.stop()
        else:
            await pm.restart(proc.id)
        assert not alive([int(first.split()[0])])


@pytest.mark.parametrize("make", [python(DAEMON.replace("os.wait(); forever()", "os.wait()")), python(CLEARED)], ids=["daemon", "cleared"])
async def test_stop_ends_a_daemon_later(tmp_path, make):
    place = tmp_path / "one"
    async with ProcessManager() as pm:
        proc = await pm.spawn(*make(place))
        await proc.wait()
        await begun(place)
        await quiet()
        await proc.stop()
        assert members(place) == []


async def test_a_manager_that_started_nothing_asks_no_shim():
    before = shims.pids
    async with ProcessManager() as pm:
        assert await pm.strays() == ()
    assert shims.pids == before
    assert not shims.clients(asyncio.get_running_loop())


@pytest.fixture
def umask():
    before = os.umask(0)
    yield lambda: os.umask(0o027 if before != 0o027 else 0o022)
    os.umask(before)


def shim_of(pid):
    parent = read_proc(pid).ppid
    return next(shim for shim in shims._shims if shim.pid == parent)


@pytest.mark.parametrize("how", ["stop", "aclose"])
async def test_a_shim_stays_while_it_has_what_an_ended_child_left(tmp_path, umask, how):
    """And the children of the others live on."""
    place = tmp_path / "one"
    async with ProcessManager() as keeper, ProcessManager() as pm:
        proc = await leave_one(pm, place)
        shim = shim_of(int(place.read_text()))
        umask()  # other children need another shim
        other = await keeper.spawn("sleep", "1000")
        assert shim_of(other.pid) is not shim
        shim.idle_since = asked = 0.0
        await until(lambda: shim.idle_since > asked or not shim.alive, within=5, what="it was asked to leave")
        assert shim.alive
        assert left_by(place)
        assert other.status.live
        await (proc.stop() if how == "stop" else pm.aclose())
        assert not left_by(place)
        assert other.status.live
        await until(lambda: not shim.clients, within=5, what="it is idle")
        shim.idle_since = 0.0
        await until(lambda: not shim.alive, within=5, what="it leaves when it has nobody")
        assert other.status.live


@pytest.mark.parametrize("how", ["stop", "aclose", "aclose at once", "aclose beside another"])
async def test_the_next_shim_ends_what_a_killed_one_had_left(tmp_path, umask, how):
    place = tmp_path / "one"
    async with ProcessManager() as pm:
        proc = await leave_one(pm, place)
        shim = shim_of(int(place.read_text()))
        await quiet()
        if how == "aclose beside another":
            umask()
            await pm.spawn("sleep", "1000")
        os.kill(shim.pid, signal.SIGKILL)
        if how != "aclose at once":
            await until(lambda: not shim.alive, within=5, what="its death is noticed")
        if how == "stop":
            await proc.stop()
            assert not left_by(place)
    assert not left_by(place)


async def test_more_managers_than_a_tag_can_tell_apart(tmp_path):
    loop = asyncio.get_running_loop()
    async with ProcessManager() as first:
        early = await first.spawn("sleep", "1000")
        for _ in range(wire.MANAGERS - 2):
            await unused(launcher_for("posix", loop))
        async with ProcessManager() as pm:
            await leave_one(pm, tmp_path / "one")
        assert not left_by(tmp_path / "one")
        assert early.status.live


async def unused(launcher):
    """Its number is taken, as by a start."""
    with pytest.raises(ValueError, match="null"):
        await launcher.start(Spec(argv=("a\0b",), env={}), Heard())
    launcher.close()


LATER = """
import asyncio, os, signal, sys, nbprocs
from nbprocs.engine.shim import shims
async def main():
    pm = nbprocs.ProcessManager()
    await (await pm.spawn(*sys.argv[2:])).wait()
    while shims.clients(asyncio.get_running_loop()):
        await asyncio.sleep(0.01)
    if sys.argv[1] == "killed":
        (first,) = shims.pids
        os.kill(first, signal.SIGKILL)
        while first in shims.pids or not shims._shims[0].greeted:
            await asyncio.sleep(0.01)
    print("quiet", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("shim", ["lives", "killed"])
def test_the_end_of_the_kernel_ends_it_later(tmp_path, shim):
    place = tmp_path / "one"
    with subprocess.Popen(
        [sys.executable, "-c", LATER, shim, *LEFT(place)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as kernel:
        assert kernel.stdout.readline() == b"quiet\n"
        assert left_by(place)
        kernel.kill()
    asyncio.run(until(lambda: not left_by(place), within=3, what="nobody is left"))


DEAF_CHILD = """
import asyncio
from nbprocs import LogLine, ProcessManager
from nbprocs.engine.shim import shims
async def main():
    pm = ProcessManager()
    await pm.spawn("trap '' TERM; echo ready; while :; do sleep 1000; done", shell=True, ready=LogLine("ready"))
    print(*shims.pids, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has policies of scheduling")
def test_a_shim_stands_back_until_its_kernel_ends():
    """Then it is as every other process: nobody is left to go before it, and a chain of forks is to be caught up with (ADR 0142)."""

    def policy(shim):
        with contextlib.suppress(ProcessLookupError):  # it has ended its kernel's children, and itself
            return os.sched_getscheduler(shim)

    with subprocess.Popen(
        [sys.executable, "-c", DEAF_CHILD], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as kernel:
        shim = int(kernel.stdout.readline())
        assert policy(shim) == os.SCHED_BATCH
        kernel.kill()
        asyncio.run(until(lambda: policy(shim) == os.SCHED_OTHER, within=10, what="the shim hurries"))
    asyncio.run(until(lambda: policy(shim) is None, within=10, what="the shim has ended"))
