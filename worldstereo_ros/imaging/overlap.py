"""Overlap of two views with depth: colours of common surface points, and how well the poses agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.views import View

MAX_SAMPLES = 3000  # points of the first view that are looked up in the second
MIN_POINTS = 40  # common points for an estimate
# Two depths belong to the same surface if they differ by less than RATIO * depth + M.
DEPTH_TOLERANCE_RATIO, DEPTH_TOLERANCE_M = 0.05, 0.02
LOOSE_TOLERANCE_FACTOR = 4.0  # tolerance for surfaces displaced by a wrong pose, in multiples of the tolerance above
# Range of rotation sensitivities from which the pose error is estimated: frontal surfaces do not depend on the pose,
# larger values are depth edges.
MIN_SENSITIVITY, MAX_SENSITIVITY = 0.7, 8.0
MIN_DEPTH_M = 0.05


@dataclass(frozen=True)
class Overlap:
    """Surface points that two views have in common.

    Attributes:
        colours: (N, 2, 3) float64 RGB in 0..255 of the same points in the first and in the second view.
        misalignment: angle in radians by which the second view would have to turn for the depths to agree, the median
            over slanted surfaces; NaN with too few of them.
        baseline: distance of the two camera centres, relative to that of the common surface points (median) from the
            first; NaN if there are none.
        pixels: (N, 2) int rows and columns of these points in the first view.
        log_depth: (N,) difference of the logarithms of their depths: that in the second view minus that of the point.
        compared: number of looked-up points whose depth both views measured, on the same surface or not.
    """

    colours: np.ndarray
    misalignment: float
    baseline: float = float("nan")
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.intp))
    log_depth: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    compared: int = 0


def measure_overlap(one: View, other: View) -> Overlap | None:
    """Projects points of `one` into `other` and compares colours and depths.

    Only observed pixels with depth count.

    Returns:
        The overlap, or None if the views share too little or one of them has no depth.
    """
    if one.depth is None or other.depth is None:
        return None
    stride = max(1, round((one.depth.size / MAX_SAMPLES) ** 0.5))
    grid = (slice(stride // 2, None, stride),) * 2
    valid = (one.depth[grid] > 0) & one.observed_mask[grid]
    if not valid.any():
        return None
    local = (one.camera.rays()[grid] * one.depth[grid][..., None])[valid]
    points = local @ one.world_from_camera[:3, :3].T + one.world_from_camera[:3, 3]
    uv, z = project(points, other.camera, other.world_from_camera)
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        inside = (z > MIN_DEPTH_M) & (u >= 0) & (v >= 0) & (u < other.camera.width) & (v < other.camera.height)
    if inside.sum() < MIN_POINTS:
        return None
    u, v, z = u[inside].astype(np.int64), v[inside].astype(np.int64), z[inside]
    other_depth = other.depth[v, u]
    difference = np.abs(other_depth - z)
    tolerance = DEPTH_TOLERANCE_RATIO * z + DEPTH_TOLERANCE_M
    comparable = (other_depth > 0) & other.observed_mask[v, u]
    same = comparable & (difference <= tolerance)
    colours = np.stack([one.image[grid][valid][inside][same], other.image[v, u][same]], axis=1).astype(np.float64)
    sensitivity = _sensitivity_at(other.depth, other.camera, v, u)
    slanted = (
        comparable
        & (difference <= LOOSE_TOLERANCE_FACTOR * tolerance)
        & (sensitivity > MIN_SENSITIVITY)
        & (sensitivity < MAX_SENSITIVITY)
    )
    misalignment = float("nan")
    if slanted.sum() >= MIN_POINTS:
        misalignment = float(np.median(difference[slanted] / z[slanted] / sensitivity[slanted]))
    baseline = float("nan")
    if same.any():
        distance = float(np.median(np.linalg.norm(local[inside][same], axis=1)))
        baseline = float(np.linalg.norm(one.world_from_camera[:3, 3] - other.world_from_camera[:3, 3])) / distance
    pixels = np.argwhere(valid)[inside][same] * stride + stride // 2
    log_depth = np.log(other_depth[same] / z[same])
    return Overlap(colours, misalignment, baseline, pixels, log_depth, int(comparable.sum()))


def _sensitivity_at(depth: np.ndarray, camera: Camera, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`rotation_sensitivity` at some pixels."""
    reach, out = 3, np.zeros(len(rows))
    height, width = depth.shape
    with np.errstate(divide="ignore"):
        centre = np.log(depth[rows, columns])
        known = np.isfinite(centre)
        for dy, dx, focal in ((0, reach, camera.fx), (reach, 0, camera.fy)):
            change = np.full(len(rows), np.inf)
            for sign in (-1, 1):
                y, x = rows + sign * dy, columns + sign * dx
                inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
                neighbour = np.log(depth[np.where(inside, y, 0), np.where(inside, x, 0)])
                step = np.abs(neighbour - np.where(known, centre, 0))
                change = np.minimum(change, np.where(inside & known, step, np.inf))
            out = np.maximum(out, np.where(np.isfinite(change), change * focal / reach, 0))
    return out


def rotation_sensitivity(depth: np.ndarray, fx: float, fy: float, reach: int = 3) -> np.ndarray:
    """Relative change of depth per radian of camera rotation; 1 for a surface seen at 45 degrees.

    Along each axis the neighbour with the smaller change counts, so that depth edges do not look like slant.

    Args:
        depth: (H, W) metres, 0 = unknown.
        fx, fy: focal lengths in pixels.
        reach: distance to the neighbours in pixels.

    Returns:
        (H, W) float32, 0 where the depth around is unknown.
    """
    known = depth > 0
    log = np.log(np.where(known, depth, 1)).astype(np.float32)
    out = np.zeros(depth.shape, np.float32)
    for axis, focal in ((1, fx), (0, fy)):
        log_, known_, out_ = np.moveaxis(log, axis, 0), np.moveaxis(known, axis, 0), np.moveaxis(out, axis, 0)
        step = np.where(known_[reach:] & known_[:-reach], np.abs(log_[reach:] - log_[:-reach]), np.inf)
        change = np.full(log_.shape, np.inf, np.float32)
        change[reach:] = step
        change[:-reach] = np.minimum(change[:-reach], step)
        np.maximum(out_, np.where(np.isfinite(change), change * (focal / reach), 0), out=out_)
    return out
