"""Completions of a grid: what may lie where nothing was seen, drawn from the walls that were.

A stand-in for imagined views where those take too long, as at every step of an explorer. Each hypothesis (each random
seed) continues the observed walls along their lines until they meet another one, places the sides of the place that
were not seen yet, and takes what they enclose as free, with objects strewn in. Hypotheses differ in how far walls go
on, where unseen sides are, and where objects stand; their mean is calibrated on worlds with ground truth
(`scripts/fit_occupancy.py`).

Walls are looked for along two directions at right angles, those along which the observed obstacles line up best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from worldstereo_ros.planning.cells import CellState, load_calibration
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import compiled

MIN_WALL_M = 0.6  # of aligned obstacles that count as a wall
MAX_GAP_M = 1.2  # in a wall, as of a door; it may be closed
MAX_WALL_M, MEAN_WALL_M = 8.0, 3.0  # by which a wall continues, at most and on average
MEAN_SIDE_M = 1.5  # average distance from what was seen to a side that was not
OBJECT_SHARE, OBJECT_M = 0.12, 0.6  # of the floor that objects cover, and their size
ANGLES = 30  # directions of walls that are tried, over 90 degrees
MAX_HYPOTHESES = 32
MIN_SHARE = 0.02  # shares of completions are kept from 0 and 1


def wall_angle(grid: OccupancyGrid) -> float:
    """Direction of the walls in grid axes, radians in -pi/4..pi/4: that along which most obstacles line up."""
    rows, columns = np.nonzero(grid.state == CellState.OBSERVED_OCCUPIED)
    if len(rows) < 10:
        return 0.0
    angles = (np.arange(ANGLES) - ANGLES // 2) * (0.5 * np.pi / ANGLES)
    best, chosen = -1.0, 0.0
    for angle in sorted(angles, key=abs):  # of equally good directions that nearest to the axes
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle)
        score = sum(float((np.bincount(np.rint(v - v.min()).astype(np.int64)) ** 2.0).sum()) for v in (along, across))
        if score > 1.02 * best:
            best, chosen = score, float(angle)
    return chosen


def complete(grid: OccupancyGrid, seeds: Sequence[int] = range(3)) -> OccupancyGrid:
    """The grid with one hypothesis for each random seed; observed and estimated cells are unchanged.

    Args:
        grid: what is known. Hypotheses that it has are replaced.
        seeds: random seeds, different ones. The same seed gives the same completion.

    Raises:
        InputError: there is no seed, one is given twice, or there are more than `MAX_HYPOTHESES`.
    """
    return grid.with_hypotheses(_calibrated(drawn_completions(grid, seeds)))


def complete_unknown(grid: OccupancyGrid, seeds: Sequence[int] = range(3)) -> OccupancyGrid:
    """The same as `complete`, but cells that the grid's own hypotheses imagine keep what those say, in all of them."""
    completed = complete(grid, seeds)
    if not grid.imagined.any():
        return completed
    each = np.where(completed.state == CellState.UNKNOWN, np.nan, completed.hypotheses)
    return completed.with_hypotheses(np.where(grid.imagined, grid.occupied, each))


def drawn_completions(grid: OccupancyGrid, seeds: Sequence[int]) -> np.ndarray:
    """(K, Y, X) float32 completions before they are calibrated: 1 occupied, 0 free, NaN nothing is said."""
    if not 1 <= len(seeds) <= MAX_HYPOTHESES or len(set(seeds)) != len(seeds):
        raise InputError(f"The seeds are {list(seeds)}; 1 to {MAX_HYPOTHESES} different numbers were expected.")
    occupied, free = grid.state == CellState.OBSERVED_OCCUPIED, grid.state == CellState.OBSERVED_FREE
    layers = _Layers(occupied, free, wall_angle(grid))
    return np.stack([_draw(layers, grid.resolution, int(seed)) for seed in seeds])


def _calibrated(drawn: np.ndarray) -> np.ndarray:
    """P(occupied) of each hypothesis, so that their mean is calibrated; NaN where less than half say anything.

    Args:
        drawn: (K, Y, X) float32: 1 occupied, 0 free, NaN nothing.
    """
    told = ~np.isnan(drawn)
    count = told.sum(axis=0)
    share = np.clip(np.where(told, drawn, 0).sum(axis=0) / np.maximum(count, 1), MIN_SHARE, 1 - MIN_SHARE)
    offset, slope = load_calibration().completed
    mean = 1 / (1 + np.exp(-(offset + slope * np.log(share / (1 - share)))))
    # Each hypothesis keeps its side: the odds of all are moved by the same factor as those of their mean.
    spread = np.minimum(mean, 1 - mean)
    each = np.where(drawn > 0.5, mean + (1 - share) * spread, mean - share * spread)
    return np.where(told & (count * 2 >= len(drawn)), np.clip(each, 0, 1), np.nan).astype(np.float32)


