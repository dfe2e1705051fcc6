"""A simulated robot that explores a procedural world with a depth camera, and what is true of that world."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.planning import OccupancyGrid, OccupancyMap, RobotShape
from worldstereo_ros.planning.cells import CellState, load_calibration
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.planning.travel import disk
from worldstereo_ros.planning.visibility import Sensor
from worldstereo_ros.scenes import Scene, make_path
from worldstereo_ros.scenes.paths import camera_pose
from worldstereo_ros.scenes.raytracing.depth import render_depth
from worldstereo_ros.scenes.raytracing.primitives import CYLINDER, SPHERE

CAMERA = Camera.from_fov(96, 72, math.radians(70))
CAMERA_HEIGHT_M, CAMERA_PITCH_RAD = 0.6, -0.15  # on top of the robot
SENSOR = Sensor(math.radians(70), 4.0)
ROBOT = RobotShape(radius=0.2, height=0.6)
MARGIN_M = 0.1  # of planned ways from obstacles, beyond the robot's radius
RESOLUTION_M = 0.1
SENSE_STEP_M, SENSE_TURN_RAD = 0.2, math.radians(35)  # between two images
TOUCH_M = 0.02  # by which the robot may be nearer to an obstacle than its radius, an error of the cells
UNSEEN_M, LEAVE_M = 1.0, 0.6  # around the robot, see `ExploringRobot.ways`
BORDER_M = 0.5  # of the map around the world
MAX_MAP_HEIGHT_M = 2.0
HEIGHT_STEP_M = 0.05
SAMPLE_M = 0.025  # of the truth: a cell is occupied if one of the points within it, so far apart, lies in an object


@dataclass(frozen=True)
class Truth:
    """What is true of the cells of a world.

    Attributes:
        occupied: (Y, X) bool, an object is in the space that the robot needs there.
        goal: (Y, X) bool, what an explorer should see: free cells that the robot can cover somewhere on its ways.
        distance: (y, x) float32 metres from points `SAMPLE_M` apart to the nearest object.
    """

    occupied: np.ndarray
    goal: np.ndarray
    distance: np.ndarray


class ExploringRobot:
    """A robot in a world: it drives along cells, takes images, and keeps a map.

    Attributes:
        scene: the world.
        grid: what it knows now.
        truth: what is true, which no rule of exploration gets to see.
        travel: metres driven. steps: images taken. collisions: how often it touched something.
    """

    def __init__(self, scene: Scene, seed: int = 0) -> None:
        """Puts the robot where a path through the world starts, and lets it turn around once."""
        self.scene = scene
        low, high = (np.array(corner) for corner in scene.bounds)
        high[2] = min(high[2], MAX_MAP_HEIGHT_M)
        self._map = OccupancyMap(
            low - [BORDER_M, BORDER_M, 0.35], high + np.array([BORDER_M, BORDER_M, 0]), resolution=RESOLUTION_M,
            max_range=SENSOR.max_range,
        )  # fmt: skip
        start = make_path(scene, "ground", 1, seed)[0]
        self.x, self.y = start[:2, 3].tolist()
        self.yaw = math.atan2(start[1, 2], start[0, 2])
        self.travel, self.steps, self.collisions = 0.0, 0, 0
        self._bumps: list[tuple[float, float]] = []
        for turn in range(math.ceil(2 * math.pi / SENSE_TURN_RAD)):
            self._sense(self.yaw + turn * SENSE_TURN_RAD)
        self.refresh()
        self.truth = _truth(scene, self.grid, *self.cell())

    def _sense(self, yaw: float) -> None:
        pose = camera_pose(np.array([self.x, self.y, CAMERA_HEIGHT_M]), yaw, CAMERA_PITCH_RAD)
        depth = render_depth(self.scene, CAMERA, pose[None])[0]
        self._map.integrate(View(np.zeros((*depth.shape, 3), np.uint8), CAMERA, pose, depth))
        self.steps += 1

    def refresh(self) -> None:
        """Updates the grid from the map; cells that the robot touched something in are occupied."""
        self.grid: OccupancyGrid = make_grid(self._map, ROBOT, floor=0.0)
        # A fence at the bounds of the world, of which the robot knows what it saw; no rule leaves the world.
        self._fence(self.outside & (self.grid.state == CellState.OBSERVED_FREE))
        for x, y in self._bumps:
            rows, columns, _ = self.grid.cells_at(np.array([[x, y, 0.0]]))
            self._fence((rows, columns))

    def _fence(self, cells: np.ndarray | tuple[np.ndarray, np.ndarray]) -> None:
        chance = load_calibration().observed_occupied
        self.grid.state[cells] = CellState.OBSERVED_OCCUPIED
        self.grid.occupied[cells] = self.grid.confidence[cells] = chance
        for hypothesis in self.grid.hypotheses:
            hypothesis[cells] = chance

    @property
    def outside(self) -> np.ndarray:
        """(Y, X) bool: cells beyond the bounds of the world."""
        return outside_cells(self.scene, self.grid)

    def put(self, world_from_camera: np.ndarray) -> None:
        """Puts the robot at a pose of a path that is known to be free, and takes an image there."""
        self.x, self.y = world_from_camera[:2, 3].tolist()
        self.yaw = math.atan2(world_from_camera[1, 2], world_from_camera[0, 2])
        self._sense(self.yaw)
        self.refresh()

    def cell(self) -> tuple[int, int]:
        """Row and column of the robot."""
        rows, columns, _ = self.grid.cells_at(np.array([[self.x, self.y, 0.0]]))
        return int(rows[0]), int(columns[0])

    @property
    def pose(self) -> np.ndarray:
        """(4, 4) pose of its camera, level."""
        return camera_pose(np.array([self.x, self.y, CAMERA_HEIGHT_M]), self.yaw)

    def ways(self, blind: float = UNSEEN_M, margin: float = MARGIN_M) -> tuple[np.ndarray, np.ndarray]:
        """Two masks (Y, X): cells that were seen free, and cells at a distance from what was seen occupied.

        Within `blind` metres of the robot unseen cells count as free; the distance is its radius and `margin` metres.
        """
        grid = self.grid
        away = ndimage.distance_transform_edt(grid.state != CellState.OBSERVED_OCCUPIED) * grid.resolution
        row, column = self.cell()
        i, j = np.ogrid[: away.shape[0], : away.shape[1]]
        here = np.hypot(i - row, j - column) * grid.resolution
        # Below itself the sensor sees nothing, and an obstacle that was seen only now may be nearer than planned for:
        # the robot may leave the place where it stands.
        free = (grid.state == CellState.OBSERVED_FREE) | ((here <= blind) & (grid.state == CellState.UNKNOWN))
        return free, (away > ROBOT.radius + margin) | ((here <= LEAVE_M) & (away >= away[row, column]))

    def drive(self, cells: np.ndarray, max_travel: float) -> bool:
        """Drives along cells (N, 2), taking images; stops after `max_travel` metres, or when it touches something.

        Returns:
            Whether it arrived at the last cell.
        """
        gone, unseen = 0.0, 0.0
        for row, column in cells[1:]:
            x = self.grid.origin[0] + (column + 0.5) * RESOLUTION_M
            y = self.grid.origin[1] + (row + 0.5) * RESOLUTION_M
            self.turn(math.atan2(y - self.y, x - self.x))
            if self._touches(x, y):
                self.collisions += 1
                self._bumps.append((x, y))
                self._sense(self.yaw)
                return False
            step = math.hypot(x - self.x, y - self.y)
            self.x, self.y = x, y
            self.travel += step
            gone, unseen = gone + step, unseen + step
            if unseen >= SENSE_STEP_M:
                self._sense(self.yaw)
                unseen = 0.0
            if gone >= max_travel:
                return False
        self._sense(self.yaw)
        return True

    def turn(self, yaw: float) -> None:
        """Turns in place, taking an image every `SENSE_TURN_RAD`."""
        change = (yaw - self.yaw + math.pi) % (2 * math.pi) - math.pi
        for part in range(1, int(abs(change) / SENSE_TURN_RAD) + 1):
            self._sense(self.yaw + math.copysign(part * SENSE_TURN_RAD, change))
        self.yaw = yaw

    def look(self, yaw: float) -> None:
        """Turns in place and takes an image at the end."""
        self.turn(yaw)
        self._sense(yaw)

    def _touches(self, x: float, y: float) -> bool:
        row, column = ((np.array([y, x]) - self.grid.origin[::-1]) / SAMPLE_M).astype(int)
        return bool(self.truth.distance[row, column] < ROBOT.radius - TOUCH_M)

    @property
    def coverage(self) -> float:
        """Share of the cells to see that were seen free."""
        return float((self.grid.state[self.truth.goal] == CellState.OBSERVED_FREE).mean())

    @property
    def false_free(self) -> float:
        """Share of the cells called observed free in which there is an object."""
        free = self.grid.state == CellState.OBSERVED_FREE
        return float(self.truth.occupied[free].mean()) if free.any() else 0.0


def outside_cells(scene: Scene, grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) bool: cells beyond the bounds of the world."""
    (x0, y0, _), (x1, y1, _) = scene.bounds
    Y, X = grid.state.shape
    x = grid.origin[0] + (np.arange(X) + 0.5) * grid.resolution
    y = grid.origin[1] + (np.arange(Y) + 0.5) * grid.resolution
    return ((y < y0) | (y > y1))[:, None] | ((x < x0) | (x > x1))[None]


