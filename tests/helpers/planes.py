"""Two planes and a floor, rendered analytically."""

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View

CAMERA = Camera(96, 72, 80.0, 80.0, 47.5, 35.5)
NEAR, FAR = 1.0, 3.0


def pose_at(x: float, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = (x, y, z)
    return pose


def two_planes(x: float, gain: float = 1.0, texture: bool = True) -> View:
    """A far wall, and before it a board that covers world x from -0.3 to 0.3 m and y from -0.25 to 0.25 m."""
    rays = CAMERA.rays()

    def at(depth):
        return rays[..., 0] * depth + x, rays[..., 1] * depth

    bx, by = at(NEAR)
    board = (np.abs(bx) < 0.3) & (np.abs(by) < 0.25)
    wx, wy = at(FAR)
    depth = np.where(board, np.float32(NEAR), np.float32(FAR))
    px, py = np.where(board, bx, wx), np.where(board, by, wy)
    wave = 25 * np.sin(6 * px + 1) * np.cos(5 * py) if texture else 0
    base = np.where(board[..., None], [60, 90, 150], [150, 120, 80])
    image = np.clip((base + np.asarray(wave)[..., None]) * gain, 0, 255)
    return View(np.rint(image).astype(np.uint8), CAMERA, pose_at(x), depth.astype(np.float32))


def floor(turn: float = 0.0) -> View:
    """A floor 1 m below a level camera whose true pitch is lower by `turn` radians than its pose says."""
    angle = np.arctan2(CAMERA.rays()[..., 1], 1.0) + turn
    distance = np.where(angle > 0.02, 1.0 / np.tan(np.maximum(angle, 0.02)), 0)
    depth = distance * (np.cos(angle - turn) / np.cos(angle))  # along the optical axis of the pose
    image = np.full((72, 96, 3), 128, np.uint8)
    return View(image, CAMERA, np.eye(4), np.where((depth > 0) & (depth < 20), depth, 0).astype(np.float32))
