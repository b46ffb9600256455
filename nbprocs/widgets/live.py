"""Shows models and views in a notebook, and keeps the static record in its saved form up to date.

Output under a *display id* can be replaced after its cell is over. So a view is published under one, and again when something ended:
the notebook that is saved then holds the end, not the beginning. What is published is HTML: a place for the live view, which a page that
finds the kernel's hub fills (hub.py), and the record. Where no script can run, the same handle carries HTML that is replaced once a second.
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
from nbprocs.widgets.base import Part, View, held_by
from nbprocs.widgets.hub import connect

__all__ = ["RecordKeeper", "in_kernel", "install", "mode", "publish", "view_bundle", "view_of"]

QUIET = 1.0  # seconds from a change to the record, so that what ends together is written once
APART = 30.0  # seconds between two records of one display, at most: each makes the notebook render that output anew
APART_FIRST = 2.0  # … after the first record; then twice as long each time, so that what is over soon is soon on record
LIVE_APART = 1.0  # … where the HTML is all there is

_MODES = ("live", "widgets", "html", "static")


def in_kernel() -> bool:
    """True in a Jupyter kernel; False in a terminal, a script, a test."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


def mode() -> str:
    """How to show. The variable NBPROCS_VIEWS decides, else what is there.

    ``live``: HTML that a page brings to life. ``widgets``: a widget view beside the HTML, for VS Code and Colab, which start no widget
    before they see one. ``html``: a display handle, written again and again. ``static``: the record alone.
    """
    asked = os.environ.get("NBPROCS_VIEWS", "").lower()
    if asked in _MODES:
        return asked
    if not in_kernel():
        return "static"
    return "widgets" if "VSCODE_PID" in os.environ or "google.colab" in sys.modules else "live"


def install() -> str:
    """Make models show live views from now on, if this is a kernel; returns the mode. Idempotent.

    >>> install()
    'static'
    """
    how = mode()
    if how == "static" or not in_kernel():
        set_view_factory(None)
    else:
        set_view_factory(view_bundle, publish=publish)
    return how


# by the model's class name: the module of a view is imported when its model is shown, so a model that is not used costs nothing
_KINDS = {
    "ProcessManager": ("process_table", "ProcessTable"),
    "ManagedProcess": ("output_pane", "OutputPane"),
    "ProcessPool": ("boards", "PoolView"),
    "TaskScheduler": ("queue_view", "QueueView"),
    "DaskBackend": ("workers_view", "WorkersView"),
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
    make = _kind_of(model)
    if make is None:
        return None
    for known in held_by(model):
        if known.shared:
            return known
    try:
        view = make(model)
    except Closed:  # it has no loop yet: there is nothing to see but its record
        return None
    view.shared = True
    return view


def view_bundle(model: Any) -> dict[str, Any] | None:
    """The mimebundle of a model's live view, for ``display.set_view_factory``; None where the record alone is shown."""
    view = view_of(model) if mode() == "widgets" else None
    return None if view is None else dict(view._repr_mimebundle_())


def publish(shown: Any) -> None:
    """Display a model or a view under a display id, and keep its record current until it can change no more."""
    from IPython.display import publish_display_data  # noqa: PLC0415 - only in a kernel

    view, how = view_of(shown), mode()
    identity = uuid.uuid4().hex
    cell = contextvars.copy_context()

    def write(*, update: bool) -> None:
        bundle = shown._repr_mimebundle_() if view is None or how == "widgets" else {**view.record(), "text/plain": repr(shown)}
        publish_display_data(bundle, transient={"display_id": identity}, update=update)  # type: ignore[no-untyped-call]

    def rewrite() -> None:
        # A context is that of the cell that began what now calls, perhaps long over; nbclient drops what does not belong to the cell that
        # runs. Without one ipykernel takes the newest cell; 7.0 knows none then, and gets this output's own.
        try:
            contextvars.Context().run(write, update=True)
        except LookupError:
            cell.copy().run(write, update=True)

    if view is not None and how == "live":
        connect(view)
    write(update=False)
    if view is not None and how != "static":
        parts = list(view.parts.values())
        view.keep(RecordKeeper(view.home, parts, rewrite, held=lambda: view.held, live=how == "html"))


class RecordKeeper:
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
        if not part.over or self._ended:
            self._plan(self._last + self._apart)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._tick()

    def _plan(self, earliest: float) -> None:
        if self._timer is None and not self._ended:
            loop = self._home.loop
            self._timer = loop.call_at(max(loop.time() + QUIET, earliest), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._ended:  # by a thread, or in the turn of the loop in which the timer was due
            return
        now = self._home.loop.time()
        if self._held():  # written a moment after it is let go
            self._plan(now)
            return
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
