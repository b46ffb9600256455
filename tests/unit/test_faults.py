"""Bad input and faults: each gives a clear error or a clean result, and nothing is lost, leaked or left running (the fixtures look)."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nbprocs import (
    CommunicationError,
    PermissionDenied,
    ProcessManager,
    ProcessStatus,
    StartupFailed,
    UnknownProcess,
)
from tests.children import STUBBORN, python_child, until_line
from tests.kernel.conftest import alive

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def pm():
    async with ProcessManager(max_concurrent=1, grace=2) as manager:
        yield manager


# --- a start that can't be ------------------------------------------------------------------------------------------------


def a_file(folder, mode):
    path = folder / "a file"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(mode)
    return str(path)


BAD_STARTS = {
    "does not exist": (lambda _: (("no-such-program-anywhere",), {}), StartupFailed, "no such program"),
    "path does not exist": (lambda d: ((str(d / "none"),), {}), StartupFailed, "no such program"),
    "not executable": (lambda d: ((a_file(d, 0o644),), {}), PermissionDenied, "chmod"),
    "a directory": (lambda d: ((str(d),), {}), PermissionDenied, "directory"),
    "a part is no directory": (lambda d: ((a_file(d, 0o755) + "/x",), {}), StartupFailed, "not a directory"),
    "missing working_dir": (lambda d: (("true",), {"working_dir": d / "none"}), StartupFailed, "does not exist"),
    "working_dir is a file": (lambda d: (("true",), {"working_dir": a_file(d, 0o755)}), StartupFailed, "not a directory"),
    "empty command": (lambda _: (("",), {}), StartupFailed, "empty"),
    "blank command": (lambda _: (("  ",), {}), StartupFailed, "empty"),
    "NUL in an argument": (lambda _: (("echo", "a\0b"), {}), StartupFailed, "NUL"),
    "NUL in the command": (lambda _: (("ec\0ho",), {}), StartupFailed, "NUL"),
    "NUL in a shell line": (lambda _: (("echo a\0b",), {"shell": True}), StartupFailed, "NUL"),
    "NUL in the environment": (lambda _: (("true",), {"env_vars": {"A": "x\0y"}}), StartupFailed, "NUL"),
    "NUL in working_dir": (lambda _: (("true",), {"working_dir": "/tm\0p"}), StartupFailed, ""),
    "argument list too long": (lambda _: (("echo", *["x" * 100_000] * 100), {}), StartupFailed, "too long"),
    "name too long": (lambda _: (("x" * 5000,), {}), StartupFailed, ""),
    "not a program": (lambda d: ((binary(d),), {}), StartupFailed, "interpreter"),
    "surrogates": (lambda _: (("no-\udcff-program",), {}), StartupFailed, ""),
}


def binary(folder):
    path = folder / "binary"
    path.write_bytes(b"\x00\x01\x02 not an ELF file")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("engine", ["posix", "portable"])
@pytest.mark.parametrize("what", BAD_STARTS)
async def test_a_bad_start_is_a_clear_error_and_leaves_no_entry(what, engine, tmp_path):
    make, kind, says = BAD_STARTS[what]
    command, options = make(tmp_path)
    async with ProcessManager(max_concurrent=1, engine=engine) as pm:
        with pytest.raises(StartupFailed) as caught:
            await pm.spawn(*command, **options)
        assert type(caught.value) is kind
        assert says in str(caught.value)
        assert caught.value.hint or not says
        assert len(str(caught.value)) < 2000, "an error for a person, not a dump of its arguments"
        assert pm.list() == ()
        assert (await pm.run("echo", "next")).stdout == b"next\n", "the slot was given back"


@pytest.mark.parametrize(
    ("options", "kind"), [({"timeout": 0}, ValueError), ({"timeout": -1}, ValueError), ({"timeout": float("nan")}, ValueError)]
)
async def test_nonsense_is_refused_before_anything_starts(pm, options, kind):
    with pytest.raises(kind):
        await pm.spawn("true", **options)
    assert pm.list() == ()


async def test_wrong_types_are_refused(pm):
    with pytest.raises(TypeError, match="args"):
        await pm.spawn(["echo", "x"])
    with pytest.raises(ValueError, match="one line"):
        await pm.spawn("echo x", "y", shell=True)


# --- limits of the system, each in an interpreter of its own --------------------------------------------------------------


def in_a_limited_interpreter(code):
    """Run top-level async code in a fresh interpreter; its output, or a failure."""
    body = textwrap.indent(textwrap.dedent(code), "    ")
    program = f"import asyncio, os, resource, sys, nbprocs\nasync def main():\n{body}\nasyncio.run(main())"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_descriptors_left():
    out = in_a_limited_interpreter(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (70, 4096))  # before the first start: a changed limit is for a shim of its own
        async with nbprocs.ProcessManager() as pm:
            await pm.run("true")
            before = set(os.listdir("/proc/self/fd"))
            hogs = []
            for spare in range(12):  # every number of descriptors that may be left in the middle of a start
                try:
                    while True:
                        hogs.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    pass
                for _ in range(spare):
                    os.close(hogs.pop())
                try:
                    result = await pm.run("echo", "fine")
                except nbprocs.ResourceExhausted as error:
                    assert "ulimit -n" in str(error), error
                else:
                    assert result.stdout == b"fine\\n"
                    print("enough:", spare)
                while hogs:
                    os.close(hogs.pop())
            assert (await pm.run("echo", "later")).stdout == b"later\\n"
            after = set(os.listdir("/proc/self/fd"))
            assert len(after) <= len(before), (before, after)
            assert all(not p.status.live for p in pm.list())
        print("ok")
        """
    )
    assert out.endswith("ok\n")
    assert "enough: 0" not in out
    assert "enough: 11" in out


