"""What a start asks for beyond its command, as the shim is told: the folder, numbers of users and groups, limits."""

from __future__ import annotations

import os
from typing import Any

from nbprocs.engine.child import Spec

__all__ = ["folder_of", "options_of"]

_LOCKS = 10  # RLIMIT_LOCKS


def folder_of(spec: Spec) -> bytes:
    """Where it is to start: what was asked for, or the kernel's own folder at this moment. Raises OSError."""
    if spec.cwd is not None:
        return os.fsencode(os.path.abspath(spec.cwd))
    try:
        return os.getcwdb()
    except FileNotFoundError:  # somebody removed it; it can be entered all the same
        return f"/proc/{os.getpid()}/cwd".encode()


def options_of(spec: Spec) -> dict[str, Any] | None:
    """What makes a start the slower one: only what was asked for."""
    found: dict[str, Any] = {name: getattr(spec, name) for name in ("umask", "nice") if getattr(spec, name) is not None}
    if spec.rlimits:
        found["rlimits"] = {int(number): (int(soft), int(hard)) for number, (soft, hard) in spec.rlimits.items()}
        if _LOCKS in found["rlimits"]:
            msg = "RLIMIT_LOCKS has had no effect since Linux 2.4, and its value is what tells the trees of processes apart here"
            raise ValueError(msg)
    if spec.extra_groups is not None:
        found["extra_groups"] = [_group_number(group) for group in spec.extra_groups]
    if spec.group is not None:
        found["group"] = _group_number(spec.group)
    if spec.user is not None:
        found["user"] = _user_number(spec.user)
    return found or None


def _user_number(user: str | int) -> int:
    if isinstance(user, int):
        return user
    import pwd  # noqa: PLC0415 - rarely wanted

    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        msg = f"there is no user {user!r}"
        raise ValueError(msg) from None


def _group_number(group: str | int) -> int:
    if isinstance(group, int):
        return group
    import grp  # noqa: PLC0415 - rarely wanted

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        msg = f"there is no group {group!r}"
        raise ValueError(msg) from None
