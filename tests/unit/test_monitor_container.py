"""Container limits from trees of files as the two cgroup versions have them."""

import psutil
import pytest

from nbprocs.engine.container import available_memory, kill_counter, kills_in, read_limits, usable_cpus

GIB = 1 << 30
V1_MOUNTS = "".join(
    f"3{n} 25 0:3{n} {{root}} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n" for n, name in enumerate(("memory", "cpu", "pids"))
)


@pytest.fixture
def tree(tmp_path):
    def make(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return str(tmp_path)

    return make


def everybody_agrees(root, limits):
    """What pool, scheduler and the watch for kills ask is what the monitor shows."""
    assert usable_cpus(root=root) == max(1, round(limits.cpus))
    assert available_memory(root=root) == pytest.approx(
        min(limits.memory_bytes - limits.memory_used, psutil.virtual_memory().available), rel=0.2
    )
    assert kills_in(kill_counter(root=root)) == limits.oom_kills


@pytest.mark.parametrize("inside", [True, False])
def test_version_1(tree, inside):
    """In a container with its own mount the group's path in /proc/self/cgroup does not exist: its root is ours."""
    group = "/docker/abc"
    folder = "" if not inside else "docker/abc/"
    limits = read_limits(root=tree({
        "proc/self/cgroup": f"4:memory:{group}\n1:cpu:{group}\n8:pids:{group}\n0::/\n",
        "proc/self/mountinfo": V1_MOUNTS.format(root="/" if inside else group),
        f"sys/fs/cgroup/memory/{folder}memory.limit_in_bytes": f"{2 * GIB}\n",
        f"sys/fs/cgroup/memory/{folder}memory.usage_in_bytes": f"{GIB}\n",
        f"sys/fs/cgroup/memory/{folder}memory.stat": f"cache 5\ntotal_inactive_file {GIB // 4}\n",
        f"sys/fs/cgroup/memory/{folder}memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        f"sys/fs/cgroup/cpu/{folder}cpu.cfs_quota_us": "50000\n",
        f"sys/fs/cgroup/cpu/{folder}cpu.cfs_period_us": "100000\n",
        f"sys/fs/cgroup/pids/{folder}pids.max": "512\n",
    }))  # fmt: skip
    assert limits.memory_bytes == 2 * GIB
    assert limits.memory_limited
    assert limits.percent(1024) == 50.0  # 1 GiB of a 2 GiB Binder
    assert limits.memory_used == GIB - GIB // 4
    assert (limits.cpus, limits.pids, limits.oom_kills, limits.version) == (0.5, 512, 3, 1)
    everybody_agrees(tree({}), limits)


def test_version_2_and_the_least_limit_up_the_path_holds(tree):
    limits = read_limits(root=tree({
        "proc/self/cgroup": "0::/user.slice/box\n",
        "proc/self/mountinfo": "30 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
        "sys/fs/cgroup/user.slice/cgroup.controllers": "cpu memory pids\n",
        "sys/fs/cgroup/user.slice/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/user.slice/box/cgroup.controllers": "cpu memory pids\n",
        "sys/fs/cgroup/user.slice/box/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/box/memory.current": f"{GIB // 2}\n",
        "sys/fs/cgroup/user.slice/box/memory.stat": "inactive_file 1000\n",
        "sys/fs/cgroup/user.slice/box/memory.events": "low 0\noom 2\noom_kill 1\n",
        "sys/fs/cgroup/user.slice/box/cpu.max": "25000 100000\n",
        "sys/fs/cgroup/user.slice/box/pids.max": "max\n",
    }))  # fmt: skip
    assert limits.memory_bytes == GIB
    assert (limits.cpus, limits.pids, limits.oom_kills, limits.version) == (0.25, None, 1, 2)
    assert limits.memory_used == GIB // 2 - 1000
    everybody_agrees(tree({}), limits)


def test_no_container_means_the_machine(tree):
    limits = read_limits(root=tree({"proc/self/cgroup": ""}))
    assert limits.memory_bytes == psutil.virtual_memory().total
    assert not limits.memory_limited
    assert limits.version is None
    assert limits.cpus >= 1
    assert kill_counter(root=str(tree({}))) is None
    assert available_memory(root=tree({})) <= psutil.virtual_memory().total


@pytest.mark.parametrize("garbage", ["", "nonsense", "9223372036854771712", "-1", "max"])
def test_what_is_no_limit_limits_nothing(tree, garbage):
    limits = read_limits(root=tree({
        "proc/self/cgroup": "4:memory:/\n",
        "proc/self/mountinfo": "30 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": garbage,
    }))  # fmt: skip
    assert not limits.memory_limited
    assert limits.percent(limits.memory_mb) == 100.0
