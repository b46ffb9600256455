"""``pool.map``: many calls of one function, in chunks that suit their length, no faster than the results are taken."""

import asyncio
import itertools
import operator
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypedDict

from nbprocs.config import Unset
from nbprocs.engine.home import Home
from nbprocs.model import TaskPriority
from nbprocs.policy import RetryPolicy
from nbprocs.pool.task import PoolTaskHandle

__all__ = ["MapOptions", "Sizer", "Submit", "chunks_of", "length_of", "mapped", "progress_bar"]

_AIM = 0.03  # seconds of work in a chunk: long beside its overhead, short enough to share out evenly
_GROWTH = 8  # a chunk is at most so many times larger than the one before
_LARGEST = 50_000  # items

Submit = Callable[[Sequence[Any], int], PoolTaskHandle[tuple[list[Any], BaseException | None]]]


class MapOptions(TypedDict, total=False):
    """The options of ``ProcessPool.map``, which explains them."""

    ordered: bool
    chunksize: int | None
    priority: TaskPriority
    timeout: float | timedelta | Unset | None
    retries: RetryPolicy | int | None
    progress: bool | str
    notify: object


class Sizer:
    """How many items the next chunk should have. Pure.

    >>> sizer = Sizer(None, total=None, workers=2)
    >>> sizer.size
    1
    >>> sizer.note(1, 0.000_001); sizer.size
    8
    """

    __slots__ = ("_fixed", "_most", "size")

    def __init__(self, fixed: int | None, *, total: int | None, workers: int) -> None:
        if fixed is not None and fixed < 1:
            raise ValueError(f"chunksize must be 1 or more, not {fixed}")
        self._fixed = fixed is not None
        # Of a known number every worker should get several chunks, or one of them works alone in the end.
        self._most = _LARGEST if total is None else max(1, min(_LARGEST, -(-total // (4 * workers))))
        self.size: int = fixed or 1

    def note(self, items: int, seconds: float) -> None:
        """A chunk of so many items took this long in its worker."""
        if not self._fixed and items:
            right = int(_AIM * items / max(seconds, 1e-9))
            self.size = max(1, min(right, self.size * _GROWTH, self._most))


def chunks_of(items: Iterable[Any], sizer: Sizer) -> Iterator[tuple[int, Sequence[Any]]]:
    """(index of the first, items) for each chunk, each as long as the sizer says when it is asked for.

    A chunk of a range is a range: a few bytes, however many numbers.
    """
    start = 0
    if type(items) is range:
        while start < len(items):
            part = items[start : start + sizer.size]
            yield start, part
            start += len(part)
        return
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, sizer.size)):
        yield start, chunk
        start += len(chunk)


def length_of(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """The number of items, where it is known beforehand."""
    try:
        return min(len(items) for items in iterables)  # type: ignore[arg-type]
    except TypeError:
        known = [operator.length_hint(items, -1) for items in iterables]
        return min(known) if all(length >= 0 for length in known) else None


def progress_bar(progress: bool | str, *, title: str, total: int | None) -> Callable[[], Any]:  # noqa: FBT001 - as in map()
    """What makes the tqdm bar when the iteration begins; it makes None where no bar is wanted."""

    def make() -> Any:
        if not progress:
            return None
        from tqdm.auto import tqdm  # noqa: PLC0415 - `import nbprocs` stays light

        return tqdm(total=total, desc=progress if isinstance(progress, str) else title)

    return make


async def mapped(
    submit: Submit,
    items: Iterable[Any],
    *,
    ordered: bool,
    sizer: Sizer,
    window: int,
    bar: Callable[[], Any],
    finish: Callable[[], object],
) -> AsyncGenerator[Any, None]:
    """Submit chunks while fewer than ``window`` are on their way, and yield the results. What is left is cancelled at the end.

    All in one generator: a second one around it would cost as much for each item as this one does.
    """
    chunks = chunks_of(items, sizer)
    flying: deque[PoolTaskHandle[tuple[list[Any], BaseException | None]]] = deque()
    shown = bar()
    try:
        with Home.current():
            while True:
                while len(flying) < window and (following := next(chunks, None)) is not None:
                    flying.append(submit(following[1], following[0]))
                if not flying:
                    return
                handle = await _next(flying, ordered=ordered)
                values, error = await handle
                sizer.note(len(values), handle.seconds)
                del handle
                if shown is not None:
                    shown.update(len(values))
                values.reverse()  # taken out one by one: no result is held once it was handed over
                pop = values.pop
                while values:
                    yield pop()
                if error is not None:
                    raise error
                await asyncio.sleep(0)  # a consumer that never waits must not keep the answers from being read
    finally:
        for handle in flying:
            handle.cancel()
        if shown is not None:
            shown.close()
        finish()


async def _next(flying: "deque[PoolTaskHandle[Any]]", *, ordered: bool) -> PoolTaskHandle[Any]:
    """Take the next one out: the first, or whichever has ended."""
    if ordered:
        return flying.popleft()
    done = next((handle for handle in flying if handle.done()), None)
    if done is None:
        ended, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
        done = next(handle for handle in flying if handle in ended)
    flying.remove(done)
    return done
