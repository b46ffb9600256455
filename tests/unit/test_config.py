"""ProcessConfig: declared once, checked at the call, whatever comes; and the config of a call."""

import array
import dataclasses
import inspect
import io
import os
import pickle
import signal
import subprocess
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import LogLine, ProcessConfig, ProcessManager, StartupFailed
from nbprocs.checks import data, number, seconds, whole
from nbprocs.config import UNSET, Options, config_from
from tests.children import python_child

NAMES = [f.name for f in dataclasses.fields(ProcessConfig)]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(alphabet=st.characters(), max_size=5),
    st.text(alphabet=["\ud800", "\udcff", "\0", "\x1b", "-", "a"], max_size=3),
    st.binary(max_size=3),
    st.lists(st.one_of(st.text(max_size=3), st.none(), st.integers(), st.binary(max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.none(), st.integers()), max_size=2),
    st.sampled_from([object(), 10**400, float("nan"), float("inf"), 1j, Path("x"), ProcessConfig, signal.SIGINT, len]),
)


# --- declared once -----------------------------------------------------------------------------------------------------------


def test_each_option_is_declared_with_its_check_help_and_label():
    for field in dataclasses.fields(ProcessConfig):
        assert callable(field.metadata["check"]), field.name
        assert field.metadata["help"], field.name
        assert field.metadata["label"][0].isupper(), field.name


def test_the_types_for_checkers_name_the_same_options():
    assert sorted(typing.get_type_hints(Options)) == sorted(set(NAMES) - {"command", "args"})


@pytest.mark.parametrize("function", [ProcessManager.spawn, ProcessManager.run])
def test_calls_take_every_option_and_say_so(function):
    assert set(NAMES) - {"command", "args"} <= set(inspect.signature(function).parameters)
    for field in dataclasses.fields(ProcessConfig):
        if field.name not in {"command", "args"}:
            assert f"{field.name}: {field.metadata['help']}" in function.__doc__ or function is ProcessManager.run


# --- whatever comes ----------------------------------------------------------------------------------------------------------


@given(option=st.sampled_from(NAMES), value=ODD)
def test_any_value_is_kept_or_refused_by_name(option, value):
    """A config that could be made shows itself, travels, and makes itself again; one that can't says which option is wrong."""
    try:
        config = ProcessConfig(**{"command": "x", option: value})
    except (TypeError, ValueError) as error:
        assert option in str(error) or "with shell=True" in str(error)
        assert len(str(error)) < 400
        return
    assert repr(config).encode()
    assert pickle.loads(pickle.dumps(config)) == config
    assert ProcessConfig(**config.changed()) == config
    assert config.replace(timeout=UNSET) is config
    assert config_from(config, (), {option: getattr(config, option)}) == config


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"cwd": "x"}, "working_dir="),
        ({"env": {}}, "env_vars="),
        ({"text": True}, "result.text"),
        ({"capture_output": True}, "captured"),
        ({"preexec_fn": print}, "umask="),
        ({"tiemout": 3}, "did you mean timeout="),
        ({"args": "-la"}, "args must be a list"),
        ({"args": [3]}, r"args\[0\] must be text, bytes or a path, not 3"),
        ({"args": [None]}, r"args\[0\]"),
        ({"args": ["\ud800"]}, "surrogate"),
        ({"stdin": "text"}, "input="),
        ({"stdin": 5}, "stdin must be True"),
        ({"stderr": -2}, "merge_stderr=True"),
        ({"env_vars": {"A=B": "x"}}, "without ="),
        ({"env_vars": {"A": 1}}, r"env_vars\['A'\]"),
        ({"timeout": float("nan")}, "timeout must be a positive number of seconds or None, not nan"),
        ({"timeout": 1e300}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"nice": 40}, "from -20 to 19"),
        ({"umask": 0o1777}, "umask"),
        ({"rlimits": {"NOFILES": 3}}, "NOFILE"),
        ({"rlimits": {"NOFILE": (5, 3)}}, "soft"),
        ({"stop_signal": "SIGNAL"}, "SIGINT"),
        ({"stop_scope": "all"}, "'tree', 'leader'"),
        ({"success_codes": []}, "at least one"),
        ({"success_codes": 3}, "list of exit codes"),
        ({"encoding": "klingon"}, "encoding"),
        ({"errors": "shrug"}, "replace"),
        ({"inherit": [1]}, r"inherit\[0\]"),
        ({"shell": 1}, "True or False"),
        ({"name": " "}, "name"),
        ({"merge_stderr": True, "stderr": "x"}, "merge_stderr"),
        ({"pty": True, "stdout": "x"}, "pty"),
    ],
)
async def test_wrong_options_are_refused_at_the_call_in_one_style(wrong, word):
    with pytest.raises((TypeError, ValueError), match=word):
        ProcessConfig(command="x", **wrong)
    async with ProcessManager() as pm:
        args = wrong.get("args")
        words = args if isinstance(args, list) else []
        options = {key: value for key, value in wrong.items() if key != "args"}
        if options or words:
            for call in (pm.spawn, pm.run):
                with pytest.raises((TypeError, ValueError), match=word):
                    await call("x", *words, **options)
        assert pm.list() == ()


