"""Messages of front ends: judged, never trusted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.widgets import wire

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=20), inner, max_size=5),
    max_leaves=20,
)
almost = st.fixed_dictionaries(
    {"do": st.sampled_from(["hello", "bye", "call", "x"]) | json},
    optional={"view": json, "id": json, "part": json, "op": json, "args": json},
)


@given(json | almost)
def test_anything_is_understood_or_refused(message: Any) -> None:
    try:
        assert isinstance(wire.parse(message), wire.Hello | wire.Call)
    except wire.BadMessage as error:
        assert str(error)


def test_the_three_messages() -> None:
    assert wire.parse({"do": "hello", "view": "a"}) == wire.Hello(view="a")
    assert wire.parse({"do": "bye", "view": "a"}) == wire.Hello(view="a", gone=True)
    call = wire.parse({"do": "call", "view": "a", "id": 3, "part": "table", "op": "stop", "args": {"ids": ["x"]}})
    assert call == wire.Call(view="a", id=3, part="table", op="stop", args={"ids": ["x"]})


class Thing:
    @wire.op(name=wire.text(5), many=wire.texts(2, 3), size=wire.number(0, 10), on=wire.flag, kind=wire.choice("a", 1), env=wire.mapping(1))
    def act(self, **args: Any) -> dict[str, Any]:
        return args


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"name": "too long"}, "at most 5"),
        ({"name": 1}, "text"),
        ({"name": "a\0"}, "NUL"),
        ({"many": "ab"}, "list"),
        ({"many": ["a", "b", "c"]}, "at most 2"),
        ({"many": [["a"]]}, "text"),
        ({"size": 11}, "from 0 to 10"),
        ({"size": True}, "number"),
        ({"size": float("nan")}, "number"),
        ({"on": 1}, "true or false"),
        ({"kind": "b"}, "one of a, 1"),
        ({"kind": ["a"]}, "one of"),
        ({"env": ["a"]}, "object"),
        ({"env": {"a": "b", "c": "d"}}, "at most 1"),
        ({"other": 1}, "unknown arguments: other"),
    ],
)
def test_bad_arguments_are_named(args: dict[str, Any], told: str) -> None:
    with pytest.raises(wire.BadMessage, match=told):
        wire.checked(Thing().act, args)


def test_good_arguments_pass() -> None:
    args = {"name": "abc", "many": ["a"], "size": 2.5, "on": True, "kind": "a", "env": {"a": "b"}}
    assert wire.checked(Thing().act, args) == args
