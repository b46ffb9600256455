"""Runs the examples of docstrings, with top-level ``await`` as in a notebook.

All examples of one docstring share a namespace: the public names of nbprocs, and those of the module that holds the docstring.
"""

import ast
import builtins
import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import nbprocs

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_checker = doctest.OutputChecker()


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """A docstring with examples."""

    name: str
    doc: str
    module: ModuleType


def modules() -> list[ModuleType]:
    """All modules of the package, except those that are run as programs."""
    names = [found.name for found in pkgutil.walk_packages(nbprocs.__path__, "nbprocs.")]
    return [
        nbprocs,
        *(importlib.import_module(name) for name in names if not name.endswith("_main") and "node_modules" not in name),
    ]


def documented() -> list[Documented]:
    """Every docstring of the package that has examples, once."""
    seen: set[int] = set()
    found = []
    for module in modules():
        for name, thing in [("", module), *_things(module)]:
            doc = getattr(thing, "__doc__", None)
            if doc and ">>>" in doc and id(thing) not in seen:
                seen.add(id(thing))
                found.append(Documented(name=f"{module.__name__}{name and '.'}{name}", doc=doc, module=module))
    return found


def _things(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, thing in vars(module).items():
        if getattr(thing, "__module__", None) != module.__name__ or not (inspect.isclass(thing) or callable(thing)):
            continue
        yield name, thing
        for attribute, member in vars(thing).items() if inspect.isclass(thing) else ():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if callable(function) and inspect.isfunction(inspect.unwrap(function)):
                yield f"{name}.{attribute}", function


async def run(item: Documented) -> list[str]:
    """Run the examples; what went wrong, as text, empty if nothing."""
    space: dict[str, Any] = {name: getattr(nbprocs, name) for name in nbprocs.__all__} | {"nbprocs": nbprocs}
    space |= {name: value for name, value in vars(item.module).items() if not name.startswith("__")} | {"__name__": "__main__"}
    wrong = []
    for example in doctest.DocTestParser().get_examples(item.doc, item.name):
        got, error = await _one(example, space)
        if example.exc_msg is not None:
            fine = error is not None and error.splitlines()[-1].split(":")[0] == example.exc_msg.splitlines()[-1].split(":")[0]
        else:
            options = FLAGS | sum(flag for flag, on in example.options.items() if on)
            fine = error is None and _checker.check_output(example.want, got, options)
        if not fine:
            wrong.append(f">>> {example.source}expected: {example.want or example.exc_msg!r}\ngot: {error or got!r}")
    return wrong


async def _one(example: doctest.Example, space: dict[str, Any]) -> tuple[str, str | None]:
    out = io.StringIO()
    hook, sys.displayhook = sys.displayhook, sys.__displayhook__
    try:
        with contextlib.redirect_stdout(out):
            code = compile(example.source, "<example>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            value = eval(code, space)  # noqa: S307 - our own examples
            if inspect.iscoroutine(value):
                await value
    except Exception:  # noqa: BLE001 - reported
        return out.getvalue(), traceback.format_exc()
    finally:
        sys.displayhook = hook
        if hasattr(builtins, "_"):
            del builtins._
    return out.getvalue(), None
