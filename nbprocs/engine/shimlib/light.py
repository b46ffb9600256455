"""What the shim's modules need of ``typing`` while they run; the real one takes a tenth of a shim's memory, and 5 ms of the first start.

Type checkers read the real one. Whoever asks for more here, such as a module of the standard library, gets it from the real one.
"""

import collections
import sys
import types

__all__ = ["LightTyping"]


class _Named(type):
    """Makes a named tuple of a class with annotations, as typing.NamedTuple does."""

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, object]) -> type:
        if not bases:
            return super().__new__(cls, name, bases, space)
        fields: tuple[str, ...] = tuple(space["__annotations__"])  # type: ignore[arg-type]
        defaults = [space[field] for field in fields if field in space]
        made: type = collections.namedtuple(name, fields, defaults=defaults, module=str(space["__module__"]))  # type: ignore[misc]  # noqa: PYI024
        for key, value in space.items():
            if key not in fields and not key.startswith("__"):
                setattr(made, key, value)
        return made


class LightTyping(types.ModuleType):
    """Stands for ``typing`` in ``sys.modules``."""

    TYPE_CHECKING = False
    Any = NoReturn = object
    Protocol = type("Protocol", (), {})
    NamedTuple = _Named("NamedTuple", (), {})

    def __getattr__(self, name: str) -> object:
        """Anything else: from the real one, which takes this one's place."""
        if name.startswith("__"):  # of a module that has no file
            raise AttributeError(name)
        if sys.modules.get("typing") is self:
            del sys.modules["typing"]
        import typing  # noqa: PLC0415

        return getattr(typing, name)
