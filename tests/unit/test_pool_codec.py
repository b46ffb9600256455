# ruff: noqa: S102
"""Functions are sent once only where nothing could have changed unseen."""

import functools
import math
import pickle
import sys
import types

import numpy as np
import pytest

from nbprocs.pool.codec import Codec
from nbprocs.pool.worker_main import dumps


def notebook(source: str) -> dict:
    """A namespace like a notebook's: its functions live in a __main__ that is not importable."""
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(source, space)
    return space


def remote(codec, function, *args, **kwargs):
    """Do what a worker would."""
    known, payload, buffers = codec.call(function, args, kwargs)
    if isinstance(payload, tuple):
        return pickle.loads(known.blob)(*payload)
    sent, args, kwargs = pickle.loads(payload, buffers=buffers)
    return (pickle.loads(known.blob) if sent is None else sent)(*args, **kwargs)


@pytest.mark.parametrize("function", [math.sqrt, abs, len, int, functools.reduce])
def test_importable_functions_are_sent_once(function):
    codec = Codec()
    first, _, _ = codec.call(function, (), {})
    again, _, _ = codec.call(function, (), {})
    assert first is again
    assert first is not None


def test_a_plain_notebook_function_is_sent_once():
    codec, space = Codec(), notebook("import math\nK = 3\ndef f(x): return math.floor(x) + K + g(x)\ndef g(x): return 2 * x")
    first, payload, _ = codec.call(space["f"], (1.5,), {})
    assert first is codec.call(space["f"], (2.5,), {})[0]
    assert payload == (1.5,)
    assert remote(codec, space["f"], 1.5) == 7.0


CHANGES = {
    "a global number": ("K = 1\ndef f(): return K", "K = 2", 1, 2),
    "a helper": ("def g(): return 1\ndef f(): return g()", "def g(): return 2", 1, 2),
    "a helper's global": ("K = 1\ndef g(): return K\ndef f(): return g()", "K = 2", 1, 2),
    "a list's inside": ("L = [1]\ndef f(): return len(L)", "L.append(2)", 1, 2),
    "a default": ("def f(x=1): return x", "f.__defaults__ = (2,)", 1, 2),
    "a keyword default": ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2", 1, 2),
    "an attribute of its own": ("def f(): return f.x\nf.x = 1", "f.x = 2", 1, 2),
    "its code": ("def f(): return 1\ndef g(): return 2", "f.__code__ = g.__code__", 1, 2),
    "a class": ("class C: x = 1\ndef f(): return C.x", "C.x = 2", 1, 2),
    "a name defined later": ("def f():\n try: return K\n except NameError: return 0", "K = 2", 0, 2),
    "a nested function's global": ("K = 1\ndef f(): return (lambda: K)()", "K = 2", 1, 2),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_never_missed(what):
    before, change, old, new = CHANGES[what]
    codec, space = Codec(), notebook(before)
    assert remote(codec, space["f"]) == old
    assert remote(codec, space["f"]) == old
    exec(change, space)
    assert remote(codec, space["f"]) == new


def test_a_closure_is_seen_to_change():
    def make():
        count = 1

        def bump():
            nonlocal count
            count += 1

        return lambda: count, bump

    codec = Codec()
    read, bump = make()
    assert remote(codec, read) == 1
    bump()
    assert remote(codec, read) == 2


@pytest.mark.parametrize(
    "source",
    [
        "n = 0\ndef f():\n global n\n n += 1\n return n",
        "def f():\n f.n = getattr(f, 'n', 0) + 1\n return f.n",
        "def f():\n globals()['n'] = globals().get('n', 0) + 1\n return n",
        "def make():\n n = 0\n def f():\n  nonlocal n\n  n += 1\n  return n\n return f\nf = make()",
        "def f(seen=[]):\n seen.append(1)\n return len(seen)",
    ],
)
def test_a_function_with_a_memory_is_sent_anew_each_time(source):
    codec, function = Codec(), notebook(source)["f"]
    assert codec.call(function, (), {})[0] is None
    assert [remote(codec, function), remote(codec, function)] == [1, 1]


def test_a_redefined_function_is_another_one():
    codec = Codec()
    assert remote(codec, notebook("def f(): return 1")["f"]) == 1
    assert remote(codec, notebook("def f(): return 2")["f"]) == 2


def test_a_function_that_is_gone_is_retired():
    codec, space = Codec(), notebook("def f(): return 1")
    number = codec.call(space["f"], (), {})[0].number
    space.clear()
    assert number in codec.retired


def test_large_arrays_that_a_function_holds_go_with_it():
    array = np.arange(100_000)
    known = Codec().snapshot(lambda: array.sum() + 1)
    assert pickle.loads(known.blob)() == array.sum() + 1


def test_arguments_are_written_down_at_once():
    codec, items = Codec(), [1]
    known, payload, _ = codec.call(len, (items,), {})
    items.append(2)
    assert pickle.loads(payload)[1] == ([1],)
    assert known is not None


def test_large_arrays_travel_beside_the_pickle():
    array = np.arange(100_000)
    _, payload, buffers = Codec().call(len, (array,), {})
    assert len(payload) < 1000
    assert buffers[0].nbytes == array.nbytes
    body, small = dumps(np.arange(10))
    assert small == []
    assert (pickle.loads(body) == np.arange(10)).all()


def test_arrays_that_are_not_contiguous_travel_too():
    array = np.arange(200_000)[::2]
    body, buffers = dumps(array)
    assert (pickle.loads(body, buffers=buffers) == array).all()


def test_modules_sent_by_value_are_never_cached_by_name():
    import cloudpickle

    module = types.ModuleType("pool_by_value")
    exec("def f(): return 1", module.__dict__)
    sys.modules["pool_by_value"] = module
    cloudpickle.register_pickle_by_value(module)
    try:
        known, _, _ = Codec().call(module.f, (), {})
        assert known is None or b"pool_by_value\x94" not in known.blob[:60]
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["pool_by_value"]
