"""One widget a kernel, through which every displayed view speaks.

::

    View ── outlet ──►  Hub (one comm, one script)  ──►  page: hub.js  ──►  the hole of an output gets the live element, its record hides
         ◄── receive ──        {v: uid, …}          ◄──

A view is published as plain ``text/html``: an empty element, the hole, and the static record. Every front end can show the record, and
a page that finds the hub alive puts the live view in its place (.adr/0708). So an output never says "model not found", and a file in
which nbclient saves the state of widgets has the script once, not once a view.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from nbprocs.widgets.assets import SCRIPT, STYLE
from nbprocs.widgets.wire import answer_where_asked

__all__ = ["Hub", "connect"]

_lock = threading.Lock()
_hub: "Hub | None" = None


class Hub(anywidget.AnyWidget):
    """Carries the messages of all views, each marked with its view's ``uid``. Holds no view: one that nobody holds is gone."""

    # traits, not paths: anywidget subscribes every widget to a file it reads itself, for good, and none would ever be freed
    _esm = traitlets.Unicode(SCRIPT).tag(sync=True)
    _css = traitlets.Unicode(STYLE).tag(sync=True)
    role: "traitlets.Unicode[str, str | bytes]" = traitlets.Unicode("hub").tag(sync=True)
    specs: "traitlets.Dict[str, Any]" = traitlets.Dict().tag(
        sync=True
    )  # of the views, by uid: a page that begins need not ask first, which saves it a round trip

    def __init__(self, first: Any) -> None:
        self._views: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        super().__init__(specs={first.spec["uid"]: dict(first.spec)})
        self.on_msg(self._received)

    def open(self) -> None:
        """Open its comm. See :func:`nbprocs.widgets.wire.answer_where_asked`."""
        super().open()
        answer_where_asked(self.comm)

    def add(self, view: Any) -> None:
        """Let a view speak through here, and tell all pages of it. Idempotent."""
        uid = view.spec["uid"]
        if uid in self._views:
            return
        self._views[uid] = view
        view.outlets.append(self._outlet(uid))
        self.specs = self._specs()
        self._tell({"views": {uid: dict(view.spec)}})

    def _specs(self) -> dict[str, Any]:
        return {uid: dict(view.spec) for uid, view in list(self._views.items())}

    def close(self) -> None:
        """End all views on all pages; the next one that is shown makes a new hub."""
        layout = self.layout if self.comm is not None else None
        super().close()
        if layout is not None:
            layout.close()

    def _outlet(self, uid: str) -> Callable[[dict[str, Any], list[bytes] | None], None]:
        return lambda content, buffers: self._tell({**content, "v": uid}, buffers)

    def _tell(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        if self.comm is not None:
            self.send(content, buffers=buffers)

    def _received(self, _: object, content: object, __: object = None) -> None:
        if not isinstance(content, dict):
            return
        if content.get("do") == "hub":
            self._tell({"views": self._specs()})
            return
        uid = content.pop("v", None)
        view = self._views.get(uid) if isinstance(uid, str) else None
        if view is not None:
            view.receive(content)
        elif isinstance(uid, str):
            self._tell({"closed": True, "v": uid[:80]})


def connect(view: Any) -> None:
    """Let a view speak through the kernel's hub; a new one where somebody closed it (``Widget.close_all()``)."""
    global _hub  # noqa: PLW0603 - one per kernel, like the script that it carries
    with _lock:
        if _hub is None or _hub.comm is None:
            _hub = Hub(view)
        _hub.add(view)
