"""What people do with subprocess, held against subprocess itself: the kinds of its own suite (CPython's test_subprocess), in our words.

A scenario is run twice, by ``subprocess.run`` and by ``ProcessManager.run``: exit, output and error output are the same. What subprocess
refuses with an exception is a StartupFailed, or a TypeError or ValueError at the call.
"""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from nbprocs import CommunicationError, ExecutionTimeout, ProcessManager, StartupFailed
from tests.children import python_child as python

BIG = bytes(range(256)) * (1 << 13)  # 2 MiB, many times what a pipe holds
OURS = {"cwd": "working_dir"}  # what subprocess calls otherwise; env= is translated below, since ours is a difference
ARGS = ("printf", "[%s]")


def both_ways(size):
    return python(f"d = b'x' * {size}; os.write(1, b'first'); sys.stdout.buffer.write(sys.stdin.buffer.read()); sys.stderr.buffer.write(d)")


def none_held(out):
    """32 and 33 are glibc's own: its posix_spawn ignores them, and whoever needs them sets them."""
    return all(int(mask, 16) & ~(3 << 31) == 0 for mask in out.split()[1::2])


# what: words, options as subprocess has them, and perhaps what to ask of the output; a function gets a folder
WORDS = {
    "no arguments": (("true",), {}),
    "an empty argument": ((*ARGS, "", "b"), {}),
    "blanks, quotes and newlines": ((*ARGS, " a  b ", "'\"`$x", "one\ntwo\t\\n", "*", "~"), {}),
    "dashes": ((*ARGS, "-n", "--", "--help"), {}),
    "text beyond ASCII": ((*ARGS, "é", "日本", "🙂"), {}),
    "bytes": ((*ARGS, b"caf\xe9", b"\xff\xfe"), {}),
    "a path": ((*ARGS, Path("/tmp/x y")), {}),
    "text of undecodable bytes": ((*ARGS, "caf\udce9"), {}),
    "the program as bytes": ((b"echo", "x"), {}),
    "the program as a path": ((Path("/bin/echo"), "x"), {}),
    "a hundred thousand words": (("sh", "-c", "echo $#", *["x"] * 100_000), {}),
    "one word of 100 kB": (("sh", "-c", "echo ${#1}", "sh", "x" * 100_000), {}),
}
PROGRAMS = {
    "another name": (("my name", "-c", "echo $0"), {"executable": "/bin/sh"}),
    "the name is not looked up": (("no such program", "-c", "echo x"), {"executable": "/bin/sh"}),
    "executable by PATH": (("x", "-c", "echo $0"), {"executable": "sh"}),
    "a folder": (("pwd",), {"cwd": "/usr"}),
    "a folder as bytes": (("pwd",), {"cwd": b"/usr"}),
    "a folder as a path": (("pwd",), {"cwd": Path("/usr")}),
    "a script of a folder": lambda d: ((script(d, "#!/bin/sh\necho $0 $*\n"), "x"), {}),
    "a relative program is one of its folder": lambda d: (("./" + Path(script(d, "#!/bin/sh\npwd\n")).name,), {"cwd": d}),
    "an interpreter with an argument": lambda d: ((script(d, "#!/bin/sh -e\nfalse\necho no\n"),), {}),
    "a link to a program": lambda d: ((link(d, "/bin/echo"), "x"), {}),
}
ENVIRONMENT = {
    "a variable": (("sh", "-c", "echo $A"), {"env": {"A": "x y"}}),
    "a variable that is empty": (("sh", "-c", "echo ${A-unset}."), {"env": {"A": ""}}),
    "a variable that goes": (("sh", "-c", "echo ${HOME-unset}"), {"env": {"HOME": None}}),
    "a variable of bytes": (("sh", "-c", "printf %s $A"), {"env": {"A": b"\xe9"}}),
    "a variable of two lines": (("sh", "-c", 'echo "$A"'), {"env": {"A": "1\n2"}}),
    "a name with odd characters": (("env",), {"env": {"a-b.c": "x"}}, lambda out: b"a-b.c=x" in out),
    "a thousand variables": (("sh", "-c", "env | grep -c ^VAR"), {"env": {f"VAR{i}": "x" * 100 for i in range(1000)}}),
    "a program of the child's own PATH": lambda d: (
        (Path(script(d, "#!/bin/sh\necho found\n")).name,),
        {"env": {"PATH": f"{d}:/usr/bin:/bin"}},
    ),
    "PATH with folders that are none": (("echo", "x"), {"env": {"PATH": "/none:/etc/passwd:/usr/bin:/bin"}}),
    "a file in PATH that can't be run is passed over": lambda d: (
        ("echo", "x"),
        {"env": {"PATH": f"{Path(script(d, 'no', name='echo', mode=0o644)).parent}:/usr/bin:/bin"}},
    ),
}
INPUT = {
    "no input": (("cat",), {"stdin": subprocess.DEVNULL}),
    "bytes": (("cat",), {"input": b"a\0b\xff\n"}),
    "no bytes at all": (("cat",), {"input": b""}),
    "much input, much output, much error": (both_ways(1 << 20), {"input": BIG}),
    "input that nobody reads": (("true",), {"input": BIG}),
    "input that is read in part": (("head", "-c", "3"), {"input": BIG}),
    "input that is closed early, then an exit of its own": (python("os.close(0); time.sleep(0.05); sys.exit(4)"), {"input": BIG}),
    "an array": (("cat",), {"input": memoryview(b"abcdef")[1:4]}),
}
OUTPUT = {
    "both streams": (("sh", "-c", "echo out; echo err >&2"), {}),
    "stderr along": (("sh", "-c", "echo out; echo err >&2; echo out"), {"stderr": subprocess.STDOUT}),
    "no output": (("sh", "-c", "echo out; echo err >&2"), {"stdout": subprocess.DEVNULL}),
    "no error output": (("sh", "-c", "echo out; echo err >&2"), {"stderr": subprocess.DEVNULL}),
    "stderr along to nowhere": (("sh", "-c", "echo out; echo err >&2"), {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}),
    "much on both": (python("for _ in range(64): os.write(1, b'o' * 65536); os.write(2, b'e' * 65536)"), {}),
    "no newline at the end": (("printf", "x\\ny"), {}),
    "bytes of every value": (python("os.write(1, bytes(range(256)))"), {}),
    "written after stdout was closed": (python("os.write(1, b'a'); os.close(1); os.write(2, b'b')"), {}),
    "a late grandchild's output": (("sh", "-c", "(sleep 0.05; echo late) & echo early; wait"), {}),
}
SHELL = {
    "a pipeline": (("echo a b | tr a-z A-Z; false | true",), {"shell": True}),
    "a pipeline that breaks": (("yes | head -n 2",), {"shell": True}),
    "text beyond ASCII in a line": (("echo é$((1+2)) '日'",), {"shell": True}),
    "a line of two": (("echo a\necho b",), {"shell": True}),
    "no such program in a line": (("no-such-program-x 2>/dev/null",), {"shell": True}),
    "a file that can't be run in a line": (("/etc/passwd 2>/dev/null",), {"shell": True}),
    "a comment": (("# nothing",), {"shell": True}),
    "a line as bytes": ((b"printf '\xe9'",), {"shell": True}),
    "a line's own exit": (("exit 9",), {"shell": True}),
    "a line that ends itself": (("kill -9 $$",), {"shell": True}),
    "another shell": (("echo ${BASH_VERSION:+bash}",), {"shell": True, "executable": "/bin/bash"}),
    "another shell is called by its own name": (("echo $0; shopt -o posix",), {"shell": True, "executable": "/bin/bash"}),
}
ENDS = {
    **{f"exit {code}": (("sh", "-c", f"exit {code}"), {}) for code in (0, 1, 2, 126, 127, 128, 137, 255)},
    "exit 256": (python("os._exit(256 & 0xffff)"), {}),
    **{
        f"{signal.Signals(number).name}": (
            python(f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {number})"),
            {},
        )
        for number in (
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGABRT,
            signal.SIGKILL,
            signal.SIGSEGV,
            signal.SIGPIPE,
            signal.SIGTERM,
            signal.SIGRTMIN,
        )
    },
    "a signal of real time without a name": (python("os.kill(os.getpid(), 40)"), {}),
    "abort": (python("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()"), {}),
}
SURROUNDINGS = {
    "no signal is blocked or ignored": (("grep", "-E", "SigBlk|SigIgn", "/proc/self/status"), {}, none_held),
    "only three descriptors": (("sh", "-c", "ls /proc/self/fd | wc -l"), {}),
    "a umask": (("sh", "-c", "umask"), {"umask": 0o27}),
    "a session of its own": (python("print(os.getsid(0) == os.getpid() == os.getpgrp())"), {"start_new_session": True}),
}


