"""Does the camera change its place at all? Rotations alone, and what they leave of the motion of tracks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.pointmaps.tracks import Tracks
from worldstereo_ros.pipelines.pointmaps.visual_odometry import MIN_POINTS, lift

MAX_RESIDUAL_PX = 0.75  # median of what a rotation leaves, at a width of 640: error of tracks
STILL_PX = 0.5  # motion at the border of the image by rotation, at a width of 640
MIN_SHARED_SHARE = 0.4


@dataclass(frozen=True)
class Turning:
    """Motion of a camera that stays in its place.

    Attributes:
        world_from_camera: (F, 4, 4) without translation.
        still: it does not turn either, and all poses are the identity.
    """

    world_from_camera: np.ndarray
    still: bool


def fit_rotation(one: np.ndarray, two: np.ndarray, camera: Camera) -> tuple[np.ndarray, float]:
    """Rotation two_from_one (3, 3) of pixels (N, 2), robust, and the median distance in pixels that it leaves."""
    a, b = (lift(pixels, np.ones(len(pixels)), camera) for pixels in (one, two))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    focal = np.sqrt(camera.fx * camera.fy)
    weight = np.ones(len(a))
    turn, angle = np.eye(3), np.zeros(len(a))
    for _ in range(12):
        u, _, vt = np.linalg.svd((b * weight[:, None]).T @ a)
        turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        angle = np.linalg.norm(a @ turn.T - b, axis=1) * focal
        weight = 1 / np.maximum(angle, 0.1)  # least absolute deviations
    return turn, float(np.median(angle))


def find_turning(tracks: Tracks, camera: Camera) -> Turning | None:
    """The rotations of a camera that stays in its place; None if it moves, or too little is followed to say.

    Args:
        tracks: points followed through F frames.
        camera: intrinsics.
    """
    seen = tracks.seen
    frames = seen.shape[1]
    unit = max(camera.width / 640, 0.5)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    reference, largest = 0, 0.0
    for f in range(1, frames):
        both = seen[:, reference] & seen[:, f]
        if both.sum() < max(MIN_POINTS, MIN_SHARED_SHARE * seen[:, reference].sum()):
            reference = f - 1
            both = seen[:, reference] & seen[:, f]
        if both.sum() < MIN_POINTS:
            return None
        turn, left = fit_rotation(tracks.pixels[both, reference], tracks.pixels[both, f], camera)
        if left > MAX_RESIDUAL_PX * unit:
            return None
        poses[f, :3, :3] = poses[reference, :3, :3] @ turn.T
        angle = np.arccos(np.clip((np.trace(poses[f, :3, :3]) - 1) / 2, -1, 1))
        largest = max(largest, float(angle) * max(camera.fx, camera.fy))
    if largest < STILL_PX * unit:
        return Turning(np.tile(np.eye(4), (frames, 1, 1)), True)
    return Turning(poses, False)
