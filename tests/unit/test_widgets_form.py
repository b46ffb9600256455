"""The spawn form: fields, errors at them, completions, and the line that does the same."""

import ast
import os
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import ProcessManager, ProcessStatus
from nbprocs.widgets import SpawnForm
from nbprocs.widgets.spawn_form import OFFERED, Programs, declared, python_line
from nbprocs.widgets.wire import BadMessage, Refused
from tests.unit.test_detached import home  # noqa: F401 - a fixture
from tests.unit.widgets_kit import shown


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"command": "ls -l 'a b'"}, "proc = await pm.spawn('ls', '-l', 'a b')"),
        ({"command": "a | b", "shell": True}, "proc = await pm.spawn('a | b', shell=True)"),
        (
            {"command": "x", "name": "n", "cwd": "/tmp", "stdin": True},
            "proc = await pm.spawn('x', name='n', working_dir='/tmp', stdin=True)",
        ),
        ({"command": "x", "name": "n", "detach": True}, "proc = await pm.spawn('x', name='n', detach=True)"),
        ({"command": "x", "timeout": "1.5", "restart": True}, "proc = await pm.spawn('x', restart=True, timeout=1.5)"),
        ({"command": "x", "ready": "port", "ready_value": "80"}, "proc = await pm.spawn('x', ready=nbprocs.Port(80))"),
        ({"command": "x", "ready": "log line", "ready_value": "up"}, "proc = await pm.spawn('x', ready=nbprocs.LogLine('up'))"),
        ({"command": "x", "env": {"A": "1", "": "2"}}, "proc = await pm.spawn('x', env_vars={'A': '1'})"),
    ],
)
def test_the_line(fields: dict[str, Any], line: str) -> None:
    assert python_line(fields) == line


def test_options_are_process_configs_own() -> None:
    names = [name for name, label, help_, kind in declared() if label and help_ and kind in ("text", "flag")]
    assert names == list(OFFERED)
    line = python_line(
        {"command": "x", "options": {"nice": "5", "umask": "077", "stop_signal": "SIGINT", "merge_stderr": "true", "title": ""}}
    )
    assert line == "proc = await pm.spawn('x', nice=5, umask=63, stop_signal='SIGINT', merge_stderr=True)"
    for name, wrong in (("nice", "much"), ("umask", "9"), ("encoding", "klingon"), ("stop_signal", "SIGNOTHING")):
        with pytest.raises(Refused) as refused:
            python_line({"command": "x", "options": {name: wrong}})
        assert refused.value.field == name


def test_a_secret_is_not_in_the_line() -> None:
    line = python_line({"command": "x", "env": {"DB_PASSWORD": "hunter2", "HOME": "/"}})
    assert "hunter2" not in line
    assert "'DB_PASSWORD': getpass.getpass('DB_PASSWORD')" in line


@given(st.text(max_size=60), st.booleans(), st.text(max_size=20), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_any_line_is_python_or_refused(command: str, shell: bool, name: str, env: dict[str, str]) -> None:
    try:
        line = python_line({"command": command, "shell": shell, "name": name, "env": env})
    except (Refused, BadMessage):
        return
    ast.parse(f"async def f():\n {line}")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"command": ""}, "command"),
        ({"command": "echo 'open"}, "command"),
        ({"command": "no-such-program-anywhere"}, "command"),
        ({"command": "/"}, "command"),
        ({"command": "true", "cwd": "/no/such/folder"}, "cwd"),
        ({"command": "true", "timeout": "soon"}, "timeout"),
        ({"command": "true", "timeout": "-1"}, "timeout"),
        ({"command": "true", "timeout": "nan"}, "timeout"),
        ({"command": "true", "ready": "port", "ready_value": "http"}, "ready"),
        ({"command": "true", "ready": "url", "ready_value": "localhost"}, "ready"),
        ({"command": "true", "ready": "log line", "ready_value": "("}, "ready"),
        ({"command": "true", "ready": "port"}, "ready"),
        ({"command": "sh -c 'exit 3'", "ready": "log line", "ready_value": "never"}, "ready"),
        ({"command": "true", "env": {"A=B": "1"}}, "env"),
        ({"command": "sleep 5", "name": "taken"}, "name"),
    ],
)
async def test_errors_are_at_their_field_and_nothing_runs(fields: dict[str, Any], field: str) -> None:
    async with ProcessManager() as pm:
        await pm.spawn("sleep", "1000", name="taken")
        with shown(SpawnForm(pm)) as tab:
            await tab.hello()
            reply = await tab.call("form", "run", **fields)
            assert (reply["ok"], reply["field"]) == (False, field)
            assert reply["error"]
            assert sum(info.status.live for info in pm.list()) == 1


