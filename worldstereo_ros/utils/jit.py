"""One way to compile the loops that numpy and torch cannot express well."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a loop with numba, without the interpreter lock, kept on disk for the next process.

    Parallelism is left to `run_in_threads`: numba's own thread pool may abort the process when two Python threads
    enter it at once, and a robot's node has several threads.
    """
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that a cache could be written to (a read-only installation)
        return numba.njit(nogil=True, error_model="numpy")(function)


def run_in_threads(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> None:
    """Calls `function(*arguments)` for every entry of `calls`, side by side; the first runs in the calling thread.

    The threads live for this call only, so that a process may fork between two calls.
    """
    if len(calls) == 1:
        function(*calls[0])
        return
    with ThreadPoolExecutor(len(calls) - 1) as pool:
        others = [pool.submit(function, *arguments) for arguments in calls[1:]]
        function(*calls[0])
        for other in others:
            other.result()


def split_range(count: int, threads: int) -> list[tuple[int, int]]:
    """Splits `range(count)` into at most `threads` contiguous, non-empty (start, stop) parts (one part if empty)."""
    threads = max(1, min(threads, count))
    edges = [count * k // threads for k in range(threads + 1)]
    return list(itertools.pairwise(edges))
