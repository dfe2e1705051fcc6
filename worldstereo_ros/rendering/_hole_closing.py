"""The neighbourhood that closing looks at: which pixels lie in which direction, and how much each counts.

The compiled loops hold these numbers as constants, and numba's cache watches only the file of the loops: after a change
here, touch `_splat_numba.py`.
"""

from __future__ import annotations

import math

import numpy as np

REACH = 3  # pixels: cracks of up to five pixels have both sides in reach
PAIRS = 3  # of four opposite directions must find a nearer surface; along a straight silhouette one pair does


def _sectors() -> list[list[tuple[int, int, int]]]:
    """(dx, dy, weight) by eight directions, the nearest first; the weight is 12 / distance, rounded."""
    sectors: list[list[tuple[int, int, int]]] = [[] for _ in range(8)]
    window = range(-REACH, REACH + 1)
    for dx, dy in sorted(((x, y) for y in window for x in window), key=lambda d: (math.hypot(*d), d)):
        if (dx, dy) != (0, 0):
            sector = round(math.atan2(dy, dx) / (math.pi / 4)) % 8
            sectors[sector].append((dx, dy, round(12 / math.hypot(dx, dy))))
    return sectors


SECTORS = _sectors()
# The same as one array of the compiled loops: (8, longest, 3), unused rows have weight 0.
SECTOR_ARRAY = np.zeros((8, max(len(s) for s in SECTORS), 3), dtype=np.int64)
for _k, _sector in enumerate(SECTORS):
    SECTOR_ARRAY[_k, : len(_sector)] = _sector
