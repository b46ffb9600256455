"""A POST to a webhook: Slack, ntfy, or plain JSON. It follows no redirect, and its deadline holds for the whole of it.

A redirect would send the notice, with the output in it, to whoever the first host names, an address inside the network included. The
socket's own timeout begins anew with each byte, so that an answer which drips would never end: at the deadline the socket is shut down.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from nbprocs.notify.model import Notice, masked

__all__ = ["Undelivered", "payload", "post"]

_PRIORITY = {"success": 3, "warning": 3, "error": 4}  # ntfy's default and high
_TAGS = {"success": "white_check_mark", "warning": "warning", "error": "x"}


class Undelivered(OSError):
    """A webhook that could not be told; ``again`` says whether a later try may help.

    >>> Undelivered("no answer", again=True).again
    True
    """

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


def payload(url: str, notice: Notice, *, plain: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Where to POST, and what, for that URL's service; ``plain`` is for a URL of none, by default ``Notice.plain()``.

    >>> payload("ntfy://host/jobs", Notice(title="done", level="success", process_id="1"))[0]
    'https://host/'
    """
    parts = urlsplit(url)
    if parts.hostname == "hooks.slack.com":
        return url, {"text": f"*{_slack(notice.title)}*" + (f"\n```{_slack(notice.body)}```" if notice.body else "")}
    if parts.scheme == "ntfy" or parts.hostname == "ntfy.sh":
        scheme = "https" if parts.scheme == "ntfy" else parts.scheme
        about = {"priority": _PRIORITY[notice.level], "tags": [_TAGS[notice.level]]}
        message = {"topic": parts.path.strip("/"), "title": notice.title, "message": notice.body or notice.title, **about}
        return urlunsplit((scheme, parts.netloc, "/", parts.query, "")), message
    return url, notice.plain() if plain is None else dict(plain)


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_options: Any) -> None:
        return None


class _Sockets(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Keeps the connections that it makes, so that another thread can shut them down."""

    def __init__(self) -> None:
        super().__init__(context=ssl.create_default_context())
        self.made: list[http.client.HTTPConnection] = []

    def _keep(self, kind: type[http.client.HTTPConnection], host: str, **options: Any) -> http.client.HTTPConnection:
        connection = kind(host, **options)
        self.made.append(connection)
        return connection

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(self._keep, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        make = functools.partial(self._keep, http.client.HTTPSConnection)
        return self.do_open(make, request, context=ssl.create_default_context())

    def shut(self) -> None:
        for connection in self.made:
            with contextlib.suppress(OSError):  # closed already
                if connection.sock is not None:
                    connection.sock.shutdown(socket.SHUT_RDWR)


def post(url: str, message: Any, *, timeout: float) -> int:
    """POST it as JSON; the status of the answer, whose body is not read. Blocks for ``timeout`` seconds at most, name look-up apart.

    Raises Undelivered; a redirect is one.
    """
    request = urllib.request.Request(  # noqa: S310 - Notify has checked the scheme
        url, data=json.dumps(message).encode(), headers={"Content-Type": "application/json", "User-Agent": "nbprocs"}, method="POST"
    )
    sockets = _Sockets()
    opener = urllib.request.build_opener(sockets, _NoRedirect)
    timer = threading.Timer(timeout, sockets.shut)
    timer.daemon = True
    began = time.monotonic()
    with contextlib.suppress(RuntimeError):  # an interpreter that ends starts no thread, from Python 3.12 on; it does not wait long, either
        timer.start()
    try:
        with opener.open(request, timeout=timeout) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        again = error.code in (408, 425, 429) or error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
        moved = (
            ", a redirect, which is not followed" if http.HTTPStatus.MULTIPLE_CHOICES <= error.code < http.HTTPStatus.BAD_REQUEST else ""
        )
        raise Undelivered(f"{masked(url)} answered {error.code}{moved}", again=again) from None
    except (OSError, http.client.HTTPException) as error:
        late = time.monotonic() - began >= timeout
        why = f"no whole answer within {timeout:g} s" if late else str(getattr(error, "reason", error)) or type(error).__name__
        raise Undelivered(f"{masked(url)} could not be told: {why}", again=True) from None
    finally:
        timer.cancel()
