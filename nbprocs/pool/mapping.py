"""``pool.map``: many calls of one function, in chunks that suit their length, no faster than the results are taken."""

import asyncio
import itertools
import operator
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Any

from nbprocs.pool.task import TaskHandle

__all__ = ["Sizer", "Submit", "chunks_of", "length_of", "mapped"]

_AIM = 0.03  # seconds of work in a chunk: long beside its overhead, short enough to share out evenly
_GROWTH = 8  # a chunk is at most so many times larger than the one before
_LARGEST = 50_000  # items

Submit = Callable[[list[Any], int], TaskHandle[tuple[list[Any], BaseException | None]]]


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
        self.size = fixed or 1

    def note(self, items: int, seconds: float) -> None:
        """A chunk of so many items took this long in its worker."""
        if not self._fixed and items:
            right = int(_AIM * items / max(seconds, 1e-9))
            self.size = max(1, min(right, self.size * _GROWTH, self._most))


def chunks_of(items: Iterator[Any], sizer: Sizer) -> Iterator[tuple[int, list[Any]]]:
    """(index of the first, items) for each chunk, each as long as the sizer says when it is asked for."""
    start = 0
    while chunk := list(itertools.islice(items, sizer.size)):
        yield start, chunk
        start += len(chunk)


def length_of(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """The number of items, where it is known beforehand."""
    try:
        return min(len(items) for items in iterables)  # type: ignore[arg-type]
    except TypeError:
        known = [operator.length_hint(items, -1) for items in iterables]
        return min(known) if all(length >= 0 for length in known) else None


async def mapped(submit: Submit, items: Iterator[Any], *, ordered: bool, sizer: Sizer, window: int, bar: Any) -> AsyncGenerator[Any, None]:
    """Submit chunks while fewer than ``window`` are on their way, and yield the results. What is left is cancelled at the end."""
    chunks = chunks_of(items, sizer)
    flying: deque[TaskHandle[tuple[list[Any], BaseException | None]]] = deque()
    more = True
    try:
        while more or flying:
            while more and len(flying) < window:
                following = next(chunks, None)
                if following is None:
                    more = False
                else:
                    flying.append(submit(following[1], following[0]))
            if not flying:
                break
            handle = await _next(flying, ordered=ordered)
            values, error = await handle
            sizer.note(len(values), handle.seconds)
            if bar is not None:
                bar.update(len(values))
            for value in values:
                yield value
            if error is not None:
                raise error
            await asyncio.sleep(0)  # a consumer that never waits must not keep the answers from being read
    finally:
        for handle in flying:
            handle.cancel()
        if bar is not None:
            bar.close()


async def _next(flying: "deque[TaskHandle[Any]]", *, ordered: bool) -> TaskHandle[Any]:
    """Take the next one out: the first, or whichever has ended."""
    if ordered:
        return flying.popleft()
    done = next((handle for handle in flying if handle.done()), None)
    if done is None:
        ended, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
        done = next(handle for handle in flying if handle in ended)
    flying.remove(done)
    return done
