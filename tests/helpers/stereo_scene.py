"""A painted wall with a board in front of it, seen exactly from any place along x."""

import numpy as np

from worldstereo_ros.geometry.cameras import Camera

WALL_M, BOARD_M = 4.0, 2.0
CAMERA = Camera.from_fov(160, 96, np.radians(60))


def colours(x, y, shift: float) -> np.ndarray:
    """Smooth colours of points of a plane (metres), (..., 3) float64 in 0..255."""
    waves = [np.sin(5 * x + shift + k) + np.cos(4 * y - 2 * k + shift) for k in range(3)]
    return np.clip(128 + 45 * np.stack(waves, axis=-1), 0, 255)


def pose_at(x: float) -> np.ndarray:
    """(4, 4) world_from_camera, x metres to the right."""
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def view_from(x: float, board: float | None = 0.0, camera: Camera = CAMERA) -> tuple[np.ndarray, np.ndarray]:
    """(image (H, W, 3) uint8, depth (H, W) float32) from x metres to the right.

    Args:
        x: place of the camera.
        board: place of the middle of the board along x; None: there is none.
        camera: intrinsics.
    """
    rays = camera.rays().astype(np.float64)
    wall = rays[..., :2] * WALL_M + (x, 0)
    image, depth = colours(wall[..., 0], wall[..., 1], 0.0), np.full(rays.shape[:2], WALL_M, np.float32)
    if board is not None:
        near = rays[..., :2] * BOARD_M + (x, 0)
        inside = (np.abs(near[..., 0] - board) < 0.3) & (np.abs(near[..., 1]) < 0.35)
        image[inside] = (255 - colours(near[..., 0], near[..., 1], 2.0))[inside]
        depth[inside] = BOARD_M
    return np.rint(image).astype(np.uint8), depth


def error(made: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference over a mask, grey levels."""
    return float(np.abs(made.astype(int) - truth.astype(int))[mask].mean())
