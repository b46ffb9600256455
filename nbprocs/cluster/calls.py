"""A function's way through a worker: it is rebuilt, called and its result written down in a process of the worker's pool.

The worker itself never unpickles anything of the user's: what a module does when it is imported, it does in the pool.
"""

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["invoke", "pickled_call"]


def pickled_call(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """The call as bytes; a function of a notebook by value. Raises what pickling raises."""
    import cloudpickle  # noqa: PLC0415 - only for functions

    data: bytes = cloudpickle.dumps((function, args))
    return data


def invoke(call: bytes, env_vars: Mapping[str, str | None], folder: str | None) -> bytes:
    """Call it, in a process of the pool, and return what it returned or raised, pickled."""
    import cloudpickle  # noqa: PLC0415 - in the pool's process

    with _surroundings(env_vars, folder):
        try:
            function, args = pickle.loads(call)  # noqa: S301 - from the kernel of the user whose cluster it is
            outcome = ("value", cloudpickle.dumps(function(*args)))
        except Exception as error:  # noqa: BLE001 - the function's own
            outcome = ("error", _told(error))
        finally:
            sys.stdout.flush()
    data: bytes = cloudpickle.dumps(outcome)
    return data


def _told(error: BaseException) -> dict[str, Any]:
    import traceback  # noqa: PLC0415 - only where something was raised

    from nbprocs.cluster.wire import dump_error  # noqa: PLC0415 - as above

    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without the frame of this module
    return dump_error(error, "".join(traceback.format_exception(type(error), error, trace)))


@contextmanager
def _surroundings(env_vars: Mapping[str, str | None], folder: str | None) -> Iterator[None]:
    """The environment and the folder of the task, for as long as it is called."""
    before = {name: os.environ.get(name) for name in env_vars}
    here = os.getcwd() if folder is not None else None  # noqa: PTH109 - text in, text out
    _change(env_vars)
    try:
        if folder is not None:
            os.chdir(folder)
        yield
    finally:
        _change(before)
        if here is not None:
            os.chdir(here)


def _change(env_vars: Mapping[str, str | None]) -> None:
    for name, value in env_vars.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
