"""The sampler against the truth: the kernel's own accounting, on real children, by /proc and by psutil alike."""

import asyncio
import contextlib
import itertools
import math
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from nbprocs.engine.forest import Forest
from nbprocs.engine.handles import ProcHandle, listening_inodes, listing, open_handle
from nbprocs.engine.handles_psutil import PsutilHandle
from nbprocs.engine.table import TICK, Identity, identify, read_psutil
from nbprocs.monitor.gpu import Gpu
from nbprocs.monitor.history import History
from nbprocs.monitor.metrics import Scope, State
from nbprocs.monitor.sampler import Ask, GroupAsk, Sampler
from tests.children import SLEEPER, python_child

MIB = 1 << 20


@pytest.fixture
def start():
    """Start children that say a line; all of their sessions end with the test."""
    children = []

    def run(argv, **options):
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
        children.append(child)
        child.first = child.stdout.readline().strip()
        return child

    yield run
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.fixture
def sampling():
    """Samplers that are closed at the end, and asks for them."""
    made = []

    def make(*pids, portable=False, interval=1.0, **fields):
        sampler = Sampler(portable=portable, interval=interval, gpu=Gpu(library=None))
        history = History()
        made.append(sampler)
        asks = []
        for pid in pids:
            identity = read_psutil(pid).identity if portable else identify(pid)
            series = history.series(process_id=str(pid), name=f"p{pid}", pid=pid)
            asks.append(Ask(code=series.code, identity=identity, name=f"p{pid}", process_id=str(pid), **fields))
        sampler.register = history.series
        return sampler, asks

    yield make
    for sampler in made:
        sampler.close()


def look(sampler, asks, groups=()):
    return sampler.sample(asks, groups, register=sampler.register)


def row(sample, place=0):
    return {name: values[place].item() for name, values in sample.columns.items()}


both = pytest.mark.parametrize("portable", [False, True], ids=["proc", "psutil"])
BUSY = python_child("ready()\nwhile True: pass")
# two busy grandchildren, told by pid
TREE = python_child("""
    import subprocess
    code = "x = bytearray(%d << 20); print('up', flush=True)\\nwhile True: pass"
    kids = [subprocess.Popen([sys.executable, '-I', '-S', '-c', code % size], stdout=subprocess.PIPE) for size in (5, 20)]
    for kid in kids: kid.stdout.readline()
    ready(' '.join(str(kid.pid) for kid in kids)); forever()
""")