def test_no_processes_left():
    out = in_a_limited_interpreter(
        """
        async with nbprocs.ProcessManager(max_concurrent=1) as pm:
            await pm.run("true")  # loads what is loaded late, and starts the shim
            from nbprocs.engine import portable  # where nobody may run this interpreter, the next start goes this way
            if os.getuid() == 0:
                os.setuid(65534)  # root has no such limit
            resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
            for _ in range(3):
                try:
                    await pm.run("true")
                except nbprocs.ResourceExhausted as error:
                    assert "ulimit -u" in str(error), error
                else:
                    raise AssertionError("started in spite of the limit")
            resource.setrlimit(resource.RLIMIT_NPROC, (resource.getrlimit(resource.RLIMIT_NPROC)[1],) * 2)
            assert (await pm.run("true")).ok
        print("ok")
        """
    )
    assert out == "ok\n"


def test_disk_full_while_spilling(tmp_path):
    out = in_a_limited_interpreter(
        f"""
        import tempfile
        tempfile.tempdir = {str(tmp_path)!r}
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # a file can't grow past 1 MiB
        async with nbprocs.ProcessManager(output_limit=1 << 20) as pm:
            code = "import sys\\nfor i in range(2_000_000): sys.stdout.write(f'{{i:09d}}\\\\n')"
            proc = await pm.spawn(sys.executable, "-I", "-S", "-c", code)
            result = await proc.wait()
            assert result.ok, result
            assert proc.stdout.end == 20_000_000, proc.stdout
            kept = result.stdout
            assert result.dropped_bytes > 0
            assert result.dropped_bytes + len(kept) == 20_000_000, (result.dropped_bytes, len(kept))
            assert kept.startswith(b"000000000\\n000000001\\n") and kept.endswith(b"001999999\\n")
            lines = [line async for line in proc.lines()]
            assert lines[-1] == "001999999"
            assert any("dropped" in line for line in lines), "what was dropped is said"
        print("ok", os.listdir({str(tmp_path)!r}))
        """
    )
    assert out == "ok []\n"


# --- children that behave badly -------------------------------------------------------------------------------------------


async def test_a_child_that_closes_its_stdin(pm):
    proc = await pm.spawn(*python_child("os.close(0); ready(); forever()"), stdin=True)
    await until_line(proc)
    with pytest.raises(CommunicationError, match="stdin"):
        for _ in range(1000):
            await proc.send(b"x" * 65536)
    await proc.close_stdin()
    assert proc.status is ProcessStatus.RUNNING


async def test_talking_to_one_that_has_no_stdin_or_has_ended(pm):
    proc = await pm.spawn("cat")
    with pytest.raises(CommunicationError, match="stdin=True"):
        await proc.send("x")
    await proc.wait()
    with pytest.raises(CommunicationError):
        proc.send_signal(15)
    with pytest.raises(CommunicationError):
        proc.pause()


