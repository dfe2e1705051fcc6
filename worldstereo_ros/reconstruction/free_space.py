"""Estimated depth that cannot be true: it contradicts what another photograph observed, or bridges two surfaces.

A depth network fills holes with smooth shapes. Where they are too near, they hide what other photographs observed
behind them, and a single wrong photograph spoils all views. What a camera saw lies at the end of a free line of sight,
so an estimated point on that line is wrong, whatever is true there. Between a surface and what is far behind it, a
smooth shape is a bridge that nothing stands on.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from worldstereo_ros.geometry.views import View

MARGIN = 0.02  # relative; observed depth is nearly always within this
NEIGHBOURHOOD_PX = 3  # the nearest observed depth in a window of this side counts, beside depth edges
UNKNOWN_M = np.float32(np.inf)
# Of the logarithm of depth between neighbours: a surface seen at 5 degrees, with a focal length of 300 pixels.
MAX_STEP = 0.04


def bridges(depth: np.ndarray, estimated: np.ndarray) -> np.ndarray:
    """(H, W) bool: estimated pixels whose depth (H, W) differs from that of a neighbour as surfaces do not."""
    logarithm = np.log(np.maximum(depth, np.finfo(np.float32).tiny))
    known = depth > 0
    found = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        one, other = (np.delete(known, index, axis=axis) for index in (-1, 0))
        step = (np.abs(np.diff(logarithm, axis=axis)) > MAX_STEP) & one & other
        pad = np.zeros_like(np.take(found, [0], axis=axis))
        found |= np.concatenate([step, pad], axis=axis) | np.concatenate([pad, step], axis=axis)
    return found & estimated


def seen_through(view: View, estimated: np.ndarray, others: Iterable[tuple[View, np.ndarray]]) -> np.ndarray:
    """Finds estimated points that another photograph saw through.

    Args:
        view: the photograph with its depth (H, W).
        estimated: (H, W) bool, pixels whose depth is estimated.
        others: other photographs, each with its observed depth (h, w) float32; 0 = unknown, or estimated.

    Returns:
        (H, W) bool, among `estimated`, pixels whose point lies in front of a surface that another photograph observed.
    """
    assert view.depth is not None
    found = np.zeros(estimated.shape, bool)
    rows, columns = np.nonzero(estimated & (view.depth > 0))
    if not len(rows):
        return found
    camera, depth = view.camera, view.depth[rows, columns].astype(np.float64)
    rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(len(rows))], axis=1)
    points = (rays * depth[:, None]) @ view.world_from_camera[:3, :3].T + view.world_from_camera[:3, 3]
    free = np.zeros(len(points), bool)
    window = np.ones((NEIGHBOURHOOD_PX, NEIGHBOURHOOD_PX), np.uint8)
    for other, observed in others:
        known = observed > 0
        if not known.any():
            continue
        nearest = cv2.erode(np.where(known, observed, UNKNOWN_M), window)
        nearest[~known] = 0  # a pixel of unknown depth says nothing
        inside = (points - other.world_from_camera[:3, 3]) @ other.world_from_camera[:3, :3]
        z = inside[:, 2]
        ahead = np.flatnonzero(z > 0)
        c = other.camera
        x = np.rint(inside[ahead, 0] / z[ahead] * c.fx + c.cx)
        y = np.rint(inside[ahead, 1] / z[ahead] * c.fy + c.cy)
        shown = (x >= 0) & (y >= 0) & (x < c.width) & (y < c.height)
        ahead = ahead[shown]
        free[ahead] |= z[ahead] < (1 - MARGIN) * nearest[y[shown].astype(int), x[shown].astype(int)]
    found[rows, columns] = free
    return found
