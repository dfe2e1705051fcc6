"""Free space: imagined points must not lie where a sensor measured that space is empty."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from worldstereo_ros.geometry.cameras import project
from worldstereo_ros.geometry.views import View

# How far a point must lie in front of the measured surface, for errors of sensors and poses.
MARGIN_FRACTION = 0.05  # of the measured depth
MARGIN_M = 0.05


def in_free_space(points: np.ndarray, views: Iterable[View]) -> np.ndarray:
    """Finds points in front of a surface that a sensor measured.

    Args:
        points: (N, 3) world points, metres.
        views: views to test against; only measured depth of observations is used.

    Returns:
        (N,) bool, True = an observation shows that the space at the point is free.
    """
    free = np.zeros(len(points), dtype=bool)
    for view in views:
        if view.depth is None or not view.is_observation or not len(points):
            continue
        depth = view.depth if view.estimated is None else np.where(view.estimated, np.float32(0), view.depth)
        uv, z = project(points, view.camera, view.world_from_camera)
        with np.errstate(invalid="ignore"):
            x, y = np.rint(uv[:, 0]), np.rint(uv[:, 1])
            inside = (z > 0) & (x >= 0) & (x < view.camera.width) & (y >= 0) & (y < view.camera.height)
        measured = np.zeros(len(points), dtype=np.float32)
        measured[inside] = depth[y[inside].astype(np.intp), x[inside].astype(np.intp)]
        free |= inside & (measured > 0) & (z < measured * (1 - MARGIN_FRACTION) - MARGIN_M)
    return free
