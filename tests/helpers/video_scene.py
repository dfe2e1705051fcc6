"""A room with painted walls as a moving camera sees it, with exact depth; a board may move in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

from helpers.box_room import CAMERA, room
from worldstereo_ros.geometry.cameras import Camera

BOARD_M = 0.5  # half its side
TEXELS_PER_M, TEXTURE_PX = 28, 256
PLANES = ((1, 2), (1, 2), (0, 2), (0, 2), (0, 1), (0, 1))  # coordinates along each wall


def _textures() -> np.ndarray:
    random = np.random.default_rng(5)
    out = []
    for _ in range(7):
        fine = cv2.GaussianBlur(random.random((TEXTURE_PX, TEXTURE_PX, 3)), (0, 0), 1.2)
        coarse = cv2.GaussianBlur(random.random((TEXTURE_PX, TEXTURE_PX, 3)), (0, 0), 6)
        mixed = (fine - fine.mean()) / fine.std() + (coarse - coarse.mean()) / coarse.std()
        out.append(np.clip(128 + 38 * mixed, 0, 255))
    return np.stack(out).astype(np.float32)


TEXTURES = _textures()


def _paint(texture: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = ((each * TEXELS_PER_M) % (TEXTURE_PX - 1) for each in (u, v))
    return cv2.remap(TEXTURES[texture], x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def frame(
    pose: np.ndarray, camera: Camera = CAMERA, board: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image (H, W, 3) uint8, depth (H, W) float32, whether the board is there (H, W) bool).

    Args:
        pose: (4, 4) world_from_camera, inside the room.
        camera: intrinsics.
        board: middle of a board that faces the z axis; None: there is none.
    """
    depth, wall = room(pose, camera)
    rays = camera.rays().astype(np.float64) @ pose[:3, :3].T
    points = rays * depth[..., None] + pose[:3, 3]
    image = np.zeros((*depth.shape, 3), np.float32)
    for number, (a, b) in enumerate(PLANES):
        image = np.where((wall == number)[..., None], _paint(number, points[..., a] + 9, points[..., b] + 9), image)
    there = np.zeros(depth.shape, bool)
    if board is not None:
        distance = (board[2] - pose[2, 3]) / rays[..., 2]
        hit = rays * distance[..., None] + pose[:3, 3]
        x, y = hit[..., 0] - board[0], hit[..., 1] - board[1]
        there = (distance > 0) & (distance < depth) & (np.abs(x) < BOARD_M) & (np.abs(y) < BOARD_M)
        image = np.where(there[..., None], _paint(6, x + 9, y + 9), image)
        depth = np.where(there, distance, depth).astype(np.float32)
    return np.rint(image).astype(np.uint8), depth, there


def walk(count: int, step: float = 0.06, turn_deg: float = 0.8) -> np.ndarray:
    """(count, 4, 4) poses of a camera that moves to the right and ahead, and turns."""
    from scipy.spatial.transform import Rotation

    poses = np.tile(np.eye(4), (count, 1, 1))
    for index in range(count):
        poses[index, :3, :3] = Rotation.from_euler(
            "YX", [turn_deg * index, 2 * np.sin(index)], degrees=True
        ).as_matrix()
        poses[index, :3, 3] = [step * index - 0.4, 0.02 * np.sin(2 * index), 0.4 * step * index]
    return poses


class KnownDepth:
    """A depth estimator that knows the frames, and is off by a factor and a smooth bend.

    Attributes:
        calls: number of estimates.
    """

    def __init__(
        self, images: Sequence[np.ndarray], depths: Sequence[np.ndarray], factor: float = 1.0, bend: float = 0.0
    ):
        self.depths = {_key(image): depth for image, depth in zip(images, depths, strict=True)}
        self.factor, self.bend, self.calls = factor, bend, 0

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`."""
        self.calls += 1
        depth = self.depths[_key(image)]
        ramp = np.linspace(-1, 1, depth.shape[1], dtype=np.float32)[None]
        return (depth * self.factor * np.exp(self.bend * ramp)).astype(np.float32)


def _key(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