def script(folder, text, *, name="a script", mode=0o755):
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def link(folder, target):
    (folder / "link").symlink_to(target)
    return folder / "link"


def by_subprocess(words, options):
    options = dict(options)
    if "env" in options:
        merged = {**os.environ, **options["env"]}
        options["env"] = {name: value for name, value in merged.items() if value is not None}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    options.setdefault("executable", None)
    return subprocess.run(words[0] if options.get("shell") else list(words), check=False, **options)


async def by_nbprocs(pm, words, options):
    given = {OURS.get(name, name): value for name, value in options.items() if name not in {"start_new_session", "env"}}
    if "env" in options:
        given["env_vars"] = options["env"]
    if given.get("stderr") == subprocess.STDOUT:
        del given["stderr"]
        given["merge_stderr"] = True
    return await pm.run(*words, check=False, **given)


async def compare(pm, scenario, folder):
    words, options, *ask = scenario(folder) if callable(scenario) else scenario
    theirs = await asyncio.to_thread(by_subprocess, words, options)
    ours = await by_nbprocs(pm, words, options)
    assert (ours.exit_code if ours.signal is None else -ours.signal) == theirs.returncode
    assert ours.ok == (theirs.returncode == 0)
    if ask:
        assert ask[0](ours.stdout)
        assert ask[0](theirs.stdout)
    else:
        assert (ours.stdout, ours.stderr) == (theirs.stdout or b"", theirs.stderr or b"")


