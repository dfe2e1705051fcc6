"""Space that a sensor looked through is empty: nothing imagined may stand there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from worldstereo_ros.geometry.cameras import project
from worldstereo_ros.geometry.views import View

RELATIVE, ABSOLUTE = 0.05, 0.05  # how far in front of what was measured a point must be: sensors and poses err


def seen_through(points: np.ndarray, views: Iterable[View]) -> np.ndarray:
    """Which points stand where a sensor saw through to something behind them.

    Args:
        points: (N, 3) world points, metres.
        views: those with depth and taken by a sensor count, the others are passed over.

    Returns:
        (N,) bool, True = this place was measured to be empty.
    """
    empty = np.zeros(len(points), dtype=bool)
    for view in views:
        if view.depth is None or view.observed is not None or not len(points):
            continue
        uv, z = project(points, view.camera, view.world_from_camera)
        with np.errstate(invalid="ignore"):
            x, y = np.rint(uv[:, 0]), np.rint(uv[:, 1])
            inside = (z > 0) & (x >= 0) & (x < view.camera.width) & (y >= 0) & (y < view.camera.height)
        measured = np.zeros(len(points), dtype=np.float32)
        measured[inside] = view.depth[y[inside].astype(np.intp), x[inside].astype(np.intp)]
        empty |= inside & (measured > 0) & (z < measured * (1 - RELATIVE) - ABSOLUTE)
    return empty