class _Layers:
    """The grid turned so that walls run along its axes, and back."""

    def __init__(self, occupied: np.ndarray, free: np.ndarray, angle: float) -> None:
        self.angle, self.shape = angle, occupied.shape
        self.occupied, self.free = self._turned(occupied), self._turned(free)

    def _turned(self, mask: np.ndarray) -> np.ndarray:
        if self.angle == 0:
            return mask
        return ndimage.rotate(mask.astype(np.float32), np.degrees(self.angle), order=1, reshape=True) > 0.4

    def back(self, values: np.ndarray) -> np.ndarray:
        """Values of the turned grid on the grid; NaN stays NaN."""
        if self.angle == 0:
            return values
        turned = ndimage.rotate(values, -np.degrees(self.angle), order=0, reshape=True, cval=np.nan)
        top, left = ((np.array(turned.shape) - self.shape) // 2).tolist()
        return turned[top : top + self.shape[0], left : left + self.shape[1]]


def _draw(layers: _Layers, resolution: float, seed: int) -> np.ndarray:
    """One completion (Y, X) float32: 1 occupied, 0 free, NaN nothing; on the cells of the grid."""
    rng = np.random.default_rng(seed)
    occupied, free = layers.occupied, layers.free
    walls = np.zeros(occupied.shape, bool)
    reach = MAX_WALL_M / resolution
    for transposed in (False, True):
        a, b = (occupied.T, free.T) if transposed else (occupied, free)
        out = np.zeros(a.shape, bool)
        lengths = np.minimum(rng.exponential(MEAN_WALL_M / resolution, (a.shape[0], 2)), reach)
        _extend(a, b, lengths, round(MIN_WALL_M / resolution), round(MAX_GAP_M / resolution), out)
        walls |= out.T if transposed else out
    if free.any():
        _close(occupied, free, walls, rng, resolution)
    barrier = occupied | walls
    # What a walk from the free cells reaches without crossing a wall is inside. Thin walls stop it: four neighbours.
    inside, _ = ndimage.label(~barrier)
    reached = np.isin(inside, np.unique(inside[free & ~barrier])) & (inside > 0)
    within = reached & (ndimage.distance_transform_edt(~free) * resolution <= MAX_WALL_M)
    objects = _strew(within & ~free, rng, resolution)
    drawn = np.full(occupied.shape, np.nan, np.float32)
    drawn[within] = 0
    drawn[(within & objects) | walls] = 1
    return layers.back(drawn)


@compiled
def _extend(occupied, free, lengths, min_wall, max_gap, out):
    """Continues runs of obstacles along each row (R, C) into what was not seen.

    Args:
        occupied, free: (R, C) bool, as seen.
        lengths: (R, 2) cells by which the runs of each row continue to either side, at most.
        min_wall: cells of a run that counts as a wall. max_gap: cells of a gap in it.
        out: (R, C) bool, filled: True = continued wall, where nothing was seen.
    """
    R, C = occupied.shape
    for row in range(R):
        start = 0
        while start < C:
            if not occupied[row, start]:
                start += 1
                continue
            end, count, last = start, 0, start
            while end < C and not free[row, end] and end - last <= max_gap:
                if occupied[row, end]:
                    count += 1
                    last = end
                end += 1
            if count >= min_wall:
                for column in range(start, last):
                    if not occupied[row, column]:
                        out[row, column] = True
                for side in range(2):
                    step = 1 if side == 1 else -1
                    column = (last if side == 1 else start) + step
                    left = lengths[row, side]
                    while 0 <= column < C and left >= 1 and not free[row, column] and not occupied[row, column]:
                        out[row, column] = True
                        column += step
                        left -= 1
            start = last + 1


def _close(
    occupied: np.ndarray, free: np.ndarray, walls: np.ndarray, rng: np.random.Generator, resolution: float
) -> None:
    """Adds the sides of the place that were not seen, as straight walls beyond what is free; changes `walls`."""
    rows, columns = np.nonzero(free)
    low = np.array([rows.min(), columns.min()])
    high = np.array([rows.max(), columns.max()])
    # Obstacles that bound the free cells count as sides where they are as long as a wall and lie outermost.
    for axis in (0, 1):
        counts = occupied.sum(axis=1 - axis)
        is_wall = np.flatnonzero(counts >= round(MIN_WALL_M / resolution))
        for side in (0, 1):
            edge = high[axis] if side else low[axis]
            beyond = is_wall[is_wall >= edge - 1] if side else is_wall[is_wall <= edge + 1]
            if len(beyond):
                place = int(beyond.min() if side else beyond.max())
            else:
                gap = int(rng.exponential(MEAN_SIDE_M / resolution)) + 1
                place = int(edge + gap) if side else int(edge - gap)
            if side:
                high[axis] = place
            else:
                low[axis] = place
    shape = np.array(occupied.shape)
    unseen = ~occupied & ~free
    for axis in (0, 1):
        other = 1 - axis
        a, b = max(int(low[other]), 0), min(int(high[other]) + 1, int(shape[other]))
        for place in (int(low[axis]), int(high[axis])):
            if not 0 <= place < shape[axis]:
                continue
            line = (place, slice(a, b)) if axis == 0 else (slice(a, b), place)
            walls[line] |= unseen[line]


def _strew(inside: np.ndarray, rng: np.random.Generator, resolution: float) -> np.ndarray:
    """(Y, X) bool: square objects at random places that cover about `OBJECT_SHARE` of `inside`."""
    size = max(1, round(OBJECT_M / resolution))
    corners = rng.random(inside.shape) < OBJECT_SHARE / size**2
    return ndimage.binary_dilation(corners & inside, np.ones((size, size), bool)) & inside
