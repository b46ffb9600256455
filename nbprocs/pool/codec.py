"""How a call is written down for a worker, and which functions need to be sent only once.

A function that can be imported travels by its name, and is sent once to each worker. A function of the notebook travels by value, with
the globals and the closure it uses *as they are when the call is submitted*. Writing it down costs some 50 µs, so it is kept, but only if
nothing in it could have changed unseen: every captured value is immutable (numbers, text, tuples of such, modules, importable functions,
other functions of this kind), each is still the same object, and the function keeps no state of its own. All others are written down anew
for each call. So redefining a function or a global it uses is always seen, and so is a change inside a list it uses; and no call sees
what another one left behind.

A module that was reloaded (``importlib.reload``, ``%autoreload``) is noticed by nbprocs.pool.freshness before the call is written down: the
pool then replaces its workers, and only new ones get the call.
"""

import itertools
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

from nbprocs.pool.freshness import Freshness
from nbprocs.pool.worker_main import ATOMS, MAIN, dumps, registered_by_value

__all__ = ["Codec", "Function"]

_REFLECTIVE = frozenset({"globals", "vars", "locals", "exec", "eval", "setattr", "delattr", "__dict__"})
_STORES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"})
_MISSING = object()

Buffers = list[memoryview] | None
Guard = Callable[[], bool]


class Function:
    """A function as workers know it: by number, with its pickle. ``holds()`` tells whether the pickle still says what the function does."""

    __slots__ = ("__weakref__", "blob", "guards", "number", "ref")

    def __init__(self, number: int, blob: bytes, guards: tuple[Guard, ...] = ()) -> None:
        self.number: int = number
        self.blob: bytes = blob
        self.guards: tuple[Guard, ...] = guards
        self.ref: weakref.ref[Any] | None = None

    def holds(self) -> bool:
        """False once anything that it captured is another object."""
        return all(guard() for guard in self.guards)


class Codec:
    """The functions of one pool. Usable from any thread."""

    def __init__(self) -> None:
        self._functions: dict[int, Function] = {}
        self._fresh = Freshness()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.on_reload: Callable[[], object] = lambda: None  # called in the submitting thread, before the call goes out
        self.retired: set[int] = set()  # numbers that no call will use any more: workers may forget them

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Function | None, Any, Buffers]:
        """(function or None, payload, large buffers). Raises what pickling raises."""
        self.look()
        known = self._functions.get(id(function))
        if known is None or not known.holds():
            known = self._define(function)
        if known is None:
            payload, buffers = dumps((function, args, kwargs))
            return None, payload, buffers
        if not kwargs:
            for arg in args:
                if type(arg) not in ATOMS:
                    break
            else:
                return known, args, None
        payload, buffers = dumps((None, args, kwargs))
        return known, payload, buffers

    def look(self) -> None:
        """Notice reloaded modules. It is part of call() and snapshot()."""
        if self._fresh.lost():
            self.on_reload()

    def snapshot(self, function: Callable[..., Any]) -> Function:
        """The function as it is now, for many calls; retire it afterwards. Raises what pickling raises."""
        self.look()
        known = self._functions.get(id(function))
        if known is None or not known.holds():
            known = self._define(function)
        return known or Function(next(self._numbers), _pickled(function))

    def retire(self, function: Function) -> None:
        """No call will use this snapshot any more; nothing for functions that are kept."""
        if function.ref is None:
            self.retired.add(function.number)

    def _define(self, function: Callable[..., Any]) -> Function | None:
        """Keep a function if that is safe; None if it must be written down for each call."""
        if not isinstance(function, (FunctionType, BuiltinFunctionType, type)):
            return None
        with self._lock:
            guards: list[Guard] = []
            if by_name(function):
                if not isinstance(function, BuiltinFunctionType):  # those of C have no other code
                    guards.append(_still_named(function))
            elif not isinstance(function, FunctionType) or not _guard_function(function, guards, set()):
                self._functions.pop(id(function), None)
                return None
            known = Function(next(self._numbers), _pickled(function), tuple(guards))
            self._drop(id(function), None)
            key = id(function)
            known.ref = weakref.ref(function, lambda ref: self._drop(key, ref))
            self._functions[key] = known
            return known

    def _drop(self, key: int, ref: object) -> None:
        known = self._functions.get(key)
        if known is not None and (ref is None or known.ref is ref):
            del self._functions[key]
            self.retired.add(known.number)


