"""What a camera that turns once sees from places of a grid, as lists of cells."""

from __future__ import annotations

import math

import numpy as np

from worldstereo_ros.planning._visibility_numba import MIN_TRANSMITTANCE
from worldstereo_ros.utils.jit import compiled


@compiled
def trace_rays(reach, rays):
    """The cells on rays all around, from the place on.

    Returns:
        (rays, L, 2) int64 offsets in rows and columns, and (rays,) int64 how many there are on each ray.
    """
    offsets = np.zeros((rays, 2 * reach + 1, 2), np.int64)
    counts = np.zeros(rays, np.int64)
    for n in range(rays):
        angle = 2 * math.pi * (n + 0.5) / rays
        dx, dy = 0.5 * math.cos(angle), 0.5 * math.sin(angle)
        for step in range(2 * reach + 1):
            i, j = math.floor(step * dy + 0.5), math.floor(step * dx + 0.5)
            last = counts[n] - 1
            if last >= 0 and offsets[n, last, 0] == i and offsets[n, last, 1] == j:
                continue
            offsets[n, counts[n], 0], offsets[n, counts[n], 1] = i, j
            counts[n] += 1
    return offsets, counts


@compiled
def see_around(opaque, worth, rows, columns, reach, rays, starts, cells, values):
    """Lists the cells of some worth that are seen from each place, and the probability with which they are.

    Args:
        opaque: (Y, X) float32 probability that a ray through the cell ends there.
        worth: (Y, X) float32; cells where it is 0 are left out.
        rows, columns: (N,) int64 cells of the places.
        reach: cells up to which the camera sees. rays: number of rays all around.
        starts: (N + 1,) int64, filled: place n has the entries from starts[n] up to starts[n + 1].
        cells: (C,) int32, filled with flat indices of cells. values: (C,) float32, filled with probabilities.
    """
    Y, X = opaque.shape
    offsets, counts = trace_rays(reach, rays)
    window = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    total = 0
    for place in range(len(rows)):
        row, column = rows[place], columns[place]
        starts[place] = total
        window[:] = 0
        for n in range(rays):
            passed = np.float32(1)
            for step in range(counts[n]):
                i, j = offsets[n, step, 0], offsets[n, step, 1]
                if row + i < 0 or column + j < 0 or row + i >= Y or column + j >= X:
                    break
                if passed > window[i + reach, j + reach]:
                    window[i + reach, j + reach] = passed
                if step > 1:  # what the robot itself stands in hides nothing
                    passed *= np.float32(1) - opaque[row + i, column + j]
                if passed < MIN_TRANSMITTANCE:
                    break
        for i in range(max(0, row - reach), min(Y, row + reach + 1)):
            for j in range(max(0, column - reach), min(X, column + reach + 1)):
                if worth[i, j] > 0 and window[i - row + reach, j - column + reach] > 0:
                    cells[total] = i * X + j
                    values[total] = window[i - row + reach, j - column + reach]
                    total += 1
    starts[len(rows)] = total


@compiled
def sum_gains(starts, cells, values, worth, covered, gains):
    """Sums what each place shows beyond what is covered already.

    Args:
        starts, cells, values: as `see_around` fills them.
        worth: (C,) float32 worth of each cell. covered: (C,) float32 probability with which it is seen anyhow.
        gains: (N,) float64, filled.
    """
    for place in range(len(gains)):
        total = 0.0
        for n in range(starts[place], starts[place + 1]):
            more = values[n] - covered[cells[n]]
            if more > 0:
                total += more * worth[cells[n]]
        gains[place] = total


@compiled
def cover(cells, values, covered):
    """Raises `covered` (C,) to the probabilities `values` of some cells."""
    for n in range(len(cells)):
        if values[n] > covered[cells[n]]:
            covered[cells[n]] = values[n]
