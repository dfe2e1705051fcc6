"""A robot on two wheels that follows a path, as fast as a speed mask allows. Imports no rclpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SPACING_M = 0.05  # of the points of a path
FULL_SPEED_M_S, ACCELERATION_M_S2, BRAKING_M_S2, TURN_RAD_S = 0.8, 0.5, 0.8, 1.5
LOOKAHEAD_M = 0.45
MERGE_M = 1.6  # of the way over which a path leads from where the robot is onto its lane
MARGIN_M = 0.3  # that a robot keeps from what stands in its way, beyond the way to stop
PERCENT_TYPE, NO_LIMIT = 1, 0  # of Nav2's speed filter


def lane(route: np.ndarray, offset: float, radius: float) -> np.ndarray:
    """A way along two legs with a round corner.

    Args:
        route: (3, 2) start, corner, end, metres.
        offset: metres to the left of the route.
        radius: of the turn on the route itself, metres; larger than the offset.

    Returns:
        (N, 2) points `SPACING_M` apart.
    """
    start, corner, end = np.asarray(route, np.float64)
    first, second = ((b - a) / np.linalg.norm(b - a) for a, b in ((start, corner), (corner, end)))
    turn = math.copysign(1.0, first[0] * second[1] - first[1] * second[0])  # 1 = to the left
    left = np.array([[0.0, -1.0], [1.0, 0.0]])
    centre = corner - radius * first + turn * radius * left @ first
    angles = np.linspace(0, math.pi / 2, max(2, round(radius * math.pi / 2 / SPACING_M)))
    out = radius - turn * offset  # radius of the arc of this lane
    arc = [centre - turn * out * (math.cos(a) * left @ first) + out * math.sin(a) * first for a in angles]
    shift, shifted = offset * left @ first, offset * left @ second
    return resample(np.array([start + shift, *arc, end + shifted]))


def resample(points: np.ndarray) -> np.ndarray:
    """Points (N, 2) of a polyline at equal distances of about `SPACING_M`."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, along[-1], max(2, round(along[-1] / SPACING_M) + 1))
    return np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], axis=1)


def merge(position: np.ndarray, lane_points: np.ndarray) -> np.ndarray:
    """The rest of a lane, beginning at a position (2,) and led onto the lane within `MERGE_M`."""
    nearest = int(np.argmin(np.linalg.norm(lane_points - position, axis=1)))
    rest = lane_points[nearest:]
    if len(rest) < 2:
        return np.stack([position, lane_points[-1]])
    share = np.clip(np.arange(len(rest)) * SPACING_M / MERGE_M, 0, 1)
    smooth = share * share * (3 - 2 * share)
    return resample(rest + (1 - smooth)[:, None] * (position - rest[0]))


def headings(points: np.ndarray) -> np.ndarray:
    """(N,) directions of a path in radians, from x towards y."""
    steps = np.gradient(points, axis=0)
    return np.arctan2(steps[:, 1], steps[:, 0])


@dataclass
class GridCells:
    """A grid as a message has it.

    Attributes:
        cells: (Y, X) int8.
        low: (2,) x and y of its corner, metres.
        resolution: edge of a cell, metres.
    """

    cells: np.ndarray
    low: np.ndarray
    resolution: float

    def at(self, points: np.ndarray, outside: int = -1) -> np.ndarray:
        """(N,) values at points (N, 2); `outside` beyond the border."""
        place = np.floor((np.atleast_2d(points) - self.low) / self.resolution).astype(np.int64)
        inside = ((place >= 0) & (place < self.cells.shape[::-1])).all(axis=1)
        out = np.full(len(place), outside, np.int8)
        out[inside] = self.cells[place[inside, 1], place[inside, 0]]
        return out


@dataclass(frozen=True)
class MaskMeaning:
    """What a `CostmapFilterInfo` says of a mask: limit = `base` + `multiplier` times the value, in percent."""

    base: float = 0.0
    multiplier: float = 1.0


def speed_limit(mask: GridCells, meaning: MaskMeaning, position: np.ndarray) -> float | None:
    """Share of the full speed that Nav2's speed filter allows at a position; None where the mask says nothing.

    Args:
        mask: a mask of type 1, of percent.
        meaning: see there.
        position: (2,) of the robot: the filter does not look ahead.
    """
    value = int(mask.at(position)[0])
    if value < 0:
        return None
    limit = value * meaning.multiplier + meaning.base
    return 1.0 if value == NO_LIMIT or not 0 <= limit <= 100 else limit / 100


@dataclass
class FollowingRobot:
    """Follows a path by pure pursuit.

    Attributes:
        x, y, yaw: where it is; metres, radians.
        radius: of its circle, metres.
        speed: metres a second.
        travel: metres driven.
        path: (N, 2) points of what is left of its path.
    """

    x: float
    y: float
    yaw: float
    radius: float
    speed: float = 0.0
    travel: float = 0.0
    path: np.ndarray | None = None

    @property
    def position(self) -> np.ndarray:
        """(2,) metres."""
        return np.array([self.x, self.y])

    @property
    def arrived(self) -> bool:
        """Whether it stands at the end of its path."""
        return self.path is not None and float(np.linalg.norm(self.path[-1] - self.position)) < 2 * SPACING_M

    def free_way(self, occupancy: GridCells | None) -> float:
        """Metres along the path to where the robot would touch what the grid calls occupied; infinite if nowhere."""
        if occupancy is None or self.path is None:
            return math.inf
        rows, columns = np.nonzero(occupancy.cells == 100)
        if not len(rows):
            return math.inf
        obstacles = occupancy.low + (np.stack([columns, rows], axis=1) + 0.5) * occupancy.resolution
        near = obstacles[np.linalg.norm(obstacles - self.position, axis=1) < 3.0]
        ahead = self.path[:60]
        if not len(near):
            return math.inf
        touching = (np.linalg.norm(ahead[:, None] - near[None], axis=2) < self.radius).any(axis=1)
        return float(np.argmax(touching)) * SPACING_M if touching.any() else math.inf

    def step(self, seconds: float, limit: float, free_way: float = math.inf) -> None:
        """Drives on.

        Args:
            seconds: how long.
            limit: share of the full speed.
            free_way: metres after which something stands in the way.
        """
        if self.path is None:
            return
        nearest = int(np.argmin(np.linalg.norm(self.path[:60] - self.position, axis=1)))
        self.path = self.path[nearest:]
        target = self.path[min(len(self.path) - 1, round(LOOKAHEAD_M / SPACING_M))]
        error = math.remainder(math.atan2(target[1] - self.y, target[0] - self.x) - self.yaw, 2 * math.pi)
        left = float(np.linalg.norm(np.diff(self.path, axis=0), axis=1).sum())
        room = max(0.0, min(left, free_way - MARGIN_M))
        wanted = min(FULL_SPEED_M_S * limit * max(0.1, math.cos(error)), math.sqrt(2 * 0.7 * BRAKING_M_S2 * room))
        change = np.clip(wanted - self.speed, -BRAKING_M_S2 * seconds, ACCELERATION_M_S2 * seconds)
        self.speed = max(0.0, self.speed + float(change))
        turn = 2 * self.speed * math.sin(error) / LOOKAHEAD_M if abs(error) < 1.2 else math.copysign(TURN_RAD_S, error)
        self.yaw += float(np.clip(turn, -TURN_RAD_S, TURN_RAD_S)) * seconds
        self.x += self.speed * math.cos(self.yaw) * seconds
        self.y += self.speed * math.sin(self.yaw) * seconds
        self.travel += self.speed * seconds
