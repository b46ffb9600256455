"""What a room above installs for one below, before either is loaded: the package itself says here where the room above is found."""

from __future__ import annotations

TYPE_CHECKING = False  # as in ``nbprocs/__init__.py``

if TYPE_CHECKING:
    from typing import Any

__all__ = ["installed"]

installed: dict[str, Any] = {"historian": None, "kernel": None}  # what finds the historian; where managers record that don't say
