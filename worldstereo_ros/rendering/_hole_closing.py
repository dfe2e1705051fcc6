"""Neighbourhood of the hole closing: pixels by direction, with weights.

The compiled loops embed these values as constants, and numba's cache depends on the file of the loops only: after a
change here, touch `_splat_numba.py`.
"""

from __future__ import annotations

import math

import numpy as np

REACH_PX = 3  # closes cracks of up to five pixels
MIN_AXES = 3  # of four axes that must meet a nearer surface at both ends; at a straight silhouette one axis does


def _sectors() -> list[list[tuple[int, int, int]]]:
    """Returns (dx, dy, weight) for each of eight directions, nearest first; the weight is 12 / distance, rounded."""
    sectors: list[list[tuple[int, int, int]]] = [[] for _ in range(8)]
    window = range(-REACH_PX, REACH_PX + 1)
    for dx, dy in sorted(((x, y) for y in window for x in window), key=lambda d: (math.hypot(*d), d)):
        if (dx, dy) != (0, 0):
            sector = round(math.atan2(dy, dx) / (math.pi / 4)) % 8
            sectors[sector].append((dx, dy, round(12 / math.hypot(dx, dy))))
    return sectors


SECTORS = _sectors()
# The same as one array for the compiled loops: (8, longest direction, 3); unused rows have weight 0.
SECTOR_ARRAY = np.zeros((8, max(len(s) for s in SECTORS), 3), dtype=np.int64)
for _k, _sector in enumerate(SECTORS):
    SECTOR_ARRAY[_k, : len(_sector)] = _sector