@pytest.mark.parametrize("wrong", [5, object(), iter([b"x"]), "\ud800", 1.5])
async def test_input_that_is_no_data_is_refused_at_the_call(wrong):
    async with ProcessManager() as pm:
        with pytest.raises((TypeError, ValueError), match="input must be"):
            await pm.run("cat", input=wrong)
        assert pm.list() == ()


# --- what is taken -----------------------------------------------------------------------------------------------------------


def test_words_of_every_kind_are_taken(tmp_path):
    config = ProcessConfig(command=b"/bin/echo", args=[b"caf\xe9", tmp_path, "x"], working_dir=bytes(tmp_path))
    assert config.argv == ("/bin/echo", "caf\udce9", str(tmp_path), "x")
    assert config.working_dir == str(tmp_path)
    assert config.display.encode()


def test_a_relative_folder_is_made_absolute_when_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ProcessConfig(command="x", working_dir="data").working_dir == str(tmp_path / "data")


def test_what_is_like_a_default_is_the_default():
    config = ProcessConfig(command="x", timeout=float("inf"), stdin=None, env_vars=None, nice=0)
    assert config == ProcessConfig(command="x")
    assert config.changed() == {"command": "x"}


def test_keywords_take_back_what_a_config_says():
    config = ProcessConfig(command="x", args=("a",), timeout=5, pty=True, nice=3)
    assert config_from(config, ("b",), {"timeout": None, "pty": False, "nice": UNSET}) == ProcessConfig(
        command="x", args=("a", "b"), nice=3
    )


def test_numbers_of_every_kind():
    assert seconds("timeout", 3) == 3
    assert whole("n", array.array("i", [3])[0], least=1) == 3
    for wrong in (True, "1", None, 1.5, 10**400):
        with pytest.raises((TypeError, ValueError), match="n must be"):
            whole("n", wrong, least=0, most=9)
    for wrong in (True, "1", None, float("nan"), float("inf"), 10**400):
        with pytest.raises((TypeError, ValueError), match="n must be"):
            number("n", wrong)


# --- what it does ------------------------------------------------------------------------------------------------------------


async def test_input_of_any_buffer_arrives_whole():
    """Eight bytes an item: all of it, not an eighth."""
    numbers = array.array("d", range(100_000))
    async with ProcessManager() as pm:
        assert (await pm.run("cat", input=numbers)).stdout == numbers.tobytes()
        assert (await pm.run("cat", stdin=numbers.tobytes())).stdout == numbers.tobytes()
        assert (await pm.run("cat", input=memoryview(b"abcdef")[::2])).stdout == b"ace"
        assert (await pm.run("cat", input="é", encoding="latin-1")).stdout == b"\xe9"


async def test_success_codes_are_success():
    async with ProcessManager() as pm:
        result = await pm.run("sh", "-c", "exit 3", success_codes=[0, 3])
        assert result.ok
        assert not (await pm.run("sh", "-c", "exit 4", success_codes=[0, 3], check=False)).ok
        assert not (await pm.run("sh", "-c", "exit 0", success_codes=[3], check=False)).ok


async def test_bytes_as_arguments_arrive_as_they_are():
    async with ProcessManager() as pm:
        assert (await pm.run("printf", "%s", b"caf\xe9")).stdout == b"caf\xe9"


