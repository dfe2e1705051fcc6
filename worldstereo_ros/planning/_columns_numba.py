"""Columns of voxels: the floor under a robot, and what stands on it."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled

NO_FLOOR = -32768


@compiled
def flood_floor(surface, start, level, climb, floor, connected):
    """Follows the floor from columns where it is known, over steps and ramps.

    First through columns with a surface within reach of their neighbour's floor; what is left then gets the floor of
    the nearest column, since there the floor was not seen, or something stands on it.

    Args:
        surface: (X, Y, Z) bool, True = a voxel that was seen occupied.
        start: (N, 2) int64 columns to start from.
        level: floor of these columns, index along z.
        climb: voxels by which the floor of two neighbouring columns may differ.
        floor: (X, Y) int16, filled in place: index of the floor.
        connected: (X, Y) bool, filled in place: True = the floor itself was seen there.
    """
    X, Y = surface.shape[:2]
    queue = np.empty((2 * X * Y + len(start), 2), np.int32)
    floor[:] = NO_FLOOR
    connected[:] = False
    first, last = 0, 0
    for n in range(len(start)):
        i, j = start[n, 0], start[n, 1]
        if i < 0 or j < 0 or i >= X or j >= Y or floor[i, j] != NO_FLOOR:
            continue
        found = _top(surface, i, j, level, climb)
        floor[i, j] = level if found < 0 else found
        connected[i, j] = found >= 0
        queue[last, 0], queue[last, 1] = i, j
        last += 1
    for seen in range(2):
        if seen == 1:  # start again from all columns with a floor
            first, last = 0, 0
            for i in range(X):
                for j in range(Y):
                    if floor[i, j] != NO_FLOOR:
                        queue[last, 0], queue[last, 1] = i, j
                        last += 1
        while first < last:
            a, b = queue[first, 0], queue[first, 1]
            first += 1
            for n in range(4):
                i = a + (1 if n == 0 else (-1 if n == 1 else 0))
                j = b + (1 if n == 2 else (-1 if n == 3 else 0))
                if i < 0 or j < 0 or i >= X or j >= Y or floor[i, j] != NO_FLOOR:
                    continue
                found = _top(surface, i, j, floor[a, b], climb)
                if found < 0 and seen == 0:
                    continue
                floor[i, j] = floor[a, b] if found < 0 else found
                connected[i, j] = found >= 0
                queue[last, 0], queue[last, 1] = i, j
                last += 1


@compiled
def _top(surface, i, j, level, climb):
    """Highest surface within `climb` voxels of `level` with nothing on it, as an index along z; -1 if there is none."""
    Z = surface.shape[2]
    for k in range(min(level + climb, Z - 1), max(level - climb, 0) - 1, -1):
        if surface[i, j, k] and (k + 1 >= Z or not surface[i, j, k + 1]):
            return k
    return -1


@compiled
def summarise_columns(odds, hits, free, floor, low, high, seen_free, seen_occupied, hit, clear):
    """Evidence in the space that a robot needs, column by column.

    Args:
        odds: (X, Y, Z) float32 log odds of what a sensor saw, 0 = nothing.
        hits, free: (X, Y, Z) uint8 levels of what a model said; (0, 0, 0) if it said nothing.
        floor: (X, Y) int16 index of the floor; `NO_FLOOR` = none.
        low, high: voxels above the floor, the first and the one after the last of that space.
        seen_free: (X, Y) float32, filled in place: share of voxels that a sensor saw free.
        seen_occupied: (X, Y) bool, filled in place: a sensor saw one occupied.
        hit, clear: (X, Y) float32, filled in place: highest level of `hits`, and mean level of `free`, in 0..1.
    """
    X, Y, Z = odds.shape
    modelled = hits.shape[0] > 0
    for i in range(X):
        for j in range(Y):
            seen_free[i, j] = 0
            seen_occupied[i, j] = False
            hit[i, j] = 0
            clear[i, j] = 0
            if floor[i, j] == NO_FLOOR:
                continue
            count, total, highest = 0, 0.0, 0
            first, last = max(floor[i, j] + low, 0), min(floor[i, j] + high, Z)
            for k in range(first, last):
                if odds[i, j, k] > 0:
                    seen_occupied[i, j] = True
                elif odds[i, j, k] < 0:
                    count += 1
                if modelled:
                    highest = max(highest, int(hits[i, j, k]))
                    total += free[i, j, k]
            if last <= first:
                continue
            seen_free[i, j] = count / (last - first)
            hit[i, j] = highest / 255
            clear[i, j] = total / (255 * (last - first))
