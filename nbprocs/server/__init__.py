"""The extension of jupyter-server: it asks the shims' sockets for the JupyterLab panel, and carries its few orders to them.

Nothing can be started through it. It follows Jupyter's authentication, authorization (as for kernels) and XSRF rules, runs in the
server's environment, and needs nothing of a kernel: it works where the kernel is blocked or gone.
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "nbprocs.server"}]


def _load_jupyter_server_extension(app: Any) -> None:
    from nbprocs.server.handlers import routes  # noqa: PLC0415 - jupyter_server is there only in a server

    app.web_app.add_handlers(".*$", routes(app.web_app.settings["base_url"]))
    app.log.info("nbprocs: the panel's addresses are ready")
