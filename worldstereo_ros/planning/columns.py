"""From voxels to the cells that a robot stands on: the floor, what stands on it, and what is not known of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from worldstereo_ros.planning import _columns_numba
from worldstereo_ros.planning.cells import RobotShape, load_calibration, probability
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid, merge_evidence
from worldstereo_ros.planning.occupancy_map import OccupancyMap
from worldstereo_ros.utils.errors import InputError

MIN_FREE_SHARE = 1.0  # of the voxels above a cell that must have been seen free: a seat hides in a gap
MIN_FLOOR_SHARE = 0.3  # of the largest level surface: a floor is the lowest one of at least this size
START_RADIUS_M = 0.75  # around the cameras, where the floor is taken to be level
SLOPE_BASE_M = 0.3  # to either side of a cell, over which the slope of the floor is measured


@dataclass(frozen=True)
class Columns:
    """The columns of a map above its floor.

    Attributes:
        occupancy: the voxels. robot: the space that is looked at.
        floor: (X, Y) int16 index of the floor along z, `NO_FLOOR` = none.
        connected: (X, Y) bool, True = the floor itself was seen there.
    """

    occupancy: OccupancyMap
    robot: RobotShape
    floor: np.ndarray
    connected: np.ndarray

    def evidence(self, levels: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[np.ndarray, ...]:
        """Evidence about the space that the robot needs, each (Y, X).

        Args:
            levels: evidence of a model that is summarised too, such as `OccupancyMap.hypothesis_levels` has.

        Returns:
            Share of the voxels that a sensor saw free; whether it saw one occupied; the highest confidence with which
            the model says that one is occupied, and the mean one that they are free, in 0..1.
        """
        resolution, (X, Y) = self.occupancy.resolution, self.occupancy.shape[:2]
        low = 1 + round(self.robot.max_step / resolution)
        high = max(low + 1, math.ceil(self.robot.height / resolution))
        empty = np.zeros((0, 0, 0), np.uint8)
        hits, free = (empty, empty) if levels is None else levels
        out = [np.empty((X, Y), dtype) for dtype in (np.float32, bool, np.float32, np.float32)]
        _columns_numba.summarise_columns(self.occupancy.odds, hits, free, self.floor, low, high, *out)
        return tuple(array.T for array in out)


def find_columns(occupancy: OccupancyMap, robot: RobotShape, floor: float | None = None) -> Columns:
    """Follows the floor from the first camera on; arguments and errors as in `make_grid`."""
    surface = occupancy.surfaces()
    level = _floor_level(occupancy, surface, robot, floor)
    floors = np.empty(occupancy.shape[:2], np.int16)
    connected = np.empty(occupancy.shape[:2], bool)
    climb = max(1, round(robot.max_step / occupancy.resolution))
    _columns_numba.flood_floor(surface, _start_columns(occupancy), level, climb, floors, connected)
    return Columns(occupancy, robot, floors, connected)


def make_grid(occupancy: OccupancyMap, robot: RobotShape | None = None, *, floor: float | None = None) -> OccupancyGrid:
    """The cells on which a robot can stand, with what is known of each.

    A cell is observed free if a sensor saw all of the space that the robot needs there free. It is observed occupied if
    a sensor saw something in that space, or a floor that rises more steeply than the robot climbs. What is lower than
    the robot's step, or higher than its top, does not count. The floor is followed from the first camera over steps and
    ramps.

    Args:
        occupancy: the voxels.
        robot: the space that it needs; None: the default.
        floor: height of the floor under the first camera in grid axes, metres; None: found by itself.

    Raises:
        InputError: no floor was found, or it lies outside the map.
    """
    robot = RobotShape() if robot is None else robot
    columns = find_columns(occupancy, robot, floor)
    resolution, (X, Y) = occupancy.resolution, occupancy.shape[:2]
    seen_free, seen_occupied, *_ = columns.evidence()
    # Where the floor was seen, whether by a sensor or as estimated.
    i, j = np.ogrid[:X, :Y]
    known = (columns.connected & (occupancy.odds[i, j, np.maximum(columns.floor, 0)] > 0)).T
    steep = _steep(columns.floor, columns.connected, resolution, robot).T
    calibration = load_calibration()
    _, _, hit, clear = columns.evidence(occupancy.estimated_levels)
    hit = np.where(steep & ~known, 1, hit)
    estimated = np.where((hit > 0) | (clear > 0), probability(calibration.estimated, hit, clear), np.nan)
    hypotheses = []
    for levels in occupancy.hypothesis_levels:
        _, _, hit, clear = columns.evidence(levels)
        has = (hit > 0) | (clear > 0)
        hypotheses.append(np.where(has, probability(calibration.imagined, hit, clear), np.nan))
    no_floor = columns.floor == _columns_numba.NO_FLOOR
    heights = np.where(no_floor, np.nan, occupancy.low[2] + (columns.floor + 0.5) * resolution)
    return merge_evidence(
        observed_free=(seen_free >= MIN_FREE_SHARE) & ~seen_occupied & ~steep,
        observed_occupied=seen_occupied | (steep & known),
        estimated=estimated.astype(np.float32), hypotheses=np.array(hypotheses, np.float32).reshape(-1, Y, X),
        floor=heights.T.astype(np.float32), origin=(float(occupancy.low[0]), float(occupancy.low[1])),
        resolution=resolution, grid_from_world=occupancy.grid_from_world, robot=robot, metric=occupancy.metric,
    )  # fmt: skip


def _start_columns(occupancy: OccupancyMap) -> np.ndarray:
    """(N, 2) int64 columns near the first camera, nearest first; on a ramp the floor elsewhere is at another level."""
    cameras = occupancy.to_grid(occupancy.cameras)[:1, :2]
    if not len(cameras):  # the middle of the map
        return np.array([occupancy.shape[:2]], np.int64) // 2
    reach = int(START_RADIUS_M / occupancy.resolution)
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2), axis=-1).reshape(-1, 2)
    distance = np.hypot(*offsets.T)
    order = np.argsort(distance, kind="stable")
    return (
        np.floor((cameras - occupancy.low[:2]) / occupancy.resolution).astype(np.int64)
        + offsets[order[distance[order] <= reach]]
    )


def _floor_level(occupancy: OccupancyMap, surface: np.ndarray, robot: RobotShape, floor: float | None) -> int:
    """Index along z of the floor under the first camera.

    Raises:
        InputError: there is none, or it lies outside the map.
    """
    Z = occupancy.shape[2]
    if floor is not None:
        if not np.isfinite(floor):
            raise InputError(f"The height of the floor is {floor}; a finite number of metres was expected.")
        level = math.floor((floor - occupancy.low[2]) / occupancy.resolution)
        if not 0 <= level < Z:
            top = occupancy.low[2] + Z * occupancy.resolution
            raise InputError(
                f"The floor at {floor:g} m lies outside the map, which reaches from {occupancy.low[2]:g} to {top:g} m."
            )
        return level
    if not len(occupancy.cameras):
        raise InputError("The map has no observation by which to find the floor; give its height.")
    heights = occupancy.to_grid(occupancy.cameras)[:, 2]
    top = math.ceil((float(heights.max()) - occupancy.low[2]) / occupancy.resolution)
    room = max(1, math.ceil(robot.height / occupancy.resolution))
    # Surfaces with the robot's height of nothing above them, by how many columns have one at each height.
    clear = surface.copy()
    for offset in range(1, room + 1):
        clear[:, :, :-offset] &= ~surface[:, :, offset:]
    areas = clear[:, :, : max(0, min(top, Z))].sum(axis=(0, 1))
    if not areas.any():
        raise InputError(
            "No floor was found below the cameras: no level surface with room for the robot above it was seen. Give "
            "the height of the floor."
        )
    # The surface of a floor may fall on the border of two layers of voxels.
    both = areas + np.append(areas[1:], 0)
    lowest = int(np.flatnonzero(both >= MIN_FLOOR_SHARE * both.max())[0])
    return lowest if areas[lowest] >= areas[min(lowest + 1, len(areas) - 1)] else lowest + 1


def _steep(floors: np.ndarray, connected: np.ndarray, resolution: float, robot: RobotShape) -> np.ndarray:
    """(X, Y) bool: the floor that was seen rises more steeply than the robot climbs, beyond a step it drives over."""
    reach = max(1, round(SLOPE_BASE_M / resolution))
    size = 2 * reach + 1
    heights = floors.astype(np.float32)
    highest = ndimage.maximum_filter(np.where(connected, heights, -np.inf), size)
    lowest = ndimage.minimum_filter(np.where(connected, heights, np.inf), size)
    allowed = math.tan(robot.max_slope) * 2 * reach + max(1, round(robot.max_step / resolution))
    return connected & (highest - lowest > allowed + 1e-6)
