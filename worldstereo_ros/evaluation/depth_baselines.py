"""Baselines for depth from single images: one depth everywhere, and a ground plane with a wall."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.cameras import Camera

# Fitted by `fit_ground` to two views each of the first 120 training worlds of config/training/cpu.yaml.
HEIGHT_M, WALL_M, CONSTANT_M = 0.67, 2.64, 2.35
MIN_FLOOR_DEPTH_M = 0.2


class ConstantDepth:
    """The same depth everywhere: the median of the training worlds."""

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`."""
        return np.full(image.shape[:2], CONSTANT_M, np.float32)


class GroundPlane:
    """A level camera above a floor and in front of a wall, at the heights and distances of the training worlds."""

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`."""
        return np.broadcast_to(ground_depth(camera, HEIGHT_M, WALL_M)[:, None], image.shape[:2]).astype(np.float32)


def ground_depth(camera: Camera, height: float, wall: float) -> np.ndarray:
    """(H,) depth in metres of each image row of a level camera.

    Args:
        camera: intrinsics.
        height: height of the camera above the floor, metres.
        wall: distance of the wall, metres.
    """
    below = (np.arange(camera.height) - camera.cy) / camera.fy
    floor = height / np.maximum(below, height / (2 * wall))
    return np.clip(floor, MIN_FLOOR_DEPTH_M, wall).astype(np.float32)


def fit_ground(views: Iterable[tuple[np.ndarray, Camera]]) -> tuple[float, float, float]:
    """Fits (height, wall, constant) in metres: the lowest mean |log(depth / truth)| on a grid.

    Args:
        views: (H, W) true depth in metres, 0 = unknown, and its camera.
    """
    views = list(views)
    heights, walls = np.geomspace(0.3, 3, 24), np.geomspace(1, 12, 24)
    all_depths = np.concatenate([depth[depth > 0][::7] for depth, _ in views])

    def mean_log_error(height: float, wall: float) -> float:
        errors = []
        for depth, camera in views:
            pred = np.broadcast_to(ground_depth(camera, height, wall)[:, None], depth.shape)
            valid = depth > 0
            errors.append(np.abs(np.log(pred[valid] / depth[valid]))[::7])
        return float(np.concatenate(errors).mean())

    _, height, wall = min((mean_log_error(height, wall), height, wall) for height in heights for wall in walls)
    return float(height), float(wall), float(np.median(all_depths))


BASELINES: dict[str, Callable[[], DepthEstimator]] = {"constant": ConstantDepth, "ground plane": GroundPlane}
