"""The child side of a Python worker: reads calls from a socket, runs them one after the other, writes the answers.

::

    data socket     ──►  [TASK, TASK, …] ─► claim ─► run ─► answer  ──►  data socket      (main thread)
    control socket  ──►  WITHDRAW, PING  ─────────► reply           ──►  control socket   (a second thread, asleep otherwise)
    shared page     ◄──  number and start time of the call that was claimed last          (read by the parent at any time)

The child loads this file alone, under a private name: it imports nothing of nbprocs, and the little it needs of the standard library,
so that a worker is ready in milliseconds. The parent imports the wire's constants from here.

*Claiming* is what makes a call exactly-once. The main thread claims a call under a lock and writes its number into the shared page before
it runs; the control thread can withdraw, under the same lock, only calls that are not claimed. The page outlives the process: the parent
of a dead worker knows which call was running and which were never started. Each answer is written before the next call is claimed, and
what is in a socket also outlives its writer.
"""

import marshal
import os
import pickle
import signal
import struct
import sys
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Callable, Iterator
from itertools import starmap
from mmap import mmap
from time import monotonic_ns
from typing import Any

HEADER = struct.Struct("<QI")  # bytes of the body, number of buffers behind it
LENGTH = struct.Struct("<Q")  # one for each buffer, between header and body
VERSION = 2  # of marshal: the newer ones look for shared objects, which costs a third of the time
READ = 64 << 10  # bytes at once; larger reads leave malloc's cached range
LARGE = 64 << 10  # bytes; larger buffers travel beside the pickle, never copied into it
PAGE = 4096
CLAIMED, STARTED = 0, 1  # words of the page: number of the call, its start (time.monotonic_ns)

TASK, CHUNK, DEFINE, FORGET, SETUP, SETTINGS, QUIT = range(7)  # from the parent
VALUE, PICKLED, ERROR, MANY, STOPPED, READY, BROKEN, OUTPUT = range(8)  # from the worker
WITHDRAW, PING = range(2)  # on the control socket; the reply starts with the same word

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})  # immutable, and marshal keeps their exact type
MAIN = b"__main__"

Message = tuple[Any, ...]


def frame(message: Any, buffers: list[memoryview] | None = None) -> list[bytes | memoryview]:
    """The pieces of one frame; header and body are one piece."""
    body = marshal.dumps(message, VERSION)
    if not buffers:
        return [HEADER.pack(len(body), 0) + body]
    lengths = b"".join(LENGTH.pack(item.nbytes) for item in buffers)
    return [HEADER.pack(len(body), len(buffers)) + lengths + body, *buffers]


def dumps(value: object, *, apart: bool = True) -> tuple[bytes, list[memoryview]]:
    """Pickle a value; large buffers (numpy, pandas, arrow) are returned beside it, uncopied, unless ``apart`` is False.

    The C pickler does it unless something in there lives in ``__main__`` or has no importable name: a notebook's own classes and functions
    are sent by value, as are those of modules that cloudpickle was told to send so. Raises what pickling raises.
    """
    buffers: list[memoryview] = []

    def within(buffer: pickle.PickleBuffer) -> bool:
        if not apart:
            return True
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < LARGE:
            return True
        buffers.append(raw)
        return False

    if not registered_by_value():
        try:
            body = pickle.dumps(value, 5, buffer_callback=within)
        except Exception:  # noqa: BLE001 - cloudpickle knows more kinds; what it can't do either, it says
            body = MAIN
        if MAIN not in body:
            return body, buffers
        buffers.clear()
    try:
        return _cloud_dumps(value, within, copy_globals=True), buffers
    except Exception:  # noqa: BLE001 - a lock among the globals of a module that the worker can import: there they need no copy
        buffers.clear()
        return _cloud_dumps(value, within, copy_globals=False), buffers


def registered_by_value(module: str | None = None) -> bool:
    """Whether cloudpickle was told to send this module's (None: any module's) functions and classes by value."""
    cloudpickle = sys.modules.get("cloudpickle")
    registered = cloudpickle.list_registry_pickle_by_value() if cloudpickle else ()
    return any(module in (None, name) or (module or "").startswith(name + ".") for name in registered)


_pickler: list[Any] = []  # the pickler's class, once somebody needed it


def _cloud_dumps(value: object, within: Callable[[pickle.PickleBuffer], bool], *, copy_globals: bool) -> bytes:
    import io  # noqa: PLC0415 - most workers never need it

    if not _pickler:
        _pickler.append(_cloud_pickler())
    file = io.BytesIO()
    pickler = _pickler[0](file, protocol=5, buffer_callback=within)
    pickler.copy_globals = copy_globals
    pickler.dump(value)
    return file.getvalue()


