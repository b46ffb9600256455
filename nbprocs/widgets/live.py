"""Shows models and views in a notebook, and keeps the static record in its saved form up to date.

Output under a *display id* can be replaced after its cell is over. So a view is published under one, and again when something ended:
the notebook that is saved then holds the end, not the beginning. Where no widget can run, the same handle carries plain HTML that is
replaced once a second.
"""

import contextvars
import functools
import importlib
import os
import sys
import uuid
from collections.abc import Callable
from typing import Any

from nbprocs.display import set_view_factory
from nbprocs.engine.home import Home
from nbprocs.errors import Closed
from nbprocs.widgets.base import Part, View

__all__ = ["Keeper", "in_kernel", "install", "mode", "part_of", "publish", "view_bundle", "view_of"]

QUIET = 1.0  # seconds from a change to the record, so that what ends together is written once
APART = 30.0  # seconds between two records of one display, at most: each makes the notebook render that output anew
APART_FIRST = 2.0  # … after the first record; then twice as long each time, so that what is over soon is soon on record
LIVE_APART = 1.0  # … where the HTML is all there is

_WIDGET = "application/vnd.jupyter.widget-view+json"
_views: dict[int, View] = {}


def in_kernel() -> bool:
    """True in a Jupyter kernel; False in a terminal, a script, a test."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


def mode() -> str:
    """How to show: ``widgets``, ``html`` (a display handle) or ``static``. The variable NBPROCS_VIEWS decides, else what is there."""
    asked = os.environ.get("NBPROCS_VIEWS", "").lower()
    if asked in ("widgets", "html", "static"):
        return asked
    return "widgets" if in_kernel() else "static"


def install() -> str:
    """Make models show live views from now on, if this is a kernel; returns the mode. Idempotent.

    >>> install()
    'static'
    """
    how = mode()
    if how == "static" or not in_kernel():
        set_view_factory(None)
    else:
        set_view_factory(view_bundle if how == "widgets" else _no_widget, publish=publish)
    return how


def _no_widget(_: Any) -> None:
    """No widget: the HTML alone is shown."""


# by the model's class name: the module of a view is imported when its model is shown, so a model that is not used costs nothing
_KINDS = {
    "ProcessManager": ("process_table", "ProcessTable"),
    "ManagedProcess": ("output_pane", "OutputPane"),
    "ProcessPool": ("boards", "PoolView"),
    "TaskScheduler": ("queue_view", "QueueView"),
}


def _kind_of(model: Any) -> Callable[[Any], View] | None:
    for kind in type(model).__mro__:
        if kind.__name__ in _KINDS:
            module, name = _KINDS[kind.__name__]
            found: Callable[[Any], View] = getattr(importlib.import_module(f"nbprocs.widgets.{module}"), name)
            return found
    return None


def view_of(model: Any) -> View | None:
    """The view of a model: one for each model, however often it is displayed; a new one after that was closed. None: it has none."""
    if isinstance(model, View):
        return model
    known = _views.get(id(model))
    if known is not None and known.model is model and not known.closed:
        return known
    make = _kind_of(model)
    if make is None:
        return None
    view = make(model)
    view.model = model
    view.on_closed = lambda: _views.pop(id(model), None)
    _views[id(model)] = view
    return view


def view_bundle(model: Any) -> dict[str, Any] | None:
    """The mimebundle of a model's live view, for ``display.set_view_factory``."""
    view = view_of(model)
    return None if view is None else dict(view._repr_mimebundle_())


def part_of(model: Any) -> Part | None:
    """The first part of a model's view: what its record is made of."""
    view = view_of(model)
    return None if view is None else next(iter(view.parts.values()))


def publish(shown: Any) -> None:
    """Display a model or a view under a display id, and keep its record current until it can change no more."""
    from IPython.display import publish_display_data  # noqa: PLC0415 - only in a kernel

    view = view_of(shown)
    identity = uuid.uuid4().hex

    def write(*, update: bool) -> None:
        bundle = shown._repr_mimebundle_()
        if view is not None:
            bundle["text/html"] = str(
                view._html_()
            )  # the views' records read in every theme, and on GitHub; a model's own form is for the rest
        if mode() != "widgets":
            bundle.pop(_WIDGET, None)
        publish_display_data(bundle, transient={"display_id": identity}, update=update)  # type: ignore[no-untyped-call]

    def rewrite() -> None:
        # A context is that of the cell that began what now calls, perhaps long over; nbclient drops what does not belong to the cell that
        # runs. Without one ipykernel takes the newest cell.
        contextvars.Context().run(write, update=True)

    write(update=False)
    if view is not None:
        parts = list(view.parts.values())
        view.keep(Keeper(view.home, parts, rewrite, held=lambda: view.held, live=mode() != "widgets"))


class Keeper:
    """Writes the record of some parts again, a little after they changed and not too often; at once when one has ended or was closed.

    That can be the last thing a kernel does: the end of a notebook that runs without a browser.
    """

    def __init__(self, home: Home, parts: list[Part], write: Callable[[], None], *, held: Callable[[], bool], live: bool = False) -> None:
        self._home = home
        self._write = write
        self._held = held
        self._most = LIVE_APART if live else APART
        self._apart = min(APART_FIRST, self._most)
        self._timer: Any = None
        self._last = float("-inf")
        self._stops: list[Callable[[], None]] = []
        self._ended = False
        home.post(self._start, parts, live)

    def _start(self, parts: list[Part], live: bool) -> None:  # noqa: FBT001 - by post, positional
        if not self._ended:
            self._stops = [part.watch_record(functools.partial(self._changed, part), live=live) for part in parts]

    def _changed(self, part: Part) -> None:
        if self._home.here:
            self._heard(part)
        else:
            self._home.post(self._heard, part)

    def _heard(self, part: Part) -> None:
        if not part.over or self._ended or self._held():
            self._plan()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._tick()

    def _plan(self) -> None:
        if self._timer is None and not self._ended:
            loop = self._home.loop
            at = max(loop.time() + QUIET, self._last + self._apart)
            self._timer = loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._held():
            self._plan()
            return
        now = self._home.loop.time()
        calm = now - self._last > 2 * self._most
        self._apart = min(APART_FIRST if calm else 2 * self._apart, self._most)
        self._last = now
        self._write()

    def end(self) -> None:
        """Write no more. On any thread."""
        self._ended = True
        try:
            self._home.post(self._end)
        except Closed:
            return

    def _end(self) -> None:
        for stop in self._stops:
            stop()
        self._stops = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
