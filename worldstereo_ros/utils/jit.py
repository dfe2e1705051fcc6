"""Compilation and threading of loops that numpy and torch cannot express efficiently."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compiles a loop with `numba.njit`, releases the GIL in it, and caches the machine code on disk.

    Compiled functions are single-threaded; use `run_in_threads` to run them on several cores. Numba's own thread pool
    (`parallel=True`) may abort the process when two Python threads enter it at the same time, as a node's threads can.
    """
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no writable cache folder (a read-only installation)
        return numba.njit(nogil=True, error_model="numpy")(function)


def run_in_threads(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> None:
    """Runs `function(*arguments)` for each argument tuple in `calls`, one thread each, and waits for all of them.

    The first call runs in the calling thread. No thread outlives the function, so that the process may fork afterwards.

    Args:
        function: releases the GIL (see `compiled`); return values are discarded.
        calls: one tuple of arguments per call, at least one.

    Raises:
        Exception: what the first failed call raised.
    """
    if len(calls) == 1:
        function(*calls[0])
        return
    with ThreadPoolExecutor(len(calls) - 1) as pool:
        futures = [pool.submit(function, *arguments) for arguments in calls[1:]]
        function(*calls[0])
        for future in futures:
            future.result()


def split_range(count: int, parts: int) -> list[tuple[int, int]]:
    """Splits `range(count)` into contiguous (start, stop) ranges for `run_in_threads`.

    Returns:
        At most `parts` non-empty ranges of nearly equal length; the one range (0, 0) if `count` is 0.
    """
    parts = max(1, min(parts, count))
    edges = [count * k // parts for k in range(parts + 1)]
    return list(itertools.pairwise(edges))
