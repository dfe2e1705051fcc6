"""The memory that a stored view takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldstereo_ros.geometry.views import View

ARRAYS = ("image", "depth", "observed", "estimated", "confidence", "depth_confidence")


def view_bytes(view: View) -> int:
    """Bytes of the arrays of a view."""
    return sum(array.nbytes for array in (getattr(view, name) for name in ARRAYS) if array is not None)


def without_shared_buffers(view: View) -> View:
    """Returns the view with copies of the arrays that are parts of larger buffers, which they would keep alive."""
    copies = {}
    for name in ARRAYS:
        array = getattr(view, name)
        if array is not None and _held_bytes(array) > array.nbytes:
            copies[name] = array.copy()
    return replace(view, **copies) if copies else view


def _held_bytes(array: np.ndarray) -> int:
    """Bytes of the buffer that an array keeps alive."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    if base.base is None:
        return base.nbytes
    try:
        return memoryview(base.base).nbytes
    except TypeError:  # no buffer: a tensor, for instance, whose size is not known here
        return base.nbytes