def test_data_is_bytes_text_or_a_buffer():
    assert data("input", bytearray(b"x")) == b"x"
    with pytest.raises(TypeError, match="bytes or text"):
        data("input", 5)


# --- files, streams and limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
async def test_output_to_files(tmp_path, background):
    out, err = tmp_path / "out.log", tmp_path / "err.log"
    async with ProcessManager(background=background) as pm:
        result = await pm.run("sh", "-c", "echo out; echo err >&2", stdout=out, stderr=str(err))
        assert (result.stdout, result.stderr) == (b"", b"")
        assert (out.read_text(), err.read_text()) == ("out\n", "err\n")
        await pm.run("echo", "anew", stdout=out)
        assert out.read_text() == "anew\n"
        await pm.run("sh", "-c", "echo a; echo b >&2; echo c", stdout=out, stderr=out)
        assert out.read_text() == "a\nb\nc\n", "one file for both"
        with open(tmp_path / "mine", "w+") as mine:
            mine.write("before\n")
            await pm.run("echo", "after", stdout=mine)
        assert (tmp_path / "mine").read_text() == "before\nafter\n"
        assert (await pm.run("sh", "-c", "echo x; echo y >&2", stdout=subprocess.DEVNULL)).stderr == b"y\n"


async def test_a_restart_adds_to_its_file(tmp_path):
    out = tmp_path / "out.log"
    async with ProcessManager() as pm:
        await (await pm.spawn("echo", "life", stdout=out, name="job")).wait()
        await (await pm.restart("job")).wait()
        assert out.read_text() == "life\nlife\n"


async def test_merged_streams_come_in_the_order_written():
    async with ProcessManager() as pm:
        result = await pm.run("sh", "-c", "for i in 1 2 3; do echo out $i; echo err $i >&2; done", merge_stderr=True)
        assert result.text == "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"
        assert result.stderr == b""


async def test_input_from_files(tmp_path):
    path = tmp_path / "in"
    path.write_text("from a file\n")
    async with ProcessManager() as pm:
        assert (await pm.run("cat", stdin=path)).text == "from a file\n"
        with path.open() as file:
            assert (await pm.run("cat", stdin=file)).text == "from a file\n"
        assert (await pm.run("cat", stdin=subprocess.DEVNULL)).text == ""
        with pytest.raises(StartupFailed, match=r"stdin= can't be opened: .*/nobody: No such file") as caught:
            await pm.run("cat", stdin=tmp_path / "nobody")
        assert not caught.value.hint, "nothing is wrong with the program"
        with pytest.raises(StartupFailed, match=r"stdout= can't be opened: .*: Is a directory"):
            await pm.run("true", stdout=tmp_path)
        with pytest.raises(StartupFailed, match=r"stdin= can't be opened: a file in memory has no descriptor"):
            await pm.run("cat", stdin=io.BytesIO(b"x"))
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(StartupFailed, match="FIFO"):
            await pm.run("cat", stdin=tmp_path / "fifo")
        assert pm.live == 0


async def test_limits_and_the_rest_reach_the_process():
    async with ProcessManager() as pm:
        line = "umask; nice; ulimit -n; ulimit -Hn"
        usual = os.nice(0)
        result = await pm.run(line, shell=True, umask=0o27, nice=3, rlimits={"NOFILE": (200, 300)})
        assert result.text.split() == ["0027", str(usual + 3), "200", "300"]
        assert (await pm.run("busybody", "-c", "echo $0", executable="/bin/sh")).text == "busybody\n"
        with open(os.devnull) as file:
            result = await pm.run("sh", "-c", f"test -e /dev/fd/{file.fileno()}", inherit=[file], check=False)
            assert result.ok


async def test_its_stop_signal_is_what_stops_it():
    code = "signal.signal(signal.SIGINT, lambda *_: (os.write(1, b'interrupted\\n'), os._exit(0))); ready(); forever()"
    async with ProcessManager() as pm:
        process = await pm.spawn(*python_child(code), stop_signal="SIGINT", ready=LogLine("ready"))
        assert (await process.stop(grace=10)).text.endswith("interrupted\n")


async def test_detach_is_refused_or_honoured_but_never_ignored():
    async with ProcessManager() as pm:
        try:
            process = await pm.spawn("true", detach=True)
        except StartupFailed as error:
            assert "detach" in str(error)
        else:
            await process.stop()