async def test_a_child_that_ignores_sigterm(pm):
    proc = await pm.spawn(*STUBBORN)
    await until_line(proc)
    result = await proc.stop(grace=0.2)
    assert (result.status, result.signal) == (ProcessStatus.TERMINATED, 9)


async def test_a_child_that_stops_itself(pm):
    proc = await pm.spawn(*python_child("ready(); os.kill(os.getpid(), signal.SIGSTOP); forever()"))
    await until_line(proc)
    result = await proc.stop(grace=2)
    assert (result.status, result.signal) == (ProcessStatus.TERMINATED, 15), "it was continued, so that it could hear SIGTERM"


async def test_a_stopped_child_that_ignores_sigterm(pm):
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); os.kill(os.getpid(), signal.SIGSTOP); forever()"
    proc = await pm.spawn(*python_child(code))
    await until_line(proc)
    assert (await proc.stop(grace=0.2)).signal == 9


async def test_a_child_that_forks_and_exits(pm):
    """The grandchild holds the pipe; the exit is known all the same."""
    code = "pid = os.fork()\nif pid == 0: forever()\nready(str(pid)); os._exit(3)"
    proc = await pm.spawn(*python_child(code))
    result = await proc.wait(timeout=10)
    assert result.exit_code == 3
    assert result.execution_time < 5
    grandchild = int(result.stdout)
    assert alive([grandchild])
    await proc.stop(grace=1)
    assert not alive([grandchild]), "stop ends the whole tree, also after the exit of its head"


