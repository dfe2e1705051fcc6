"""Shortest ways over the free cells of a grid."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid


def disk(radius: float) -> np.ndarray:
    """(2 R + 1, 2 R + 1) bool: cells whose centres lie within `radius` cells of the middle one."""
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.hypot(x, y) <= radius + 1e-9


def footprint_maximum(values: np.ndarray, radius: float) -> np.ndarray:
    """(..., Y, X) maximum of each cell's surroundings of `radius` cells; beyond the border lies nothing."""
    mask = disk(radius)
    out = np.empty_like(values)
    for index in np.ndindex(values.shape[:-2]):
        out[index] = ndimage.maximum_filter(values[index], footprint=mask, mode="constant", cval=0)
    return out


def traversable(grid: OccupancyGrid, *, through_imagined: bool = False, max_occupied: float = 0.35) -> np.ndarray:
    """(Y, X) bool: cells at which the centre of the robot may be.

    Args:
        grid: the grid.
        through_imagined: cells that are imagined free count, too, where P(occupied) is at most `max_occupied`.
        max_occupied: see above.
    """
    free = grid.state == CellState.OBSERVED_FREE
    if through_imagined:
        free = free | ((grid.state == CellState.IMAGINED_FREE) & (grid.occupied <= max_occupied))
    blocked = grid.state == CellState.OBSERVED_OCCUPIED
    return free & ~ndimage.binary_dilation(blocked, disk(grid.robot.radius / grid.resolution))


def travel_graph(
    free: np.ndarray, resolution: float, cost: np.ndarray | None = None
) -> tuple[sparse.csr_array, np.ndarray]:
    """The graph of free cells with their eight neighbours.

    Args:
        free: (Y, X) bool. resolution: edge of a cell, metres.
        cost: (Y, X) positive cost of a metre over each cell; None: 1.

    Returns:
        (N, N) lengths in metres times the mean cost of both cells, each pair once, and (Y, X) int64 number of each
        cell, -1 where it is not free.
    """
    Y, X = free.shape
    number = np.full((Y, X), -1, np.int64)
    number[free] = np.arange(int(free.sum()))
    price = None if cost is None else cost[free]
    starts, ends, lengths = [], [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = number[: Y - dy, max(0, -dx) : X - max(0, dx)]
        b = number[dy:, max(0, dx) : X - max(0, -dx)]
        both = (a >= 0) & (b >= 0)
        if dx and dy:  # a diagonal does not cut the corner of what is not free
            both &= (number[: Y - dy, max(0, dx) : X - max(0, -dx)] >= 0) & (
                number[dy:, max(0, -dx) : X - max(0, dx)] >= 0
            )
        starts.append(a[both])
        ends.append(b[both])
        length = np.full(int(both.sum()), resolution * math.hypot(dx, dy))
        if price is not None:
            length *= 0.5 * (price[a[both]] + price[b[both]])
        lengths.append(length)
    graph = sparse.coo_array(
        (np.concatenate(lengths), (np.concatenate(starts), np.concatenate(ends))), shape=(int(free.sum()),) * 2
    )
    return graph.tocsr(), number


class TravelField:
    """Distances from a cell to all others over cells that are free, by Dijkstra's algorithm on eight neighbours.

    Attributes:
        distance: (Y, X) float64 metres, or cost; infinite where the robot cannot get.
        start: row and column of the cell.
    """

    def __init__(
        self, free: np.ndarray, row: int, column: int, resolution: float, *, cost: np.ndarray | None = None
    ) -> None:
        """Finds the ways from cell (row, column), which counts as free, over `free` (Y, X).

        With `cost` (Y, X), a positive one of each metre over a cell, those of least cost.
        """
        free = free.copy()
        free[row, column] = True
        self.start = (row, column)
        self._rows, self._columns = np.nonzero(free)
        graph, number = travel_graph(free, resolution, cost)
        self._number = number
        found, self._before = csgraph.dijkstra(
            graph, directed=False, indices=int(number[row, column]), return_predecessors=True
        )
        self.distance = np.full(free.shape, np.inf)
        self.distance[self._rows, self._columns] = found

    def path_to(self, row: int, column: int) -> np.ndarray:
        """(N, 2) int64 rows and columns from the start to a cell; N = 0 if there is no way."""
        at = int(self._number[row, column])
        if at < 0 or not np.isfinite(self.distance[row, column]):
            return np.zeros((0, 2), np.int64)
        cells = []
        while at >= 0:
            cells.append((self._rows[at], self._columns[at]))
            at = int(self._before[at])
        return np.array(cells[::-1], np.int64)
