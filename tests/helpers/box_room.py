"""A box-shaped room with one colour for each wall, seen from inside; OpenCV axes, y down."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View

CAMERA = Camera.from_fov(160, 120, np.radians(75))
LOW, HIGH = np.array([-2.5, -1.5, -1.0]), np.array([2.5, 1.0, 4.0])  # corners
COLOURS = np.array(
    [[200, 60, 60], [60, 200, 60], [240, 240, 240], [110, 80, 40], [30, 30, 30], [60, 60, 200]], np.uint8
)


def room(pose: np.ndarray, camera: Camera = CAMERA) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) and which of the six walls (H, W): x low, x high, y low, y high, z low, z high."""
    rays = camera.rays() @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        z = np.where(rays > 0, (HIGH - pose[:3, 3]) / rays, (LOW - pose[:3, 3]) / rays)
    axis = z.argmin(axis=-1)
    sign = np.take_along_axis(rays, axis[..., None], axis=-1)[..., 0] > 0
    return z.min(axis=-1).astype(np.float32), 2 * axis + sign


def floor_texture(pose: np.ndarray, depth: np.ndarray, camera: Camera = CAMERA) -> np.ndarray:
    """(H, W) in -1..1: a pattern of tiles of half a metre, in the floor's coordinates."""
    points = (camera.rays() * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]
    return np.sign(np.sin(4 * np.pi * points[..., 0]) * np.sin(4 * np.pi * points[..., 2]))


def observe(pose: np.ndarray, *, camera: Camera = CAMERA, tiles: float = 0.0, **changes: object) -> View:
    """A view of the room; with `tiles`, a pattern of that many grey levels on its floor."""
    depth, wall = room(pose, camera)
    image = COLOURS[wall].astype(np.float32)
    if tiles:
        pattern = np.where(wall == 3, floor_texture(pose, depth, camera), 0)
        image = image + tiles * pattern[..., None]
    return View(np.clip(image, 0, 255).astype(np.uint8), camera, pose, depth, **changes)  # type: ignore[arg-type]


def turned(degrees: float, tilt: float = 0.0) -> np.ndarray:
    """(4, 4) pose at the origin, turned to the right and tilted down."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("YX", [degrees, -tilt], degrees=True).as_matrix()
    return pose
