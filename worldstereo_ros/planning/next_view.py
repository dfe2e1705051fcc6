"""Where to look next: candidate poses, ranked by what they would show against the way to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.planning.travel import TravelField, traversable
from worldstereo_ros.planning.visibility import Sensor, gain_of, opacity, seen_from, uncertainty, yaws_of
from worldstereo_ros.scenes.paths import camera_pose
from worldstereo_ros.utils.errors import InputError

MAX_CANDIDATES = 2000
PLACES, HEADINGS = 60, 8  # of candidates that are chosen by themselves
START_COST_M = 1.0  # added to the way: turning and looking take time too
SNAP_M = 0.5  # by which the robot's cell may be off what it sees free


@dataclass(frozen=True)
class RankedView:
    """A candidate.

    Attributes:
        world_from_camera: (4, 4).
        index: number of the candidate as it was given; -1 if it was chosen here.
        information_gain: expected information, bits.
        new_area: expected area seen for the first time, square metres.
        travel: length of the way over cells that are free, metres; infinite where there is none.
        score: information per metre of the way; 0 where there is none.
    """

    world_from_camera: np.ndarray
    index: int
    information_gain: float
    new_area: float
    travel: float
    score: float


def next_best_view(
    grid: OccupancyGrid,
    world_from_robot_camera: np.ndarray,
    candidates: np.ndarray | None = None,
    *,
    sensor: Sensor | None = None,
    region: tuple[float, float, float, float] | None = None,
    through_imagined: bool = False,
    count: int = 10,
) -> list[RankedView]:
    """Ranks poses by expected information per metre of the way to them.

    Args:
        grid: what is known.
        world_from_robot_camera: (4, 4) pose of the robot's camera now.
        candidates: (N, 4, 4) world_from_camera; None: free cells in view of what is not observed, `HEADINGS` each, with
            the camera level and as high above the floor as now.
        sensor: what the robot sees; None: 70 degrees, 4 m.
        region: x and y of the lowest and of the highest corner in grid axes, metres; None = everywhere. Only what lies
            inside counts as gain, and candidates are chosen there.
        through_imagined: the way may lead over cells that are imagined free.
        count: length of the list at most.

    Returns:
        The best views first; empty if nothing that is not observed can be seen from where the robot can go.

    Raises:
        InputError: poses are not finite rigid transforms, the robot or all candidates are outside the map, the region
            is empty, or there are too many candidates.
    """
    sensor = sensor or Sensor()
    robot = check_poses(np.asarray(world_from_robot_camera)[None], "The robot's pose")
    row, column, inside = grid.cells_at(robot[:, :3, 3])
    if not inside[0]:
        raise InputError("The robot is outside the map. Is its pose given in the frame of the map?")
    bits = uncertainty(grid)
    if region is not None:
        bits = np.where(_inside_region(grid, region), bits, 0)
    free = traversable(grid, through_imagined=through_imagined)
    field = TravelField(free, *snap(free, int(row[0]), int(column[0]), grid.resolution), grid.resolution)
    if candidates is None:
        poses, index = _choose(grid, field, robot[0], bits, sensor), None
        if not len(poses):
            return []
    else:
        if len(candidates) > MAX_CANDIDATES:
            raise InputError(f"There are {len(candidates)} candidates; at most {MAX_CANDIDATES} are ranked at once.")
        poses = check_poses(candidates, "The list of candidates")
        index = np.arange(len(poses))
    rows, columns, inside = grid.cells_at(poses[:, :3, 3])
    if not inside.any():
        raise InputError("All candidates are outside the map. Are they given in its frame?")
    yaws = yaws_of(grid, poses)
    opaque, ranked = opacity(grid), []
    for n in np.flatnonzero(inside):
        seen = np.zeros(grid.state.shape, np.float32)
        one = slice(n, n + 1)
        seen_from(opaque, grid.resolution, rows[one], columns[one], yaws[one], sensor, seen)
        gain, _ = gain_of(grid, seen, bits)
        area = float(seen[(bits > 0)].sum()) * grid.resolution**2
        travel = float(field.distance[rows[n], columns[n]])
        score = gain / (travel + START_COST_M) if math.isfinite(travel) else 0.0
        ranked.append(RankedView(poses[n], -1 if index is None else int(index[n]), gain, area, travel, score))
    ranked.sort(key=lambda view: -view.score)
    if index is None:
        ranked = [view for view in ranked if view.score > 0]
    return ranked[:count]


def frontier_cells(grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) bool: observed free cells with a neighbour that no sensor saw."""
    return (grid.state == CellState.OBSERVED_FREE) & ndimage.binary_dilation(~grid.observed)