def _pickled(function: Callable[..., Any]) -> bytes:
    return dumps(function, apart=False)[0]


def by_name(value: object) -> bool:
    """Whether pickling writes only the name of this function or class, and a worker can import it by that name."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__" or registered_by_value(module.__name__):
        return False
    try:
        return MAIN not in pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001 - a lambda, a closure, something shadowed: by value then
        return False


def _still_named(function: Any) -> Guard:
    """After a reload the name may stand for another function, while somebody still holds this one."""
    ref = weakref.ref(function)
    module, path = function.__module__ or "builtins", function.__qualname__.split(".")

    def same() -> bool:
        found: Any = sys.modules.get(module)
        for name in path:
            found = getattr(found, name, None)
        return found is ref()

    return same


def _guard_function(function: FunctionType, guards: list[Guard], seen: set[int]) -> bool:
    """Add what must stay the same for the pickle to hold; False if something in it can change unseen."""
    if id(function) in seen:
        return True
    seen.add(id(function))
    codes = list(_codes(function.__code__))
    if function.__dict__ or function.__kwdefaults__ or not all(map(_stateless, codes)):
        return False
    guards.append(_same_parts(function))
    captured: list[Any] = list(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # still empty
            return False
        guards.append(_same_cell(cell, value))
        captured.append(value)
    space = function.__globals__
    for name in {name for code in codes for name in code.co_names}:
        value = space.get(name, _MISSING)
        guards.append(_same_global(space, name, value))  # a missing one, too: it may be defined later
        if value is not _MISSING:
            captured.append(value)
    return all(_steady(value, guards, seen) for value in captured)


def _steady(value: object, guards: list[Guard], seen: set[int]) -> bool:
    """Whether a captured value can't change inside."""
    if type(value) in ATOMS:
        return True
    if type(value) in (tuple, frozenset):
        return all(_steady(item, guards, seen) for item in value)  # type: ignore[attr-defined]
    if isinstance(value, ModuleType):
        return sys.modules.get(value.__name__) is value and value.__name__ != "__main__"
    if isinstance(value, FunctionType) and not by_name(value):
        return _guard_function(value, guards, seen)
    if not isinstance(value, (FunctionType, BuiltinFunctionType, type)) or not by_name(value):
        return False
    if value.__module__ != "builtins":
        guards.append(_still_named(value))
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _stateless(code: CodeType) -> bool:
    """Whether running the code leaves no trace in the function, its closure or its globals."""
    import dis  # noqa: PLC0415 - only for functions of a notebook

    if not _REFLECTIVE.isdisjoint(code.co_names):
        return False
    free = set(code.co_freevars)
    return not any(
        step.opname in _STORES or (step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in free)
        for step in dis.get_instructions(code)
    )


def _same_parts(function: FunctionType) -> Guard:
    ref, code, defaults = weakref.ref(function), function.__code__, function.__defaults__

    def same() -> bool:
        live = ref()
        return (
            live is not None and live.__code__ is code and live.__defaults__ is defaults and not live.__dict__ and not live.__kwdefaults__
        )

    return same


def _same_cell(cell: CellType, value: object) -> Guard:
    def same() -> bool:
        try:
            return cell.cell_contents is value
        except ValueError:
            return False

    return same


def _same_global(space: dict[str, Any], name: str, value: object) -> Guard:
    return lambda: space.get(name, _MISSING) is value
