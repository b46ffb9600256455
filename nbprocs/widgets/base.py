"""The host of all views: speaks the protocol of :mod:`nbprocs.widgets.wire` through outlets.

::

    model ── events ──►  Part (what to show, what may be done)  ──►  View (numbering, front ends)  ──►  Hub or own comm  ──►  browser tabs
          ◄── calls ──        runs on the model's home loop     ◄──    messages arrive on any thread

A view is shown through the kernel's hub (hub.py). It is an ipywidget as well, so that it fits into boxes and into front ends that know
nothing but widgets; the comm for that is opened when somebody asks for it. Its model holds it, so that both are freed together.

A part knows its model and no widget; a view knows its parts and no model. Parts are attached (subscribed) only while somebody
looks. Front-end messages arrive on the main thread or on a subshell's, depending on the kernel's version; they are always carried
to the home loop first, where calls are put in order again (arrivals.py). Sending is allowed from every thread.
"""

import abc
import asyncio
import inspect
import logging
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

import anywidget
import traitlets

from nbprocs.checks import whole
from nbprocs.display import Html, joined, plain
from nbprocs.engine.home import Home, Tasks
from nbprocs.errors import Closed, ProcessError
from nbprocs.widgets.arrivals import Arrivals
from nbprocs.widgets.assets import ON_DEMAND, SCRIPT, STATIC, STYLE
from nbprocs.widgets.pacing import pacer_of
from nbprocs.widgets.record import MUTED
from nbprocs.widgets.wire import BadMessage, Call, Delta, Hello, Refused, answer_where_asked, checked, flag, op, parse, text

__all__ = ["Host", "Part", "View", "held_by"]

Outlet = Callable[[dict[str, Any], list[bytes] | None], None]  # carries a message to front ends

log: logging.Logger = logging.getLogger("nbprocs.widgets")
_FOCUS_LASTS = 300.0  # seconds
_VIEWERS = 64  # front ends remembered; a tab that is closed can't always say goodbye


class Host(Protocol):
    """What a part may ask of its view. Only on the home loop, but for ``carry``."""

    home: Home
    tasks: Tasks

    def want(self, part: "Part", *, after: float = 0.0) -> None:
        """The part has a delta to give."""

    def mount(self, name: str, part: "Part") -> None:
        """Add a part while the view is up; an existing one of that name stays."""

    def carry(self, callback: Callable[..., object]) -> Callable[..., None]:
        """The same callback, but run on the view's home loop, whatever thread calls it."""


class Part(abc.ABC):
    """One thing shown: turns a model's state into snapshots and deltas, and front-end calls into calls of the model."""

    kind = ""
    host: Host
    over = False  # True: what it shows has ended or is closed, and its record changes no more
    moving = False  # True: something that the record shows as alive may have gone on since it was written

    def attach(self, host: Host) -> None:
        """Somebody looks: subscribe. On the home loop."""
        self.host = host

    @abc.abstractmethod
    def detach(self) -> None:
        """Nobody looks any more: unsubscribe everything. On the home loop; must not fail."""

    @abc.abstractmethod
    def snapshot(self) -> Delta:
        """Everything there is to show, as of the last delta."""

    def delta(self) -> Delta | None:
        """What changed since the last one; None for nothing."""
        return None

    def html(self) -> Html:
        """The static record."""
        return Html()

    def watch_record(self, changed: Callable[[], None], *, live: bool) -> Callable[[], None]:
        """Call back when the record says something new: after an end, or with ``live`` after every change. Returns what ends it.

        On the home loop. Independent of attach: a saved notebook wants the end also when nobody looks.
        """
        del changed, live
        return lambda: None


class Keeping(Protocol):
    """What keeps a static record current (nbprocs.widgets.live)."""

    def end(self) -> None:
        """Not any more."""