async def test_from_a_line_to_a_running_process() -> None:
    async with ProcessManager() as pm:
        with shown(SpawnForm(pm)) as tab:
            await tab.hello()
            fields = {
                "command": "sh -c 'echo $A; pwd; sleep 1000'",
                "env": {"A": "b"},
                "cwd": "/",
                "name": "mine",
                "ready": "log line",
                "ready_value": "^/",
            }
            assert "ready=nbprocs.LogLine" in (await tab.call("form", "check", **fields))["data"]["line"]
            reply = await tab.call("form", "run", **fields)
            assert reply["data"]["name"] == "mine"
            assert pm.get("mine").tail() == "b\n/"
            assert (await tab.delta("form"))["+"] == [fields["command"]]
            assert (await tab.hello())["form"]["history"] == [fields["command"]]
            offers = (await tab.call("form", "complete", text="sh "))["data"]
            assert offers[0] == {"kind": "history", "text": fields["command"]}
            html = tab.view._repr_mimebundle_()["text/html"]
            assert "echo $A" in html


@pytest.mark.usefixtures("home")
async def test_the_tick_lets_it_outlive_its_manager() -> None:
    async with ProcessManager() as pm:
        with shown(SpawnForm(pm)) as tab:
            await tab.hello()
            assert (await tab.call("form", "run", command="sleep 1000", name="mine", detach=True))["ok"]
    async with ProcessManager() as pm:
        assert (await (await pm.adopt("mine")).stop()).status is ProcessStatus.TERMINATED


async def test_a_wrong_field_is_said_while_typing() -> None:
    async with ProcessManager() as pm:
        with shown(SpawnForm(pm)) as tab:
            await tab.hello()
            data = (await tab.call("form", "check", command="x", timeout="never", env={"API_KEY": "k"}))["data"]
            assert (data["field"], data["secret"]) == ("timeout", ["API_KEY"])
            assert (await tab.call("form", "check", command="x", env={"API_KEY": "k"}))["data"]["secret"] == ["API_KEY"]
            for wrong in ({"timeout": "soon"}, {"command": ""}, {"ready": "port", "ready_value": "x"}, {"command": "'"}):
                data = (await tab.call("form", "check", **({"command": "x", "env": {"API_KEY": "k", "A": "b"}} | wrong)))["data"]
                assert data["error"]
                assert data["secret"] == ["API_KEY"]


async def test_completions(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prog-one", "prog-two"):
        (tmp_path / name).touch(mode=0o755)
    (tmp_path / "prog-data").touch(mode=0o644)
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    async with ProcessManager() as pm:
        with shown(SpawnForm(pm)) as tab:
            await tab.hello()
            offers = (await tab.call("form", "complete", text="prog"))["data"]
            assert [offer["text"] for offer in offers] == ["prog-one", "prog-two"]
            files = (await tab.call("form", "complete", text="cat prog-d", cwd=str(tmp_path)))["data"]
            assert [offer["text"] for offer in files] == ["cat prog-data"]
            folders = (await tab.call("form", "folders", text=f"{tmp_path}/f"))["data"]
            assert [offer["text"] for offer in folders] == [f"{tmp_path}/folder/"]
            assert (await tab.call("form", "complete", text="cat /no/such/folder/x"))["data"] == []


def test_the_scan_is_believed_for_a_while(tmp_path: pathlib.Path) -> None:
    programs = Programs()
    (tmp_path / "one").touch(mode=0o755)
    assert programs.starting_with("", path=str(tmp_path)) == ["one"]
    (tmp_path / "two").touch(mode=0o755)
    assert programs.starting_with("", path=str(tmp_path)) == ["one"]
    assert programs.starting_with("", path=f"{tmp_path}{os.pathsep}/no/such") == ["one", "two"]