def cpu_seconds(pid):
    """User and system time of a process of one thread by the scheduler's own clock, in nanoseconds resolution."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measured_cpu(sampler, asks, pid, seconds):
    look(sampler, asks)
    before, began = cpu_seconds(pid), time.perf_counter()
    time.sleep(seconds)  # the length of the measurement
    sample = look(sampler, asks)
    truth = (cpu_seconds(pid) - before) / (time.perf_counter() - began) * 100
    return row(sample)["cpu_percent"], truth


@both
def test_cpu_of_a_busy_loop_is_within_three_points(start, sampling, portable):
    child = start(BUSY)
    sampler, asks = sampling(child.pid, portable=portable)
    found, truth = measured_cpu(sampler, asks, child.pid, 1.5)
    assert found == pytest.approx(truth, abs=3)
    assert found > 1


@pytest.mark.slow
def test_cpu_of_a_busy_loop_over_ten_seconds(start, sampling):
    child = start(BUSY)
    sampler, asks = sampling(child.pid)
    found, truth = measured_cpu(sampler, asks, child.pid, 10)
    assert found == pytest.approx(truth, abs=3)


@both
def test_the_first_cpu_of_a_process_is_absent_never_zero(start, sampling, portable):
    sampler, asks = sampling(start(SLEEPER).pid, start(SLEEPER).pid, portable=portable)
    assert np.isnan(look(sampler, asks[:1]).columns["cpu_percent"]).all()
    second = look(sampler, asks).columns["cpu_percent"]
    assert second[0] == 0
    assert math.isnan(second[1])


@both
def test_memory_is_that_of_smaps_rollup(start, sampling, portable):
    child = start(python_child("x = bytearray(64 << 20); ready(); forever()"))
    sampler, asks = sampling(child.pid, portable=portable)
    found = row(look(sampler, asks))
    rollup = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
    truth = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in rollup[1:]}
    # A page is more or less shared from one moment to the next: whoever starts or ends beside it maps the same libraries.
    assert found["pss_mb"] == pytest.approx(truth["Pss"], abs=1)
    assert found["uss_mb"] == pytest.approx(truth["Private_Clean"] + truth["Private_Dirty"], abs=1)
    assert found["memory_usage_mb"] == pytest.approx(truth["Rss"], abs=1)  # the kernel batches this counter by CPU
    assert found["memory_usage_mb"] > 64


@both
@pytest.mark.parametrize("extra", [0, 1, 200])
def test_descriptors_are_exact(start, sampling, portable, extra):
    child = start(
        python_child(
            f"held = [os.open('/dev/null', 0) for _ in range({extra})]; ready(str(len(os.listdir('/proc/self/fd')) - 1)); forever()"
        )
    )
    sampler, asks = sampling(child.pid, portable=portable)
    assert row(look(sampler, asks))["file_descriptors"] == int(child.first) == 3 + extra


@both
def test_bytes_of_a_known_copy_are_exact(start, sampling, portable, tmp_path):
    size = 10_000_001
    (tmp_path / "source").write_bytes(b"x" * size)
    child = start(python_child(
        """
        source, target = os.open(sys.argv[1] + '/source', 0), os.open(sys.argv[1] + '/target', os.O_WRONLY | os.O_CREAT)
        ready()
        os.read(0, 3)
        while data := os.read(source, 1 << 16): os.write(target, data)
        os.write(1, b'done\\n')
        forever()
        """,
        str(tmp_path),
    ))  # fmt: skip
    sampler, asks = sampling(child.pid, portable=portable)
    before = row(look(sampler, asks))
    child.stdin.write("go\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"
    after = row(look(sampler, asks))
    assert after["read_bytes"] - before["read_bytes"] == size + len("go\n")
    assert after["write_bytes"] - before["write_bytes"] == size + len("done\n")
    assert (tmp_path / "target").stat().st_size == size


@both
def test_tree_totals_are_the_sums_of_the_members(start, sampling, portable):
    child = start(TREE)
    kids = [int(pid) for pid in child.first.split()]
    sampler, asks = sampling(child.pid, portable=portable)
    look(sampler, asks)
    time.sleep(0.3)  # the length of the measurement
    sample = look(sampler, asks)
    scopes = sample.columns["scope"]
    assert scopes.tolist() == [Scope.TREE] + [Scope.PROCESS] * 3
    assert {name.split("/")[1] for name in sample.names[1:]} == {str(pid) for pid in (child.pid, *kids)}
    for name in ("memory_usage_mb", "threads", "file_descriptors", "read_bytes", "write_bytes", "cpu_percent"):
        values = sample.columns[name]
        assert values[0] == pytest.approx(values[1:].sum(), rel=1e-6), name  # kept in single precision
    assert sample.columns["processes"][0] == 3
    assert sample.columns["cpu_percent"][0] > 0
    assert sample.columns["memory_usage_mb"][0] > 25
    rss = sum(psutil.Process(pid).memory_info().rss for pid in (child.pid, *kids))
    assert sample.columns["memory_usage_mb"][0] == pytest.approx(rss / MIB, rel=0.05)


def test_tree_cpu_holds_the_work_of_children_that_came_and_went(start, sampling):
    """Between two looks a child burns half a second of CPU and is reaped: no scan ever sees it."""
    child = start(
        python_child("""
        import subprocess
        ready()
        sys.stdin.readline()
        burn = "import time; e = time.process_time() + 0.5\\nwhile time.process_time() < e: pass"
        subprocess.run([sys.executable, '-I', '-S', '-c', burn])
        ready('done'); forever()
    """)
    )
    sampler, asks = sampling(child.pid)
    look(sampler, asks)
    began = time.perf_counter()
    child.stdin.write("go\n")
    child.stdin.flush()
    child.stdout.readline()
    found = row(look(sampler, asks))
    elapsed = time.perf_counter() - began
    assert found["processes"] == 1
    assert found["cpu_percent"] * elapsed / 100 == pytest.approx(0.55, abs=0.1)


@both
def test_a_daemon_stays_with_its_tree_when_its_parent_dies_first(start, sampling, portable):
    child = start(
        python_child("""
        r, w = os.pipe()
        if os.fork() == 0:
            grandchild = os.fork()
            if grandchild == 0: forever()
            os.write(w, str(grandchild).encode()); os._exit(0)
        os.wait()
        ready(os.read(r, 20).decode()); forever()
    """)
    )
    sampler, asks = sampling(child.pid, portable=portable)
    sample = look(sampler, asks)  # never seen before its parent was gone: its session tells
    assert [name.split("/")[-1] for name in sample.names[1:]] == [str(child.pid), child.first]


def test_a_root_inside_another_ones_tree_counts_in_both(start, sampling):
    child = start(TREE)
    kid = int(child.first.split()[0])
    sampler, asks = sampling(child.pid, kid)
    for _ in range(2):
        sample = look(sampler, asks)
        trees = {name: i for i, name in enumerate(sample.names) if sample.columns["scope"][i] == Scope.TREE}
        assert sample.columns["processes"][trees[f"p{child.pid}"]] == 3
        assert sample.columns["processes"][trees[f"p{kid}"]] == 1
    sample = look(sampler, asks[:1])
    assert sample.columns["processes"][0] == 3


def test_a_root_that_is_added_later_finds_its_children(start, sampling):
    first, second = start(SLEEPER), start(TREE)
    sampler, asks = sampling(first.pid, second.pid)
    look(sampler, asks[:1])  # by now the other tree is known as strangers
    assert look(sampler, asks).columns["processes"].tolist()[:2] == [1, 3]


@both
def test_a_process_that_is_gone_is_told(start, sampling, portable):
    child, other = start(SLEEPER), start(SLEEPER)
    sampler, asks = sampling(child.pid, other.pid, portable=portable)
    look(sampler, asks)
    child.kill()
    child.wait()
    sample = look(sampler, asks)
    assert sample.gone == [asks[0].identity]
    assert sample.names == [asks[1].name]


@both
def test_a_reused_pid_is_another_process(start, sampling, portable):
    child = start(SLEEPER)
    sampler, asks = sampling(child.pid, portable=portable)
    earlier = Identity(child.pid, asks[0].identity.start - 1)  # who had the pid before
    sample = look(sampler, [asks[0]._replace(identity=earlier)])
    assert sample.gone == [earlier]
    assert sample.reused == {earlier}
    assert sample.names == []


def test_a_kept_descriptor_never_answers_for_another_process(start):
    child = start(SLEEPER)
    handle = ProcHandle(child.pid, keep=4)
    assert handle.row() is not None
    child.kill()
    child.wait()
    assert handle.row() is None
    assert handle.io() is None
    assert handle.descriptors() is None
    handle.close()
    handle.close()


@both
def test_a_process_that_dies_between_scan_and_read(start, sampling, portable):
    child, other = start(SLEEPER), start(SLEEPER)
    sampler, asks = sampling(child.pid, other.pid, portable=portable)
    scan = sampler.forest.scan

    def deadly(roots):
        trees = scan(roots)
        if child.poll() is None:
            child.kill()
            child.wait()
        return trees

    sampler.forest.scan = deadly
    found = row(look(sampler, asks))
    assert found["file_descriptors"] == found["read_bytes"] == -1  # unknown, not zero
    assert math.isnan(found["pss_mb"])
    assert look(sampler, asks).gone == [asks[0].identity]


@both
def test_a_zombie_holds_nothing_and_says_what_it_is(start, sampling, portable):
    child = start(SLEEPER)
    sampler, asks = sampling(child.pid, portable=portable)
    look(sampler, asks)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    found = row(look(sampler, asks))
    assert State(found["state"]) is State.ZOMBIE
    assert found["memory_usage_mb"] == 0


def test_a_process_of_another_user_is_seen_as_far_as_the_system_lets_us(start, sampling):
    """As root by giving up the rights for a moment, else with the first process of the machine."""
    root = os.geteuid() == 0
    pid = start(SLEEPER).pid if root else 1
    sampler, asks = sampling(pid)
    if root:
        os.seteuid(65534)
    try:
        found = row(look(sampler, asks))
    finally:
        if root:
            os.seteuid(0)
    assert found["memory_usage_mb"] > 0
    assert found["threads"] >= 1
    assert found["file_descriptors"] in (-1, 3) if root else True  # since Linux 6.2 anybody may know the number
    assert (found["read_bytes"], found["write_bytes"]) == (-1, -1)
    assert math.isnan(found["pss_mb"])


@both
def test_listening_ports(start, sampling, portable):
    child = start(
        python_child("""
        import socket
        a, b = socket.create_server(('127.0.0.1', 0)), socket.create_server(('::1', 0), family=socket.AF_INET6)
        ready(f'{a.getsockname()[1]} {b.getsockname()[1]}'); forever()
    """)
    )
    sampler, asks = sampling(child.pid, portable=portable)
    look(sampler, asks)
    assert sampler.ports[asks[0].code] == tuple(sorted(map(int, child.first.split())))


def test_a_port_opened_later_is_found_when_the_descriptors_change(start, sampling):
    child = start(
        python_child("""
        import socket
        ready(); sys.stdin.readline()
        a = socket.create_server(('127.0.0.1', 0))
        ready(str(a.getsockname()[1])); forever()
    """)
    )
    sampler, asks = sampling(child.pid, interval=0.001)
    look(sampler, asks)
    assert sampler.ports[asks[0].code] == ()
    child.stdin.write("go\n")
    child.stdin.flush()
    port = int(child.stdout.readline())
    deadline = time.monotonic() + 10
    while not sampler.ports[asks[0].code] and time.monotonic() < deadline:
        look(sampler, asks)
    assert sampler.ports[asks[0].code] == (port,)


def test_listening_inodes_knows_our_own_socket():
    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = os.fstat(server.fileno()).st_ino
        assert listening_inodes()[inode] == server.getsockname()[1]


def test_idle_and_silent_seconds_and_output_rates(start, sampling):
    class Log:
        end = 0
        lines = b""

        def read(self, position, size):
            return position, self.lines[position : position + size]

        def write(self, data):
            self.lines += data
            self.end += len(data)

    log = Log()
    child = start(SLEEPER)
    sampler, asks = sampling(child.pid, output=(log,))
    log.write(b"early\n")
    first = row(look(sampler, asks))
    assert math.isnan(first["throughput"])
    assert math.isnan(first["idle_seconds"])
    log.write(b"one\ntwo\nthr")
    began = time.perf_counter()
    second = row(look(sampler, asks))
    assert second["silence_seconds"] == second["idle_seconds"] == 0
    assert second["throughput"] / second["output_bytes_per_second"] == pytest.approx(2 / 11)
    third = row(look(sampler, asks))
    assert 0 < third["silence_seconds"] <= time.perf_counter() - began
    assert third["idle_seconds"] == third["silence_seconds"]
    assert third["throughput"] == 0


def test_memory_in_percent_of_what_the_container_allows(start, sampling):
    sampler, asks = sampling(start(SLEEPER).pid)
    found = row(look(sampler, asks))
    assert found["memory_percent"] == pytest.approx(100 * found["memory_usage_mb"] / sampler.limits.memory_mb, rel=1e-5)


def test_groups_are_sums_of_their_processes(start, sampling):
    sampler, asks = sampling(start(SLEEPER).pid, start(TREE).pid, group=99)
    sample = look(sampler, asks, [GroupAsk(code=99, name="all", process_id="all", error_count=3, success_count=4, error_rate=0.5)])
    scopes = sample.columns["scope"]
    trees, group = scopes == Scope.TREE, (scopes == Scope.GROUP).nonzero()[0][0]
    assert sample.names[group] == "all"
    for name in ("memory_usage_mb", "threads", "file_descriptors", "processes"):
        assert sample.columns[name][group] == sample.columns[name][trees].sum()
    assert (sample.columns["error_count"][group], sample.columns["success_count"][group]) == (3, 4)


def test_a_thousand_short_lived_children_leave_no_growth(start, sampling):
    child = start(("/bin/sh", "-c", "echo ready; read x; i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done; echo done; read x"))
    sampler, asks = sampling(child.pid)
    look(sampler, asks)
    before = len(os.listdir("/proc/self/fd"))
    child.stdin.write("go\n")
    child.stdin.flush()
    seen = 0
    os.set_blocking(child.stdout.fileno(), False)
    while not child.stdout.readline():
        seen = max(seen, row(look(sampler, asks))["processes"])
    look(sampler, asks)
    assert seen >= 2
    assert len(sampler.forest.members) == 1
    assert len(sampler._codes) == 0
    assert len(sampler._past) == 1
    assert len(sampler.forest._outsiders) <= len(listing())
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_room_for_descriptors_it_works_the_same(start, sampling):
    child = start(TREE)
    sampler, asks = sampling(child.pid)
    sampler.forest = Forest(keep=0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        found = row(look(sampler, asks))
        assert found["processes"] == 3
        assert found["file_descriptors"] > 0
        assert found["read_bytes"] > 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_idle_process_costs_one_read_and_what_changes_is_seen_at_once(start, sampling, monkeypatch):
    child = start(
        python_child("""
        ready()
        while sys.stdin.readline():
            held = [os.open('/dev/null', 0) for _ in range(5)]; extra = bytearray(40 << 20); ready('more'); sys.stdin.readline()
            [os.close(fd) for fd in held]; del extra; ready('less')
    """)
    )
    sampler, asks = sampling(child.pid)
    while not row(look(sampler, asks))["idle_seconds"] > 0.05:  # it may still be on its way from its word to its reading
        time.sleep(0.001)
    idle = [row(look(sampler, asks)) for _ in range(25)]
    assert {found["cpu_percent"] for found in idle} == {0}
    assert all(a["age_seconds"] < b["age_seconds"] and a["idle_seconds"] < b["idle_seconds"] for a, b in itertools.pairwise(idle))
    handle, reads = sampler.forest.members[child.pid].handle, []
    monkeypatch.setattr(os, "pread", lambda fd, *args, real=os.pread: reads.append(fd) or real(fd, *args))
    look(sampler, asks)
    assert handle.rested
    assert reads == [handle._sched]
    for step in range(4):
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == ("less\n" if step % 2 else "more\n")
        found = row(look(sampler, asks))
        more = 0 if step % 2 else 1
        assert found["file_descriptors"] == idle[0]["file_descriptors"] + 5 * more
        assert found["memory_usage_mb"] == pytest.approx(idle[0]["memory_usage_mb"] + 40 * more, abs=2)
        assert found["read_bytes"] == idle[0]["read_bytes"] + 3 * (step + 1)


def test_a_process_that_comes_to_rest_uses_no_cpu_and_writes_nothing(start, sampling):
    """What is carried over from the look before is not its load of then."""
    child = start(python_child("""
        import time
        ready()
        end = time.monotonic() + 0.2
        while time.monotonic() < end: pass
        ready('spent'); forever()
    """))  # fmt: skip
    sampler, asks = sampling(child.pid)
    look(sampler, asks)
    assert child.stdout.readline() == "spent\n"
    busy = row(look(sampler, asks))
    assert busy["cpu_percent"] > 5
    handle, last = sampler.forest.members[child.pid].handle, None
    for _ in range(50):
        found = row(look(sampler, asks))
        if handle.rested:
            assert found["cpu_percent"] == 0
            assert found["memory_usage_mb"] == busy["memory_usage_mb"]
            assert last is None or found["idle_seconds"] > last
            last = found["idle_seconds"]
    assert last is not None


def test_with_one_descriptor_each_a_resting_process_still_costs_one_read(start, sampling, monkeypatch):
    child = start(TREE)
    sampler, asks = sampling(child.pid)
    sampler.forest = Forest(keep=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert row(look(sampler, asks))["processes"] == 3
    assert len(os.listdir("/proc/self/fd")) == before + 2
    root = sampler.forest.members[child.pid].handle
    opened = []
    for _ in range(20):  # waiting in the pipe's read it may have been woken by a signal in between
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", lambda path, *args, real=os.open: opened.append(str(path)) or real(path, *args))
            look(sampler, asks)
        if root.rested:
            break
    assert root.rested
    sampler.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_look_that_fails_spoils_no_later_one(start, sampling, monkeypatch):
    one, two = start(SLEEPER), start(python_child("x = bytearray(30 << 20); ready(); forever()"))
    sampler, asks = sampling(one.pid, two.pid)
    for _ in range(3):
        truth = look(sampler, asks).columns["memory_usage_mb"].tolist()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="in the middle"):
        patch.setattr(sampler, "_exact", lambda *_: (_ for _ in ()).throw(OSError("in the middle")))
        look(sampler, asks[::-1])  # the places of the rows are others now
    assert look(sampler, asks).columns["memory_usage_mb"].tolist() == pytest.approx(truth, abs=1)
    look(sampler, asks[1:])
    assert look(sampler, asks).columns["memory_usage_mb"].tolist() == pytest.approx(truth, abs=1)


def test_both_makes_of_handles_agree(start):
    child = start(TREE)
    one, two = open_handle(child.pid, portable=False), open_handle(child.pid, portable=True)
    assert isinstance(two, PsutilHandle)
    a, b = one.row(), two.row()
    assert (a.pid, a.ppid, a.pgid, a.sid, a.threads) == (b.pid, b.ppid, b.pgid, b.sid, b.threads)
    assert a.rss == pytest.approx(b.rss, rel=0.05)
    assert a.utime + a.stime == pytest.approx(b.utime + b.stime, abs=2)
    assert time.time() - b.start == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME) - a.start / TICK, abs=2)
    assert one.descriptors() == two.descriptors()
    assert one.io() == two.io()
    inodes = listening_inodes()
    assert one.ports(lambda: inodes) == two.ports(lambda: inodes) == ()
    assert one.exact_memory() == pytest.approx(two.exact_memory(), rel=0.02)
    one.close()
    two.close()
    assert open_handle(2**22 + 1, portable=False) is None
    assert open_handle(2**22 + 1, portable=True) is None


def test_a_closed_sampler_holds_nothing(start, sampling):
    before = len(os.listdir("/proc/self/fd"))
    child = start(SLEEPER)
    own = len(os.listdir("/proc/self/fd"))
    sampler, asks = sampling(child.pid)
    look(sampler, asks)
    assert len(os.listdir("/proc/self/fd")) == own + 4
    sampler.close()
    assert len(os.listdir("/proc/self/fd")) == own
    assert own > before


async def test_a_tick_can_run_in_a_thread(start, sampling):
    sampler, asks = sampling(start(SLEEPER).pid)
    sample = await asyncio.to_thread(look, sampler, asks)
    assert sample.names == [asks[0].name]
