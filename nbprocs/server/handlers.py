"""The panel's addresses: ``GET nbprocs/processes``, ``POST nbprocs/order``, ``GET nbprocs/output``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from nbprocs.engine.places import runtime_folder
from nbprocs.server.census import Notebook, census, order, output

__all__ = ["routes"]


def routes(base: str) -> list[tuple[str, type[APIHandler]]]:
    """The handlers, with their addresses below the server's own."""
    return [
        (url_path_join(base, "nbprocs", "processes"), ProcessesHandler),
        (url_path_join(base, "nbprocs", "order"), OrderHandler),
        (url_path_join(base, "nbprocs", "output"), OutputHandler),
    ]


class _Handler(APIHandler):
    auth_resource = "kernels"  # who may act on kernels may act on what they started

    def reply(self, answer: dict[str, Any]) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(answer))

    @property
    def folder(self) -> Path:
        return runtime_folder()


class ProcessesHandler(_Handler):
    """Every process of every kernel of this user, and the detached ones."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer within about a second, also where kernels are blocked."""
        notebooks = await self._notebooks()
        self.reply(await asyncio.to_thread(census, self.folder, notebooks=notebooks))

    async def _notebooks(self) -> dict[int, Notebook]:
        listed = await self.session_manager.list_sessions()  # type: ignore[no-untyped-call]
        sessions = {session["kernel"]["id"]: session for session in listed if session.get("kernel")}
        found = {}
        for kernel in self.kernel_manager.list_kernel_ids():
            pid = getattr(self.kernel_manager.get_kernel(kernel).provisioner, "pid", None)
            if pid is not None:
                session = sessions.get(kernel, {})
                found[pid] = Notebook(kernel=kernel, path=session.get("path", ""), kind=session.get("type", ""))
        return found


class OrderHandler(_Handler):
    """Stop, pause, resume or interrupt one process."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Answer when it is carried out; after a stop the whole tree has ended."""
        try:
            body = self.get_json_body()
        except UnicodeDecodeError as error:  # what is no JSON otherwise is answered by it
            raise web.HTTPError(400, reason="an order is JSON in UTF-8") from error
        if not isinstance(body, dict) or not isinstance(body.get("socket"), str) or not isinstance(body.get("id"), str):
            raise web.HTTPError(400, reason="an order names a socket, an id and an op")
        request: dict[str, Any] = {key: body[key] for key in ("op", "id", "grace") if key in body}
        try:
            self.reply(await asyncio.to_thread(order, self.folder, socket=body["socket"], request=request))
        except ValueError as error:
            raise web.HTTPError(400, reason=str(error)) from error


class OutputHandler(_Handler):
    """A part of the log of a detached process."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer ``{"offset", "data" (base64), "end", "ended"}`` as its shim gives it."""
        try:
            offset = int(self.get_query_argument("offset", "0"))
            answer = await asyncio.to_thread(
                output, self.folder, socket=self.get_query_argument("socket"), process=self.get_query_argument("id"), offset=offset
            )
        except ValueError as error:
            raise web.HTTPError(400, reason=str(error)) from error
        self.reply(answer)