def _cloud_pickler() -> Any:
    """cloudpickle's, which sends by name what has one: a bound method by its object and name, not by a copy of its function.

    With ``copy_globals=False`` a function without a name (a lambda, a closure) of a module that can be imported uses that module's globals
    in the worker; cloudpickle sends a copy of each global that it uses, which some of them refuse.
    """
    import functools  # noqa: PLC0415 - as below
    from types import FunctionType, MethodType, ModuleType  # noqa: PLC0415 - as below

    import cloudpickle  # noqa: PLC0415 - 20 ms, and most workers never need it

    class Globals:
        """Stands for the globals of a module: ``vars(module)`` in the worker."""

        def __init__(self, module: ModuleType) -> None:
            self.module = module

        def __reduce__(self) -> tuple[Any, ...]:
            return vars, (self.module,)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        copy_globals = True

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is MethodType and getattr(obj.__self__, obj.__func__.__name__, None) == obj:
                return getattr, (obj.__self__, obj.__func__.__name__)
            if kind is functools._lru_cache_wrapper and obj.__module__ == "__main__":  # noqa: SLF001 - what lru_cache makes has no other name
                options = obj.cache_parameters()
                info = type(obj.cache_info())
                return kind, (obj.__wrapped__, options["maxsize"], options["typed"], info), vars(obj)
            return super().reducer_override(obj)

        def _dynamic_function_reduce(self, func: FunctionType) -> Any:
            found = super()._dynamic_function_reduce(func)
            name = func.__globals__.get("__name__")
            module = sys.modules.get(name) if type(name) is str and name not in ("__main__", "__mp_main__") else None
            if self.copy_globals or module is None or vars(module) is not func.__globals__ or registered_by_value(name):
                return found
            make, (code, _, *rest), (state, slots), *others = found
            return (make, (code, Globals(module), *rest), (state, {**slots, "__globals__": {}}), *others)

    return Pickler


def explain(error: BaseException, *, phase: str) -> Message:
    """What the parent needs to raise it again: (pickle or None, type name, text, formatted traceback, phase)."""
    import traceback  # noqa: PLC0415 - most workers never need it

    name = _kind_of(error)
    trace: Any = vars(BaseException)["__traceback__"].__get__(error)  # past what its class answers
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next  # our own frames would only puzzle
    try:
        shown = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as another:  # noqa: BLE001 - an exception whose __str__ fails is still an exception
        shown = f"{name} (it can't be shown: {_kind_of(another)})"
    try:
        text = str.__str__(str(error))  # a subclass would not travel
    except BaseException:  # noqa: BLE001
        text = shown.strip().rpartition("\n")[2]
    try:
        BaseException.with_traceback(error, None)
        pickled = dumps(error)[0] if issubclass(type(error), Exception) else None
    except BaseException:  # noqa: BLE001 - it stays here then, and its text travels
        pickled = None
    return pickled, name, text, shown, phase


def _kind_of(error: BaseException) -> str:
    kind = type(error)
    try:
        return f"{kind.__module__}.{kind.__qualname__}"
    except BaseException:  # noqa: BLE001 - a metaclass of its own
        return "an exception"


def receive(fd: int) -> Iterator[Any]:
    """The decoded frames of a blocking socket, until its other end is closed."""
    pending = b""
    while data := os.read(fd, READ):
        pending = pending + data if pending else data
        at = 0
        while len(pending) - at >= HEADER.size:
            size, count = HEADER.unpack_from(pending, at)
            start = at + HEADER.size + LENGTH.size * count
            if start > len(pending):
                break
            if not count and start + size <= len(pending):
                yield marshal.loads(pending[start : start + size])  # noqa: S302 - from our own parent
                at = start + size
                continue
            if not count and size < READ:
                break
            lengths = [size, *(LENGTH.unpack_from(pending, at + HEADER.size + LENGTH.size * i)[0] for i in range(count))]
            parts, at = _fill(fd, lengths, pending, start)
            yield [(*message, parts[1:]) if count else message for message in marshal.loads(parts[0])]  # noqa: S302 - from our own parent
        pending = pending[at:]