class View(anywidget.AnyWidget):
    """A widget of one or several parts. Closing it leaves no comm, task or subscriber."""

    _esm = traitlets.Unicode(SCRIPT).tag(sync=True)  # of use only where it has a comm of its own
    _css = traitlets.Unicode(STYLE).tag(sync=True)
    _closed = True  # until it is made
    spec: "traitlets.Dict[str, Any]" = traitlets.Dict().tag(sync=True)  # {parts: [{name, kind}], ...}: how to lay out, fixed for life

    def __init__(self, parts: Mapping[str, Part], *, model: Any, home: Home, **spec: Any) -> None:
        if "height" in spec:
            spec["height"] = whole("height", spec["height"], least=1)
        self.home = home
        self.tasks: Tasks = Tasks(home)
        self._parts: dict[str, Part] = dict(parts)
        self._fixed = tuple(parts)
        self._viewers: dict[str, Arrivals] = {}
        self._mounted: dict[str, set[str]] = {}  # front ends that show a part which was mounted later
        self._focused: dict[str, float] = {}
        self._wanting: set[str] = set()
        self._number = 0
        self._attached = False
        self._closed = False
        self._keepers: list[Keeping] = []
        self.shared = False  # True: the one view that its model shows itself by
        self._model = weakref.ref(model)
        self.outlets: list[Outlet] = []
        named = [{"name": name, "kind": part.kind} for name, part in parts.items()]
        super().__init__(spec={"parts": named, "uid": uuid.uuid4().hex, **spec})
        held_by(model).append(self)

    @property
    def model(self) -> Any:
        """What it shows; None when that is gone."""
        return self._model()

    def open(self) -> None:
        """Open no comm: the hub has one. See :attr:`model_id`."""

    @property
    def model_id(self) -> str:
        """The id of a comm of its own, which is opened now: for boxes of ipywidgets, and front ends that show widgets only."""
        if self.comm is None and not self._closed:
            super().open()
            answer_where_asked(self.comm)
            self.on_msg(lambda _, content, __: self.receive(content))
            self.outlets.append(lambda content, buffers: self.send(content, buffers=buffers))
        return super().model_id  # type: ignore[no-any-return]

    # -- from front ends, on any thread

    def receive(self, content: object) -> None:
        """A message of a front end."""
        try:
            self.home.post(self._judge, content)
        except Closed as error:
            self._emit({"to": _viewer(content), "gone": plain(error)})

    # -- on the home loop

    def _judge(self, content: object) -> None:
        if self._closed:
            return
        try:
            message = parse(content)
        except BadMessage as error:
            self._emit({"to": _viewer(content), "re": _call_id(content), "ok": False, "error": plain(error)})
            return
        if isinstance(message, Hello):
            self._goodbye(message.view) if message.gone else self._welcome(message.view)
        elif message.view in self._viewers:
            self._viewers[message.view].take(message)
        else:
            self._perform(message)

    def _welcome(self, viewer: str) -> None:
        calls = self._viewers.pop(viewer) if viewer in self._viewers else Arrivals(self.home.loop, self._perform)
        self._viewers[viewer] = calls
        while len(self._viewers) > _VIEWERS:
            self._viewers.pop(next(iter(self._viewers))).end()
        if not self._attached:
            self._attached = True
            for part in list(self._parts.values()):
                part.attach(self)
        self.speak()  # so that the snapshot is of the same moment for all front ends
        self._send_snapshot(viewer, self._parts)

    def _send_snapshot(self, viewer: str, parts: Mapping[str, Part]) -> None:
        content, buffers = _pack({name: part.snapshot() for name, part in parts.items()})
        kinds = {name: part.kind for name, part in parts.items()}
        self._emit({"n": self._number, "to": viewer, "s": content, "kinds": kinds}, buffers)

    def _goodbye(self, viewer: str) -> None:
        if (calls := self._viewers.pop(viewer, None)) is not None:
            calls.end()
        self._focused.pop(viewer, None)
        for name in list(self._mounted):
            self._op_unmount(name, viewer)
        if not self._viewers:
            self._detach()

    def _detach(self) -> None:
        if not self._attached:
            return
        self._attached = False
        self._wanting.clear()
        pacer_of(self.home).forget(self)
        for name, part in list(self._parts.items()):
            part.detach()
            if name not in self._fixed:
                del self._parts[name]

    def _perform(self, call: Call) -> None:
        try:
            method = self._operation(call)
            result = method(**checked(method, call.args))
        except Exception as error:  # noqa: BLE001 - whatever a front end causes ends in its reply
            self._refuse(call, error)
            return
        if inspect.isawaitable(result):
            self.tasks.start(self._finish(call, result), name=f"{call.part}.{call.op}")
        else:
            self._reply(call, result)

    def _operation(self, call: Call) -> Callable[..., Any]:
        owner, name = (self, f"_op_{call.op}") if call.part == "view" else (self._parts.get(call.part), call.op)
        method = getattr(owner, name, None)
        if method is None or not hasattr(method, "__checks__"):
            msg = f"no {plain(call.part)}.{plain(call.op)} here"
            raise BadMessage(msg)
        return method  # type: ignore[no-any-return]

    async def _finish(self, call: Call, result: Any) -> None:
        try:
            self._reply(call, await result)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - see _perform
            self._refuse(call, error)

    def _reply(self, call: Call, data: Any) -> None:
        buffers: tuple[bytes, ...] = ()
        if isinstance(data, Delta):
            data, buffers = data.content, data.buffers
        self._emit({"to": call.view, "re": call.id, "ok": True, "data": data}, buffers)

    def _refuse(self, call: Call, error: Exception) -> None:
        expected = isinstance(error, (BadMessage, Refused, ProcessError, ValueError, OSError, TypeError))
        if not expected:
            log.error("%s.%s, asked for by a front end, failed", plain(call.part), plain(call.op), exc_info=error)
        told = plain(error) or type(error).__name__
        field = error.field if isinstance(error, Refused) else ""
        self._emit({"to": call.view, "re": call.id, "ok": False, "error": told, "field": field})

    @op(name=text(40))
    def _op_asset(self, name: str = "") -> Delta:
        """A script that only some views need; a page asks for it once."""
        if name not in ON_DEMAND:
            msg = f"no asset {plain(name)}"
            raise BadMessage(msg)
        return Delta(content=name, buffers=((STATIC / f"{name}.js").read_bytes(),))

    @op(part=text(100), view=text(100))
    def _op_snapshot(self, part: str = "", view: str = "") -> None:
        """One part again, for a front end that has just mounted it."""
        if part not in self._parts:
            msg = f"no part {plain(part)}"
            raise BadMessage(msg)
        if part not in self._fixed and view in self._viewers:
            self._mounted.setdefault(part, set()).add(view)
        self.speak()
        self._send_snapshot(view, {part: self._parts[part]})

    @op(part=text(100), view=text(100))
    def _op_unmount(self, part: str = "", view: str = "") -> None:
        """A front end shows that part no more; the last one ends it."""
        viewers = self._mounted.get(part, set())
        viewers.discard(view)
        if not viewers:
            self._mounted.pop(part, None)
            self.unmount(part)

    @op(on=flag, view=text(100))
    def _op_focus(self, *, on: bool = False, view: str = "") -> None:
        """Somebody types in that front end, or no longer."""
        if on and view in self._viewers:
            self._focused[view] = time.monotonic()
        else:
            self._focused.pop(view, None)

    @property
    def held(self) -> bool:
        """True while somebody types in it: rendering it anew would take the focus away. A tab that vanished counts for some minutes."""
        return any(time.monotonic() - since < _FOCUS_LASTS for since in list(self._focused.values()))

    # -- Host

    def want(self, part: Part, *, after: float = 0.0) -> None:
        """The part has a delta to give."""
        if not self._attached:
            return
        self._wanting.update(name for name, known in self._parts.items() if known is part)
        pacer_of(self.home).want(self, after=after)

    def mount(self, name: str, part: Part) -> None:
        """Add a part while the view is up."""
        if name not in self._parts:
            self._parts[name] = part
            if self._attached:
                part.attach(self)

    def unmount(self, name: str) -> None:
        """Take a mounted part away again."""
        if name in self._parts and name not in self._fixed:
            self._parts.pop(name).detach()

    def carry(self, callback: Callable[..., object]) -> Callable[..., None]:
        """The same callback on the home loop."""
        home = self.home

        def carried(*args: object) -> None:
            if home.here:
                callback(*args)
            else:
                home.post(callback, *args)

        return carried

    # -- speaking

    def speak(self) -> int:
        """Send what is new to all front ends; returns about how many bytes."""
        names, self._wanting = self._wanting, set()
        deltas = {name: delta for name in names if name in self._parts and (delta := self._parts[name].delta()) is not None}
        if not deltas:
            return 0
        self._number += 1
        content, buffers = _pack(deltas)
        self._emit({"n": self._number, "p": content}, buffers)
        return sum(delta.size for delta in deltas.values())

    def _emit(self, content: dict[str, Any], buffers: tuple[bytes, ...] = ()) -> None:
        for outlet in () if self._closed else tuple(self.outlets):
            outlet(content, list(buffers) or None)

    # -- ends and displays

    def close(self) -> None:
        """Remove it from all front ends and unsubscribe from the model. May be called from any thread, any number of times."""
        if self._closed:
            return
        self._closed = True
        if (held := held_by(self.model)) and self in held:
            held.remove(self)
        for keeper in self._keepers:
            keeper.end()
        if self.comm is not None:
            layout = self.layout
            super().close()
            layout.close()
        for outlet in self.outlets:
            outlet({"closed": True}, None)
        self.outlets.clear()
        try:
            self.home.post(self._end)
        except Closed:
            log.debug("the loop of a view ended before the view")

    def _end(self) -> None:
        for calls in self._viewers.values():
            calls.end()
        self._viewers.clear()
        self._detach()
        if len(self.tasks):
            self.tasks.start(self.tasks.aclose(), name="close a view")

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._closed

    @property
    def parts(self) -> Mapping[str, Part]:
        """What it shows, by name."""
        return self._parts

    def keep(self, keeper: Keeping) -> None:
        """End this keeper of its static record when the view is closed."""
        self._keepers.append(keeper)

    @property
    def _ipython_display_(self) -> Callable[[], None] | None:
        """Shown under a display id where there is a kernel, so that the record in the saved notebook can be brought up to date."""
        from nbprocs.widgets import live  # noqa: PLC0415 - it imports this module

        return (lambda: live.publish(self)) if live.in_kernel() else None

    def __repr__(self) -> str:
        """Short and the same in every run: a saved notebook is compared by it."""
        return f"<{type(self).__name__}>"

    def _html_(self) -> Html:
        """The static record of its parts; with the time where something in it still went on then."""
        parts = [self._parts[name] for name in self._fixed]
        record = joined(part.html() for part in parts)
        if not any(part.moving for part in parts):
            return record
        return record + Html('<div style="{}"><i>as of {}</i></div>').format(MUTED, f"{datetime.now():%H:%M, %d %b %Y}")  # noqa: DTZ005 - local

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget view, with the static record beside it: for front ends that show widgets only."""
        bundle: Any = super()._repr_mimebundle_(**kwargs) or {}
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return {**data, **self.record()}

    def record(self) -> dict[str, str]:
        """What every front end can show, and a saved notebook keeps."""
        uid = self.spec["uid"]
        html = Html('<div class="nb-hole nb-hole-{}"></div><div class="nb-rec-{}">{}</div>').format(uid, uid, self._html_())
        return {"text/plain": repr(self), "text/html": str(html)}


def held_by(model: Any) -> list["View"]:
    """The views of a model, held by nothing but it."""
    try:
        held: list[View] = model.__dict__.setdefault("_nbprocs_views", [])
    except AttributeError:  # it is gone, or has no room
        return []
    return held


def _pack(deltas: Mapping[str, Delta]) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """Contents by part; a part with buffers becomes ``[content, first buffer, count]`` under the key ``b`` of its name."""
    content: dict[str, Any] = {}
    buffers: list[bytes] = []
    for name, delta in deltas.items():
        content[name] = delta.content
        if delta.buffers:
            content.setdefault("", {})[name] = [len(buffers), len(delta.buffers)]
            buffers.extend(delta.buffers)
    return content, tuple(buffers)


def _viewer(content: object) -> str:
    view = content.get("view") if isinstance(content, Mapping) else None
    return view[:80] if isinstance(view, str) else ""


def _call_id(content: object) -> int:
    number = content.get("id") if isinstance(content, Mapping) else None
    return number if isinstance(number, int) else -1