def snap(free: np.ndarray, row: int, column: int, resolution: float) -> tuple[int, int]:
    """The nearest free cell, if there is one within `SNAP_M`; else the cell itself. The robot stands somewhere free."""
    rows, columns = np.nonzero(free)
    if not len(rows):
        return row, column
    distance = np.hypot(rows - row, columns - column)
    nearest = int(np.argmin(distance))
    if distance[nearest] * resolution > SNAP_M:
        return row, column
    return int(rows[nearest]), int(columns[nearest])


def _choose(grid: OccupancyGrid, field: TravelField, robot: np.ndarray, bits: np.ndarray, sensor: Sensor) -> np.ndarray:
    """(N, 4, 4) candidates: places spread over the cells that the robot can reach, near what can be learned first."""
    reachable = np.isfinite(field.distance)
    unknown = (bits > 0) & ndimage.binary_dilation(grid.state == CellState.OBSERVED_FREE, iterations=2)
    near = ndimage.distance_transform_edt(~unknown) * grid.resolution if unknown.any() else None
    if near is None:
        return np.zeros((0, 4, 4))
    rows, columns = np.nonzero(reachable & (near <= sensor.max_range))
    if not len(rows):
        return np.zeros((0, 4, 4))
    # One place a tile; the tiles are as large as PLACES of them allow.
    tile = max(1, math.ceil(math.sqrt(len(rows) / PLACES)))
    order = np.argsort(near[rows, columns], kind="stable")
    _, first = np.unique((rows[order] // tile) * grid.state.shape[1] + columns[order] // tile, return_index=True)
    chosen = order[np.sort(first)]
    height = _height_above_floor(grid, robot)
    positions = grid.world_points(rows[chosen], columns[chosen], height)
    poses = []
    world_from_grid = np.eye(4)
    world_from_grid[:3, :3] = grid.grid_from_world.T
    for position in positions @ grid.grid_from_world.T:
        poses += [camera_pose(position, yaw) for yaw in 2 * math.pi * np.arange(HEADINGS) / HEADINGS]
    return world_from_grid @ np.stack(poses)


def _height_above_floor(grid: OccupancyGrid, pose: np.ndarray) -> float:
    row, column, _ = grid.cells_at(pose[None, :3, 3])
    floor = float(np.nan_to_num(grid.floor[row[0], column[0]]))
    return float((grid.grid_from_world @ pose[:3, 3])[2]) - floor


def _inside_region(grid: OccupancyGrid, region: tuple[float, float, float, float]) -> np.ndarray:
    """(Y, X) bool."""
    x0, y0, x1, y1 = region
    if not np.isfinite(region).all() or x1 <= x0 or y1 <= y0:
        raise InputError(f"The region is {region}; x and y of its lowest and of its highest corner were expected.")
    Y, X = grid.state.shape
    x = grid.origin[0] + (np.arange(X) + 0.5) * grid.resolution
    y = grid.origin[1] + (np.arange(Y) + 0.5) * grid.resolution
    inside = ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))[None]
    if not inside.any():
        raise InputError(f"The region {region} lies outside the map.")
    return inside
