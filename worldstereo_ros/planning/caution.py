"""Where a robot should drive slowly: what no sensor saw, and the way before it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.planning.travel import disk

_CROSS, _SQUARE = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), bool)


def slow_zone(grid: OccupancyGrid, distance: float = 0.0) -> np.ndarray:
    """Cells that no sensor saw, and those from which the robot could soon be there.

    Only unseen places in which the robot's circle fits count for the way before them: gaps at the foot of a wall and
    what lies behind a wall do not slow the robot down. Ways lead over cells that were seen free.

    Args:
        grid: what is known.
        distance: length of the way before an unseen place, metres.

    Returns:
        (Y, X) bool, True = slow.
    """
    footprint = disk(grid.robot.radius / grid.resolution)
    border = len(footprint)
    # Nothing beyond the border of the map was seen.
    state = np.pad(grid.state, border, constant_values=CellState.UNKNOWN)
    free, unseen = state == CellState.OBSERVED_FREE, state < CellState.OBSERVED_FREE
    # Cells at which the centre of the robot may be: it does not fit through the gaps of a wall.
    centres = ~ndimage.binary_dilation(state == CellState.OBSERVED_OCCUPIED, footprint)
    zone = ndimage.binary_opening(unseen, footprint) & centres
    for step in range(round(distance / grid.resolution)):  # by turns, which makes circles octagons
        zone = ndimage.binary_dilation(zone, _CROSS if step % 2 else _SQUARE, mask=(free & centres) | zone)
    zone = unseen | zone | (ndimage.binary_dilation(zone & free, footprint) & free)  # beside walls, too
    return zone[border:-border, border:-border]
