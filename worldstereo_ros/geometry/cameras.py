"""The pinhole camera model: intrinsics, projection and unprojection.

Conventions of the package: OpenCV camera axes (x right, y down, z forward), metres, radians, pixel centres at integer
coordinates, poses as `world_from_camera` (4, 4) matrices. A name `a_from_b` maps b coordinates to a coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion.

    Attributes:
        width, height: image size in pixels.
        fx, fy: focal lengths in pixels.
        cx, cy: principal point in pixels; the centre of the top left pixel is (0, 0).
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if not np.isfinite(numbers).all() or self.fx <= 0 or self.fy <= 0 or self.width <= 0 or self.height <= 0:
            raise InputError(
                f"The camera has size {self.width}x{self.height} and fx, fy, cx, cy = {numbers}; the size and the "
                "focal lengths must be positive and every number finite. A camera_info of zeros means that the camera "
                "is not calibrated."
            )

    @classmethod
    def from_matrix(cls, K: np.ndarray, width: int, height: int) -> Camera:
        """Builds a camera from a (3, 3) intrinsic matrix in pixels. Raises InputError for another shape."""
        K = np.asarray(K, dtype=np.float64)
        if K.shape != (3, 3):
            raise InputError(f"The intrinsic matrix has shape {K.shape}; (3, 3) was expected.")
        return cls(int(width), int(height), float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))

    @classmethod
    def from_fov(cls, width: int, height: int, horizontal_fov: float) -> Camera:
        """Builds a camera with square pixels and a centred principal point.

        Args:
            width, height: image size in pixels.
            horizontal_fov: horizontal field of view in radians, between 0 and pi.

        Raises:
            InputError: the field of view is out of range.
        """
        if not 0 < horizontal_fov < np.pi:
            raise InputError(f"The horizontal field of view is {horizontal_fov} rad; it must lie between 0 and pi.")
        focal = 0.5 * width / np.tan(0.5 * horizontal_fov)
        return cls(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 intrinsic matrix in pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    def resized(self, width: int, height: int) -> Camera:
        """Returns the camera of the same field of view at another image size."""
        sx, sy = width / self.width, height / self.height
        # Pixel centres are at integers, so the image starts at -0.5.
        cx, cy = (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5
        return Camera(width, height, self.fx * sx, self.fy * sy, cx, cy)

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """Returns the camera of a window of `width` x `height` pixels whose top left pixel is (x, y)."""
        return Camera(width, height, self.fx, self.fy, self.cx - x, self.cy - y)

    def rays(self) -> np.ndarray:
        """Returns (H, W, 3) float32 rays through the pixel centres in camera axes, z = 1: point = ray * depth."""
        x = (np.arange(self.width, dtype=np.float32) - np.float32(self.cx)) / np.float32(self.fx)
        y = (np.arange(self.height, dtype=np.float32) - np.float32(self.cy)) / np.float32(self.fy)
        rays = np.ones((self.height, self.width, 3), dtype=np.float32)
        rays[..., 0], rays[..., 1] = x[None, :], y[:, None]
        return rays


def unproject(depth: np.ndarray, camera: Camera, world_from_camera: np.ndarray) -> np.ndarray:
    """Lifts a depth image to world points.

    Args:
        depth: (H, W) metres along the optical axis, 0 = unknown.
        camera: intrinsics of the same size.
        world_from_camera: (4, 4) pose.

    Returns:
        (H, W, 3) float32 world points in metres; undefined where depth is 0.

    Raises:
        InputError: the depth is of another size than the camera.
    """
    if depth.shape != (camera.height, camera.width):
        raise InputError(
            f"The depth has shape {depth.shape}; {(camera.height, camera.width)}, the camera's size, was expected."
        )
    points = camera.rays() * depth[..., None].astype(np.float32)
    rotation = world_from_camera[:3, :3].astype(np.float32)
    return points @ rotation.T + world_from_camera[:3, 3].astype(np.float32)


def project(points: np.ndarray, camera: Camera, world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects world points into a camera.

    Args:
        points: (N, 3) world points in metres.
        camera: intrinsics.
        world_from_camera: (4, 4) pose.

    Returns:
        (pixel coordinates (N, 2) float32 as x, y; depth (N,) float32 metres). Coordinates of points behind the camera
        (depth <= 0) are undefined.
    """
    camera_from_world = invert_pose(world_from_camera)
    # Subtracting the camera centre first keeps precision far from the world origin.
    local = (points.astype(np.float64) - world_from_camera[:3, 3]) @ camera_from_world[:3, :3].T
    z = local[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        x = camera.fx * local[:, 0] / z + camera.cx
        y = camera.fy * local[:, 1] / z + camera.cy
    return np.stack([x, y], axis=1).astype(np.float32), z.astype(np.float32)