def true_occupancy(scene: Scene, grid: OccupancyGrid) -> np.ndarray:
    """(y, x) bool: points `SAMPLE_M` apart, an object is in the space that the robot needs above; the floor is at 0.

    A cell has `resolution / SAMPLE_M` of them along each side.
    """
    Y, X = grid.state.shape
    per_cell = round(grid.resolution / SAMPLE_M)
    offsets = (np.arange(per_cell) + 0.5) * grid.resolution / per_cell
    x = (grid.origin[0] + np.arange(X)[:, None] * grid.resolution + offsets).ravel()
    y = (grid.origin[1] + np.arange(Y)[:, None] * grid.resolution + offsets).ravel()
    heights = np.arange(grid.robot.max_step + HEIGHT_STEP_M, grid.robot.height, HEIGHT_STEP_M)
    fine = np.zeros((len(y), len(x)), bool)
    primitives = scene.primitives.select(scene.primitives.solid)
    # Boxes one by one: only the points within the box around each are looked at.
    centres, halves, rotations = (getattr(primitives, name).numpy() for name in ("centre", "half", "rotation"))
    for index, (centre, half, rotation) in enumerate(zip(centres, halves, rotations, strict=True)):
        extent = np.abs(rotation) @ half
        i0, i1 = np.searchsorted(y, [centre[1] - extent[1], centre[1] + extent[1]])
        j0, j1 = np.searchsorted(x, [centre[0] - extent[0], centre[0] + extent[0]])
        k0, k1 = np.searchsorted(heights, [centre[2] - extent[2], centre[2] + extent[2]])
        if i0 == i1 or j0 == j1 or k0 == k1:
            continue
        points = np.stack(np.meshgrid(x[j0:j1], y[i0:i1], heights[k0:k1]), axis=-1)
        local = np.abs((points - centre) @ rotation) / half
        inside = _within(int(primitives.kind[index]), local)
        fine[i0:i1, j0:j1] |= inside.any(axis=2)
    return fine


