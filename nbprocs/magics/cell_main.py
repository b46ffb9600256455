"""The child's side of ``%%proc python``: runs a cell in an interpreter of its own, with the variables that were sent.

Run as a file, by path, with the path of what ``nbprocs.magics`` wrote. Standard library only: what else is needed to read the variables
is imported by their pickles. Top-level ``await`` works as in the notebook.

multiprocessing's ``spawn`` and ``forkserver`` run the file of ``__main__`` again in their children, under another name. So the cell has a
file beside it, ``again`` in a few words, and functions of the cell are found there.
"""

import sys

sys.path[0] = ""  # as in a kernel: the working directory, not the folder of this file, whose modules would hide others

import inspect  # noqa: E402 - not before the path is right
import linecache  # noqa: E402
import pickle  # noqa: E402
import types  # noqa: E402
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT  # noqa: E402


def read(path: str) -> tuple[str, str, dict[str, object]]:
    """The cell's name, its source and its variables."""
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib would be one more module to import
        name, source, sent = pickle.load(file)  # noqa: S301 - written by our own kernel, in a folder that only its user can read
    return name, source, {key: pickle.loads(data) for key, data in sent.items()}  # noqa: S301


def run(name: str, source: str, namespace: dict[str, object]) -> None:
    """Execute the source in a module's namespace."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # so that a traceback shows the lines
    code = compile(source, name, "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        import asyncio  # noqa: PLC0415 - costs more than many a cell, and few need it

        asyncio.run(types.FunctionType(code, namespace)())
    else:
        exec(code, namespace)  # noqa: S102 - that is what was asked for


def again(path: str, namespace: dict[str, object]) -> None:
    """Execute the cell in a child of multiprocessing, which does not take it for the main program."""
    name, source, variables = read(path)
    namespace.update(variables)
    run(name, source, namespace)


def main(path: str) -> int:
    """Run the file's cell; a traceback that begins in the cell, and exit status 1, when it raises."""
    name, source, variables = read(path)
    module = types.ModuleType("__main__")
    module.__dict__.update(variables, __file__=path.removesuffix(".cell") + ".py")
    sys.modules["__main__"] = module
    try:
        run(name, source, module.__dict__)
    except Exception as error:  # noqa: BLE001 - shown, as an interpreter does
        import traceback  # noqa: PLC0415 - only when it is needed

        shown = error.__traceback__
        while shown is not None and shown.tb_frame.f_code.co_filename != name:  # none of them, where the cell is no Python
            shown = shown.tb_next
        traceback.print_exception(type(error), error, shown)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
