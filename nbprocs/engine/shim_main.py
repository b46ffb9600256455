"""The shim process: run by nbprocs.engine.shim with ``python -I -S -E``; standard library only, imported by nobody.

Arguments: ``detached`` for the shim of one detached process, whose order comes on stdin; else the descriptor of its first socket, the
kernel's pid, the kernel's part of the tags, the kernel's token, and whether it follows one that died.
Memory and the first start are what a shim costs, so it loads no more than it needs: this file gives it the package's own modules without
the package's ``__init__``, which would load all of nbprocs.
"""

import os
import sys
import types

_package = types.ModuleType("nbprocs")
_package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
sys.modules["nbprocs"] = _package

from nbprocs.engine.shimlib.light import LightTyping  # noqa: E402 - the package is known only now

sys.modules["typing"] = LightTyping("typing")


def _become_subreaper(*, wake: bool) -> None:
    """Be the one whom orphaned descendants fall to, and be woken from SIGSTOP when the kernel ends.

    Linux; elsewhere sessions have to do.
    """
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415
    import signal  # noqa: PLC0415

    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if wake:
        prctl(1, int(signal.SIGCONT), 0, 0, 0)  # PR_SET_PDEATHSIG


def main() -> None:
    """Serve the kernel, and end what is left when it is gone."""
    if sys.argv[1] == "detached":
        from nbprocs.engine.shimlib.keeper import main as keep  # noqa: PLC0415

        keep(lambda: _become_subreaper(wake=False))
        return
    _become_subreaper(wake=True)
    import socket  # noqa: PLC0415

    from nbprocs.engine.shimlib.links import ShimLink  # noqa: PLC0415 - the package is known only now
    from nbprocs.engine.shimlib.server import Server  # noqa: PLC0415

    fd, kernel, base, token, inherits = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "1"
    os.set_inheritable(fd, False)
    Server(ShimLink(socket.socket(fileno=fd)), kernel=kernel, base=base, token=token, inherits=inherits).run()


if __name__ == "__main__":
    main()
