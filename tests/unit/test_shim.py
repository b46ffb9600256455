"""The shim under the manager: endings by its own clock, its own death, what it answers, what a start may ask for."""

import asyncio
import contextlib
import fcntl
import os
import random
import resource
import shlex
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from nbprocs import LogLine, ProcessManager, ProcessStatus, StartupFailed
from nbprocs.engine.asking import ask
from nbprocs.engine.child import Spec, child_environment
from nbprocs.engine.launcher import launcher_for
from nbprocs.engine.shim import shims
from nbprocs.engine.shimlib import wire
from nbprocs.engine.shimlib.proc import read_proc
from nbprocs.model import EndReason
from nbprocs.processes.process import process_core
from tests.children import SLEEPER, STUBBORN, python_child, until_line
from tests.kernel.conftest import alive
from tests.unit.test_child import Heard
from tests.waiting import until

DEAF = "trap '' TERM; echo ready; while :; do sleep 1000; done"


@pytest.fixture
async def pm():
    async with ProcessManager(grace=1) as manager:
        yield manager


# --- a kernel that computes -----------------------------------------------------------------------------------------------


def compute_until(done, seconds=20):
    """Hold the loop, as a cell that computes does."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        os.getpid()
    return done()


async def test_a_timeout_ends_a_deaf_child_while_the_loop_is_held(pm):
    proc = await pm.spawn(DEAF, shell=True, timeout=0.3, ready=LogLine("ready"))
    assert compute_until(lambda: not alive([proc.pid]))
    result = await proc.wait()
    assert (result.status, result.signal, result.reason) == (ProcessStatus.TERMINATED, 9, EndReason.TIMEOUT)
    assert 0.7 < result.execution_time < 5


@pytest.mark.parametrize("how", ["stop", "aclose"])
async def test_an_end_that_was_asked_for_goes_on_while_the_loop_is_held(how):
    pm = ProcessManager(grace=0.2)
    proc = await pm.spawn(DEAF, shell=True, ready=LogLine("ready"))
    ending = asyncio.get_running_loop().create_task(proc.stop(grace=0.2) if how == "stop" else pm.aclose())
    for _ in range(3):
        await asyncio.sleep(0)
    assert compute_until(lambda: not alive([proc.pid]))
    await ending
    await pm.aclose()


async def test_many_stops_at_once_end_everybody_and_say_no_wrong_word():
    """The count is what fits a busy machine; the benchmark takes 1,500 of 2,000."""
    async with ProcessManager() as pm:
        procs = await asyncio.gather(*(pm.spawn("sleep", "1000") for _ in range(300)))
        results = await asyncio.gather(*(proc.stop() for proc in procs[:250]))
        assert all(result.status is ProcessStatus.TERMINATED for result in results)
        assert pm.live == 50


@pytest.mark.parametrize("round_", range(5))
async def test_what_the_leader_left_in_its_own_tick_is_ended(round_):
    async with ProcessManager() as pm:
        procs = [await pm.spawn("sleep 1000 & echo $!", shell=True) for _ in range(10)]
        pids = [int((await proc.wait()).stdout) for proc in procs]
        for number, proc in enumerate(procs):
            await proc.stop(grace=1)
            assert len(alive(pids)) == len(pids) - number - 1, "its own, and nobody else's"


async def test_the_leader_may_be_asked_first():
    """A master that lets its jobs finish: they hear nothing until it has gone, or the grace is over."""
    code = """
    import subprocess
    job = subprocess.Popen(['sh', '-c', 'trap "echo job heard" TERM; while :; do sleep 0.01; done'])
    def finish(*_): print('master heard', flush=True); time.sleep(0.1); job.kill(); job.wait(); sys.exit(0)
    signal.signal(signal.SIGTERM, finish)
    time.sleep(0.1); ready(); forever()
    """
    heard = Heard()
    launcher = launcher_for("posix", asyncio.get_running_loop())
    child = await launcher.start(Spec(argv=python_child(code), env=child_environment({}), stop_scope="leader"), heard)
    await until(lambda: b"ready" in next(iter(heard.data.values())), within=10, what="ready")
    assert await child.end_tree(grace=10) == ()
    await heard.done.wait()
    assert heard.how.exit_code == 0
    assert b"master heard" in next(iter(heard.data.values()))
    assert b"job heard" not in next(iter(heard.data.values()))
    launcher.close()


async def test_the_stop_signal_is_the_one_asked_for(pm):
    heard = Heard()
    launcher = launcher_for("posix", asyncio.get_running_loop())
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, lambda *_: os._exit(7)); ready(); forever()"
    child = await launcher.start(Spec(argv=python_child(code), env=child_environment({}), stop_signal=signal.SIGINT), heard)
    await until(lambda: b"ready" in next(iter(heard.data.values())), within=10, what="ready")
    assert await child.end_tree(grace=10) == ()
    await heard.done.wait()
    assert heard.how.exit_code == 7
    launcher.close()


# --- pause, resume, interrupt ---------------------------------------------------------------------------------------------


async def test_the_whole_tree_is_paused_and_resumed(pm):
    proc = await pm.spawn("setsid sleep 1000 & sleep 1000 & echo ready; wait", shell=True)
    await until_line(proc)
    tree = [proc.pid, *(child.pid for child in psutil.Process(proc.pid).children(recursive=True))]
    assert len(tree) == 3
    proc.pause()
    await until(lambda: [read_proc(pid).state for pid in tree] == ["T"] * 3, within=5, what="all stopped")
    proc.resume()
    await until(lambda: "T" not in [read_proc(pid).state for pid in tree], within=5, what="all go on")


async def test_an_interrupt_reaches_jobs_in_groups_of_their_own(pm):
    """``timeout`` puts its command into a group of its own; Ctrl-C must reach it all the same."""
    proc = await pm.spawn("timeout", "1000", *python_child("ready(); forever()"))
    await until_line(proc)
    proc.interrupt()
    assert (await proc.wait(10)).exit_code != 0


async def test_an_interrupt_of_a_terminal_is_for_the_group_in_its_foreground(pm):
    front = shlex.join(python_child("ready(); forever()"))
    proc = await pm.spawn(f"set -m; (trap 'echo background heard' INT; sleep 1) & {front}; echo after", shell=True, pty=True)
    await until_line(proc)
    proc.interrupt()
    result = await proc.wait(20)
    assert b"KeyboardInterrupt" in result.stdout
    assert b"background heard" not in result.stdout


# --- the shim's own end ---------------------------------------------------------------------------------------------------


def only_shim():
    (shim,) = [s for s in shims._shims if s.busy]
    return shim


async def test_a_killed_shim_is_noticed_within_a_second_and_its_children_live_on():
    async with ProcessManager(grace=1) as pm:
        proc = await pm.spawn("setsid sleep 1000 & echo ready; sleep 1000", shell=True)
        await until_line(proc)
        first = only_shim()
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: any(s.busy for s in shims._shims if s.pid != first.pid), within=1, what="another one")
        assert proc.status.live
        assert alive([proc.pid])
        daemon = [pid for pid in psutil.pids() if pid != proc.pid and _tag(pid) == process_core(proc).child.tag]
        assert len(alive(daemon)) == 2, "the sleep in its own session and the one in front"
        result = await proc.stop(grace=1)
        assert result.status is ProcessStatus.TERMINATED
        assert not alive(daemon)


def _tag(pid):
    try:
        return resource.prlimit(pid, 10)[0]
    except OSError:
        return None


async def test_an_exit_status_that_was_lost_is_said_to_be():
    async with ProcessManager(grace=1) as pm:
        proc = await pm.spawn(*SLEEPER)
        await until_line(proc)
        os.kill(only_shim().pid, signal.SIGKILL)
        await until(lambda: not alive([proc.pid]) or only_shim_now(), within=2, what="another one")
        os.kill(proc.pid, signal.SIGKILL)
        result = await proc.wait(10)
        assert (result.exit_code, result.signal, result.ok) == (None, None, False)


def only_shim_now():
    return [s for s in shims._shims if s.alive and s.busy]


async def test_a_shim_that_is_stopped_is_continued_also_while_the_loop_is_held(pm):
    proc = await pm.spawn(*SLEEPER)
    await until_line(proc)
    shim = only_shim()
    os.kill(shim.pid, signal.SIGSTOP)
    compute_until(lambda: read_proc(shim.pid).state in "Tt", seconds=5)
    assert compute_until(lambda: read_proc(shim.pid).state not in "Tt", seconds=5)
    assert (await proc.stop()).signal == 15


async def test_a_shim_is_asked_for_its_pulse_a_few_times_a_second_and_not_without_a_pause(pm, monkeypatch):
    asked = []
    pack = wire.pack
    monkeypatch.setattr(wire, "pack", lambda *message: asked.append(message[0]) or pack(*message))
    result = await pm.run("sleep", "0.7")
    assert asked.count(wire.PING) <= 2 + result.execution_time / 0.2


async def test_a_timeout_that_was_running_is_kept_by_the_next_shim():
    async with ProcessManager(grace=1) as pm:
        proc = await pm.spawn(*STUBBORN, timeout=1.0)
        await until_line(proc)
        os.kill(only_shim().pid, signal.SIGKILL)
        result = await proc.wait(10)
        assert result.reason is EndReason.TIMEOUT
        assert not alive([proc.pid])


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_blows_to_the_shim_while_children_come_and_go(blow):
    """No hang, no wrong status, nobody left."""
    rnd = random.Random(7)
    async with ProcessManager(grace=0.5, max_concurrent=20) as pm:
        over = asyncio.Event()

        async def strike():
            while not over.is_set():
                await asyncio.sleep(rnd.uniform(0.05, 0.09))
                for pid in shims.pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, blow)
                    break

        async def one(number):
            try:
                result = await pm.run("sh", "-c", f"sleep 0.0{number % 7}; exit {number % 5}", check=False)
            except StartupFailed as error:
                return str(error)
            assert result.exit_code in (number % 5, None), result
            return result.exit_code

        striker = asyncio.get_running_loop().create_task(strike())
        async with asyncio.timeout(90):
            results = await asyncio.gather(*(one(number) for number in range(200)))
        over.set()
        await striker
        if blow == signal.SIGSTOP:
            assert results == [number % 5 for number in range(200)], "a stopped shim loses nothing"
        tags = {shims.base}
    await until(lambda: not [p for p in psutil.pids() if (t := _tag(p)) and t >> 34 in tags], within=3, what="nobody is left")


# --- the status socket ----------------------------------------------------------------------------------------------------


async def socket_of(pm):
    await until(lambda: only_shim().path and os.path.exists(only_shim().path), within=10, what="the socket")
    return only_shim().path


def question(path, **request):
    reply = ask(Path(path), request, timeout=10)
    assert not reply.error, reply
    return reply.answer


async def test_status_is_answered_while_the_kernel_is_blocked(pm):
    proc = await pm.spawn(*python_child("ready(); forever()", "--password=hunter2"), name="web")
    path = await socket_of(pm)
    answer = question(path, op="status")
    assert answer["v"] == 1
    shim, (child,) = answer["shim"], answer["children"]
    assert (shim["pid"], shim["kernel_pid"], shim["kernel_alive"], shim["detached"]) == (only_shim().pid, os.getpid(), True, False)
    assert abs(shim["started"] + shim["uptime"] - time.time()) < 2
    assert (child["id"], child["name"], child["pid"], child["paused"], child["status"]) == (proc.id, "web", proc.pid, False, "running")
    assert "--password=" in child["command"]
    assert "hunter2" not in child["command"]
    assert child["rss"] > 0
    assert child["start"] == read_proc(proc.pid).start
    assert answer["strays"] == []
    assert oct(os.stat(path).st_mode)[-3:] == "600"


async def test_orders_by_the_socket_are_carried_out_and_the_kernel_hears_of_them(pm):
    proc = await pm.spawn(*STUBBORN)
    await until_line(proc)
    path = await socket_of(pm)
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, lambda: question(path, op="pause", id=proc.id)) == {"v": 1, "ok": True}
    await until(lambda: read_proc(proc.pid).state == "T", within=5, what="stopped")
    await until(lambda: proc.paused, within=5, what="known to be paused")
    assert await loop.run_in_executor(None, lambda: question(path, op="resume", id=proc.id)) == {"v": 1, "ok": True}
    assert await loop.run_in_executor(None, lambda: question(path, op="stop", id=proc.id, grace=0.1)) == {"v": 1, "ok": True}
    assert not alive([proc.pid])
    result = await proc.wait(10)
    assert (result.status, result.reason) == (ProcessStatus.TERMINATED, EndReason.STOPPED)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"op": "spawn"}, "unknown operation"),
        ({"op": "status", "v": 2}, "version"),
        ({"op": "stop", "id": "none"}, "no live process"),
        ({"op": "stop", "id": "ID", "grace": "x"}, "grace"),
        ({}, "a line of JSON"),
    ],
)
async def test_what_the_socket_can_not_do_it_says(pm, request_, says):
    proc = await pm.spawn("sleep", "1000")
    path = await socket_of(pm)
    answer = question(path, **{key: proc.id if value == "ID" else value for key, value in request_.items()})
    assert answer["ok"] is False
    assert says in answer["error"]


async def test_rubbish_and_silence_on_the_socket_harm_nobody(pm):
    proc = await pm.spawn("sleep", "1000")
    path = await socket_of(pm)
    socks = []
    for _ in range(40):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(path)
        with contextlib.suppress(OSError):
            sock.send(b"\xff\x00{[" + b"x" * 70_000)
        socks.append(sock)
    assert (await proc.stop()).signal == 15
    for sock in socks:
        sock.close()
    await pm.spawn("sleep", "1000")
    await until(lambda: ask(Path(path), {"op": "status"}, timeout=1).answer, within=10, what="an answer")


# --- what a start may ask for ---------------------------------------------------------------------------------------------


async def started(*argv, **options):
    heard = Heard()
    launcher = launcher_for("posix", asyncio.get_running_loop())
    try:
        await launcher.start(Spec(argv=argv, env=child_environment({}), **options), heard)
        async with asyncio.timeout(20):
            await heard.done.wait()
    finally:
        launcher.close()
    return heard


def said(heard):
    return next(iter(heard.data.values())).decode()


async def test_umask_niceness_and_limits():
    code = "print(oct(os.umask(0)), os.getpriority(os.PRIO_PROCESS, 0), __import__('resource').getrlimit(4))"
    heard = await started(*python_child(code), umask=0o027, nice=3, rlimits={resource.RLIMIT_CORE: (0, 0)})
    assert said(heard).split() == ["0o27", str(os.getpriority(os.PRIO_PROCESS, 0) + 3), "(0,", "0)"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
async def test_user_and_groups():
    heard = await started("id", user=65534, group=65534, extra_groups=(1, "daemon"))
    assert said(heard).startswith("uid=65534")
    assert "gid=65534" in said(heard)
    assert "groups=65534(nogroup),1(daemon)" in said(heard)
    with pytest.raises(ValueError, match="no user"):
        await started("id", user="nobody-of-this-name")


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"cwd": "/none/at/all"}, "cwd"),
        ({"cwd": "/none", "umask": 0}, "cwd"),
        ({"rlimits": {3: (1 << 40, 1)}}, "rlimits"),
        ({"extra_groups": (-5,)}, ""),
    ],
)
async def test_a_step_that_fails_is_named(options, step):
    with pytest.raises((OSError, ValueError)) as caught:
        await started("true", **options)
    assert not step or caught.value.step == step


async def test_descriptors_and_merging(tmp_path):
    (tmp_path / "in").write_text("from a file\n")
    with open(tmp_path / "in") as source, open(tmp_path / "out", "w") as target:
        await started("sh", "-c", "cat; echo error >&2", stdin=source.fileno(), stdout=target.fileno(), merge_stderr=True)
    assert (tmp_path / "out").read_text() == "from a file\nerror\n"
    heard = await started("sh", "-c", "echo 1; echo 2 >&2; echo 3", merge_stderr=True)
    assert said(heard) == "1\n2\n3\n"


async def test_bytes_an_executable_and_two_megabytes_of_arguments():
    heard = await started("called", "-c", "print(__import__('sys').argv)", executable=sys.executable)
    assert said(heard) == "['-c']\n"
    heard = await started(b"printf", b"%s", b"\xff\xfe")
    assert next(iter(heard.data.values())) == b"\xff\xfe"
    words = [os.urandom(50_000).hex() for _ in range(18)]
    heard = await started("sh", "-c", "echo $#", "sh", *words)
    assert said(heard) == "18\n"


async def test_what_the_kernel_has_changed_is_inherited(tmp_path, monkeypatch):
    """A child has its kernel's folder, umask, affinity and limits of that moment, though another process starts it."""
    async with ProcessManager() as pm:
        assert (await pm.run("pwd")).text.strip() == os.getcwd()
        monkeypatch.chdir(tmp_path)
        assert (await pm.run("pwd")).text.strip() == str(tmp_path)
        before = os.umask(0o077)
        affinity = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(affinity)})
            await asyncio.sleep(0.05)  # a burst may take what was looked at some milliseconds ago
            assert (await pm.run("umask", shell=True)).text.strip() == "0077"
            assert (await pm.run("nproc")).text.strip() == "1"
        finally:
            os.umask(before)
            os.sched_setaffinity(0, affinity)
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        assert (await pm.run("echo", "fine")).text.strip() == "fine"


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has policies of scheduling")
@pytest.mark.parametrize("options", [{}, {"nice": 1}, {"pty": True}], ids=["spawned", "forked", "pty"])
async def test_a_shim_stands_back_and_its_children_do_not(options):
    """The shim lets who wakes it go on; a child is scheduled as its kernel is, whatever that is, as if the kernel had started it."""
    policy = python_child("import os; print(os.sched_getscheduler(0))")
    async with ProcessManager() as pm:
        assert (await pm.run(*policy, **options)).text.strip() == str(os.SCHED_OTHER)
        assert {os.sched_getscheduler(shim) for shim in shims.pids} == {os.SCHED_BATCH}
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        try:
            await asyncio.sleep(0.05)  # a burst may take what was looked at some milliseconds ago
            assert (await pm.run(*policy, **options)).text.strip() == str(os.SCHED_BATCH)
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="Linux has pipes of a size")
async def test_the_pipes_of_a_child_that_lives_are_wide_before_a_cell_goes_on(pm):
    proc = await pm.spawn(*SLEEPER)
    assert [fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in process_core(proc).child._readers] == [256 << 10] * 2


