"""Results in order, computed ahead by several threads while the earlier ones are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def compute_ahead(function: Callable[[Item, int], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yields the result for each item, in order.

    The first one is waited for by someone, so all threads work on it. Then every thread computes a result of its own,
    so that the parts of it that have only one thread do not leave the others idle. With one thread, each result is
    computed when it is asked for. No thread outlives the iterator.

    Args:
        function: called as function(item, number of threads that it may use).
        items: taken by the calling thread, in order, and at most `threads` ahead.
        threads: number of threads.

    Raises:
        Exception: what the function raised, after the results before it; or what the items raised, at once.
    """
    iterator = iter(items)
    if threads <= 1:
        for item in iterator:
            yield function(item, 1)
        return
    for item in iterator:
        yield function(item, threads)
        break
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in iterator:
                waiting.append(pool.submit(function, item, 1))
                if len(waiting) >= threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
