"""What a camera at a pose would see of a grid: the cells, and how much it would learn of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.planning import _visibility_numba
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.utils.errors import InputError

SENSOR_RANGE_M = 4.0  # of a depth camera indoors
# Neighbouring cells are not independent: where nothing is sure, a ray meets one obstacle or none over this length.
OBSTACLE_LENGTH_M = 0.5
MAX_RAYS = 2048


@dataclass(frozen=True)
class Sensor:
    """The depth camera of a robot that looks ahead, on a grid.

    Attributes:
        fov: horizontal field of view, radians; 2 pi = all around.
        max_range: metres.
    """

    fov: float = math.radians(70)
    max_range: float = SENSOR_RANGE_M

    def __post_init__(self) -> None:
        if not 0 < self.fov <= 2 * math.pi or not 0 < self.max_range <= 1000:
            raise InputError(
                f"The sensor sees {math.degrees(self.fov):g} degrees and {self.max_range:g} m; more than 0 and at most "
                "360 degrees and 1000 m were expected."
            )

    @classmethod
    def of_camera(cls, camera: Camera, max_range: float = SENSOR_RANGE_M) -> Sensor:
        """The sensor with the horizontal field of view of a camera."""
        left, right = camera.cx + 0.5, camera.width - 0.5 - camera.cx
        return cls(math.atan2(left, camera.fx) + math.atan2(right, camera.fx), max_range)


def uncertainty(grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) float32: bits that an observation of each cell gives at most; 0 where a sensor saw it already.

    The binary entropy of P(occupied). Where hypotheses differ, P is near one half, so that their variance counts.
    """
    p = np.clip(grid.occupied, 1e-6, 1 - 1e-6)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return np.where(grid.observed, 0, bits).astype(np.float32)


def opacity(grid: OccupancyGrid) -> np.ndarray:
    """(Y, X) float32 probability that a ray through a cell ends there.

    That of cells which are probably free is P(occupied) over `OBSTACLE_LENGTH_M`, so that it does not depend on the
    size of cells.
    """
    exponent = min(1.0, grid.resolution / OBSTACLE_LENGTH_M)
    p = grid.occupied
    return np.where(p < 0.5, 1 - (1 - p) ** exponent, p).astype(np.float32)


def seen_from(
    opaque: np.ndarray,
    resolution: float,
    rows: np.ndarray,
    columns: np.ndarray,
    yaws: np.ndarray,
    sensor: Sensor,
    seen: np.ndarray,
) -> None:
    """Raises the probability with which cells are seen, to that of the best of some poses.

    Args:
        opaque: what `opacity` returns. resolution: edge of a cell, metres.
        rows, columns: (N,) cells of the poses. yaws: (N,) directions in grid axes, radians.
        sensor: what the robot sees.
        seen: (Y, X) float32 in 0..1, changed in place.
    """
    reach = sensor.max_range / resolution
    rays = min(MAX_RAYS, max(8, math.ceil(1.5 * reach * sensor.fov)))
    for row, column, yaw in zip(rows, columns, yaws, strict=True):
        _visibility_numba.see(opaque, float(column), float(row), float(yaw), 0.5 * sensor.fov, reach, rays, seen)


def gain_of(grid: OccupancyGrid, seen: np.ndarray, bits: np.ndarray) -> tuple[float, float]:
    """Expected information in bits, and expected area in square metres that is seen for the first time.

    Args:
        grid: the grid.
        seen: (Y, X) probability that each cell is seen.
        bits: what `uncertainty` returns.
    """
    new = float(seen[~grid.observed].sum()) * grid.resolution**2
    return float((seen * bits).sum()), new


def yaws_of(grid: OccupancyGrid, world_from_camera: np.ndarray) -> np.ndarray:
    """(N,) directions in grid axes of the optical axes of cameras (N, 4, 4), radians.

    Of a camera that looks straight up or down, the direction of the top of its image, or of the bottom.
    """
    ahead = world_from_camera[:, :3, 2] @ grid.grid_from_world.T
    top = -world_from_camera[:, :3, 1] @ grid.grid_from_world.T
    vertical = np.hypot(ahead[:, 0], ahead[:, 1]) < 1e-3
    ahead = np.where(vertical[:, None], -np.sign(ahead[:, 2:]) * top, ahead)
    return np.arctan2(ahead[:, 1], ahead[:, 0])
