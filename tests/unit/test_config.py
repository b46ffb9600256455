"""ProcessConfig: declared once, checked at the call, whatever comes; and the config of a call."""

import array
import dataclasses
import inspect
import pickle
import signal
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import ProcessConfig, ProcessManager
from nbprocs.checks import data, number, seconds, whole
from nbprocs.config import UNSET, Options, config_from

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
    st.sampled_from([object(), 10**400, float("nan"), float("inf"), 1j, Path("x"), ProcessConfig, signal.SIGINT, b"x".decode]),
)


# --- declared once -----------------------------------------------------------------------------------------------------------


def test_each_option_is_declared_with_its_check_help_and_label():
    for field in dataclasses.fields(ProcessConfig):
        assert callable(field.metadata["check"]), field.name
        assert field.metadata["help"], field.name
        assert field.metadata["label"][0].isupper(), field.name


def test_the_types_for_checkers_name_the_same_options():
    assert list(typing.get_type_hints(Options)) == [name for name in NAMES if name not in {"command", "args"}]


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