# --- pseudo-terminals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["date", "sort /etc/passwd", "grep root /etc/passwd", "ls /"])
async def test_programs_end_by_themselves_on_a_terminal(pm, command):
    for _ in range(10):
        result = await pm.run(command, shell=True, pty=True, check=False)
        assert (result.exit_code, result.signal) == (0, None)
        assert result.stdout


async def test_all_that_was_written_to_a_terminal_arrives_while_cells_compute_in_pieces(pm):
    proc = await pm.spawn(*python_child("for i in range(1500): print('x' * 9)"), pty=True)
    while proc.status.live and alive([proc.pid]):
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            pass
        await asyncio.sleep(0)
    assert (await proc.wait(10)).stdout.count(b"xxxxxxxxx\r\n") == 1500


@pytest.mark.parametrize("text", ["", "whole line\n", "half a line"])
async def test_the_end_of_input_is_an_end_also_in_the_middle_of_a_line(pm, text):
    proc = await pm.spawn("cat", pty=True, stdin=True)
    if text:
        await proc.send(text)
    await proc.close_stdin()
    assert (await proc.wait(10)).exit_code == 0


# --- strays ---------------------------------------------------------------------------------------------------------------

STRAY = """
import resource
if os.fork() == 0:
    os.setsid()
    resource.setrlimit(10, (-1, -1))
    if os.fork() == 0:
        for fd in range(3): os.close(fd)
        os.execve('/bin/sleep', ['sleep', '1000'], {})
    os._exit(0)
os.wait()
"""