def _fill(fd: int, lengths: list[int], pending: bytes, at: int) -> tuple[list[bytearray], int]:
    """Buffers of these lengths: first from what was read already, then straight from the socket, without a copy."""
    parts = []
    for length in lengths:
        part = bytearray(length)
        have = min(length, len(pending) - at)
        part[:have] = pending[at : at + have]
        at += have
        view = memoryview(part)[have:]
        while view:
            got = os.readv(fd, [view])
            if not got:
                raise EOFError
            view = view[got:]
        parts.append(part)
    return parts, at


def send(fd: int, pieces: list[bytes | memoryview]) -> None:
    """Write all pieces, however much the system takes at once."""
    if len(pieces) == 1:
        view = memoryview(pieces[0])
        while view := view[os.write(fd, view) :]:
            pass
        return
    views = [memoryview(piece).cast("B") for piece in pieces if memoryview(piece).nbytes]
    while views:
        sent = os.writev(fd, views[:64])
        while views and sent >= views[0].nbytes:
            sent -= views.pop(0).nbytes
        if views:
            views[0] = views[0][sent:]


class Worker:
    """One worker: see the module's text."""

    def __init__(self, data: int, control: int, page: int) -> None:
        self.data = data
        self.control = control
        self.page: memoryview = memoryview(mmap(page, PAGE)).cast("Q")
        self.functions: dict[int, Any] = {}  # a callable, or the pickle of one that nobody called yet
        self.lock: LockType = allocate_lock()
        self.claimed: int = 0
        self.withdrawn: set[int] = set()
        self.running: bool = False
        self.forked: bool = False
        self.outbox: Any = None  # of worker_streams, where the parent wants to see what is printed
        self.logging: Any = None
        self.astray: Message | None = None  # why it is not in the folder where it should be
        self.wire: Any = allocate_lock()
        os.close(page)
        for fd in (data, control):
            os.set_inheritable(fd, False)
        os.register_at_fork(after_in_child=self._leave_to_parent)
        signal.signal(signal.SIGINT, self._interrupt)

    def _leave_to_parent(self) -> None:
        """In a forked child: the sockets are not its own."""
        self.forked = True
        os.close(self.data)
        os.close(self.control)

    def _interrupt(self, _signum: int, _frame: object) -> None:
        if not self.running:  # between calls it would tear a frame apart
            return
        if self.outbox is not None and self.outbox.sending:
            self.outbox.interrupted = True
        else:
            raise KeyboardInterrupt

    # -- main thread

    def serve(self) -> None:
        """Run what comes until QUIT or the end of the socket."""
        start_new_thread(self._listen, ())
        for messages in receive(self.data):
            for message in messages:
                kind = message[0]
                if kind <= CHUNK:
                    self._call(message)
                elif kind == DEFINE:
                    self.functions[message[1]] = message[2]
                elif kind == FORGET:
                    self.functions.pop(message[1], None)
                elif kind == SETTINGS:
                    self._adopt(message[1])
                elif kind == SETUP:
                    self._setup(message[1])
                else:
                    return

    def _claim(self, number: int) -> bool:
        with self.lock:
            if number in self.withdrawn:
                self.withdrawn.discard(number)
                return False
            self.claimed = number
            self.page[STARTED] = monotonic_ns()
            self.page[CLAIMED] = number
            return True

    def _call(self, message: Message) -> None:
        number = message[1]
        if not self._claim(number):
            return
        began = monotonic_ns()
        try:
            self.running = True
            if self.astray is not None:
                answer: Message = ERROR, self.astray, None
            else:
                answer = self._task(message) if message[0] == TASK else self._chunk(message)
            self.running = False
        except BaseException as error:  # noqa: BLE001 - sys.exit and Ctrl-C of a call end the call, not the worker
            self.running = False
            answer = (ERROR, explain(error, phase="call"), None)
        if self.forked:  # the call forked and both came back: only the original answers
            os._exit(0)
        took = monotonic_ns() - began
        if self.outbox is not None:
            self.outbox.end()
        with self.wire:
            send(self.data, frame((answer[0], number, took, answer[1]), answer[2]))

    def _function(self, number: int) -> Callable[..., Any]:
        function = self.functions[number]
        if type(function) is bytes:
            function = self.functions[number] = pickle.loads(function)  # noqa: S301 - from our own parent
        return function  # type: ignore[no-any-return]

    def _task(self, message: Message) -> Message:
        _, _, number, payload, *buffers = message
        if type(payload) is tuple:
            value = self._function(number)(*payload)
        else:
            try:
                function, args, kwargs = pickle.loads(payload, buffers=buffers[0] if buffers else None)  # noqa: S301
                if function is None:
                    function = self._function(number)
            except Exception as error:  # noqa: BLE001
                return ERROR, explain(error, phase="load"), None
            value = function(*args, **kwargs)
        if type(value) in ATOMS:
            return VALUE, value, None
        return self._answer(PICKLED, value)

    def _answer(self, kind: int, value: object) -> Message:
        try:
            body, buffers = dumps(value)
        except Exception as error:  # noqa: BLE001 - whatever the value's own reducers raise
            return ERROR, explain(error, phase="dump"), None
        return kind, body, buffers

    def _chunk(self, message: Message) -> Message:
        _, _, number, payload, star, *buffers = message
        try:
            items = pickle.loads(payload, buffers=buffers[0] if buffers else None)  # noqa: S301
            function = self._function(number)
        except Exception as error:  # noqa: BLE001
            return ERROR, explain(error, phase="load"), None
        values: list[Any] = []
        try:
            values.extend(starmap(function, items) if star else map(function, items))  # keeps what came before an error
        except BaseException as error:  # noqa: BLE001
            kind, body, apart = self._answer(STOPPED, values)
            return kind, body if kind == ERROR else (body, explain(error, phase="call")), apart
        return self._answer(MANY, values)

    def _adopt(self, settings: dict[str, Any]) -> None:
        """What is as in the parent: only what is new there."""
        if "path" in settings:
            sys.path[:] = settings["path"]
        if "authkey" in settings:
            from multiprocessing.process import current_process  # noqa: PLC0415 - only where the parent has a manager of that package

            current_process().authkey = settings["authkey"]
        if "filters" in settings:
            _streams().set_filters(settings["filters"])
        if "levels" in settings:
            if self.logging is None:
                self.logging = _streams().Logging(self.outbox)
            self.logging.set_levels(*settings["levels"])
        if "place" in settings:
            try:
                _streams().follow(*settings["place"])
                self.astray = None
            except OSError as error:
                self.astray = explain(error, phase="place")

    def _speak(self) -> None:
        """Let the parent see what is printed."""
        streams = _streams()
        outbox = self.outbox = streams.Outbox(
            lambda number, stream, item: send(self.data, frame((OUTPUT, number, 0, (stream, item)))),
            self.data,
            lambda: -1 if self.forked else self.claimed,
        )
        self.wire = outbox.wire
        streams.tee(outbox)

    def _setup(self, options: dict[str, Any]) -> None:
        """Make this interpreter like the parent's, run the initialiser, and say READY or BROKEN."""
        try:
            if options.get("speak"):
                self._speak()
            self._adopt(options)
            for name in options["preload"]:
                __import__(name)
            if options["initializer"]:
                function, args = pickle.loads(options["initializer"])  # noqa: S301
                function(*args)
            answer: Message = (READY, 0, 0, os.getpid())
        except BaseException as error:  # noqa: BLE001
            answer = (BROKEN, 0, 0, explain(error, phase="setup"))
        if self.outbox is not None:
            self.outbox.end()
        with self.wire:
            send(self.data, frame(answer))

    # -- control thread

    def _listen(self) -> None:
        """Answer while the main thread computes; leave at once when the parent is gone."""
        try:
            for kind, payload in receive(self.control):
                reply: object = payload
                if kind == WITHDRAW:
                    with self.lock:
                        reply = [number for number in payload if number > self.claimed]
                        self.withdrawn.update(reply)
                send(self.control, frame((kind, reply)))
        finally:
            if not self.forked:
                os._exit(1)  # the parent is gone: nobody waits for what the main thread is doing


def _streams() -> Any:
    """worker_streams, from the file beside this one."""
    name = "nbprocs_worker_streams"
    if name not in sys.modules:
        from importlib.util import module_from_spec, spec_from_file_location  # noqa: PLC0415 - the bootstrap has loaded it

        spec = spec_from_file_location(name, os.path.join(os.path.dirname(__file__), "worker_streams.py"))  # noqa: PTH118, PTH120 - no pathlib here
        if spec is None or spec.loader is None:
            raise ImportError(name)
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def main(data: int, control: int, page: int) -> None:
    """Serve; called by the bootstrap in nbprocs.pool.python."""
    try:
        Worker(data, control, page).serve()
    except BaseException:  # noqa: BLE001 - a call has closed the socket, say
        sys.excepthook(*sys.exc_info())
        os._exit(1)  # at once: threads and exit handlers of calls may take for ever, and the task waits for this end