@pytest.mark.parametrize("kind", ["WORDS", "PROGRAMS", "ENVIRONMENT", "INPUT", "OUTPUT", "SHELL", "ENDS", "SURROUNDINGS"])
async def test_it_is_as_with_subprocess(kind, tmp_path):
    async with ProcessManager() as pm:
        for number, (what, scenario) in enumerate(globals()[kind].items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            try:
                await compare(pm, scenario, folder)
            except BaseException as error:
                error.add_note(f"in the scenario {what!r}")
                raise


REFUSED = {
    "an int": ((5,), {}),
    "None": ((None,), {}),
    "no such program": (("no-such-program-x",), {}),
    "a folder": (("/tmp",), {}),
    "a file that can't be run": (("/etc/passwd",), {}),
    "a file without a first line of its interpreter": lambda d: ((script(d, "echo no\n"),), {}),
    "an empty file": lambda d: ((script(d, ""),), {}),
    "an interpreter that is missing": lambda d: ((script(d, "#!/none\n"),), {}),
    "a folder that is missing": (("true",), {"cwd": "/none"}),
    "a folder that is a file": (("true",), {"cwd": "/etc/passwd"}),
    "executable that is missing": (("true",), {"executable": "/none"}),
    "nothing in PATH": (("echo", "x"), {"env": {"PATH": "/none"}}),
    "NUL in a word": (("echo", "a\0b"), {}),
    "NUL in a variable": (("true",), {"env": {"A": "a\0b"}}),
    "NUL in a variable's name": (("true",), {"env": {"A\0B": "a"}}),
    "= in a variable's name": (("true",), {"env": {"A=B": "a"}}),
    "too many words": (("echo", *["x" * 100_000] * 100), {}),
    "a word that is too long": (("echo", "x" * (1 << 22)), {}),
    "a lone surrogate": (("echo", "\ud800"), {}),
    "a closed file": (("cat",), {"stdin": 987}),
    "memory for text": (("cat",), {"stdin": io.StringIO("x")}),
    "memory for bytes": (("cat",), {"stdin": io.BytesIO(b"x")}),
    "output into memory": (("echo",), {"stdout": io.BytesIO()}),
    "a user that is none": (("true",), {"user": "no-such-user-x"}),
    "a group that is none": (("true",), {"group": "no-such-group-x"}),
    "text as input": (("cat",), {"input": 5}),
    "input from an iterator": (("cat",), {"input": iter([b"x"])}),
    "no such option": (("true",), {"colour": "red"}),
}


async def test_what_subprocess_refuses_is_refused(tmp_path):
    async with ProcessManager(max_concurrent=1) as pm:
        for number, (what, scenario) in enumerate(REFUSED.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            words, options = scenario(folder) if callable(scenario) else scenario
            with pytest.raises((OSError, ValueError, TypeError, AttributeError, KeyError)):
                await asyncio.to_thread(by_subprocess, words, options)
            with pytest.raises((StartupFailed, ValueError, TypeError)):
                raise AssertionError(what, await by_nbprocs(pm, words, options))
            assert pm.list() == (), what
        assert (await pm.run("echo", "next")).text == "next\n"


async def test_what_is_refused_is_named_as_it_was_given(tmp_path):
    program = Path(script(tmp_path, "#!/bin/sh\n"))
    async with ProcessManager() as pm:
        with pytest.raises(StartupFailed, match="executable= names /none, and"):
            await pm.run("true", executable="/none")
        if os.geteuid() == 0:
            tmp_path.chmod(0o700)
            with pytest.raises(StartupFailed, match="the folders above it"):
                await pm.run(program, user="nobody")


# --- files and descriptors -------------------------------------------------------------------------------------------------------


async def test_open_files_are_used_where_they_stand(tmp_path):
    """Input goes on from the file's position, and the child's reading moves it; output is written behind what Python still held."""
    (tmp_path / "in").write_bytes(b"one\ntwo\n")
    async with ProcessManager() as pm:
        with (tmp_path / "in").open("rb", buffering=0) as file:
            file.seek(4)
            assert (await pm.run("cat", stdin=file)).stdout == b"two\n"
            assert file.tell() == 8
        with (tmp_path / "out").open("w") as file:
            file.write("held\n")
            await pm.run("sh", "-c", "echo out; echo err >&2", stdout=file, merge_stderr=True)
            file.write("after\n")
        assert (tmp_path / "out").read_text() == "held\nout\nerr\nafter\n"
        with (tmp_path / "err").open("wb") as file:
            assert (await pm.run("sh", "-c", "echo out; echo err >&2", stderr=file)).stdout == b"out\n"
        assert (tmp_path / "err").read_bytes() == b"err\n"
        with (tmp_path / "in").open() as source, (tmp_path / "copy").open("w") as target:
            assert (await pm.run("cat", stdin=source, stdout=target)).ok
        assert (tmp_path / "copy").read_text() == "one\ntwo\n"


async def test_what_passes_everything_on_to_a_file_is_one(tmp_path):
    """A NamedTemporaryFile has its fileno by __getattr__: from Python 3.12 on isinstance with a protocol does not see it."""
    async with ProcessManager() as pm:
        with tempfile.NamedTemporaryFile(dir=tmp_path) as file, tempfile.NamedTemporaryFile("w+", dir=tmp_path) as errors:
            await pm.run("sh", "-c", "echo out; echo err >&2", stdout=file, stderr=errors)
            file.seek(0)
            errors.seek(0)
            assert (await pm.run("cat", stdin=file)).text == "out\n"
            assert errors.read() == "err\n"
            echo = python("os.write(int(sys.argv[1]), b'more')", str(file.fileno()))
            assert (await pm.run(*echo, inherit=[file])).ok
            assert Path(file.name).read_text() == "out\nmore"


async def test_pipes_and_sockets_are_files_too():
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    async with ProcessManager() as pm:
        with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as target, ours, theirs:
            assert (await pm.run("echo", "by a pipe", stdout=target)).stdout == b""
            target.close()
            assert (await pm.run("cat", stdin=source)).stdout == b"by a pipe\n"
            await pm.run("sh", "-c", "echo by a socket; echo and this >&2", stdout=theirs, stderr=theirs)
            assert ours.recv(100) in {b"by a socket\nand this\n", b"by a socket\n"}


async def test_a_pipeline_of_processes():
    """The output of one is the input of the next, and each hears when the other side is gone."""
    async with ProcessManager() as pm:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as target:
            first = await pm.spawn("yes", stdout=target)
            second = await pm.spawn("head", "-n", "2", stdin=source)
        assert (await second.wait()).stdout == b"y\ny\n"
        assert (await first.wait(20)).signal == signal.SIGPIPE


async def test_descriptors_are_handed_on_only_if_asked_for():
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as target:
        async with ProcessManager() as pm:
            line = python("os.write(int(sys.argv[1]), b'x\\n')", str(writing))
            assert (await pm.run(*line, check=False)).exit_code
            assert (await pm.run(*line, inherit=[target])).ok
            assert source.readline() == b"x\n"
        assert os.get_inheritable(writing)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1", "0, 2", "1, 2", "0, 1, 2"])
def test_a_parent_without_its_standard_descriptors(closed, tmp_path):
    """A daemon that starts children: theirs are in order all the same."""
    code = f"""
    import asyncio, os, sys
    from nbprocs import ProcessManager
    async def main():
        for number in ({closed},): os.close(number)
        async with ProcessManager() as pm:
            r = await pm.run("sh", "-c", "cat; echo out; echo err >&2; ls /proc/self/fd | wc -l", input=b"in\\n")
            s = await pm.run("tr", "a-z", "A-Z", input=b"x", stdout={str(tmp_path / "file")!r})
        open({str(tmp_path / "told")!r}, "w").write(repr((r.stdout, r.stderr, s.ok)))
    asyncio.run(main())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=60, check=False)
    assert eval((tmp_path / "told").read_text()) == (b"in\nout\n4\n", b"err\n", True)  # noqa: S307
    assert (tmp_path / "file").read_text() == "X"


@pytest.mark.parametrize("how", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))"])
def test_a_parent_with_odd_signals(how, tmp_path):
    """Exit codes are known though the parent ignores SIGCHLD; a child can be stopped though the parent blocks every signal."""
    code = f"""
    import asyncio, signal
    {how}
    from nbprocs import ProcessManager
    async def main():
        async with ProcessManager() as pm:
            print((await pm.run("sh", "-c", "exit 3", check=False)).exit_code)
            p = await pm.spawn("sleep", "1000")
            r = await p.stop(grace=30)
            print(r.signal)
            p = await pm.spawn("sleep", "1000", timeout=0.05)
            print((await p.wait(30)).status.value)
            print((await pm.run("grep", "-E", "SigBlk", "/proc/self/status")).text.split()[1].strip("0") or 0)
            p = await pm.spawn("sh", "-c", "exit 4", detach=True)
            print((await p.wait(30)).exit_code)
    asyncio.run(main())
    """
    env = {**os.environ, "NBPROCS_STATE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["3", "15", "terminated", "0", "4"], done.stderr


# --- text ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\n\n", ["", ""]),
        (b"a\x0bb\x0cc\x1cd\x85e\n", ["a\x0bb\x0cc\x1cd\ufffde"]),
        ("a\u2028b\u0085c\n".encode(), ["a\u2028b\u0085c"]),
        (b"", []),
        (b"\xff\xfe\n\xe9", ["\ufffd\ufffd", "\ufffd"]),
        (b"a\0b\n", ["a\0b"]),
    ],
)
async def test_lines_end_where_a_program_ends_them(written, lines):
    """At newlines, with or without a carriage return; not at what Unicode calls a line separator (str.splitlines does)."""
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=written)
        assert [line async for line in process.lines()] == lines


@pytest.mark.parametrize(
    ("errors", "text"), [("replace", "a\ufffdb"), ("ignore", "ab"), ("surrogateescape", "a\udcffb"), ("backslashreplace", "a\\xffb")]
)
async def test_undecodable_output(errors, text):
    async with ProcessManager() as pm:
        assert (await pm.run("cat", stdin=b"a\xffb", errors=errors)).text == text
        strict = await pm.run("cat", stdin=b"a\xffb", errors="strict")
        with pytest.raises(UnicodeDecodeError):
            _ = strict.text
        assert strict.stdout == b"a\xffb"
        assert "a" in str(strict)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32-be", "latin-1", "cp1252", "utf-8-sig"])
async def test_text_goes_there_and_back_in_its_encoding(encoding):
    text = "Größe €\n" if encoding != "latin-1" else "Größe\n"
    async with ProcessManager() as pm:
        result = await pm.run("cat", input=text, encoding=encoding)
        assert result.stdout == text.encode(encoding)
        assert result.text == text


# --- time ----------------------------------------------------------------------------------------------------------------------


async def test_a_timeout_keeps_what_was_written():
    async with ProcessManager() as pm:
        with pytest.raises(ExecutionTimeout) as caught:
            await pm.run("sh", "-c", "echo out; echo err >&2; exec sleep 1000", timeout=1.5)
        assert (caught.value.stdout, caught.value.stderr) == (b"out\n", b"err\n")
        assert isinstance(caught.value, TimeoutError)


async def test_a_wait_that_times_out_leaves_the_process_alone():
    async with ProcessManager() as pm:
        process = await pm.spawn("cat", stdin=True)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await process.wait(0.01)
        with pytest.raises(TimeoutError):
            await process.wait(0)
        await process.close_stdin()
        assert (await process.wait(20)).ok
        assert (await process.wait(0)).ok
        with pytest.raises(CommunicationError):
            process.send_signal(signal.SIGTERM)
        with pytest.raises(CommunicationError):
            await process.send(b"x")


async def test_a_short_timeout_of_many_leaves_nobody():
    async with ProcessManager() as pm:
        began = time.monotonic()
        ends = await asyncio.gather(*(pm.run("sleep", "1000", timeout=0.05, check=False) for _ in range(30)))
        assert {end.signal for end in ends} <= {signal.SIGTERM, signal.SIGKILL}
        assert time.monotonic() - began < 60


def test_from_many_threads_at_once():
    import threading

    import nbprocs

    found = []

    def work(n):
        found.append(nbprocs.run_sync("sh", "-c", f"echo {n}; exit {n}", check=False).exit_code)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(20))
