"""Converts occupancy grids, scores of paths and states of points to messages."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING

import numpy as np
from geometry_msgs.msg import Point
from nav_msgs.msg import OccupancyGrid as GridMessage
from std_msgs.msg import Header

from worldstereo_ros.msg import PathScore as PathScoreMessage
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:  # loaded by the first request: SciPy and compiled loops
    from worldstereo_ros.planning import OccupancyGrid, PathScore

UNKNOWN = -1
UNKNOWN_STATE = 0  # `CellState.UNKNOWN`
IMAGINED_PERCENT, ESTIMATED_PERCENT, OBSERVED_PERCENT = 100, 50, 0  # of `~/occupancy/imagined`
MAX_VARIANCE = 0.25  # of a number in 0..1: half of the hypotheses say 0, the others 1
FULL_SPEED = 0  # of a speed mask of Nav2: no limit


def grid_message(cells: np.ndarray, grid: OccupancyGrid, header: Header) -> GridMessage:
    """Converts cells of a grid to a message.

    Args:
        cells: (Y, X) int8, -1..100.
        grid: the grid that they belong to, level in the frame of the header.
        header: stamp, and frame of the world.

    Raises:
        InputError: the grid is not level in the frame of the world.
    """
    if not np.allclose(grid.grid_from_world, np.eye(3)):
        raise InputError("The grid is not level in the frame of the world, whose z axis was expected to be up.")
    message = GridMessage(header=header)
    message.info.map_load_time = header.stamp
    message.info.resolution = float(grid.resolution)
    message.info.height, message.info.width = cells.shape
    message.info.origin.position.x, message.info.origin.position.y = (float(value) for value in grid.origin)
    message.info.origin.orientation.w = 1.0
    message.data = array.array("b", np.ascontiguousarray(cells, np.int8).tobytes())
    return message


def confidence_cells(grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) int8: probability in percent that the state is right; -1 where nothing is known."""
    return np.where(grid.state == UNKNOWN_STATE, UNKNOWN, np.rint(100 * grid.confidence)).astype(np.int8)


def imagined_cells(grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) int8: 0 = observed, 50 = estimated, 100 = imagined; -1 where nothing is known."""
    from worldstereo_ros.planning import CellState

    out = np.full(grid.state.shape, UNKNOWN, np.int8)
    out[grid.observed] = OBSERVED_PERCENT
    out[grid.state == CellState.ESTIMATED] = ESTIMATED_PERCENT
    out[grid.imagined] = IMAGINED_PERCENT
    return out


def variance_cells(grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) int8: variance of P(occupied) over the hypotheses in percent of `MAX_VARIANCE`; -1 = nothing is known."""
    percent = np.clip(np.rint(100 * grid.variance / MAX_VARIANCE), 0, 100)
    return np.where(grid.state == UNKNOWN_STATE, UNKNOWN, percent).astype(np.int8)


def speed_cells(grid: OccupancyGrid, slow_percent: int, slow_distance: float) -> np.ndarray:
    """(Y, X) int8 of a speed mask of Nav2 (type 1): `slow_percent` in `planning.caution.slow_zone`, else no limit."""
    from worldstereo_ros.planning.caution import slow_zone

    return np.where(slow_zone(grid, slow_distance), slow_percent, FULL_SPEED).astype(np.int8)


def score_message(score: PathScore) -> PathScoreMessage:
    """Converts the score of a path."""
    message = PathScoreMessage()
    for name in PathScoreMessage.get_fields_and_field_types():
        value = getattr(score, name)
        if isinstance(value, np.ndarray):
            value = array.array("f", np.ascontiguousarray(value, np.float32).tobytes())
        setattr(message, name, value)
    return message


def point_array(points: list[Point]) -> np.ndarray:
    """(N, 3) float64 of points."""
    return np.array([(point.x, point.y, point.z) for point in points], np.float64).reshape(-1, 3)


def float_field(values: np.ndarray) -> array.array:
    """Values of a field `float32[]`, in the type that it takes without a check."""
    return array.array("f", np.ascontiguousarray(values, np.float32).tobytes())
