"""A tour over viewpoints that shows what is expected to be free, at little way for what it shows.

Places are inserted one by one where they cost the least way for the area that they add, until the tour shows as much as
is wanted (a greedy solution of the prize-collecting travelling salesman problem); the order is then improved by 2-opt.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import ndimage
from scipy.sparse import csgraph

from worldstereo_ros.planning import _viewpoints_numba
from worldstereo_ros.planning.travel import TravelField, travel_graph

RAYS_A_CELL = 1.0  # at the end of the range
DIRECTIONS = 72
STOP_COST_M = 0.3  # added to the way of each place: looking takes time too
BLOCK = 3  # cells along an edge of those over which distances between places are measured
MAX_STOPS = 24
SWITCH_M = 1.0


class Viewpoints:
    """Places of a grid and what a camera that turns once sees from them.

    Attributes:
        rows, columns: (N,) int64 cells of the places.
    """

    def __init__(
        self, opaque: np.ndarray, worth: np.ndarray, rows: np.ndarray, columns: np.ndarray, reach: int
    ) -> None:
        """Looks around.

        Args:
            opaque: (Y, X) float32 as `visibility.opacity` returns.
            worth: (Y, X) float32 worth of seeing each cell, not negative.
            rows, columns: (N,) cells of the places. reach: cells up to which the camera sees.
        """
        self.rows, self.columns = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
        self._shape, self._worth = worth.shape, np.ascontiguousarray(worth, np.float32).ravel()
        most = min((2 * reach + 1) ** 2, int(np.count_nonzero(worth)))
        self._starts = np.zeros(len(self.rows) + 1, np.int64)
        cells, values = np.empty(len(self.rows) * most, np.int32), np.empty(len(self.rows) * most, np.float32)
        rays = math.ceil(2 * math.pi * RAYS_A_CELL * reach)
        _viewpoints_numba.see_around(opaque, worth, self.rows, self.columns, reach, rays, self._starts, cells, values)
        self._cells, self._values = cells[: self._starts[-1]].copy(), values[: self._starts[-1]].copy()

    def __len__(self) -> int:
        return len(self.rows)

    def gains(self, covered: np.ndarray | None = None) -> np.ndarray:
        """(N,) sums of the worth that each place shows beyond what is `covered` (Y, X) with some probability anyhow."""
        covered = self.nothing() if covered is None else covered
        out = np.zeros(len(self))
        _viewpoints_numba.sum_gains(self._starts, self._cells, self._values, self._worth, covered.ravel(), out)
        return out

    def nothing(self) -> np.ndarray:
        """(Y, X) float32 zeros: no cell is covered."""
        return np.zeros(self._shape, np.float32)

    def cover(self, index: int, covered: np.ndarray) -> None:
        """Raises `covered` (Y, X) to what is seen from a place; only cells of some worth change."""
        part = slice(self._starts[index], self._starts[index + 1])
        _viewpoints_numba.cover(self._cells[part], self._values[part], covered.reshape(-1))

    def expected(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and columns of the cells of some worth that are seen from a place, and their probability, (M,) each."""
        part = slice(self._starts[index], self._starts[index + 1])
        rows, columns = np.divmod(self._cells[part], self._shape[1])
        return rows, columns, self._values[part]

    def best_heading(self, index: int, fov: float) -> tuple[float, float]:
        """The direction in grid axes in which a camera sees most from a place, and the sum of the worth it sees."""
        rows, columns, seen = self.expected(index)
        angles = np.arctan2(rows - self.rows[index], columns - self.columns[index]) / (2 * math.pi)
        gain = seen * self._worth[rows * self._shape[1] + columns]
        bins = np.bincount((angles % 1 * DIRECTIONS).astype(np.int64) % DIRECTIONS, gain, DIRECTIONS)
        width = max(1, min(DIRECTIONS, int(fov / (2 * math.pi) * DIRECTIONS)))
        sums = np.cumsum(np.concatenate([[0.0], bins, bins[: width - 1]]))
        totals = sums[width:] - sums[:-width]
        best = int(np.argmax(totals))
        return 2 * math.pi * (best + 0.5 * width) / DIRECTIONS % (2 * math.pi), float(totals[best])


