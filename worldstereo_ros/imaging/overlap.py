"""What two views that see the same surfaces say about each other: common colours, and how well their poses agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.views import View

SAMPLES = 3000  # points that a view offers to another
RELATIVE, ABSOLUTE = 0.05, 0.02  # two depths of one surface differ by less: a fraction, and metres
NEARLY = 4.0  # within so many tolerances two depths still mean the same surface, badly registered
GRAZING = (0.7, 8.0)  # sensitivities that tell of the pose: flat on tells nothing, a depth edge tells lies
FEWEST = 40  # points without which nothing is said


@dataclass(frozen=True)
class Overlap:
    """Points of one view found in another.

    Attributes:
        colours: (N, 2, 3) float64 grey levels of the same points in the first and in the second view.
        misalignment: radians by which the second view would have to turn for the depths to agree, the median over
            surfaces that are slanted enough to tell; NaN where too few are.
    """

    colours: np.ndarray
    misalignment: float


def overlap(one: View, other: View) -> Overlap | None:
    """Looks points of `one` up in `other`; None where they share too little, or one has no depth."""
    if one.depth is None or other.depth is None:
        return None
    stride = max(1, round((one.depth.size / SAMPLES) ** 0.5))
    grid = (slice(stride // 2, None, stride),) * 2
    chosen = (one.depth[grid] > 0) & one.observed_mask[grid]
    if not chosen.any():
        return None
    local = (one.camera.rays()[grid] * one.depth[grid][..., None])[chosen]
    points = local @ one.world_from_camera[:3, :3].T + one.world_from_camera[:3, 3]
    uv, z = project(points, other.camera, other.world_from_camera)
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        inside = (z > 0.05) & (u >= 0) & (v >= 0) & (u < other.camera.width) & (v < other.camera.height)
    if inside.sum() < FEWEST:
        return None
    u, v, z = u[inside].astype(np.int64), v[inside].astype(np.int64), z[inside]
    there = other.depth[v, u]
    difference = np.abs(there - z)
    tolerance = RELATIVE * z + ABSOLUTE
    known = (there > 0) & other.observed_mask[v, u]
    same = known & (difference <= tolerance)
    colours = np.stack([one.image[grid][chosen][inside][same], other.image[v, u][same]], axis=1).astype(np.float64)
    steepness = _sensitivity_at(other.depth, other.camera, v, u)
    telling = known & (difference <= NEARLY * tolerance) & (steepness > GRAZING[0]) & (steepness < GRAZING[1])
    misalignment = float("nan")
    if telling.sum() >= FEWEST:
        misalignment = float(np.median(difference[telling] / z[telling] / steepness[telling]))
    return Overlap(colours, misalignment)


def _sensitivity_at(depth: np.ndarray, camera: Camera, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`sensitivity` of some pixels of a view's depth."""
    reach, out = 3, np.zeros(len(rows))
    height, width = depth.shape
    with np.errstate(divide="ignore"):
        here = np.log(depth[rows, columns])
        known = np.isfinite(here)
        for dy, dx, focal in ((0, reach, camera.fx), (reach, 0, camera.fy)):
            change = np.full(len(rows), np.inf)
            for sign in (-1, 1):
                y, x = rows + sign * dy, columns + sign * dx
                inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
                there = np.log(depth[np.where(inside, y, 0), np.where(inside, x, 0)])
                step = np.abs(there - np.where(known, here, 0))
                change = np.minimum(change, np.where(inside & known, step, np.inf))
            out = np.maximum(out, np.where(np.isfinite(change), change * focal / reach, 0))
    return out


def sensitivity(depth: np.ndarray, fx: float, fy: float, reach: int = 3) -> np.ndarray:
    """(H, W) float32: the relative change of depth per radian that the camera turns; 1 is a surface seen at 45 degrees.

    Of both neighbours `reach` pixels away along each axis the one with the smaller change counts, so that the edge of
    a surface says nothing about its slant. 0 where depth is unknown around.
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