async def test_a_child_that_daemonises(pm):
    code = """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3): os.close(fd)
            open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); os.rename(sys.argv[1] + '.new', sys.argv[1])
            forever()
        os._exit(0)
    os.wait()
    while not os.path.exists(sys.argv[1]): time.sleep(0.01)
    ready(open(sys.argv[1]).read())
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        proc = await pm.spawn(*python_child(code, f"{folder}/pid"))
        daemon = int((await proc.wait(timeout=20)).stdout)
    assert alive([daemon])
    await proc.stop(grace=1)
    assert not alive([daemon])


@pytest.mark.slow
async def test_a_child_that_writes_gigabytes_nobody_reads():
    async with ProcessManager(output_limit=1 << 20) as pm:
        proc = await pm.spawn("head", "-c", str(2 << 30), "/dev/zero")
        result = await proc.wait(timeout=100)
        assert result.ok
        assert proc.stdout.end == 2 << 30
        assert proc.stdout.in_memory <= 2 << 20
        assert result.dropped_bytes + proc.stdout.in_memory + proc.stdout.spilled == 2 << 30, "kept or counted, nothing silent"


async def test_a_child_that_writes_nothing(pm):
    result = await pm.run("true")
    assert (result.stdout, result.stderr, result.text) == (b"", b"", "")
    proc = pm.processes()[-1]
    assert [line async for line in proc.lines()] == []
    assert await proc.receive_output() is None
    assert proc.tail() == ""


async def test_half_a_character(pm):
    proc = await pm.spawn(*python_child(r"os.write(1, 'ä\nö'.encode()[:-1])"))
    assert [line async for line in proc.lines()] == ["ä", "\ufffd"]
    assert (await proc.wait()).stdout == "ä\nö".encode()[:-1]


async def test_characters_split_between_writes_arrive_whole(pm):
    text = "naïve – 日本語 🦀\n" * 3
    code = "for b in sys.argv[1].encode(): os.write(1, bytes([b])); time.sleep(0.0005)"
    proc = await pm.spawn(*python_child(code, text))
    assert [line async for line in proc.lines()] == text.splitlines()


async def test_odd_bytes(pm):
    data = b"nul \x00 here\r\nbad \xff\xfe\nprogress 1%\rprogress 2%\r\nno end"
    proc = await pm.spawn(*python_child(f"os.write(1, {data!r})"))
    expected = ["nul \0 here", "bad \ufffd\ufffd", "progress 1%\rprogress 2%", "no end"]
    assert [line async for line in proc.lines()] == expected
    assert (await proc.wait()).stdout == data


@pytest.mark.slow
async def test_a_very_long_line(pm):
    proc = await pm.spawn("head", "-c", str(200 << 20), "/dev/zero")
    lines = [len(line) async for line in proc.lines()]
    assert lines == [200 << 20]


async def test_the_clock_set_back(pm, monkeypatch):
    import time

    proc = await pm.spawn("sleep", "1000")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    result = await proc.stop()
    assert 0 <= result.execution_time < 60
    assert 0 <= proc.info.execution_time < 60


# --- what a person sees ---------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>"


async def test_markup_in_names_commands_and_output_stays_text(pm):
    proc = await pm.spawn("echo", EVIL, name=f"x{EVIL}")
    await proc.wait()
    for shown in (pm, proc):
        page = shown._html_()
        assert "<script" not in page
        assert "&lt;script" in page
    with pytest.raises(StartupFailed) as caught:
        await pm.spawn(EVIL)
    assert "no such program" in str(caught.value)


SECRETS = ("hunter2", "tok-123456", "s3cr3t-env")


async def test_passwords_are_masked_wherever_a_command_is_shown(pm):
    import logging

    proc = await pm.spawn(
        *python_child("ready(); sys.exit(1)", "--password=hunter2", "--token", "tok-123456"),
        env_vars={"API_SECRET": "s3cr3t-env", "PLAIN": "shown"},
    )
    await proc.wait()
    config = proc.config
    shown = [
        repr(config),
        config.display,
        repr(proc),
        proc._html_(),
        repr(pm),
        pm._html_(),
        repr(proc.info),
        repr(pm.list()),
        pm.frame().to_string(),
    ]
    shown += [repr(proc.result)]
    shown += [repr(vars(proc.result)) if hasattr(proc.result, "__dict__") else proc.result.command]
    from nbprocs.errors import error_from_result

    error = error_from_result(proc.result)
    shown += [str(error), repr(error)]
    with pytest.raises(StartupFailed) as caught:
        await pm.spawn("no-such-program", "--password=hunter2", env_vars={"API_SECRET": "s3cr3t-env"})
    shown += [str(caught.value), repr(caught.value)]
    for text in shown:
        for secret in SECRETS:
            assert secret not in text
    assert logging


# --- what ended processes leave behind --------------------------------------------------------------------------------------

LEAVER = "pid = os.fork()\nif pid == 0: forever()\nready(str(pid)); os._exit(3)"


async def test_closing_ends_what_an_ended_process_left_behind():
    async with ProcessManager() as pm:
        left = int((await pm.run(*python_child(LEAVER), check=False)).stdout)
        assert alive([left])
    assert not alive([left])


async def test_a_restart_ends_what_the_crashed_one_left_behind():
    async with ProcessManager() as pm:
        first = await pm.spawn(*python_child(LEAVER), name="server")
        left = int((await first.wait()).stdout)
        assert alive([left])
        await pm.restart("server")
        assert not alive([left])


@pytest.mark.parametrize(
    ("first_line", "hint"),
    [
        ("#!/no/such/interpreter -x\n", "its first line names /no/such/interpreter"),
        ("#!/bin/sh\r\n", "carriage return"),
    ],
)
async def test_a_script_whose_interpreter_is_missing(pm, tmp_path, first_line, hint):
    script = tmp_path / "script"
    script.write_bytes(first_line.encode() + b"echo x\r\n")
    script.chmod(0o755)
    with pytest.raises(StartupFailed) as caught:
        await pm.run(script)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("sort -n f",), "spawn('sort', '-n', 'f'), or pass shell=True"),
        (("/bin/ls -l",), "spawn('/bin/ls', '-l')"),
        (("ls | wc",), "a line of the shell"),
        (("ls|wc",), "a line of the shell"),
        (("echo $HOME",), "a line of the shell"),
        (("A=1 env",), "a line of the shell"),
        (("~/train",), "a line of the shell"),
        (("cd", "/tmp"), "a command of the shell itself"),
        (("cd /tmp",), "a command of the shell itself"),
        (("ls ",), "spawn('ls')"),
        (("\nls",), "spawn('ls')"),
        (("no-such-program-x", "a|b"), "check the spelling"),
    ],
)
async def test_a_command_line_in_one_word_is_explained(pm, words, hint):
    with pytest.raises(StartupFailed) as caught:
        await pm.run(*words)
    assert hint in caught.value.hint


async def test_a_name_with_a_typo_is_guessed(pm):
    await pm.run("true", name="web")
    with pytest.raises(UnknownProcess, match="did you mean 'web'"):
        pm.get("wbe")
