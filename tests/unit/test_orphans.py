"""Nothing that descends from a process outlives it, whatever it did: each kind of orphan at stop(), at aclose() and at kill -9 of the kernel."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from nbprocs import ProcessManager
from tests.children import python_child
from tests.kernel.conftest import alive, eventually

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
    if place.exists() and place.read_text().strip():
        found.add(int(place.read_text()))
    return alive(found - {os.getpid()})


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    program, make = KINDS[request.param]
    if shutil.which(program) is None or (os.getuid() and request.param in NEEDS_ROOT):
        pytest.skip(f"needs {program}, or root")
    place = tmp_path / uuid.uuid4().hex
    if request.param == "another uid":
        place.touch()
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(folder.stat().st_mode | 0o777)
        place.chmod(0o666)
    yield make(place), place
    for line in members(place):
        os.kill(int(line.split()[0]), signal.SIGKILL)


async def begun(place):
    await eventually(lambda: place.exists() and place.read_text().strip() and members(place), within=20, what="the orphan runs")


async def test_stop_ends_it_and_nobody_else(kind):
    argv, place = kind
    async with ProcessManager() as pm:
        other = await pm.spawn("setsid sleep 1000 & wait", shell=True)
        proc = await pm.spawn(*argv)
        await begun(place)
        await proc.stop(grace=0.3)
        assert members(place) == []
        assert other.status.live
        assert len(other.child.root.token) > 10
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
    await eventually(lambda: not members(place), within=3, what="nobody is left")
