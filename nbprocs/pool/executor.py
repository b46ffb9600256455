"""The pool as a ``concurrent.futures.Executor``, for code that expects one: joblib-like libraries, ``loop.run_in_executor``, threads."""

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from nbprocs import checks
from nbprocs.engine.home import Home
from nbprocs.errors import Closed, CommunicationError
from nbprocs.pool.task import BlockableFuture

__all__ = ["ExecutorBackend", "PoolExecutor"]

T = TypeVar("T")
_CHUNKED = Callable[[BlockableFuture[Any], list[Any]], None]


class ExecutorBackend(Protocol):
    """What the executor needs of the pool; a fake of it serves the tests."""

    @property
    def home(self) -> Home:
        """Where the results come in."""

    @property
    def workers(self) -> int:
        """How many there may be."""

    def future(self) -> BlockableFuture[Any]:
        """A new, pending future."""

    def call(self, future: BlockableFuture[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Submit one call. Raises Closed."""

    def chunks(self, function: Callable[..., Any], *, star: bool) -> tuple[_CHUNKED, Callable[[], object]]:
        """(submit one chunk, to be called when no more come). A chunk's result is (values, error)."""


class PoolExecutor(concurrent.futures.Executor):
    """Submits to a pool from any thread. ``shutdown`` ends this executor, not the pool: that is its owner's.

    Futures are the standard library's. What is not as with its ProcessPoolExecutor:

    - waiting for one on the pool's own thread raises CommunicationError, where the standard library would hang for ever;
    - a worker that dies fails only the call that it ran (ProcessCrashed, or ProcessFailed); the executor is never broken;
    - what does not pickle, call or result, is a CommunicationError that says why (there: PicklingError, TypeError or AttributeError), and
      what would end an interpreter or a loop, such as SystemExit, a RemoteError;
    - nobody waits for calls at the interpreter's end: they end with their workers. Leave the ``with`` block, or call ``shutdown()``,
      before; both work in ``atexit``, too. Later, and in a forked child, ``submit`` raises RuntimeError and waiting Closed.

    >>> pool = ProcessPool(background=True)
    >>> with pool.executor() as executor:
    ...     executor.submit(pow, 2, 5).result()
    32
    >>> await pool.aclose()
    """

    def __init__(self, backend: ExecutorBackend, *, owner: object = None) -> None:
        self._backend = backend
        self._owner = owner  # the pool ends when nobody holds it
        self._lock = threading.Lock()
        self._pending: set[BlockableFuture[Any]] = set()
        self._shut = False

    @property
    def _max_workers(self) -> int:
        """As the standard library's executors have it, for those who look (dask, adaptive)."""
        return self._backend.workers

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run ``fn(*args, **kwargs)`` in a worker. Raises RuntimeError after shutdown, or when the pool is closed."""
        checks.function("fn", fn)
        future = self._register()
        self._try(future, lambda: self._backend.call(future, fn, args, kwargs))
        return future

    def _register(self) -> BlockableFuture[Any]:
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future = self._backend.future()
            self._pending.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: "concurrent.futures.Future[Any]") -> None:
        self._pending.discard(future)

    def _try(self, future: BlockableFuture[Any], act: Callable[[], None]) -> None:
        try:
            act()
        except Closed as error:
            self._pending.discard(future)
            raise RuntimeError("cannot schedule new futures after shutdown") from error
        except BaseException:  # interrupted while it was pickled: nobody will ever end it
            future.cancel()
            self._pending.discard(future)
            raise

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1, **options: Any
    ) -> Iterator[T]:
        """As ``Executor.map``: everything is submitted at once, results come in order, ``TimeoutError`` after ``timeout`` seconds from now.

        ``chunksize`` items travel together. ``buffersize`` (Python 3.14) limits how many items are submitted but not yet yielded.
        """
        buffersize = options.pop("buffersize", None)
        if options:
            raise TypeError(f"map() got unexpected keyword arguments {sorted(options)}")
        checks.function("fn", fn)
        checks.whole("chunksize", chunksize, least=1)
        if buffersize is not None:
            checks.whole("buffersize", buffersize, least=1)
        end = None if timeout is None else time.monotonic() + checks.number("timeout", timeout, most=checks.LONGEST)
        star = len(iterables) != 1
        items = zip(*iterables) if star else iter(iterables[0])  # noqa: B905 - Executor.map stops at the shortest, too
        submit, finish = self._backend.chunks(fn, star=star)

        def send() -> BlockableFuture[Any] | None:
            chunk = list(itertools.islice(items, chunksize))
            if not chunk:
                return None
            future = self._register()
            self._try(future, lambda: submit(future, chunk))
            return future

        limit = None if buffersize is None else max(1, -(-buffersize // chunksize))
        futures = list(itertools.islice(iter(send, None), limit))
        return _results(futures, send if limit else None, end, finish)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """Take no more calls; wait for those under way unless ``wait=False``. Idempotent. The pool goes on.

        Raises CommunicationError on the pool's own thread while calls are under way: waiting there would hang for ever.
        """
        with self._lock:
            self._shut = True
            pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait and (left := [future for future in pending if not future.done()]):
            if self._backend.home.thread_id == threading.get_ident():
                raise CommunicationError(
                    f"waiting here for {len(left)} calls would stop the event loop that their results must come through",
                    hint="make the pool with background=True, or await the results first (asyncio.wrap_future)",
                )
            concurrent.futures.wait(left)


def _results(
    futures: list[BlockableFuture[Any]],
    send: Callable[[], BlockableFuture[Any] | None] | None,
    end: float | None,
    finish: Callable[[], object],
) -> Iterator[Any]:
    """The values in order; what is left is cancelled when the iterator is closed."""
    futures.reverse()  # popped from the end, so that no result is held longer than needed
    try:
        while futures:
            future = futures.pop()
            try:
                values, error = future.result(None if end is None else end - time.monotonic())
            finally:
                future.cancel()
            if send is not None and (following := send()) is not None:
                futures.insert(0, following)
            values.reverse()  # taken out one by one: no result is held once it was handed over
            while values:
                yield values.pop()
            if error is not None:
                raise error
    finally:
        for future in futures:
            future.cancel()
        finish()
