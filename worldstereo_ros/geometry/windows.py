"""Windows of images: rectangles of valid pixels."""

from __future__ import annotations

import numpy as np


def largest_window(valid: np.ndarray) -> tuple[slice, slice]:
    """Finds the largest rectangle of valid pixels, by the histogram of the valid pixels above each row.

    Args:
        valid: (H, W) bool.

    Returns:
        Its rows and columns; empty slices if no pixel is valid.
    """
    if valid.all():
        return slice(0, valid.shape[0]), slice(0, valid.shape[1])
    best, found = 0, (slice(0, 0), slice(0, 0))
    heights = np.zeros(valid.shape[1], dtype=np.int64)
    for row in range(valid.shape[0]):
        heights = np.where(valid[row], heights + 1, 0)
        stack: list[tuple[int, int]] = []  # (first column, height) of the bars that go on, heights ascending
        for column, height in enumerate([*heights.tolist(), 0]):
            first = column
            while stack and stack[-1][1] >= height:
                first, tall = stack.pop()
                if tall * (column - first) > best:
                    best = tall * (column - first)
                    found = slice(row + 1 - tall, row + 1), slice(first, column)
            stack.append((first, height))
    return found
