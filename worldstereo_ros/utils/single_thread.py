"""Runs a block on one thread of OpenMP, for networks of many small operations.

Threads of OpenMP meet at the end of each operation. Where other processes use the cores, one of them waits for its turn
each time, and a thousand small operations take seconds. The number is that of the calling thread alone: other
threads of the process, and `torch.get_num_threads` of them, stay as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_NO_LOAD = 4  # RTLD_NOLOAD of Linux: only a library that is loaded already


@contextmanager
def single_thread() -> Iterator[None]:
    """Inside the block, operations of torch that the calling thread begins use one thread on a CPU.

    Where the library that torch uses is not found, nothing changes.
    """
    import torch

    library = _openmp(str(Path(torch.__file__).parent))
    before = torch.get_num_threads()  # which also lets torch set up the calling thread, once
    if library is None or before == 1:
        yield
        return
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


@cache
def _openmp(folder: str) -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded."""
    for file in sorted((Path(folder) / "lib").glob("libgomp*.so*")):
        try:
            return ctypes.CDLL(str(file), mode=ctypes.RTLD_LOCAL | _NO_LOAD)
        except OSError:  # another one is in use
            continue
    return None
