"""Focal length from a point map, where intrinsics are unknown."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.errors import InputError

ITERATIONS = 30
MIN_PIXELS = 50


def estimate_focal(points: np.ndarray, weight: np.ndarray) -> float:
    """Focal length in pixels that explains a point map best (Weiszfeld's algorithm; Wang et al., DUSt3R, section 3.3).

    It minimises the sum of the distances between pixels and projected points, not of their squares, so that some wrong
    points do not matter. The principal point is the middle of the image, and pixels are square.

    Args:
        points: (H, W, 3) in the camera's axes, any unit.
        weight: (H, W) non-negative, 0 = not to be used.

    Raises:
        InputError: there are too few points in front of the camera.
    """
    height, width = weight.shape
    usable = (weight > 0) & np.isfinite(points).all(axis=2) & (points[..., 2] > 1e-6)
    if usable.sum() < MIN_PIXELS:
        raise InputError(
            f"A focal length needs {MIN_PIXELS} points before the camera; the map has {int(usable.sum())}."
        )
    rows, columns = np.nonzero(usable)
    pixels = np.stack([columns - 0.5 * (width - 1), rows - 0.5 * (height - 1)], axis=1)
    rays = points[usable][:, :2].astype(np.float64) / points[usable][:, 2:]
    base = weight[usable].astype(np.float64)
    focal = 0.0
    share = base
    for _ in range(ITERATIONS):
        before = focal
        focal = float((share[:, None] * pixels * rays).sum() / max((share[:, None] * rays**2).sum(), 1e-12))
        share = base / np.maximum(np.linalg.norm(pixels - focal * rays, axis=1), 1e-3)
        if abs(focal - before) < 1e-6 * abs(focal):
            break
    if not focal > 0:
        raise InputError("The points contradict every focal length; a map in the axes of the camera was expected.")
    return focal