class _Distances:
    """Ways between places over free cells, measured over blocks of cells; rows are computed when asked for."""

    def __init__(
        self, field: TravelField, start: int, resolution: float, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        free = np.isfinite(field.distance)
        Y, X = (-(-n // BLOCK) * BLOCK for n in free.shape)
        padded = np.zeros((Y, X), bool)
        padded[: free.shape[0], : free.shape[1]] = free
        padded[rows, columns] = True
        blocks = np.asarray(padded.reshape(Y // BLOCK, BLOCK, X // BLOCK, BLOCK).any(axis=(1, 3)))
        self._graph, number = travel_graph(blocks, BLOCK * resolution)
        self._at = number[rows // BLOCK, columns // BLOCK]
        self._near = np.stack([rows, columns], axis=1) * resolution
        self._found = {start: field.distance[rows, columns]}

    def from_place(self, index: int) -> np.ndarray:
        """(N,) metres from a place to all."""
        if index not in self._found:
            way = csgraph.dijkstra(self._graph, directed=False, indices=int(self._at[index]))[self._at]
            # Within a block, and between neighbours, the straight line is better known than the way.
            straight = np.hypot(*(self._near - self._near[index]).T)
            self._found[index] = np.where(np.isfinite(way), np.maximum(way, straight), np.inf)
        return self._found[index]


def coverage_tour(
    points: Viewpoints,
    start: int,
    field: TravelField,
    resolution: float,
    *,
    enough: float,
    min_gain: float,
    stop_cost: float = STOP_COST_M,
    before: int | None = None,
) -> list[int]:
    """Places to visit, in their order.

    Args:
        points: the places. start: index of the one where the robot stands.
        field: the ways from there. resolution: edge of a cell, metres.
        enough: the tour ends growing when it shows this sum of `worth`.
        min_gain: a place that adds less is not visited.
        stop_cost: metres added to the way to each place.
        before: index of the place that the robot is on the way to. It stays the first one, if it still adds `min_gain`
            and the tour is less than `SWITCH_M` longer by that: a robot that changes its mind drives to and fro.

    Returns:
        Indices of places, the start not among them unless there is something to see from there; empty if no place adds
        `min_gain`.
    """
    distances = _Distances(field, start, resolution, points.rows, points.columns)
    covered = points.nothing()
    tour, shown = [start], 0.0
    count = len(points.rows)
    while len(tour) <= MAX_STOPS and (shown < enough or len(tour) == 1):
        gains = points.gains(covered)
        legs = np.stack([distances.from_place(index) for index in tour])
        ends = np.array([distances.from_place(a)[b] for a, b in itertools.pairwise(tour)])
        detours = np.vstack([legs[:-1] + legs[1:] - ends[:, None], legs[-1:]])  # open at its end
        best = np.argmin(detours, axis=0)
        added = np.maximum(detours[best, np.arange(count)], 0)
        rate = np.where((gains >= min_gain) & np.isfinite(added), gains / (added + stop_cost), 0)
        chosen = int(np.argmax(rate))
        if rate[chosen] <= 0:
            break
        tour.insert(int(best[chosen]) + 1, chosen)
        shown += float(gains[chosen])
        points.cover(chosen, covered)
    order, length = _ordered(distances, tour)
    if before is not None and before != start and order[1:2] != [before] and points.gains()[before] >= min_gain:
        same, longer = _ordered(distances, [start, before, *(n for n in tour[1:] if n != before)], fixed=2)
        if longer < length + SWITCH_M:
            return same[1:]
    return order[1:]


def _ordered(distances: _Distances, tour: list[int], fixed: int = 1) -> tuple[list[int], float]:
    between = np.stack([distances.from_place(index)[tour] for index in tour])
    order = open_two_opt(between, fixed)
    return [tour[n] for n in order], float(between[order[:-1], order[1:]].sum())


def open_two_opt(between: np.ndarray, fixed: int = 1) -> list[int]:
    """The order of places (0, ..., N-1) after 2-opt and moves of single places; the end is free.

    Args:
        between: (N, N) distances, symmetric. fixed: number of places that stay the first ones.
    """
    order = list(range(len(between)))
    best, improved = float(between[order[:-1], order[1:]].sum()), len(order) > 2
    while improved:
        improved = False
        for i in range(fixed, len(order)):
            for j in range(fixed, len(order)):
                if i == j:
                    continue
                if i < j:
                    other = order[:i] + order[i : j + 1][::-1] + order[j + 1 :]
                else:  # moves one place forward
                    other = [*order[:j], order[i], *order[j:i], *order[i + 1 :]]
                value = float(between[other[:-1], other[1:]].sum())
                if value < best - 1e-9:
                    order, best, improved = other, value, True
    return order


def coverable(free: np.ndarray, start: tuple[int, int], radius: float) -> np.ndarray:
    """(Y, X) bool: free cells that the robot can cover somewhere on its ways from `start`; `radius` in cells."""
    room = ndimage.distance_transform_edt(free) > radius
    parts, count = ndimage.label(room)
    if not count:
        return free
    rows, columns = np.nonzero(room)
    nearest = int(np.argmin(np.hypot(rows - start[0], columns - start[1])))
    stands = parts == parts[rows[nearest], columns[nearest]]
    return free & (ndimage.distance_transform_edt(~stands) <= radius)