async def test_what_nothing_ties_to_a_process_is_listed_said_and_ended(caplog):
    async with ProcessManager(grace=1) as pm:
        proc = await pm.spawn(*python_child(STRAY))
        await proc.wait()
        async with asyncio.timeout(10):
            while not (found := await pm.strays()):
                await asyncio.sleep(0.02)
        ((pid, _, command),) = found
        assert command == "sleep 1000"
        await until(lambda: "pm.strays()" in caplog.text, within=5, what="said in the log")
        await proc.stop(grace=1)
        assert alive([pid]), "nothing tells that it is this process's"
    assert not alive([pid])


# --- where there can be no shim -------------------------------------------------------------------------------------------

EMBEDDED = """
import asyncio, logging, sys, nbprocs
from nbprocs.engine import shim
HOW
async def main():
    async with nbprocs.ProcessManager() as pm:
        results = await asyncio.gather(*(pm.run("echo", str(n)) for n in range(3)))
        print([r.text.strip() for r in results])
        proc = await pm.spawn("sleep", "1000")
        print((await proc.stop()).status)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "how", ["sys.executable = '/usr/bin/blender'; sys._base_executable = ''; sys.exec_prefix = '/none'", "shim._SCRIPT = '/none.py'"]
)
def test_an_interpreter_that_is_none_falls_back_with_a_word(how):
    import subprocess

    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED.replace("HOW", how)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["['0', '1', '2']", "terminated"], done.stderr
    assert "children are started by the event loop itself" in done.stderr


# --- nobody is forgotten --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("steps", range(6))
async def test_a_start_that_nobody_waits_for_any_more_leaves_no_process(pm, steps, warm):
    """It is undone at once, and not only when the manager closes."""
    mark = f"1000{random.getrandbits(30)}"
    if warm:  # then the start and its undoing go one way, and one more start comes behind both
        await pm.run("true")
    starting = asyncio.get_running_loop().create_task(pm.spawn("sleep", mark))
    for _ in range(steps):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled():
        await starting.result().stop()
    for _ in range(1 if warm else 5):  # whatever was asked before these has been done when they are over
        await pm.run("true")
    await until(lambda: not carriers(mark), within=5, what="gone, and reaped, while the manager lives")
    assert pm.live == 0


def carriers(mark):
    return [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or ())]


async def test_what_a_worker_started_ends_with_a_worker_that_died_by_itself(tmp_path):
    from nbprocs import PoolConfig, ProcessFailed, ProcessPool

    def die(place):
        import os
        import subprocess
        from pathlib import Path

        child = subprocess.Popen(["setsid", "sleep", "1000"])
        Path(place).write_text(str(child.pid))
        os._exit(3)

    place = tmp_path / "pid"
    async with ProcessPool(PoolConfig(min_processes=1, max_processes=1, max_retries=0)) as pool:
        with pytest.raises(ProcessFailed):
            await pool.run(die, str(place))
        await until(lambda: not alive([int(place.read_text())]), within=5, what="its child is ended while the pool lives")