def coarse(fine: np.ndarray, grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) bool: cells in which any of the points of `true_occupancy` is True."""
    Y, X = grid.state.shape
    per_cell = fine.shape[0] // Y
    return np.asarray(fine.reshape(Y, per_cell, X, per_cell).any(axis=(1, 3)))


def _within(kind: int, local: np.ndarray) -> np.ndarray:
    """Whether points, in units of the half sizes, lie in a box, a cylinder (along z) or a sphere."""
    if kind == SPHERE:
        return (local**2).sum(axis=-1) <= 1
    if kind == CYLINDER:
        return ((local[..., :2] ** 2).sum(axis=-1) <= 1) & (local[..., 2] <= 1)
    return np.asarray((local <= 1).all(axis=-1))


def _truth(scene: Scene, grid: OccupancyGrid, row: int, column: int) -> Truth:
    fine = true_occupancy(scene, grid)
    occupied = coarse(fine, grid)
    outside = outside_cells(scene, grid)
    # Where the robot can stand, from the start on, and what it covers there.
    room = ndimage.distance_transform_edt(~(occupied | outside)) * grid.resolution > ROBOT.radius
    parts, _ = ndimage.label(room)
    rows, columns = np.nonzero(room)
    nearest = int(np.argmin(np.hypot(rows - row, columns - column))) if len(rows) else 0
    stands = parts == parts[rows[nearest], columns[nearest]] if len(rows) else np.zeros_like(room)
    goal = ndimage.binary_dilation(stands, disk(ROBOT.radius / grid.resolution)) & ~occupied & ~outside
    distance = ndimage.distance_transform_edt(~fine).astype(np.float32) * np.float32(SAMPLE_M)
    return Truth(occupied, goal, distance)
